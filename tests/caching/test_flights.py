"""Async functions: who asks while a call runs, who leaves, and what becomes of the call."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from asgi_perfkit import cached
from asgi_perfkit.steps import Account, current_account, follow_children
from tests.caching.slow import Slow, asking
from tests.conftest import Run
from tests.support import Trouble, checkpoint, forever
from tests.threads.conftest import Form
from tests.threads.gates import Signal, spawn


@pytest.mark.parametrize("outcome", ["value", None, False])
def test_fifty_who_ask_make_one_call(run: Run, outcome: object) -> None:
    async def main() -> None:
        slow = Slow(outcome)
        func = cached(60)(slow.run)
        tasks = await asking(50, func, spawn)
        slow.go.set()
        assert [await task.result() for task in tasks] == [outcome] * 50
        assert await func() is outcome
        assert slow.calls == 1
        figures = func.cache_info()
        assert (figures.misses, figures.hits, figures.size) == (1, 50, 1)

    run(main)


def test_what_a_call_raises_is_raised_to_all_and_not_kept(run: Run) -> None:
    async def main() -> None:
        slow = Slow(Trouble("once"))
        func = cached(60)(slow.run)
        tasks = await asking(5, func, spawn)
        slow.go.set()
        for task in tasks:
            await task.join()
            assert task.error is slow.outcome
        assert slow.calls == 1
        slow.outcome = "well"
        assert await func() == "well"

    run(main)


def test_each_who_waits_sees_the_error_as_it_came_out_of_the_call(run: Run) -> None:
    """Neither the frames nor the exception that another request is handling show in it."""

    async def main() -> None:
        slow = Slow(Trouble())
        func = cached(60)(slow.run)
        seen: list[tuple[int, object]] = []

        async def ask() -> None:
            try:
                raise KeyError("private")
            except KeyError:
                try:
                    await func()
                except Trouble as error:
                    depth, traceback = 0, error.__traceback__
                    while traceback is not None:
                        depth, traceback = depth + 1, traceback.tb_next
                    seen.append((depth, error.__context__))

        tasks = await asking(4, ask, spawn)
        slow.go.set()
        for task in tasks:
            await task.result()
        assert len(seen) == 4
        assert {context for _, context in seen} == {None}
        depths = [depth for depth, _ in seen]
        assert max(depths) - min(depths) <= 1, "a frame was added each time"

    run(main)


def test_different_keys_are_made_at_the_same_time(run: Run, slow: Slow) -> None:
    async def main() -> None:
        func = cached(60)(slow.run)
        tasks = [spawn(lambda key=key: func(key)) for key in range(3)]
        await slow.began.wait()
        for _ in range(3):
            await checkpoint()
        assert slow.calls == 3
        slow.go.set()
        for task in tasks:
            assert await task.result() == "value"

    run(main)


# ---- leaving, in every form of cancellation


def test_the_first_who_is_cancelled_leaves_the_call_to_the_others(form: Form, slow: Slow) -> None:
    async def main() -> None:
        func = cached(60)(slow.run)
        tasks = await asking(3, func, form.spawn)
        tasks[0].cancel()
        await tasks[0].join()
        assert isinstance(tasks[0].error, form.cancelled)
        slow.go.set()
        assert [await task.result() for task in tasks[1:]] == ["value"] * 2
        assert slow.endings == ["returned"]
        assert await func() == "value"
        assert slow.calls == 1

    form.run(main)


def test_with_the_last_one_the_call_is_cancelled_and_waited_for(form: Form, slow: Slow) -> None:
    async def main() -> None:
        func = cached(60)(slow.run)
        tasks = await asking(3, func, form.spawn)
        for task in tasks:
            assert slow.endings == []
            task.cancel()
            await task.join()
            assert isinstance(task.error, form.cancelled)
        assert slow.endings == [form.cancelled.__name__]
        assert func.cache_info().size == 0
        slow.go.set()
        assert await func() == "value"
        assert slow.calls == 2

    form.run(main)


def test_who_comes_while_a_call_is_being_cancelled_makes_a_new_one(form: Form, slow: Slow) -> None:
    """The last one waits for the end of the call, however long its cleanup takes."""

    async def main() -> None:
        leaving = form.spawn(func)
        await slow.began.wait()
        leaving.cancel()
        await cleaned.wait()
        slow.go.set()
        assert await func() == "new"
        assert not leaving.ended.is_set()
        assert log == ["cancelled"]
        may_end.set()
        await leaving.join()
        assert isinstance(leaving.error, form.cancelled)
        assert log == ["cancelled", "cleaned up"]
        assert await func() == "new", "what the cancelled call returned was not kept"

    cleaned, may_end = Signal(), Signal()
    log: list[str] = []
    calls: list[int] = []

    @cached(60)
    async def func() -> str:
        calls.append(1)
        if len(calls) > 1:
            return "new"
        slow.began.set()
        try:
            await forever()
        finally:
            log.append("cancelled")
            await shielded(after_cleanup)
        return "never"

    async def after_cleanup() -> None:
        cleaned.set()
        await may_end.wait()
        log.append("cleaned up")

    form.run(main)


async def shielded(function: Callable[[], Any]) -> None:
    if asyncio._get_running_loop() is not None:
        await asyncio.shield(asyncio.ensure_future(function()))
    else:
        import trio

        with trio.CancelScope(shield=True):
            await function()


def test_what_the_cleanup_of_a_cancelled_call_raises_is_raised_to_the_last_one(form: Form) -> None:
    async def main() -> None:
        began = Signal()

        @cached(60)
        async def func() -> None:
            began.set()
            try:
                await forever()
            finally:
                raise Trouble

        task = form.spawn(func)
        await began.wait()
        task.cancel()
        await task.join()
        assert isinstance(task.error, Trouble)
        # From Python 3.13, `asyncio.timeout` puts its TimeoutError before the cancellation.
        assert isinstance(task.error.__context__, (form.cancelled, TimeoutError))

    form.run(main)


def test_a_call_that_survives_its_cancellation_is_not_kept(form: Form) -> None:
    async def main() -> None:
        began = Signal()

        @cached(60)
        async def func() -> str:
            began.set()
            try:
                await forever()
            except form.cancelled:
                return "late"
            return "never"

        task = form.spawn(func)
        await began.wait()
        task.cancel()
        await task.join()
        assert isinstance(task.error, form.cancelled)
        assert func.cache_info().size == 0

    form.run(main)


def test_a_second_cancellation_reaches_the_call(run_asyncio: Run, slow: Slow) -> None:
    async def main() -> None:
        slow.cleaning = Signal()
        task = asyncio.ensure_future(cached(60)(slow.run)())
        await slow.began.wait()
        task.cancel()
        await slow.cleaning.wait()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if sys.version_info >= (3, 11):
            assert task.cancelling() == 2

    run_asyncio(main)


def test_who_is_cancelled_when_the_value_is_there_leaves_nothing(run_asyncio: Run) -> None:
    """The value came in the same turn of the loop, and is kept."""

    async def main() -> None:
        slow = Slow()
        func = cached(60)(slow.run)
        task = asyncio.ensure_future(func())
        await slow.began.wait()
        slow.go.set()
        while not slow.endings:  # noqa: ASYNC110 - the very turn counts
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await func() == "value"
        assert slow.calls == 1

    run_asyncio(main)


def test_a_call_that_is_cancelled_from_outside_raises_that(run_asyncio: Run, slow: Slow) -> None:
    async def main() -> None:
        func = cached(60)(slow.run)
        waiting = [asyncio.ensure_future(func()) for _ in range(2)]
        await slow.began.wait()
        others = {asyncio.current_task(), *waiting}
        for task in asyncio.all_tasks() - others:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in results] == [asyncio.CancelledError] * 2
        slow.go.set()
        assert await func() == "value"

    run_asyncio(main)


def test_a_call_that_is_cancelled_before_it_begins(run_asyncio: Run, slow: Slow) -> None:
    async def main() -> None:
        func = cached(60)(slow.run)
        waiting = asyncio.ensure_future(func())
        before = asyncio.all_tasks()
        await asyncio.sleep(0)  # the call's task is there, and has not run
        (call,) = asyncio.all_tasks() - before
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert slow.calls == 0

    run_asyncio(main)


def test_a_coroutine_that_is_closed_cancels_the_call_soon(run_asyncio: Run, slow: Slow) -> None:
    async def main() -> None:
        func = cached(60)(slow.run)
        coro = func()
        coro.send(None)
        await slow.began.wait()
        coro.close()
        for _ in range(4):
            await checkpoint()
        assert slow.endings == ["CancelledError"]

    run_asyncio(main)


# ---- where it runs


def test_a_call_runs_in_the_context_of_who_asked_first(run: Run) -> None:
    async def main() -> None:
        variable: ContextVar[str] = ContextVar("variable", default="none")

        @cached(60)
        async def load() -> str:
            await checkpoint()
            seen = variable.get()
            variable.set("of the call")
            return seen

        variable.set("of the first")
        assert await load() == "of the first"
        assert variable.get() == "of the first"
        variable.set("of the second")
        assert await load() == "of the first"

    run(main)


def test_a_call_is_charged_to_who_asked_first_as_long_as_that_lasts(run: Run) -> None:
    async def main() -> None:
        follow_children()
        first, second = Account(), Account()
        slow = Slow()
        func = cached(60)(slow.run)

        async def ask(account: Account) -> object:
            current_account.set(account)
            return await func()

        tasks = [spawn(lambda: ask(first))]
        await slow.began.wait()
        tasks += await asking(1, lambda: ask(second), spawn)
        assert first.loop_ns > 0
        first.end(None)
        tasks[0].cancel()
        await tasks[0].join()
        charged = first.loop_ns
        slow.go.set()
        assert await tasks[1].result() == "value"
        assert first.loop_ns == charged

    run(main)


def test_what_ends_the_process_is_not_lost_in_a_cleanup(form: Form) -> None:
    async def main() -> None:
        began = Signal()

        @cached(60)
        async def func() -> None:
            began.set()
            try:
                await forever()
            finally:
                raise SystemExit(3)

        async def ask() -> None:
            with pytest.raises(SystemExit):
                await func()
            ended.append("told")

        task = form.spawn(ask)
        await began.wait()
        task.cancel()
        await task.join()
        assert ended == ["told"]

    ended: list[str] = []
    form.run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has eager tasks since 3.12")
def test_tasks_that_start_eagerly(run_asyncio: Run) -> None:
    async def main() -> None:
        def make(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
            return asyncio.Task(coro, loop=loop, eager_start=True, context=options.get("context"))

        asyncio.get_running_loop().set_task_factory(make)
        slow = Slow()

        @cached(60)
        async def quick(key: int) -> object:
            if key < 0:
                raise Trouble
            return key

        assert await quick(1) == await quick(1) == 1
        with pytest.raises(Trouble):
            await quick(-1)
        func = cached(60)(slow.run)
        tasks = [asyncio.ensure_future(func()) for _ in range(3)]
        slow.go.set()
        assert await asyncio.gather(*tasks) == ["value"] * 3
        assert slow.calls == 1

    run_asyncio(main)


def test_a_task_that_cannot_be_started_leaves_no_call_behind(run_asyncio: Run, slow: Slow) -> None:
    async def main() -> None:
        def refuse(_: object, coro: Any, **options: object) -> Any:
            coro.close()
            raise Trouble

        func = cached(60)(slow.run)
        loop = asyncio.get_running_loop()
        loop.set_task_factory(refuse)
        with pytest.raises(Trouble) as caught:
            await func()
        loop.set_task_factory(None)
        slow.go.set()
        assert await func() == "value"
        assert caught.value.__traceback__ is not None, "and it holds the call"

    run_asyncio(main)


def test_a_task_of_a_class_of_ones_own(run_asyncio: Run, slow: Slow) -> None:
    """A task may be any object that is awaited like one."""

    async def main() -> None:
        def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
            task = asyncio.Task(coro, loop=loop, **options)
            stand_in: Any = Stand(task)
            return stand_in

        loop = asyncio.get_running_loop()
        loop.set_task_factory(make)
        slow.go.set()
        assert await cached(60)(slow.run)() == "value"
        loop.set_task_factory(None)

    class Stand:
        """Has nothing but what a task documents."""

        __slots__ = ("_task",)

        def __init__(self, task: Any) -> None:
            self._task = task

        def set_name(self, name: object) -> None:
            self._task.set_name(name)

        def add_done_callback(self, callback: Any) -> None:
            self._task.add_done_callback(callback)

    run_asyncio(main)
