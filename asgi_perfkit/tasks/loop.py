"""How work is started apart from who asks for it, given up, and waited for, on each kind of event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

__all__ = ["Flag", "Job", "Loop", "Work"]

Work = Callable[[], Coroutine[Any, Any, None]]


class Job(Protocol):
    """Work that was started."""

    def cancel(self) -> object:
        """Cancel it; on the loop only."""


class Flag(Protocol):
    """Something to wait for."""

    def set(self) -> None:
        """Let go on who waits; on the loop only."""

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for it, at most so many `seconds`; whether it is set."""


class Loop(Protocol):
    """An event loop that runs."""

    def start(self, work: Work, ended: Callable[[], object] | None = None) -> Job:
        """Run `work`, which must not raise, by itself and in an empty context.

        :param ended: called on the loop when it is over, also if it was cancelled before it began.
        """

    def call_soon(self, callback: Callable[[], object]) -> bool:
        """Have it called on the loop, from any thread; False if the loop is over."""

    def is_current(self) -> bool:
        """Whether it runs in the calling thread, now."""

    def flag(self) -> Flag:
        """A new flag."""

    async def attempt(self, work: Awaitable[object], seconds: float) -> bool:
        """Await `work` for at most so many `seconds`; False if it was given up.

        :raises: what `work` raises.
        """

    def is_cancellation(self, error: BaseException) -> bool:
        """Whether `error` is the cancellation of the running task by others, and not one that its code has made."""

    def begins_anew(self) -> bool:
        """Forget what a task of the supervisor has done to the running task; whether another one may begin in it."""

    async def pause(self) -> None:
        """Let the others have a turn."""

    async def together(self, works: Sequence[Work]) -> None:
        """Run `works`, which must not raise, at the same time, and wait for all."""
