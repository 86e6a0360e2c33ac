"""How many calls may be in worker threads at once, and who is next.

The rules, made so that nobody who holds something waits for somebody who waits for just that:

* A call and an `__enter__` take a token each for as long as they run; there are `total_tokens`. Who finds none left
  queues, first come, first served.
* An `__enter__` may wait, in its thread, for what others hold (a connection of a pool). So a call by whoever is inside
  a manager does not queue behind managers that are being entered: it finds a token taken only where another call runs.
  Nor does an `__enter__` inside a manager queue behind those that are inside of none.
* An `__exit__` gives back what others wait for. Exits have as many tokens of their own.
* An `__exit__` may still wait for another `__exit__` (for a row that is locked until that commits), and an `__enter__`
  inside a manager for another such `__enter__`. Where such a one queues and none of its kind has ended for a while,
  there is no telling who waits for whom, and it is let in beyond the limit, one at a time.

A token that is given back goes to the next in the queue in one step: it is never free in between.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Final, Protocol

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError

__all__ = [
    "CALL",
    "ENTER",
    "EXIT",
    "Hook",
    "INNER_CALL",
    "INNER_ENTER",
    "MAY_STALL",
    "STALL_SECONDS",
    "ThreadLimiter",
    "ThreadLimiterStatistics",
    "Waiter",
    "default_limiter",
]

# What wants a token. `INNER_`: of somebody who is inside a manager.
CALL: Final = 0
ENTER: Final = 1
INNER_CALL: Final = 2
INNER_ENTER: Final = 3
EXIT: Final = 4

MAY_STALL: Final = (INNER_ENTER, EXIT)
"""Those who queue behind others that may wait for just them."""

# Which queue each stands in. Of the heads of these, who came first is first among those that there is a token for.
_EXITS, _INNER_CALLS, _INNER_ENTERS, _OTHERS = range(4)
_QUEUE_OF = {
    CALL: _OTHERS,
    ENTER: _OTHERS,
    INNER_CALL: _INNER_CALLS,
    INNER_ENTER: _INNER_ENTERS,
    EXIT: _EXITS,
}

STALL_SECONDS: Final = 0.1
"""For how long none of a kind ends before one who could be waited for is let in beyond the limit.

