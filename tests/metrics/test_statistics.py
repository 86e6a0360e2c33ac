"""The dictionaries that users get."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest

from asgi_perfkit import (
    ConfigurationError,
    PerformanceMiddleware,
    Registry,
    default_registry,
    get_performance_stats,
    get_runtime_stats,
    reset_performance_stats,
)
from tests.metrics.driver import answer, connect, ok_app, record, request

FIGURES = {"count", "sum", "avg", "min", "max", "p50", "p90", "p95", "p99"}
HTTP_METRICS = {
    "processing_time", "response_time", "total_time", "send_time", "loop_time", "longest_step",
    "response_size", "memory_delta",
}  # fmt: skip
UPLOAD_METRICS = {"receive_time", "request_size"}  # of requests whose body the app asked for
WEBSOCKET_METRICS = {
    "websocket_time", "websocket_messages_in", "websocket_messages_out", "send_time", "loop_time",
    "longest_step",
}  # fmt: skip
COUNTS = {"outcomes", "statuses"}


async def reading_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await receive()
        await answer(send)
    else:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close"})


def test_without_requests_there_is_nothing() -> None:
    """No figures, no keys: nothing that could be taken for a zero."""
    registry = Registry()
    assert get_performance_stats(registry=registry) == {}
    assert get_performance_stats(by="endpoint", registry=registry) == {}


def test_a_request_has_these_metrics_and_no_other(run: Any) -> None:
    """Each metric of the contract that a request can have, each figure of it, and how it ended."""
    registry = Registry()
    run(request, PerformanceMiddleware(reading_app, registry=registry), "GET", "/")
    overall = get_performance_stats(registry=registry)
    assert overall.keys() == HTTP_METRICS | UPLOAD_METRICS | COUNTS
    assert all(overall[metric].keys() == FIGURES for metric in overall.keys() - COUNTS)
    assert (overall["outcomes"], overall["statuses"]) == ({"ok": 1}, {"200": 1})
    assert get_performance_stats(by="endpoint", registry=registry) == {"GET /": overall}


def test_a_request_whose_body_is_not_asked_for_has_no_upload(run: Any) -> None:
    """Metrics without an observation are left out, not told as zero."""
    registry = Registry()
    run(request, PerformanceMiddleware(ok_app, registry=registry, memory=None), "GET", "/")
    overall = get_performance_stats(registry=registry)
    assert overall.keys() == (HTTP_METRICS | COUNTS) - {"memory_delta"}


def test_a_connection_has_these_metrics_and_no_other(run: Any) -> None:
    """A websocket has metrics of its own, and those of its steps."""
    registry = Registry()
    run(connect, PerformanceMiddleware(reading_app, registry=registry), "/ws", "hello")
    stats = get_performance_stats(by="endpoint", registry=registry)
    assert stats.keys() == {"WEBSOCKET /ws"}
    figures = stats["WEBSOCKET /ws"]
    assert figures.keys() == WEBSOCKET_METRICS | COUNTS
    assert all(figures[metric].keys() == FIGURES for metric in WEBSOCKET_METRICS)
    assert figures["websocket_messages_in"]["sum"] == 1
    assert figures["websocket_messages_out"]["max"] == 0
    assert figures["statuses"] == {"101": 1}


def test_times_are_seconds_and_sizes_bytes() -> None:
    """What is kept in nanoseconds is told in seconds, what is kept in bytes or numbers is told as it is."""
    registry = Registry()
    record(
        registry,
        total_time=1_500_000_000,
        request_size=123_456,
        memory_delta=-4_096,
        websocket_messages_in=3,
        observations=[("of_ones_own", 2_000_000)],
    )
    stats = get_performance_stats(registry=registry)
    for metric, value in {
        "total_time": 1.5,
        "request_size": 123_456,
        "memory_delta": -4_096,
        "websocket_messages_in": 3,
        "of_ones_own": 0.002,
    }.items():
        expected = dict.fromkeys(FIGURES, value) | {"count": 1}
        assert stats[metric] == pytest.approx(expected)


def test_the_figures_of_known_values() -> None:
    """1 to 1,000 milliseconds: count, sum, avg, min and max exactly, the quantiles within 1 %."""
    registry = Registry()
    for milliseconds in range(1, 1_001):
        # Over several endpoints: all together must come to the same.
        record(registry, f"/{milliseconds % 7}", total_time=milliseconds * 1_000_000)
    time = get_performance_stats(registry=registry)["total_time"]
    assert time["count"] == 1_000
    exact = {"sum": 500.5, "avg": 0.5005, "min": 0.001, "max": 1.0}
    assert {name: time[name] for name in exact} == pytest.approx(exact)
    quantiles = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
    assert {name: time[name] for name in quantiles} == pytest.approx(quantiles, rel=0.01)


def test_all_together_is_as_one_endpoint() -> None:
    """Figures of many endpoints are merged, not averaged: they are those of all requests in one row."""
    many, one = Registry(), Registry()
    for number in range(300):
        value = number**4 * 1_000
        ending = {"outcome": "error", "status": 500} if number % 9 == 0 else {}
        record(many, f"/{number}", total_time=value, **ending)  # type: ignore[arg-type]
        record(one, "/", total_time=value, **ending)  # type: ignore[arg-type]
    assert get_performance_stats(registry=many) == get_performance_stats(registry=one)


def test_outcomes_and_statuses_are_counted() -> None:
    """How often each outcome and each status came; a request without a response has an outcome only."""
    registry = Registry()
    record(registry, "/a", outcome="ok", status=204)
    record(registry, "/a", outcome="ok", status=200)
    record(registry, "/a", outcome="error", status=200)
    record(registry, "/b", outcome="error", status=None)
    record(registry, "/b", outcome="cancelled", status=None)
    overall: Any = get_performance_stats(registry=registry)
    assert overall["outcomes"] == {"ok": 2, "error": 2, "cancelled": 1}
    assert list(overall["statuses"].items()) == [("200", 2), ("204", 1)]
    by_endpoint = get_performance_stats(by="endpoint", registry=registry)
    assert by_endpoint["GET /b"].keys() == {"total_time", "outcomes"}
    assert by_endpoint["GET /b"]["outcomes"] == {"error": 1, "cancelled": 1}


@pytest.mark.parametrize("by", ["x", "", "endpoints", 1, True, ["endpoint"]])
def test_another_by_is_refused(by: Any) -> None:
    """The message names the value and what is allowed."""
    with pytest.raises(ValueError, match="endpoint") as caught:
        get_performance_stats(by=by)
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.value == by
    assert repr(by) in str(caught.value)
    assert 'by="endpoint"' in str(caught.value)
    assert "None" in str(caught.value)


def test_arguments_go_by_their_names() -> None:
    """A registry in place of `by` is no mistake that goes unseen."""
    with pytest.raises(TypeError):
        get_performance_stats(Registry())  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        reset_performance_stats(Registry())  # type: ignore[misc]


def test_registries_know_nothing_of_each_other() -> None:
    """Each registry has its own figures; without one, the default is read and reset."""
    reset_performance_stats()
    one, other = Registry(), Registry()
    record(one, "/one")
    record(other, "/other")
    record(default_registry, "/default")
    assert get_performance_stats(by="endpoint", registry=one).keys() == {"GET /one"}
    assert get_performance_stats(by="endpoint").keys() == {"GET /default"}
    reset_performance_stats(registry=one)
    assert get_performance_stats(registry=one) == {}
    assert get_performance_stats(by="endpoint", registry=other).keys() == {"GET /other"}
    reset_performance_stats()
    assert get_performance_stats() == {}
    assert get_performance_stats(by="endpoint", registry=other).keys() == {"GET /other"}


def test_an_empty_registry_is_not_taken_for_none() -> None:
    """A registry of one's own is read also when it is empty."""
    record(default_registry, "/default")
    assert get_performance_stats(registry=Registry()) == {}
    reset_performance_stats()


