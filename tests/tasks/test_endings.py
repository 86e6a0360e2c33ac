"""A loop that ends under the supervisor: nobody has drained it, and yet nothing is lost without a word."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from asgi_perfkit import BatchedBackgroundTasks
from tests.conftest import Run
from tests.support import checkpoint, forever
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Door, Request
from tests.threads.gates import Gate


@pytest.mark.parametrize("max_concurrency", [1, 2, 10])
def test_all_is_accounted_for(run: Run, supervise: Supervise, max_concurrency: int) -> None:
    """What ran, what waited behind it, and the requests that had no place yet."""
    supervisor = supervise(max_concurrency=max_concurrency)
    door = Door()

    async def main() -> None:
        supervisor.open()
        for _ in range(4):
            tasks = BatchedBackgroundTasks(2)
            for _ in range(3):
                tasks.add_task(checkpoint)
            Request(supervisor).add(door).add(tasks).add(checkpoint).end()
        await door.reached(min(max_concurrency, 4))

    run(main)
    assert supervisor.figures() == {"cancelled": 20}
    assert door.inside == 0


@pytest.mark.parametrize("turns", range(6))
def test_at_any_moment(run: Run, supervise: Supervise, turns: int) -> None:
    """Requests that end as the loop does are accounted for as well."""
    supervisor = supervise(max_concurrency=2)

    async def main() -> None:
        supervisor.open()
        for _ in range(3):
            Request(supervisor).add(forever).add(forever).end()
        for _ in range(turns):
            await checkpoint()
        for _ in range(3):
            Request(supervisor).add(forever).end()

    run(main)
    assert supervisor.figures() == {"cancelled": 9}


def test_one_that_was_released_from_a_thread(run: Run, supervise: Supervise) -> None:
    """It was on its way to the loop when that ended."""
    supervisor = supervise()

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(checkpoint).end()
        while supervisor.statistics()["done"] == 0:
            await checkpoint()
        thread = threading.Thread(target=request.add, args=(forever,))
        thread.start()
        thread.join()

    run(main)
    assert supervisor.figures() == {"done": 1, "cancelled": 1}


def test_a_thread_is_waited_for_on_asyncio(run_asyncio: Run, supervise: Supervise) -> None:
    """The loop ends when the function has; what was behind it is told of."""
    supervisor = supervise()
    with Gate() as gate:

        async def main() -> None:
            supervisor.open()
            Request(supervisor).add(gate).add(checkpoint).end()
            await gate.reached()
            opening.start()

        opening = threading.Timer(0.05, gate.open)
        run_asyncio(main)
        opening.join()
    assert gate.passed == 1
    assert supervisor.figures() == {"done": 1, "cancelled": 1}


@pytest.mark.parametrize("ran_before", [True, False])
def test_what_comes_when_it_has_ended_is_told_of(
    run: Run, supervise: Supervise, ran_before: bool
) -> None:
    """A thread that outlives the loop gets no error: the task is accepted, and reported."""
    supervisor = supervise()
    requests: list[Request] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        if ran_before:
            request.add(checkpoint)
        requests.append(request.end())
        for _ in range(10):
            await checkpoint()

    run(main)
    requests[0].add(forever)
    assert supervisor.reasons() == [("forever", "cancelled")]


def test_another_loop_begins_anew(run: Run, supervise: Supervise) -> None:
    """What the first one has left does not take the place of what comes."""
    supervisor = supervise(max_concurrency=1)
    ran: list[Any] = []

    async def first() -> None:
        supervisor.open()
        Request(supervisor).add(forever).end()
        Request(supervisor).add(forever).end()
        for _ in range(3):
            await checkpoint()

    async def second() -> None:
        supervisor.open()
        Request(supervisor).add(ran.append, 1).end()
        await supervisor.drain(10)

    run(first)
    run(second)
    assert ran == [1]
    assert supervisor.figures() == {"done": 1, "cancelled": 2}
