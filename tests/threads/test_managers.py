"""Blocking context managers in worker threads; the judge is the `with` statement."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import random
import sqlite3
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token, copy_context
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_perfkit import (
    ThreadLimiter,
    contextmanager_in_threadpool,
    iterate_in_threadpool,
    run_in_threadpool,
)
from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.threads import pool
from tests.conftest import EVERY_LOOP, Run
from tests.support import Trouble, checkpoint, forever, together
from tests.threads.conftest import Form, workers
from tests.threads.gates import PATIENCE_SECONDS, Gate, Signal, Task, here, is_free, spawn, turns

var: ContextVar[str] = ContextVar("var", default="nothing")


class Manager:
    """Tells what happens to it; stands before a gate in enter or exit, and raises or returns, if it is told to.

    :ivar entered: how many enters have returned.
    :ivar exits: the exceptions that the exits were given.
    :ivar threads: in which enter and exit ran.
    """

    def __init__(self, enter: Callable[[], Any] = object, leave: Callable[[], Any] = bool) -> None:
        self.entered = 0
        self.exits: list[BaseException | None] = []
        self.threads: list[threading.Thread] = []
        self._enter = enter
        self._leave = leave

    def __enter__(self) -> Any:
        self.threads.append(here())
        value = self._enter()
        self.entered += 1
        return value

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> Any:
        assert kind is (None if error is None else type(error))
        assert traceback is (None if error is None else error.__traceback__)
        self.threads.append(here())
        self.exits.append(error)
        return self._leave()


def raiser(error: BaseException) -> Callable[[], Any]:
    """A function that raises."""

    def fail() -> None:
        raise error

    return fail


async def use(
    cm: AbstractContextManager[Any, Any],
    body: Callable[[], Any] | None = None,
    **options: Any,
) -> Any:
    """Enter, `await body()`, exit; then a checkpoint, where trio raises a cancellation."""
    value = None
    async with contextmanager_in_threadpool(cm, **options):
        if body is not None:
            value = await body()
    await checkpoint()
    return value


# ---- what holds for a `with` statement


@dataclass(frozen=True)
class Raising:
    """How a script raises.

    :ivar kind: of exception.
    :ivar how: with what context and cause.
    """

    kind: type[BaseException]
    how: str

    def __call__(self, name: str) -> None:
        if self.how == "plain":
            raise self.kind(name)
        if self.how == "from a cause":
            raise self.kind(name) from LookupError(f"cause of {name}")
        if self.how == "from None":
            raise self.kind(name) from None
        try:
            raise LookupError(f"first of {name}")
        except LookupError as first:
            if self.how == "while handling":
                raise self.kind(name)  # noqa: B904
            if self.how == "from what it handles":
                raise self.kind(name) from first
            assert self.how == "while handling twice"
            try:
                raise LookupError(f"second of {name}")
            except LookupError:
                raise self.kind(name)  # noqa: B904


HOWS = [
    "plain",
    "from a cause",
    "from None",
    "while handling",
    "from what it handles",
    "while handling twice",
]
ERRORS = [
    Trouble,
    KeyError,
    StopAsyncIteration,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    asyncio.CancelledError,
]
VARS: list[ContextVar[int]] = [ContextVar(f"var_{number}") for number in range(3)]

raisings = st.builds(Raising, st.sampled_from(ERRORS), st.sampled_from(HOWS))


def changes(by: int) -> st.SearchStrategy[dict[int, int]]:
    """Which variables are set, to values that nobody else sets them to."""
    return st.dictionaries(st.sampled_from(range(len(VARS))), st.integers(by, by + 9), max_size=3)


@dataclass(frozen=True)
class Script:
    """What a manager and a body do.

    :ivar outside: what is being handled around the `with` statement.
    :ivar before, enter, body, exit: which variables are set to what.
    :ivar tidy: whether the exit resets what the enter has set.
    :ivar enter_raises, body_raises: how, if at all.
    :ivar reply: what the exit returns, or does: "raise" (the exception that is being handled), "raise it" (the same, by
        name), or raise another one.
    :ivar generator: whether the manager is made of a generator.
    """

    outside: bool
    before: dict[int, int]
    enter: dict[int, int]
    body: dict[int, int]
    exit: dict[int, int]
    tidy: bool
    enter_raises: Raising | None
    body_raises: Raising | None
    reply: Any
    generator: bool


scripts = st.builds(
    Script,
    outside=st.booleans(),
    before=changes(00),
    enter=changes(10),
    body=changes(20),
    exit=changes(30),
    tidy=st.booleans(),
    enter_raises=st.one_of(st.none(), st.none(), st.none(), raisings),
    body_raises=st.one_of(
        st.none(), raisings, st.builds(Raising, st.just(StopIteration), st.sampled_from(HOWS))
    ),
    reply=st.one_of(st.sampled_from([False, True, None, 0, "yes", "raise", "raise it"]), raisings),
    generator=st.booleans(),
)


def described(error: BaseException | None, depth: int = 9) -> Any:
    """All that one can see of an exception."""
    if error is None or not depth:
        return None
    return (
        type(error),
        error.args,
        described(error.__context__, depth - 1),
        described(error.__cause__, depth - 1),
        error.__suppress_context__,
    )


def values() -> list[int | None]:
    return [var.get(None) for var in VARS]


class Performance:
    """One run of a script.

    :ivar log: what has happened.
    :ivar at_first, at_the_end_of_the_body, after: the variables.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.log: list[Any] = []
        self._tokens: list[Token[int]] = []
        self._set(script.before)
        self.manager: AbstractContextManager[Any, Any] = (
            self._generate() if script.generator else self._Manager(self)
        )

    class _Manager:
        def __init__(self, performance: Performance) -> None:
            self._performance = performance

        def __enter__(self) -> object:
            return self._performance.enter()

        def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> Any:
            self._performance.log.append(kind)
            assert (None if error is None else error.__traceback__) is traceback
            return self._performance.exit(error)

    @contextmanager
    def _generate(self) -> Generator[object, None, None]:
        value = self.enter()
        try:
            yield value
        except BaseException as error:
            if not self.exit(error):
                raise
        else:
            self.exit(None)

    def enter(self) -> object:
        script = self.script
        self.at_first = values()
        self.log.append(("enter", values()))
        self._tokens += [VARS[number].set(value) for number, value in script.enter.items()]
        if script.enter_raises:
            script.enter_raises("enter")
        return "value"

    def body(self, value: object) -> None:
        self.log.append(("body", value, values()))
        self._set(self.script.body)
        self.at_the_end_of_the_body = values()
        if self.script.body_raises:
            self.script.body_raises("body")

    def exit(self, error: BaseException | None) -> object:
        script = self.script
        self.log.append(("exit", values(), described(error)))
        handled = sys.exc_info()[1]
        if error is not None or not script.outside:  # the thread knows nothing of what is outside
            self.log.append(("handled", handled is error))
        if script.tidy:
            for token in reversed(self._tokens):
                token.var.reset(token)
        self._set(script.exit)
        reply = script.reply
        if isinstance(reply, Raising):
            reply("exit")
        if reply == "raise" and error is not None:
            raise  # noqa: PLE0704
        if reply == "raise it" and error is not None:
            raise error
        return reply

    def _set(self, changes: dict[int, int]) -> None:
        for number, value in changes.items():
            VARS[number].set(value)

    def end(self, error: BaseException | None) -> None:
        self.log.append(("outcome", described(error)))
        self.after = values()


