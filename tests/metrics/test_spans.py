"""`measure`: whose figures a timing becomes, and which names it may have."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Awaitable, Callable, Iterator
from time import perf_counter
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asgi_perfkit import (
    ConfigurationError,
    PerformanceMiddleware,
    Registry,
    get_performance_stats,
    get_runtime_stats,
    measure,
    reset_performance_stats,
)
from asgi_perfkit.metrics.catalogue import METRICS
from tests.metrics.driver import answer, request


@pytest.fixture(autouse=True)
def _nothing_outside() -> Iterator[None]:
    """What one test measures outside of requests, the next one does not see."""
    reset_performance_stats()
    yield
    reset_performance_stats()


def outside() -> dict[str, Any]:
    return get_performance_stats(by="endpoint").get("<outside>", {})


def figures(registry: Registry) -> dict[str, Any]:
    """Those of the one endpoint that there is."""
    ((label, figures),) = get_performance_stats(by="endpoint", registry=registry).items()
    assert label == "GET /"
    return figures


def handle(run: Any, handler: Callable[[], Awaitable[None]]) -> dict[str, Any]:
    """The figures of a request that `handler` handles."""
    registry = Registry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handler()
        await answer(send)

    run(request, PerformanceMiddleware(app, registry=registry), "GET", "/")
    return figures(registry)


def spin(seconds: float) -> None:
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def test_a_block_is_timed(run: Any) -> None:
    """The time of the block is a metric of the request's endpoint, between what its inside and its outside took."""
    inside = outside_ = 0.0

    async def handler() -> None:
        nonlocal inside, outside_
        before = perf_counter()
        with measure("work"):
            start = perf_counter()
            spin(0.002)
            inside = perf_counter() - start
        outside_ = perf_counter() - before

    work = handle(run, handler)["work"]
    assert work["count"] == 1
    assert inside <= work["sum"] <= outside_
    assert work["min"] == work["max"] == work["avg"] == work["p50"] == work["sum"]
    assert outside() == {}


def test_an_async_block_is_timed_with_its_waits(run: Any) -> None:
    """`async with` does what `with` does; the time in which the block waits is part of it."""
    waited = 0.0

    async def handler() -> None:
        nonlocal waited
        async with measure("wait"):
            start = perf_counter()
            await anyio.sleep(0.01)
            waited = perf_counter() - start

    wait = handle(run, handler)["wait"]
    assert wait["count"] == 1
    assert waited <= wait["sum"] < waited + 0.005


def test_the_value_of_the_block_is_nothing(run: Any) -> None:
    """There is nothing to keep from a block: `as` gives None, and an exception is not swallowed."""

    async def handler() -> None:
        with measure("a") as value:
            assert value is None
        async with measure("b") as value:
            assert value is None

    assert handle(run, handler).keys() >= {"a", "b"}


def test_blocks_nest_and_repeat(run: Any) -> None:
    """An outer block holds the time of the inner ones; an object may be used again."""

    async def handler() -> None:
        again = measure("inner")
        with measure("outer"):
            for _ in range(3):
                with again:
                    spin(0.001)
        with measure("outer"):
            pass

    stats = handle(run, handler)
    assert (stats["outer"]["count"], stats["inner"]["count"]) == (2, 3)
    assert stats["inner"]["sum"] >= 0.003
    assert stats["outer"]["max"] >= stats["inner"]["sum"]


def test_a_block_that_raises_is_timed(run: Any) -> None:
    """The time counts, and the very exception comes out, of either form."""
    error = LookupError("nothing found")

    async def handler() -> None:
        with pytest.raises(LookupError) as caught, measure("raises"):
            raise error
        assert caught.value is error
        with pytest.raises(LookupError) as caught:
            async with measure("raises"):
                raise error
        assert caught.value is error

    assert handle(run, handler)["raises"]["count"] == 2


