"""Ends a closing that takes too long.

A cleanup runs in the task that closes, so nobody can leave it behind: when its time is up it is cancelled, and again
each time that as much has passed, until it has ended. Each has its own time, so those behind it are closed as if
nothing had been. What runs in a thread cannot be cancelled, and is left behind there (`exits.py`).

* On asyncio and uvloop one timer serves all that one closing leaves, and cancels the task. Where another closing runs
  within the cleanup, its guard puts that off to its own end, as all that comes from outside; so a closing within one
  that has a limit has the same limit, if it has none of its own.
* A cancel scope of trio's is cancelled for good, and must not be around the exit of another one that was entered
  before. So there is one around the shield of :class:`Region`, and lowering the shield is what cancels a cleanup.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from abc import ABC, abstractmethod
from contextvars import Context
from typing import Any, Final

from asgi_perfkit.exceptions import (
    CleanupTimeoutError,
    ConfigurationTypeError,
    ConfigurationValueError,
)
from asgi_perfkit.resources.exits import Exit, name_of_exit
from asgi_perfkit.steps.loop import asyncio_loop

__all__ = ["Limit", "Region", "Watch", "checked_timeout"]

logger = logging.getLogger("asgi_perfkit")

_FOR_EVER: Final = 1e9


class Region:
    """On trio, the cancel scopes around all that a closing exits.

    :param limited: whether what runs in the closing may have to be cancelled.
    """

    __slots__ = ("_around", "_scope")

    def __init__(self, *, limited: bool) -> None:
        trio = sys.modules["trio"]
        self._around = trio.CancelScope() if limited else None
        self._scope = trio.CancelScope()

    def enter(self) -> None:
        if self._around is not None:
            self._around.__enter__()
        self._scope.__enter__()

    def leave(self, error: BaseException | None) -> None:
        """Leave it with an `error`, which passes through."""
        what = type(error) if error else None, error, error and error.__traceback__
        self._scope.__exit__(*what)
        if self._around is not None:
            self._around.__exit__(*what)

    def raise_shield(self) -> None:
        """Let no cancellation in."""
        self._scope.shield = True

    def lower_shield(self) -> None:
        """Let cancellations in again; but what :meth:`interrupt` has left stays out."""
        if self._around is None or not self._around.cancel_called:
            self._scope.shield = False

    def interrupt(self) -> None:
        """Cancel what runs, until the shield is raised."""
        if self._around is not None:
            self._around.cancel()
            self._scope.shield = False


class Watch(ABC):
    """Cancels what takes longer than it may, in one closing.

    :param seconds: how long each cleanup may take (monotonic).
    :ivar times: how often that which runs was cancelled.
    """

    __slots__ = ("_due", "_leave", "_seconds", "times")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._leave: Exit | None = None  # what runs; None if it is not to be cancelled
        self._due = 0.0
        self.times = 0

    def begin(self, leave: Exit) -> None:
        """Take note that a cleanup begins."""
        self._leave = leave
        self._due = self._now() + self._seconds

    def end(self) -> None:
        """Take note that it has ended."""
        self._leave = None
        self.times = 0

    def error(self) -> CleanupTimeoutError:
        """What is to be raised for a cleanup that was cancelled."""
        return CleanupTimeoutError(name_of_exit(self._leave), self._seconds)

    @abstractmethod
    def finish(self) -> None:
        """Cancel nothing any more."""

    def _look(self) -> None:
        """Cancel what runs, if its time is up; to be called when that is so."""
        if self._leave is None or self._now() < self._due:
            return
        if self.times:
            logger.error(
                "%s has not ended %g s after it was cancelled: the closing waits for it.",
                name_of_exit(self._leave),
                self.times * self._seconds,
            )
        self.times += 1
        self._due = self._now() + self._seconds
        self._interrupt()

    @abstractmethod
    def _now(self) -> float:
        """The loop's time."""

    @abstractmethod
    def _interrupt(self) -> None:
        """Cancel what runs."""


class _AsyncioWatch(Watch):
    __slots__ = ("_loop", "_task", "_timer")

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop, task: Any) -> None:
        super().__init__(seconds)
        self._loop = loop
        self._task = task
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, leave: Exit) -> None:
        super().begin(leave)
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._ring)

    def end(self) -> None:
        if self.times and hasattr(self._task, "uncancel"):  # not on Python 3.10
            for _ in range(self.times):
                self._task.uncancel()
        super().end()

    def finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._look()
        if self._leave is not None:
            self._timer = self._loop.call_at(self._due, self._ring)

    def _now(self) -> float:
        return self._loop.time()

    def _interrupt(self) -> None:
        self._task.cancel()


class _TrioWatch(Watch):
    __slots__ = ("_region", "_scope")

    def __init__(self, seconds: float, region: Region) -> None:
        super().__init__(seconds)
        self._region = region
        self._scope: Any = None

    def begin(self, leave: Exit) -> None:
        super().begin(leave)
        if self._scope is None:
            trio = sys.modules["trio"]
            self._scope = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._ring, context=Context())

    def end(self) -> None:
        if self.times:
            self._region.raise_shield()
        super().end()

    def finish(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def _ring(self) -> None:
        with self._scope:
            while True:
                self._look()
                wait_until = self._due if self._leave is not None else self._now() + self._seconds
                await sys.modules["trio"].sleep_until(wait_until)

    def _now(self) -> float:
        now: float = sys.modules["trio"].current_time()
        return now

    def _interrupt(self) -> None:
        self._region.interrupt()


class _NoWatch(Watch):
    """Where nothing can be cancelled: what runs is driven by hand."""

    __slots__ = ()

    def finish(self) -> None:
        pass

    def _now(self) -> float:
        return 0.0

    def _interrupt(self) -> None:
        pass


class Limit:
    """How long each cleanup of one closing may take.

    :param seconds: that (monotonic).
    :param region: on trio, that of the closing.
    """

    __slots__ = ("_region", "_seconds", "_watch")

    def __init__(self, seconds: float, region: Region | None) -> None:
        self._seconds = seconds
        self._region = region
        self._watch: Watch | None = None

    def watch(self) -> Watch:
        """What watches over the running task; made when something has to be waited for."""
        if self._watch is None:
            self._watch = self._new_watch()
        return self._watch

    def _new_watch(self) -> Watch:
        loop = asyncio_loop()
        if loop is not None:
            task = asyncio.current_task()
            if task is not None:
                return _AsyncioWatch(self._seconds, loop, task)
        elif self._region is not None:
            return _TrioWatch(self._seconds, self._region)
        return _NoWatch(self._seconds)

    def end(self) -> None:
        """Cancel nothing any more."""
        if self._watch is not None:
            self._watch.finish()


def checked_timeout(subject: str, seconds: object) -> float | None:
    """`seconds`, if a cleanup can have so many; None for any number.

    :param subject: what it is for, as the user wrote it.
    :raises ConfigurationError: they are neither None nor a number above 0.
    """
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise ConfigurationTypeError(
            f"{subject}(close_timeout=...)", seconds, "give seconds, or None for no limit."
        )
    if not seconds > 0:
        raise ConfigurationValueError(
            f"{subject}(close_timeout=...)", seconds, "give more than 0 seconds, or None."
        )
    return None if seconds > _FOR_EVER else seconds
