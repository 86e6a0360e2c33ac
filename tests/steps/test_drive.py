"""Driving is `await`: what holds natively, which is tested along with it, holds when driven."""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tests.steps.charging import drive, new_account
from tests.support import Trouble, ask, checkpoint, finish, forever

Awaited = Callable[[Any], Any]
Run = Callable[..., Any]


class Asking:
    """An awaitable that is no coroutine."""

    def __init__(self, question: object) -> None:
        self._question = question

    def __await__(self) -> Generator[object, Any, Any]:
        return (yield self._question)


class Counting:
    """An awaitable whose iterator is no generator: it has neither `send` nor `throw`."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def __await__(self) -> Counting:
        return self

    def __next__(self) -> int:
        if not self._left:
            raise StopIteration("counted")
        self._left -= 1
        return self._left


def contexts(error: BaseException | None) -> list[type[BaseException]]:
    """The exceptions that were being handled, from the innermost out."""
    found = []
    while error is not None:
        error = error.__context__
        found.append(type(error))
    return found[:-1]


def functions(error: BaseException) -> list[str]:
    """The functions of a traceback, but for those of the kit."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.name for frame in frames if "asgi_perfkit" not in frame.filename]


# Values


def test_what_is_yielded_and_sent_in_passes_unchanged(awaited: Awaited) -> None:
    """The loop gets the very objects that the work yields, and the work those that the loop sends."""
    questions, answers = [object(), None, object()], [object(), None, object()]
    heard = []

    async def work() -> None:
        heard.extend([await ask(question) for question in questions])

    coro = awaited(work())
    asked = [coro.send(None), coro.send(answers[0]), coro.send(answers[1])]
    with pytest.raises(StopIteration):
        coro.send(answers[2])
    assert all(one is other for one, other in zip(asked, questions, strict=True))
    assert all(one is other for one, other in zip(heard, answers, strict=True))


@pytest.mark.parametrize(
    "result",
    [None, object(), (), (1, 2), ValueError("returned"), StopIteration("returned"), StopIteration],
    ids=lambda result: type(result).__name__,
)
def test_any_result_comes_out(awaited: Awaited, result: object) -> None:
    """A result is handed over as it is: a tuple is not unpacked, an exception not raised."""

    async def work() -> object:
        return result

    assert finish(awaited(work())) is result


def test_work_that_never_suspends_is_one_step(awaited: Awaited) -> None:
    """What needs no loop needs none when driven."""

    async def work() -> str:
        return "done"

    assert finish(awaited(work())) == "done"


@pytest.mark.parametrize("make", [ask, Asking], ids=["generator", "object"])
def test_awaitables_that_are_no_coroutines(awaited: Awaited, make: Callable[[object], Any]) -> None:
    """A generator-based coroutine and an object with `__await__` are awaited as a coroutine is."""
    question, answer = object(), object()
    coro = awaited(make(question))
    assert coro.send(None) is question
    with pytest.raises(StopIteration) as stop:
        coro.send(answer)
    assert stop.value.value is answer


def test_an_iterator_that_can_only_go_on(awaited: Awaited) -> None:
    """What `__await__` returns needs no more than `__next__`."""
    coro = awaited(Counting(2))
    assert [coro.send(None), coro.send(None)] == [1, 0]
    assert finish(coro) == "counted"


def test_what_can_not_be_awaited_is_a_type_error(awaited: Awaited) -> None:
    """An app that is a plain function fails as it does without the kit."""
    with pytest.raises(TypeError, match="NoneType"):
        awaited(None).send(None)


def test_a_coroutine_is_not_awaited_twice(awaited: Awaited) -> None:
    """Work that is over already is refused with Python's own message."""

    async def work() -> None:
        pass

    spent = work()
    finish(spent)
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        awaited(spent).send(None)


def test_futures_and_tasks_are_awaited(awaited: Awaited, run_asyncio: Run) -> None:
    """A future and a task can be what an app returns."""

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "future")
        assert await awaited(future) == "future"

        async def child() -> str:
            await checkpoint()
            return "task"

        assert await awaited(asyncio.ensure_future(child())) == "task"

    run_asyncio(main)


# Exceptions


@pytest.mark.parametrize(
    "error", [Trouble(), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()], ids=repr
)
def test_what_the_work_raises_comes_out(awaited: Awaited, error: BaseException) -> None:
    """The very exception comes out, whatever it is, with the context and the cause that it had."""
    cause = Trouble("cause")

    async def work() -> None:
        await ask(None)
        try:
            raise LookupError
        except LookupError:
            raise error from cause

    coro = awaited(work())
    coro.send(None)
    with pytest.raises(type(error)) as caught:
        coro.send(None)
    assert caught.value is error
    assert caught.value.__cause__ is cause
    assert contexts(error) == [LookupError]