def perform(script: Script) -> Performance:
    """Run a script under `with`."""
    performance = Performance(script)
    manager, body = performance.manager, performance.body
    try:
        try:
            if script.outside:
                raise LookupError("outside")
        except LookupError:
            with manager as value:
                body(value)
        else:
            with manager as value:
                body(value)
    except BaseException as error:
        performance.end(error)
    else:
        performance.end(None)
    return performance


async def perform_in_threads(script: Script, limiter: ThreadLimiter) -> Performance:
    """Run a script under `async with`."""
    performance = Performance(script)
    manager = contextmanager_in_threadpool(performance.manager, limiter=limiter)
    body = performance.body
    try:  # in one function: between two, coroutines turn a StopIteration into a RuntimeError
        try:
            if script.outside:
                raise LookupError("outside")
        except LookupError:
            async with manager as value:
                body(value)
        else:
            async with manager as value:
                body(value)
    except BaseException as error:
        performance.end(error)
    else:
        performance.end(None)
    return performance


@pytest.mark.parametrize("loop", EVERY_LOOP)
@settings(max_examples=200)
@given(script=scripts)
def test_it_is_a_with_statement(loop: str, script: Script) -> None:
    """Whatever manager and body do: the same events, the same exceptions with the same contexts, the same variables."""
    limiter = ThreadLimiter(1)
    expected = copy_context().run(perform, script)
    found = EVERY_LOOP[loop](perform_in_threads, script, limiter)
    assert found.log == expected.log
    if script.tidy and not script.exit and not script.enter_raises:
        assert found.after == expected.after
    if script.enter_raises:
        assert found.after == found.at_first
    else:
        for number, value in enumerate(found.after):
            by_enter = number in script.enter
            assert value == (found.at_first if by_enter else found.at_the_end_of_the_body)[number]
    stats = limiter.statistics()
    assert (stats.borrowed_tokens, stats.tasks_waiting, stats.exits) == (0, 0, 0)


def test_value_and_threads(run: Run, limiter: ThreadLimiter) -> None:
    """What the enter returns is what follows `as`; enter and exit run in worker threads, the body on the loop."""
    manager = Manager(lambda: "value")

    async def main() -> None:
        async with contextmanager_in_threadpool(manager, limiter=limiter) as value:
            assert value == "value"
            assert (manager.entered, manager.exits) == (1, [])
        assert (manager.entered, manager.exits) == (1, [None])
        assert here() not in manager.threads

    run(main)


def test_the_exit_resets_what_the_enter_has_set(run: Run) -> None:
    """`ContextVar.reset` takes the token of the enter; in the body the variable is set, behind it no more."""

    @contextmanager
    def setting() -> Iterator[None]:
        token = var.set("by the enter")
        yield
        assert var.get() == "by the body"
        var.reset(token)
        assert var.get() == "outside"

    async def main() -> None:
        var.set("outside")
        async with contextmanager_in_threadpool(setting()):
            assert var.get() == "by the enter"
            var.set("by the body")
        assert var.get() == "outside"

    run(main)


@pytest.mark.parametrize("ending", ["returns", "raises", "suppresses"])
def test_what_the_enter_has_set_is_undone(run: Run, ending: str) -> None:
    """Also by an exit that does not reset it, that raises, or that suppresses what the body raises."""
    leave = {"returns": bool, "raises": raiser(Trouble()), "suppresses": lambda: True}[ending]

    async def main() -> None:
        var.set("outside")
        with contextlib.suppress(Trouble):
            async with contextmanager_in_threadpool(Manager(lambda: var.set("by enter"), leave)):
                assert var.get() == "by enter"
                if ending == "suppresses":
                    raise Trouble
        assert var.get() == "outside"

    run(main)


def test_nested_managers_undo_one_after_another(run: Run) -> None:
    """Each gives back what was there before it."""

    async def main() -> None:
        async with contextmanager_in_threadpool(Manager(lambda: var.set("outer"))):
            async with contextmanager_in_threadpool(Manager(lambda: var.set("inner"))):
                assert var.get() == "inner"
            assert var.get() == "outer"
        assert var.get() == "nothing"

    run(main)


def test_what_the_body_sets_stays(run: Run) -> None:
    """The exit sees it, and what is behind the `async with`, as with any block."""
    seen: list[str] = []

    async def main() -> None:
        async with contextmanager_in_threadpool(Manager(leave=lambda: seen.append(var.get()))):
            var.set("by the body")
        assert var.get() == "by the body"
        assert seen == ["by the body"]

    run(main)


