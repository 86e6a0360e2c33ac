"""The Starlette sample under a BaseHTTPMiddleware, which runs the application in a task of its own."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from app import lifespan, routes
from asgi_perfkit import PerfKit


class PoweredBy(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-powered-by"] = "coffee"
        return response


app = PerfKit(Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(PoweredBy)]))
