"""A plain function as an ASGI app: its arguments from the request, its result as the response."""