def test_a_cancelled_block_is_timed(run: Any) -> None:
    """Cancellation leaves the block as any exception does."""

    async def handler() -> None:
        with anyio.CancelScope() as scope:
            async with measure("cancelled"):
                scope.cancel()
                await anyio.sleep_forever()

    assert handle(run, handler)["cancelled"]["count"] == 1


def test_child_tasks_measure_for_their_request(run: Any) -> None:
    """What a child task measures is its request's, at the same time as others or not."""

    async def child(number: int) -> None:
        async with measure("child"):
            await anyio.lowlevel.checkpoint()
        with measure(f"child_{number}"):
            pass

    async def handler() -> None:
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(child, number)

    stats = handle(run, handler)
    assert stats["child"]["count"] == 5
    assert all(stats[f"child_{number}"]["count"] == 1 for number in range(5))
    assert outside() == {}


def test_worker_threads_measure_for_their_request(run: Any) -> None:
    """What a worker thread measures is its request's: the thread has its context."""

    def work() -> None:
        with measure("thread"):
            spin(0.001)

    async def handler() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(anyio.to_thread.run_sync, work)

    stats = handle(run, handler)
    assert stats["thread"]["count"] == 4
    assert stats["thread"]["min"] >= 0.001
    assert outside() == {}


def test_concurrent_requests_keep_their_own(run: Any) -> None:
    """Requests that run at the same time do not see each other's timings."""
    registry = Registry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(int(scope["path"].strip("/"))):
            async with measure("turn"):
                await anyio.lowlevel.checkpoint()
        await answer(send)

    async def main() -> None:
        measured = PerformanceMiddleware(
            app, registry=registry, endpoint=lambda scope: scope["path"]
        )
        async with anyio.create_task_group() as group:
            for turns in range(1, 6):
                group.start_soon(request, measured, "GET", f"/{turns}")

    run(main)
    stats = get_performance_stats(by="endpoint", registry=registry)
    assert {label: row["turn"]["count"] for label, row in stats.items()} == {
        f"GET /{turns}": turns for turns in range(1, 6)
    }


def test_what_ends_after_its_request_still_counts_for_it(run: Any) -> None:
    """A task that outlives its request measures for the endpoint of that request."""
    registry = Registry()

    async def main() -> None:
        over = anyio.Event()

        async def outlive() -> None:
            with measure("begun_before"):
                await over.wait()
            with measure("begun_after"):
                pass

        async def app(scope: Any, receive: Any, send: Any) -> None:
            group.start_soon(outlive)
            await anyio.lowlevel.checkpoint()
            await answer(send)

        async with anyio.create_task_group() as group:
            await request(PerformanceMiddleware(app, registry=registry), "GET", "/")
            assert "begun_before" not in figures(registry)
            over.set()

    run(main)
    stats = figures(registry)
    assert stats["begun_before"]["count"] == stats["begun_after"]["count"] == 1
    assert stats["outcomes"] == {"ok": 1}
    assert outside() == {}


def test_a_thread_that_outlives_its_request_measures_for_it(run: Any) -> None:
    """A thread with the context of a request that is over measures for its endpoint."""
    registry = Registry()
    over = threading.Event()
    threads = []

    def outlive() -> None:
        over.wait()
        for _ in range(100):
            with measure("late"):
                pass

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            context = contextvars.copy_context()
            threads.append(threading.Thread(target=context.run, args=(outlive,)))
            threads[-1].start()
        await answer(send)

    run(request, PerformanceMiddleware(app, registry=registry), "GET", "/")
    over.set()
    for thread in threads:
        thread.join()
    assert figures(registry)["late"]["count"] == 200


def test_outside_of_requests_there_is_a_row_for_it(run: Any) -> None:
    """Before a server runs, in a task of the app's own, in a thread: `<outside>`, in the default registry."""
    with measure("start_up"):
        pass

    def work() -> None:
        with measure("thread"):
            pass

    async def task_of_the_app() -> None:
        async with measure("task"):
            await anyio.lowlevel.checkpoint()

    run(task_of_the_app)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outside().keys() == {"start_up", "task", "thread"}
    assert all(metric["count"] == 1 for metric in outside().values())


