"""Child tasks are charged to the work that starts them, and to no other."""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

import pytest

from asgi_perfkit.steps import Account, current_account, follow_children
from tests.steps.charging import charge, charged, drive, new_account
from tests.support import Clock, Trouble, checkpoint, forever, no_collector, together

Run = Callable[..., Any]

# What is charged


def test_children_are_charged(run: Run, clock: Clock) -> None:
    """Each step of a child counts, and its children's; the time between the steps does not."""

    async def grandchild() -> None:
        clock.advance(0.5)
        await checkpoint()
        clock.advance(0.5)

    async def child() -> None:
        clock.advance(1)
        await checkpoint()
        clock.advance(7)
        await together(grandchild)
        clock.advance(1)

    async def work() -> None:
        clock.advance(2)
        await together(child, child)
        clock.advance(2)

    async def main() -> None:
        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 24e9
        assert account.longest_ns == 7e9
        assert not account.stepping

    run(main)


def test_each_work_is_charged_with_its_own_children(run: Run, clock: Clock) -> None:
    """Two pieces of work that run interleaved do not pay for each other's children."""
    totals = {}

    def of(seconds: float) -> Callable[[], Awaitable[None]]:
        async def child() -> None:
            for _ in range(3):
                clock.advance(seconds)
                await checkpoint()

        async def work() -> None:
            await together(child, child)

        async def request() -> None:
            totals[seconds] = (await charge(work(), started_ns=clock())).loop_ns / 1e9

        return request

    async def main() -> None:
        await together(of(1), of(10), of(100))

    run(main)
    assert totals == {1: 6, 10: 60, 100: 600}


def test_children_within_two_pieces_of_work_are_charged_to_both(run: Run, clock: Clock) -> None:
    """Work inside of other work: a child counts for both, for the outer one alone when the inner one is over."""
    release = []

    async def child() -> None:
        clock.advance(1)
        while not release:
            await checkpoint()
        clock.advance(10)
        await checkpoint()
        clock.advance(10)

    async def ends_early(inner: Account) -> None:
        await checkpoint()
        inner.closed = True
        release.append(True)

    async def main() -> None:
        outer, inner = new_account(), new_account()
        inner.parent = outer

        async def inside() -> None:
            token = current_account.set(inner)
            await drive(together(child, lambda: ends_early(inner)), inner, clock())
            current_account.reset(token)

        await charge(inside(), outer, clock())
        assert inner.loop_ns == 1e9
        assert outer.loop_ns == 21e9

    run(main)


def test_what_is_no_coroutine_is_refused_as_ever(run_asyncio: Run) -> None:
    """`create_task` of something else is the TypeError that it is without the kit."""

    async def work() -> None:
        with pytest.raises(TypeError, match="coroutine"):
            asyncio.get_running_loop().create_task(5)  # type: ignore[arg-type]

    run_asyncio(lambda: charge(work()))


def test_tasks_outside_of_any_work_are_not_touched(run_asyncio: Run, clock: Clock) -> None:
    """Where no work is going on, the loop makes plain tasks."""

    async def child() -> None:
        clock.advance(1)

    async def main() -> None:
        account = await charge(checkpoint(), started_ns=clock())
        coro = child()
        task = asyncio.ensure_future(coro)
        assert type(task).__mro__[-3:] == type(asyncio.current_task()).__mro__[-3:]
        assert task.get_coro() is coro
        await task
        assert account.loop_ns == 0

    run_asyncio(main)


def by_create_task(child: Callable[[], Coroutine[Any, Any, None]]) -> Awaitable[Any]:
    return asyncio.create_task(child())


def by_ensure_future(child: Callable[[], Coroutine[Any, Any, None]]) -> Awaitable[Any]:
    return asyncio.ensure_future(child())


def by_gather(child: Callable[[], Coroutine[Any, Any, None]]) -> Awaitable[Any]:
    return asyncio.gather(child())


def by_shield(child: Callable[[], Coroutine[Any, Any, None]]) -> Awaitable[Any]:
    return asyncio.shield(child())


def by_wait_for(child: Callable[[], Coroutine[Any, Any, None]]) -> Awaitable[Any]:
    return asyncio.wait_for(child(), 10)


