"""Adding tasks from wherever code of a request runs, at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import (
    BackgroundTasks,
    ConfigurationError,
    NoRequestError,
    QueueFullError,
    add_task,
    run_in_threadpool,
)
from asgi_perfkit.steps import Account, current_account
from tests.conftest import Run
from tests.support import checkpoint, together
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Door, Request
from tests.threads.gates import PATIENCE_SECONDS


def test_child_tasks_and_worker_threads_add_to_their_request(
    run: Run, supervise: Supervise
) -> None:
    """They have the request's context, and so its queue."""
    supervisor = supervise()
    ran: list[str] = []

    async def child() -> None:
        add_task(ran.append, "child")
        await run_in_threadpool(add_task, ran.append, "thread")

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        current_account.set(request.account)
        await together(child, child)
        assert ran == []
        request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert sorted(ran) == ["child", "child", "thread", "thread"]


def test_many_threads_add_at_once(run: Run, supervise: Supervise) -> None:
    """No task is lost or doubled, and each thread's own stay in their order, also while the queue is run."""
    supervisor = supervise()
    ran: list[tuple[int, int]] = []

    async def note(thread: int, number: int) -> None:
        ran.append((thread, number))

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)

        def add_many(thread: int) -> None:
            for number in range(200):
                request.add(note, thread, number)

        threads = [threading.Thread(target=add_many, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        request.end()
        while any(thread.is_alive() for thread in threads):
            await checkpoint()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"done": 800}
    for thread in range(4):
        assert [number for of, number in ran if of == thread] == list(range(200))


def test_tasks_add_tasks(run: Run, supervise: Supervise) -> None:
    """Async ones and those in threads, with the plain `add_task`; they run behind what is there."""
    supervisor = supervise()
    ran: list[str] = []

    async def parent() -> None:
        ran.append("parent")
        add_task(in_thread)
        await together(child)

    async def child() -> None:
        add_task(ran.append, "of the child")

    def in_thread() -> None:
        ran.append("in thread")
        add_task(ran.append, "of the thread")

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(parent).add(ran.append, "second").end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == ["parent", "second", "in thread", "of the child", "of the thread"]


def test_tasks_of_a_list_add_tasks(run: Run, supervise: Supervise) -> None:
    """They run behind the list."""
    supervisor = supervise()
    ran: list[str] = []

    async def first() -> None:
        add_task(ran.append, "added")
        ran.append("first")

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        current_account.set(request.account)
        tasks = BackgroundTasks()
        tasks.add_task(first)
        tasks.add_task(ran.append, "second")
        request.add(tasks).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == ["first", "second", "added"]


@pytest.mark.parametrize("from_thread", [True, False])
@pytest.mark.parametrize("ran_before", [True, False])
def test_a_request_that_has_ended_takes_more(
    run: Run, supervise: Supervise, ran_before: bool, from_thread: bool
) -> None:
    """Also when all it had has run, and when it had nothing: what comes then runs at once."""
    supervisor = supervise()

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        if ran_before:
            request.add(checkpoint)
        request.end()
        while supervisor.statistics()["done"] < ran_before:
            await checkpoint()
        for _ in range(5):
            await checkpoint()
        for _ in range(3):
            door = Door()
            door.open()
            if from_thread:
                thread = threading.Thread(target=request.add, args=(door,))
                thread.start()
                thread.join()
            else:
                request.add(door)
            await door.reached()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"done": 3 + ran_before}


@pytest.mark.parametrize("added_before", [True, False])
def test_a_request_that_has_failed_discards_its_tasks(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture, added_before: bool
) -> None:
    """Those that it has, and those that come later, in lists too: each is told of."""
    supervisor = supervise()
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        if added_before:
            request.add(ran.append, 1)
        request.end(failed=True)
        request.end()  # it stays what it was
        request.add(ran.append, 2)
        tasks = BackgroundTasks()
        tasks.add_task(ran.append, 3)
        tasks.add_task(ran.append, 4)
        request.add(tasks)
        tasks.add_task(ran.append, 5)
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == []
    number = 4 + added_before
    assert supervisor.figures() == {"discarded": number}
    assert supervisor.reasons() == [("append", "discarded")] * number
    assert [record.levelname for record in caplog.records] == ["WARNING"] * number
    assert "list.append" in caplog.text or "append(int) was discarded" in caplog.text


