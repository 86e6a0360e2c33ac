"""Reads the figures of a registry: the dictionaries users get."""

from __future__ import annotations

import time
from typing import Literal, overload

from asgi_perfkit.exceptions import ConfigurationValueError
from asgi_perfkit.metrics.catalogue import scale_of
from asgi_perfkit.metrics.histogram import EMPTY, Snapshot, merge
from asgi_perfkit.metrics.registry import Registry, Series, default_registry
from asgi_perfkit.steps import on_event_loop

__all__ = ["get_performance_stats", "reset_performance_stats", "summarize"]

Stats = dict[str, dict[str, float]]

_PART = 10  # series that are merged while the lock is held: for less than a millisecond
_QUANTILES = (0.5, 0.9, 0.95, 0.99)


@overload
def get_performance_stats(*, by: None = None, registry: Registry | None = None) -> Stats: ...
@overload
def get_performance_stats(
    *, by: Literal["endpoint"], registry: Registry | None = None
) -> dict[str, Stats]: ...


def get_performance_stats(
    *, by: str | None = None, registry: Registry | None = None
) -> Stats | dict[str, Stats]:
    """What the requests have taken so far.

    For each metric with at least one value there are ``count``, ``sum``, ``avg``, ``min``, ``max``, ``p50``,
    ``p90``, ``p95`` and ``p99``; times in seconds, sizes in bytes; quantiles within 1 %, all else exact. Beside
    them, ``outcomes`` (``ok``, ``error``, ``disconnected``, ``cancelled``, ``incomplete``) and ``statuses``
    (``"200"``) say how often each came.

    Percentiles are computed here, not while requests run. With a thousand endpoints that takes a tenth of a second:
    call it in a worker thread if the loop must not wait. There it lets other threads run every millisecond.

    :param by: None for all requests together; ``"endpoint"`` for a dictionary of these figures by endpoint
        (``"GET /items/{item_id}"``).
    :param registry: where the middleware records, if not in the default registry.
    :raises ConfigurationValueError: another `by`.
    """
    registry = default_registry if registry is None else registry
    if by == "endpoint":
        return _by_endpoint(registry)
    if by is None:
        return _overall(registry)
    raise ConfigurationValueError(
        "get_performance_stats(by=...)",
        by,
        'use by="endpoint", or leave it out (None) for all requests together.',
    )


def reset_performance_stats(*, registry: Registry | None = None) -> None:
    """Forget all figures. Requests in flight are recorded when they end, whole.

    :param registry: where the middleware records, if not in the default registry.
    """
    (default_registry if registry is None else registry).reset()


def summarize(histogram: Snapshot, scale: float) -> dict[str, float]:
    """The figures of one histogram that has at least one value, each times `scale`."""
    count, (p50, p90, p95, p99) = histogram.summary(_QUANTILES)
    total = histogram.total * scale
    assert histogram.least is not None and histogram.greatest is not None
    return {
        "count": count,
        "sum": total,
        "avg": total / count,
        "min": histogram.least * scale,
        "max": histogram.greatest * scale,
        "p50": p50 * scale,
        "p90": p90 * scale,
        "p95": p95 * scale,
        "p99": p99 * scale,
    }


def _by_endpoint(registry: Registry) -> dict[str, Stats]:
    stats = {}
    breath = _Breath()
    for series in registry.series():
        with registry.lock:
            figures = {
                metric: summarize(histogram, scale_of(metric))
                for metric, histogram in list(series.histograms.items())
                if histogram.least is not None
            }
            _add_counts(figures, [series])
        stats[series.label] = figures
        breath.take()
    return stats


def _overall(registry: Registry) -> Stats:
    rows = registry.series()
    merged: dict[str, Snapshot] = {}
    breath = _Breath()
    for start in range(0, len(rows), _PART):
        with registry.lock:
            by_metric: dict[str, list[Snapshot]] = {}
            for series in rows[start : start + _PART]:
                for metric, histogram in list(series.histograms.items()):
                    by_metric.setdefault(metric, []).append(histogram)
            for metric, histograms in by_metric.items():
                merged[metric] = merge([merged.get(metric, EMPTY), *histograms])
        breath.take()
    stats = {}
    for metric, values in merged.items():
        if values.least is not None:
            stats[metric] = summarize(values, scale_of(metric))
            breath.take()
    with registry.lock:
        _add_counts(stats, rows)
    return stats


def _add_counts(stats: Stats, rows: list[Series]) -> None:
    outcomes: dict[str, float] = {}
    statuses: dict[str, float] = {}
    for series in rows:
        for (outcome, status), times in list(series.ends.items()):
            outcomes[outcome] = outcomes.get(outcome, 0) + times
            if status is not None:
                statuses[str(status)] = statuses.get(str(status), 0) + times
    if outcomes:
        stats["outcomes"] = outcomes
    if statuses:
        stats["statuses"] = dict(sorted(statuses.items()))


class _Breath:
    """Lets other threads have the interpreter now and then.

    A thread that computes keeps the interpreter for `sys.getswitchinterval()` (5 ms) before it is asked to hand it
    over: long, for a loop that only wants to answer. Sleeping hands it over at once. On the loop's own thread
    there is nobody to let pass, and nothing is done.
    """

    _INTERVAL = 0.001
    _SLEEP = 0.00005

    def __init__(self) -> None:
        self._on_loop = on_event_loop()
        self._last = time.perf_counter()

    def take(self) -> None:
        if self._on_loop:
            return
        if time.perf_counter() - self._last >= self._INTERVAL:
            time.sleep(self._SLEEP)
            self._last = time.perf_counter()
