"""Calls in the thread that asgiref has for the synchronous code of the request."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async

from asgi_perfkit import ThreadLimiter, default_limiter, run_in_threadpool
from asgi_perfkit.exceptions import ConfigurationTypeError
from tests.conftest import Run
from tests.support import Trouble, checkpoint
from tests.threads.conftest import Form
from tests.threads.gates import Gate, here, spawn

var: ContextVar[str] = ContextVar("var")


async def ours() -> threading.Thread:
    """The thread of a thread-sensitive call of the kit's."""
    return await run_in_threadpool(here, thread_sensitive=True)


async def theirs() -> threading.Thread:
    """The thread of asgiref's own, such as Django's synchronous views run in."""
    return await sync_to_async(here, thread_sensitive=True)()


def test_it_runs_where_asgiref_runs(run_asyncio: Run) -> None:
    """In its one thread for the process, when nothing else is said."""

    async def main() -> None:
        first = await theirs()
        assert await ours() is first
        assert await theirs() is first
        assert first is not here()

    run_asyncio(main)


def test_it_runs_in_the_thread_of_its_context(run_asyncio: Run) -> None:
    """Django opens a ThreadSensitiveContext for each request: two requests have two threads."""

    async def in_context() -> threading.Thread:
        async with ThreadSensitiveContext():
            thread = await ours()
            assert await theirs() is thread
            child = asyncio.ensure_future(ours())
            assert await child is thread
            return thread

    async def main() -> None:
        outside = await ours()
        assert len({outside, await in_context(), await in_context()}) == 3

    run_asyncio(main)


def test_it_runs_in_the_thread_that_waits_further_out() -> None:
    """Below `async_to_sync` that is the thread which called it: the one of a synchronous Django view."""
    assert async_to_sync(ours)() is here()
    assert async_to_sync(theirs)() is here()


def test_such_calls_run_one_at_a_time(run_asyncio: Run) -> None:
    """In the order they came, as there is one thread."""
    order: list[int] = []

    async def main() -> None:
        calls = [
            spawn(lambda n=n: run_in_threadpool(order.append, n, thread_sensitive=True))
            for n in range(10)
        ]
        for call in calls:
            await call.result()

    run_asyncio(main)
    assert order == list(range(10))


def test_it_runs_in_a_copy_of_the_context(run_asyncio: Run) -> None:
    """As any call of the kit's does: what it sets is not seen behind it."""

    def function() -> str:
        seen = var.get()
        var.set("by the function")
        return seen

    async def main() -> None:
        var.set("by the caller")
        assert await run_in_threadpool(function, thread_sensitive=True) == "by the caller"
        assert var.get() == "by the caller"

    run_asyncio(main)


