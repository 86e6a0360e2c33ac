"""Which loop runs here."""

from __future__ import annotations

from asgi_perfkit.steps.loop import asyncio_loop, on_trio
from asgi_perfkit.tasks.asyncio_loop import AsyncioLoop
from asgi_perfkit.tasks.loop import Loop

__all__ = ["running_loop"]


def running_loop() -> Loop:
    """The loop that runs in this thread.

    :raises RuntimeError: none does.
    """
    loop = asyncio_loop()
    if loop is not None:
        return AsyncioLoop(loop)
    if on_trio():
        from asgi_perfkit.tasks.trio_loop import TrioLoop

        return TrioLoop()
    raise RuntimeError(
        "No event loop runs in this thread: tasks run under asyncio, uvloop or trio."
    )
