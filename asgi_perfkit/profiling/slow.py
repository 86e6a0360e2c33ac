"""Requests that took long: the section `slow` of the profiles."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from threading import RLock
from typing import Any

from asgi_perfkit.metrics.catalogue import scale_of
from asgi_perfkit.metrics.histogram import Snapshot
from asgi_perfkit.profiling.calls import CallTree, rows
from asgi_perfkit.profiling.worst import Worst

__all__ = ["Slow", "duration_of", "spans_of", "traceparent_of"]

_EACH = 20
_MAX_SPANS = 50
_MAX_ITEMS = 20  # of queries, of samples
_MAX_TEXT = 2000
_MAX_DEPTH = 4

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


def duration_of(facts: Mapping[str, Any], total: float) -> float:
    """How long a client has waited for its response, in seconds.

    That is until the response begins, without the time in which the client itself was waited for, to send the body of
    its request. A response that begins at once and streams for an hour is not slow, and neither is a client that takes
    its time to fetch it; a websocket lasts as long as it is used. Without a response it is until the app has returned.

    :param total: until the app has returned.
    """
    if facts.get("method") == "WEBSOCKET":
        return 0.0
    answered = facts.get("processing_time")
    return (total if answered is None else answered) - (facts.get("receive_time") or 0.0)


def traceparent_of(facts: Mapping[str, Any]) -> str | None:
    """The W3C `traceparent` among the facts of a request; None if there is none, or it is none."""
    value = facts.get("traceparent")
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return None
    if value.startswith("00-"):
        return value if _TRACEPARENT.fullmatch(value) else None
    found = _TRACEPARENT.match(value)  # a later version may say more behind a dash
    return found[0] if found is not None and value[found.end() :][:1] in ("", "-") else None


def spans_of(
    observations: Iterable[tuple[str, int]], condensed: Mapping[str, Snapshot] | None = None
) -> dict[str, dict[str, float]]:
    """What was observed within a request, by metric: how often, the sum and the largest value, in the metric's unit.

    :param condensed: what there were too many observations of.
    """
    spans: dict[str, dict[str, float]] = {}
    several = [
        (metric, values.count, values.total, values.greatest or 0)
        for metric, values in (condensed or {}).items()
    ]
    for metric, count, total, greatest in (
        *several,
        *((name, 1, value, value) for name, value in observations),
    ):
        scale = scale_of(metric)
        span = spans.get(metric)
        if span is not None:
            span["count"] += count
            span["sum"] += total * scale
            span["max"] = max(span["max"], greatest * scale)
        elif len(spans) < _MAX_SPANS:
            spans[metric] = {"count": count, "sum": total * scale, "max": greatest * scale}
    return spans


def samples_of(tree: CallTree) -> list[dict[str, Any]]:
    """The functions in which a request was seen most often, and for how many seconds."""
    return rows((stack, node.samples, node.seconds) for stack, node in tree.stacks())[:_MAX_ITEMS]


class Slow:
    """The slowest requests of each endpoint.

    :param max_bytes: what they may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self._lock = RLock()
        self._worst: Worst[dict[str, Any]] = Worst(max_bytes, _EACH)

    def add(
        self,
        endpoint: str,
        duration: float,
        facts: Mapping[str, Any],
        *,
        total: float,
        spans: Mapping[str, Any],
        queries: Mapping[str, Any] | None = None,
        samples: Sequence[Any] = (),
    ) -> bool:
        """Keep a request if it is among the slowest of its endpoint; returns whether it is.

        :param duration: seconds, as :func:`duration_of` has it.
        :param total: seconds from the call of the app until now.
        :param spans: as :func:`spans_of` has them.
        :param queries: what it has sent, if anything.
        :param samples: as :func:`samples_of` has them.
        """
        record = {
            **{name: _bounded(value) for name, value in facts.items()},
            "endpoint": endpoint,
            "duration": duration,
            "started": _ago(total),
            "total_time": total,
            "traceparent": traceparent_of(facts),
            "spans": dict(spans),
            "queries": _bounded(queries),
            "samples": _bounded(samples),
        }
        size = _size_of(record)
        with self._lock:
            return self._worst.add(endpoint, duration, size, record)

    def statistics(self) -> list[dict[str, Any]]:
        """All that are kept, the slowest first."""
        with self._lock:
            return [dict(record) for record in self._worst]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._worst.clear()

    def start_anew(self) -> None:
        """In a forked child: forget all, and wait for no thread of the parent."""
        self._lock = RLock()
        self._worst = Worst(self._worst.max_bytes, _EACH)

    def resize(self, max_bytes: int) -> None:
        """Keep no more than `max_bytes`."""
        with self._lock:
            self._worst.resize(max_bytes)


def _ago(seconds: float) -> str:
    started = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    return started.isoformat(timespec="milliseconds")


def _bounded(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """A copy of what can be written as JSON, cut to a bounded size; of anything else its type."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if depth:
        if isinstance(value, Mapping):
            items = list(value.items())[:_MAX_ITEMS]
            return {str(key)[:_MAX_TEXT]: _bounded(each, depth - 1) for key, each in items}
        if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
            return [_bounded(each, depth - 1) for each in value[:_MAX_ITEMS]]
    return f"<{type(value).__name__}>"


def _size_of(value: Any) -> int:
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(_size_of(key) + _size_of(each) for key, each in value.items())
    if isinstance(value, list):
        return size + sum(map(_size_of, value))
    return size
