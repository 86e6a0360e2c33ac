"""What all requests of a process have come to, by endpoint.

A registry keeps one :class:`Series` per endpoint: a histogram per metric, and counts of outcomes and statuses. Its
size has hard bounds, whatever clients send:

===================================  =========================================================================
endpoints                            `max_series`, as the caller of :meth:`Registry.record` has it, then `OVERFLOW`
methods                              the standard ones, any other is `OTHER`
a series                             64 kB: 96 histogram pages, 12 measured names, then `OVERFLOW`
an endpoint's name                   the first 200 characters
===================================  =========================================================================
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable
from threading import RLock

from asgi_perfkit.metrics.catalogue import METRICS
from asgi_perfkit.metrics.histogram import Histogram, PageBudget
from asgi_perfkit.metrics.monitor import RuntimeMonitor
from asgi_perfkit.steps import Account

__all__ = ["OUTSIDE", "OVERFLOW", "UNMATCHED", "Registry", "Series", "default_registry"]

OVERFLOW = "<overflow>"
"""The endpoint of all requests that came when the registry was full; the metric of names past the bound."""
UNMATCHED = "<unmatched>"
"""The route of all requests that no route matched."""
OUTSIDE = "<outside>"
"""The endpoint of what was measured outside of any request."""

# RFC 9110, section 9.3, and RFC 5789 (PATCH); WEBSOCKET stands for connections.
_METHODS = frozenset(
    "GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH WEBSOCKET".split()
)  # fmt: skip
_MAX_ENDPOINT_LENGTH = 200
_MAX_NAMES = 12
# 96 pages of 320 bytes are 31 kB. The histograms, up to ten of the kit's metrics and 12 named ones, take 0.9 kB each
# and may have a page beyond: 27 kB. Numbers and tables take up to 5 kB more.
_MAX_PAGES = 96

logger = logging.getLogger("asgi_perfkit")


class Series:
    """The figures of one endpoint. Whoever touches one holds the registry's lock.

    :ivar method: `GET`, ..., `OTHER`, `WEBSOCKET`; empty where there is none.
    :ivar endpoint: the route's template.
    :ivar histograms: by metric.
    :ivar outcomes: how often each came, by name.
    :ivar statuses: how often each came, by number.
    """

    __slots__ = ("_budget", "_names", "endpoint", "histograms", "method", "outcomes", "statuses")

    def __init__(self, method: str, endpoint: str) -> None:
        self.method = method
        self.endpoint = endpoint
        self.histograms: dict[str, Histogram] = {}
        self.outcomes: dict[str, int] = {}
        self.statuses: dict[int, int] = {}
        self._budget = PageBudget(_MAX_PAGES)
        self._names = 0

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
        histogram = self.histograms.get(metric)
        if histogram is None:
            histogram = self._add(metric)
        histogram.observe(value)

    def _add(self, metric: str) -> Histogram:
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
    :ivar counters: how often each kind of trouble was met: `overflowed` (requests that went to the overflow row),
        `malformed_messages`, `resolver_failures`, `kit_failures`.
    :ivar monitor: what listens to the process for this registry.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.open: set[Account] = set()
        self.counters: dict[str, int] = {}
        self.monitor = RuntimeMonitor()
        self._series: dict[tuple[str, str], Series] = {}
        _forget_after_fork(self)

    def record(
        self,
        method: str,
        endpoint: str,
        values: Iterable[tuple[str, int]],
        *,
        outcome: str,
        status: int | None = None,
        max_series: int,
    ) -> Series:
        """Add one request (or connection) to the figures.

        :param method: as the client sent it.
        :param endpoint: the route's template.
        :param values: pairs of a metric and its value (nanoseconds, bytes, a number).
        :param outcome: how it ended.
        :param status: of the response, if there was one.
        :param max_series: a new endpoint is no longer given a row of its own when there are so many already.
        :return: the row it went to.
        """
        with self.lock:
            series = self._series.get((method, endpoint))
            if series is None:
                series = self._series_for(method, endpoint, max_series)
            histograms = series.histograms
            for metric, value in values:
                try:
                    histograms[metric].observe(value)
                except KeyError:
                    series.observe(metric, value)
            series.outcomes[outcome] = series.outcomes.get(outcome, 0) + 1
            if status is not None:
                series.statuses[status] = series.statuses.get(status, 0) + 1
        return series

    def observe(self, series: Series | None, metric: str, value: int) -> None:
        """Count one `value` that belongs to a request already recorded in `series`, or, with None, to none."""
        with self.lock:
            if series is None:
                series = self._series_for("", OUTSIDE, max_series=0)
            series.observe(metric, value)

    def series(self) -> list[Series]:
        """The rows there are. Read one only while holding :attr:`lock`."""
        with self.lock:
            return list(self._series.values())

    def count(self, trouble: str, times: int = 1) -> int:
        """Count a kind of `trouble`; says how often it has been met by now."""
        with self.lock:
            met = self.counters[trouble] = self.counters.get(trouble, 0) + times
            return met

    def report(self, trouble: str, message: str, error: BaseException) -> None:
        """Count a kind of `trouble`, and log the first of its kind with the traceback of `error`."""
        if self.count(trouble) == 1:
            logger.error("%s (logged once; further ones are counted as %s)", message, trouble, exc_info=error)

    def reset(self) -> None:
        """Begin anew: all figures and counters are gone. Requests in flight are recorded when they end."""
        with self.lock:
            self._series.clear()
            self.counters.clear()

    def _series_for(self, method: str, endpoint: str, max_series: int) -> Series:
        if method and method not in _METHODS:
            method = "OTHER"
        endpoint = endpoint[:_MAX_ENDPOINT_LENGTH]
        key = method, endpoint
        series = self._series.get(key)
        if series is None:
            # The rows that are no endpoint's take no place.
            if endpoint != OUTSIDE and self._endpoints() >= max_series:
                self.count("overflowed")
                key = method, endpoint = "", OVERFLOW
                series = self._series.get(key)
            if series is None:
                series = self._series[key] = Series(method, endpoint)
        return series

    def _endpoints(self) -> int:
        return len(self._series) - (("", OVERFLOW) in self._series) - (("", OUTSIDE) in self._series)


def _forget_after_fork(registry: Registry) -> None:
    """In a forked child the requests of the parent are not in flight, and nobody will release its locks."""
    reference = weakref.ref(registry)

    def forget() -> None:
        alive = reference()
        if alive is not None:
            alive.lock = RLock()
            alive.open = set()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


default_registry = Registry()
"""Where everything is recorded unless another registry is given."""