def test_an_exit_in_another_task(run: Run) -> None:
    """Enter and exit awaited in two tasks, as frameworks do with fixtures: they share their context all the same."""
    tokens: list[Token[str]] = []

    async def main() -> None:
        manager = contextmanager_in_threadpool(
            Manager(lambda: tokens.append(var.set("by the enter")), lambda: var.reset(tokens[0]))
        )
        await spawn(manager.__aenter__).result()
        await spawn(lambda: manager.__aexit__(None, None, None)).result()
        assert var.get() == "nothing"

    run(main)


def test_exc_info_in_the_exit(run: Run) -> None:
    """There the exception of the body is the one that is being handled, and with its own traceback."""
    seen: list[Any] = []

    async def main() -> None:
        trouble = Trouble()
        with pytest.raises(Trouble) as caught:
            async with contextmanager_in_threadpool(
                Manager(leave=lambda: seen.extend(sys.exc_info()))
            ):
                raise trouble
        assert caught.value is trouble
        kind, error, traceback = seen
        assert (kind, error) == (Trouble, trouble)
        if sys.version_info < (
            3,
            11,
        ):  # where it begins with the frame of whom it was raised to last
            traceback = traceback.tb_next
        assert traceback.tb_frame.f_code.co_name == "main"
        assert traceback.tb_next is None
        names = [entry.name for entry in caught.traceback]
        assert names[-1] == "main"

    run(main)


def test_a_bare_raise_in_the_exit(run: Run) -> None:
    """It raises the exception of the body again: the same object."""

    def leave() -> None:
        raise  # noqa: PLE0704

    async def main() -> None:
        trouble = Trouble()
        with pytest.raises(Trouble) as caught:
            async with contextmanager_in_threadpool(Manager(leave=leave)):
                raise trouble
        assert caught.value is trouble
        assert trouble.__context__ is None

    run(main)


def test_an_exit_that_raises_another(run: Run) -> None:
    """What the body has raised is the context of it."""

    async def main() -> None:
        trouble, other = Trouble("body"), Trouble("exit")
        with pytest.raises(Trouble) as caught:
            async with contextmanager_in_threadpool(Manager(leave=raiser(other))):
                raise trouble
        assert caught.value is other
        assert other.__context__ is trouble
        assert trouble.__context__ is None

    run(main)


def test_the_contexts_of_what_the_enter_raises(run: Run) -> None:
    """They are kept, and what was being handled outside comes behind them."""

    def enter() -> None:
        try:
            raise Trouble("first")
        except Trouble:
            raise Trouble("second")  # noqa: B904

    async def main() -> None:
        manager = Manager(enter)
        outside = Trouble("outside")
        try:
            raise outside
        except Trouble:
            with pytest.raises(Trouble, match="second") as caught:
                await use(manager)
            assert described(caught.value)[2][1:3] == (("first",), described(outside))
        assert manager.exits == []

    run(main)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_exited_first(
    run: Run, limiter: ThreadLimiter, kind: type[BaseException]
) -> None:
    """A KeyboardInterrupt in the body goes out through the exit and the loop."""
    manager = Manager()

    async def main() -> None:
        async with contextmanager_in_threadpool(manager, limiter=limiter):
            raise kind

    with pytest.raises(kind):
        run(main)
    assert [type(error) for error in manager.exits] == [kind]


@pytest.mark.parametrize("step", ["enter", "exit"])
def test_stop_iteration_of_the_manager_itself(run: Run, step: str) -> None:
    """No coroutine can raise one: it comes as the cause of a RuntimeError, and nothing hangs."""
    stop = StopIteration("value")
    manager = Manager(raiser(stop)) if step == "enter" else Manager(leave=raiser(stop))

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await use(manager)
        assert caught.value.__cause__ is stop
        assert manager.exits == ([] if step == "enter" else [None])

    run(main)


def test_a_truth_value_that_raises(run: Run) -> None:
    """The truth of what the exit returns is asked in the thread; what that raises is raised, as by `with`."""

    class Unsure:
        def __bool__(self) -> bool:
            assert here() in workers() or asyncio._get_running_loop() is None
            raise Trouble("unsure")

    async def main() -> None:
        with pytest.raises(Trouble, match="unsure") as caught:
            async with contextmanager_in_threadpool(Manager(leave=Unsure)):
                raise Trouble("body")
        assert str(caught.value.__context__) == "body"

    run(main)


def test_a_reusable_manager(run: Run, limiter: ThreadLimiter) -> None:
    """Can be used again and again, anew or through the same object, and through several at once."""

    async def main() -> None:
        manager = Manager()
        again = contextmanager_in_threadpool(manager, limiter=limiter)
        for _ in range(3):
            async with again:
                assert manager.entered == len(manager.exits) + 1
        await use(manager, lambda: use(manager, lambda: use(manager)))
        assert manager.exits == [None] * 6

    run(main)


@pytest.mark.parametrize("by", ["the same task", "another task"])
def test_one_that_is_open_is_not_entered_again(run: Run, by: str) -> None:
    """It is refused, and the manager is left alone; when it has been exited it can be used again."""
    manager = Manager()
    using = contextmanager_in_threadpool(manager)

    async def enter_again() -> None:
        with pytest.raises(RuntimeError, match="contextmanager_in_threadpool"):
            async with using:
                raise AssertionError("is entered again")

    async def main() -> None:
        for times in (1, 2):
            with contextlib.suppress(Trouble):
                async with using:
                    await (enter_again() if by == "the same task" else spawn(enter_again).result())
                    assert (manager.entered, len(manager.exits)) == (times, times - 1)
                    raise Trouble
            assert len(manager.exits) == times

    run(main)


