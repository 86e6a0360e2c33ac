"""The asyncio and uvloop side of :mod:`asgi_perfkit.tasks.loop`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any

from asgi_perfkit.tasks.loop import Flag, Job, Work

__all__ = ["AsyncioLoop"]


class AsyncioLoop:
    """asyncio's, or uvloop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly

    def start(self, work: Work) -> Job:
        job = Context().run(_CancellableTask, work(), loop=self._loop)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    def call_soon(self, callback: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False
        return True

    def is_current(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    def flag(self) -> Flag:
        return _AsyncioFlag()

    async def attempt(self, work: Awaitable[object], seconds: float) -> bool:
        task = asyncio.current_task()
        assert task is not None
        given_up = False

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            asyncio.Task.cancel(task)  # and not by others

        timer = self._loop.call_later(seconds, give_up)
        try:
            await work
        except asyncio.CancelledError as error:
            if not given_up or self.is_cancellation(error):
                raise
        finally:
            timer.cancel()
            if given_up and hasattr(task, "uncancel"):
                task.uncancel()
        return not given_up

    def is_cancellation(self, error: BaseException) -> bool:
        if not isinstance(error, asyncio.CancelledError):
            return False
        task = asyncio.current_task()
        if isinstance(task, _CancellableTask):
            return task.cancelled_by_others
        # Before Python 3.11 a task does not tell.
        return not hasattr(task, "cancelling") or task.cancelling() > 0  # type: ignore[union-attr]

    async def together(self, works: Sequence[Work]) -> None:
        jobs = [self.start(work) for work in works]
        cancelled = None
        while any(not job.done() for job in jobs):  # type: ignore[attr-defined]
            try:
                await asyncio.wait(jobs)  # type: ignore[type-var]
            except asyncio.CancelledError as error:
                cancelled = cancelled or error
                for job in jobs:
                    job.cancel()
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled  # its traceback holds this frame


class _CancellableTask(asyncio.Task[None]):
    """Knows whether others have cancelled it: code in it may raise, or get, a CancelledError without that."""

    cancelled_by_others = False

    def cancel(self, msg: Any | None = None) -> bool:
        self.cancelled_by_others = True
        return super().cancel(msg)


class _AsyncioFlag:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, seconds: float | None = None) -> bool:
        if seconds is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._event.wait(), seconds)
        else:
            await self._event.wait()
        return self._event.is_set()
