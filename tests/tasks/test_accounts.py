"""Whatever happens, and in whichever order: all that was accepted is answered for."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from asgi_perfkit import (
    BackgroundTasks,
    BatchedBackgroundTasks,
    QueueFullError,
    ThreadLimiter,
    add_task,
    task_options,
)
from tests.conftest import EVERY_LOOP, Run
from tests.support import Trouble, checkpoint
from tests.tasks.requests import Door, Request, WatchedSupervisor
from tests.threads.gates import PATIENCE_SECONDS

REQUESTS = 4
MAX_PENDING = 12

requests = st.integers(0, REQUESTS - 1)
KINDS = """
quick slow closed endless given_up thread fail fail_in_thread adder adding_thread
""".split()
kinds = st.sampled_from(KINDS)
events = st.one_of(
    st.tuples(st.just("add"), requests, kinds),
    st.tuples(st.just("add from a thread"), requests, kinds),
    st.tuples(st.just("add a list"), requests, st.lists(kinds, max_size=4), st.integers(1, 3)),
    st.tuples(st.just("grow the list"), kinds),
    st.tuples(st.just("end"), requests, st.booleans()),
    st.tuples(st.just("begin anew"), requests),
    st.tuples(st.just("open a door")),
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("drain"), st.sampled_from([0, 0.001])),
    st.tuples(st.just("detach")),
    st.tuples(st.just("reopen")),
)


class Scenario:
    """A supervisor, some requests, and what is done to them.

    :ivar begun: how often each task has begun, by its number.
    """

    def __init__(self, max_concurrency: int, *, run_on_error: bool) -> None:
        self.supervisor = WatchedSupervisor(
            max_concurrency=max_concurrency,
            max_pending=MAX_PENDING,
            limiter=ThreadLimiter(2),
            run_on_error=run_on_error,
        )
        self.requests = [Request(self.supervisor) for _ in range(REQUESTS)]
        self.list: BackgroundTasks | BatchedBackgroundTasks = BackgroundTasks()
        self.doors: list[Door] = []
        self.begun: Counter[int] = Counter()
        self.numbers = 0

    def task(self, kind: str) -> tuple[Any, int]:
        """A function of this `kind`, and its number as the argument."""
        self.numbers += 1
        if kind == "given_up":
            return task_options(self.endless, timeout=0.001), self.numbers
        return getattr(self, kind), self.numbers

    async def quick(self, number: int) -> None:
        self.begun[number] += 1

    async def slow(self, number: int) -> None:
        self.begun[number] += 1
        for _ in range(3):
            await checkpoint()

    async def closed(self, number: int) -> None:
        self.begun[number] += 1
        self.doors.append(Door())
        await self.doors[-1]()

    async def endless(self, number: int) -> None:
        self.begun[number] += 1
        await Door()()

    def thread(self, number: int) -> None:
        self.begun[number] += 1

    async def fail(self, number: int) -> None:
        self.begun[number] += 1
        raise Trouble

    def fail_in_thread(self, number: int) -> None:
        self.begun[number] += 1
        raise Trouble

    async def adder(self, number: int) -> None:
        self.begun[number] += 1
        self.adds_another()

    def adding_thread(self, number: int) -> None:
        self.begun[number] += 1
        self.adds_another()

    def adds_another(self) -> None:
        with suppress(QueueFullError):
            add_task(*self.task("quick"))

    def add(self, request: Request, kind: str) -> None:
        with suppress(QueueFullError):
            request.add(*self.task(kind))

    async def play(self, script: list[tuple[Any, ...]], *, ends: bool) -> None:
        """Do what the script says; then, if it `ends` well, end all requests and drain."""
        supervisor = self.supervisor
        supervisor.open()
        for name, *arguments in script:
            await getattr(self, f"on_{name.replace(' ', '_')}")(*arguments)
            self.check()
        for request in self.requests:
            request.end()
            self.check()
        if ends:
            await supervisor.drain(0)

    def check(self) -> None:
        self.supervisor.check_accounts()
        stats = self.supervisor.statistics()
        assert stats["pending"] <= MAX_PENDING

    # ---- what happens

    async def on_add(self, index: int, kind: str) -> None:
        self.add(self.requests[index], kind)

    async def on_add_from_a_thread(self, index: int, kind: str) -> None:
        thread = threading.Thread(target=self.add, args=(self.requests[index], kind))
        thread.start()
        thread.join(PATIENCE_SECONDS)

    async def on_add_a_list(self, index: int, kinds: list[str], size: int) -> None:
        self.list = BackgroundTasks() if size == 1 else BatchedBackgroundTasks(size)
        for kind in kinds:
            self.list.add_task(*self.task(kind))
        with suppress(QueueFullError):
            self.requests[index].add(self.list)

    async def on_grow_the_list(self, kind: str) -> None:
        with suppress(QueueFullError):
            self.list.add_task(*self.task(kind))

    async def on_end(self, index: int, failed: bool) -> None:
        self.requests[index].end(failed=failed)

    async def on_begin_anew(self, index: int) -> None:
        self.requests[index].end()
        self.requests[index] = Request(self.supervisor)

    async def on_open_a_door(self) -> None:
        if self.doors:
            self.doors.pop(0).open()

    async def on_turn(self, times: int) -> None:
        for _ in range(times):
            await checkpoint()

    async def on_drain(self, seconds: float) -> None:
        await self.supervisor.drain(seconds)
        assert self.supervisor.statistics()["running"] == 0

    async def on_detach(self) -> None:
        self.supervisor.detach()

    async def on_reopen(self) -> None:
        self.supervisor.open()


@pytest.mark.parametrize("ends", [True, False], ids=["drained", "abandoned"])
@pytest.mark.parametrize("loop", EVERY_LOOP)
@hypothesis.settings(max_examples=60)
@hypothesis.given(
    script=st.lists(events, max_size=25),
    max_concurrency=st.integers(1, 3),
    run_on_error=st.booleans(),
)
def test_accepted_is_what_became_of_it(
    loop: str, ends: bool, script: list[Any], max_concurrency: int, run_on_error: bool
) -> None:
    """At every moment; in the end none waits or runs, no task has begun twice, and what was discarded never did."""
    run: Run = EVERY_LOOP[loop]
    scenario = Scenario(max_concurrency, run_on_error=run_on_error)
    run(partial(scenario.play, script, ends=ends))
    supervisor = scenario.supervisor
    supervisor.give_up_unclaimed()
    supervisor.check_all_settled()
    assert set(scenario.begun.values()) <= {1}
    figures = supervisor.statistics()
    ran = figures["done"] + figures["failed"] + figures["timed_out"]
    assert ran <= len(scenario.begun) <= ran + figures["cancelled"]
    for failure in supervisor.told:
        if failure.reason == "discarded":
            assert failure.args[0] not in scenario.begun
        assert (failure.error is not None) == (failure.reason == "failed")
