"""The Starlette sample with the middleware added the framework's own way."""

from __future__ import annotations

from starlette.applications import Starlette

from app import lifespan, routes
from asgi_perfkit import PerformanceMiddleware

app = Starlette(routes=routes, lifespan=lifespan)
app.add_middleware(PerformanceMiddleware)
