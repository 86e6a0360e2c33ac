"""Tasks that never wait: they run one after the other without a turn of the loop, and are accounted for together."""

from __future__ import annotations

from time import perf_counter

import anyio
import pytest

from asgi_perfkit import BackgroundTasks, QueueFullError
from tests.conftest import Run
from tests.support import checkpoint
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Request
from tests.threads.gates import PATIENCE_SECONDS

# More than are noted together.
MANY = 150


class Late:
    """Keeps the metrics of a request that is over."""

    def __init__(self) -> None:
        self.observed: dict[str, list[int]] = {}

    def observe_late(self, metric: str, value: int) -> None:
        self.observed.setdefault(metric, []).append(value)

    def observe_many(self, metric: str, values: list[int]) -> None:
        self.observed.setdefault(metric, []).extend(values)


def test_a_task_sees_what_became_of_those_before_it(run: Run, supervise: Supervise) -> None:
    """Exactly, though they are counted together later."""
    supervisor = supervise()
    seen: list[tuple[int, int, int]] = []

    async def look() -> None:
        stats = supervisor.statistics()
        seen.append((stats["pending"], stats["running"], stats["done"]))

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        for _ in range(MANY):
            request.add(look)
        request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert seen == [(MANY - 1 - number, 1, number) for number in range(MANY)]
    assert supervisor.figures() == {"done": MANY}


def test_there_is_room_for_as_many_as_are_done(run: Run, supervise: Supervise) -> None:
    """Each adds another one where only one may wait; a second one is refused, with the true number."""
    supervisor = supervise(max_pending=1)
    refused: list[int] = []
    left = MANY

    async def again(request: Request) -> None:
        nonlocal left
        left -= 1
        if left:
            request.add(again, request)
            with pytest.raises(QueueFullError) as caught:
                request.add(again, request)
            refused.append(caught.value.pending)

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        request.add(again, request).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert refused == [1] * (MANY - 1)
    assert supervisor.figures() == {"done": MANY}


@pytest.mark.parametrize("ending", ["waits", "thread", "list", "fails", "is the last"])
def test_their_times_are_noted_when_somebody_may_look(
    ending: str, run: Run, supervise: Supervise
) -> None:
    """Each of its own request, as soon as another one waits or fails, and at the end."""
    late, other = Late(), Late()
    supervisor = supervise(on_error=lambda failure: look())
    found: list[int] = []

    def look() -> None:
        found.append(len(late.observed.get("background_time", ())))

    async def nothing() -> None:
        pass

    async def last() -> None:
        if ending == "waits":
            await checkpoint()
            look()
        elif ending == "fails":
            raise ValueError

    tasks = BackgroundTasks()
    tasks.add_task(look)
    lasts = {"thread": look, "list": tasks}

    async def main() -> None:
        supervisor.open()
        first, second = Request(supervisor), Request(supervisor)
        for _ in range(5):
            first.add(nothing)
        first.add(lasts.get(ending, last)).end(late=late)
        second.add(nothing).end(late=other)
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert found == {"is the last": [], "fails": [6]}.get(ending, [5])
    for metric in ("background_wait_time", "background_time"):
        # The one in the list was added to that outside of the request.
        assert len(late.observed[metric]) == (5 if ending == "list" else 6)
        assert len(other.observed[metric]) == 1
        assert min(late.observed[metric]) >= 0


@pytest.mark.parametrize("requests", [1, 20])
@pytest.mark.parametrize("lists", [False, True])
def test_many_of_them_do_not_keep_the_loop(
    lists: bool, requests: int, run: Run, supervise: Supervise
) -> None:
    """Whatever else is to be done has its turn about every millisecond, of however many requests they are."""
    supervisor = supervise()
    turns = done = 0

    async def compute() -> None:
        nonlocal done
        until = perf_counter() + 0.00006
        while perf_counter() < until:
            pass
        done += 1

    async def main() -> None:
        nonlocal turns
        supervisor.open()
        for _ in range(requests):
            request, tasks = Request(supervisor), BackgroundTasks()
            for _ in range(400 // requests):
                if lists:
                    tasks.add_task(compute)
                else:
                    request.add(compute)
            if lists:
                request.add(tasks)
            request.end()
        while done < 400:
            turns += 1
            await checkpoint()

    run(main)
    assert turns >= 10


def test_those_of_a_list_that_runs_alone_do_not_keep_the_loop(run: Run) -> None:
    """Whatever else is to be done has its turn, too."""
    turns = 0
    tasks = BackgroundTasks()

    async def compute() -> None:
        until = perf_counter() + 0.0006
        while perf_counter() < until:
            pass
        seen.append(turns)

    seen: list[int] = []
    for _ in range(40):
        tasks.add_task(compute)

    async def main() -> None:
        nonlocal turns
        async with anyio.create_task_group() as group:
            group.start_soon(tasks.run)
            while len(seen) < 40:
                turns += 1
                await checkpoint()

    run(main)
    assert len(set(seen)) >= 10


def test_nor_do_many_lists(run: Run, supervise: Supervise) -> None:
    """Of one task each."""
    supervisor = supervise()
    turns = 0
    seen: list[int] = []

    async def compute() -> None:
        until = perf_counter() + 0.0006
        while perf_counter() < until:
            pass
        seen.append(turns)

    async def main() -> None:
        nonlocal turns
        supervisor.open()
        request = Request(supervisor)
        for _ in range(40):
            tasks = BackgroundTasks()
            tasks.add_task(compute)
            request.add(tasks)
        request.end()
        while len(seen) < 40:
            turns += 1
            await checkpoint()

    run(main)
    assert len(set(seen)) >= 10
