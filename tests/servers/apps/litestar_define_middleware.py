"""The Litestar sample with the middleware added the framework's own way."""

from __future__ import annotations

from litestar import Litestar
from litestar.middleware import DefineMiddleware

from app import prepare, route_handlers
from asgi_perfkit import PerformanceMiddleware

app = Litestar(
    route_handlers, middleware=[DefineMiddleware(PerformanceMiddleware)], on_startup=[prepare]
)
