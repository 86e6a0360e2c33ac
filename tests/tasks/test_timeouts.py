"""Tasks that take too long."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import anyio
import pytest

from asgi_perfkit import BackgroundTasks, BatchedBackgroundTasks, task_options
from tests.conftest import Run
from tests.support import Trouble, checkpoint, forever
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Door, Request
from tests.threads.gates import PATIENCE_SECONDS, Gate, Signal

SOON = 0.01  # a time-out that is to expire


async def swallow(seen: list[str]) -> None:
    """Will not be cancelled."""
    try:
        await forever()
    except BaseException:  # trio's is none of asyncio's
        seen.append("cancelled")


async def clean_up(seen: list[str]) -> None:
    """Takes some steps to end when it is cancelled."""
    try:
        await forever()
    finally:
        with anyio.CancelScope(shield=True):
            await checkpoint()
        seen.append("cleaned up")


async def translate(seen: list[str]) -> None:
    """Makes another error of its cancellation."""
    try:
        await forever()
    except BaseException:
        seen.append("translated")
        raise Trouble from None


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_an_async_task_is_cancelled(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture, alone: bool, batch: int
) -> None:
    """It gets to clean up, is logged and told of with its time-out, and the next one runs."""
    supervisor = supervise(max_concurrency=1)
    seen: list[str] = []

    async def main() -> None:
        tasks = BatchedBackgroundTasks(batch) if batch > 1 else BackgroundTasks()
        tasks.add_task(task_options(clean_up, timeout=SOON), seen)
        tasks.add_task(task_options(clean_up, timeout=SOON), seen)
        tasks.add_task(seen.append, "next")
        if alone:
            await tasks.run()
        else:
            supervisor.open()
            Request(supervisor).add(tasks).end()
            await supervisor.drain(PATIENCE_SECONDS)

    with caplog.at_level(logging.INFO, "asgi_perfkit"):
        run(main)
    assert seen == ["cleaned up", "cleaned up", "next"]
    assert [record.getMessage() for record in caplog.records] == [
        f"The background task {__name__}.clean_up(list) was given up after {SOON} s."
    ] * 2
    if not alone:
        assert supervisor.reasons() == [("clean_up", "timed_out")] * 2
        assert supervisor.told[0].error is None
        assert supervisor.figures() == {"done": 1, "timed_out": 2}


def test_one_that_swallows_the_cancellation_has_timed_out(
    run_asyncio: Run, supervise: Supervise
) -> None:
    """It is waited for, and what it returns then counts for nothing."""
    supervisor = supervise()
    seen: list[str] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(task_options(swallow, timeout=SOON), seen)
        request.add(seen.append, "next").end()
        await supervisor.drain(PATIENCE_SECONDS)

    run_asyncio(main)
    assert seen == ["cancelled", "next"]
    assert supervisor.figures() == {"done": 1, "timed_out": 1}


def test_one_that_makes_an_error_of_the_cancellation_has_failed(
    run: Run, supervise: Supervise
) -> None:
    """The error says more than the time-out, so it is what is told of."""
    supervisor = supervise()
    seen: list[str] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(task_options(translate, timeout=SOON), seen)
        request.add(seen.append, "next").end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert seen == ["translated", "next"]
    assert isinstance(supervisor.told[0].error, Trouble)
    assert supervisor.figures() == {"done": 1, "failed": 1}


@pytest.mark.parametrize("alone", [True, False])
def test_a_thread_is_waited_for(run: Run, supervise: Supervise, alone: bool) -> None:
    """It cannot be cancelled: it has timed out, and the next task does not begin before its end."""
    supervisor = supervise()
    order: list[str] = []

    with Gate() as gate:

        def work() -> None:
            timer.set()
            gate()
            order.append("thread")

        async def open_late() -> None:
            # Long after the time-out has expired.
            await anyio.sleep(5 * SOON)
            gate.open()

        timer = Signal()

        async def main() -> None:
            tasks = BackgroundTasks()
            tasks.add_task(task_options(work, timeout=SOON))
            tasks.add_task(order.append, "next")
            async with anyio.create_task_group() as group:
                group.start_soon(open_late)
                if alone:
                    await tasks.run()
                else:
                    supervisor.open()
                    Request(supervisor).add(tasks).end()
                    await supervisor.drain(PATIENCE_SECONDS)

        run(main)
    assert order == ["thread", "next"]
    if not alone:
        assert supervisor.reasons() == [("work", "timed_out")]
        assert supervisor.figures() == {"done": 1, "timed_out": 1}


def test_one_that_is_in_time_is_done(run: Run, supervise: Supervise) -> None:
    """Its time-out does not come to who runs next."""
    supervisor = supervise(max_concurrency=1)
    ran: list[int] = []

    async def note(number: int) -> None:
        await checkpoint()
        ran.append(number)

    async def wait() -> None:
        await anyio.sleep(5 * SOON)

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        for number in range(20):
            request.add(task_options(note, timeout=4 * SOON), number)
        request.add(wait).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == list(range(20))
    assert supervisor.figures() == {"done": 21}


def test_an_endless_timeout_is_none(run: Run, supervise: Supervise) -> None:
    """Infinity is a number of seconds, too."""
    supervisor = supervise()

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        request.add(task_options(checkpoint, timeout=float("inf")))
        request.add(task_options(int, timeout=float("inf")), "1").end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"done": 2}


def test_a_timeout_counts_from_the_start(run: Run, supervise: Supervise) -> None:
    """The wait for its turn is not part of it."""
    supervisor = supervise(max_concurrency=1)
    door = Door()

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(door).end()
        Request(supervisor).add(task_options(checkpoint, timeout=20 * SOON)).end()
        await door.reached()
        await anyio.sleep(25 * SOON)
        door.open()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"done": 2}


def test_a_task_that_raises_in_time_has_failed(run: Run, supervise: Supervise) -> None:
    """A TimeoutError or a CancelledError of its own is not its time-out."""
    supervisor = supervise()

    async def fail(error: BaseException) -> None:
        await checkpoint()
        raise error

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        for error in (asyncio.TimeoutError(), asyncio.CancelledError(), Trouble()):
            request.add(task_options(fail, timeout=PATIENCE_SECONDS), error)
        request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"failed": 3}


async def in_move_on_after() -> None:
    with anyio.move_on_after(SOON):
        await forever()


async def in_wait_for() -> None:
    try:
        await asyncio.wait_for(forever(), SOON)
    except asyncio.TimeoutError:
        pass


async def in_timeout() -> None:
    try:
        async with asyncio.timeout(SOON):
            await forever()
    except TimeoutError:
        pass


async def in_task_group() -> None:
    async def fail() -> None:
        raise Trouble

    async def fail_in_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(forever())

    with pytest.raises(Exception, match="unhandled errors in a TaskGroup"):
        await fail_in_group()


INNER: dict[str, Callable[[], Any]] = {"anyio": in_move_on_after, "wait_for": in_wait_for}
if sys.version_info >= (3, 11):
    INNER["timeout"] = in_timeout
    INNER["task group"] = in_task_group


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_what_a_task_cancels_in_itself_is_its_own_matter(
    run_asyncio: Run, supervise: Supervise, inner: Callable[[], Any]
) -> None:
    """Time-outs inside of a task change nothing for its own one, nor for those who run after it."""
    supervisor = supervise(max_concurrency=1)

    async def inner_and_outer() -> None:
        await inner()
        await forever()

    async def fail() -> None:
        await inner()
        raise asyncio.CancelledError

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(inner)
        request.add(task_options(forever, timeout=SOON))
        request.add(task_options(inner_and_outer, timeout=4 * SOON))
        request.add(fail).add(inner).end()
        Request(supervisor).add(inner).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run_asyncio(main)
    assert supervisor.figures() == {"done": 3, "timed_out": 2, "failed": 1}


def test_the_same_on_trio(run_trio: Run, supervise: Supervise) -> None:
    """Cancel scopes inside of a task are its own matter."""
    supervisor = supervise(max_concurrency=1)

    async def inner_and_outer() -> None:
        await in_move_on_after()
        await forever()

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(in_move_on_after)
        request.add(task_options(inner_and_outer, timeout=4 * SOON)).add(in_move_on_after).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run_trio(main)
    assert supervisor.figures() == {"done": 2, "timed_out": 1}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks do not count cancellations yet")
@pytest.mark.parametrize("first", ["times out", "task group"])
def test_who_runs_next_was_not_cancelled(
    run_asyncio: Run, supervise: Supervise, first: str
) -> None:
    """To what runs in the same task of the loop it is as if there had been no cancellation.

    A time-out takes its own back; a task group of Python 3.11 and 3.12 may leave one behind that it has dealt with.
    """
    supervisor = supervise()
    cancelled: list[int] = []

    async def look() -> None:
        task = asyncio.current_task()
        assert task is not None
        cancelled.append(task.cancelling())

    async def main() -> None:
        supervisor.open()
        function = task_options(forever, timeout=SOON) if first == "times out" else in_task_group
        Request(supervisor).add(function).add(look).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run_asyncio(main)
    assert cancelled == [0]


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def cancel_itself_later() -> None:
    await checkpoint()
    await cancel_itself()


async def cancel_itself_and_wait() -> None:
    await cancel_itself()
    await forever()


async def be_cancelled_behind_its_end() -> None:
    """So late that a turn for the others follows."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    until = perf_counter() + 0.002
    while perf_counter() < until:
        pass


CANCELLING = {
    "at once": (cancel_itself, "done"),
    "later": (cancel_itself_later, "done"),
    "before it waits": (cancel_itself_and_wait, "failed"),
    "behind its end": (be_cancelled_behind_its_end, "done"),
}


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize("next_one", [checkpoint, lambda: None], ids=["on the loop", "in a thread"])
@pytest.mark.parametrize(("cancelling", "becomes"), CANCELLING.values(), ids=CANCELLING)
def test_who_cancels_itself_cancels_nobody_else(
    run_asyncio: Run,
    supervise: Supervise,
    cancelling: Callable[[], Any],
    becomes: str,
    next_one: Callable[[], Any],
    in_list: bool,
) -> None:
    """Though those who run next do so in the same task of the loop; it is cancelled where it waits the next time."""
    supervisor = supervise(max_concurrency=1)
    tasks = BackgroundTasks()

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        for function in (cancelling, next_one, checkpoint):
            if in_list:
                tasks.add_task(function)
            else:
                request.add(function)
        request.add(tasks).end()
        Request(supervisor).add(checkpoint).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run_asyncio(main)
    expected = {"done": 3}
    expected[becomes] = expected.get(becomes, 0) + 1
    assert supervisor.figures() == expected