def test_arguments_and_results(run_asyncio: Run) -> None:
    """What it is given, what it returns and what it raises are those of any call."""

    def function(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def fail(error: BaseException) -> None:
        raise error

    async def main() -> None:
        assert await run_in_threadpool(function, 1, a=2, thread_sensitive=True) == ((1,), {"a": 2})
        for error in (Trouble(), KeyboardInterrupt(), SystemExit()):
            with pytest.raises(type(error)) as caught:
                await run_in_threadpool(fail, error, thread_sensitive=True)
            assert caught.value is error
        with pytest.raises(RuntimeError, match="StopIteration"):
            await run_in_threadpool(fail, StopIteration(), thread_sensitive=True)
        assert await ours() is await theirs()

    run_asyncio(main)


def test_it_takes_no_token_and_knows_no_hooks(run_asyncio: Run) -> None:
    """It queues in asgiref; the default limiter has nothing to do with it."""

    def before() -> None:
        raise AssertionError("a hook is called")

    async def main() -> None:
        default_limiter().before = before
        try:
            with Gate() as gate:
                call = spawn(lambda: run_in_threadpool(gate, thread_sensitive=True))
                await gate.reached()
                assert default_limiter().borrowed_tokens == 0
                gate.open()
                await call.result()
        finally:
            default_limiter().before = None

    run_asyncio(main)


def test_who_is_cancelled_in_the_queue_leaves_at_once(asyncio_form: Form) -> None:
    """While another call is in the thread; the function is never called."""
    called: list[int] = []

    async def main() -> None:
        with Gate() as gate:
            first = spawn(lambda: run_in_threadpool(gate, thread_sensitive=True))
            await gate.reached()
            second = asyncio_form.spawn(
                lambda: run_in_threadpool(called.append, 2, thread_sensitive=True)
            )
            third = spawn(lambda: run_in_threadpool(called.append, 3, thread_sensitive=True))
            for _ in range(5):
                await checkpoint()
            second.cancel()
            await second.join()
            assert isinstance(second.error, asyncio.CancelledError)
            assert gate.inside == 1
            gate.open()
            await first.result()
            await third.result()

    asyncio_form.run(main)
    assert called == [3]


@pytest.mark.parametrize("context", [True, False], ids=["context", "process"])
def test_who_is_cancelled_while_it_runs_learns_of_it_afterwards(
    asyncio_form: Form, context: bool
) -> None:
    """However often; asgiref itself would leave the function alone in its thread."""

    async def main() -> None:
        with Gate() as gate:

            async def call() -> None:
                if context:
                    async with ThreadSensitiveContext():
                        await run_in_threadpool(gate, thread_sensitive=True)
                else:
                    await run_in_threadpool(gate, thread_sensitive=True)

            task = asyncio_form.spawn(call)
            await gate.reached()
            for _ in range(3):
                task.cancel()
                for _ in range(20):
                    await checkpoint()
                assert not task.ended.is_set()
            gate.open()
            await task.join()
            assert isinstance(task.error, asyncio.CancelledError)
            assert gate.passed == 1

    asyncio_form.run(main)


def test_a_loop_that_ends_waits_for_the_call(run_asyncio: Run) -> None:
    """At its end the loop cancels all tasks, the kit's own too: who waits learns of it when the function is over."""
    ends: list[BaseException] = []
    tasks: list[Any] = []

    async def left_alone(gate: Gate) -> None:
        try:
            await run_in_threadpool(gate, thread_sensitive=True)
        except asyncio.CancelledError as error:
            ends.append(error)
            raise

    async def main(gate: Gate) -> None:
        tasks.append(asyncio.ensure_future(left_alone(gate)))
        await gate.reached()
        asyncio.get_running_loop().call_later(0.02, gate.open)

    with Gate() as gate:
        run_asyncio(main, gate)
        assert gate.passed == 1
    assert len(ends) == 1


def test_a_context_that_has_ended_has_no_thread(run_asyncio: Run) -> None:
    """A task that outlives it gets the error of asgiref's, if asgiref has one; it does not wait for ever."""

    async def main() -> None:
        async with ThreadSensitiveContext():
            may_go = asyncio.Event()

            async def late() -> threading.Thread:
                await may_go.wait()
                return await ours()

            task = asyncio.ensure_future(late())
            await asyncio.sleep(0)
        may_go.set()
        await asyncio.wait({task})
        error = task.exception()
        assert error is None or "ThreadSensitiveContext" in str(error)

    run_asyncio(main)


def test_trio_has_no_such_thread(run_trio: Run) -> None:
    """The error says so."""

    async def main() -> None:
        with pytest.raises(
            RuntimeError, match="thread_sensitive=True needs a running asyncio loop"
        ):
            await ours()

    run_trio(main)


def test_without_a_loop_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As any call does."""
    with pytest.raises(RuntimeError, match="needs a running asyncio loop"):
        ours().send(None)


@pytest.mark.parametrize("limiter", [ThreadLimiter(1), default_limiter(), 5])
def test_a_limiter_beside_it_is_refused(run: Run, limiter: Any) -> None:
    """There is one thread, and it is not the kit's: nothing to limit."""

    async def main() -> None:
        with pytest.raises(ConfigurationTypeError, match="limiter"):
            await run_in_threadpool(int, limiter=limiter, thread_sensitive=True)

    run(main)


def test_a_call_inside_of_a_call(run_asyncio: Run) -> None:
    """A function in asgiref's thread may run coroutines by `async_to_sync`, which call functions in the same thread."""

    def function() -> tuple[threading.Thread, threading.Thread]:
        return here(), async_to_sync(ours)()

    async def main() -> None:
        outer, inner = await run_in_threadpool(function, thread_sensitive=True)
        assert outer is inner

    run_asyncio(main)