@pytest.mark.parametrize(
    "error",
    [Trouble(), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(), TimeoutError()],
    ids=repr,
)
def test_what_is_thrown_in_arrives(awaited: Awaited, error: BaseException) -> None:
    """The work sees the exception that the loop throws in where it waits, and it comes out of it again."""
    seen = []

    async def work() -> None:
        try:
            await ask(None)
        except BaseException as thrown:
            seen.append(type(thrown))
            raise

    coro = awaited(work())
    coro.send(None)
    with pytest.raises(type(error)) as caught:
        coro.throw(error)
    assert caught.value is error
    assert seen == [type(error)]
    assert contexts(error) == []


def test_work_may_handle_what_is_thrown_in_and_go_on(awaited: Awaited) -> None:
    """An exception that the work handles is over: it goes on, and nothing of it is left behind."""
    error = Trouble()
    seen: list[object] = []

    async def work() -> str:
        try:
            await ask("first")
        except Trouble as thrown:
            seen.append(thrown)
            seen.append(await ask("inside"))
            seen.append(sys.exc_info()[1])
        seen.append(await ask("after"))
        seen.append(sys.exc_info())
        return "done"

    coro = awaited(work())
    assert coro.send(None) == "first"
    assert coro.throw(error) == "inside"
    assert coro.send(1) == "after"
    with pytest.raises(StopIteration) as stop:
        coro.send(2)
    assert stop.value.value == "done"
    assert seen == [error, 1, error, 2, (None, None, None)]


def test_an_exception_behind_one_that_was_handled_has_no_context(awaited: Awaited) -> None:
    """What was thrown in and handled does not show in the context of what the work raises later."""

    async def work() -> None:
        try:
            await ask(None)
        except Trouble:
            pass
        raise LookupError

    coro = awaited(work())
    coro.send(None)
    with pytest.raises(LookupError) as caught:
        coro.throw(Trouble())
    assert contexts(caught.value) == []


def test_an_exception_raised_over_one_that_is_handled_has_it_as_context(awaited: Awaited) -> None:
    """What was thrown in and is being handled is the context, once."""

    async def work() -> None:
        try:
            await ask(None)
        finally:
            raise LookupError

    coro = awaited(work())
    coro.send(None)
    with pytest.raises(LookupError) as caught:
        coro.throw(Trouble())
    assert contexts(caught.value) == [Trouble]


def test_the_work_does_not_see_what_its_caller_handles_less_or_more(awaited: Awaited) -> None:
    """`sys.exc_info()` in the work tells of what the caller handles, and of nothing of the kit's."""
    seen = []

    async def work() -> None:
        seen.append(sys.exc_info()[0])
        await ask(None)
        seen.append(sys.exc_info()[0])

    coro = awaited(work())
    coro.send(None)
    try:
        raise Trouble
    except Trouble:
        with pytest.raises(StopIteration):
            coro.send(None)
    assert seen == [None, Trouble]


def test_what_its_thrower_handles_is_no_context_of_what_is_thrown_in(awaited: Awaited) -> None:
    """An exception comes out with the context that it went in with."""

    async def work() -> None:
        await ask(None)

    coro = awaited(work())
    coro.send(None)
    error = LookupError()
    try:
        raise Trouble
    except Trouble:
        with pytest.raises(LookupError):
            coro.throw(error)
    assert contexts(error) == []


@pytest.mark.parametrize("stop", [StopIteration("value"), StopAsyncIteration()], ids=repr)
def test_a_stop_iteration_of_the_work_does_not_end_it_as_if_it_had_returned(
    awaited: Awaited, stop: Exception
) -> None:
    """A `StopIteration` that escapes the work is a RuntimeError, as in every coroutine."""

    async def work() -> None:
        raise stop

    expected = RuntimeError if isinstance(stop, StopIteration) else StopAsyncIteration
    with pytest.raises(expected) as caught:
        awaited(work()).send(None)
    assert caught.value is stop or caught.value.__cause__ is stop


def test_a_stop_iteration_may_be_thrown_in(awaited: Awaited) -> None:
    """A `StopIteration` that is thrown in arrives in the work, which may handle it."""

    async def work() -> str:
        try:
            await Asking(None)
        except (
            RuntimeError
        ) as error:  # what Python makes of it on its way through the awaitable's generator
            return type(error.__cause__).__name__
        raise AssertionError("unreachable")

    coro = awaited(work())
    coro.send(None)
    with pytest.raises(StopIteration) as stop:
        coro.throw(StopIteration())
    assert stop.value.value == "StopIteration"


