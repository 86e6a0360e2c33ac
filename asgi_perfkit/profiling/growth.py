"""By how much the memory of the process grows with each request of an endpoint: what finds a leak.

Which of the requests that run at the same time has made the memory grow, nothing tells. But endpoints are not asked
for in the same proportion all the time: so the growth of a few hundred intervals is explained by the requests that
have ended in each, by least squares, which tell how sure that is, too.

The memory is read about once a second, right behind a garbage collection: what is in use then is no garbage. A
request costs no more than being counted.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from array import array
from collections.abc import Callable
from math import sqrt
from threading import Lock
from time import perf_counter_ns
from typing import Any, NamedTuple

__all__ = ["OTHERS", "Interval", "MemoryGrowth", "estimate"]

INTERVAL_NS = 1_000_000_000
PATIENCE = 10
"""After so many times that, an interval ends without a collection: somebody has switched it off."""

COST_SHARE = 1000
"""An interval lasts so many times as long as it takes to read the memory, at least."""

MAX_INTERVALS = 512
MAX_ENDPOINTS = 64
"""Of so many endpoints, the most asked for, the requests are told apart in an interval; the others are one."""

MAX_COUNTED = 1_000
"""So many are told apart while an interval lasts."""

ASKED = 24
"""How many endpoints growth is explained by, at most: those whose requests vary most."""

_NEVER = 1 << 63

SURE = 4.0
"""From how many standard errors on a growth is called one. Chance gets there once in 30,000 times."""

SPARE = 20
"""How many more intervals than unknowns there are to be: with fewer the errors are not known well."""

LEAST_BYTES = 64
"""And from how many bytes a request on: memory is not read to the byte."""

OTHERS = "<others>"


class Interval(NamedTuple):
    """What there was between two readings of the memory.

    :ivar duration_ns: on the monotonic clock.
    :ivar growth: of the memory in use, in bytes.
    :ivar counts: the number of an endpoint and its requests, in turn.
    """

    duration_ns: int
    growth: int
    counts: array[int]


class Estimate(NamedTuple):
    """By how much each request lets the memory grow.

    :ivar bytes: most likely.
    :ivar error: the standard error of that.
    """

    bytes: float
    error: float


class MemoryGrowth:
    """Watches how the memory of the process grows with the requests of each endpoint. For any thread.

    :param report: told when the memory cannot be read.
    :param read: tells the bytes in use; None for the best way to know, which :meth:`watch` finds out.
    """

    __slots__ = (
        "__weakref__",
        "_counts",
        "_due_ns",
        "_first",
        "_given",
        "_intervals",
        "_late_ns",
        "_length_ns",
        "_lock",
        "_memory",
        "_numbers",
        "_read",
        "_report",
        "_started_ns",
        "_watches",
    )

    def __init__(
        self,
        report: Callable[[str, BaseException], None],
        read: Callable[[], int] | None = None,
    ) -> None:
        self._report = report
        self._given = read
        self._watches = False
        self.start_anew()

    def start_anew(self) -> None:
        """Forget all; in a forked child the way to know is another, too."""
        self._lock = Lock()
        self._read = self._given
        self._late_ns = _NEVER
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._counts: dict[str, int] = {}
            self._length_ns = INTERVAL_NS
            self._due_ns = self._started_ns = self._first = self._memory = 0
            self._numbers: dict[str, int] = {}
            self._intervals: list[Interval] = []

    def watch(self) -> None:
        """Read the memory from now on; more than once is as once."""
        if self._late_ns != _NEVER:
            return
        if self._read is None:
            from asgi_perfkit.profiling.heap import heap_reader  # which takes 10 ms to import

            self._read = heap_reader()
        if not self._watches:
            self._watches = True
            _listen_to_gc(self)
        self._late_ns = 0

    def count(self, endpoint: str, now_ns: int) -> None:
        """A request of `endpoint` has ended."""
        counts = self._counts
        known = counts.get(endpoint)
        if known is None and len(counts) >= MAX_COUNTED:
            endpoint = OTHERS
            known = counts.get(OTHERS)
        counts[endpoint] = (known or 0) + 1  # of two threads at once, one may be lost
        if now_ns >= self._late_ns:
            self.end_interval(now_ns)

    def end_interval(self, now_ns: int) -> None:
        """Read the memory, and note the interval that ends `now_ns`, if one is to."""
        if now_ns < self._due_ns or not self._lock.acquire(blocking=False):
            return
        try:
            self._end_interval(now_ns)
        except Exception as failure:
            self._read = None
            self._late_ns = _NEVER
            self._report("The memory cannot be read any more", failure)
        finally:
            self._lock.release()

    def _end_interval(self, now_ns: int) -> None:
        read = self._read
        if read is None or (self._started_ns and not self._counts):
            return
        counts, self._counts = self._counts, {}
        memory = read()
        if self._started_ns:
            duration_ns = now_ns - self._started_ns
            self._note(Interval(duration_ns, memory - self._memory, self._numbered(counts)))
        else:
            self._first = memory
        self._started_ns = now_ns
        self._memory = memory
        cost_ns = perf_counter_ns() - now_ns if self._given is None else 0
        length_ns = max(self._length_ns, COST_SHARE * cost_ns)
        self._due_ns = now_ns + length_ns
        self._late_ns = now_ns + PATIENCE * length_ns

    def _note(self, interval: Interval) -> None:
        intervals = self._intervals
        intervals.append(interval)
        if len(intervals) >= MAX_INTERVALS:
            # Two that follow each other are as one: so all the time is there, always.
            self._intervals = [
                _joined(one, other)
                for one, other in zip(intervals[::2], intervals[1::2], strict=True)
            ]
            self._length_ns *= 2

    def _numbered(self, counts: dict[str, int]) -> array[int]:
        numbers = self._numbers
        told: dict[int, int] = {}
        for endpoint, count in counts.items():
            if endpoint not in numbers and len(numbers) >= MAX_ENDPOINTS:
                endpoint = OTHERS
            number = numbers.setdefault(endpoint, len(numbers))
            told[number] = told.get(number, 0) + count
        return _flat(told)

    def statistics(self) -> dict[str, Any]:
        """What the memory was, and by how much it grows with each request of which endpoint, the most first."""
        with self._lock:
            intervals = list(self._intervals)
            names = {number: endpoint for endpoint, number in self._numbers.items()}
            first, last = self._first, self._memory
        intervals = intervals[
            len(intervals) // 4 :
        ]  # the first requests load modules and fill caches
        requests: dict[int, int] = {}
        for interval in intervals:
            for number, count in _pairs(interval.counts):
                requests[number] = requests.get(number, 0) + count
        estimates = sorted(estimate(intervals).items(), key=lambda each: -each[1].bytes)
        return {
            "in_use": last,
            "growth": last - first,
            "seconds": sum(interval.duration_ns for interval in intervals) / 1e9,
            "intervals": len(intervals),
            "endpoints": {
                names[number]: {
                    "requests": requests[number],
                    "bytes_per_request": found.bytes,
                    "error": found.error,
                    "grows": found.bytes > SURE * found.error and found.bytes >= LEAST_BYTES,
                }
                for number, found in estimates
            },
        }


def estimate(intervals: list[Interval]) -> dict[int, Estimate]:
    """Explain the growth of all `intervals` by the requests in them: for each endpoint, by number."""
    columns = _columns(intervals)
    size = len(columns)
    if len(intervals) < size + SPARE:
        return {}
    numbers = list(columns)
    vectors = [[interval.duration_ns / 1e9 for interval in intervals], *columns.values()]
    grown = [float(interval.growth) for interval in intervals]
    # Columns of the same length make the equations as well to solve as they can be.
    lengths = [sqrt(_product(vector, vector)) or 1.0 for vector in vectors]
    vectors = [
        [value / length for value in vector]
        for vector, length in zip(vectors, lengths, strict=True)
    ]
    inverse = _inverted([[_product(one, other) for other in vectors] for one in vectors])
    if inverse is None:
        return {}
    explained = [_product(vector, grown) for vector in vectors]
    factors = [_product(row, explained) for row in inverse]
    left = sum(
        (
            growth
            - sum(factor * vector[index] for factor, vector in zip(factors, vectors, strict=True))
        )
        ** 2
        for index, growth in enumerate(grown)
    )
    variance = left / (len(intervals) - len(vectors))
    return {
        number: Estimate(
            factors[place] / lengths[place], sqrt(variance * inverse[place][place]) / lengths[place]
        )
        for place, number in enumerate(numbers, 1)
    }


def _columns(intervals: list[Interval]) -> dict[int, list[float]]:
    """The requests in each interval of those endpoints that vary most, by number."""
    columns: dict[int, list[float]] = {}
    for index, interval in enumerate(intervals):
        for number, count in _pairs(interval.counts):
            columns.setdefault(number, [0.0] * len(intervals))[index] = float(count)
    ranked = sorted(columns, key=lambda number: _product(columns[number], columns[number]))
    return {number: columns[number] for number in ranked[-ASKED:]}


def _product(one: list[float], other: list[float]) -> float:
    return sum(map(float.__mul__, one, other))


def _inverted(matrix: list[list[float]]) -> list[list[float]] | None:
    """The inverse of a symmetric matrix with ones on its diagonal; None if it has none, to speak of."""
    size = len(matrix)
    rows = [
        [*row, *(1.0 if index == place else 0.0 for index in range(size))]
        for place, row in enumerate(matrix)
    ]
    for place in range(size):
        best = max(range(place, size), key=lambda index: abs(rows[index][place]))
        rows[place], rows[best] = rows[best], rows[place]
        pivot = rows[place][place]
        if abs(pivot) < 1e-9:
            return None
        rows[place] = [value / pivot for value in rows[place]]
        for index in range(size):
            factor = rows[index][place]
            if index != place and factor:
                rows[index] = [
                    value - factor * other
                    for value, other in zip(rows[index], rows[place], strict=True)
                ]
    return [row[size:] for row in rows]


def _joined(one: Interval, other: Interval) -> Interval:
    counts = dict(_pairs(one.counts))
    for number, count in _pairs(other.counts):
        counts[number] = counts.get(number, 0) + count
    return Interval(one.duration_ns + other.duration_ns, one.growth + other.growth, _flat(counts))


def _flat(counts: dict[int, int]) -> array[int]:
    flat = array("q")
    for pair in counts.items():
        flat.extend(pair)
    return flat


def _pairs(counts: array[int]) -> zip[tuple[int, int]]:
    return zip(counts[::2], counts[1::2], strict=True)


def _listen_to_gc(growth: MemoryGrowth) -> None:
    """End intervals behind garbage collections, for as long as somebody holds the `growth`."""
    reference = weakref.ref(growth)

    def listen(phase: str, _info: dict[str, int]) -> None:
        if phase == "stop":
            alive = reference()
            if alive is not None:
                alive.end_interval(perf_counter_ns())

    gc.callbacks.append(listen)
    weakref.finalize(growth, _stop_listening, listen).atexit = False


def _stop_listening(listen: Callable[[str, dict[str, int]], None]) -> None:
    with contextlib.suppress(ValueError):
        gc.callbacks.remove(listen)
