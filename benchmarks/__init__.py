"""Every speed claim of asgi_perfkit, measured side by side with its peers: ``python -m
benchmarks``.
"""
