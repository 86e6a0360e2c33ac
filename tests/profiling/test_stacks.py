"""Whose code runs in a thread, read from its stack by another one."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from types import FrameType
from typing import Any

import anyio.to_thread
import pytest
from asgiref.sync import sync_to_async

from asgi_perfkit import run_in_threadpool
from asgi_perfkit.profiling.stacks import (
    Hops,
    LoopThread,
    Reading,
    frames_of,
    is_app_code,
    line_of,
    step_of,
)
from asgi_perfkit.steps import Account
from tests.profiling.stacks import Held, in_thread, looking
from tests.steps.charging import Run, charge, new_account
from tests.support import checkpoint, together

Look = Callable[[FrameType], object]


def names(reading: Reading | None) -> list[str]:
    """The functions of a reading, the outermost first."""
    assert reading is not None
    return [code.co_name for code, _ in reversed(reading.stack)]


async def seen_in(work: Callable[[Held], Awaitable[None]], make: Callable[[], Look]) -> Any:
    """What a look at the stack says while work holds, driven by an account; and that account."""
    held = Held()
    account = new_account()
    with looking(held, make()) as seen:
        await charge(work(held), account, time.perf_counter_ns())
    return seen[0], account


# ---- the loop's thread


async def holding(held: Held) -> None:
    held.hold()


async def holding_later(held: Held) -> None:
    await checkpoint()
    held.hold()


async def holding_in_child(held: Held) -> None:
    async def child() -> None:
        await checkpoint()
        held.hold()

    await together(child)


@pytest.mark.parametrize("work", [holding, holding_later, holding_in_child])
def test_a_step_is_known_with_its_beginning(run: Run, work: Any) -> None:
    """In the first step, a later one, and in a child task."""
    before_ns = time.perf_counter_ns()
    step, account = run(seen_in, work, lambda: LoopThread().step_of)
    assert step.account is account
    assert before_ns <= step.started_ns <= time.perf_counter_ns()


@pytest.mark.parametrize("work", [holding, holding_later, holding_in_child])
def test_a_reading_ends_where_the_work_begins(run: Run, work: Any) -> None:
    reading, account = run(seen_in, work, lambda: LoopThread().read)
    assert reading.account is account
    outermost = "child" if work is holding_in_child else work.__name__
    found = names(reading)
    assert outermost in found[:2]  # on trio a child is called by the loop
    assert found[found.index(outermost) + 1] == "hold"


def test_the_innermost_account_and_the_outermost_beginning(run: Run) -> None:
    """A request inside of another one: whose it is, and since when the loop is kept."""
    inner = new_account()
    started = []

    async def outer(held: Held) -> None:
        started.append(time.perf_counter_ns())
        await charge(holding(held), inner, time.perf_counter_ns())

    step, account = run(seen_in, outer, lambda: step_of)
    assert step.account is inner is not account
    assert step.started_ns < started[0]


def test_an_eager_task_is_part_of_the_step_around_it() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")

    async def eager(held: Held) -> None:
        task = asyncio.Task(holding(held), loop=asyncio.get_running_loop(), eager_start=True)
        await task

    step, account = asyncio.run(seen_in(eager, lambda: step_of))
    assert step.account is account


def test_code_outside_of_requests_is_nobodys(run: Run) -> None:
    async def main() -> tuple[Any, Any]:
        held = Held()
        thread = LoopThread()
        with looking(held, thread.read) as seen:
            held.hold()
        return seen[0], thread.step_of(sys._getframe())

    reading, step = run(main)
    assert step is None
    assert reading.account is None
    found = names(reading)
    assert found[-1] == "wait"
    assert "hold" in found
    around = {
        "_run_once",
        "unrolled_run",
        "wrapper",
    }  # the loops; the coroutine that uvloop.run makes
    assert found[0] in around  # and nothing of what is around them


def test_a_loop_that_waits_runs_nothing(run: Run) -> None:
    async def main() -> Reading | None:
        thread = LoopThread()
        ident = threading.get_ident()
        seen: list[Reading | None] = []

        def look() -> None:
            until = time.monotonic() + 5
            while time.monotonic() < until:  # the loop gets there as soon as this thread lets it
                reading = thread.read(sys._current_frames()[ident])
                if reading is None:
                    break
                time.sleep(0.001)
            seen.append(reading)

        Hops().learn()
        await in_thread(look)
        return seen[0]

    assert run(main) is None


def test_a_loop_that_is_over_is_not_alive(run: Run) -> None:
    async def main() -> LoopThread:
        thread = LoopThread()
        assert thread.is_alive()
        assert thread.is_here()
        return thread

    thread = run(main)
    gc.collect()
    assert not thread.is_alive()
    assert not thread.is_here()


def test_without_a_loop_there_is_no_thread_of_one() -> None:
    with pytest.raises(RuntimeError):
        LoopThread()


# ---- greenlets


def test_code_in_a_greenlet_is_that_of_the_task_that_waits_for_it(run_asyncio: Run) -> None:
    """SQLAlchemy's sync engine runs in one; the stack there ends below the task."""
    greenlet = pytest.importorskip("greenlet", reason="greenlet is not installed")

    async def work(held: Held) -> None:
        await checkpoint()
        current = greenlet.getcurrent()
        made = greenlet.greenlet(held.hold, parent=current)
        made.gr_context = current.gr_context
        made.switch()

    reading, account = run_asyncio(seen_in, work, lambda: LoopThread().read)
    assert reading.account is account
    assert names(reading)[0] == "hold"
    before_ns = time.perf_counter_ns()
    step, account = run_asyncio(seen_in, work, lambda: LoopThread().step_of)
    assert step.account is account
    assert step.started_ns >= before_ns


