"""What a task can be made of, and where it runs."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial, wraps
from typing import Any

import pytest

from asgi_perfkit import BackgroundTasks, BatchedBackgroundTasks, add_task, task_options
from asgi_perfkit.exceptions import (
    ConfigurationTypeError,
    ConfigurationValueError,
    NoRequestError,
)
from asgi_perfkit.tasks.item import name_of
from tests.conftest import Run
from tests.support import checkpoint, forever
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Request
from tests.threads.gates import PATIENCE_SECONDS

Calls = list[tuple[Any, ...]]  # of what each was called with, and in which thread


def note(calls: Calls, a: int, b: int) -> None:
    calls.append((a, b, threading.current_thread()))


async def note_async(calls: Calls, a: int, b: int) -> None:
    await checkpoint()
    calls.append((a, b, threading.current_thread()))


class Notes:
    """Has a method of each kind, sync and async."""

    def method(self, calls: Calls, a: int, b: int) -> None:
        note(calls, a, b)

    def generate(self) -> Iterator[int]:
        yield 1

    async def async_method(self, calls: Calls, a: int, b: int) -> None:
        await note_async(calls, a, b)

    @classmethod
    def class_method(cls, calls: Calls, a: int, b: int) -> None:
        note(calls, a, b)

    @classmethod
    async def async_class_method(cls, calls: Calls, a: int, b: int) -> None:
        await note_async(calls, a, b)

    @staticmethod
    async def async_static_method(calls: Calls, a: int, b: int) -> None:
        await note_async(calls, a, b)


class SyncCallable:
    """Is called."""

    def __call__(self, calls: Calls, a: int, b: int) -> None:
        note(calls, a, b)


class AsyncCallable:
    """Is called and awaited."""

    async def __call__(self, calls: Calls, a: int, b: int) -> None:
        await note_async(calls, a, b)


class Constructed:
    """Is constructed, which is not to wait for anything."""

    def __init__(self, calls: Calls, a: int, b: int) -> None:
        note(calls, a, b)

    async def __call__(self) -> None:
        raise AssertionError("nobody calls the object itself")


class HasToBeAwaited:
    """Has to be awaited."""

    def __init__(self, calls: Calls, a: int, b: int) -> None:
        self._arguments = (calls, a, b)

    def __await__(self) -> Any:
        return note_async(*self._arguments).__await__()


def same(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows nothing of async functions."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


IN_THREAD: dict[str, Callable[..., Any]] = {
    "function": note,
    "lambda": lambda calls, a, b: note(calls, b=b, a=a),
    "partial": partial(note),
    "method": Notes().method,
    "class method": Notes.class_method,
    "callable": SyncCallable(),
    "partial of a callable": partial(SyncCallable()),
    "class": Constructed,
    "decorated": same(note),
    "options": task_options(note, timeout=PATIENCE_SECONDS),
}
ON_LOOP: dict[str, Callable[..., Any]] = {
    "function": note_async,
    "lambda": lambda calls, a, b: note_async(calls, b=b, a=a),
    "partial": partial(note_async),
    "partial of a partial": partial(partial(note_async)),
    "method": Notes().async_method,
    "class method": Notes.async_class_method,
    "static method": Notes.async_static_method,
    "callable": AsyncCallable(),
    "method of a callable": AsyncCallable().__call__,
    "partial of a callable": partial(AsyncCallable()),
    "awaitable": HasToBeAwaited,
    "decorated": same(note_async),
    "options": task_options(note_async, timeout=PATIENCE_SECONDS),
    "options of a partial": task_options(partial(note_async)),
    "partial of options": partial(task_options(note_async)),
}


def run_it(run: Run, supervise: Supervise, function: Callable[..., Any]) -> Calls:
    supervisor = supervise()
    calls: Calls = []

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(function, calls, 1, b=2).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"done": 1}
    return calls


@pytest.mark.parametrize("function", IN_THREAD.values(), ids=IN_THREAD)
def test_what_is_not_async_runs_in_a_thread(
    run: Run, supervise: Supervise, function: Callable[..., Any]
) -> None:
    """Whatever can be called is called once, with its arguments, and not on the loop."""
    ((a, b, thread),) = run_it(run, supervise, function)
    assert (a, b) == (1, 2)
    assert thread is not threading.current_thread()


@pytest.mark.parametrize("function", ON_LOOP.values(), ids=ON_LOOP)
def test_what_is_async_runs_on_the_loop(
    run: Run, supervise: Supervise, function: Callable[..., Any]
) -> None:
    """Whatever gives a coroutine, or something else to await, is awaited once, on the loop."""
    ((a, b, thread),) = run_it(run, supervise, function)
    assert (a, b) == (1, 2)
    assert thread is threading.current_thread()


@pytest.mark.parametrize("name", ["function", "partial", "method", "callable"])
def test_async_functions_need_no_thread(run: Run, supervise: Supervise, name: str) -> None:
    """A task that is known to be async takes no token of the threads."""
    supervisor = supervise()
    supervisor._limiter = None  # type: ignore[assignment]
    calls: Calls = []

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(ON_LOOP[name], calls, 1, 2).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert len(calls) == 1


def test_options_are_called_and_named_like_their_function() -> None:
    """A function with options stays one that can be called, and says what it is."""
    options = task_options(note, timeout=2.5)
    calls: Calls = []
    options(calls, 1, b=2)
    assert calls == [(1, 2, threading.current_thread())]
    assert (options.__name__, options.func, options.timeout) == ("note", note, 2.5)
    assert repr(options) == f"task_options({note!r}, timeout=2.5, handoff=None)"


def test_options_upon_options_are_those_of_both() -> None:
    """The outer ones have the last word."""
    inner = task_options(note, timeout=2.5, handoff=False)
    for options, timeout in (
        (task_options(inner), 2.5),
        (task_options(inner, timeout=1), 1),
        (task_options(task_options(note, handoff=False), timeout=2.5), 2.5),
    ):
        assert (options.func, options.timeout, options.handoff) == (note, timeout, False)
    assert task_options(inner, handoff=True).handoff is True


class OwnOptions(task_options):
    """Those of an app."""


@pytest.mark.parametrize("make", [task_options, OwnOptions])
def test_options_hold_in_a_partial(
    run: Run, supervise: Supervise, make: type[task_options]
) -> None:
    """In one of another partial, in one that gets more options, and in a class of its own."""
    supervisor = supervise()
    given_up: list[Any] = []

    class Named(partial):  # type: ignore[type-arg]  # is not merged with what it is a partial of
        pass

    async def endless(*args: Any, **kwargs: Any) -> None:
        given_up.append((args, kwargs))
        await forever()

    options = make(endless, timeout=0.001)
    forms = [
        options,
        partial(options, 1, a=2),
        partial(Named(options, 1), a=2),
        task_options(partial(options, 1, a=2), handoff=False),
    ]

    async def main() -> None:
        supervisor.open()
        for form in forms:
            Request(supervisor).add(form, 3, b=4).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"timed_out": len(forms)}
    assert given_up == [((3,), {"b": 4})] + [((1, 3), {"a": 2, "b": 4})] * 3
    assert {failure.name for failure in supervisor.told} == {name_of(endless)}


@pytest.mark.parametrize("number", [1, 0, None, "send", [note]])
def test_what_cannot_be_called_is_no_task(supervise: Supervise, number: Any) -> None:
    """It is refused where it is added, and nothing is accepted."""
    supervisor = supervise()
    tasks = BackgroundTasks()
    for add in (Request(supervisor).add, tasks.add_task, task_options):
        with pytest.raises(ConfigurationTypeError, match=r"func\) got .* give a function"):
            add(number)
    assert (supervisor.accepted, len(tasks)) == (0, 0)


def test_a_coroutine_is_no_task(supervise: Supervise) -> None:
    """The message says that it was called already; Python has nothing to warn of then."""
    supervisor = supervise()
    for add in (Request(supervisor).add, BackgroundTasks().add_task, task_options):
        with pytest.raises(ConfigurationTypeError, match=r"called already.*\(send, user\)"):
            add(note_async([], 1, 2))
    assert supervisor.accepted == 0


def generate() -> Iterator[int]:
    yield 1


async def generate_async() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "function", [generate, generate_async, partial(generate), Notes().generate]
)
def test_a_generator_function_is_no_task(supervise: Supervise, function: Any) -> None:
    """To call one runs nothing of it: it is refused where it is added."""
    supervisor = supervise()
    for add in (Request(supervisor).add, BackgroundTasks().add_task, task_options):
        with pytest.raises(ConfigurationTypeError, match=r"func\) got .* runs nothing"):
            add(function)
    assert supervisor.accepted == 0


@pytest.mark.parametrize(("args", "kwargs"), [((), {"a": 1}), ((1,), {})])
def test_a_list_takes_no_arguments(supervise: Supervise, args: Any, kwargs: Any) -> None:
    """Its tasks have theirs: what stands behind the list is refused, and the list is left as it was."""
    supervisor = supervise()
    tasks = BackgroundTasks()
    tasks.add_task(note, [], 1, 2)
    with pytest.raises(TypeError, match=r"add_task\(tasks\) got .* has its arguments already"):
        Request(supervisor).add(tasks, *args, **kwargs)
    assert (supervisor.accepted, len(tasks)) == (0, 1)


@pytest.mark.parametrize("timeout", ["1", True, [1]])
def test_a_timeout_is_a_number(timeout: Any) -> None:
    """Anything else is refused by its name."""
    with pytest.raises(ConfigurationTypeError, match=r"task_options\(timeout=\.\.\.\) got"):
        task_options(note, timeout=timeout)


@pytest.mark.parametrize("timeout", [0, -1, -0.5, float("nan"), float("-inf")])
def test_a_timeout_is_above_zero(timeout: float) -> None:
    """A task that may take no time at all cannot be meant."""
    with pytest.raises(ConfigurationValueError, match=r"timeout=\.\.\.\) got .*more than 0"):
        task_options(note, timeout=timeout)


@pytest.mark.parametrize("size", ["1", True, 1.0, None])
def test_a_batch_size_is_a_whole_number(size: Any) -> None:
    """Anything else is refused by its name."""
    with pytest.raises(ConfigurationTypeError, match=r"batch_size=\.\.\.\) got .*whole number"):
        BatchedBackgroundTasks(size)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_a_task(size: int) -> None:
    """Batches of nothing would never come to an end."""
    with pytest.raises(ConfigurationValueError, match=r"batch_size=\.\.\.\) got .*1 or more"):
        BatchedBackgroundTasks(batch_size=size)


def test_outside_of_a_request_there_is_nothing_to_add_to() -> None:
    """The error names the middleware that is missing."""
    with pytest.raises(NoRequestError, match="BackgroundTaskMiddleware"):
        add_task(note, [], 1, 2)
