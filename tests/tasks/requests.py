"""Requests that are nothing but their tasks, a supervisor that is watched, and a gate for async functions."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

from asgi_perfkit import TaskFailure, add_task
from asgi_perfkit.steps import Account, current_account
from asgi_perfkit.tasks.supervisor import Supervisor
from tests.threads.gates import Signal

NOT_DONE = ("failed", "timed_out", "cancelled", "discarded", "lost")


class WatchedSupervisor(Supervisor):
    """Notes what it has accepted, and what it has told of.

    :ivar accepted: how many tasks.
    :ivar told: what `on_error` was given, in order.
    """

    def __init__(
        self, *, on_error: Callable[[TaskFailure], object] | None = None, **options: Any
    ) -> None:
        self.accepted = 0
        self.told: list[TaskFailure] = []
        self._watching = Lock()
        self._then = on_error
        super().__init__(on_error=self._hear, **options)

    def expect(self, number: int) -> None:
        super().expect(number)
        with self._watching:
            self.accepted += number

    def reasons(self) -> list[tuple[str, str]]:
        """The name of each function that was told of, without its module, and the reason."""
        return [(failure.name.rpartition(".")[2], failure.reason) for failure in self.told]

    def figures(self) -> dict[str, int]:
        """The statistics, without what is zero."""
        return {name: number for name, number in self.statistics().items() if number}

    def check_accounts(self) -> None:
        """Every task that was accepted waits, runs, or has become something, and if not done, was told of."""
        stats = self.statistics()
        assert min(stats.values()) >= 0, stats
        # Which is no end of a task: it has run here then, or is lost.
        assert sum(stats.values()) - stats["handoff_failed"] == self.accepted, stats
        assert sum(stats[reason] for reason in NOT_DONE) == len(self.told)

    def check_all_settled(self) -> None:
        """None of them waits or runs any more."""
        self.check_accounts()
        stats = self.statistics()
        assert (stats["pending"], stats["running"]) == (0, 0), stats

    def _hear(self, failure: TaskFailure) -> None:
        with self._watching:
            self.told.append(failure)
        if self._then is not None:
            self._then(failure)


class Request:
    """A request, as far as its tasks are concerned: they are added to it, and it ends.

    :ivar account: where its figures are.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.account = Account()
        self.account.tasks = supervisor

    def add(self, func: Any, /, *args: Any, **kwargs: Any) -> Request:
        """Add a task, as the code that serves the request does."""
        token = current_account.set(self.account)
        try:
            add_task(func, *args, **kwargs)
        finally:
            current_account.reset(token)
        return self

    def end(self, *, failed: bool = False, late: Any = None) -> Request:
        """The app has returned, or has raised if it `failed`."""
        self.account.end(late)
        assert self.account.tasks is not None
        self.account.tasks.finish(self.account, failed=failed)
        return self


class Door:
    """Stands in the way of async functions until it is opened.

    :ivar came: with what they have come to it, in order.
    :ivar inside: how many stand before it, or have gone through and not yet left.
    :ivar most: how many these were at most.
    """

    def __init__(self) -> None:
        self.came: list[Any] = []
        self.inside = 0
        self.most = 0
        self._opened = Signal()
        self._counts: dict[int, Signal] = {}

    async def __call__(self, value: Any = None) -> None:
        """Stand before it; then raise `value` if it is an exception."""
        self.came.append(value)
        self.inside += 1
        self.most = max(self.most, self.inside)
        self._counts.setdefault(len(self.came), Signal()).set()
        try:
            await self._opened.wait()
        finally:
            self.inside -= 1
        if isinstance(value, BaseException):
            raise value

    def open(self) -> None:
        self._opened.set()

    async def reached(self, count: int = 1) -> None:
        """Wait until so many have come to it, all in all."""
        await self._counts.setdefault(count, Signal()).wait()