def test_a_request_in_flight_is_recorded_whole_after_a_reset(run: Any) -> None:
    """A reset while a request runs forgets what was, not what is to come."""
    registry = Registry()

    async def main() -> None:
        entered, leave = anyio.Event(), anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200})
            if scope["path"] == "/slow":
                entered.set()
                await leave.wait()
            await send({"type": "http.response.body", "body": b"body"})

        measured = PerformanceMiddleware(app, registry=registry)
        await request(measured, "GET", "/before")
        async with anyio.create_task_group() as group:
            group.start_soon(request, measured, "GET", "/slow")
            await entered.wait()
            assert get_runtime_stats(registry=registry)["requests"] == {"in_flight": 1}
            reset_performance_stats(registry=registry)
            assert get_performance_stats(registry=registry) == {}
            assert get_runtime_stats(registry=registry)["requests"] == {"in_flight": 1}
            leave.set()
        assert get_runtime_stats(registry=registry)["requests"] == {"in_flight": 0}

    run(main)
    stats = get_performance_stats(by="endpoint", registry=registry)
    assert stats.keys() == {"GET /slow"}
    assert stats["GET /slow"]["response_size"]["sum"] == 4
    assert stats["GET /slow"]["processing_time"]["count"] == 1


def test_a_thread_reads_while_requests_run(run: Any) -> None:
    """A reader in another thread sees only whole figures, more of them each time."""
    registry = Registry()
    done = threading.Event()
    seen: list[float] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                get_performance_stats(registry=registry)
                stats = get_performance_stats(by="endpoint", registry=registry)
                for figures in stats.values():
                    count = figures["total_time"]["count"]
                    assert count == figures["processing_time"]["count"]
                    assert count == sum(figures["outcomes"].values())
                    assert figures["total_time"]["min"] <= figures["total_time"]["avg"]
                seen.append(sum(row["total_time"]["count"] for row in stats.values()))
        except BaseException as failure:
            failures.append(failure)

    async def main() -> None:
        measured = PerformanceMiddleware(ok_app, registry=registry)
        for number in range(600):
            await request(measured, "GET", "/even" if number % 2 else "/odd")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        run(main)
    finally:
        done.set()
        reader.join()
    assert failures == []
    assert seen == sorted(seen)
    assert get_performance_stats(registry=registry)["total_time"]["count"] == 600


def test_a_reader_on_the_loop_reads_the_same(run: Any) -> None:
    """On the loop's own thread or on another, the figures of many endpoints are the same."""
    registry = Registry()
    for number in range(2_000):
        record(registry, f"/{number % 500}", total_time=number**2, request_size=number)

    async def main() -> tuple[Any, Any]:
        return (
            get_performance_stats(registry=registry),
            get_performance_stats(by="endpoint", registry=registry),
        )

    overall, by_endpoint = run(main)
    assert overall == get_performance_stats(registry=registry)
    assert by_endpoint == get_performance_stats(by="endpoint", registry=registry)
    assert overall["total_time"]["count"] == 2_000
    assert len(by_endpoint) == 500
