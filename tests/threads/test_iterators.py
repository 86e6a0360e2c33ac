"""Blocking iterators, advanced in worker threads."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_perfkit import (
    ThreadLimiter,
    contextmanager_in_threadpool,
    iterate_in_threadpool,
    run_in_threadpool,
)
from asgi_perfkit.exceptions import ConfigurationTypeError
from tests.conftest import EVERY_LOOP, Run
from tests.support import Trouble, checkpoint, forever
from tests.threads.conftest import Form, workers
from tests.threads.gates import Gate, Signal, Task, here, is_free, spawn, turns

AHEAD = 64  # how many items may be fetched before they are asked for

var: ContextVar[str] = ContextVar("var", default="nothing")


def contexts(error: BaseException) -> list[BaseException]:
    """The exceptions that were being handled when it was raised, the nearest first."""
    found = []
    context = error.__context__
    while context is not None:
        found.append(context)
        context = context.__context__
    return found


def raiser(error: BaseException) -> Callable[[], object]:
    """A function that raises."""

    def fail() -> None:
        raise error

    return fail


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


class Numbers:
    """A generator of numbers that tells what becomes of it.

    :param gates: what it has to pass on its way to a number.
    :param count: of numbers, at the most.
    :param error: raised behind the last.
    :param at_the_end: called by its ``finally``.
    :ivar made: how many numbers there have been.
    :ivar ends: what was raised into it or by it, each time that its ``finally`` ran: once.
    :ivar ended: set behind its ``finally``.
    :ivar threads: in which it ran.
    """

    def __init__(
        self,
        gates: dict[int, Gate] | None = None,
        count: int = 1_000_000,
        error: BaseException | None = None,
        at_the_end: Callable[[], object] = bool,
    ) -> None:
        self.made = 0
        self.ends: list[BaseException | None] = []
        self.ended = Signal()
        self.threads: set[threading.Thread] = set()
        self._gates = gates or {}
        self._count = count
        self._error = error
        self._at_the_end = at_the_end

    def __iter__(self) -> Generator[int, None, None]:
        try:
            for number in range(self._count):
                self.threads.add(here())
                if number in self._gates:
                    self._gates[number]()
                self.made += 1
                yield number
            if self._error is not None:
                raise self._error
        finally:
            self.threads.add(here())
            self.ends.append(sys.exc_info()[1])
            self._at_the_end()
            self.ended.set()


# ---- the items


@pytest.mark.parametrize("loop", EVERY_LOOP)
@given(items=st.lists(st.integers(), max_size=300))
def test_all_items_in_their_order(loop: str, items: list[int]) -> None:
    """However many, as from the iterable itself."""

    async def main() -> None:
        assert await collected(iterate_in_threadpool(items)) == items
        assert await collected(iterate_in_threadpool(iter(items))) == items
        assert await collected(iterate_in_threadpool(item for item in items)) == items

    EVERY_LOOP[loop](main)


@pytest.mark.parametrize("loop", EVERY_LOOP)
@given(count=st.integers(0, 200), kind=st.sampled_from([Trouble, KeyboardInterrupt, SystemExit]))
def test_items_before_an_error_come_first(loop: str, count: int, kind: type[BaseException]) -> None:
    """Then the error is raised, the same object, once; and then there is nothing more."""
    error = kind("behind the last")

    async def main() -> None:
        numbers = Numbers(count=count, error=error)
        items = iterate_in_threadpool(numbers)
        for number in range(count):
            assert await items.__anext__() == number
        with pytest.raises(kind) as caught:
            await items.__anext__()
        assert caught.value is error
        assert await collected(items) == []
        assert numbers.ends == [error]

    EVERY_LOOP[loop](main)


@pytest.mark.parametrize("loop", EVERY_LOOP)
@given(slow=st.sets(st.integers(0, 40)), count=st.integers(0, 40), fails=st.booleans())
def test_a_slow_item_does_not_hold_back_those_before_it(
    loop: str, slow: set[int], count: int, fails: bool
) -> None:
    """Wherever there are slow ones: what came before is there while the slow one is still on its way."""
    gates = {number: Gate() for number in sorted(slow)}

    async def main() -> None:
        found: list[int] = []

        def open_next() -> None:
            if len(found) in gates:  # only now, with all before it received
                gates[len(found)].open()

        numbers = Numbers(gates, count, Trouble() if fails else None)
        open_next()
        with suppress(Trouble):
            async for number in iterate_in_threadpool(numbers):
                found.append(number)
                open_next()
        assert found == list(range(count))

    EVERY_LOOP[loop](main)


def test_a_slow_item_behind_a_wait_for_a_token(run: Run, limiter: ThreadLimiter) -> None:
    """It does not hold back those before it either when the thread comes late: there, for want of a token."""

    async def main() -> None:
        with Gate() as slow, Gate() as other:
            items = iterate_in_threadpool(Numbers({2: slow}, 3), limiter=limiter)
            assert await items.__anext__() == 0
            task = spawn(lambda: run_in_threadpool(other, limiter=limiter))
            await other.reached()
            following = spawn(items.__anext__)
            while limiter.statistics().tasks_waiting != 1:
                await checkpoint()
            # Longer than the iteration has patience with a thread that has begun.
            for _ in range(20):
                await run_in_threadpool(threading.Event().wait, 0.0005)
            other.open()
            assert await following.result() == 1
            slow.open()
            assert await collected(items) == [2]
            await task.result()

    run(main)


def test_it_reads_ahead_a_little(run: Run) -> None:
    """Fast items are fetched many at a time, and never more than 64 before they are asked for."""
    visits: list[None] = []
    limiter = ThreadLimiter(1, before=lambda: visits.append(None))
    numbers = Numbers(count=10_000)

    async def main() -> None:
        taken = 0
        async for number in iterate_in_threadpool(numbers, limiter=limiter):
            assert number == taken
            assert numbers.made <= taken + AHEAD
            taken += 1
            if number % 100 == 0:  # whatever is read ahead can be read now
                await run_in_threadpool(int)
                assert numbers.made <= taken + AHEAD

    run(main)
    assert numbers.made == 10_000
    assert len(visits) < 5_000


def test_nothing_is_read_before_the_first_item_is_asked_for(run: Run) -> None:
    """Neither the iterator is made nor a thread used; who never asks leaves nothing behind."""
    numbers = Numbers()

    async def main() -> None:
        await iterate_in_threadpool(numbers).aclose()
        iterate_in_threadpool(numbers)
        await turns()
        assert workers() == []

    run(main)
    assert (numbers.made, numbers.threads) == (0, set())


def test_the_loop_has_its_turns(run: Run) -> None:
    """Others run while a consumer that never waits takes items that come fast."""
    laps = 0

    async def lap() -> None:
        nonlocal laps
        while not over.is_set():
            laps += 1
            await checkpoint()

    async def main() -> None:
        task = spawn(lap)
        async for _ in iterate_in_threadpool(range(2_000)):
            pass
        over.set()
        await task.result()

    over = Signal()
    run(main)
    assert laps > 30


def test_the_iterator_itself_is_made_in_a_thread(run: Run) -> None:
    """`__iter__` may block, too, and what it raises is raised."""

    class Lazy:
        def __iter__(self) -> Iterator[int]:
            threads.append(here())
            return iter([1, 2])

    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise Trouble("iter")

    threads: list[threading.Thread] = []

    async def main() -> None:
        assert await collected(iterate_in_threadpool(Lazy())) == [1, 2]
        assert threads != [here()]
        with pytest.raises(Trouble, match="iter"):
            await collected(iterate_in_threadpool(Broken()))

    run(main)
    assert len(threads) == 1


def test_an_iterator_that_has_ended_is_left_alone(run: Run) -> None:
    """It is asked once for what comes behind its last item."""
    asked: list[int] = []

    class Three:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            asked.append(len(asked))
            if len(asked) > 3:
                raise StopIteration("value")
            return asked[-1]

    async def main() -> None:
        items = iterate_in_threadpool(Three())
        assert await collected(items) == [0, 1, 2]
        assert await collected(items) == []

    run(main)
    assert len(asked) == 4


def test_stop_iteration_inside(run: Run) -> None:
    """One that escapes in a generator is a RuntimeError there, as it is for a `for` statement; as an item it is one."""

    def generator() -> Iterator[int]:
        yield 1
        raise StopIteration("inside")  # noqa: PLR1708

    async def main() -> None:
        items = iterate_in_threadpool(generator())
        assert await items.__anext__() == 1
        with pytest.raises(RuntimeError, match="generator raised StopIteration"):
            await items.__anext__()
        stops = [StopIteration(1), StopAsyncIteration(2)]
        assert await collected(iterate_in_threadpool(stops)) == stops

    run(main)


def test_an_iterator_that_raises_stop_async_iteration(run: Run) -> None:
    """No asynchronous generator can raise one: it is the cause of a RuntimeError, and no end of the iteration."""
    stop = StopAsyncIteration("inside")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopAsyncIteration") as caught:
            await collected(iterate_in_threadpool(Numbers(count=3, error=stop)))
        assert caught.value.__cause__ is stop

    run(main)


def test_the_contexts_of_an_error_are_kept(run: Run) -> None:
    """And what is being handled where the iteration is awaited comes behind them."""

    def generator() -> Iterator[int]:
        yield 1
        try:
            raise Trouble("first")
        except Trouble:
            raise Trouble("second")  # noqa: B904

    async def main() -> None:
        outside = Trouble("outside")
        try:
            raise outside
        except Trouble:
            with pytest.raises(Trouble, match="second") as caught:
                await collected(iterate_in_threadpool(generator()))
            assert contexts(caught.value)[1:] == [outside]

    run(main)


# ---- the end


async def exhaust(items: Any) -> None:
    async for _ in items:
        pass


async def take_one_and_close(items: Any) -> None:
    assert await items.__anext__() == 0
    await items.aclose()


async def break_in_aclosing(items: Any) -> None:
    async with aclosing(items):
        async for _ in items:
            break


async def raise_in_aclosing(items: Any) -> None:
    with suppress(Trouble):
        async with aclosing(items):
            async for _ in items:
                raise Trouble


async def throw(items: Any) -> None:
    assert await items.__anext__() == 0
    with pytest.raises(Trouble):
        await items.athrow(Trouble())


ENDINGS = [exhaust, take_one_and_close, break_in_aclosing, raise_in_aclosing, throw]


@pytest.mark.parametrize("same_thread", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_generator_is_closed_at_once(run: Run, ending: Any, same_thread: bool) -> None:
    """Its `finally` has run, once and in a worker thread, when the iteration has ended, in whichever way."""
    numbers = Numbers(count=100)

    async def main() -> None:
        await ending(iterate_in_threadpool(iter(numbers), same_thread=same_thread))
        (error,) = numbers.ends
        assert isinstance(error, GeneratorExit) is (ending is not exhaust)
        assert here() not in numbers.threads
        assert len(numbers.threads) == 1 or not same_thread

    run(main)


@pytest.mark.parametrize("same_thread", [False, True])
def test_the_generator_is_closed_after_a_plain_break(run: Run, same_thread: bool) -> None:
    """When the asynchronous generator is dropped: with the last reference to it, and in a worker thread."""
    numbers = Numbers()

    async def main() -> None:
        async for number in iterate_in_threadpool(iter(numbers), same_thread=same_thread):
            if number == 5:
                break
        await numbers.ended.wait()
        assert here() not in numbers.threads
        assert [type(error) for error in numbers.ends] == [GeneratorExit]
        assert len(numbers.threads) == 1 or not same_thread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # which trio gives for it
        run(main)


def test_the_generator_of_a_task_that_is_forgotten(run_asyncio: Run) -> None:
    """The garbage collector finds both at once; the generator is closed in a worker thread all the same."""
    numbers = Numbers()
    inside = Signal()

    async def wait_for_nothing() -> None:
        async for _ in iterate_in_threadpool(numbers):
            inside.set()
            await forever()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it is told of the task
        task = asyncio.ensure_future(wait_for_nothing())
        await inside.wait()
        del task
        gc.collect()
        await numbers.ended.wait()
        assert here() not in numbers.threads

    run_asyncio(main)
    assert [type(error) for error in numbers.ends] == [GeneratorExit]


def test_the_generator_is_closed_when_the_loop_ends(run: Run) -> None:
    """Although somebody still holds the asynchronous generator."""
    numbers = Numbers()

    async def main() -> Any:
        items = iterate_in_threadpool(numbers)
        assert await items.__anext__() == 0
        return items

    held = run(main)
    assert [type(error) for error in numbers.ends] == [GeneratorExit]
    assert here() not in numbers.threads
    del held


def test_the_exit_does_not_wait_for_a_token(run: Run, limiter: ThreadLimiter) -> None:
    """A generator is closed although calls have taken all tokens."""
    numbers = Numbers()

    async def main() -> None:
        with Gate() as gate:
            items = iterate_in_threadpool(numbers, limiter=limiter)
            assert await items.__anext__() == 0
            task = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            await items.aclose()
            assert len(numbers.ends) == 1
            gate.open()
            await task.result()

    run(main)


@pytest.mark.parametrize("ending", [take_one_and_close, break_in_aclosing])
def test_a_finally_that_raises(run: Run, ending: Any) -> None:
    """What it raises is raised by what has ended the iteration."""
    trouble = Trouble("finally")

    async def main() -> None:
        with pytest.raises(Trouble) as caught:
            await ending(iterate_in_threadpool(Numbers(at_the_end=raiser(trouble))))
        assert caught.value is trouble

    run(main)


def test_a_generator_that_will_not_end(run: Run) -> None:
    """Says so, as for its own `close()`."""

    def generator() -> Iterator[int]:
        try:
            yield 0
        finally:
            yield 1

    async def main() -> None:
        with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
            await take_one_and_close(iterate_in_threadpool(generator()))

    run(main)


def test_what_is_no_generator_is_not_closed(run: Run, tmp_path: Path) -> None:
    """A file stays open, as behind a `for` statement."""
    path = tmp_path / "lines"
    path.write_text("".join(f"{number}\n" for number in range(1_000)))

    async def main() -> None:
        with path.open() as file:
            items = iterate_in_threadpool(file)
            assert await items.__anext__() == "0\n"
            await items.aclose()
            assert not file.closed

    run(main)


def test_iterated_twice(run: Run) -> None:
    """A second iteration over what the first has ended finds nothing; over what can begin anew, all."""

    async def main() -> None:
        generator = iter(Numbers(count=3))
        assert await collected(iterate_in_threadpool(generator)) == [0, 1, 2]
        assert await collected(iterate_in_threadpool(generator)) == []
        numbers = [1, 2]
        assert await collected(iterate_in_threadpool(numbers)) == [1, 2]
        assert await collected(iterate_in_threadpool(numbers)) == [1, 2]

    run(main)


# ---- cancellation


async def consume(items: Any, body: Callable[[int], Any] | None = None) -> None:
    async for number in items:
        if body is not None:
            await body(number)
        await checkpoint()


@pytest.mark.parametrize("begun", [False, True])
def test_cancelled_while_waiting_for_a_token(
    form: Form, limiter: ThreadLimiter, begun: bool
) -> None:
    """It leaves at once, and a generator that has begun is closed, although there is still no token."""
    numbers = Numbers()

    async def main() -> None:
        with Gate() as gate:
            items = iterate_in_threadpool(numbers, limiter=limiter)
            if begun:
                assert await items.__anext__() == 0
            other = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            task = form.spawn(lambda: consume(items))
            while limiter.statistics().tasks_waiting != 1:
                await checkpoint()
            task.cancel()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert gate.inside == 1
            assert limiter.statistics().tasks_waiting == 0
            assert len(numbers.ends) == begun
            gate.open()
            await other.result()

    form.run(main)
    assert numbers.made == begun


@pytest.mark.parametrize("same_thread", [False, True])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("position", [0, 1, 5])
def test_cancelled_in_a_step(
    form: Form, limiter: ThreadLimiter, position: int, times: int, same_thread: bool
) -> None:
    """It waits for the step, then the generator is closed, and then the caller learns of it."""

    async def main() -> None:
        with Gate() as step, Gate() as closing:
            numbers = Numbers({position: step}, at_the_end=closing)
            waits_for_the_step = Signal()

            async def take() -> None:
                items = iterate_in_threadpool(numbers, limiter=limiter, same_thread=same_thread)
                for number in range(position):
                    assert await items.__anext__() == number
                waits_for_the_step.set()
                await items.__anext__()
                await checkpoint()

            task = form.spawn(take)
            await step.reached()
            await waits_for_the_step.wait()
            for _ in range(times):
                task.cancel()
                await turns()
            assert not task.ended.is_set()
            assert numbers.ends == []
            step.open()
            await closing.reached()
            await turns()
            assert not task.ended.is_set()
            task.cancel()
            await turns()
            assert not task.ended.is_set()
            closing.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert [type(error) for error in numbers.ends] == [GeneratorExit]
            assert here() not in numbers.threads
            assert len(numbers.threads) == 1 or not same_thread

    form.run(main)


def test_the_error_of_the_step_wins(form: Form, limiter: ThreadLimiter) -> None:
    """What the iterator raises while the caller is being cancelled is raised to it."""
    trouble = Trouble()

    async def main() -> None:
        with Gate() as step:

            def generator() -> Iterator[int]:
                step(trouble)
                yield 0

            task = form.spawn(lambda: consume(iterate_in_threadpool(generator(), limiter=limiter)))
            await step.reached()
            task.cancel()
            await turns()
            step.open()
            await task.join()
            assert task.error is trouble

    form.run(main)


def test_cancelled_and_the_finally_raises(form: Form, limiter: ThreadLimiter) -> None:
    """What it raises goes to the caller, with the cancellation among its contexts."""
    kinds: list[type[BaseException]] = []
    trouble = Trouble("finally")

    async def recorded(numbers: Numbers) -> None:
        try:
            await consume(iterate_in_threadpool(numbers, limiter=limiter))
        except Trouble as error:
            kinds.extend(map(type, contexts(error)))
            raise

    async def main() -> None:
        with Gate() as step:
            numbers = Numbers({0: step}, at_the_end=raiser(trouble))
            task = form.spawn(lambda: recorded(numbers))
            await step.reached()
            task.cancel()
            step.open()
            await task.join()
            assert task.error is trouble
            assert kinds == [GeneratorExit, form.cancelled]

    form.run(main)


@pytest.mark.parametrize("same_thread", [False, True])
def test_cancelled_in_the_body(form: Form, limiter: ThreadLimiter, same_thread: bool) -> None:
    """With `aclosing` the generator has been closed when the caller learns of it."""

    async def main() -> None:
        inside = Signal()
        with Gate() as closing:
            numbers = Numbers(at_the_end=closing)

            async def body(number: int) -> None:
                if number == 5:
                    inside.set()
                    await forever()

            async def closed() -> None:
                items = iterate_in_threadpool(numbers, limiter=limiter, same_thread=same_thread)
                async with aclosing(items):
                    await consume(items, body)

            task = form.spawn(closed)
            await inside.wait()
            task.cancel()
            await closing.reached()
            task.cancel()
            await turns()
            assert not task.ended.is_set()
            closing.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert [type(error) for error in numbers.ends] == [GeneratorExit]

    form.run(main)


@pytest.mark.parametrize("same_thread", [False, True])
def test_cancelled_at_random(form: Form, limiter: ThreadLimiter, same_thread: bool) -> None:
    """Whenever it comes: each generator that has begun is closed once, in a worker thread, and all tokens are back."""
    dice = random.Random(11)
    limiter.total_tokens = 3
    every: list[Numbers] = []

    async def use(numbers: Numbers) -> None:
        items = iterate_in_threadpool(numbers, limiter=limiter, same_thread=same_thread)
        async with aclosing(items):
            await consume(items)

    async def main() -> None:
        for _ in range(20):
            tasks: list[Task] = []
            for _ in range(8):
                every.append(numbers := Numbers(count=dice.randrange(100)))
                tasks.append(form.spawn(lambda numbers=numbers: use(numbers)))
                for _ in range(dice.randrange(20)):
                    await checkpoint()
                for _ in range(dice.randrange(3)):
                    dice.choice(tasks).cancel()
            for task in tasks:
                await task.join()
                assert task.error is None or isinstance(task.error, form.cancelled)

    loop_thread = here()
    form.run(main)
    assert {len(numbers.ends) for numbers in every} <= {0, 1}
    assert all(numbers.ends for numbers in every if numbers.threads)
    assert not any(loop_thread in numbers.threads for numbers in every)
    assert any(isinstance(error, GeneratorExit) for n in every for error in n.ends)


# ---- context, threads, tokens


def test_all_steps_share_one_context(run: Run) -> None:
    """A copy of the caller's at the first step: what one step sets the next one sees, and `finally` can reset it."""

    def generator() -> Iterator[str]:
        assert var.get() == "by the caller"
        token = var.set("by the first step")
        try:
            for number in range(200):
                yield var.get()
                var.set(f"by step {number}")
        finally:
            var.reset(token)
            ends.append(var.get())

    ends: list[str] = []

    async def main() -> None:
        items = iterate_in_threadpool(generator())
        var.set("by the caller")
        found = []
        async for item in items:
            var.set("by the body")
            found.append(item)
        assert found == ["by the first step", *(f"by step {number}" for number in range(199))]
        assert var.get() == "by the body"
        var.set("by the caller")
        await take_one_and_close_any(iterate_in_threadpool(generator()))
        assert ends == ["by the caller"] * 2

    async def take_one_and_close_any(items: Any) -> None:
        await items.__anext__()
        await items.aclose()

    run(main)