# ---- worker threads


async def kit(function: Any) -> None:
    await run_in_threadpool(function)


async def by_anyio(function: Any) -> None:
    await anyio.to_thread.run_sync(function)


async def asgiref_apart(function: Any) -> None:
    await sync_to_async(function, thread_sensitive=False)()


async def asgiref_sensitive(function: Any) -> None:
    await sync_to_async(function, thread_sensitive=True)()


async def executor(function: Any) -> None:
    run = partial(copy_context().run, function)
    await asyncio.get_running_loop().run_in_executor(None, run)


async def executor_run(function: Any) -> None:
    await asyncio.get_running_loop().run_in_executor(None, copy_context().run, function)


def hops() -> Look:
    found = Hops()
    found.learn()
    return found.read


async def seen_in_thread(hop: Callable[[Any], Awaitable[None]]) -> Any:
    async def work(held: Held) -> None:
        await hop(held.hold)

    return await seen_in(work, hops)


@pytest.mark.parametrize("hop", [kit, by_anyio, in_thread])
def test_a_worker_thread_works_for_the_request(run: Run, hop: Any) -> None:
    reading, account = run(seen_in_thread, hop)
    assert reading.account is account
    assert "hold" in names(reading)[:6]


@pytest.mark.parametrize("hop", [asgiref_apart, asgiref_sensitive, executor, executor_run])
def test_a_worker_thread_of_asyncio_works_for_the_request(run_asyncio: Run, hop: Any) -> None:
    reading, account = run_asyncio(seen_in_thread, hop)
    assert reading.account is account
    assert "hold" in names(reading)[:6]


def test_a_call_that_belongs_to_no_request_is_nobodys(run_asyncio: Run) -> None:
    async def main() -> Any:
        held = Held()
        with looking(held, hops()) as seen:
            await in_thread(held.hold)
        return seen[0]

    reading = run_asyncio(main)
    assert reading.account is None
    assert "hold" in names(reading)