def test_one_whose_enter_has_failed_can_be_used_again(form: Form, limiter: ThreadLimiter) -> None:
    """Also one that was cancelled while it waited, or was exited at once."""
    errors: list[BaseException | None] = [Trouble(), None, None]

    async def main() -> None:
        with Gate() as gate:
            manager = Manager(lambda: gate(errors.pop(0)))
            using = contextmanager_in_threadpool(manager, limiter=limiter)

            async def use_it() -> None:
                async with using:
                    await checkpoint()
                await checkpoint()

            with Gate() as other:
                blocking = spawn(lambda: run_in_threadpool(other, limiter=limiter))
                await other.reached()
                waiting = form.spawn(use_it)
                while limiter.statistics().tasks_waiting != 1:
                    await checkpoint()
                waiting.cancel()
                await waiting.join()
                assert isinstance(waiting.error, form.cancelled)
                assert manager.threads == []
                other.open()
                await blocking.result()
            failing = form.spawn(use_it)
            await gate.reached(1)
            gate.open()
            await failing.join()
            assert isinstance(failing.error, Trouble)
            cancelled = form.spawn(use_it)
            cancelled.cancel()
            await cancelled.join()
            await use_it()
            assert manager.entered == len(manager.exits) >= 1

    form.run(main)


def test_a_manager_that_can_be_used_once(run: Run) -> None:
    """Says so itself, as it does to `with`."""

    @contextmanager
    def once() -> Iterator[None]:
        yield

    async def main() -> None:
        manager = once()
        await use(manager)
        with pytest.raises((RuntimeError, AttributeError)) as caught:
            await use(manager)
        with pytest.raises(type(caught.value)):
            manager.__enter__()

    run(main)


# ---- cancellation


def test_cancelled_while_waiting_to_enter(form: Form, limiter: ThreadLimiter) -> None:
    """It leaves at once; there is no enter and no exit."""
    manager = Manager()

    async def main() -> None:
        with Gate() as gate:
            first = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            task = form.spawn(lambda: use(manager, limiter=limiter))
            while limiter.statistics().tasks_waiting != 1:
                await checkpoint()
            task.cancel()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert gate.inside == 1
            assert limiter.statistics().tasks_waiting == 0
            gate.open()
            await first.result()

    form.run(main)
    assert manager.threads == []


@pytest.mark.parametrize("same_thread", [False, True])
@pytest.mark.parametrize("again", ["once", "twice", "again in the exit"])
def test_cancelled_during_the_enter(
    form: Form, limiter: ThreadLimiter, again: str, same_thread: bool
) -> None:
    """If the enter completes, the exit runs once, with the cancellation, and the caller learns of it after that."""
    reached_body: list[bool] = []

    async def body() -> None:
        reached_body.append(True)
        await forever()

    async def main() -> None:
        with Gate() as enter, Gate() as leave:
            manager = Manager(enter, leave)
            task = form.spawn(lambda: use(manager, body, limiter=limiter, same_thread=same_thread))
            await enter.reached()
            for _ in range(2 if again == "twice" else 1):
                task.cancel()
                await turns()
            assert not task.ended.is_set()
            assert manager.entered == 0
            enter.open()
            await leave.reached()
            if again == "again in the exit":
                task.cancel()
            await turns()
            assert not task.ended.is_set()
            assert limiter.statistics().exits == 1
            leave.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            (error,) = manager.exits
            assert isinstance(error, form.cancelled)
            assert len(set(manager.threads)) == 1 or not same_thread

    form.run(main)
    # On trio a call that is over returns, so the body is cancelled at its first checkpoint.
    assert reached_body == [True] * form.on_trio


def test_cancelled_during_the_enter_and_the_exit_raises(form: Form, limiter: ThreadLimiter) -> None:
    """What it raises goes to the caller, with the cancellation for its context."""
    trouble = Trouble()
    contexts = []

    async def main() -> None:
        with Gate() as enter:
            manager = Manager(enter, raiser(trouble))

            async def recorded() -> None:
                try:
                    await use(manager, forever, limiter=limiter)
                except Trouble as error:
                    contexts.append(error.__context__)
                    raise

            task = form.spawn(recorded)
            await enter.reached()
            task.cancel()
            await turns()
            enter.open()
            await task.join()
            assert task.error is trouble
            assert len(manager.exits) == 1
            assert contexts == manager.exits

    form.run(main)


def test_cancelled_during_the_enter_and_the_exit_would_suppress(
    form: Form, limiter: ThreadLimiter
) -> None:
    """The caller is cancelled all the same: there is no body whose exception it could be."""

    async def main() -> None:
        with Gate() as enter:
            manager = Manager(enter, lambda: True)
            task = form.spawn(lambda: use(manager, forever, limiter=limiter))
            await enter.reached()
            task.cancel()
            await turns()
            enter.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert len(manager.exits) == 1

    form.run(main)


def test_cancelled_during_an_enter_that_raises(form: Form, limiter: ThreadLimiter) -> None:
    """There is no exit, and what the enter raised goes to the caller."""
    trouble = Trouble()

    async def main() -> None:
        with Gate() as enter:
            manager = Manager(lambda: enter(trouble))
            task = form.spawn(lambda: use(manager, limiter=limiter))
            await enter.reached()
            task.cancel()
            await turns()
            enter.open()
            await task.join()
            assert task.error is trouble
            assert manager.exits == []

    form.run(main)


@pytest.mark.parametrize("again", [False, True], ids=["once", "again in the exit"])
def test_cancelled_during_the_body(form: Form, limiter: ThreadLimiter, again: bool) -> None:
    """The exit is given the cancellation and finishes before the caller learns of it."""

    async def main() -> None:
        with Gate() as leave:
            manager = Manager(leave=leave)
            inside = Signal()

            async def body() -> None:
                inside.set()
                await forever()

            task = form.spawn(lambda: use(manager, body, limiter=limiter))
            await inside.wait()
            task.cancel()
            await leave.reached()
            if again:
                task.cancel()
            await turns()
            assert not task.ended.is_set()
            leave.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            (error,) = manager.exits
            assert isinstance(error, form.cancelled)

    form.run(main)