async def by_task_group(child: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(child())


async def by_call_soon(child: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    started = loop.create_future()
    loop.call_soon(lambda: started.set_result(asyncio.ensure_future(child())))
    await (await started)


async def by_context(child: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.create_task(child(), context=copy_context())


async def by_thread(child: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(child(), loop).result())


WAYS = [
    by_create_task,
    by_ensure_future,
    by_gather,
    by_shield,
    by_wait_for,
    by_call_soon,
    by_thread,
]
if sys.version_info >= (3, 11):
    WAYS += [by_task_group, by_context]


@pytest.mark.parametrize("start", WAYS, ids=[way.__name__ for way in WAYS])
def test_each_way_to_start_a_task_is_followed(
    start: Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[Any]],
    run_asyncio: Run,
    clock: Clock,
) -> None:
    """It does not matter how a task is started: it is charged, once."""

    async def child() -> None:
        clock.advance(1)
        await checkpoint()
        clock.advance(2)

    async def work() -> None:
        await start(child)

    assert charged(run_asyncio, clock, work) == 3


@pytest.mark.skipif(sys.version_info < (3, 11), reason="create_task(context=...) is of Python 3.11")
def test_a_task_in_a_context_of_its_own_belongs_to_nobody(run_asyncio: Run, clock: Clock) -> None:
    """A task that is started in a context in which no work is going on is not charged."""

    async def child() -> None:
        clock.advance(1)

    async def work() -> None:
        await asyncio.create_task(child(), context=Context())

    assert charged(run_asyncio, clock, work) == 0


def test_children_of_work_that_is_over_are_not_followed(run: Run, clock: Clock) -> None:
    """What a child that outlives its work starts is not charged to it."""

    async def main() -> None:
        account = new_account()
        account.end(None)
        current_account.set(account)
        follow_children()

        async def child() -> None:
            clock.advance(1)
            await checkpoint()

        await together(child)
        assert account.loop_ns == 0

    run(main)


def test_a_child_that_outlives_its_work_is_no_longer_charged(
    run_asyncio: Run, clock: Clock
) -> None:
    """From the end of the work on the child goes on uncharged, as long as it likes."""

    async def main() -> None:
        tasks = []
        ended = asyncio.Event()

        async def child() -> str:
            clock.advance(1)
            await ended.wait()
            clock.advance(10)
            await checkpoint()
            clock.advance(10)
            return "done"

        async def work() -> None:
            tasks.append(asyncio.ensure_future(child()))
            await checkpoint()

        account = await charge(work(), started_ns=clock())
        ended.set()
        assert await tasks[0] == "done"
        assert account.loop_ns == 1e9

    run_asyncio(main)


def test_a_trio_child_that_outlives_its_work_is_no_longer_charged(
    run_trio: Run, clock: Clock
) -> None:
    """From the end of the work on a task of an outer nursery goes on uncharged."""
    import trio

    async def main() -> None:
        ended = trio.Event()
        started = trio.Event()

        async def child() -> None:
            clock.advance(1)
            started.set()
            await ended.wait()
            clock.advance(10)
            await checkpoint()
            clock.advance(10)

        async with trio.open_nursery() as nursery:

            async def work() -> None:
                nursery.start_soon(child)
                await started.wait()

            account = await charge(work(), started_ns=clock())
            ended.set()
        assert account.loop_ns == 1e9

    run_trio(main)


def test_a_child_that_outlives_its_work_lets_go_of_the_account(run_asyncio: Run) -> None:
    """A task that lives for as long as the process does not hold the account of the request that started it."""

    async def main() -> None:
        ended = asyncio.Event()

        async def keeper() -> None:
            current_account.set(None)
            await ended.wait()
            await checkpoint()
            await forever()

        async def work() -> asyncio.Future[None]:
            task = asyncio.ensure_future(keeper())
            await checkpoint()
            return task

        async def one() -> tuple[asyncio.Future[None], weakref.ref[Account]]:
            account = new_account()
            token = current_account.set(account)
            follow_children()
            task = await drive(work(), account, 0)
            account.end(None)
            current_account.reset(token)
            return task, weakref.ref(account)

        with no_collector():
            task, trace = await one()
            ended.set()
            await checkpoint()
            await checkpoint()
            assert trace() is None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_asyncio(main)


def test_a_trio_child_that_outlives_its_work_lets_go_of_the_account(run_trio: Run) -> None:
    """A trio task that lives for as long as the process does not hold the account either."""
    import trio

    async def main() -> None:
        ended = trio.Event()

        async def keeper() -> None:
            current_account.set(None)
            await ended.wait()
            await checkpoint()
            await forever()

        async def one(nursery: trio.Nursery) -> weakref.ref[Account]:
            account = new_account()

            async def work() -> None:
                nursery.start_soon(keeper)
                await trio.testing.wait_all_tasks_blocked()

            await charge(work(), account)
            return weakref.ref(account)

        async with trio.open_nursery() as nursery:
            with no_collector():
                trace = await one(nursery)
                ended.set()
                await trio.testing.wait_all_tasks_blocked()
                assert trace() is None
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_what_was_thrown_into_a_child_is_let_go(run_asyncio: Run) -> None:
    """An exception that has come out of a child goes with its task: no frame of the kit holds it in a cycle."""

    async def child(futures: list[asyncio.Future[None]]) -> None:
        await futures.pop()  # in a variable of this frame it would be held by its own exception

    async def work() -> None:
        future = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(child([future]))
        await checkpoint()
        error = Trouble()
        trace = weakref.ref(error)
        future.set_exception(error)
        await asyncio.wait([task])
        assert task.exception() is error
        del error, future, task
        assert trace() is None

    with no_collector():
        run_asyncio(lambda: charge(work()))


def test_tasks_that_have_ended_are_not_held_on_trio(run_trio: Run) -> None:
    """The instrument forgets the tasks that end, those of work that is over too."""
    import trio

    async def main() -> None:
        traces: list[weakref.ref[Account]] = []

        async def child() -> None:
            await checkpoint()

        async def one() -> None:
            account = new_account()
            traces.append(weakref.ref(account))
            await charge(together(child, child), account)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
        assert [trace() for trace in traces] == [None]

    with no_collector():
        run_trio(main)


@pytest.mark.parametrize("to_thread", [True, False], ids=["to_thread", "run_in_executor"])
def test_threads_are_not_charged(to_thread: bool, run_asyncio: Run, clock: Clock) -> None:
    """What runs in a worker thread, with the context of the work, is not time on the loop."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        suspended = threading.Event()

        def busy() -> Account | None:
            assert suspended.wait(10)
            clock.advance(100)
            return current_account.get()

        loop.call_soon(suspended.set)  # runs when this step is over
        if to_thread:
            assert await asyncio.to_thread(busy) is current_account.get()
        else:
            await loop.run_in_executor(None, busy)
        clock.advance(1)

    assert charged(run_asyncio, clock, work) == 1


def test_trio_threads_are_not_charged(run_trio: Run, clock: Clock) -> None:
    """What runs in a worker thread of trio's is not time on the loop."""
    import trio

    async def work() -> None:
        suspended = threading.Event()

        def busy() -> Account | None:
            assert suspended.wait(10)
            clock.advance(100)
            return current_account.get()

        async with trio.open_nursery() as nursery:

            async def let_it() -> None:
                await trio.testing.wait_all_tasks_blocked()
                suspended.set()

            nursery.start_soon(let_it)
            assert await trio.to_thread.run_sync(busy) is current_account.get()
        clock.advance(1)

    assert charged(run_trio, clock, work) == 1


def test_children_are_announced_to_observers(run: Run, clock: Clock) -> None:
    """Observers of the account hear of the children's steps, each begun before it is ended."""
    log: list[object] = []

    class Recorder:
        def step_started(self, account: Account) -> None:
            log.append("started")

        def step_ended(self, account: Account, duration_ns: int) -> None:
            log.append(duration_ns / 1e9)

    async def child() -> None:
        clock.advance(3)
        await checkpoint()
        clock.advance(4)

    async def main() -> None:
        account = new_account()
        account.join(Recorder())
        await charge(together(child), account, clock())

    run(main)
    assert log[::2] == ["started"] * (len(log) // 2)
    assert [duration for duration in log[1::2] if duration] == [3, 4]


def test_an_observer_that_joins_in_a_child_is_told_of_its_step(run: Run, clock: Clock) -> None:
    """Of its beginning when it joins, then of each step's beginning and end."""
    log: list[str] = []

    class Recorder:
        def step_started(self, account: Account) -> None:
            log.append("started")

        def step_ended(self, account: Account, duration_ns: int) -> None:
            log.append("ended")

    async def child() -> None:
        account = current_account.get()
        assert account is not None
        account.join(Recorder())
        await checkpoint()

    run(lambda: charge(together(child)))
    assert len(log) >= 4
    assert log == ["started", "ended"] * (len(log) // 2)


# Failing and cancelled children


def test_a_child_that_fails_raises_its_own_exception(run_asyncio: Run, clock: Clock) -> None:
    """The exception of a child reaches whoever awaits it, the same object; the step is charged."""
    error = Trouble()

    async def child() -> None:
        await checkpoint()
        clock.advance(2)
        raise error

    async def work() -> None:
        with pytest.raises(Trouble) as caught:
            await asyncio.ensure_future(child())
        assert caught.value is error

    assert charged(run_asyncio, clock, work) == 2


def test_a_child_that_is_cancelled_is_charged_for_its_cleanup(
    run_asyncio: Run, clock: Clock
) -> None:
    """A cancellation arrives in the child, with its message, and what the child then does is charged."""
    seen: list[object] = []

    async def child() -> None:
        try:
            await forever()
        except asyncio.CancelledError as error:
            seen.append(error.args)
            clock.advance(5)
            raise

    async def work() -> None:
        task = asyncio.ensure_future(child())
        await checkpoint()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    assert charged(run_asyncio, clock, work) == 5
    assert seen == [("enough",)]


def test_a_child_that_is_cancelled_after_its_work(run_asyncio: Run, clock: Clock) -> None:
    """A child that outlives its work is cancelled as any task is, uncharged."""

    async def main() -> None:
        async def child() -> None:
            try:
                await forever()
            finally:
                clock.advance(5)

        async def work() -> asyncio.Future[None]:
            task = asyncio.ensure_future(child())
            await checkpoint()
            tasks.append(task)
            return task

        tasks: list[asyncio.Future[None]] = []
        account = await charge(work(), started_ns=clock())
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert account.loop_ns == 0

    run_asyncio(main)


def test_a_trio_child_that_fails_or_is_cancelled_is_charged(run_trio: Run, clock: Clock) -> None:
    """The last step of a child counts, however it ends."""
    import trio

    async def cancelled() -> None:
        try:
            await forever()
        finally:
            clock.advance(2)

    async def failing() -> None:
        await trio.testing.wait_all_tasks_blocked()
        clock.advance(3)
        raise Trouble

    async def work() -> None:
        with pytest.raises(BaseException, match="nursery") as caught:
            await together(cancelled, failing)
        assert [type(error) for error in caught.value.exceptions] == [Trouble]  # type: ignore[attr-defined]

    assert charged(run_trio, clock, work) == 5


# trio


def test_a_trio_nursery_that_starts_a_task_with_a_status(run_trio: Run, clock: Clock) -> None:
    """`nursery.start` is followed as `start_soon` is, and the names of the tasks stay."""
    import trio

    async def child(task_status: Any) -> None:
        clock.advance(1)
        await checkpoint()
        task_status.started(trio.lowlevel.current_task().name)
        clock.advance(1)
        await checkpoint()
        clock.advance(1)

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            assert await nursery.start(child, name="given") == "given"

    assert charged(run_trio, clock, work) == 3


def test_each_run_of_trio_is_followed(run_trio: Run, clock: Clock) -> None:
    """Following is a matter of one run: the next one has it anew, and a second call adds nothing."""

    async def child() -> None:
        clock.advance(1)

    async def work() -> None:
        follow_children()
        await together(child)

    assert [charged(run_trio, clock, work) for _ in range(2)] == [1, 1]


# Without a loop


def test_following_needs_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any loop there is nothing to follow, and the message says so."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    with pytest.raises(RuntimeError, match="running asyncio or trio loop"):
        follow_children()


def test_following_needs_a_loop_where_trio_is_loaded(run_trio: Run) -> None:
    """That trio has been imported does not mean that it runs."""
    run_trio(checkpoint)
    with pytest.raises(RuntimeError):
        follow_children()
