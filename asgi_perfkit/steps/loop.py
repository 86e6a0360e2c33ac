"""Which kind of event loop runs in this thread, without importing one that does not."""

from __future__ import annotations

import asyncio
import sys

__all__ = ["asyncio_loop", "on_event_loop", "on_trio"]


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that runs the calling code; None on trio, also where trio is the guest of an asyncio loop."""
    loop = asyncio._get_running_loop()
    if loop is not None:
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_task():
            return None
    return loop


def on_event_loop() -> bool:
    """Whether the calling thread is that of a running asyncio or trio loop."""
    return asyncio._get_running_loop() is not None or on_trio()


def on_trio() -> bool:
    """Whether the calling thread is that of a running trio loop."""
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True
