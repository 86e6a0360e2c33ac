"""What runs in the worker thread before and after each call, as its limiter has it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from asgi_perfkit import ThreadLimiter, default_limiter, run_in_threadpool
from tests.conftest import Run
from tests.support import Trouble
from tests.threads.conftest import Form
from tests.threads.gates import Gate, spawn

var: ContextVar[str] = ContextVar("var")


@pytest.fixture
def told() -> list[str]:
    """What has happened, in its order."""
    return []


def teller(told: list[str], what: str, error: BaseException | None = None) -> Callable[[], None]:
    """A function that tells `what`, and raises."""

    def tell() -> None:
        told.append(what)
        if error is not None:
            raise error

    return tell


def test_hooks_run_around_each_call(run: Run, told: list[str]) -> None:
    """In the order that their names say, for every call anew."""
    limiter = ThreadLimiter(1, before=teller(told, "before"), after=teller(told, "after"))

    async def main() -> None:
        for _ in range(3):
            told.clear()
            assert await run_in_threadpool(lambda: told.append("call") or 5, limiter=limiter) == 5
            assert told == ["before", "call", "after"]

    run(main)


@pytest.mark.parametrize("name", ["before", "after"])
def test_one_hook_alone(run: Run, told: list[str], name: str) -> None:
    """Each of the two can be left out."""
    limiter = ThreadLimiter(1, **{name: teller(told, name)})  # type: ignore[arg-type]

    async def main() -> None:
        await run_in_threadpool(told.append, "call", limiter=limiter)

    run(main)
    assert told == (["before", "call"] if name == "before" else ["call", "after"])


def test_hooks_run_in_the_thread_and_the_context_of_the_call(run: Run) -> None:
    """They see what the caller has set, and the function sees what `before` sets."""
    threads = []

    def before() -> None:
        threads.append(threading.current_thread())
        assert var.get() == "by the caller"
        var.set("by before")

    def after() -> None:
        threads.append(threading.current_thread())
        assert var.get() == "by the function"

    def function() -> None:
        threads.append(threading.current_thread())
        assert var.get() == "by before"
        var.set("by the function")

    async def main() -> None:
        var.set("by the caller")
        await run_in_threadpool(function, limiter=ThreadLimiter(1, before=before, after=after))
        assert var.get() == "by the caller"
        assert len(threads) == 3
        assert len(set(threads)) == 1
        assert threads[0] is not threading.current_thread()

    run(main)


@pytest.mark.parametrize("error", [Trouble("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_after_runs_when_the_call_has_raised(
    run: Run, told: list[str], error: BaseException
) -> None:
    """And the caller gets the error of the call."""
    limiter = ThreadLimiter(1, after=teller(told, "after"))

    async def main() -> None:
        with pytest.raises(type(error)) as caught:
            await run_in_threadpool(teller(told, "call", error), limiter=limiter)
        assert caught.value is error

    run(main)
    assert told == ["call", "after"]


def test_when_before_raises_the_call_does_not_take_place(
    run: Run, limiter: ThreadLimiter, told: list[str]
) -> None:
    """The caller gets the error; `after`, for what `before` has not begun, does not run either; the token is back."""
    trouble = Trouble("before")
    limiter.before = teller(told, "before", trouble)
    limiter.after = teller(told, "after")

    async def main() -> None:
        with pytest.raises(Trouble) as caught:
            await run_in_threadpool(told.append, "call", limiter=limiter)
        assert caught.value is trouble

    run(main)
    assert told == ["before"]


def test_what_after_raises_is_raised(run: Run, limiter: ThreadLimiter, told: list[str]) -> None:
    """In place of the value; in place of the error of the call, which is its context then."""
    trouble, error = Trouble("after"), Trouble("call")
    limiter.after = teller(told, "after", trouble)

    async def main() -> None:
        with pytest.raises(Trouble) as caught:
            await run_in_threadpool(teller(told, "call"), limiter=limiter)
        assert caught.value is trouble
        assert trouble.__context__ is None
        with pytest.raises(Trouble) as caught:
            await run_in_threadpool(teller(told, "call", error), limiter=limiter)
        assert caught.value is trouble
        assert trouble.__context__ is error

    run(main)


def test_hooks_run_also_when_the_caller_is_cancelled(
    form: Form, limiter: ThreadLimiter, told: list[str]
) -> None:
    """The call is over only behind `after`; a call that does not take place has no hooks."""
    limiter.before = teller(told, "before")

    async def main() -> None:
        with Gate() as gate:
            limiter.after = gate
            task = form.spawn(lambda: run_in_threadpool(told.append, "call", limiter=limiter))
            await gate.reached()
            other = form.spawn(lambda: run_in_threadpool(told.append, "other", limiter=limiter))
            while limiter.statistics().tasks_waiting != 1:
                await run_in_threadpool(int)
            other.cancel()
            await other.join()
            task.cancel()
            assert limiter.borrowed_tokens == 1
            assert not task.ended.is_set()
            gate.open()
            await task.join()

    form.run(main)
    assert told == ["before", "call"]


@pytest.fixture
def default_hook(told: list[str]) -> Iterator[Any]:
    """A hook of the default limiter's."""
    default_limiter().before = teller(told, "before")
    yield
    default_limiter().before = None


def test_the_default_limiter_can_have_hooks(run: Run, told: list[str], default_hook: Any) -> None:
    """Set at any time, they hold from the next call on; the calls of another limiter know nothing of them."""

    async def main() -> None:
        await run_in_threadpool(told.append, "call")
        await run_in_threadpool(told.append, "other call", limiter=ThreadLimiter(1))
        default_limiter().before = None
        await run_in_threadpool(told.append, "call")

    run(main)
    assert told == ["before", "call", "other call", "call"]


def test_hooks_can_be_changed_between_two_calls(
    run: Run, limiter: ThreadLimiter, told: list[str]
) -> None:
    """Those that there are when the call begins in its thread are the ones that run."""

    async def main() -> None:
        with Gate() as gate:
            limiter.after = teller(told, "first")
            first = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            limiter.after = teller(told, "second")
            gate.open()
            await first.result()
            await run_in_threadpool(int, limiter=limiter)

    run(main)
    assert told == ["first", "second"]