def test_an_exception_is_thrown_into_an_iterator_that_can_only_go_on(awaited: Awaited) -> None:
    """Where the awaitable has no `throw`, the exception is raised where it is awaited."""
    coro = awaited(Counting(2))
    coro.send(None)
    error = Trouble()
    with pytest.raises(Trouble) as caught:
        coro.throw(error)
    assert caught.value is error


def test_the_traceback_of_what_is_thrown_in_ends_in_the_work() -> None:
    """Who reads the traceback of a cancellation finds at its end the line where the work waited."""

    async def work() -> None:
        await ask(None)

    coro = drive(work(), new_account(), 0)
    coro.send(None)
    with pytest.raises(Trouble) as caught:
        coro.throw(Trouble())
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "ask"


def test_the_traceback_shows_the_frames_of_the_work(awaited: Awaited) -> None:
    """A traceback shows every function of the work, from the outermost in, once."""

    async def inner() -> None:
        await ask(None)
        raise Trouble

    async def work() -> None:
        await inner()

    coro = awaited(work())
    coro.send(None)
    with pytest.raises(Trouble) as caught:
        coro.send(None)
    here = inspect.currentframe()
    assert here is not None
    assert functions(caught.value)[:1] == [here.f_code.co_name]
    assert functions(caught.value)[-2:] == ["work", "inner"]
    assert len(functions(caught.value)) == 4


# Closing


def test_closing_closes_the_work(awaited: Awaited) -> None:
    """`close` raises GeneratorExit where the work waits, and its cleanups run."""
    log = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        log.append("opened")
        try:
            yield
        except BaseException as error:
            log.append(type(error).__name__)
            raise
        finally:
            log.append("closed")

    async def work() -> None:
        async with resource():
            await ask(None)

    coro = awaited(work())
    coro.send(None)
    coro.close()
    assert log == ["opened", "GeneratorExit", "closed"]
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        coro.send(None)


def test_closing_work_that_returns_instead(awaited: Awaited) -> None:
    """Work may end in its own way when it is closed."""
    log = []

    async def work() -> str:
        try:
            await ask(None)
        except GeneratorExit:
            log.append("closed")
        return "ignored"

    coro = awaited(work())
    coro.send(None)
    coro.close()
    assert log == ["closed"]


def test_closing_work_that_ignores_it(awaited: Awaited) -> None:
    """Work that waits again when it is closed is Python's own RuntimeError."""

    async def work() -> None:
        try:
            await ask(None)
        except GeneratorExit:
            await ask(None)

    coro = awaited(work())
    coro.send(None)
    with pytest.raises(RuntimeError, match="coroutine ignored GeneratorExit"):
        coro.close()


def test_what_closing_raises_comes_out(awaited: Awaited) -> None:
    """An exception of a cleanup comes out of `close`, the same object."""
    error = Trouble()

    async def work() -> None:
        try:
            await ask(None)
        finally:
            raise error

    coro = awaited(work())
    coro.send(None)
    with pytest.raises(Trouble) as caught:
        coro.close()
    assert caught.value is error


def test_closing_leaves_no_more_contexts_behind_than_without_drive() -> None:
    """What is raised while closing has one GeneratorExit as its context, not two."""

    async def work() -> None:
        try:
            await ask(None)
        finally:
            raise Trouble

    coro = drive(work(), new_account(), 0)
    coro.send(None)
    with pytest.raises(Trouble) as caught:
        coro.close()
    assert contexts(caught.value) == [GeneratorExit]


def test_closing_before_the_first_step_runs_nothing(awaited: Awaited) -> None:
    """A coroutine that is closed before it has begun never begins."""
    log = []

    async def work() -> None:
        log.append("began")

    inner = work()
    awaited(inner).close()
    inner.close()
    assert log == []


def test_asynchronous_generators_are_closed(awaited: Awaited, run: Run) -> None:
    """An async generator that is left early closes: by `aclose`, and by the loop's hook when it is dropped."""
    log = []

    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await checkpoint()
            log.append(name)

    async def work() -> None:
        explicit = numbers("aclose")
        async for _ in explicit:
            break
        await explicit.aclose()  # type: ignore[attr-defined]
        assert log == ["aclose"]
        async for number in numbers("exhausted"):
            assert number

    async def main() -> None:
        await awaited(work())

    run(main)
    assert log == ["aclose", "exhausted"]