@pytest.mark.parametrize("added_before", [True, False])
def test_they_run_if_that_is_wished(run: Run, supervise: Supervise, added_before: bool) -> None:
    """`run_on_error` makes no difference between requests."""
    supervisor = supervise(run_on_error=True)
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        if added_before:
            request.add(ran.append, 1)
        request.end(failed=True).add(ran.append, 2)
        for _ in range(5):
            await checkpoint()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == [1, 2][not added_before :]


def test_a_request_ends_once(run: Run, supervise: Supervise) -> None:
    """A second end runs nothing twice, nor discards what was released."""
    supervisor = supervise()
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(ran.append, 1).end().end().end(failed=True)
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == [1]
    assert supervisor.figures() == {"done": 1}


class Interrupted:
    """A lock; what others do as soon as it is free may be `then` once, before who held it goes on."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.then: Callable[[], object] | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
        then, self.then = self.then, None
        if then is not None:
            then()


@pytest.mark.parametrize("before", [0, 1])
def test_tasks_that_another_thread_adds_at_the_end_keep_their_order(
    run: Run, supervise: Supervise, before: int
) -> None:
    """The queue is run once, though the first task may have come just when the request found none."""
    supervisor = supervise()
    supervisor.lock = lock = Interrupted(supervisor.lock)
    door = Door()

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        with pytest.raises(ConfigurationError):
            request.add(None)  # there is a queue, and nothing in it
        for number in range(before):
            request.add(door, number)
        lock.then = lambda: request.add(door, 1).add(door, 2)
        request.end()
        assert lock.then is None
        await door.reached()
        for _ in range(5):
            await checkpoint()
        door.open()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert door.came == [*range(before), 1, 2]
    assert door.most == 1


def test_work_inside_of_a_request_adds_to_it(run: Run, supervise: Supervise) -> None:
    """An account that takes no tasks leaves them to the one it was opened in."""
    supervisor = supervise()
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        inner = Account()
        inner.parent = request.account
        token = current_account.set(inner)
        add_task(ran.append, 1)
        current_account.reset(token)
        request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == [1]


def test_an_account_that_takes_no_tasks_is_no_request() -> None:
    """What is measured without the middleware has nobody to run tasks."""
    token = current_account.set(Account())
    try:
        with pytest.raises(NoRequestError):
            add_task(print)
    finally:
        current_account.reset(token)


def test_there_is_an_end_to_what_waits(run: Run, supervise: Supervise) -> None:
    """One more than `max_pending` is refused with the numbers, and all that was accepted runs."""
    supervisor = supervise(max_pending=3, max_concurrency=1)
    door = Door()
    ran: list[Any] = []

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(door).end()
        await door.reached()
        for number in range(3):  # the one that runs does not wait
            request.add(ran.append, number)
        with pytest.raises(QueueFullError, match="3 background tasks wait and 3 may") as caught:
            request.add(ran.append, "one too many")
        assert (caught.value.pending, caught.value.max_pending) == (3, 3)
        with pytest.raises(QueueFullError):
            Request(supervisor).add(ran.append, "another request's")
        door.open()
        await supervisor.drain(PATIENCE_SECONDS)
        supervisor.open()
        request.add(ran.append, "there is room again")
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == [0, 1, 2, "there is room again"]
    assert supervisor.figures() == {"done": 5}


def test_a_list_is_accepted_as_a_whole(run: Run, supervise: Supervise) -> None:
    """One with more tasks than there is room for is refused and keeps them; there is room for a shorter one."""
    supervisor = supervise(max_pending=3)
    ran: list[int] = []

    async def main() -> None:
        supervisor.open()
        tasks = BackgroundTasks()
        for number in range(4):
            tasks.add_task(ran.append, number)
        request = Request(supervisor)
        with pytest.raises(QueueFullError) as caught:
            request.add(tasks)
        assert (caught.value.pending, len(tasks)) == (0, 4)
        request.add(checkpoint).add(checkpoint).add(checkpoint).end()
        await supervisor.drain(PATIENCE_SECONDS)
        await tasks.run()

    run(main)
    assert ran == [0, 1, 2, 3]
    assert supervisor.figures() == {"done": 3}


def test_the_limit_holds_for_threads_that_add_at_once(supervise: Supervise) -> None:
    """Exactly so many are accepted, and everybody else is told."""
    supervisor = supervise(max_pending=100)
    request = Request(supervisor)
    refused: list[QueueFullError] = []

    def add_many() -> None:
        for _ in range(50):
            try:
                request.add(checkpoint)
            except QueueFullError as error:
                refused.append(error)

    threads = [threading.Thread(target=add_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (supervisor.accepted, len(refused)) == (100, 100)
    request.end(failed=True)
    assert supervisor.figures() == {"discarded": 100}
