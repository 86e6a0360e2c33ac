"""What all requests of a process have come to, by endpoint.

A registry keeps one :class:`Series` per endpoint: a histogram per metric, and counts of outcomes and statuses. Its
size has hard bounds, whatever clients send:

===================================  =========================================================================
endpoints                            `max_series`, as the caller of :meth:`Registry.record` has it, then `OVERFLOW`
methods                              the standard ones, any other is `OTHER`
a series                             64 kB: 70 histogram pages, 8 measured names, then `OVERFLOW`
statuses                             32 different ones, then 0
an endpoint's name                   the first 200 characters
===================================  =========================================================================
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from threading import RLock

from asgi_perfkit.metrics.catalogue import METRICS
from asgi_perfkit.metrics.histogram import Histogram, PageBudget, Snapshot, observe_row
from asgi_perfkit.metrics.monitor import RuntimeMonitor
from asgi_perfkit.steps import Account

__all__ = [
    "METHODS",
    "OUTSIDE",
    "OVERFLOW",
    "UNMATCHED",
    "Registry",
    "Series",
    "absorb",
    "condense",
    "default_registry",
]

OVERFLOW = "<overflow>"
"""The endpoint of all requests that came when the registry was full; the metric of names past the bound."""
UNMATCHED = "<unmatched>"
"""The route of all requests that no route matched."""
OUTSIDE = "<outside>"
"""The endpoint of what was measured outside of any request."""

METHODS = frozenset("GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH".split())
"""Those of RFC 9110, section 9.3, and PATCH (RFC 5789); requests with any other are counted as `OTHER`."""
_MAX_ENDPOINT_LENGTH = 200
_MAX_NAMES = 8
_MAX_STATUSES = 32
# The histograms of a row for requests, up to 19 of the kit's metrics, one more for negative values, and 9 named ones,
# take 0.9 kB each and a page of 336 bytes: 36 kB. With 40 more pages that is 50 kB. Numbers and tables: up to 11 kB.
_MAX_PAGES = 40

_TROUBLES = (
    "overflowed",
    "malformed_messages",
    "resolver_failures",
    "server_timing_failures",
    "kit_failures",
)

# How many requests are put aside before they are counted, about 0.5 kB and 1.5 µs each.
_BATCH = 64

# What a request has beside the values of its series' metrics: their names, if they are not those, its observations and
# what was condensed of them.
_More = tuple[tuple[str, ...], Iterable[tuple[str, int]], "Mapping[str, Snapshot] | None"]
_Row = tuple["Series", tuple["int | None", ...], str, "int | None", "_More | None"]

logger = logging.getLogger("asgi_perfkit")


class Series:
    """The figures of one endpoint. Whoever touches one holds the registry's lock.

    :ivar method: `GET`, ..., `OTHER`, `WEBSOCKET`; empty where there is none.
    :ivar endpoint: the route's template.
    :ivar metrics: those that all requests of this endpoint have, or may have.
    :ivar row: their histograms, in the same order.
    :ivar histograms: all, by metric; some may be empty.
    :ivar ends: how often requests ended with each pair of outcome and status (None: no response; 0: past the bound).
    """

    __slots__ = (
        "_budget",
        "_names",
        "_registry",
        "endpoint",
        "ends",
        "histograms",
        "method",
        "metrics",
        "row",
    )

    def __init__(
        self, registry: Registry, method: str, endpoint: str, metrics: tuple[str, ...]
    ) -> None:
        self._registry = registry
        self.method = method
        self.endpoint = endpoint
        self.ends: dict[tuple[str, int | None], int] = {}
        self._budget = PageBudget(_MAX_PAGES)
        self._names = 0
        self.metrics = metrics
        self.row = [Histogram(self._budget) for _ in metrics]
        self.histograms = dict(zip(metrics, self.row, strict=True))

    @property
    def label(self) -> str:
        """``"GET /items/{item_id}"``."""
        return f"{self.method} {self.endpoint}" if self.method else self.endpoint

    @property
    def squeezed(self) -> int:
        """How many values were counted in another bucket than their own, for the want of room."""
        return self._budget.refused

    def observe(self, metric: str, value: int) -> None:
        """Count a `value` of a metric, made at its first value."""
        self._histogram(metric).observe(value)

    def absorb(self, metric: str, values: Snapshot) -> None:
        """Count all `values` of a metric."""
        self._histogram(metric).absorb(values)

    def observe_late(self, metric: str, value: int) -> None:
        """Count a `value` that came to light after its request was recorded; takes the lock itself.

        If the figures were reset meanwhile it counts for the endpoint's new row; where there is none, its request has
        been forgotten, and so is it.
        """
        registry = self._registry
        with registry.lock:
            row = registry.find(self.method, self.endpoint)
            if row is not None:
                row.observe(metric, value)

    def observe_many(self, metric: str, values: Sequence[int]) -> None:
        """Count all `values`, as :meth:`observe_late` does one."""
        registry = self._registry
        with registry.lock:
            row = registry.find(self.method, self.endpoint)
            if row is not None:
                row._histogram(metric).observe_many(values)

    def count(
        self,
        values: tuple[int | None, ...],
        metrics: tuple[str, ...],
        observations: Iterable[tuple[str, int]],
        condensed: Mapping[str, Snapshot] | None,
    ) -> None:
        """Count what was recorded of one request."""
        if metrics is self.metrics:
            observe_row(self.row, values)
        else:  # the overflow row takes requests and connections
            for metric, number in zip(metrics, values, strict=True):
                if number is not None:
                    self.observe(metric, number)
        for metric, value in observations:
            self.observe(metric, value)
        if condensed is not None:
            for metric, histogram in condensed.items():
                self.absorb(metric, histogram)

    def count_end(self, outcome: str, status: int | None) -> None:
        """Count how a request ended, and its status if there was one."""
        end = outcome, status
        if (
            end not in self.ends
            and len({known for _, known in self.ends} - {status}) >= _MAX_STATUSES
        ):
            end = outcome, 0
        self.ends[end] = self.ends.get(end, 0) + 1

    def _histogram(self, metric: str) -> Histogram:
        histogram = self.histograms.get(metric)
        if histogram is not None:
            return histogram
        if metric not in METRICS:
            if self._names >= _MAX_NAMES:
                metric = OVERFLOW
                if metric in self.histograms:
                    return self.histograms[metric]
            self._names += 1
        histogram = self.histograms[metric] = Histogram(self._budget)
        return histogram


class Registry:
    """Keeps the figures of all requests recorded in it. All methods may be called from any thread.

    :ivar lock: held while figures are changed or read; re-entrant, since a garbage collection may run code of the
        user that comes back here.
    :ivar open: the requests that are in flight.
    :ivar counters: how often each kind of trouble was met; `overflowed` are requests that went to the overflow row.
    :ivar monitor: what listens to the process for this registry.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.open: set[Account] = set()
        self.counters = dict.fromkeys(_TROUBLES, 0)
        self.monitor = RuntimeMonitor()
        self._series: dict[tuple[str, str], Series] = {}
        # Recorded and not yet counted: see `record`.
        self._pending: deque[_Row] = deque()
        _forget_after_fork(self)

    def record(
        self,
        method: str,
        endpoint: str,
        metrics: tuple[str, ...],
        values: tuple[int | None, ...],
        observations: Iterable[tuple[str, int]],
        condensed: Mapping[str, Snapshot] | None,
        outcome: str,
        status: int | None,
        max_series: int,
    ) -> Series:
        """Add one request (or connection) to the figures.

        It is put aside, and every 64th time all that lies there is counted: in a batch it costs a third less, and
        neither lock nor histogram is touched while a response is on its way. Whoever reads, counts first.

        :param method: as the client sent it; `WEBSOCKET` for a connection.
        :param endpoint: the route's template.
        :param metrics: the metrics of all requests of this kind; always the same tuple.
        :param values: of these metrics, in their order (nanoseconds, bytes, a number); None where there is none.
        :param observations: pairs of any other metric and its value.
        :param condensed: more values of other metrics, by metric; see :func:`condense`.
        :param outcome: how it ended.
        :param status: of the response, if there was one.
        :param max_series: a new endpoint is no longer given a row of its own when there are so many already.
        :return: the row it went to.
        """
        series = self._series.get((method, endpoint))
        if series is None or series.metrics is not metrics:
            series = self.series_for(method, endpoint, metrics, max_series)
        more = None
        if observations or condensed is not None or series.metrics is not metrics:
            more = metrics, observations, condensed
        pending = self._pending
        pending.append((series, values, outcome, status, more))
        if len(pending) >= _BATCH:
            self._fold()
        return series

    def observe_outside(self, metric: str, value: int) -> None:
        """Count one `value` that belongs to no request."""
        with self.lock:
            self.series_for("", OUTSIDE, (), max_series=0).observe(metric, value)

    def series(self) -> list[Series]:
        """The rows there are. Read one only while holding :attr:`lock`."""
        with self.lock:
            self._fold()
            return list(self._series.values())

    def find(self, method: str, endpoint: str) -> Series | None:
        """The row of an endpoint, if there is one. Read it only while holding :attr:`lock`."""
        return self._series.get((method, endpoint))

    def count(self, trouble: str, times: int = 1) -> int:
        """Count a kind of `trouble`; says how often it has been met by now."""
        with self.lock:
            met = self.counters[trouble] = self.counters[trouble] + times
            return met

    def report(self, trouble: str, message: str, error: BaseException) -> None:
        """Count a kind of `trouble`, and log the first of its kind with the traceback of `error`."""
        if self.count(trouble) == 1:
            try:
                logger.error(
                    "%s (logged once; further ones are counted as %s)",
                    message,
                    trouble,
                    exc_info=error,
                )
            except (
                Exception
            ):  # a filter or handler of the app's: it is counted, and the request goes on
                self.count("kit_failures")

    def reset(self) -> None:
        """Begin anew: all figures and counters are gone. Requests in flight are recorded when they end."""
        with self.lock:
            self._pending.clear()
            self._series.clear()
            self.counters = dict.fromkeys(_TROUBLES, 0)

    def series_for(
        self, method: str, endpoint: str, metrics: tuple[str, ...], max_series: int
    ) -> Series:
        """The row of an endpoint, made if it is new and there is room, or else the overflow row."""
        if method and method not in METHODS and method != "WEBSOCKET":
            method = "OTHER"
        endpoint = endpoint[:_MAX_ENDPOINT_LENGTH]
        with self.lock:
            key = method, endpoint
            series = self._series.get(key)
            if series is None and endpoint != OUTSIDE and self._endpoints() >= max_series:
                self.count("overflowed")
                key = method, endpoint = "", OVERFLOW
                series = self._series.get(key)
            if series is None:
                series = self._series[key] = Series(self, method, endpoint, metrics)
            return series

    def _fold(self) -> None:
        """Count what has been recorded since the last time."""
        with self.lock:
            pending = self._pending
            # Only who holds the lock takes out; what comes in meanwhile is left for the next time.
            for _ in range(len(pending)):
                if not pending:  # a finalizer has run in this thread, and has read the figures
                    break
                series, values, outcome, status, more = pending.popleft()
                if more is None:
                    observe_row(series.row, values)
                else:
                    series.count(values, *more)
                try:
                    series.ends[outcome, status] += 1
                except KeyError:
                    series.count_end(outcome, status)

    def _endpoints(self) -> int:
        """How many rows there are but for the two that are no endpoint's."""
        return (
            len(self._series) - (("", OVERFLOW) in self._series) - (("", OUTSIDE) in self._series)
        )


