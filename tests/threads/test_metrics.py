"""The figures of the request that calls take part in."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_perfkit import (
    PerformanceMiddleware,
    Registry,
    ThreadLimiter,
    get_performance_stats,
    run_in_threadpool,
)
from asgi_perfkit.threads import call as call_module
from tests.conftest import Run
from tests.metrics.driver import answer, request
from tests.support import Clock, Trouble, checkpoint, together
from tests.threads.gates import Gate, spawn

WAIT, RUN = "thread_wait_time", "thread_time"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the kit: it goes on when the test says so."""
    return Clock.install(monkeypatch)


async def figures_of(handler: Any) -> dict[str, Any]:
    """The statistics after one request, whose handler is this."""
    registry = Registry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handler()
        await answer(send)

    await request(PerformanceMiddleware(app, registry=registry, memory=None), "GET", "/")
    return get_performance_stats(registry=registry)


def test_a_call_is_timed_in_its_request(run: Run, clock: Clock) -> None:
    """How long it waited for its thread, token included, and how long it ran there."""

    async def main() -> None:
        with Gate() as gate:
            limiter = ThreadLimiter(1)
            outside = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()

            async def handler() -> None:
                await run_in_threadpool(clock.advance, 0.25, limiter=limiter)

            figures = spawn(lambda: figures_of(handler))
            while limiter.statistics().tasks_waiting != 1:
                await checkpoint()
            clock.advance(2.0)
            gate.open()
            await outside.result()
            stats = await figures.result()
            assert (stats[WAIT]["count"], stats[RUN]["count"]) == (1, 1)
            assert stats[WAIT]["sum"] == pytest.approx(2.0)
            assert stats[RUN]["sum"] == pytest.approx(0.25)

    run(main)


def test_each_call_counts(run: Run, clock: Clock) -> None:
    """Also those that raise, and those of hooks, whose time is that of the call."""

    def fail() -> None:
        clock.advance(0.5)
        raise Trouble

    async def handler() -> None:
        hooked = ThreadLimiter(
            1, before=lambda: clock.advance(0.125), after=lambda: clock.advance(0.25)
        )
        await run_in_threadpool(clock.advance, 1.0, limiter=hooked)
        with pytest.raises(Trouble):
            await run_in_threadpool(fail)

    stats = run(figures_of, handler)
    assert (stats[WAIT]["count"], stats[RUN]["count"]) == (2, 2)
    assert stats[RUN]["max"] == pytest.approx(1.375)
    assert stats[RUN]["min"] == pytest.approx(0.5)


def test_calls_of_child_tasks_count_for_the_request(run: Run, clock: Clock) -> None:
    """As all that they do."""

    async def child() -> None:
        await run_in_threadpool(clock.advance, 0.5, limiter=ThreadLimiter(1))

    async def handler() -> None:
        await together(child, child, child)

    stats = run(figures_of, handler)
    assert (stats[WAIT]["count"], stats[RUN]["count"]) == (3, 3)


def test_calls_of_two_requests_are_told_apart(run: Run, clock: Clock) -> None:
    """Each counts for its own, although they use the same thread."""

    async def main() -> None:
        for seconds in (0.5, 0.25):

            async def handler(seconds: float = seconds) -> None:
                await run_in_threadpool(clock.advance, seconds)

            stats = await figures_of(handler)
            assert stats[RUN]["count"] == 1
            assert stats[RUN]["sum"] == pytest.approx(seconds)

    run(main)


def test_who_leaves_the_queue_has_no_figures(run_asyncio: Run) -> None:
    """A call that did not take place took no time in a thread."""

    async def main() -> None:
        with Gate() as gate:
            limiter = ThreadLimiter(1)
            outside = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()

            async def handler() -> None:
                child = spawn(lambda: run_in_threadpool(int, limiter=limiter))
                while limiter.statistics().tasks_waiting != 1:
                    await checkpoint()
                child.cancel()
                await child.join()

            stats = await figures_of(handler)
            assert WAIT not in stats
            assert RUN not in stats
            gate.open()
            await outside.result()

    run_asyncio(main)


def test_a_request_without_calls_has_no_such_figures(run: Run) -> None:
    """What was not observed is not told."""
    stats = run(figures_of, checkpoint)
    assert WAIT not in stats
    assert RUN not in stats


def test_outside_of_a_request_nothing_is_timed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is not even read; nothing is recorded anywhere."""

    def read() -> int:
        raise AssertionError("the clock is read")

    monkeypatch.setattr(call_module, "perf_counter_ns", read)
    before = get_performance_stats()

    async def main() -> None:
        assert await run_in_threadpool(int) == 0

    run(main)
    assert get_performance_stats() == before