def test_the_loop_closes_an_asynchronous_generator_that_is_dropped(
    awaited: Awaited, run_asyncio: Run
) -> None:
    """The hooks that the loop sets for async generators see those of the work."""
    closed = asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await checkpoint()
            closed.set()

    async def work() -> None:
        async for _ in numbers():
            break
        await closed.wait()

    async def main() -> None:
        await awaited(work())

    run_asyncio(main)


# Cancellation on real loops


async def waiting(log: list[object]) -> None:
    """Wait forever and log what ends it."""
    try:
        await forever()
    except BaseException as error:
        log.append(error)
        raise


def test_a_task_is_cancelled(awaited: Awaited, run_asyncio: Run) -> None:
    """Cancelling the task raises CancelledError in the work, with its message, and the task is cancelled."""
    log: list[object] = []

    async def main() -> None:
        task = asyncio.ensure_future(awaited(waiting(log)))
        await checkpoint()
        task.cancel("for a reason")
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert task.cancelled()
        (error,) = log
        assert isinstance(error, asyncio.CancelledError)
        assert error.args == ("for a reason",)
        assert caught.value.args in {("for a reason",), ()}

    run_asyncio(main)


def test_a_cancellation_may_be_swallowed(awaited: Awaited, run_asyncio: Run) -> None:
    """Work that handles its cancellation goes on and returns."""

    async def work() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            await checkpoint()
        return "survived"

    async def main() -> None:
        task = asyncio.ensure_future(awaited(work()))
        await checkpoint()
        task.cancel()
        assert await task == "survived"

    run_asyncio(main)


def test_wait_for_times_out(awaited: Awaited, run_asyncio: Run) -> None:
    """`asyncio.wait_for` around and inside of the work: TimeoutError outside, CancelledError in what waits."""
    log: list[object] = []

    async def work() -> str:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting(log), 0.001)
        await waiting(log)
        raise AssertionError("unreachable")

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(awaited(work()), 0.02)

    run_asyncio(main)
    assert [type(error) for error in log] == [asyncio.CancelledError] * 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is of Python 3.11")
def test_timeout_blocks_time_out(awaited: Awaited, run_asyncio: Run) -> None:
    """`asyncio.timeout` inside of the work turns its own cancellation into TimeoutError, and no other."""
    log: list[object] = []

    async def work() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await waiting(log)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await waiting(log)
        raise AssertionError("unreachable")

    async def main() -> None:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.01):
                await awaited(work())
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)

    run_asyncio(main)
    assert [type(error) for error in log] == [asyncio.CancelledError] * 2


def test_anyio_scopes_cancel(awaited: Awaited, run: Run) -> None:
    """anyio's cancel scopes work around and inside of the work, on each of its backends."""
    log: list[str] = []

    async def work(last: anyio.Event) -> str:
        with anyio.CancelScope() as inner:
            inner.cancel()
            await anyio.sleep_forever()
        log.append(f"inner {inner.cancelled_caught}")
        with anyio.CancelScope(shield=True):
            await checkpoint()
        with anyio.move_on_after(0) as timed:
            await anyio.sleep_forever()
        log.append(f"timed {timed.cancelled_caught}")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            await checkpoint()
            group.cancel_scope.cancel()
        log.append("group")
        last.set()
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async def main() -> None:
        last = anyio.Event()
        with anyio.CancelScope() as outer:
            async with anyio.create_task_group() as group:

                async def cancel_later() -> None:
                    await last.wait()
                    outer.cancel()

                group.start_soon(cancel_later)
                await awaited(work(last))
        log.append(f"outer {outer.cancelled_caught}")

    run(main)
    assert log == ["inner True", "timed True", "group", "outer True"]


def test_trio_scopes_cancel(awaited: Awaited, run_trio: Run) -> None:
    """trio's cancel scopes and deadlines work around and inside of the work."""
    import trio

    log: list[object] = []

    async def work() -> str:
        with trio.move_on_after(0) as inner:
            await waiting(log)
        assert inner.cancelled_caught
        with pytest.raises(trio.TooSlowError), trio.fail_after(0):
            await waiting(log)
        await waiting(log)
        raise AssertionError("unreachable")

    async def main() -> None:
        with trio.CancelScope() as outer:
            async with trio.open_nursery() as nursery:

                async def cancel_later() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    outer.cancel()

                nursery.start_soon(cancel_later)
                await awaited(work())
        assert outer.cancelled_caught

    run_trio(main)
    assert [type(error) for error in log] == [trio.Cancelled] * 3