def test_a_cursor_of_sqlite(run: Run) -> None:
    """Opened, read and closed in one thread, that does nothing else meanwhile."""
    others: set[threading.Thread] = set()

    def rows() -> Iterator[int]:
        connection = sqlite3.connect(":memory:")
        threads.append(here())
        try:
            connection.execute("create table t (n)")
            connection.executemany("insert into t values (?)", [(n,) for n in range(300)])
            for (number,) in connection.execute("select n from t"):
                yield number
        finally:
            threads.append(here())
            connection.close()

    threads: list[threading.Thread] = []

    async def main() -> None:
        for stop in (None, 100):
            async with aclosing(iterate_in_threadpool(rows(), same_thread=True)) as items:
                found = []
                async for number in items:
                    found.append(number)
                    if number == stop:
                        break
                    if number % 10 == 0:
                        others.add(await run_in_threadpool(here))
            assert found == list(range(300 if stop is None else 101))
        assert threads[0] is threads[1]
        assert threads[2] is threads[3]
        assert not others & {here()}

    run(main)


def test_its_thread_is_its_own_until_the_end(run: Run) -> None:
    """Others run elsewhere meanwhile, and may have it afterwards."""
    numbers = Numbers(count=5)

    async def main() -> None:
        items = iterate_in_threadpool(numbers, same_thread=True)
        assert await items.__anext__() == 0
        (thread,) = numbers.threads
        for _ in range(10):
            assert await run_in_threadpool(here) is not thread
        await items.aclose()
        assert numbers.threads == {thread}
        assert await is_free(thread)

    run(main)


