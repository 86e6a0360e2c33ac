"""Lets work that has begun come to its end, whoever cancels the task meanwhile.

The work stays in its task: what it exits (task groups, cancel scopes, time-outs) must be exited in the task that has
entered it. Nor is anything put around it that has to be left before what it exits.

* On asyncio and uvloop a cancellation is a call of the task's `cancel`, and while the work runs that is answered here.
  The work has time-outs and task groups of its own, and these cancel its task, too. They do it in a callback of the
  loop or in a task, in the context of the code that has started these, and so it shows in the context whether it was
  the work. What comes from elsewhere is put off until the work is over. anyio's scopes go the same way.
  A task group that was entered before and is left in the work is elsewhere, too; but it takes back that it has
  cancelled, by the task's `uncancel`, and that is answered as well.
* On trio it is a cancel scope whose shield is put up for the time: that of a region around all that the work exits.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any, TypeVar

from asgi_perfkit.resources.limits import Region
from asgi_perfkit.steps.loop import asyncio_loop, on_trio

__all__ = ["guard_around", "shielded"]

logger = logging.getLogger("asgi_perfkit")

T = TypeVar("T")


async def shielded(work: Awaitable[T], region: Region | None = None) -> T:
    """Await `work`, and let no cancellation from outside into it.

    :param region: on trio, what is around all that `work` exits; None if it exits nothing that was entered before.
    :return: what the work returns.
    :raises: the cancellation that came meanwhile (an exception of the work is logged then); or else what it raises.
    """
    if asyncio_loop() is None:
        if not on_trio():  # closed by a garbage collection, say
            return await work
        if region is None:
            with sys.modules["trio"].CancelScope(shield=True):
                return await work
        region.raise_shield()
        try:
            return await work
        finally:
            region.lower_shield()
    task: Any = asyncio.current_task()
    if task is None:  # it is driven by hand, and nobody can cancel it
        return await work
    guard = _Guard(task)
    if getattr(task, "_must_cancel", False):
        await guard.take_in()
    guard.put_up()
    try:
        return await work
    except Exception as error:
        if guard.deferred:
            logger.error("The closing of resources failed, and was cancelled.", exc_info=error)
        raise
    finally:
        guard.take_down()
        if guard.deferred:
            await guard.deliver()


class _Guard:
    """Answers for the `cancel` and the `uncancel` of a task."""

    __slots__ = ("_around", "_cancel", "_task", "_token", "_wider", "deferred")

    def __init__(self, task: Any) -> None:
        self._task = task
        self._around = guard_around.get()  # of the code that the work belongs to, in whichever task
        # That of this task which is up already, within a closing of which this is another one.
        self._wider: _Guard | None = task.cancel if isinstance(task.cancel, _Guard) else None
        self._cancel: Any = task.cancel if self._wider is None else self._wider._cancel
        # How often, by message. anyio cancels at each turn of the loop, and counts.
        self.deferred: dict[Any, int] = {}

    def put_up(self) -> None:
        self._token = guard_around.set(self)
        self._answer(self)

    def take_down(self) -> None:
        self._answer(self._wider)
        with suppress(ValueError):  # closed by a garbage collection, in another context
            guard_around.reset(self._token)

    def _answer(self, guard: _Guard | None) -> None:
        """Let `guard` answer, or the task itself."""
        task = self._task
        counts = hasattr(task, "uncancel")  # not on Python 3.10
        if guard is not None:
            task.cancel = guard
            if counts:
                task.uncancel = guard.take_back
        else:
            del task.cancel
            if counts:
                del task.uncancel

    def __call__(self, msg: Any = None) -> bool:
        if self._is_around():
            return self._pass_on(msg)
        if _is_group_that_ends(sys._getframe(1)):
            return True
        if self._wider is not None and not self._wider._is_around():
            return self._wider(msg)
        self.deferred[msg] = self.deferred.get(msg, 0) + 1
        return True

    def take_back(self) -> int:
        """Answer for the `uncancel`: what has got through counts first, and then what was put off.

        :return: how often the task is cancelled.
        """
        guard: _Guard | None = self
        while guard is not None and not self._task.cancelling():
            if guard.deferred:
                msg, times = guard.deferred.popitem()
                if times > 1:
                    guard.deferred[msg] = times - 1
                return 0
            guard = guard._wider
        left: int = type(self._task).uncancel(self._task)
        return left

    def _is_around(self) -> bool:
        """Whether the running code belongs to the work."""
        guard = guard_around.get()
        while guard is not None:
            if guard is self:
                return True
            guard = guard._around
        return False

    def _pass_on(self, msg: Any) -> bool:
        cancelled: bool = self._cancel() if msg is None else self._cancel(msg)
        return cancelled

    async def take_in(self) -> None:
        """Put off a cancellation that the task is to get at its next await."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            if hasattr(self._task, "uncancel"):
                self._task.uncancel()
            self.deferred[error.args[0] if error.args else None] = 1

    async def deliver(self) -> None:
        """Let the task have what was put off, as often as it came.

        :raises CancelledError: always.
        """
        for msg, times in self.deferred.items():
            for _ in range(times):
                self._pass_on(msg)
        await asyncio.sleep(0)


_GROUPS: Any = getattr(asyncio, "TaskGroup", ()) if sys.version_info < (3, 13) else ()


def _is_group_that_ends(caller: FrameType) -> bool:
    """Whether a task group that is being left cancels its task, because a child has failed.

    It has cancelled the other children, and all that it does is wait for these. Before Python 3.13 it does not take
    that back; from then on that is answered, and its cancellation is to be counted.
    """
    group = caller.f_locals.get("self")
    return isinstance(group, _GROUPS) and getattr(group, "_exiting", False)


guard_around: ContextVar[_Guard | None] = ContextVar("asgi_perfkit.resources.guard", default=None)
"""The guard of the work that the running code belongs to, in the tasks and callbacks that it starts, too."""
