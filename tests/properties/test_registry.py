"""A registry against a plain model of one: lists of values by endpoint and metric."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from asgi_perfkit import (
    Registry,
    get_performance_stats,
    get_runtime_stats,
    reset_performance_stats,
)
from tests.metrics.driver import record

MAX_SERIES = 3
MAX_NAMES = 8
METHODS = {"GET": "GET", "POST": "POST", "WEBSOCKET": "WEBSOCKET", "BREW": "OTHER", "get": "OTHER"}
BYTES = {"request_size", "memory_delta"}
KIT = {"total_time", "loop_time", *BYTES}
OUTCOMES = ["ok", "error", "disconnected", "cancelled", "incomplete"]

paths = st.sampled_from(["/", "/items/{item_id}", "/a", "/b", "<unmatched>", "/" + 300 * "x"])
methods = st.sampled_from(sorted(METHODS))
times = st.one_of(st.integers(0, 10**10), st.integers(0, 2**50))
sizes = st.one_of(st.none(), st.integers(-(2**40), 2**40))
names = st.one_of(
    st.sampled_from(["db", "cache"]),
    st.integers(0, 30).map(lambda number: f"name_{number}"),
    st.just("total_time"),
)
observations = st.lists(st.tuples(names, times), max_size=6)
ends = st.tuples(st.sampled_from(OUTCOMES), st.sampled_from([None, 200, 404, 500]))


class Row:
    """What the model knows of one endpoint."""

    def __init__(self) -> None:
        self.values: dict[str, list[int]] = {}
        self.ends: Counter[tuple[str, int | None]] = Counter()

    def add(self, metric: str, value: int) -> None:
        own = self.values.keys() - KIT
        if metric not in KIT and metric not in own and len(own - {"<overflow>"}) >= MAX_NAMES:
            metric = "<overflow>"
        self.values.setdefault(metric, []).append(value)


def told(rows: list[Row]) -> dict[str, Any]:
    """The figures of some rows, the quantiles apart."""
    figures: dict[str, Any] = {}
    for metric in {metric for row in rows for metric in row.values}:
        values = [value for row in rows for value in row.values.get(metric, ())]
        scale = 1 if metric in BYTES else 1e-9
        figures[metric] = {
            "count": len(values),
            "sum": sum(values) * scale,
            "avg": sum(values) * scale / len(values),
            "min": min(values) * scale,
            "max": max(values) * scale,
        }
    ends = sum((row.ends for row in rows), Counter())
    outcomes: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for (outcome, status), times in ends.items():
        outcomes[outcome] += times
        if status is not None:
            statuses[str(status)] += times
    if outcomes:
        figures["outcomes"] = dict(outcomes)
    if statuses:
        figures["statuses"] = dict(statuses)
    return figures


def without_quantiles(figures: dict[str, Any]) -> dict[str, Any]:
    """Take the quantiles out, once they have been seen to be in order."""
    for name, metric in figures.items():
        if name not in {"outcomes", "statuses"}:
            ordered = [metric["min"], *(metric.pop(p) for p in ("p50", "p90", "p95", "p99"))]
            assert ordered == sorted(ordered)
            assert ordered[-1] <= metric["max"]
    return figures


class RegistryMachine(RuleBasedStateMachine):
    """Records, reads and resets in any order; the figures are always those of the model."""

    recorded = Bundle("recorded")

    @initialize()
    def begin(self) -> None:
        self.registry = Registry()
        self.rows: dict[str, Row] = {}
        self.overflowed = 0

    @rule(
        target=recorded,
        method=methods,
        path=paths,
        time=times,
        size=sizes,
        more=observations,
        end=ends,
    )
    def record(
        self,
        method: str,
        path: str,
        time: int,
        size: int | None,
        more: list[tuple[str, int]],
        end: tuple[str, int | None],
    ) -> tuple[str, Callable[[str, int], None]]:
        """Record a request; its row's label, and what takes figures of it that come late."""
        late = record(
            self.registry,
            path,
            method=method,
            outcome=end[0],
            status=end[1],
            observations=more,
            max_series=MAX_SERIES,
            total_time=time,
            request_size=size,
        )
        row = self.expect(method, path, time, size, more, end)
        return next(label for label, known in self.rows.items() if known is row), late

    @rule(method=methods, path=paths, time=times, end=ends, times=st.integers(1, 200))
    def record_many(
        self, method: str, path: str, time: int, end: tuple[str, int | None], times: int
    ) -> None:
        """Record more than are put aside at a time."""
        for number in range(times):
            self.record_one(method, path, time + number, end)
            self.expect(method, path, time + number, None, [], end)

    @rule(
        method=methods,
        path=paths,
        time=times,
        end=ends,
        times=st.integers(1, 200),
        by=st.sampled_from([None, "endpoint"]),
    )
    def record_while_another_thread_reads(
        self, method: str, path: str, time: int, end: tuple[str, int | None], times: int, by: Any
    ) -> None:
        """Record while another thread reads on and on: neither hurts the other."""
        reading, done = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def read() -> None:
            reading.set()
            try:
                last = -1
                while not done.is_set():
                    stats: Any = get_performance_stats(by=by, registry=self.registry)
                    rows = [stats] if by is None else stats.values()
                    counts = [row["total_time"]["count"] for row in rows if "total_time" in row]
                    assert sum(counts) >= last
                    last = sum(counts)
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=read)
        thread.start()
        reading.wait()
        try:
            for number in range(times):
                self.record_one(method, path, time + number, end)
                self.expect(method, path, time + number, None, [], end)
        finally:
            done.set()
            thread.join()
        assert failures == []

    @rule(request=recorded, name=names, time=times)
    def observe_late(
        self, request: tuple[str, Callable[[str, int], None]], name: str, time: int
    ) -> None:
        """A figure that comes after its request counts for its endpoint, unless that was forgotten."""
        label, late = request
        late(name, time)
        if label in self.rows:
            self.rows[label].add(name, time)

    @rule(name=names, time=times)
    def observe_outside(self, name: str, time: int) -> None:
        """What belongs to no request has a row of its own, which takes the place of none."""
        self.registry.observe_outside(name, time)
        self.rows.setdefault("<outside>", Row()).add(name, time)

    @rule(request=consumes(recorded))
    def reset(self, request: object) -> None:
        """Begin anew."""
        reset_performance_stats(registry=self.registry)
        self.rows.clear()
        self.overflowed = 0

    @invariant()
    def tells_each_endpoint(self) -> None:
        """By endpoint, the figures are the model's."""
        stats = get_performance_stats(by="endpoint", registry=self.registry)
        assert {label: without_quantiles(figures) for label, figures in stats.items()} == {
            label: told([row]) for label, row in self.rows.items()
        }

    @invariant()
    def tells_all_together(self) -> None:
        """All together, the figures are those of the model's rows together."""
        stats = get_performance_stats(registry=self.registry)
        assert without_quantiles(stats) == told(list(self.rows.values()))

    @invariant()
    def tells_of_its_bounds(self) -> None:
        """The rows and what found no place are told, and stay within the bounds."""
        metrics = get_runtime_stats(registry=self.registry)["metrics"]
        assert metrics["series"] == len(self.rows) <= MAX_SERIES + 2
        assert metrics["overflowed"] == self.overflowed

    def record_one(self, method: str, path: str, time: int, end: tuple[str, int | None]) -> None:
        record(
            self.registry,
            path,
            method=method,
            outcome=end[0],
            status=end[1],
            max_series=MAX_SERIES,
            total_time=time,
            request_size=None,
        )

    def expect(
        self,
        method: str,
        path: str,
        time: int,
        size: int | None,
        more: list[tuple[str, int]],
        end: tuple[str, int | None],
    ) -> Row:
        label = f"{METHODS[method]} {path[:200]}"
        if (
            label not in self.rows
            and len(self.rows.keys() - {"<overflow>", "<outside>"}) >= MAX_SERIES
        ):
            label = "<overflow>"
            self.overflowed += 1
        row = self.rows.setdefault(label, Row())
        row.add("total_time", time)
        if size is not None:
            row.add("request_size", size)
        for name, value in more:
            row.add(name, value)
        row.ends[end] += 1
        return row


RegistryMachine.TestCase.settings = hypothesis.settings(
    max_examples=10, stateful_step_count=15, deadline=None
)
TestRegistry = RegistryMachine.TestCase
