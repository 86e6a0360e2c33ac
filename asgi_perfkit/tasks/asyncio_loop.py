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

    def start(self, work: Work, ended: Callable[[], object] | None = None) -> Job:
        job = Context().run(_CancellableTask, work(), loop=self._loop)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        if ended is not None:
            job.add_done_callback(lambda _: ended())
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
        except asyncio.CancelledError:
            if not given_up:
                raise
        finally:
            timer.cancel()
            if given_up and hasattr(task, "uncancel"):
                task.uncancel()
        return not given_up

    def is_cancellation(self, error: BaseException) -> bool:
        task = asyncio.current_task()
        return (
            isinstance(error, asyncio.CancelledError)
            and task is not None
            and _cancellations(task) > 0
        )

    def begins_anew(self) -> bool:
        # A TaskGroup of Python 3.11 and 3.12 may leave a cancellation behind that it has dealt with. One of the loop,
        # swallowed by the task, looks the same.
        task: Any = asyncio.current_task()
        if hasattr(task, "uncancel"):
            while task.cancelling():
                task.uncancel()
        elif isinstance(task, _CancellableTask):
            task.times_cancelled = 0
        return True

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
    """Counts, for Python 3.10, how often others have cancelled it."""

    times_cancelled = 0

    def cancel(self, msg: Any | None = None) -> bool:
        self.times_cancelled += 1
        return super().cancel(msg)


def _cancellations(task: asyncio.Task[Any]) -> int:
    """How often others have cancelled `task`, and not taken it back: it may raise a CancelledError without that."""
    if hasattr(task, "cancelling"):
        times: int = task.cancelling()
        return times
    return task.times_cancelled if isinstance(task, _CancellableTask) else 1


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
