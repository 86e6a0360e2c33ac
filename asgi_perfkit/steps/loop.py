"""Which kind of event loop runs in this thread, without importing one that does not."""

from __future__ import annotations

import asyncio
import sys

__all__ = ["on_event_loop", "on_trio"]


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