Long against the work of an exit, short against what a client notices.
"""

_DEFAULT_TOKENS = 40  # what anyio, and with it Starlette and FastAPI, have

Hook = Callable[[], object]


class Waiter(Protocol):
    """Who asks for a token."""

    kind: int

    def proceed(self) -> None:
        """It has the token; called in any thread."""


@dataclass(frozen=True)
class ThreadLimiterStatistics:
    """A limiter at one moment.

    :ivar total_tokens: how many calls may run at once.
    :ivar borrowed_tokens: calls and enters that run. More than `total_tokens` only after that was lowered, or while
        calls from inside of managers run beside managers that are being entered.
    :ivar tasks_waiting: calls, enters and exits that wait for a token.
    :ivar exits: exits that run, on tokens of their own.
    :ivar rescued: how often one was let in beyond the limit because nothing moved.
    """

    total_tokens: int
    borrowed_tokens: int
    tasks_waiting: int
    exits: int
    rescued: int


class ThreadLimiter:
    """Limits how many calls run in worker threads at once; fair, and shared by any number of event loops.

    :param total_tokens: how many; may be changed while it is in use.
    :param before: called in the worker thread before each call, enter, exit, and visit to an iterator; where these need
        the same thread (``same_thread=True``), once before the first of them.
    :param after: called there after each, also when it raises, or after the last of them. For Django, both are
        `django.db.close_old_connections`. What a hook raises is raised to the caller; after a `before` that raises,
        the call does not take place.
    :raises ConfigurationValueError: `total_tokens` is not a whole number from 1 on.
    :raises ConfigurationTypeError: a hook is not callable.
    """

    __slots__ = (
        "__weakref__",
        "_arrivals",
        "_borrowed",
        "_entering",
        "_exiting",
        "_inner_entering",
        "_lock",
        "_moves",
        "_queues",
        "_rescued",
        "_total",
        "_waiting",
        "after",
        "before",
    )

    def __init__(
        self, total_tokens: int, *, before: Hook | None = None, after: Hook | None = None
    ) -> None:
        self._total = _checked_total(total_tokens)
        for name, hook in (("before", before), ("after", after)):
            if hook is not None and not callable(hook):
                raise ConfigurationTypeError(
                    f"ThreadLimiter({name}=...)", hook, "a hook is a function without arguments."
                )
        self.before = before
        self.after = after
        self._rescued = 0
        self._start_anew()
        _limiters.add(self)

    def _start_anew(self) -> None:
        # Re-entrant: a garbage collection may close a coroutine that waits for a token, and that withdraws.
        self._lock = RLock()
        self._borrowed = 0  # calls and enters that run
        self._entering = 0  # the enters among them
        self._inner_entering = 0  # those of them that are inside of a manager
        self._exiting = 0
        # By kind, how often a token was given back, or someone was let in beyond the limit.
        self._moves = [0] * 5
        # By waiter, when it came.
        self._queues: tuple[OrderedDict[Waiter, int], ...] = tuple(OrderedDict() for _ in range(4))
        self._arrivals = 0
        self._waiting = 0  # how many queue

    def __repr__(self) -> str:
        return f"<ThreadLimiter {self._borrowed} of {self._total} tokens borrowed>"

    @property
    def total_tokens(self) -> int:
        """How many calls may run at once. Raising it lets in who waits; lowering it stops nobody."""
        return self._total

    @total_tokens.setter
    def total_tokens(self, total_tokens: int) -> None:
        total_tokens = _checked_total(total_tokens)
        with self._lock:
            self._total = total_tokens
            admitted = self._admit()
        for waiter in admitted:
            waiter.proceed()

    @property
    def borrowed_tokens(self) -> int:
        """How many calls and enters run now."""
        return self._borrowed

    def statistics(self) -> ThreadLimiterStatistics:
        """How it stands now."""
        with self._lock:
            return ThreadLimiterStatistics(
                total_tokens=self._total,
                borrowed_tokens=self._borrowed,
                tasks_waiting=self._waiting,
                exits=self._exiting,
                rescued=self._rescued,
            )

    # ---- what follows is for the calls

    def _acquire(self, waiter: Waiter) -> bool:
        """Take a token if there is one for `waiter`; or else queue, and have `waiter.proceed()` called one day."""
        kind = waiter.kind
        with self._lock:
            if (
                kind == CALL and self._borrowed < self._total
            ):  # as below, in line: this is what happens as a rule
                self._borrowed += 1
                return True
            queue = _QUEUE_OF[kind]
            if self._has_token(queue):
                self._take(kind)
                return True
            self._queues[queue][waiter] = self._arrivals
            self._arrivals += 1
            self._waiting += 1
            return False

    def _withdraw(self, waiter: Waiter) -> bool:
        """Leave the queue; False if `waiter` is not in it, which is to say that it has its token."""
        with self._lock:
            queue = self._queues[_QUEUE_OF[waiter.kind]]
            if waiter not in queue:
                return False
            del queue[waiter]
            self._waiting -= 1
            return True

    def _release(self, kind: int) -> Sequence[Waiter]:
        """Give a token back; returns who has got one by that, for the caller to let proceed."""
        with self._lock:
            self._moves[kind] += 1
            if kind == EXIT:
                self._exiting -= 1
            else:
                self._borrowed -= 1
                if kind in (ENTER, INNER_ENTER):
                    self._entering -= 1
                    self._inner_entering -= kind == INNER_ENTER
            return self._admit() if self._waiting else ()

    def _rescue(self, waiter: Waiter, moves: int) -> int | None:
        """Let `waiter` in beyond the limit if nothing of its kind has moved since there were `moves`.

        Returns how many moves there are by now; None if it waits no more.
        """
        with self._lock:
            queue = self._queues[_QUEUE_OF[waiter.kind]]
            if waiter not in queue:
                return None
            if self._moves[waiter.kind] != moves:
                return self._moves[waiter.kind]
            self._moves[waiter.kind] += 1
            self._rescued += 1
            del queue[waiter]
            self._waiting -= 1
            self._take(waiter.kind)
        waiter.proceed()
        return None

    def _admit(self) -> list[Waiter]:
        """Take a token for each of those that there is one for, as far as they go: who came first is first."""
        admitted: list[Waiter] = []
        while True:
            first = None
            for number, queue in enumerate(self._queues):
                if queue and self._has_token(number):
                    waiter, arrival = next(iter(queue.items()))
                    if first is None or arrival < first[0]:
                        first = arrival, waiter, queue
            if first is None:
                return admitted
            _, waiter, queue = first
            del queue[waiter]
            self._waiting -= 1
            self._take(waiter.kind)
            admitted.append(waiter)

    def _has_token(self, queue: int) -> bool:
        if queue == _EXITS:
            return self._exiting < self._total
        if queue == _INNER_CALLS:
            return self._borrowed - self._entering < self._total
        if queue == _INNER_ENTERS:
            return self._borrowed - self._entering + self._inner_entering < self._total
        return self._borrowed < self._total

    def _take(self, kind: int) -> None:
        if kind == EXIT:
            self._exiting += 1
        else:
            self._borrowed += 1
            if kind in (ENTER, INNER_ENTER):
                self._entering += 1
                self._inner_entering += kind == INNER_ENTER


def _checked_total(total_tokens: object) -> int:
    if not isinstance(total_tokens, int) or isinstance(total_tokens, bool) or total_tokens < 1:
        raise ConfigurationValueError(
            "ThreadLimiter(total_tokens)", total_tokens, "it is a whole number from 1 on."
        )
    return total_tokens


_limiters: weakref.WeakSet[ThreadLimiter] = weakref.WeakSet()


def _start_all_anew() -> None:
    """In a forked child the threads of the parent do not exist, so what they hold would never be given back."""
    for limiter in list(_limiters):
        limiter._start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)

_default = ThreadLimiter(_DEFAULT_TOKENS)


def default_limiter() -> ThreadLimiter:
    """The limiter of all calls that are given none: 40 tokens, one for the whole process.

    Change it at any time, also before a loop runs: ``default_limiter().total_tokens = 100``,
    ``default_limiter().before = close_old_connections``.
    """
    return _default
