"""A loop that is closed under its tasks: nobody has cancelled them, and nobody will run them any more."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from asgi_perfkit import BatchedBackgroundTasks, TaskFailure, ThreadLimiter, task_options
from tests.support import checkpoint, forever
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Request, WatchedSupervisor
from tests.threads.gates import PATIENCE_SECONDS


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "asyncio":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def abandon(kind: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main`, and close the loop while its tasks wait."""
    loop = new_loop(kind)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def test_all_is_told_of_when_it_is_collected(kind: str) -> None:
    """What runs, what is behind it, and those of a batch, as cancelled; each has cleaned up behind itself."""
    told: list[TaskFailure] = []
    cleaned_up: list[int] = []

    async def waits(number: int) -> None:
        try:
            await forever()
        finally:
            cleaned_up.append(number)

    async def main() -> None:
        supervisor = WatchedSupervisor(
            max_concurrency=10, max_pending=10, limiter=ThreadLimiter(1), on_error=told.append
        )
        supervisor.open()
        batch = BatchedBackgroundTasks(2)
        for number in (2, 3, 4):
            batch.add_task(waits, number)
        Request(supervisor).add(waits, 0).add(checkpoint).end()
        Request(supervisor).add(task_options(waits, timeout=60), 1).add(checkpoint).end()
        Request(supervisor).add(batch).add(checkpoint).end()
        for _ in range(3):
            await checkpoint()

    abandon(kind, main)
    gc.collect()
    assert [(failure.reason, failure.error) for failure in told] == [("cancelled", None)] * 8
    assert sorted(cleaned_up) == [0, 1, 2, 3]


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("max_concurrency", [1, 2])
def test_another_loop_begins_anew(
    kind: str, turns: int, max_concurrency: int, supervise: Supervise
) -> None:
    """What the closed one has left, begun or not, is told of and in nobody's way."""
    supervisor = supervise(max_concurrency=max_concurrency)

    async def main() -> None:
        supervisor.open()
        for _ in range(3):
            Request(supervisor).add(forever).add(checkpoint).end()
        for _ in range(turns):
            await checkpoint()

    async def anew() -> None:
        supervisor.open()
        gc.collect()
        Request(supervisor).add(checkpoint).end()
        await supervisor.drain(PATIENCE_SECONDS)

    abandon(kind, main)
    asyncio.run(anew())
    assert supervisor.figures() == {"cancelled": 6, "done": 1}
