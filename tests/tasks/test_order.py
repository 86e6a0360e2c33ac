"""What runs one after the other, and what at the same time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from asgi_perfkit import BackgroundTasks, BatchedBackgroundTasks, ThreadLimiter
from tests.conftest import Run
from tests.support import checkpoint
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Door, Request
from tests.threads.gates import PATIENCE_SECONDS, Gate, spawn


class Steps:
    """Notes the begin and the end of each task.

    :ivar seen: names of the tasks: at the begin, and at the end once more.
    """

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def sync(self, name: Any) -> None:
        self.seen += [name]
        self.seen += [name]

    async def slowly(self, name: Any) -> None:
        self.seen += [name]
        for _ in range(3):
            await checkpoint()
        self.seen += [name]


def one_by_one(*names: Any) -> list[Any]:
    return [name for name in names for _ in range(2)]


def test_the_tasks_of_a_request_run_in_the_order_they_were_added(
    run: Run, supervise: Supervise
) -> None:
    """Each begins when the one before has ended, also where one runs on the loop and the next in a thread."""
    supervisor = supervise()
    steps = Steps()

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        for number in range(20):
            request.add(steps.sync if number % 3 else steps.slowly, number)
        request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert steps.seen == one_by_one(*range(20))


def test_nothing_runs_before_the_request_has_ended(run: Run, supervise: Supervise) -> None:
    """However long it takes, and however many turns the loop makes."""
    supervisor = supervise()
    steps = Steps()

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(steps.sync, 1).add(steps.slowly, 2)
        for _ in range(20):
            await checkpoint()
        assert (steps.seen, supervisor.figures()) == ([], {"pending": 2})
        request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert steps.seen == one_by_one(1, 2)


def test_what_ends_a_request_does_not_wait_for_its_tasks(run: Run, supervise: Supervise) -> None:
    """The request has ended when its first task begins."""
    supervisor = supervise()
    steps = Steps()

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(steps.slowly, "task").end()
        steps.seen.append("ended")
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert steps.seen == ["ended", "task", "task"]


@pytest.mark.parametrize("max_concurrency", [1, 2, 5])
def test_so_many_requests_have_their_tasks_run_at_once(
    run: Run, supervise: Supervise, max_concurrency: int
) -> None:
    """`max_concurrency` run at the same time, never more, and who comes first is served first."""
    supervisor = supervise(max_concurrency=max_concurrency)
    first, second = Door(), Door()

    async def main() -> None:
        supervisor.open()
        for number in range(12):
            Request(supervisor).add(first, number).add(second, number).end()
        await first.reached(max_concurrency)
        for _ in range(10):
            await checkpoint()
        assert first.came == list(range(max_concurrency))
        assert supervisor.figures() == {
            "running": max_concurrency,
            "pending": 24 - max_concurrency,
        }
        first.open()
        await second.reached(max_concurrency)
        second.open()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert (first.most, second.most) == (max_concurrency, max_concurrency)
    assert first.came == list(range(12))
    assert sorted(second.came) == list(range(12))


def test_requests_that_wait_for_threads_do_not_exceed_the_limiter(
    run: Run, supervise: Supervise
) -> None:
    """Functions that are no async ones run in as many threads as the supervisor's limiter lets them."""
    limiter = ThreadLimiter(2)
    supervisor = supervise(limiter=limiter)

    async def main() -> None:
        supervisor.open()
        with Gate() as gate:
            for _ in range(5):
                Request(supervisor).add(gate).end()
            await gate.reached(2)
            for _ in range(10):
                await checkpoint()
            assert (gate.inside, limiter.borrowed_tokens) == (2, 2)
        await supervisor.drain(PATIENCE_SECONDS)
        assert (gate.most, gate.passed) == (2, 5)

    run(main)


def test_room_that_comes_free_is_used(run: Run, supervise: Supervise) -> None:
    """A request whose tasks take long holds one place, and the others go by it."""
    supervisor = supervise(max_concurrency=2)
    door = Door()
    steps = Steps()

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(door).end()
        for number in range(10):
            Request(supervisor).add(steps.slowly, number).end()
        last = Door()
        Request(supervisor).add(last).end()
        await last.reached()
        assert steps.seen == one_by_one(*range(10))
        last.open()
        door.open()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)