def test_a_manager_may_suppress_a_cancellation_of_the_body(run: Run) -> None:
    """As under `with`: behind it the task goes on, on trio until its next checkpoint."""
    went_on: list[bool] = []

    async def main() -> None:
        inside = Signal()

        async def body() -> None:
            inside.set()
            await forever()

        async def suppressed() -> None:
            async with contextmanager_in_threadpool(Manager(leave=lambda: True)):
                await body()
            went_on.append(True)

        task = spawn(suppressed)
        await inside.wait()
        task.cancel()
        await task.result()

    run(main)
    assert went_on == [True]


@pytest.mark.parametrize("times", [1, 2])
def test_cancelled_during_the_exit(form: Form, limiter: ThreadLimiter, times: int) -> None:
    """The exit finishes first; it runs once."""

    async def main() -> None:
        with Gate() as leave:
            manager = Manager(leave=leave)
            task = form.spawn(lambda: use(manager, limiter=limiter))
            await leave.reached()
            for _ in range(times):
                task.cancel()
                await turns()
            assert not task.ended.is_set()
            assert limiter.statistics().exits == 1
            leave.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert manager.exits == [None]

    form.run(main)


def test_cancelled_during_an_exit_that_raises(form: Form, limiter: ThreadLimiter) -> None:
    """What the exit raises goes to the caller."""
    trouble = Trouble()

    async def main() -> None:
        with Gate() as leave:
            task = form.spawn(lambda: use(Manager(leave=lambda: leave(trouble)), limiter=limiter))
            await leave.reached()
            task.cancel()
            await turns()
            leave.open()
            await task.join()
            assert task.error is trouble

    form.run(main)


@pytest.mark.parametrize("suppresses", [False, True])
def test_cancelled_during_the_exit_after_an_error(
    asyncio_form: Form, limiter: ThreadLimiter, suppresses: bool
) -> None:
    """The cancellation takes the place of what the body has raised, which is its context."""
    trouble = Trouble()

    async def body() -> None:
        raise trouble

    async def main() -> None:
        contexts = []
        with Gate() as leave:

            async def recorded() -> None:
                try:
                    await use(Manager(leave=lambda: leave(suppresses)), body, limiter=limiter)
                except asyncio.CancelledError as error:
                    contexts.append(error.__context__)
                    raise

            task = asyncio_form.spawn(recorded)
            await leave.reached()
            task.cancel()
            await turns()
            leave.open()
            await task.join()
            assert isinstance(task.error, asyncio.CancelledError)
            assert contexts == [trouble]

    asyncio_form.run(main)


def test_an_exit_that_waits_for_its_turn_is_not_given_up(
    form: Form, limiter: ThreadLimiter, no_rescue: None
) -> None:
    """Who is cancelled while the exits before it run, stays in the queue, and exits when it can."""

    async def main() -> None:
        with Gate() as leave:
            manager = Manager()
            first = spawn(lambda: use(Manager(leave=leave), limiter=limiter))
            await leave.reached()
            task = form.spawn(lambda: use(manager, limiter=limiter))
            while limiter.statistics().tasks_waiting != 1:
                await checkpoint()
            assert manager.entered == 1
            for _ in range(2):
                task.cancel()
                await turns()
            assert not task.ended.is_set()
            assert manager.exits == []
            leave.open()
            await first.result()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert manager.exits == [None]

    form.run(main)


@pytest.mark.parametrize("same_thread", [False, True])
def test_cancelled_at_random(form: Form, limiter: ThreadLimiter, same_thread: bool) -> None:
    """Whenever it comes, and however often: who has entered exits once, and all tokens are back."""
    dice = random.Random(7)
    limiter.total_tokens = 3
    managers: list[Manager] = []

    async def main() -> None:
        for _ in range(20):
            tasks: list[Task] = []
            for _ in range(10):
                managers.append(manager := Manager(leave=lambda: dice.random() < 0.1))
                tasks.append(
                    form.spawn(
                        lambda manager=manager: use(
                            manager, checkpoint, limiter=limiter, same_thread=same_thread
                        )
                    )
                )
                for _ in range(dice.randrange(12)):
                    await checkpoint()
                for _ in range(dice.randrange(3)):
                    dice.choice(tasks).cancel()
            for task in tasks:
                await task.join()
                assert task.error is None or isinstance(task.error, form.cancelled)

    form.run(main)
    assert {len(manager.exits) - manager.entered for manager in managers} == {0}
    assert any(manager.entered for manager in managers)
    assert any(manager.exits not in ([], [None]) for manager in managers)


# ---- the same thread


def test_enter_and_exit_in_the_same_thread(run: Run) -> None:
    """What must be released where it was acquired: an RLock, which nobody else can acquire meanwhile."""

    async def main() -> None:
        lock = threading.RLock()
        async with contextmanager_in_threadpool(lock, same_thread=True):
            assert not lock.acquire(blocking=False)
            for _ in range(5):
                assert not await run_in_threadpool(lock.acquire, blocking=False)
            assert await run_in_threadpool(lock.acquire, blocking=False, same_thread=True)
            await run_in_threadpool(lock.release, same_thread=True)
        assert lock.acquire(blocking=False)
        lock.release()

    run(main)


def test_a_connection_of_sqlite(run: Run) -> None:
    """One that checks its thread can be used in the body, by calls and by iterations, and is closed in the end."""

    async def main() -> None:
        @contextmanager
        def connect() -> Iterator[sqlite3.Connection]:
            connection = sqlite3.connect(":memory:")
            try:
                yield connection
            finally:
                connection.close()

        async with contextmanager_in_threadpool(connect(), same_thread=True) as connection:
            execute = connection.execute
            await run_in_threadpool(execute, "create table t (n)", same_thread=True)
            for number in range(3):
                insert = "insert into t values (?)"
                await run_in_threadpool(execute, insert, (number,), same_thread=True)
            cursor = await run_in_threadpool(execute, "select n from t", same_thread=True)
            rows = [row async for row in iterate_in_threadpool(cursor, same_thread=True)]
            assert rows == [(0,), (1,), (2,)]
            with pytest.raises(sqlite3.ProgrammingError, match="same thread"):
                await run_in_threadpool(execute, "select n from t")
        with pytest.raises(sqlite3.ProgrammingError):
            execute("select n from t")

    run(main)


