"""The middlewares: each connects one mechanism to one request."""
