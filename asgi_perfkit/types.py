"""The shapes that ASGI passes around, named once.

They are structural: any callable with the right parameters fits.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from asgiref.compatibility import guarantee_single_callable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["ASGIApp", "Message", "Receive", "Scope", "Send", "single_callable"]


def single_callable(app: Any) -> ASGIApp:
    """An ASGI 3 app of any ASGI app: one that is called with the scope first is wrapped, others are returned."""
    # asgiref takes what is no coroutine function for an app of ASGI 2; one that takes all three at once is none.
    if not inspect.isclass(app):
        with contextlib.suppress(TypeError, ValueError):
            inspect.signature(app).bind({}, None, None)
            accepted: ASGIApp = app
            return accepted
    single: ASGIApp = guarantee_single_callable(app)  # type: ignore[no-untyped-call]
    return single
