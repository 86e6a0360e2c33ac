"""Which line, which query, which endpoint: what happens inside of requests."""