@pytest.mark.parametrize("times", [1, 100, 10_000])
def test_a_request_may_measure_as_often_as_it_likes(run: Any, times: int) -> None:
    """No timing of many is lost, whatever the kit does with them in between."""

    async def handler() -> None:
        for number in range(times):
            with measure("often" if number % 2 else "other"):
                pass

    stats = handle(run, handler)
    assert sum(stats[name]["count"] for name in ("often", "other") if name in stats) == times
    assert stats["outcomes"] == {"ok": 1}
    assert stats["total_time"]["count"] == 1


@pytest.mark.parametrize("times", [1, 1_000])
def test_timings_are_counted_for_the_name_that_the_request_has_in_the_end(
    run: Any, times: int
) -> None:
    """A request that nothing matches makes no endpoint, however much it has measured before that was known."""
    registry = Registry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(times):
            with measure("often"):
                pass
        await answer(send, status=404)

    run(request, PerformanceMiddleware(app, registry=registry), "GET", "/some/path")
    stats = get_performance_stats(by="endpoint", registry=registry)
    assert stats.keys() == {"GET <unmatched>"}
    assert stats["GET <unmatched>"]["often"]["count"] == times


@pytest.mark.parametrize("times", [1, 1_000])
def test_a_request_overflows_once(run: Any, times: int) -> None:
    """However much it has measured, a request that found no row of its own is counted as one."""
    registry = Registry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(times):
            with measure("often"):
                pass
        await answer(send)

    async def main() -> None:
        measured = PerformanceMiddleware(app, registry=registry, max_series=1)
        for path in ("/first", "/second"):
            await request(measured, "GET", path)

    run(main)
    assert get_runtime_stats(registry=registry)["metrics"]["overflowed"] == 1


def test_threads_measure_at_once_and_lose_nothing(run: Any) -> None:
    """Several threads of a request that measure at the same time, and more often than is kept."""

    def work() -> None:
        for _ in range(2_000):
            with measure("thread"):
                pass

    async def handler() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(anyio.to_thread.run_sync, work)

    assert handle(run, handler)["thread"]["count"] == 8_000


def test_names_made_of_data_share_a_metric(run: Any) -> None:
    """Eight names of an endpoint have metrics of their own, further ones are `<overflow>`."""

    async def handler() -> None:
        for number in range(100):
            with measure(f"name_{number}"):
                pass

    stats = handle(run, handler)
    own = {name for name in stats if name.startswith("name_")}
    assert len(own) == 8
    assert stats["<overflow>"]["count"] == 92


@pytest.mark.parametrize("name", [None, 1, b"name", ["name"]])
def test_a_name_is_a_string(name: Any) -> None:
    """Anything else is a TypeError that shows it."""
    with pytest.raises(TypeError, match="a name is a string") as caught:
        measure(name)
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.value is name


@pytest.mark.parametrize("name", ["", "x" * 101])
def test_a_name_has_1_to_100_characters(name: str) -> None:
    """Empty and overlong names are refused; the longest that may be is not."""
    with pytest.raises(ValueError, match="1 to 100 characters") as caught:
        measure(name)
    assert isinstance(caught.value, ConfigurationError)
    with measure("x" * 100):
        pass
    assert outside().keys() == {"x" * 100}


@pytest.mark.parametrize("name", [*METRICS, "outcomes", "statuses"])
def test_a_name_of_the_kit_is_taken(name: str) -> None:
    """Nobody's timing gets mixed up with the kit's own figures."""
    with pytest.raises(ValueError, match="choose another") as caught:
        measure(name)
    assert isinstance(caught.value, ConfigurationError)
    assert repr(name) in str(caught.value)


def test_measure_is_no_decorator() -> None:
    """A use that would time nothing fails instead."""
    with pytest.raises(TypeError):
        measure("name")(print)  # type: ignore[operator]
