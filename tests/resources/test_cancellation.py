"""Whoever is cancelled, and whenever: what was opened is closed, once, to its end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Any

import anyio
import pytest

from asgi_perfkit import Depends, ResourceManager, ResourcesClosedError, resolve
from tests.resources.driver import Log, cancel_everywhere, cancelled_at
from tests.support import Trouble, checkpoint, forever, together


def test_a_cancellation_anywhere_leaves_nothing_open(run: Any) -> None:
    """Native on asyncio and uvloop, that of a scope on trio: in each enter, in the body, in each exit."""
    logs: list[Log] = []

    async def work(step: int) -> None:
        log = Log()
        logs.append(log)
        async with ResourceManager() as resources:
            await resources.enter(log.thing("a"))
            await resources.enter(log.thing("b"))
            await checkpoint()
            await resources.acquire("c", lambda: log.thing("c"))

    assert run(cancel_everywhere, work) >= 9
    for log in logs:
        log.balance()
    assert {"c closed"} <= set(logs[-1])


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_cancelled_resolution_leaves_nothing_open(run: Any, concurrent: bool) -> None:
    """Wherever it is cancelled: in a dependency, in the function, in the cleaning up."""
    logs: list[Log] = []

    async def first() -> AsyncIterator[str]:
        async with logs[-1].thing("first") as value:
            yield value

    async def waits() -> str:
        logs[-1].append("waits opened")
        try:
            await checkpoint()
        finally:
            logs[-1].append("waits closed")
        return "w"

    async def second(first: str = Depends(first), w: str = Depends(waits)) -> AsyncIterator[str]:
        async with logs[-1].thing("second") as value:
            yield value

    async def handler(second: str = Depends(second), waits: str = Depends(waits)) -> None:
        await checkpoint()

    async def work(step: int) -> None:
        logs.append(Log())
        await resolve(handler, concurrent=concurrent)

    assert run(cancel_everywhere, work) >= 7
    for log in logs:
        if not concurrent:
            log.balance()
        assert sum("opened" in each for each in log) == sum("closed" in each for each in log), log


def test_a_cancelled_acquisition_leaves_the_resource_to_the_next(run: Any) -> None:
    """Wherever it is cancelled: before, in the entering of the resource, or behind it; it is open once."""

    async def main() -> None:
        reached = True
        step = 0
        while reached:
            log = Log()
            async with ResourceManager() as resources:

                async def acquire(resources: Any = resources, log: Log = log) -> None:
                    assert await resources.acquire("a", lambda: log.thing("a")) == "a"

                async def leaves(acquire: Any = acquire, step: int = step) -> None:
                    nonlocal reached
                    reached = await cancelled_at(step, acquire)

                await together(leaves, acquire, acquire)
            log.balance()
            assert log == ["a opened", "a closed"]
            step += 1
        assert step > 1

    run(main)


def test_who_is_cancelled_in_the_closing_learns_of_it_behind_it(run_asyncio: Any) -> None:
    """Once for all that came meanwhile, and the task counts as cancelled; the message is the one that was given."""
    log = Log()

    async def main() -> None:
        closing = asyncio.Event()

        async def slow() -> None:
            closing.set()
            for _ in range(5):
                await asyncio.sleep(0)
            log.append("slow")

        async def work() -> None:
            async with ResourceManager() as resources:
                resources.push_async_callback(slow)
            log.append("not reached")

        task = asyncio.ensure_future(work())
        await closing.wait()
        assert task.cancel("enough")
        assert task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        if sys.version_info >= (3, 11):
            assert task.cancelling() == 2

    run_asyncio(main)
    assert log == ["slow"]


def test_a_cancellation_that_is_due_is_put_off(run_asyncio: Any) -> None:
    """That of a task by itself, which would be raised at the first await of the closing."""
    log = Log()

    async def main() -> None:
        async def work() -> None:
            task = asyncio.current_task()
            assert task is not None
            async with ResourceManager() as resources:
                await resources.enter(log.thing("a"))
                task.cancel()
            log.append("not reached")

        task = asyncio.ensure_future(work())
        with pytest.raises(asyncio.CancelledError):
            await task
        if sys.version_info >= (3, 11):
            assert task.cancelling() == 1

    run_asyncio(main)
    assert log == ["a opened", "a closed"]


def test_time_outs_inside_of_a_closing_work(run: Any) -> None:
    """They are the closing's own business, although they come as a cancellation of its task."""
    log = Log()

    async def gives_up() -> None:
        if asyncio._get_running_loop() is not None:
            with anyio.move_on_after(0.01):
                await forever()
            log.append("scope")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(forever(), 0.01)
            if sys.version_info >= (3, 11):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await forever()
        else:
            import trio

            with trio.move_on_after(0.01):
                await forever()
            log.append("scope")
        log.append("given up")

    async def main() -> None:
        async with ResourceManager() as resources:
            resources.push_async_callback(gives_up)

    run(main)
    assert log == ["scope", "given up"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no task groups")
def test_task_groups_inside_of_a_closing_work(run_asyncio: Any) -> None:
    """A child that fails cancels the group's own task."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise Trouble

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
            await forever()

    async def main() -> Any:
        resources = ResourceManager()
        resources.push_async_callback(group)
        with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
            await resources.aclose()
        return caught.value.exceptions[0]

    assert "TaskGroup" in str(run_asyncio(main))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in 3.11")
def test_a_time_out_around_is_put_off_and_is_one_still(run_asyncio: Any) -> None:
    log = Log()

    async def main() -> None:
        gave_up = asyncio.Event()

        async def slow() -> None:
            await gave_up.wait()
            log.append("closed")

        async def work() -> None:
            async with asyncio.timeout(0.01), ResourceManager() as resources:
                asyncio.get_running_loop().call_later(0.02, gave_up.set)
                resources.push_async_callback(slow)

        with pytest.raises(TimeoutError):
            await work()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    run_asyncio(main)
    assert log == ["closed"]


def test_a_scope_around_is_put_off(run: Any) -> None:
    """anyio's and trio's: the closing takes no notice, and the scope has its cancellation behind it."""
    log = Log()

    async def main() -> None:
        if asyncio._get_running_loop() is not None:
            scope: Any = anyio.CancelScope()
        else:
            import trio

            scope = trio.CancelScope()
        with scope:
            async with ResourceManager() as resources:
                await resources.enter(log.thing("a"))
                await resources.enter(log.thing("b"))
                scope.cancel()
            await forever()
        assert scope.cancelled_caught

    run(main)
    log.balance()
    assert len(log) == 4


def test_a_closing_within_a_closing(run_asyncio: Any) -> None:
    """A manager that is used in a cleanup: what comes from outside of both is put off to the end of the outer one."""
    log = Log()

    async def main() -> None:
        closing = asyncio.Event()

        async def inner() -> None:
            closing.set()
            with anyio.move_on_after(0.005):
                await forever()
            log.append("inner")

        async def outer() -> None:
            async with ResourceManager() as resources:
                resources.push_async_callback(inner)
            await asyncio.sleep(0)
            log.append("outer")

        async def work() -> None:
            async with ResourceManager() as resources:
                resources.push_async_callback(outer)

        task = asyncio.ensure_future(work())
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_asyncio(main)
    assert log == ["inner", "outer"]


def test_a_bare_aclose_is_shielded_too(run: Any) -> None:
    log = Log()

    async def work(step: int) -> None:
        resources = ResourceManager()
        resources.push_async_callback(checkpoint)
        resources.push_callback(log.append, str(step))
        await resources.aclose()

    steps = run(cancel_everywhere, work)
    assert steps >= 2
    # A task of asyncio's that is cancelled before it begins does not begin.
    assert log in ([str(step) for step in range(first, steps + 1)] for first in (0, 1))


def test_a_coroutine_that_is_closed_does_what_needs_no_waiting() -> None:
    """There is no loop to wait on."""
    log: list[str] = []

    async def main() -> None:
        async def at_once() -> None:
            log.append("closed")

        async with ResourceManager() as resources:
            resources.push_async_callback(at_once)
            await _pause()

    coroutine = main()
    coroutine.send(None)
    coroutine.close()
    assert log == ["closed"]


def test_a_closing_that_is_closed_from_elsewhere(run_asyncio: Any) -> None:
    """By a garbage collection, say: in another context."""

    async def work() -> None:
        async with ResourceManager() as resources:
            resources.push_async_callback(forever)

    async def main() -> None:
        task: Any = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        copy_context().run(task.get_coro().close)
        assert type(task.cancel).__name__ != "_Guard"
        task.cancel()
        with pytest.raises(RuntimeError, match="already awaited"):
            await task

    run_asyncio(main)


class _Pause:
    def __await__(self) -> Any:
        yield


def _pause() -> Any:
    return _Pause()


async def _fail() -> None:
    await asyncio.sleep(0)
    raise Trouble


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no task groups")
@pytest.mark.parametrize("native", [True, False])
def test_a_group_that_is_held_fails_as_itself(run_asyncio: Any, native: bool) -> None:
    """Its child fails while it, or something opened later, is closed: nobody has cancelled anything."""

    async def work(late: bool) -> None:
        failed = asyncio.Event()

        async def fail() -> None:
            asyncio.get_running_loop().call_later(0.005, failed.set)
            await _fail()

        async with ResourceManager() as resources:
            group: Any = asyncio.TaskGroup() if native else anyio.create_task_group()
            await resources.enter(group)
            if native:
                group.create_task(fail())
            else:
                group.start_soon(fail)
            if late:
                resources.push_async_callback(failed.wait)

    async def main() -> None:
        task: Any = asyncio.current_task()
        for late in (False, True):
            with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
                await work(late)
            assert caught.group_contains(Trouble)
            assert task.cancelling() == 0
            await asyncio.sleep(0)

    run_asyncio(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no task groups")
def test_a_group_that_is_held_takes_back_no_other_cancellation(run_asyncio: Any) -> None:
    """That of the task comes behind the closing, as ever."""

    async def work(closing: asyncio.Event) -> None:
        async with ResourceManager() as resources:
            group = await resources.enter(asyncio.TaskGroup())
            failing = group.create_task(_fail())

            async def wait() -> None:
                await asyncio.wait([failing])
                closing.set()
                await asyncio.sleep(0.005)

            resources.push_async_callback(wait)

    async def main() -> None:
        closing = asyncio.Event()
        task = asyncio.ensure_future(work(closing))
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1

    run_asyncio(main)


def test_a_failure_that_gives_way_to_a_cancellation_is_logged(
    run_asyncio: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        closing = asyncio.Event()

        async def fail() -> None:
            closing.set()
            await asyncio.sleep(0.005)
            raise Trouble

        async def work() -> None:
            async with ResourceManager() as resources:
                resources.push_async_callback(fail)

        task = asyncio.ensure_future(work())
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_asyncio(main)
    assert "Trouble" in caplog.text


def test_nothing_is_opened_while_the_cancellation_is_delivered(run_asyncio: Any) -> None:
    """That takes a turn of the loop, in which others run: all is closed by then."""
    log: list[str] = []

    async def main() -> None:
        closing, closed = asyncio.Event(), asyncio.Event()
        resources = ResourceManager()

        async def close() -> None:
            closing.set()
            await asyncio.sleep(0.005)
            closed.set()

        async def late() -> None:
            await closed.wait()
            with pytest.raises(ResourcesClosedError):
                resources.push_callback(log.append, "never called")

        async def work() -> None:
            async with resources:
                resources.push_async_callback(close)

        others = asyncio.ensure_future(late())
        task = asyncio.ensure_future(work())
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await others

    run_asyncio(main)