def test_in_the_body_of_a_manager_it_has_the_thread_of_that(run: Run) -> None:
    """Which keeps it when the iteration has ended, in whichever way."""
    ran_in: list[threading.Thread] = []

    class Noting:
        def __enter__(self) -> None:
            ran_in.append(here())

        def __exit__(self, *_: object) -> None:
            ran_in.append(here())

    async def main() -> None:
        async with contextmanager_in_threadpool(Noting(), same_thread=True):
            for ending in ENDINGS:
                numbers = Numbers(count=100)
                await ending(iterate_in_threadpool(iter(numbers), same_thread=True))
                assert numbers.threads == set(ran_in)
                assert len(numbers.ends) == 1
                assert await run_in_threadpool(here) not in ran_in
            assert await run_in_threadpool(here, same_thread=True) is ran_in[0]
        assert ran_in[0] is ran_in[1]

    run(main)


def test_no_token_is_held_between_visits(run: Run, limiter: ThreadLimiter) -> None:
    """The body can make calls of its own with the only token, and it is free when an item has been asked for alone."""

    async def main() -> None:
        items = iterate_in_threadpool(Numbers(count=300), limiter=limiter)
        assert await items.__anext__() == 0
        assert limiter.borrowed_tokens == 0
        async for _ in items:
            await run_in_threadpool(int, limiter=limiter)
        assert limiter.borrowed_tokens == 0

    run(main)


