"""The lifespan protocol, answered on behalf of apps that do not speak it."""

from __future__ import annotations

import logging

from asgi_perfkit.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["run_lifespan"]

logger = logging.getLogger("asgi_perfkit")


async def run_lifespan(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run `app` for a lifespan scope; if it does not know what that is, answer the server in its place.

    An app does not know it that raises, or returns, before it has received or sent anything (Django does). Whatever
    else comes of a startup or shutdown reaches the server as the app made it.
    """
    spoken = False

    async def listen() -> Message:
        nonlocal spoken
        spoken = True
        return await receive()

    async def speak(message: Message) -> None:
        nonlocal spoken
        spoken = True
        await send(message)

    try:
        await app(scope, listen, speak)
    except Exception as error:
        if spoken:
            raise
        logger.info(
            "The app does not support lifespan (%s: %s); it is answered for it.",
            type(error).__name__,
            error,
        )
    if not spoken:
        await _answer(receive, send)


async def _answer(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        kind = message["type"]
        if kind in ("lifespan.startup", "lifespan.shutdown"):
            await send({"type": kind + ".complete"})
        if kind == "lifespan.shutdown":
            return
