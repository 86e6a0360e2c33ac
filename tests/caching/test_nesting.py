"""Calls that ask for other values: circles are found, and what is none is left alone."""

from __future__ import annotations

import sys
import weakref

import pytest

from asgi_perfkit import cached, run_in_threadpool
from tests.caching.slow import Slow, asking
from tests.conftest import Run
from tests.support import Trouble, checkpoint, no_collector, together
from tests.threads.conftest import Form
from tests.threads.gates import Signal, Task, spawn


def test_a_call_that_asks_for_its_own_value_is_told(run: Run) -> None:
    async def main() -> None:
        @cached(60)
        async def load(key: int) -> int:
            return await load(key)

        with pytest.raises(RuntimeError, match=r"load waits for itself: .*load -> .*load\."):
            await load(1)

    run(main)


def test_so_is_a_circle_of_calls_that_were_begun_by_different_tasks(run: Run) -> None:
    async def main() -> None:
        both = [Signal(), Signal()]

        @cached(60)
        async def one() -> str:
            both[0].set()
            await both[1].wait()
            return await other()

        @cached(60)
        async def other() -> str:
            both[1].set()
            await both[0].wait()
            return await one()

        tasks = [spawn(one), spawn(other)]
        for task in tasks:
            await task.join()
            assert isinstance(task.error, RuntimeError)
            assert "waits for itself" in str(task.error)
            assert "one" in str(task.error)
            assert "other" in str(task.error)

    run(main)


def test_a_circle_through_a_thread(run: Run) -> None:
    async def main() -> None:
        @cached(60)
        def plain() -> object:
            return inner()

        @cached(60)
        async def outer() -> object:
            return await run_in_threadpool(plain)

        @cached(60)
        def inner() -> object:
            return plain()

        with pytest.raises(RuntimeError, match="plain waits for itself"):
            await outer()

    run(main)


def test_recursion_with_other_keys_is_none(run: Run) -> None:
    async def main() -> None:
        @cached(60)
        async def fibonacci(n: int) -> int:
            return n if n < 2 else await fibonacci(n - 1) + await fibonacci(n - 2)

        assert await fibonacci(30) == 832040
        assert fibonacci.cache_info().misses == 31

    run(main)


def test_calls_may_be_nested_deeper_than_functions(run: Run) -> None:
    async def main() -> None:
        depth = 2 * sys.getrecursionlimit()
        bottom = Signal()

        @cached(60)
        async def down(n: int) -> int:
            if n == 0:
                bottom.set()
                await checkpoint()
            elif n == depth:
                tasks = await asking(1, lambda: down(n - 1), spawn)
                await bottom.wait()
                await down(n - 1)
                return await tasks[0].result() + 1
            return await down(n - 1) + 1 if n else 0

        assert await down(depth) == depth

    run(main)


def test_a_diamond_is_no_circle(run: Run) -> None:
    async def main() -> None:
        @cached(60)
        async def base() -> int:
            await checkpoint()
            calls.append(1)
            return 1

        @cached(60)
        async def side(_: str) -> int:
            return await base() + 1

        @cached(60)
        async def top() -> int:
            total = 0

            async def add(name: str) -> None:
                nonlocal total
                part = await side(name)
                total += part

            await together(lambda: add("left"), lambda: add("right"), lambda: add("left"))
            return total

        calls: list[int] = []
        assert await top() == 6
        assert len(calls) == 1

    run(main)


def test_what_a_call_has_left_running_may_ask_for_its_value(run: Run) -> None:
    async def main() -> None:
        go = Signal()

        @cached(60)
        async def load() -> Task:
            return spawn(again)

        async def again() -> object:
            await go.wait()
            return await load()

        task = await load()
        load.cache_clear()
        go.set()
        assert isinstance(await task.result(), Task)

    run(main)


def test_what_a_call_has_left_running_may_ask_for_what_waits_for_it(run: Run) -> None:
    """It is no part of the call any more, although those who wait for that have not been woken yet."""

    async def main() -> None:
        left: list[Task] = []

        @cached(60)
        async def inner() -> str:
            left.append(spawn(outer))
            return "value"

        @cached(60)
        async def outer() -> str:
            return await inner()

        assert await outer() == "value"
        assert await left[0].result() == "value"

    run(main)


def test_a_call_that_waits_no_longer_closes_no_circle(form: Form) -> None:
    async def main() -> None:
        waiting, no_longer = Signal(), Signal()

        @cached(60)
        async def one() -> str:
            task = form.spawn(other)
            waiting.set()
            for _ in range(3):
                await checkpoint()
            task.cancel()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            no_longer.set()
            for _ in range(6):
                await checkpoint()
            return "one"

        @cached(60)
        async def other() -> str:
            await no_longer.wait()
            return await one() + " and other"

        tasks = await asking(1, other, spawn)
        tasks += await asking(1, one, spawn)
        await waiting.wait()
        assert [await task.result() for task in tasks] == ["one and other", "one"]

    form.run(main)


def test_a_plain_function_in_a_call_is_part_of_it_until_it_returns(run: Run) -> None:
    async def main() -> None:
        @cached(60)
        def plain() -> int:
            return 1

        @cached(60)
        async def load() -> int:
            return plain() + await load()

        with pytest.raises(RuntimeError, match="load waits for itself"):
            await load()

    run(main)


def test_what_a_call_has_left_running_does_not_keep_its_value(run: Run) -> None:
    async def main() -> None:
        go = Signal()
        left: list[Task] = []

        class Value: ...

        @cached(60)
        async def load() -> Value:
            left.append(spawn(go.wait))
            return Value()

        gone = weakref.ref(await load())
        with no_collector():
            load.cache_clear()
            await checkpoint()
            assert gone() is None
        go.set()
        await left[0].result()

    run(main)


def test_the_last_who_fails_lets_go_of_the_error(run: Run) -> None:
    async def main() -> None:
        slow = Slow(Trouble())
        func = cached(60)(slow.run)
        tasks = await asking(3, func, spawn)
        gone = weakref.ref(slow.outcome)
        with no_collector():
            slow.go.set()
            for task in tasks:
                await task.join()
            slow.outcome = None
            while tasks:
                task = tasks.pop()
                task.error = None
                del task
            for _ in range(3):
                await checkpoint()
            assert gone() is None

    run(main)
