"""The trio side of :mod:`asgi_perfkit.tasks.loop`; imported only where trio runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from math import inf

import trio

from asgi_perfkit.tasks.loop import Flag, Job, Work

__all__ = ["TrioLoop"]


class TrioLoop:
    """A run of trio."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

    def start(self, work: Work, ended: Callable[[], object] | None = None) -> Job:
        cancel_scope = trio.CancelScope()

        async def run() -> None:
            try:
                with cancel_scope:
                    await work()
            finally:
                if ended is not None:
                    ended()

        trio.lowlevel.spawn_system_task(run, context=Context())
        return cancel_scope

    def call_soon(self, callback: Callable[[], object]) -> bool:
        try:
            self._token.run_sync_soon(callback)
        except trio.RunFinishedError:
            return False
        return True

    def is_current(self) -> bool:
        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def flag(self) -> Flag:
        return _TrioFlag()

    async def attempt(self, work: Awaitable[object], seconds: float) -> bool:
        with trio.move_on_after(seconds) as cancel_scope:
            await work
            await trio.lowlevel.checkpoint_if_cancelled()  # after a thread, which was waited for
        return not cancel_scope.cancelled_caught

    def is_cancellation(self, error: BaseException) -> bool:
        if isinstance(error, trio.Cancelled):
            return True
        # An exception group, of Python 3.11 or of the package that brings it to 3.10.
        inner = getattr(error, "exceptions", None)
        return isinstance(inner, tuple) and bool(inner) and all(map(self.is_cancellation, inner))

    def begins_anew(self) -> bool:
        return trio.current_effective_deadline() != -inf

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()

    async def together(self, works: Sequence[Work]) -> None:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)


class _TrioFlag:
    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, seconds: float | None = None) -> bool:
        with trio.move_on_after(inf if seconds is None else seconds):
            await self._event.wait()
        return self._event.is_set()
