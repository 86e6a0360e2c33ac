"""What tasks cost in memory, what is left of them, and what is counted."""

from __future__ import annotations

import gc
import logging
import tracemalloc
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from threading import Thread
from typing import Any

import pytest

from asgi_perfkit import (
    BackgroundTasks,
    BatchedBackgroundTasks,
    TaskFailure,
    ThreadLimiter,
    task_options,
)
from asgi_perfkit.tasks.supervisor import Supervisor, background_stats
from tests.conftest import Run
from tests.support import LOGGER, Trouble, checkpoint, no_collector
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Door, Request
from tests.threads.gates import PATIENCE_SECONDS

SOON = 0.05  # a time in which a thread has made a supervisor, if nobody stops it

variable: ContextVar[int] = ContextVar("variable")


class Thing:
    """An argument whose end can be seen."""


async def nothing(*_: object, **__: object) -> None:
    pass


@pytest.mark.parametrize("lists", [True, False])
def test_a_task_that_waits_takes_less_than_a_kilobyte(supervise: Supervise, lists: bool) -> None:
    """With arguments, and in a context of its own, besides what these hold themselves."""
    supervisor = supervise(max_pending=100_000)
    count = 2_000
    requests = [Request(supervisor) for _ in range(count // 10)]

    def add_ten(request: Request, number: int) -> None:
        tasks = BackgroundTasks()
        for _ in range(10):
            variable.set(number)
            if lists:
                tasks.add_task(nothing, number, "b", c="c")
            else:
                request.add(nothing, number, "b", c="c")
        if lists:
            request.add(tasks)

    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number, request in enumerate(requests):
            add_ten(request, number)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 100 < taken / count < 1000
    for request in requests:
        request.end(failed=True)


@pytest.mark.parametrize("form", ["plain", "list", "batch"])
@pytest.mark.parametrize("kind", ["async", "thread", "failing", "timed out"])
def test_what_is_done_leaves_nothing_behind(
    run: Run, supervise: Supervise, monkeypatch: pytest.MonkeyPatch, form: str, kind: str
) -> None:
    """Its arguments and its exception are freed before the next one runs, without the garbage collector's help."""
    monkeypatch.setattr(logging.getLogger(LOGGER), "disabled", True)  # pytest keeps what is logged
    supervisor = supervise()
    supervisor.told = Forgetful()
    alive: list[Any] = []
    error: list[weakref.ref[Exception]] = []

    def in_thread(thing: Thing) -> None:
        pass

    async def fail(thing: Thing) -> None:
        await checkpoint()
        raise noted(Trouble(thing))

    def noted(trouble: Trouble) -> Trouble:
        error.append(weakref.ref(trouble))
        return trouble  # and no frame that it is raised through holds it

    function: Any = {
        "async": nothing,
        "thread": in_thread,
        "failing": fail,
        "timed out": task_options(nothing, timeout=PATIENCE_SECONDS),
    }[kind]

    async def look(of: weakref.ref[Thing]) -> None:
        await checkpoint()
        while kind == "thread" and of() is not None:  # the worker is about to let go of it
            await checkpoint()
        alive.append(of() is not None)
        alive.extend(ref() is not None for ref in error)

    async def main() -> None:
        supervisor.open()
        thing = Thing()
        request = Request(supervisor)
        add: Any = request.add
        if form != "plain":
            tasks = BackgroundTasks() if form == "list" else BatchedBackgroundTasks(2)
            add = tasks.add_task
        add(function, thing)
        if form == "batch":
            add(function, thing)
        add(look, weakref.ref(thing))
        if form == "batch":
            add(nothing)
        if form != "plain":
            request.add(tasks)
            del tasks
        request.end()
        del thing, add, request
        await supervisor.drain(PATIENCE_SECONDS)

    with no_collector():
        run(main)
    assert set(alive) == {False}


class Forgetful(list[TaskFailure]):
    """Only the number of what it is given is kept."""

    def append(self, failure: TaskFailure) -> None:
        super().append(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("late", [True, False])
def test_what_is_discarded_leaves_nothing_behind(supervise: Supervise, late: bool) -> None:
    """A request that has failed and is held by somebody does not hold its tasks."""
    supervisor = supervise()
    supervisor.told = Forgetful()
    request = Request(supervisor)
    thing = Thing()
    with no_collector():
        if late:
            request.end(failed=True).add(nothing, thing)
        else:
            request.add(nothing, thing).end(failed=True)
        ref = weakref.ref(thing)
        del thing
        assert ref() is None
    assert supervisor.figures() == {"discarded": 1}


def test_supervisors_leave_nothing_behind(run: Run, supervise: Supervise) -> None:
    """One that was drained is freed with the last who holds it."""

    async def main() -> Any:
        supervisor = Supervisor(max_concurrency=2, max_pending=10, limiter=ThreadLimiter(1))
        supervisor.open()
        Request(supervisor).add(nothing).add(int).end()
        await supervisor.drain(PATIENCE_SECONDS)
        return weakref.ref(supervisor)

    ref = run(main)
    gc.collect()
    assert ref() is None


def test_statistics_tell_what_waits_and_what_runs(run: Run, supervise: Supervise) -> None:
    """Of the supervisor, and with those of all others, of the process."""
    supervisor = supervise(max_concurrency=1)
    other = supervise()
    door = Door()

    async def main() -> None:
        before = background_stats()
        assert list(before) == list(supervisor.statistics())
        supervisor.open()
        other.open()
        Request(supervisor).add(door).add(nothing).end()
        Request(supervisor).add(nothing).end()
        Request(other).add(nothing).end(failed=True)
        await door.reached()
        assert supervisor.statistics() == {
            "pending": 2,
            "running": 1,
            "done": 0,
            "failed": 0,
            "timed_out": 0,
            "cancelled": 0,
            "discarded": 0,
            "handed_off": 0,
            "lost": 0,
            "handoff_failed": 0,
        }
        after = background_stats()
        changes = {name: after[name] - before[name] for name in after}
        assert {name: change for name, change in changes.items() if change} == {
            "pending": 2,
            "running": 1,
            "discarded": 1,
        }
        door.open()
        await supervisor.drain(PATIENCE_SECONDS)
        await other.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"done": 3}


def test_they_can_be_asked_for_while_supervisors_are_made(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, as each list makes one that runs alone there."""
    maker = Thread(target=supervise)

    class Interrupted(weakref.WeakSet[Supervisor]):
        """Has one more made in the middle, or at least has it tried."""

        def __iter__(self) -> Iterator[Supervisor]:
            for supervisor in super().__iter__():
                if maker.ident is None:
                    maker.start()
                    maker.join(SOON)
                yield supervisor

    supervisors = [supervise() for _ in range(3)]
    monkeypatch.setattr("asgi_perfkit.tasks.supervisor._supervisors", Interrupted(supervisors))
    assert background_stats()["pending"] == 0
    maker.join()
