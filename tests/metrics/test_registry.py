"""The bounds of a registry, its labels, and its use from several threads and processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_perfkit import (
    PerformanceMiddleware,
    Registry,
    get_performance_stats,
    get_runtime_stats,
    reset_performance_stats,
)
from asgi_perfkit.metrics.catalogue import METRICS, scale_of
from asgi_perfkit.middleware.exchange import HTTPExchange, WebSocketExchange
from asgi_perfkit.steps import Account
from tests.metrics.driver import ok_app, record, request

MAX_SERIES_BYTES = 64_000
OF_WEBSOCKETS = {metric for metric in METRICS if metric.startswith("websocket_")}
OF_HTTP = {*HTTPExchange.metrics} - {*WebSocketExchange.metrics}


def by_endpoint(registry: Registry) -> dict[str, Any]:
    return get_performance_stats(by="endpoint", registry=registry)


def size_of(root: object, *, without: tuple[object, ...]) -> int:
    """The memory of an object and all that only it leads to."""
    seen = {id(each) for each in without}
    pending, size = [root], 0
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        size += sys.getsizeof(value)
        if isinstance(value, dict):
            pending += itertools.chain(value.keys(), value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += value
        for cls in type(value).__mro__:
            slots = getattr(cls, "__slots__", ())
            pending += [getattr(value, name) for name in slots if hasattr(value, name)]
        pending += [vars(value)] if hasattr(value, "__dict__") else []
    return size


@pytest.mark.parametrize("method", "GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH".split())
def test_a_standard_method_stands_for_itself(method: str) -> None:
    """The label of an endpoint is its method and its template."""
    registry = Registry()
    record(registry, "/items/{item_id}", method=method)
    assert list(by_endpoint(registry)) == [f"{method} /items/{{item_id}}"]


@pytest.mark.parametrize("method", ["BREW", "get", "GET ", "PROPFIND", "GETT", "\x00", "é" * 500])
def test_any_other_method_is_other(method: str) -> None:
    """A client cannot make rows by inventing methods."""
    registry = Registry()
    for path in ("/a", "/a", "/b"):
        record(registry, path, method=method)
        record(registry, path, method=method + "!")
    stats = by_endpoint(registry)
    assert {label: row["total_time"]["count"] for label, row in stats.items()} == {
        "OTHER /a": 4,
        "OTHER /b": 2,
    }


def test_a_request_cannot_pass_for_a_connection() -> None:
    """A client that sends the method that stands for connections gets into no row of theirs."""
    registry = Registry()
    measured = PerformanceMiddleware(ok_app, registry=registry)
    asyncio.run(request(measured, "WEBSOCKET", "/ws"))
    assert by_endpoint(registry).keys() == {"OTHER /ws"}


def test_without_a_method_the_label_is_the_endpoint() -> None:
    """A scope that names no method leaves no blank at the beginning of a label."""
    registry = Registry()
    record(registry, "/a", method="")
    assert list(by_endpoint(registry)) == ["/a"]


def test_the_name_of_an_endpoint_is_cut() -> None:
    """Of a name, 200 characters are kept; what differs behind them only is one endpoint."""
    registry = Registry()
    for ending in ("x", "y" * 10_000):
        record(registry, "/" + 199 * "é" + ending)
    assert list(by_endpoint(registry)) == ["GET /" + 199 * "é"]
    assert by_endpoint(registry)["GET /" + 199 * "é"]["outcomes"] == {"ok": 2}


def test_past_max_series_everything_goes_to_the_overflow_row() -> None:
    """Endpoints beyond the bound share one row; those that have one keep it; how often it happened is told."""
    registry = Registry()
    for _ in range(2):
        for number in range(1_000):
            record(registry, f"/{number}", max_series=10, total_time=number)
    stats = by_endpoint(registry)
    assert list(stats) == [f"GET /{number}" for number in range(10)] + ["<overflow>"]
    assert all(stats[f"GET /{number}"]["total_time"]["count"] == 2 for number in range(10))
    assert stats["<overflow>"]["total_time"]["count"] == 1_980
    assert stats["<overflow>"]["outcomes"] == {"ok": 1_980}
    assert stats["<overflow>"]["statuses"] == {"200": 1_980}
    metrics = get_runtime_stats(registry=registry)["metrics"]
    assert (metrics["series"], metrics["overflowed"]) == (11, 1_980)


def test_the_overflow_row_takes_requests_and_connections() -> None:
    """One row for all that has no place, with the metrics of either kind."""
    registry = Registry()
    record(registry, "/", max_series=1)
    record(registry, "/b", max_series=1, method="WEBSOCKET", websocket_time=7)
    record(registry, "/a", max_series=1, total_time=5, request_size=None)
    overflow = by_endpoint(registry)["<overflow>"]
    assert overflow.keys() == {"total_time", "websocket_time", "outcomes", "statuses"}
    assert overflow["total_time"]["count"] == overflow["websocket_time"]["count"] == 1


def test_what_is_outside_of_requests_takes_no_place() -> None:
    """The row for what belongs to no request is there beside a full registry, and leaves room in an empty one."""
    registry = Registry()
    registry.observe_outside("start_up", 5)
    record(registry, "/a", max_series=1)
    record(registry, "/b", max_series=1)
    registry.observe_outside("start_up", 6)
    stats = by_endpoint(registry)
    assert list(stats) == ["<outside>", "GET /a", "<overflow>"]
    assert stats["<outside>"].keys() == {"start_up"}
    assert stats["<outside>"]["start_up"]["count"] == 2


def test_a_different_bound_for_each_app() -> None:
    """Two apps that share a registry each have their own bound on new endpoints."""
    registry = Registry()
    for number in range(5):
        record(registry, f"/small/{number}", max_series=2)
    for number in range(5):
        record(registry, f"/large/{number}", max_series=4)
    assert list(by_endpoint(registry)) == [
        "GET /small/0", "GET /small/1", "<overflow>", "GET /large/0", "GET /large/1",
    ]  # fmt: skip


def test_an_endpoint_has_room_for_eight_names() -> None:
    """The ninth name of one's own, and all that follow, share a metric; each endpoint has its own eight."""
    registry = Registry()
    for number in range(1_000):
        record(registry, "/a", observations=[(f"name_{number}", number)])
    record(registry, "/b", observations=[("another", 1)])
    stats = by_endpoint(registry)
    own = stats["GET /a"].keys() - {"total_time", "outcomes", "statuses"}
    assert own == {f"name_{number}" for number in range(8)} | {"<overflow>"}
    assert stats["GET /a"]["<overflow>"]["count"] == 992
    assert stats["GET /a"]["<overflow>"]["sum"] == pytest.approx(sum(range(8, 1_000)) * 1e-9)
    assert "another" in stats["GET /b"]