def batched(size: int, function: Any, count: int) -> BatchedBackgroundTasks:
    tasks = BatchedBackgroundTasks(size)
    for number in range(count):
        tasks.add_task(function, number)
    return tasks


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("count", "size", "batches"),
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 3, [2]), (3, 1, [1, 1, 1]), (0, 3, [])],
)
def test_a_batch_runs_at_the_same_time(
    run: Run, supervise: Supervise, alone: bool, count: int, size: int, batches: list[int]
) -> None:
    """All tasks of a batch are under way together, and the next batch begins when all of them have ended."""
    doors = [Door() for _ in batches]

    async def through(number: int) -> None:
        assert all(door.inside == 0 for door in doors[: number // size])
        await doors[number // size](number)

    async def main() -> None:
        tasks = batched(size, through, count)
        assert len(tasks) == count
        supervisor = supervise()
        supervisor.open()
        running = None
        if alone:
            running = spawn(tasks.run)
        else:
            Request(supervisor).add(tasks).end()
        for door, expected in zip(doors, batches, strict=True):
            await door.reached(expected)
            door.open()
        await supervisor.drain(PATIENCE_SECONDS)
        if running is not None:
            await running.result()
        assert len(tasks) == 0

    run(main)
    assert [door.most for door in doors] == batches
    came = [number for door in doors for number in sorted(door.came)]
    assert came == list(range(count))


def test_a_batch_of_threads_runs_at_the_same_time(run: Run, supervise: Supervise) -> None:
    """Functions that are no async ones do, too."""
    supervisor = supervise()

    async def main() -> None:
        supervisor.open()
        with Gate() as gate:
            Request(supervisor).add(batched(4, gate, 4)).end()
            await gate.reached(4)
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)


def test_a_list_has_its_place_among_the_tasks(run: Run, supervise: Supervise) -> None:
    """What was added before runs before it, what was added behind it runs behind all of it."""
    supervisor = supervise(max_concurrency=4)
    steps = Steps()

    async def main() -> None:
        supervisor.open()
        tasks = BackgroundTasks()
        for number in (1, 2, 3):
            tasks.add_task(steps.slowly, number)
        request = Request(supervisor).add(steps.sync, 0).add(tasks)
        request.add(batched(2, steps.sync, 0)).add(steps.sync, 4).end()
        assert supervisor.figures() == {"pending": 5}
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert steps.seen == one_by_one(0, 1, 2, 3, 4)


def test_what_a_list_gets_once_it_was_handed_over_runs_behind_it(
    run: Run, supervise: Supervise
) -> None:
    """Nothing that is added to it is lost: not before the request ends, nor while the list runs."""
    supervisor = supervise()
    steps = Steps()
    tasks = BackgroundTasks()

    async def main() -> None:
        supervisor.open()
        tasks.add_task(steps.slowly, 1)
        tasks.add_task(partial(tasks.add_task, steps.slowly), 4)
        request = Request(supervisor).add(tasks).add(steps.slowly, 2)
        tasks.add_task(steps.slowly, 3)
        assert supervisor.figures() == {"pending": 4}
        request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert steps.seen == one_by_one(1, 2, 3, 4)
    assert supervisor.figures() == {"done": 5}


def test_a_list_that_is_handed_over_twice_runs_once(run: Run, supervise: Supervise) -> None:
    """The second time there is nothing in it, and nothing is counted."""
    supervisor = supervise()
    steps = Steps()

    async def main() -> None:
        supervisor.open()
        tasks = BackgroundTasks()
        tasks.add_task(steps.slowly, 1)
        Request(supervisor).add(tasks).add(tasks).end()
        await supervisor.drain(PATIENCE_SECONDS)
        await tasks.run()

    run(main)
    assert (steps.seen, supervisor.figures()) == (one_by_one(1), {"done": 1})


def test_a_list_runs_alone(run: Run) -> None:
    """Without a request or a supervisor: when `run` returns all have run, in order, and each once."""
    steps = Steps()
    tasks = BackgroundTasks()
    for number in range(6):
        tasks.add_task(steps.sync if number % 2 else steps.slowly, number)

    async def main() -> None:
        await tasks.run()
        assert steps.seen == one_by_one(*range(6))
        await tasks.run()
        tasks.add_task(steps.slowly, 6)
        await tasks.run()

    run(main)
    assert steps.seen == one_by_one(*range(7))


def test_a_list_needs_a_loop() -> None:
    """Without one its error says so."""
    tasks = BackgroundTasks()
    tasks.add_task(print)
    with pytest.raises(RuntimeError, match="No event loop"):
        tasks.run().send(None)


def test_a_list_that_runs_alone_is_cancelled_with_who_runs_it(run: Run) -> None:
    """The cancellation goes to the task that runs, the others do not begin, and who waits gets it."""
    door = Door()

    async def main() -> None:
        tasks = BackgroundTasks()
        tasks.add_task(door, 1)
        tasks.add_task(door, 2)
        running = spawn(tasks.run)
        await door.reached()
        running.cancel()
        await running.join()
        assert running.error is not None
        assert not isinstance(running.error, Exception)

    run(main)
    assert (door.came, door.inside) == ([1], 0)


def test_queues_that_nobody_claims_run_where_they_were_released(
    run: Run, supervise: Supervise
) -> None:
    """Before a supervisor is open, and after it was detached, who serves the request runs its tasks."""
    supervisor = supervise()
    steps = Steps()

    async def main() -> None:
        Request(supervisor).add(steps.slowly, 1).add(steps.sync, 2).end()
        await supervisor.run_unclaimed()
        assert steps.seen == one_by_one(1, 2)
        supervisor.open()
        supervisor.detach()
        Request(supervisor).add(steps.slowly, 3).end()
        await supervisor.run_unclaimed()
        await supervisor.run_unclaimed()

    run(main)
    assert steps.seen == one_by_one(1, 2, 3)
