"""The shutdown: waiting for what was accepted, and answering for what could not finish."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asgi_perfkit import BackgroundTasks, BatchedBackgroundTasks, ThreadLimiter
from tests.conftest import Run
from tests.support import Trouble, checkpoint, forever
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Door, Request
from tests.threads.gates import PATIENCE_SECONDS, Gate, Signal, spawn

SOON = 0.02  # seconds that are to be over


def test_it_waits_for_all_that_was_accepted(run: Run, supervise: Supervise) -> None:
    """What runs, what waits, and what these tasks add meanwhile: nothing is cancelled."""
    supervisor = supervise(max_concurrency=2)
    door = Door()
    ran: list[int] = []

    async def add_more(request: Request, depth: int) -> None:
        await checkpoint()
        ran.append(depth)
        if depth:
            request.add(add_more, request, depth - 1)
            Request(supervisor).add(ran.append, -depth)  # of a request that has not ended

    async def main() -> None:
        supervisor.open()
        for _ in range(5):
            request = Request(supervisor).add(door)
            request.add(add_more, request, 0).end()
        draining = spawn(lambda: supervisor.drain(PATIENCE_SECONDS))
        await door.reached(2)
        for _ in range(10):
            await checkpoint()
        assert not draining.ended.is_set()
        door.open()
        await draining.result()
        assert (door.most, len(door.came), ran) == (2, 5, [0] * 5)

    run(main)
    assert supervisor.figures() == {"done": 10}


def test_it_waits_for_tasks_that_tasks_add(run: Run, supervise: Supervise) -> None:
    """A chain of them is followed to its end."""
    supervisor = supervise()
    request = Request(supervisor)
    ran: list[int] = []

    async def go_on(number: int) -> None:
        await checkpoint()
        ran.append(number)
        if number < 20:
            request.add(go_on, number + 1)

    async def main() -> None:
        supervisor.open()
        request.add(go_on, 0).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == list(range(21))


def test_it_waits_for_threads(run: Run, supervise: Supervise) -> None:
    """Also for those that wait for a token of the limiter."""
    supervisor = supervise(limiter=ThreadLimiter(1))

    async def main() -> None:
        supervisor.open()
        with Gate() as gate:
            for _ in range(3):
                Request(supervisor).add(gate).end()
            draining = spawn(lambda: supervisor.drain(PATIENCE_SECONDS))
            await gate.reached()
            assert not draining.ended.is_set()
            gate.open()
            await draining.result()
            assert gate.passed == 3

    run(main)
    assert supervisor.figures() == {"done": 3}


def test_with_nothing_to_do_it_is_over_at_once(run: Run, supervise: Supervise) -> None:
    """Whether the supervisor was ever open, and how often it is drained."""
    supervisor = supervise()

    async def main() -> None:
        await supervisor.drain(PATIENCE_SECONDS)
        supervisor.open()
        await supervisor.drain(PATIENCE_SECONDS)
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)


def test_what_could_not_finish_is_cancelled_and_told_of(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    """That which runs, the rest of its request, and the requests that wait: each is named, and none begins any more."""
    supervisor = supervise(max_concurrency=1)
    ended: list[str] = []

    async def running(user: str, *, text: bytes) -> None:
        try:
            await forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await checkpoint()
            ended.append(user)

    async def main() -> None:
        supervisor.open()
        tasks = BatchedBackgroundTasks(2)
        for _ in range(3):
            tasks.add_task(checkpoint)
        Request(supervisor).add(running, "anna", text=b"").add(checkpoint).add(tasks).end()
        Request(supervisor).add(ended.append, "never").end()
        await supervisor.drain(SOON)
        assert ended == ["anna"]  # it was waited for

    with caplog.at_level(logging.INFO, "asgi_perfkit"):
        run(main)
    assert sorted(supervisor.reasons()) == sorted(
        [("running", "cancelled"), ("append", "cancelled")] + [("checkpoint", "cancelled")] * 4
    )
    assert all(failure.error is None for failure in supervisor.told)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 6
    assert any("running(str, text=bytes) could not finish before" in line for line in messages)
    assert supervisor.figures() == {"cancelled": 6}


def test_a_batch_is_cancelled_as_a_whole(run: Run, supervise: Supervise) -> None:
    """Those of its tasks that run are cancelled and waited for; the batches behind it do not begin."""
    supervisor = supervise()
    door = Door()

    async def main() -> None:
        supervisor.open()
        tasks = BatchedBackgroundTasks(3)
        for number in range(5):
            tasks.add_task(door, number)
        Request(supervisor).add(tasks).add(door).end()
        await door.reached(3)
        await supervisor.drain(SOON)
        assert (len(door.came), door.inside) == (3, 0)

    run(main)
    assert supervisor.figures() == {"cancelled": 6}


def test_a_thread_that_takes_longer_is_waited_for(run: Run, supervise: Supervise) -> None:
    """It is done when it is; those behind it do not begin."""
    supervisor = supervise()
    with Gate() as gate:

        async def open_late() -> None:
            await anyio.sleep(5 * SOON)
            gate.open()

        async def main() -> None:
            supervisor.open()
            Request(supervisor).add(gate).add(checkpoint).end()
            await gate.reached()
            opening = spawn(open_late)
            await supervisor.drain(SOON)
            assert (gate.passed, opening.ended.is_set()) == (1, True)

        run(main)
    assert supervisor.figures() == {"done": 1, "cancelled": 1}
    assert supervisor.reasons() == [("checkpoint", "cancelled")]


def test_a_thread_that_waits_for_a_token_does_not_begin(run: Run, supervise: Supervise) -> None:
    """It is cancelled while it waits, though the one before it goes on for a while."""
    supervisor = supervise(limiter=ThreadLimiter(1))
    ran: list[int] = []
    with Gate() as gate:

        async def open_late() -> None:
            await anyio.sleep(5 * SOON)
            gate.open()

        async def main() -> None:
            supervisor.open()
            Request(supervisor).add(gate).end()
            await gate.reached()
            Request(supervisor).add(ran.append, 1).end()
            spawn(open_late)
            await supervisor.drain(SOON)

        run(main)
    assert ran == []
    assert supervisor.figures() == {"done": 1, "cancelled": 1}


async def swallow(seen: list[str]) -> None:
    try:
        await forever()
    except asyncio.CancelledError:
        seen.append("cancelled")


async def translate(seen: list[str]) -> None:
    try:
        await forever()
    except BaseException:
        seen.append("cancelled")
        raise Trouble from None


@pytest.mark.parametrize(
    ("function", "outcome"), [(swallow, {"done": 1}), (translate, {"failed": 1})]
)
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_no_task_begins_after_the_time_is_over(
    run_asyncio: Run,
    supervise: Supervise,
    function: Callable[..., Any],
    outcome: dict[str, int],
    batch: int,
) -> None:
    """Also where the one that was cancelled swallows that, or makes an error of it."""
    supervisor = supervise()
    seen: list[str] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        if batch:
            tasks = BatchedBackgroundTasks(batch)
            tasks.add_task(function, seen)
            for _ in range(3):
                tasks.add_task(function if len(tasks) < batch else seen.append, seen)
            request.add(tasks)
        else:
            request.add(function, seen).add(seen.append, "next")
        request.add(seen.append, "last").end()
        await supervisor.drain(SOON)

    run_asyncio(main)
    number = batch or 1
    assert seen == ["cancelled"] * number
    (name,) = outcome
    assert supervisor.figures() == {name: number, "cancelled": supervisor.accepted - number}


def test_no_task_begins_behind_one_that_makes_an_error_of_it_on_trio(
    run_trio: Run, supervise: Supervise
) -> None:
    """A task without a checkpoint would not notice that it is cancelled: it does not begin."""
    supervisor = supervise()
    seen: list[str] = []

    async def no_checkpoint() -> None:
        seen.append("next")

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(translate, seen).add(no_checkpoint).end()
        await supervisor.drain(SOON)

    run_trio(main)
    assert seen == ["cancelled"]
    assert supervisor.figures() == {"failed": 1, "cancelled": 1}


def test_no_time_at_all_cancels_at_once(run: Run, supervise: Supervise) -> None:
    """What was released just before is accounted for, whether it has begun or not."""
    supervisor = supervise(max_concurrency=2)
    door = Door()

    async def main() -> None:
        supervisor.open()
        for _ in range(4):
            Request(supervisor).add(door).end()
        await supervisor.drain(0)
        assert door.inside == 0

    run(main)
    assert supervisor.figures() == {"cancelled": 4}


def test_requests_that_end_while_it_gives_up_are_accounted_for(
    run_asyncio: Run, supervise: Supervise
) -> None:
    """At whatever moment: there is none at which one holds up the end, and none at which one is lost."""
    supervisor = supervise(max_concurrency=100_000, max_pending=100_000)
    going = True

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def end_another() -> None:
            if going:
                Request(supervisor).add(checkpoint).end()
                loop.call_soon(end_another)

        supervisor.open()
        Request(supervisor).add(forever).end()
        draining = spawn(lambda: supervisor.drain(SOON))
        loop.call_soon(end_another)
        await asyncio.wait_for(draining.result(), PATIENCE_SECONDS / 2)

    try:
        run_asyncio(main)
    finally:
        going = False
    supervisor.give_up_unclaimed()
    assert supervisor.figures()["cancelled"] >= 1


def test_one_on_its_way_from_a_thread_is_waited_for(run: Run, supervise: Supervise) -> None:
    """It was accepted before the drain began, so it runs."""
    supervisor = supervise()
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        door = Door()
        door.open()
        request = Request(supervisor).add(door).end()
        await door.reached()
        while supervisor.statistics()["running"]:
            await checkpoint()
        thread = threading.Thread(target=request.add, args=(ran.append, 1))
        thread.start()
        thread.join()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == [1]


def test_after_it_what_comes_late_is_told_of(run: Run, supervise: Supervise) -> None:
    """A request that has ended before cannot have its tasks run any more."""
    supervisor = supervise()
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(ran.append, 1).end()
        await supervisor.drain(PATIENCE_SECONDS)
        request.add(ran.append, 2)
        for _ in range(5):
            await checkpoint()

    run(main)
    assert ran == [1]
    assert supervisor.figures() == {"done": 1, "cancelled": 1}


def test_after_it_the_tasks_of_a_request_run_in_its_own_call(
    run: Run, supervise: Supervise
) -> None:
    """One that ends later than the shutdown loses nothing either."""
    supervisor = supervise()
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(ran.append, 1)
        await supervisor.drain(PATIENCE_SECONDS)
        request.end()
        await supervisor.run_unclaimed()

    run(main)
    assert ran == [1]


def test_a_supervisor_can_be_opened_again(run: Run, supervise: Supervise) -> None:
    """On another loop too; what it has counted stays."""
    supervisor = supervise()
    ran: list[int] = []

    async def main() -> None:
        for number in (1, 2):
            supervisor.open()
            Request(supervisor).add(ran.append, number).add(forever).end()
            await supervisor.drain(SOON)

    run(main)
    run(main)
    assert ran == [1, 2, 1, 2]
    assert supervisor.figures() == {"done": 4, "cancelled": 4}


def test_a_list_may_be_drained_in_the_middle(run: Run, supervise: Supervise) -> None:
    """Those of its tasks that have run are done, the others are told of."""
    supervisor = supervise()
    door = Door()
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        tasks = BackgroundTasks()
        tasks.add_task(ran.append, 1)
        tasks.add_task(door)
        tasks.add_task(ran.append, 2)
        Request(supervisor).add(tasks).end()
        await door.reached()
        await supervisor.drain(SOON)

    run(main)
    assert ran == [1]
    assert supervisor.figures() == {"done": 1, "cancelled": 2}


def test_a_drain_that_is_cancelled_leaves_the_tasks_alone(run: Run, supervise: Supervise) -> None:
    """Who waits may give up; another drain takes its place."""
    supervisor = supervise()
    door, drained = Door(), Signal()

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(door).end()
        draining = spawn(lambda: supervisor.drain(PATIENCE_SECONDS))
        await door.reached()
        draining.cancel()
        await draining.join()
        assert door.inside == 1
        door.open()
        await supervisor.drain(PATIENCE_SECONDS)
        drained.set()

    run(main)
    assert drained.is_set()
    assert supervisor.figures() == {"done": 1}
