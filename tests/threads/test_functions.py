"""What a function in a worker thread is given, and what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import pytest
import trio

from asgi_perfkit import (
    ThreadLimiter,
    contextmanager_in_threadpool,
    default_limiter,
    run_in_threadpool,
)
from asgi_perfkit.exceptions import ConfigurationTypeError
from tests.conftest import Run
from tests.support import Trouble, checkpoint, no_collector
from tests.threads.conftest import Form
from tests.threads.gates import Gate, Signal, spawn

var: ContextVar[str] = ContextVar("var", default="nothing")


def test_it_returns_what_the_function_returns(run: Run) -> None:
    """The same object, from another thread than the loop's."""
    value = object()

    async def main() -> None:
        assert await run_in_threadpool(lambda: value) is value
        assert await run_in_threadpool(threading.current_thread) is not threading.current_thread()

    run(main)


def test_it_hands_all_arguments_on(run: Run) -> None:
    """Positional and keyword ones, also `func` and `self`; a partial function brings those with the kit's names."""

    def function(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    async def main() -> None:
        assert await run_in_threadpool(function, 1, None, a=2, func=3, self=4, call=5) == (
            (1, None),
            {"a": 2, "func": 3, "self": 4, "call": 5},
        )
        assert await run_in_threadpool(
            functools.partial(function, limiter=6, thread_sensitive=7)
        ) == ((), {"limiter": 6, "thread_sensitive": 7})

    run(main)


@pytest.mark.parametrize(
    "error",
    [Trouble("no"), ValueError(), KeyboardInterrupt(), SystemExit(3), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_it_raises_what_the_function_raises(run: Run, error: BaseException) -> None:
    """The same object, whatever it is, also when the thread is used again; the token is given back."""

    def fail() -> None:
        raise error

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                await run_in_threadpool(fail)
            assert caught.value is error
            assert error.__context__ is error.__cause__ is None
            assert default_limiter().borrowed_tokens == 0
        assert await run_in_threadpool(int) == 0

    run(main)


@pytest.mark.parametrize("cancelled", [asyncio.CancelledError("mine"), anyio.ClosedResourceError()])
def test_a_function_may_raise_a_cancellation(run: Run, cancelled: BaseException) -> None:
    """It comes back as any other exception; the task is not cancelled by it."""

    def fail() -> None:
        raise cancelled

    async def main() -> None:
        with pytest.raises(type(cancelled)) as caught:
            await run_in_threadpool(fail)
        assert caught.value is cancelled
        assert await run_in_threadpool(int) == 0

    run(main)


def test_the_traceback_leads_to_the_line(run: Run) -> None:
    """From who called, by the kit, to the line of the function that raised, and each line once."""

    def deepest() -> None:
        raise Trouble

    def function() -> None:
        deepest()

    async def main() -> None:
        with pytest.raises(Trouble) as caught:
            await run_in_threadpool(function)
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[0] == "main"
        assert names[-2:] == ["function", "deepest"]
        assert len(names) == len(set(names))

    run(main)


def test_stop_iteration_becomes_a_runtime_error(run: Run) -> None:
    """A coroutine cannot raise it; it is the cause of what it raises, as with any coroutine."""
    empty: Any = iter(())

    async def main() -> None:
        with pytest.raises(RuntimeError, match="coroutine raised StopIteration") as caught:
            await run_in_threadpool(next, empty)
        assert type(caught.value.__cause__) is StopIteration
        with pytest.raises(StopAsyncIteration):
            await run_in_threadpool(_raise, StopAsyncIteration())

    run(main)


def _raise(error: BaseException) -> None:
    raise error


def test_it_runs_in_a_copy_of_the_context(run: Run) -> None:
    """It sees what the caller has set; what it sets nobody else sees, not even the next call in the same thread."""

    def function() -> str:
        seen = var.get()
        var.set("by the function")
        return seen

    async def main() -> None:
        assert await run_in_threadpool(function) == "nothing"
        var.set("by the caller")
        assert await run_in_threadpool(function) == "by the caller"
        assert await run_in_threadpool(function) == "by the caller"
        assert var.get() == "by the caller"
        before = len(copy_context())
        await run_in_threadpool(function)
        assert len(copy_context()) == before

    run(main)


def test_no_event_loop_runs_in_the_thread(run: Run) -> None:
    """So code that looks for one, to wait for a coroutine for example, finds that there is none."""

    def function() -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        with pytest.raises(RuntimeError):
            trio.lowlevel.current_task()

    async def main() -> None:
        await run_in_threadpool(function)

    run(main)


def test_from_a_thread_one_can_call_into_trio(run_trio: Run) -> None:
    """The threads are trio's own, so `trio.from_thread` works in them."""

    async def main() -> None:
        assert await run_in_threadpool(trio.from_thread.run, _asynchronous, 4) == 4
        assert await run_in_threadpool(trio.from_thread.run_sync, str, 5) == "5"

    run_trio(main)


async def _asynchronous(value: Any = None) -> Any:
    return value


class _AsynchronousCall:
    async def __call__(self) -> None:
        pass


class _Awaitable:
    def __await__(self) -> Generator[None, None, None]:
        yield


@pytest.mark.parametrize(
    "function",
    [_asynchronous, functools.partial(_asynchronous, 1), _AsynchronousCall().__call__],
    ids=["function", "partial", "method"],
)
def test_a_coroutine_function_is_refused(run: Run, function: Any) -> None:
    """It needs no thread; the error says to await it, and no thread is used."""

    async def main() -> None:
        with pytest.raises(
            ConfigurationTypeError, match=r"run_in_threadpool\(func\) got .*await it"
        ):
            await run_in_threadpool(function)

    with no_thread():
        run(main)


@pytest.mark.parametrize(
    "function",
    [lambda: _asynchronous(), _AsynchronousCall(), _Awaitable],  # noqa: PLW0108  # it is no coroutine function
    ids=["coroutine", "callable", "awaitable"],
)
def test_an_awaitable_is_refused(run: Run, function: Callable[[], Awaitable[None]]) -> None:
    """The error names the function and says what to do; no coroutine is left that was never awaited."""

    async def main() -> None:
        with pytest.raises(
            TypeError, match=r"returned an awaitable.*await what it returns"
        ) as caught:
            await run_in_threadpool(function)
        assert repr(function) in str(caught.value)

    run(main)


@pytest.mark.parametrize("thing", [None, 5, "function"])
def test_what_is_not_callable_is_refused(run: Run, thing: Any) -> None:
    """By its value, and no thread is used."""

    async def main() -> None:
        with pytest.raises(ConfigurationTypeError, match="give a function") as caught:
            await run_in_threadpool(thing)
        assert caught.value.value is thing

    with no_thread():
        run(main)


@pytest.mark.parametrize("limiter", [5, anyio.CapacityLimiter, threading.Semaphore(3)])
def test_another_limiter_is_refused(run: Run, limiter: Any) -> None:
    """One of anyio's for example; the error names it, and no thread is used."""

    async def main() -> None:
        with pytest.raises(
            ConfigurationTypeError, match=r"limiter=.*give a ThreadLimiter"
        ) as caught:
            await run_in_threadpool(int, limiter=limiter)
        assert caught.value.value is limiter

    with no_thread():
        run(main)


@pytest.mark.parametrize("trio_imported", [True, False])
def test_without_a_loop_it_says_so(trio_imported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a coroutine that something else than asyncio and trio steps, and no token is taken."""
    if not trio_imported:
        monkeypatch.delitem(sys.modules, "trio")
    for options in [{}, {"limiter": ThreadLimiter(1)}]:
        with pytest.raises(
            RuntimeError, match=r"No event loop runs in this thread.*asyncio, uvloop or trio"
        ):
            run_in_threadpool(int, **options).send(None)  # type: ignore[arg-type]


class no_thread:  # noqa: N801
    """No thread is started in here."""

    def __enter__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(threading.Thread, "start", _no_start)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def _no_start(thread: threading.Thread) -> None:
    raise AssertionError("a thread is started")


class Thing:
    """Can be referred to weakly, and raised."""


class Failure(Exception):
    pass


def test_a_result_dies_when_it_is_dropped(run: Run) -> None:
    """It, and the arguments, are in no reference cycle: nothing waits for the garbage collector."""

    async def main() -> None:
        argument = Thing()
        result = await run_in_threadpool(lambda thing: [thing, Thing()], argument)
        references = [weakref.ref(argument), weakref.ref(result[1])]
        del argument, result
        await run_in_threadpool(int)  # the thread has put the last call away when it takes another
        assert [reference() for reference in references] == [None, None]

    with no_collector():
        run(main)


def test_an_exception_dies_when_it_is_dropped(run: Run) -> None:
    """With all that its traceback holds: the caller's variables, and those of the function."""

    def fail(thing: Thing) -> None:
        local = Thing()
        references.append(weakref.ref(local))
        raise Failure(thing)

    async def call() -> None:
        local = Thing()
        references.append(weakref.ref(local))
        try:
            await run_in_threadpool(fail, Thing())
        except Failure as error:
            references.append(weakref.ref(error))
            references.append(weakref.ref(error.args[0]))

    references: list[weakref.ref[Any]] = []

    async def main() -> None:
        await call()
        await run_in_threadpool(int)
        assert len(references) == 4
        assert [reference() for reference in references] == [None] * 4

    with no_collector():
        run(main)


def test_what_a_cancelled_call_returned_dies(run_asyncio: Run) -> None:
    """The value that nobody gets, the cancellation and the caller's variables: nothing is left in a cycle."""
    references: list[weakref.ref[Any]] = []

    def work(gate: Gate) -> Thing:
        gate()
        thing = Thing()
        references.append(weakref.ref(thing))
        return thing

    async def call(gate: Gate) -> None:
        local = Thing()
        references.append(weakref.ref(local))
        try:
            await run_in_threadpool(work, gate)
        except asyncio.CancelledError as error:
            references.append(weakref.ref(error))

    async def main() -> None:
        with Gate() as gate:
            task = spawn(lambda: call(gate))
            await gate.reached()
            task.cancel()
            gate.open()
            await task.join()
        await run_in_threadpool(int)
        assert len(references) == 3
        assert [reference() for reference in references] == [None] * 3

    with no_collector():
        run_asyncio(main)


def test_an_idle_thread_holds_nothing(run_asyncio: Run) -> None:
    """A thread with nothing to do keeps neither the function, its arguments, its context nor its result."""

    async def main() -> None:
        died = Signal()
        thing = Thing()
        weakref.finalize(thing, died.set)
        var.set(thing)  # type: ignore[arg-type]
        await run_in_threadpool(lambda thing: [thing], thing)
        var.set("nothing")
        del thing
        await asyncio.wait_for(died.wait(), 10)

    with no_collector():
        run_asyncio(main)


@pytest.mark.parametrize("count", [1, 50])
def test_many_calls_at_once(run: Run, count: int) -> None:
    """Each caller gets his own result, more calls than tokens or not."""

    async def main() -> None:
        limiter = ThreadLimiter(8)
        tasks = [
            spawn(lambda number=number: run_in_threadpool(str, number, limiter=limiter))
            for number in range(count)
        ]
        assert [await task.result() for task in tasks] == [str(number) for number in range(count)]
        assert limiter.borrowed_tokens == 0

    run(main)


def test_a_call_in_a_call(run: Run) -> None:
    """A function in a thread may run a loop of its own, and call functions in threads from there."""

    def function(depth: int) -> int:
        return depth if depth == 3 else run(run_in_threadpool, function, depth + 1)

    async def main() -> None:
        assert await run_in_threadpool(function, 0) == 3

    run(main)


# ---- in the thread of a manager


async def manager_thread() -> threading.Thread:
    """The thread of the innermost manager around."""
    return await run_in_threadpool(threading.current_thread, same_thread=True)


class Manager:
    """Knows the thread that it was entered in."""

    thread: threading.Thread

    def __enter__(self) -> Manager:
        self.thread = threading.current_thread()
        return self

    def __exit__(self, *_: object) -> None:
        assert threading.current_thread() is self.thread


def test_same_thread_is_that_of_the_manager(run: Run) -> None:
    """For all calls of the body, also those of its child tasks; other calls run elsewhere meanwhile."""

    async def main() -> None:
        async with contextmanager_in_threadpool(Manager(), same_thread=True) as manager:
            for _ in range(3):
                assert await manager_thread() is manager.thread
            tasks = [spawn(manager_thread) for _ in range(10)]
            for task in tasks:
                assert await task.result() is manager.thread
            assert await run_in_threadpool(threading.current_thread) is not manager.thread

    run(main)


def test_same_thread_is_that_of_the_innermost_manager(run: Run) -> None:
    """Managers that have no thread to themselves do not count."""

    async def main() -> None:
        async with contextmanager_in_threadpool(Manager(), same_thread=True) as outer:
            async with contextmanager_in_threadpool(Manager(), same_thread=True) as inner:
                assert inner.thread is not outer.thread
                assert await manager_thread() is inner.thread
            assert await manager_thread() is outer.thread
            async with contextmanager_in_threadpool(contextlib.nullcontext()):
                assert await manager_thread() is outer.thread

    run(main)


def test_same_thread_needs_a_manager(run: Run) -> None:
    """Outside of one the error says so; likewise in a task that has outlived it."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="there is none around here"):
            await manager_thread()
        async with contextmanager_in_threadpool(contextlib.nullcontext()):
            with pytest.raises(RuntimeError, match="there is none around here"):
                await manager_thread()
        may_go = Signal()

        async def late() -> None:
            await may_go.wait()
            await manager_thread()

        async with contextmanager_in_threadpool(Manager(), same_thread=True):
            task = spawn(late)
        may_go.set()
        with pytest.raises(RuntimeError, match="or it has been exited"):
            await task.result()
        with pytest.raises(RuntimeError, match="there is none around here"):
            await manager_thread()

    run(main)


def test_calls_in_the_thread_of_a_manager_are_calls_like_any(run: Run) -> None:
    """They take a token, return, raise, and run in a copy of the context, one at a time in the order they came."""

    def fail() -> None:
        raise Trouble

    async def main() -> None:
        limiter = ThreadLimiter(1)
        order: list[int] = []
        async with contextmanager_in_threadpool(Manager(), same_thread=True):
            var.set("by the body")
            assert await run_in_threadpool(var.get, same_thread=True) == "by the body"
            await run_in_threadpool(var.set, "by the function", same_thread=True)
            assert var.get() == "by the body"
            with pytest.raises(Trouble):
                await run_in_threadpool(fail, same_thread=True)
            with Gate() as gate:
                call = spawn(lambda: run_in_threadpool(gate, limiter=limiter, same_thread=True))
                await gate.reached()
                assert limiter.borrowed_tokens == 1
                others = [
                    spawn(lambda n=n: run_in_threadpool(order.append, n, same_thread=True))
                    for n in range(10)
                ]
                while default_limiter().borrowed_tokens != 10:
                    await checkpoint()
                assert order == []
                gate.open()
                for task in [call, *others]:
                    await task.result()
            assert sorted(order) == list(range(10))
            assert run.__name__ == "_on_trio" or order == list(range(10))  # trio shuffles its tasks

    run(main)


def test_who_is_cancelled_in_the_thread_of_a_manager(form: Form) -> None:
    """Learns of it when the function has returned, as elsewhere, and the thread is there for the next call."""

    async def main() -> None:
        async with contextmanager_in_threadpool(Manager(), same_thread=True) as manager:
            with Gate() as gate:

                async def call() -> None:
                    await run_in_threadpool(gate, same_thread=True)
                    await checkpoint()

                task = form.spawn(call)
                await gate.reached()
                task.cancel()
                for _ in range(20):
                    await checkpoint()
                task.cancel()
                assert not task.ended.is_set()
                gate.open()
                await task.join()
                assert isinstance(task.error, form.cancelled)
            assert await manager_thread() is manager.thread

    form.run(main)


def test_a_call_that_comes_too_late_does_not_get_another_thread(run: Run) -> None:
    """One that waits for a token while the manager is exited: the error is that there is no manager any more."""

    async def main() -> None:
        limiter = ThreadLimiter(1)
        with Gate() as gate:
            async with contextmanager_in_threadpool(Manager(), same_thread=True):
                other = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
                await gate.reached()
                late = spawn(
                    lambda: run_in_threadpool(
                        threading.current_thread, limiter=limiter, same_thread=True
                    )
                )
                while limiter.statistics().tasks_waiting != 1:
                    await checkpoint()
            gate.open()
            await other.result()
            with pytest.raises(RuntimeError, match="has been exited"):
                await late.result()
            assert limiter.borrowed_tokens == 0

    run(main)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_manager_belongs_to_its_loop(run: Run, pinned: bool) -> None:
    """A function in a thread that runs a loop of its own inherits the context, but not the manager's thread."""

    def function() -> None:
        with pytest.raises(RuntimeError, match="loop"):
            run(manager_thread)
        with pytest.raises(RuntimeError, match="loop"):
            asyncio.run(manager_thread())

    async def main() -> None:
        async with contextmanager_in_threadpool(Manager(), same_thread=True):
            await run_in_threadpool(function, same_thread=pinned)

    run(main)


def test_same_thread_excludes_thread_sensitive(run: Run) -> None:
    """A thread of the kit's, or one of asgiref's."""

    async def main() -> None:
        with pytest.raises(ConfigurationTypeError, match="leave `limiter` and `same_thread` out"):
            await run_in_threadpool(int, same_thread=True, thread_sensitive=True)

    run(main)
