"""Which kind of event loop runs in this thread, without importing one that does not."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

__all__ = ["asyncio_loop", "on_event_loop", "on_trio"]


def asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that runs the calling code; None on trio, also where trio is the guest of an asyncio loop."""
    loop = asyncio._get_running_loop()
    if (
        loop is not None and asyncio.current_task(loop) is None
    ):  # trio as a guest runs outside of tasks
        lowlevel = _trio_lowlevel()
        if lowlevel is not None and lowlevel.in_trio_task():
            return None
    return loop


def on_event_loop() -> bool:
    """Whether the calling thread is that of a running asyncio or trio loop."""
    return asyncio._get_running_loop() is not None or on_trio()


def on_trio() -> bool:
    """Whether the calling thread is that of a running trio loop."""
    lowlevel = _trio_lowlevel()
    if lowlevel is None:
        return False
    try:
        lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


def _trio_lowlevel() -> Any:
    # Another thread may be importing trio just now: then the module is there, and nothing in it.
    return getattr(sys.modules.get("trio"), "lowlevel", None)
