"""Hops, managers and iterations for a long time, with cancellations at random.

A few seconds' worth as a rule. In full, and with figures, by
`SOAK_HOPS=200000 make test ARGS="tests/threads/test_soak.py --timeout=0"`.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import psutil
import pytest

from asgi_perfkit import (
    ThreadLimiter,
    contextmanager_in_threadpool,
    iterate_in_threadpool,
    run_in_threadpool,
)
from tests.conftest import Run
from tests.support import checkpoint, together
from tests.threads.conftest import Form, workers
from tests.threads.gates import PATIENCE_SECONDS, Task

HOPS = int(os.environ.get("SOAK_HOPS", "500"))  # for each form of cancellation on each loop
TOKENS = 8
AT_ONCE = 40  # tasks
ROUNDS = 10  # of the soak; the first is for warming up
# What the second half may leave behind, however many hops it has: nothing, but for caches and what threads need.
GROWTH_BYTES = 64 * 1024
GROWTH_RESIDENT_BYTES = 8 * 1024 * 1024


class Work:
    """What the tasks do, and how much of it at once.

    :ivar calls: how many calls have begun in a thread: functions, enters, exits, visits.
    :ivar most: how many ran at once, at the most; of the exits there may be as many besides.
    :ivar open: managers and generators that have been begun and not ended.
    """

    def __init__(self) -> None:
        self.limiter = ThreadLimiter(TOKENS)
        self.calls = self.running = self.most = self.open = self.most_workers = 0
        self._lock = threading.Lock()

    def function(self, value: int = 0) -> int:
        with self._lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        if value % 16 == 0:
            time.sleep(0)  # let other threads run in the midst of it
        with self._lock:
            self.running -= 1
        return value

    def _count_open(self, change: int) -> None:
        with self._lock:
            self.open += change

    @contextmanager
    def manager(self) -> Iterator[int]:
        self.function()
        self._count_open(1)
        try:
            yield 1
        finally:
            self._count_open(-1)

    def generator(self) -> Iterator[int]:
        self._count_open(1)
        try:
            for number in range(10):
                yield self.function(number)
        finally:
            self._count_open(-1)

    async def once(self, dice: random.Random) -> None:
        choice = dice.random()
        same_thread = dice.random() < 0.1
        if choice < 0.8:
            value = dice.randrange(100)
            assert await run_in_threadpool(self.function, value, limiter=self.limiter) == value
        elif choice < 0.9:
            async with contextmanager_in_threadpool(
                self.manager(), limiter=self.limiter, same_thread=same_thread
            ):
                await checkpoint()
        else:
            items = iterate_in_threadpool(
                self.generator(), limiter=self.limiter, same_thread=same_thread
            )
            async with aclosing(items):
                async for _ in items:
                    await checkpoint()


async def soak(form: Form, work: Work, hops: int, dice: random.Random) -> int:
    """So many hops in tasks of which every fourth is cancelled at some point; how many were."""
    cancelled = 0
    goal = work.calls + hops
    while work.calls < goal:
        tasks: list[Task] = []
        for _ in range(AT_ONCE):

            async def several() -> None:
                for _ in range(5):
                    await work.once(dice)

            tasks.append(form.spawn(several))
            if dice.random() < 0.5:
                await checkpoint()
            if dice.random() < 0.3:
                dice.choice(tasks).cancel()
        work.most_workers = max(work.most_workers, len(workers()))
        for task in tasks:
            if dice.random() < 0.05:
                task.cancel()
            await task.join()
            if task.error is not None:
                assert isinstance(task.error, form.cancelled), task.error
                cancelled += 1
            task.error = None
    return cancelled


def test_nothing_is_left_of_many_hops(form: Form, capsys: Any) -> None:
    """However many there are and whenever they are cancelled: all tokens back, no thread too many, memory flat."""
    work = Work()
    dice = random.Random(5)
    traced: list[int] = []
    resident: list[int] = []
    figures: list[str] = []

    async def main() -> None:
        cancelled = 0
        process = psutil.Process()
        for _ in range(ROUNDS):
            began = time.perf_counter()
            cancelled += await soak(form, work, HOPS // ROUNDS, dice)
            stats = work.limiter.statistics()
            assert (stats.borrowed_tokens, stats.tasks_waiting, stats.exits) == (0, 0, 0)
            assert (work.running, work.open) == (0, 0)
            gc.collect()
            traced.append(tracemalloc.get_traced_memory()[0])
            resident.append(process.memory_info().rss)
            figures.append(f"{time.perf_counter() - began:.2f}")
        assert cancelled > 0
        figures.append(f"{work.calls} calls, {cancelled} tasks cancelled")

    tracemalloc.start()
    try:
        form.run(main)
    finally:
        tracemalloc.stop()
    assert work.calls >= HOPS
    assert work.most <= TOKENS
    # A thread for each token of a call, each of an exit, and each open manager that has its own.
    assert work.most_workers <= 2 * TOKENS + AT_ONCE
    assert traced[-1] - traced[ROUNDS // 2] < GROWTH_BYTES, traced
    assert resident[-1] - resident[ROUNDS // 2] < GROWTH_RESIDENT_BYTES, resident
    if "SOAK_HOPS" in os.environ:
        with capsys.disabled():
            print(  # noqa: T201
                f"\n{figures[-1]}; seconds a round: {' '.join(figures[:-1])}; at once {work.most}; workers "
                f"{work.most_workers}; traced kB {[size // 1024 for size in traced]}; "
                f"resident MB {[size >> 20 for size in resident]}; rescued {work.limiter.statistics().rescued}"
            )


@pytest.mark.parametrize("before", range(TOKENS))
def test_who_has_a_token_has_a_thread(run: Run, before: int) -> None:
    """As many calls as there are tokens, each of which waits for all others, however many threads are idle by then."""
    limiter = ThreadLimiter(TOKENS)

    async def meet(count: int) -> None:
        barrier = threading.Barrier(count)

        async def call() -> None:
            await run_in_threadpool(barrier.wait, PATIENCE_SECONDS, limiter=limiter)

        await together(*[call] * count)

    async def main() -> None:
        if before:
            await meet(before)
        await meet(TOKENS)
        await meet(TOKENS)

    run(main)