def test_each_visit_takes_a_token(run: Run, limiter: ThreadLimiter) -> None:
    """Ten at once with one token never run two steps at the same time."""
    running = most = 0
    lock = threading.Lock()

    def generator() -> Iterator[int]:
        nonlocal running, most
        for number in range(200):
            with lock:
                running += 1
                most = max(most, running)
            with lock:
                running -= 1
            yield number

    async def main() -> None:
        tasks = [
            spawn(lambda: collected(iterate_in_threadpool(generator(), limiter=limiter)))
            for _ in range(10)
        ]
        for task in tasks:
            assert await task.result() == list(range(200))

    run(main)
    assert most == 1


def test_hooks_run_around_each_visit(run: Run) -> None:
    """In its thread: before the items of it are fetched, and behind the last of them."""
    told: list[str] = []
    limiter = ThreadLimiter(
        1, before=lambda: told.append("before"), after=lambda: told.append("after")
    )

    def generator() -> Iterator[int]:
        try:
            for number in range(3):
                told.append("item")
                yield number
        finally:
            told.append("end")

    async def main() -> None:
        await take_one_and_close(iterate_in_threadpool(generator(), limiter=limiter))

    run(main)
    assert told == ["before", "item", "after", "before", "end", "after"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_hooks_run_once_for_the_same_thread(run: Run, ending: Any) -> None:
    """Before the first step and after the last, in its thread, in whichever way it ends."""
    told: list[str] = []
    threads: set[threading.Thread] = set()

    def teller(what: str) -> Callable[[], None]:
        def tell() -> None:
            told.append(what)
            threads.add(here())

        return tell

    limiter = ThreadLimiter(1, before=teller("before"), after=teller("after"))
    numbers = Numbers(count=300, at_the_end=teller("end"))

    async def main() -> None:
        await ending(iterate_in_threadpool(iter(numbers), limiter=limiter, same_thread=True))

    run(main)
    assert told == ["before", "end", "after"]
    assert threads == numbers.threads


@pytest.mark.parametrize("failing", ["before", "item", "after"])
def test_hooks_for_the_same_thread_when_something_fails(run: Run, failing: str) -> None:
    """`after` runs once behind an iterator that raises, and not when `before` has raised; the error is raised."""
    told: list[str] = []

    def teller(what: str) -> Callable[[], None]:
        def tell() -> None:
            told.append(what)
            if what == failing:
                raise Trouble(what)

        return tell

    def generator() -> Iterator[int]:
        teller("item")()
        yield 0

    limiter = ThreadLimiter(1, before=teller("before"), after=teller("after"))

    async def main() -> None:
        items = iterate_in_threadpool(generator(), limiter=limiter, same_thread=True)
        with pytest.raises(Trouble, match=failing):
            await collected(items)

    run(main)
    assert told == (["before"] if failing == "before" else ["before", "item", "after"])


def test_thread_sensitive(run_asyncio: Run) -> None:
    """All steps run where asgiref's own thread-sensitive calls run, the last one, too."""
    from asgiref.sync import ThreadSensitiveContext, sync_to_async

    numbers = Numbers(count=100)

    async def main() -> None:
        async with ThreadSensitiveContext():
            thread = await sync_to_async(here, thread_sensitive=True)()
            await take_one_and_close(iterate_in_threadpool(numbers, thread_sensitive=True))
            items = iterate_in_threadpool(numbers, thread_sensitive=True)
            assert await collected(items) == list(range(100))
        assert numbers.threads == {thread}
        assert [type(error) for error in numbers.ends] == [GeneratorExit, type(None)]

    run_asyncio(main)


def test_thread_sensitive_and_cancelled_in_a_step(asyncio_form: Form) -> None:
    """It waits for the step, and the generator is closed in the same thread."""

    async def main() -> None:
        with Gate() as step:
            numbers = Numbers({1: step})
            items = iterate_in_threadpool(numbers, thread_sensitive=True)
            task = asyncio_form.spawn(lambda: consume(items))
            await step.reached()
            task.cancel()
            await turns()
            assert not task.ended.is_set()
            step.open()
            await task.join()
            assert isinstance(task.error, asyncio.CancelledError)
            assert len(numbers.ends) == len(numbers.threads) == 1

    asyncio_form.run(main)


def test_thread_sensitive_on_trio(run_trio: Run) -> None:
    """There is no such thread: refused at the first item."""
    numbers = Numbers()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="asyncio"):
            await iterate_in_threadpool(numbers, thread_sensitive=True).__anext__()

    run_trio(main)
    assert numbers.threads == set()