@pytest.mark.parametrize("of_websockets", [False, True], ids=["http", "websocket"])
def test_a_series_stays_below_64_kb(of_websockets: bool) -> None:
    """All metrics of its kind, values in all octaves, a thousand names: a row has its bound, and loses nothing."""
    registry = Registry()
    others = OF_HTTP if of_websockets else OF_WEBSOCKETS
    metrics = [metric for metric in METRICS if metric not in others]
    values = [2**octave for octave in range(60)]
    for value in values:
        for sign in (1, -1):
            record(
                registry,
                "/" + 300 * "é",
                observations=[(f"{number:0100}", value) for number in range(1_000)],
                **dict.fromkeys(metrics, value)
                | ({} if of_websockets else {"memory_delta": sign * value}),
            )
    (series,) = registry.series()
    (stats,) = by_endpoint(registry).values()
    for metric in metrics:
        sum_ = 0 if metric == "memory_delta" else 2 * sum(values) * scale_of(metric)
        assert stats[metric]["count"] == 2 * len(values)
        assert stats[metric]["sum"] == pytest.approx(sum_)
        assert stats[metric]["max"] == pytest.approx(max(values) * scale_of(metric))
        assert stats[metric]["min"] <= stats[metric]["p50"] <= stats[metric]["max"]
    assert get_runtime_stats(registry=registry)["metrics"]["squeezed"] > 0
    assert size_of(series, without=(registry,)) <= MAX_SERIES_BYTES


def test_ever_more_paths_take_no_more_memory() -> None:
    """What a scanner leaves behind is bounded: ten times as many paths take no more memory."""
    sizes = []
    registry = Registry()
    for number in range(20_000):
        record(registry, f"/{number}", max_series=100)
        if number in {1_999, 19_999}:
            rows = registry.series()
            sizes.append(sum(size_of(row, without=(registry,)) for row in rows))
    assert len(by_endpoint(registry)) == 101
    assert sizes[1] == pytest.approx(sizes[0], abs=1_000)


def test_reset_begins_anew() -> None:
    """After a reset there is nothing, room for new endpoints included, and no trouble is remembered."""
    registry = Registry()
    record(registry, "/a", max_series=1)
    record(registry, "/b", max_series=1)
    registry.observe_outside("name", 1)
    registry.count("kit_failures")
    reset_performance_stats(registry=registry)
    assert get_performance_stats(registry=registry) == by_endpoint(registry) == {}
    metrics = get_runtime_stats(registry=registry)["metrics"]
    assert set(metrics.values()) == {0}
    record(registry, "/b", max_series=1)
    assert list(by_endpoint(registry)) == ["GET /b"]


def test_what_comes_late_counts_for_its_endpoint() -> None:
    """A figure that comes after its request was recorded is added to the same row, in the overflow row too."""
    registry = Registry()
    late = [record(registry, path, max_series=1) for path in ("/a", "/b")]
    for number, observe_late in enumerate(late):
        observe_late("name", 10 + number)
    stats = by_endpoint(registry)
    assert stats["GET /a"]["name"]["sum"] == pytest.approx(10e-9)
    assert stats["<overflow>"]["name"]["sum"] == pytest.approx(11e-9)