def _forget_after_fork(registry: Registry) -> None:
    """In a forked child the parent's requests are not in flight, its figures are told by the parent, and nobody will
    release its locks.
    """
    reference = weakref.ref(registry)

    def forget() -> None:
        alive = reference()
        if alive is not None:
            alive.lock = RLock()
            alive.open = set()
            alive.reset()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def condense(histograms: dict[str, Histogram], observations: Iterable[tuple[str, int]]) -> None:
    """Count `observations` in histograms of their own, made as they are needed and as many as a series may have."""
    for metric, value in observations:
        histogram = histograms.get(metric)
        if histogram is None:
            histogram = _new_histogram(histograms, metric)
        histogram.observe(value)


def absorb(histograms: dict[str, Histogram], condensed: Mapping[str, Snapshot]) -> None:
    """Count what was `condensed` elsewhere in `histograms`, too."""
    for metric, snapshot in condensed.items():
        (histograms.get(metric) or _new_histogram(histograms, metric)).absorb(snapshot)


def _new_histogram(histograms: dict[str, Histogram], metric: str) -> Histogram:
    if metric not in METRICS and len(histograms.keys() - METRICS.keys()) >= _MAX_NAMES:
        metric = OVERFLOW
    return histograms.setdefault(metric, Histogram())


default_registry = Registry()
"""Where everything is recorded unless another registry is given."""