def test_calls_for_the_thread_come_one_after_another(run: Run) -> None:
    """Child tasks of the body may make them, too, all at once."""
    order: list[int] = []
    manager = Manager()

    async def main() -> None:
        async def call(number: int) -> None:
            assert await run_in_threadpool(here, same_thread=True) is manager.threads[0]
            await run_in_threadpool(order.append, number, same_thread=True)

        async with contextmanager_in_threadpool(manager, same_thread=True):
            await together(*(lambda number=number: call(number) for number in range(20)))

    run(main)
    assert sorted(order) == list(range(20))
    assert len(set(manager.threads)) == 1


def test_the_thread_is_that_of_the_innermost_manager(run: Run) -> None:
    """And behind it that of the outer one again; other calls run elsewhere."""

    async def main() -> None:
        outer, inner, other = Manager(), Manager(), Manager()
        async with contextmanager_in_threadpool(outer, same_thread=True):
            async with contextmanager_in_threadpool(other):
                assert await run_in_threadpool(here, same_thread=True) is outer.threads[0]
            async with contextmanager_in_threadpool(inner, same_thread=True):
                assert await run_in_threadpool(here, same_thread=True) is inner.threads[0]
            assert await run_in_threadpool(here, same_thread=True) is outer.threads[0]
            assert await run_in_threadpool(here) is not outer.threads[0]
        assert outer.threads[0] not in {*inner.threads, *other.threads}

    run(main)


def test_the_same_thread_without_a_manager(run: Run) -> None:
    """Refused, outside of any, after its exit, and in a child task that outlives it."""

    async def main() -> None:
        outlives: list[Task] = []
        exited = Signal()

        async def late() -> Any:
            await exited.wait()
            return await run_in_threadpool(int, same_thread=True)

        async def body() -> None:
            outlives.append(spawn(late))

        with pytest.raises(RuntimeError, match="same_thread=True"):
            await run_in_threadpool(int, same_thread=True)
        async with contextmanager_in_threadpool(Manager()):
            with pytest.raises(RuntimeError, match="same_thread=True"):
                await run_in_threadpool(int, same_thread=True)
        await use(Manager(), body, same_thread=True)
        with pytest.raises(RuntimeError, match="same_thread=True"):
            await run_in_threadpool(int, same_thread=True)
        exited.set()
        with pytest.raises(RuntimeError, match="same_thread=True"):
            await outlives[0].result()

    run(main)


@pytest.mark.parametrize("ending", ["exits", "enter fails", "exit fails", "is cancelled"])
def test_the_thread_goes_back(run: Run, ending: str) -> None:
    """When it is over, in whichever way, others may have it, although somebody still holds the manager."""

    async def main() -> None:
        with Gate() as enter:
            if ending != "is cancelled":
                enter.open()
            enter_fails = Trouble() if ending == "enter fails" else None
            exit_fails = raiser(Trouble()) if ending == "exit fails" else bool
            manager = Manager(lambda: enter(enter_fails), exit_fails)
            held = contextmanager_in_threadpool(manager, same_thread=True)

            async def use_it() -> None:
                async with held:
                    if ending == "is cancelled":
                        await forever()

            task = spawn(use_it)
            await enter.reached()
            if ending == "is cancelled":
                task.cancel()
                enter.open()
            await task.join()
            assert (task.error is None) is (ending == "exits")
            assert len(manager.exits) == (ending != "enter fails")
            (thread,) = set(manager.threads)
            assert await is_free(thread)

    run(main)


def test_the_thread_of_a_manager_that_is_forgotten_goes_back(run: Run) -> None:
    """Who enters, never exits, and drops the manager, holds no thread."""
    manager = Manager()

    async def forget() -> None:
        await contextmanager_in_threadpool(manager, same_thread=True).__aenter__()

    async def main() -> None:
        await spawn(forget).result()
        await turns()
        gc.collect()
        assert await is_free(manager.threads[0])

    run(main)
    assert manager.exits == []


def test_a_manager_that_is_still_open_when_the_loop_ends(run: Run) -> None:
    """Does not hold up the end of the loop, and its thread is free when the manager is dropped."""
    manager = Manager()

    async def main() -> Any:
        held = contextmanager_in_threadpool(manager, same_thread=True)
        await spawn(held.__aenter__).result()
        return held

    held = run(main)
    thread = manager.threads[0]
    assert thread.is_alive()
    ours = thread in workers()
    del held
    gc.collect()
    if ours:
        thread.join(10)
        assert not thread.is_alive()
    else:
        assert run(is_free, thread)  # trio keeps its threads for the next run


def test_hooks_run_once_for_the_same_thread(run: Run) -> None:
    """Before the enter and after the exit, in their thread, and not around the calls in the body."""
    told: list[tuple[str, threading.Thread]] = []

    def teller(what: str) -> Callable[[], None]:
        return lambda: told.append((what, here()))

    limiter = ThreadLimiter(2, before=teller("before"), after=teller("after"))
    manager = Manager(teller("enter"), teller("exit"))

    async def main() -> None:
        async with contextmanager_in_threadpool(manager, limiter=limiter, same_thread=True):
            call = teller("call")
            await run_in_threadpool(call, limiter=limiter, same_thread=True)
            async for _ in iterate_in_threadpool([1, 2, 3], limiter=limiter, same_thread=True):
                pass
            await run_in_threadpool(call, limiter=limiter, same_thread=True)

    run(main)
    assert [what for what, _ in told] == ["before", "enter", "call", "call", "exit", "after"]
    assert {thread for _, thread in told} == {manager.threads[0]}


