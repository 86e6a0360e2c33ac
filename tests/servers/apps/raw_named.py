"""The handwritten sample's endpoints, named by the application instead of by their shape."""

from __future__ import annotations

from typing import Any

import app as sample
from asgi_perfkit import PerfKit


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await sample.http(scope, receive, send)
    elif scope["type"] == "websocket":
        await sample.websocket(scope, receive, send)
    else:
        await sample.lifespan(receive, send)


def name(scope: Any) -> str | None:
    """The handler's name, the same for every path that reaches it; "elsewhere" for the others."""
    if scope["path"] == "/ws":
        return "echo"
    for pattern, methods in sample.ROUTES:
        if pattern.fullmatch(scope["path"]):
            return next(iter(methods.values())).__name__
    return "elsewhere"


app = PerfKit(application, performance={"endpoint": name})
