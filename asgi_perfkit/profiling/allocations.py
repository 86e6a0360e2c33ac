"""What requests allocate, by line, while a window is open.

`tracemalloc` slows all code of the process, so it traces only within windows of some seconds. What it has traced is
forgotten at the beginning of each step and looked at in the end, so what is found belongs to the request of that step.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Sequence
from threading import Lock, RLock, Timer, get_ident
from typing import Any

from asgi_perfkit.exceptions import AlreadyProfilingError
from asgi_perfkit.profiling.shelf import Shelf
from asgi_perfkit.profiling.stacks import is_app_code
from asgi_perfkit.steps import Account

__all__ = ["AllocationProfiles", "AllocationWindow"]

MAX_LINES = 2000
"""How many lines are kept of a request and of an endpoint. What further ones allocate is only in the sum."""

TOP = 20
"""How many lines of an endpoint are told: those with the most bytes."""

_LINE_BYTES = 300
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
_OWN = (  # what observes, and what drives the requests
    os.path.join(_HERE, ""),  # noqa: PTH118
    os.path.join(os.path.dirname(_HERE), "steps", ""),  # noqa: PTH118, PTH120
    tracemalloc.__file__,
)

Place = tuple[str, int]


class Allocated:
    """What steps have allocated that was still there when they ended.

    :ivar peak: the most that any of them had at a time, in bytes.
    """

    __slots__ = ("bytes", "lines", "peak", "requests", "steps")

    def __init__(self) -> None:
        self.requests = self.steps = self.bytes = self.peak = 0
        self.lines: dict[Place, tuple[int, int]] = {}  # bytes and blocks

    @property
    def size(self) -> int:
        return 500 + _LINE_BYTES * len(self.lines)

    def shrink(self) -> bool:
        return False

    def add(self, place: Place, size: int, count: int) -> None:
        found = self.lines.get(place)
        if found is not None:
            self.lines[place] = found[0] + size, found[1] + count
        elif len(self.lines) < MAX_LINES:
            self.lines[place] = size, count

    def merge(self, other: Allocated) -> None:
        self.requests += other.requests
        self.steps += other.steps
        self.bytes += other.bytes
        self.peak = max(self.peak, other.peak)
        for place, (size, count) in other.lines.items():
            self.add(place, size, count)

    def statistics(self) -> dict[str, Any]:
        lines = sorted(self.lines.items(), key=lambda line: line[1], reverse=True)
        return {
            "requests": self.requests,
            "steps": self.steps,
            "bytes": self.bytes,
            "peak": self.peak,
            "top": [
                {"file": file, "line": line, "bytes": size, "blocks": blocks}
                for (file, line), (size, blocks) in lines[:TOP]
            ],
        }


class AllocationProfiles:
    """Keeps what windows have found, by endpoint. For any thread.

    :ivar max_bytes: what it may take, and each window, too.
    :ivar window: the one that is open.
    """

    def __init__(self, max_bytes: int) -> None:
        self.window: AllocationWindow | None = None
        self.max_bytes = max_bytes
        self._shelf = Shelf(Allocated, max_bytes)

    def add(self, endpoint: str, allocated: Allocated) -> None:
        self._shelf.change(endpoint, lambda kept: kept.merge(allocated))

    def statistics(self) -> dict[str, Any]:
        return {
            "dropped_endpoints": self._shelf.dropped,
            "endpoints": self._shelf.read(Allocated.statistics),
        }

    def clear(self) -> None:
        self._shelf.clear()

    def start_anew(self) -> None:
        """In a forked child: forget what the parent tells, and end what it has begun."""
        self._shelf.clear()
        if self.window is not None:
            self.window.leave_to_parent()

    def resize(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._shelf.resize(max_bytes)


class AllocationWindow:
    """Traces what is allocated, for some seconds, and observes the steps of requests meanwhile.

    The bytes that a step has allocated, and that are still there when it ends, are told of its request; so are those
    that worker threads allocate meanwhile, which nothing tells apart.

    :param profiles: where what is found is kept, too.
    :param seconds: after which it ends, if nobody has ended it before.
    :param endpoint: the only one that is of interest; None for all.
    :param frames: how many callers of each allocation are known, at most. The line that is told is the innermost one
        of the app among them, or, where there is none, the innermost one.
    :ivar open: whether it traces.
    :ivar interrupted: whether somebody else has ended the tracing.
    :ivar overlapping_steps: how many steps were not looked at, because one of another event loop was.
    """

    def __init__(
        self, profiles: AllocationProfiles, *, seconds: float, endpoint: str | None, frames: int
    ) -> None:
        self.open = self.interrupted = False
        self.overlapping_steps = 0
        self._profiles = profiles
        self._seconds = seconds
        self._endpoint = endpoint
        self._frames = frames
        self._lock = RLock()
        self._timer: Timer | None = None
        self._found = Shelf(Allocated, profiles.max_bytes)
        self._observed: dict[Account, tuple[Allocated, Callable[[], str]]] = {}
        # The step that is looked at, by its thread, and how many there are within each other.
        self._thread = self._depth = 0

    def start(self) -> None:
        """Begin to trace.

        :raises AlreadyProfilingError: something else traces allocations.
        """
        with _starting:
            if tracemalloc.is_tracing():
                raise AlreadyProfilingError(
                    "profile_allocations() needs tracemalloc, and that is tracing already",
                    "It traces for one at a time: end what has started it, or wait for that to end.",
                )
            tracemalloc.start(self._frames)
        self.open = True
        self._profiles.window = self
        self._timer = Timer(self._seconds, self.stop)
        self._timer.daemon = True
        try:
            self._timer.start()
        except BaseException:  # no more threads
            self.stop()
            raise

    def stop(self) -> None:
        """Trace no more; more than once is as once. For any thread."""
        with self._lock:
            if not self.open:
                return
            self.open = False
            self._profiles.window = None
            self.interrupted = not tracemalloc.is_tracing()
            tracemalloc.stop()
            observed = list(self._observed.items())
        assert self._timer is not None
        self._timer.cancel()
        for account, (_allocated, label) in observed:
            self.ended(account, label())
            account.observers = tuple(each for each in account.observers if each is not self)

    def leave_to_parent(self) -> None:
        """In a forked child: end what goes on in the parent. Its timer is there, and so may be who holds the lock."""
        self._lock = RLock()
        self.open = False
        self._profiles.window = None
        tracemalloc.stop()

    def observe(self, account: Account, label: Callable[[], str], *, begins: bool = False) -> None:
        """Look at the steps of a request, from the next on.

        :param label: tells its endpoint, as far as that is known; from any thread.
        :param begins: whether it begins in this thread just now: a step of it that runs is looked at, too.
        """
        with self._lock:
            if self.open and account not in self._observed:
                self._observed[account] = (Allocated(), label)
                if begins:
                    account.join(self)
                else:
                    account.observers += (self,)

    def ended(self, account: Account, endpoint: str) -> None:
        """The request is over, and was one of `endpoint`."""
        with self._lock:
            observed = self._observed.pop(account, None)
            if observed is None or self._endpoint not in {None, endpoint}:
                return
            allocated, _label = observed
            if allocated.steps:
                allocated.requests = 1
                self._found.change(endpoint, lambda kept: kept.merge(allocated))
                self._profiles.add(endpoint, allocated)

    def statistics(self) -> dict[str, Any]:
        """What was found so far, by endpoint."""
        with self._lock:
            return self._found.read(Allocated.statistics)

    def step_started(self, account: Account) -> None:
        with self._lock:
            if not self.open:
                return
            if not self._depth:
                self._thread = get_ident()
                tracemalloc.clear_traces()
            elif self._thread != get_ident():
                self.overlapping_steps += 1
                return
            self._depth += 1  # what a step within a step allocates is told of the outer one

    def step_ended(self, account: Account, duration_ns: int) -> None:
        with self._lock:
            if not self._depth or self._thread != get_ident():
                return  # its beginning was not looked at
            self._depth -= 1
            if self._depth or not self.open:
                return
            observed = self._observed.get(account)
            if observed is not None:
                self._look(observed[0])
            tracemalloc.clear_traces()

    def _look(self, allocated: Allocated) -> None:
        _there, peak = tracemalloc.get_traced_memory()
        try:
            snapshot: Any = tracemalloc.take_snapshot()
        except RuntimeError:  # somebody else has stopped it
            self.interrupted = True
            return
        allocated.steps += 1
        allocated.peak = max(allocated.peak, peak)
        tracemalloc.stop()  # or what is made here is traced, too, at many times the cost
        try:
            self._add_up(snapshot, allocated)
        finally:
            tracemalloc.start(self._frames)

    def _add_up(self, snapshot: Any, allocated: Allocated) -> None:
        # As they are: the objects that `snapshot.traces` makes of them cost ten times as much.
        places: dict[int, Place | None] = {}
        for _domain, size, traceback, *_ in snapshot.traces._traces:
            try:
                place = places[id(traceback)]  # which all blocks of one line have in common
            except KeyError:
                place = places[id(traceback)] = _place(traceback)
            if place is not None:
                allocated.bytes += size
                allocated.add(place, size, 1)


_starting = Lock()


def _place(traceback: Sequence[Place]) -> Place | None:
    """Whose line it is that has allocated something, by its callers, the innermost first; None for the kit's own."""
    if traceback[0][0].startswith(_OWN):
        return None
    for file, line in traceback:
        if is_app_code(file):
            return file, line
        if file.startswith(_OWN):
            break  # what is around the request
    return traceback[0]