@pytest.mark.parametrize("failing", ["before", "enter", "exit"])
def test_hooks_for_the_same_thread_when_something_fails(run: Run, failing: str) -> None:
    """`after` runs once, behind an enter or an exit that raises; not when `before` has raised."""
    told: list[str] = []

    def teller(what: str) -> Callable[[], None]:
        def tell() -> None:
            told.append(what)
            if what == failing:
                raise Trouble(what)

        return tell

    limiter = ThreadLimiter(1, before=teller("before"), after=teller("after"))
    manager = Manager(teller("enter"), teller("exit"))

    async def main() -> None:
        with pytest.raises(Trouble, match=failing):
            await use(manager, limiter=limiter, same_thread=True)

    run(main)
    assert (
        told
        == {
            "before": ["before"],
            "enter": ["before", "enter", "after"],
            "exit": ["before", "enter", "exit", "after"],
        }[failing]
    )


def test_hooks_run_around_enter_and_exit(run: Run) -> None:
    """Without `same_thread` each of the two is a call of its own."""
    told: list[str] = []
    limiter = ThreadLimiter(
        1, before=lambda: told.append("before"), after=lambda: told.append("after")
    )
    manager = Manager(lambda: told.append("enter"), lambda: told.append("exit"))

    async def main() -> None:
        await use(manager, limiter=limiter)

    run(main)
    assert told == ["before", "enter", "after", "before", "exit", "after"]


# ---- no deadlocks


@pytest.fixture
def no_rescue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody in beyond the limit, however long nothing moves."""
    from asgi_perfkit.threads import trio_calls

    for module in (pool, trio_calls):
        monkeypatch.setattr(module, "STALL_SECONDS", 1000.0)


def test_exits_do_not_queue_behind_enters(
    run: Run, limiter: ThreadLimiter, no_rescue: None
) -> None:
    """Where all tokens are taken by enters that wait for what is held, calls in the body and the exit go ahead."""

    async def main() -> None:
        resource = threading.Lock()
        async with contextmanager_in_threadpool(resource, limiter=limiter):
            with Gate() as gate:
                gate.open()
                others = [
                    spawn(lambda: use(LockManager(resource, gate), limiter=limiter))
                    for _ in range(3)
                ]
                await gate.reached()
                while limiter.statistics().tasks_waiting != 2:
                    await checkpoint()
                assert limiter.borrowed_tokens == 1
                assert await run_in_threadpool(int, limiter=limiter) == 0
        for other in others:
            await other.result()

    run(main)


class LockManager:
    """Acquires a lock, and says when it begins to."""

    def __init__(self, lock: threading.Lock, gate: Gate) -> None:
        self._lock = lock
        self._gate = gate

    def __enter__(self) -> None:
        self._gate()
        assert self._lock.acquire(timeout=PATIENCE_SECONDS)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_mass_of_exits_needs_no_mass_of_threads(run: Run, no_rescue: None) -> None:
    """300 at once run on as many threads as there are tokens."""
    limiter = ThreadLimiter(10)

    async def main() -> None:
        with Gate() as leave:
            inside: list[Signal] = []

            async def hold() -> None:
                async with contextmanager_in_threadpool(Manager(leave=leave), limiter=limiter):
                    inside.append(Signal())
                    inside[-1].set()
                    await everybody.wait()

            everybody = Signal()
            tasks = [spawn(hold) for _ in range(300)]
            while len(inside) < 300:
                await checkpoint()
            everybody.set()
            await leave.reached(10)
            while limiter.statistics().tasks_waiting < 290:
                await checkpoint()
            assert (limiter.statistics().exits, leave.inside) == (10, 10)
            assert len(workers()) <= 20
            leave.open()
            for task in tasks:
                await task.result()
            assert (leave.most, leave.passed) == (10, 300)
            assert len(workers()) <= 20
            assert limiter.statistics().rescued == 0

    run(main)


class Connections:
    """A pool of one connection; `connection()` waits for it, with no regard to anybody."""

    def __init__(self) -> None:
        self.free: queue.Queue[object] = queue.Queue()
        self.free.put("connection")
        self.used = 0

    @contextmanager
    def connection(self) -> Iterator[object]:
        connection = self.free.get(timeout=PATIENCE_SECONDS)
        try:
            yield connection
        finally:
            self.used += 1
            self.free.put(connection)


@pytest.mark.parametrize("same_thread", [False, True])
@pytest.mark.parametrize(
    "body", ["awaits", "calls", "iterates", "calls in child tasks", "enters another", "raises"]
)
def test_fifty_users_of_one_connection(run: Run, body: str, same_thread: bool) -> None:
    """With four tokens, and whatever they do while they have it, all get it, use it and give it back."""
    limiter = ThreadLimiter(4)
    connections = Connections()

    async def call() -> None:
        await run_in_threadpool(int, limiter=limiter, same_thread=same_thread)

    async def work() -> None:
        if body == "calls":
            await call()
            await call()
        elif body == "iterates":
            rows = iterate_in_threadpool(range(100), limiter=limiter, same_thread=same_thread)
            assert [row async for row in rows] == list(range(100))
        elif body == "calls in child tasks":
            await together(call, call, call, call, call, call)
        elif body == "enters another":
            await use(Manager(), call, limiter=limiter)
        elif body == "raises":
            await checkpoint()
            raise Trouble
        else:
            await checkpoint()

    async def user() -> None:
        manager = connections.connection()
        with contextlib.suppress(Trouble):
            await use(manager, work, limiter=limiter, same_thread=same_thread)

    async def main() -> None:
        await together(*[user] * 50)
        assert connections.used == 50
        assert connections.free.qsize() == 1
        stats = limiter.statistics()
        assert (stats.borrowed_tokens, stats.tasks_waiting, stats.exits) == (0, 0, 0)

    run(main)


def test_users_of_one_connection_who_are_cancelled(form: Form) -> None:
    """Whatever they wait for when it comes, the connection comes back and those who are left get it."""
    limiter = ThreadLimiter(4)
    connections = Connections()
    dice = random.Random(3)

    async def work() -> None:
        await run_in_threadpool(int, limiter=limiter)
        await checkpoint()

    async def main() -> None:
        tasks = []
        for _ in range(50):
            tasks.append(form.spawn(lambda: use(connections.connection(), work, limiter=limiter)))
            for _ in range(dice.randrange(8)):
                await checkpoint()
            if dice.random() < 0.7:
                dice.choice(tasks).cancel()
        for task in tasks:
            await task.join()
        assert connections.free.qsize() == 1
        assert connections.used >= sum(task.error is None for task in tasks) > 0

    form.run(main)


def test_an_exit_that_waits_for_another_exit(run: Run, limiter: ThreadLimiter) -> None:
    """Where no token for it comes back for a while, the other is let in beyond the limit."""

    async def main() -> None:
        other_has_left = Signal()
        with Gate() as leave:
            leave.open()

            def wait_for_the_other() -> None:
                leave()
                other_has_left.block()

            async def other() -> None:
                async with contextmanager_in_threadpool(
                    Manager(leave=other_has_left.set), limiter=limiter
                ):
                    await leave.reached()

            second = spawn(other)
            while limiter.borrowed_tokens:
                await checkpoint()
            await use(Manager(leave=wait_for_the_other), limiter=limiter)
            await second.result()
            assert limiter.statistics().rescued == 1

    run(main)


def test_an_inner_enter_that_waits_for_another(run: Run, limiter: ThreadLimiter) -> None:
    """Two who are inside of a manager enter another, and one waits for what the other does then."""

    async def main() -> None:
        other_is_in = Signal()
        with Gate() as gate:
            gate.open()

            def wait_for_the_other() -> None:
                gate()
                other_is_in.block()

            async def enter_when_the_other_waits() -> None:
                is_inside.set()
                await gate.reached()
                await use(Manager(other_is_in.set), limiter=limiter)

            is_inside = Signal()
            second = spawn(lambda: use(Manager(), enter_when_the_other_waits, limiter=limiter))
            await is_inside.wait()  # who is inside of none does not get past one who enters
            await use(
                Manager(),
                lambda: use(Manager(wait_for_the_other), limiter=limiter),
                limiter=limiter,
            )
            await second.result()
            assert limiter.statistics().rescued == 1

    run(main)


def test_a_manager_takes_no_token_while_it_is_open(
    run: Run, limiter: ThreadLimiter, no_rescue: None
) -> None:
    """One token serves any number of managers that are open at once, with a thread each or not."""

    async def nested(depth: int, same_thread: bool) -> None:
        if depth:
            await use(
                Manager(),
                lambda: nested(depth - 1, same_thread),
                limiter=limiter,
                same_thread=same_thread,
            )
        else:
            assert limiter.borrowed_tokens == 0

    async def main() -> None:
        await nested(20, same_thread=False)
        await nested(20, same_thread=True)

    run(main)


# ---- where Django's synchronous code runs


def test_thread_sensitive(run_asyncio: Run) -> None:
    """Enter and exit run where asgiref's own thread-sensitive calls run, and share their context."""
    from asgiref.sync import ThreadSensitiveContext, sync_to_async

    @contextmanager
    def setting() -> Iterator[None]:
        threads.append(here())
        token = var.set("by the enter")
        yield
        var.reset(token)
        threads.append(here())

    threads: list[threading.Thread] = []

    async def main() -> None:
        async with ThreadSensitiveContext():
            async with contextmanager_in_threadpool(setting(), thread_sensitive=True):
                assert var.get() == "by the enter"
                threads.append(await sync_to_async(here, thread_sensitive=True)())
            assert var.get() == "nothing"
        assert len(threads) == 3
        assert len(set(threads)) == 1
        assert threads[0] is not here()

    run_asyncio(main)


