"""Which kind of event loop runs in this thread, without importing one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

__all__ = ["anyio_shield", "asyncio_loop", "on_event_loop", "on_trio", "trio_token"]


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
    return trio_token() is not None


def trio_token() -> Any:
    """What trio's loop that runs in the calling thread is known by; None if none runs there."""
    lowlevel = _trio_lowlevel()
    if lowlevel is None:
        return None
    try:
        return lowlevel.current_trio_token()
    except RuntimeError:
        return None


def anyio_shield() -> contextlib.AbstractContextManager[object]:
    """Keep anyio, if it is in use, from cancelling the task again at each turn of the asyncio loop."""
    cancel_scope = _if_loaded("anyio", "CancelScope")
    return contextlib.nullcontext() if cancel_scope is None else cancel_scope(shield=True)


def _trio_lowlevel() -> Any:
    return _if_loaded("trio", "lowlevel")


def _if_loaded(module: str, name: str) -> Any:
    # Another thread may be importing it just now: then the module is there, and nothing in it.
    return getattr(sys.modules.get(module), name, None)