def test_a_thread_that_was_given_no_call_is_not_read() -> None:
    held = Held()
    thread = threading.Thread(target=held.hold)
    with looking(held, hops()) as seen:
        thread.start()
        thread.join()
    assert seen == [None]


def test_an_idle_worker_is_not_read(run: Run) -> None:
    async def main() -> Any:
        idents: list[int] = []
        for hop in (kit, by_anyio, in_thread):
            await hop(lambda: idents.append(threading.get_ident()))
        look = hops()
        until = time.monotonic() + 5
        while time.monotonic() < until:  # the caller may be told before the thread is idle
            frames = sys._current_frames()
            seen = [look(frames[ident]) for ident in idents if ident in frames]
            if not any(seen):
                break
            await checkpoint()
        return seen

    assert not any(run(main))


# ---- what looking does to those who are looked at


class Thing:
    pass


def test_the_locals_of_the_app_are_not_touched(run_asyncio: Run) -> None:
    """Functions that rebind, delete and execute names keep what they did, and what they let go of is free at once."""

    def rounds(number: int) -> None:
        until = time.perf_counter() + 0.06
        cell = 0

        def inner() -> None:
            nonlocal cell
            cell += 1

        space: dict[str, Any] = {}
        mine = locals()
        while time.perf_counter() < until:
            thing = Thing()
            gone = weakref.ref(thing)
            mine["marked"] = number
            kept = cell
            inner()
            exec("made = 1", space)
            sum(range(200))
            assert mine["marked"] == number
            assert cell == kept + 1
            assert space.pop("made") == 1
            assert thing is not None
            del thing
            assert gone() is None

    async def work() -> None:
        await checkpoint()
        rounds(1)
        await run_in_threadpool(rounds, 2)
        await asyncio.to_thread(rounds, 3)
        await anyio.to_thread.run_sync(rounds, 4)

    over = threading.Event()
    looks = 0

    async def main() -> None:
        thread = LoopThread()

        def look() -> None:
            nonlocal looks
            workers = hops()
            while not over.is_set():
                for ident, frame in list(sys._current_frames().items()):
                    if ident == thread.ident:
                        thread.read(frame)
                        thread.step_of(frame)
                    elif ident != threading.get_ident():
                        workers(frame)
                del frame
                looks += 1
                time.sleep(0.0002)

        looker = threading.Thread(target=look)
        looker.start()
        try:
            await charge(work(), started_ns=time.perf_counter_ns())
        finally:
            over.set()
            looker.join()

    run_asyncio(main)
    assert looks > 20


def test_an_idle_worker_of_anyio_holds_nothing_of_its_last_call(run_asyncio: Run) -> None:
    """Its frame outlives its calls; up to Python 3.12 reading that binds what the frame has to it."""

    async def main() -> None:
        held = Held()
        thing = Thing()
        gone = weakref.ref(thing)
        workers = Hops()
        workers.learn()
        with looking(held, workers.read) as seen:
            await anyio.to_thread.run_sync(lambda kept: held.hold(), thing)
        assert seen[0] is not None
        del thing
        until = time.monotonic() + 5
        while workers.let_go(sys._current_frames()) and time.monotonic() < until:
            await checkpoint()
        seen.clear()
        assert gone() is None

    run_asyncio(main)


# ---- lines


def test_a_line_is_told_with_its_function() -> None:
    frame = sys._getframe()
    found = line_of(frame)
    assert found.file == __file__
    assert found.line == frame.f_lineno - 2
    assert found.function == "test_a_line_is_told_with_its_function"
    assert next(frames_of(frame)) is frame


@pytest.mark.parametrize(
    ("file", "own"),
    [
        (__file__, True),
        (asyncio.__file__, False),
        (pytest.__file__, False),
        (sys.modules[Account.__module__].__file__, False),
        ("<string>", False),
        ("/srv/shop/views.py", True),
    ],
)
def test_whose_code_it_is(file: str, own: bool) -> None:
    assert is_app_code(file) is own