def test_thread_sensitive_and_cancelled_during_the_enter(asyncio_form: Form) -> None:
    """The exit runs in the same thread, before the caller learns of it."""

    async def main() -> None:
        with Gate() as enter:
            manager = Manager(enter)
            task = asyncio_form.spawn(lambda: use(manager, forever, thread_sensitive=True))
            await enter.reached()
            task.cancel()
            await turns()
            assert not task.ended.is_set()
            enter.open()
            await task.join()
            assert isinstance(task.error, asyncio.CancelledError)
            assert len(manager.exits) == 1
            assert len(set(manager.threads)) == 1

    asyncio_form.run(main)


def test_thread_sensitive_on_trio(run_trio: Run) -> None:
    """There is no such thread: refused before the enter."""
    manager = Manager()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="asyncio"):
            await use(manager, thread_sensitive=True)

    run_trio(main)
    assert manager.threads == []


# ---- wrong arguments


class AsyncManager:
    async def __aenter__(self) -> None:
        raise AssertionError("entered")

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError("exited")


class Half:
    def __enter__(self) -> None:
        raise AssertionError("entered")


def with_attributes() -> object:
    """An object that has the methods, while its type has not: `with` does not take it either."""

    class Plain:
        pass

    plain: Any = Plain()
    plain.__enter__ = plain.__exit__ = int
    return plain


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (None, "__enter__ and __exit__"),
        ("text", "__enter__ and __exit__"),
        (Half(), "__enter__ and __exit__"),
        (Manager, "__enter__ and __exit__"),  # not called
        (with_attributes(), "__enter__ and __exit__"),
        (AsyncManager(), "async with"),
    ],
)
def test_what_is_no_manager_is_refused(run: Run, wrong: Any, remedy: str) -> None:
    """At the call, with its name and the remedy; no thread is used."""

    async def main() -> None:
        before = threading.active_count()
        with pytest.raises(ConfigurationTypeError, match=remedy) as caught:
            contextmanager_in_threadpool(wrong)
        assert repr(wrong) in str(caught.value)
        assert threading.active_count() == before
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
    with pytest.raises(ConfigurationTypeError, match="contextmanager_in_threadpool"):
        contextmanager_in_threadpool(Manager(), **options)


@pytest.mark.parametrize("same_thread", [False, True])
def test_without_a_loop(same_thread: bool) -> None:
    """A RuntimeError says that there is none."""
    manager = Manager()
    entering = contextmanager_in_threadpool(manager, same_thread=same_thread).__aenter__()
    with pytest.raises(RuntimeError, match="No event loop"):
        entering.send(None)
    assert manager.threads == []
