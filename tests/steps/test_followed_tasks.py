"""Child tasks look and behave as if nobody followed them."""

from __future__ import annotations

import asyncio
import inspect
import io
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from tests.steps.charging import charge
from tests.support import checkpoint, forever

Run = Callable[..., Any]

colour: ContextVar[str] = ContextVar("colour", default="none")


# What a child looks like


def test_a_task_answers_with_the_very_coroutine(run_asyncio: Run) -> None:
    """`get_coro()` is the coroutine that was given, in the state that it is in."""

    async def child() -> None:
        await checkpoint()

    async def work() -> None:
        coro = child()
        task = asyncio.ensure_future(coro)
        assert task.get_coro() is coro
        assert inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_CREATED
        await checkpoint()
        assert inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_SUSPENDED
        await task

    run_asyncio(lambda: charge(work()))


def test_names_are_kept(run_asyncio: Run) -> None:
    """A task has the name that it was given, or one that the loop makes, never "None"."""
    names = []

    async def child() -> None:
        task = asyncio.current_task()
        assert task is not None
        names.append(task.get_name())

    async def work() -> None:
        await asyncio.create_task(child(), name="given")
        await asyncio.create_task(child())
        await asyncio.gather(child())

    run_asyncio(lambda: charge(work()))
    assert names[0] == "given"
    assert all(re.fullmatch(r"Task-\d+", name) for name in names[1:])
    assert names[1] != names[2]


def test_names_may_be_changed(run_asyncio: Run) -> None:
    """`set_name` works as on any task."""

    async def work() -> None:
        task = asyncio.ensure_future(checkpoint())
        task.set_name("another")
        assert task.get_name() == "another"
        await task

    run_asyncio(lambda: charge(work()))


def test_repr_shows_the_code_of_the_user(run_asyncio: Run) -> None:
    """The repr of a followed task differs from that of an unfollowed one in nothing but name and line."""

    async def child() -> None:
        await checkpoint()

    async def shown() -> str:
        task = asyncio.create_task(child(), name="shown")
        await asyncio.sleep(0)
        text = repr(task)
        await task
        return re.sub("wait_for=.*", "", text)

    async def main() -> None:
        natively = await shown()
        assert "child()" in natively
        assert __file__ in natively
        texts = []

        async def work() -> None:
            texts.append(await shown())

        await charge(work())
        assert "asgi_perfkit" not in texts[0]
        assert texts[0] == natively

    run_asyncio(main)


def test_the_class_of_a_task_shows_as_task(run_asyncio: Run) -> None:
    """Who logs a task reads `<Task`, on each Python."""

    async def work() -> None:
        task = asyncio.create_task(checkpoint())
        assert isinstance(task, asyncio.Task)
        assert repr(task).startswith("<Task ")
        await task

    run_asyncio(lambda: charge(work()))


def test_in_debug_mode_a_task_tells_where_the_user_created_it() -> None:
    """The source traceback that asyncio keeps in debug mode ends outside of the kit."""

    async def work() -> None:
        task = asyncio.get_running_loop().create_task(checkpoint())
        assert "asgi_perfkit" not in repr(task)
        await task

    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)
        await charge(work())

    asyncio.run(main(), debug=True)


def test_stacks_show_the_code_of_the_user(run_asyncio: Run) -> None:
    """`get_stack` and `print_stack` show where the child waits, before and after its work is over."""

    async def child() -> None:
        await forever()  # the line that is shown

    async def main() -> None:
        tasks = []

        async def work() -> None:
            tasks.append(asyncio.create_task(child()))
            await checkpoint()
            look()

        def look() -> None:
            (frame,) = tasks[0].get_stack()
            assert frame.f_code is child.__code__
            printed = io.StringIO()
            tasks[0].print_stack(file=printed)
            assert "the line that is shown" in printed.getvalue()
            assert "asgi_perfkit" not in printed.getvalue()

        await charge(work())
        look()
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    run_asyncio(main)


def test_a_child_runs_in_a_copy_of_its_parents_context(run_asyncio: Run) -> None:
    """A child sees what its parent has set, and what it sets itself stays its own."""
    seen = []

    async def child() -> None:
        seen.append(colour.get())
        colour.set("blue")
        await checkpoint()
        seen.append(colour.get())

    async def work() -> None:
        colour.set("red")
        await asyncio.ensure_future(child())
        seen.append(colour.get())

    run_asyncio(lambda: charge(work()))
    assert seen == ["red", "blue", "red"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="create_task(context=...) is of Python 3.11")
def test_a_child_runs_in_the_context_that_it_is_given(run_asyncio: Run) -> None:
    """`create_task(context=...)` runs the child in that very context."""

    async def child() -> None:
        assert colour.get() == "green"
        colour.set("blue")
        await checkpoint()

    async def work() -> None:
        context = copy_context()
        context.run(colour.set, "green")
        await asyncio.create_task(child(), context=context)
        assert context[colour] == "blue"
        assert colour.get() == "none"

    run_asyncio(lambda: charge(work()))


def test_a_child_that_is_never_started_warns_as_ever(run_asyncio: Run) -> None:
    """A task that is cancelled before its first step leaves no warning, its coroutine is closed."""

    async def child() -> None:
        raise AssertionError("it runs")

    async def work() -> None:
        task = asyncio.ensure_future(child())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inspect.getcoroutinestate(task.get_coro()) == inspect.CORO_CLOSED

    run_asyncio(lambda: charge(work()))
