"""Tasks that a task has while it waits for one piece of its work, on each kind of loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from asgi_perfkit.steps.loop import asyncio_loop, on_trio

__all__ = ["Children", "Event", "Work", "new_children"]


class Event(Protocol):
    """Something to wait for."""

    def set(self) -> object:
        """Let go on who waits."""

    async def wait(self) -> object:
        """Wait for it."""


class Work(Awaitable[None], Protocol):
    """What a task awaits while it has children."""

    closed: bool
    """Whether it was closed; a GeneratorExit may also be an error of its own."""


class Children(Protocol):
    """Of the task that calls :meth:`attend`."""

    async def attend(self, work: Work) -> None:
        """Await `work`, in the calling task; the children that are started meanwhile end with it.

        Returns, too, when `work` was interrupted.

        :raises: what `work` raises.
        """

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` in a child; it must not raise."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Have it called after so many `seconds`, if the work has not ended by then; one at a time."""

    def interrupt(self) -> None:
        """Cancel the work, from a child."""

    def event(self) -> Event:
        """A new event."""


def new_children() -> Children:
    """The children of the running task, none so far.

    :raises RuntimeError: no loop is running, neither asyncio's nor trio's.
    """
    loop = asyncio_loop()
    if loop is not None:
        return AsyncioChildren(loop)
    if not on_trio():
        raise RuntimeError(
            "No event loop runs in this thread: a stream is sent under asyncio, uvloop or trio."
        )
    from asgi_perfkit.encoding.children_trio import TrioChildren

    return TrioChildren()


class AsyncioChildren:
    """On asyncio and uvloop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        parent: Any = asyncio.current_task(loop)
        assert parent is not None
        self._loop = loop
        self._parent = parent
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._interrupted = False
        self._over = False

    async def attend(self, work: Work) -> None:
        parent = self._parent
        counted = hasattr(parent, "cancelling")  # not before Python 3.11
        before = parent.cancelling() if counted else 0
        try:
            await work
        except asyncio.CancelledError:
            if not self._interrupted or (counted and parent.cancelling() > before + 1):
                raise  # others have cancelled the task
        except GeneratorExit:
            if work.closed:  # and whoever closes a coroutine waits for nothing
                self._over = True
                self._cancel()
            raise
        finally:
            if not self._over:
                self._over = True
                if self._interrupted and counted:
                    parent.uncancel()
                self._cancel()
                await self._join()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(seconds, callback)

    def interrupt(self) -> None:
        if not self._over and not self._interrupted:
            self._interrupted = True
            self._parent.cancel()

    def event(self) -> Event:
        return asyncio.Event()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    async def _join(self) -> None:
        cancelled = None
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as error:
                cancelled = cancelled or error
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled  # its traceback holds this frame