def test_what_comes_late_for_a_forgotten_request_is_forgotten() -> None:
    """After a reset, a figure of a request before it makes no row; where there is one again, it counts there."""
    registry = Registry()
    observe_late = record(registry, "/a")
    reset_performance_stats(registry=registry)
    observe_late("name", 10)
    assert by_endpoint(registry) == {}
    record(registry, "/a")
    observe_late("name", 10)
    assert by_endpoint(registry)["GET /a"]["name"]["count"] == 1


def test_no_request_is_lost_between_threads() -> None:
    """Threads that record at once, late figures and readers among them, leave nothing out."""
    registry = Registry()
    start = threading.Barrier(5)
    done = threading.Event()
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            start.wait()
            for number in range(2_000):
                observe_late = record(registry, f"/{number % 3}", observations=[(name, 1)])
                observe_late("late", 1)
        except BaseException as failure:
            failures.append(failure)

    def read() -> None:
        try:
            start.wait()
            seen = 0
            while not done.is_set():
                count = get_performance_stats(registry=registry).get("outcomes", {}).get("ok", 0)
                by_endpoint(registry)
                get_runtime_stats(registry=registry)
                assert seen <= count
                seen = int(count)
        except BaseException as failure:
            failures.append(failure)

    workers = [threading.Thread(target=work, args=(f"name_{number}",)) for number in range(4)]
    reader = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (*workers, reader):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        reader.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    stats = get_performance_stats(registry=registry)
    assert stats["outcomes"] == {"ok": 8_000}
    assert stats["total_time"]["count"] == stats["late"]["count"] == 8_000
    assert all(stats[f"name_{number}"]["count"] == 2_000 for number in range(4))


@pytest.mark.parametrize("requests", [2, 63, 64, 200])
def test_a_reader_may_come_in_while_figures_are_counted(requests: int) -> None:
    """A garbage collection may run code that reads or records at any moment, also while the registry counts."""
    registry = Registry()
    inner: list[Any] = []

    class Observations:
        """What is iterated while the request is counted, as a collection would come in between."""

        def __iter__(self) -> Iterator[tuple[str, int]]:
            inner.append(get_performance_stats(registry=registry))
            record(registry, "/inner")
            return iter(())

    record(registry, "/", observations=Observations())
    for _ in range(requests - 1):
        record(registry, "/")
    stats = by_endpoint(registry)
    assert len(inner) == 1
    assert stats["GET /"]["outcomes"] == {"ok": requests}
    assert stats["GET /inner"]["outcomes"] == {"ok": 1}


def test_trouble_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The first of a kind of trouble is logged with its traceback, further ones only count."""
    registry = Registry()
    for number in range(3):
        registry.report("kit_failures", "It went wrong", ValueError(f"number {number}"))
    registry.report("resolver_failures", "It went wrong elsewhere", KeyError())
    first, second = caplog.records
    assert first.levelname == "ERROR"
    assert first.name == "asgi_perfkit"
    assert first.getMessage().startswith("It went wrong (logged once")
    assert first.exc_info is not None
    assert str(first.exc_info[1]) == "number 0"
    assert "elsewhere" in second.getMessage()
    metrics = get_runtime_stats(registry=registry)["metrics"]
    assert (metrics["kit_failures"], metrics["resolver_failures"]) == (3, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_a_forked_child_is_no_prisoner_of_its_parent() -> None:
    """In a child that is forked while a thread holds the lock and a request runs, neither is there."""
    code = """
        import gc, os, threading, warnings

        from asgi_perfkit import Registry, get_performance_stats, get_runtime_stats
        from asgi_perfkit.steps import Account

        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads is the point
        registry, dropped = Registry(), Registry()
        del dropped
        gc.collect()
        account = Account()
        registry.open.add(account)
        parent = get_runtime_stats(registry=registry)
        assert parent["requests"] == {"in_flight": 1}
        held, release = threading.Event(), threading.Event()

        def hold():
            with registry.lock:
                held.set()
                release.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            get_performance_stats(registry=registry)
            stats = get_runtime_stats(registry=registry)
            good = stats["requests"] == {"in_flight": 0} and stats["process"]["threads"] == 1
            os._exit(0 if good else 1)
        _, status = os.waitpid(child, 0)
        release.set()
        thread.join()
        assert get_runtime_stats(registry=registry)["requests"] == {"in_flight": 1}
        raise SystemExit(os.waitstatus_to_exitcode(status))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_registry_that_is_gone_is_not_missed_after_a_fork(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is called in a forked child keeps no registry alive, and finds nothing to do for one that is gone."""
    calls: list[Callable[[], None]] = []
    monkeypatch.setattr(
        os,
        "register_at_fork",
        lambda *, after_in_child: calls.append(after_in_child),
        raising=False,
    )
    registry = Registry()
    registry.open.add(Account())
    lock = registry.lock
    (after_in_child,) = calls
    after_in_child()
    assert get_runtime_stats(registry=registry)["requests"] == {"in_flight": 0}
    assert registry.lock is not lock
    gone = weakref.ref(registry)
    del registry
    assert gone() is None
    after_in_child()


def test_a_platform_without_fork_has_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes cannot fork there is nothing to prepare for."""
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    registry = Registry()
    record(registry)
    assert by_endpoint(registry)["GET /"]["outcomes"] == {"ok": 1}
