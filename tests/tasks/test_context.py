"""The context that a task runs in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from asgi_perfkit import BackgroundTasks, measure
from asgi_perfkit.steps import current_account
from tests.conftest import Run
from tests.support import checkpoint, together
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Request
from tests.threads.gates import PATIENCE_SECONDS

variable: ContextVar[str] = ContextVar("variable")


def test_a_task_sees_the_context_it_was_added_in(run: Run, supervise: Supervise) -> None:
    """That of the moment: what is set afterwards, where it was added, is not in it."""
    supervisor = supervise()
    seen: list[str] = []

    def look() -> None:
        seen.append(variable.get())

    async def look_async() -> None:
        await checkpoint()
        seen.append(variable.get())

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        tasks = BackgroundTasks()
        for value in ("a", "b"):
            variable.set(value)
            request.add(look).add(look_async)
        variable.set("c")
        tasks.add_task(look_async)
        variable.set("d")
        request.add(tasks)
        variable.set("too late")
        request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert seen == ["a", "a", "b", "b", "c"]


def test_each_task_has_a_context_of_its_own(run: Run, supervise: Supervise) -> None:
    """What one sets does not come to the next, nor to who added it, nor to who runs it."""
    supervisor = supervise()
    seen: list[str] = []

    async def change(value: str) -> None:
        seen.append(variable.get())
        token = variable.set(value)
        await checkpoint()
        seen.append(variable.get())
        variable.reset(token)
        variable.set(value)

    def change_in_thread(value: str) -> None:
        seen.append(variable.get())
        variable.set(value)

    async def main() -> None:
        supervisor.open()
        variable.set("main")
        request = Request(supervisor).add(change, "1").add(change_in_thread, "2")
        request.add(change, "3").end()
        await supervisor.drain(PATIENCE_SECONDS)
        assert variable.get() == "main"

    run(main)
    assert seen == ["main", "1", "main", "main", "3"]


def test_steps_of_tasks_do_not_mix_their_contexts(run: Run, supervise: Supervise) -> None:
    """Tasks that run at the same time keep theirs over every step."""
    supervisor = supervise()
    wrong: list[Any] = []

    async def look(value: str) -> None:
        for number in range(10):
            if variable.get() != f"{value}{number or ''}":
                wrong.append((value, number, variable.get()))
            variable.set(f"{value}{number + 1}")
            await checkpoint()

    async def main() -> None:
        supervisor.open()
        for value in "abcdef":
            variable.set(value)
            Request(supervisor).add(look, value).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert wrong == []
    assert supervisor.figures() == {"done": 6}


def test_children_of_a_task_see_its_context(run: Run, supervise: Supervise) -> None:
    """Child tasks that it starts inherit what it has set."""
    supervisor = supervise()
    seen: list[str] = []

    async def child() -> None:
        seen.append(variable.get())

    async def parent() -> None:
        variable.set("parent's")
        await together(child, child)

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(parent).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert seen == ["parent's"] * 2


def test_a_coroutine_made_in_a_thread_runs_in_the_same_context(
    run: Run, supervise: Supervise
) -> None:
    """What a function has set in the thread is there when what it returned is awaited on the loop."""
    supervisor = supervise()
    seen: list[Any] = []

    async def look() -> None:
        await checkpoint()
        seen.append((variable.get(), threading.current_thread()))

    def make() -> Any:
        variable.set("thread's")
        return look()

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(make).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert seen == [("thread's", threading.current_thread())]


def test_a_task_belongs_to_its_request(run: Run, supervise: Supervise) -> None:
    """What it measures is the request's, along with how long it has waited and run, also after the request's end."""
    supervisor = supervise()
    late: list[str] = []

    class Late:
        def observe_late(self, metric: str, value: int) -> None:
            assert value >= 0
            late.append(metric)

        def observe_many(self, metric: str, values: Sequence[int]) -> None:
            for value in values:
                self.observe_late(metric, value)

    async def work() -> None:
        with measure("work"):
            await checkpoint()

    def fail() -> None:
        raise ValueError

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(work).add(fail).end(late=Late())
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert late == [
        "work",
        "background_wait_time",
        "background_time",
        "background_wait_time",
        "background_time",
    ]


def test_the_request_is_not_where_the_tasks_run(run: Run, supervise: Supervise) -> None:
    """Who runs the tasks has an empty context: no request is kept alive by the one that comes next."""
    supervisor = supervise()
    outside: list[Any] = []

    async def main() -> None:
        supervisor.open()
        variable.set("main")
        assert supervisor._loop is not None

        async def look() -> None:
            outside.append((variable.get(None), current_account.get()))

        supervisor._loop.start(look)
        while not outside:
            await checkpoint()

    run(main)
    assert outside == [(None, None)]


def test_the_current_task_can_be_asked_for(run_asyncio: Run, supervise: Supervise) -> None:
    """On asyncio there is one in every step, so `asyncio.timeout` and its like have what they need."""
    supervisor = supervise()
    seen: list[Any] = []

    async def look() -> None:
        seen.append(asyncio.current_task())
        await checkpoint()
        seen.append(asyncio.current_task())

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(look).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run_asyncio(main)
    assert seen[0] is seen[1] is not None
