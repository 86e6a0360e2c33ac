"""Tasks that run one after the other without a wait."""

from __future__ import annotations

from threading import RLock
from time import perf_counter_ns
from typing import Protocol

from asgi_perfkit.steps import Account

__all__ = ["Stretch"]

_MANY = 64  # tasks whose times are noted together

# So long tasks that never wait may keep the loop: those of all requests together, as far as that leaves each of them
# enough for the turn of the loop behind it not to cost as much.
_TURN_NS = 1_000_000
_SHORTEST_NS = 50_000


class StretchOwner(Protocol):
    """Who runs the tasks."""

    lock: RLock
    stretches: set[Stretch]

    def settle(self, done: int) -> None:
        """Count so many tasks more that are done; called with the lock held."""


class Stretch:
    """Tasks that run one after the other without a wait; what each of them cost to note would be as much as to run it.

    :ivar done: how many are done and not counted yet.
    :ivar until_ns: when the loop is due to others; `ended_ns`: when the last task has ended.
    """

    __slots__ = ("_account", "_ran_ns", "_supervisor", "_waited_ns", "done", "ended_ns", "until_ns")

    def __init__(self, supervisor: StretchOwner) -> None:
        self._supervisor = supervisor
        self._account: Account | None = None
        self._waited_ns: list[int] = []
        self._ran_ns: list[int] = []
        self.done = 0
        with supervisor.lock:
            supervisor.stretches.add(self)
        self.begin()

    def close(self) -> None:
        self.note()
        with self._supervisor.lock:
            self._supervisor.stretches.discard(self)

    def begin(self) -> None:
        self.ended_ns = perf_counter_ns()
        share_ns = _TURN_NS // len(self._supervisor.stretches)
        self.until_ns = self.ended_ns + max(share_ns, _SHORTEST_NS)

    def add(self, account: Account | None, added_ns: int, started_ns: int, ended_ns: int) -> None:
        """Take in the times of one, to be noted with those of others for the same account."""
        self.ended_ns = ended_ns
        if account is not self._account or len(self._ran_ns) >= _MANY:
            self.note()
            self._account = account
        if account is not None:
            self._waited_ns.append(started_ns - added_ns)
            self._ran_ns.append(ended_ns - started_ns)

    def note(self) -> None:
        """Count what is done, and note the times, so that who reads the figures finds them."""
        if self.done:
            supervisor = self._supervisor
            with supervisor.lock:
                done, self.done = self.done, 0
                supervisor.settle(done)
        if self._ran_ns:
            waited_ns, self._waited_ns = self._waited_ns, []
            ran_ns, self._ran_ns = self._ran_ns, []
            assert self._account is not None
            self._account.observe_many("background_wait_time", waited_ns)
            self._account.observe_many("background_time", ran_ns)
