"""The asyncio and uvloop side of :mod:`asgi_perfkit.tasks.loop`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any

from asgi_perfkit.tasks.loop import Flag, Job, Work

__all__ = ["AsyncioLoop"]


_COUNTS_CANCELLATIONS = hasattr(asyncio.Task, "cancelling")  # from Python 3.11 on


class AsyncioLoop:
    """asyncio's, or uvloop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly

    def start(self, work: Work, ended: Callable[[], object] | None = None) -> Job:
        task = self._start(work)
        if ended is not None:
            task.add_done_callback(lambda _: ended())
        return _AsyncioJob(task)

    def _start(self, work: Work) -> _SupervisedTask:
        task = Context().run(_SupervisedTask, work(), loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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
            task.cancel()

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
        if (
            not self.is_current()
        ):  # it was closed under its tasks, which a garbage collection closes now
            return True
        task = asyncio.current_task()
        return (
            isinstance(error, asyncio.CancelledError)
            and isinstance(task, _SupervisedTask)
            and task.is_ending
        )

    def begins_anew(self) -> bool:
        task: Any = asyncio.current_task(self._loop)
        if task is None:  # the loop was closed under it
            return False
        if type(task) is _SupervisedTask:
            if task.is_ending:
                return False
            if task.own_cancellation is not None:  # of a task that is over
                task.own_cancellation.cancel()
                task.own_cancellation = None
        # A TaskGroup of Python 3.11 and 3.12 may leave a cancellation behind that it has dealt with.
        if _COUNTS_CANCELLATIONS:
            while task.cancelling():
                task.uncancel()
        return True

    async def pause(self) -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            if self.is_cancellation(error):
                raise  # or else it was meant for the task of the supervisor that has just ended

    async def together(self, works: Sequence[Work]) -> None:
        jobs = [self._start(work) for work in works]
        cancelled = None
        while any(not job.done() for job in jobs):
            try:
                await asyncio.wait(jobs)
            except asyncio.CancelledError as error:
                cancelled = cancelled or error
                for job in jobs:
                    job.end()
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled  # its traceback holds this frame


class _SupervisedTask(asyncio.Task[None]):
    """Knows whether it is to end: code in it may cancel it for its own purposes (time-outs and task groups do).

    :ivar is_ending: whether the supervisor has ended it, or the loop, which cancels all tasks when it has stopped.
    :ivar own_cancellation: that which it was about to inflict on itself when it was last running.
    """

    is_ending = False
    own_cancellation: asyncio.Handle | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        loop = asyncio._get_running_loop()
        if loop is None:
            self.is_ending = True
        elif asyncio.current_task(loop) is self:
            # It is to come with the next wait, and that may be one of another task of the supervisor: it can be taken
            # back until then.
            self.own_cancellation = loop.call_soon(super().cancel, msg)
            return True
        return super().cancel(msg)

    def end(self) -> None:
        self.is_ending = True
        super().cancel()


class _AsyncioJob:
    def __init__(self, task: _SupervisedTask) -> None:
        self.cancel = task.end


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