def test_what_was_iterated_is_let_go(run: Run) -> None:
    """When the iteration has ended nothing holds the items or the iterator, without the garbage collector."""
    import weakref

    class Item:
        pass

    refs: list[Any] = []

    def generator() -> Iterator[Item]:
        for _ in range(100):
            item = Item()
            refs.append(weakref.ref(item))
            yield item
            del item

    async def main() -> None:
        gc.collect()
        gc.disable()
        try:
            async for _ in iterate_in_threadpool(generator()):
                pass
            del _
            await run_in_threadpool(int)
            assert [ref() for ref in refs] == [None] * 100
        finally:
            gc.enable()

    run(main)


# ---- wrong arguments


class AsyncItems:
    def __aiter__(self) -> AsyncIterator[int]:
        raise AssertionError("iterated")


class OnlyNext:
    def __next__(self) -> int:
        raise AssertionError("advanced")


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (None, "__iter__"),
        (3, "__iter__"),
        (OnlyNext(), "__iter__"),
        (AsyncItems(), "async for"),
    ],
)
def test_what_cannot_be_iterated_is_refused(run: Run, wrong: Any, remedy: str) -> None:
    """At the call, with its name and the remedy, before anything is awaited; no thread is used."""

    async def main() -> None:
        with pytest.raises(ConfigurationTypeError, match=remedy) as caught:
            iterate_in_threadpool(wrong)
        assert repr(wrong) in str(caught.value)
        assert workers() == []

    run(main)


@pytest.mark.parametrize(
    "options",
    [
        {"limiter": 4},
        {"thread_sensitive": True, "limiter": ThreadLimiter(1)},
        {"thread_sensitive": True, "same_thread": True},
    ],
    ids=["no limiter", "sensitive with a limiter", "sensitive in the same thread"],
)
def test_wrong_choices_are_refused(options: Any) -> None:
    """At the call: what is no limiter, and what excludes each other."""
    with pytest.raises(ConfigurationTypeError, match="iterate_in_threadpool"):
        iterate_in_threadpool([], **options)


@pytest.mark.parametrize("same_thread", [False, True])
def test_without_a_loop(same_thread: bool) -> None:
    """A RuntimeError says that there is none."""
    items: Iterable[int] = Numbers()
    iterating: Any = iterate_in_threadpool(items, same_thread=same_thread).__anext__()
    with pytest.raises(RuntimeError, match="No event loop"):
        iterating.send(None)
