"""Queries: which statements a request sends, how often, for how long, and which again and again."""
