"""Blocking code in threads: one hop, a context manager, an iterator, beside asyncio, anyio, asgiref.

What is timed is wall time: who waits for a thread waits. It has two modes. Where the scheduler
wakes a thread on another processor, an idle one, that costs some 40 µs; on the same processor it
costs 5, and which of the two comes depends on what else the machine does. So everything is measured
twice: in a process that is pinned to one processor, where only the work counts, and in one that may
use all of them. The ratios are of batches that ran next to each other.

Each contender has an event loop to itself, in a thread of its own, which runs from the first batch
to the last as a server's does: idle threads stay between batches (anyio ends its own with the task
that the loop was started for). The limits are everybody's defaults: 40 threads for the kit and
anyio, one for asgiref's thread-sensitive calls, the processors and four for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
import operator
import os
import statistics
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from queue import SimpleQueue
from threading import Lock, Thread
from time import perf_counter_ns
from typing import Any

from asgiref.sync import sync_to_async

from asgi_perfkit import (
    PerformanceMiddleware,
    Registry,
    contextmanager_in_threadpool,
    get_performance_stats,
    iterate_in_threadpool,
    run_in_threadpool,
)

from .contenders import receive, scope_for, send
from .harness import Row, Settings, Spread, Table, Target, interleave, pair

KIT = "run_in_threadpool"
KIT_IN_A_REQUEST = "run_in_threadpool, metrics on"
EXECUTOR = "run_in_executor"
ANYIO = "anyio.to_thread"
TRIO = "trio.to_thread"
KIT_MANAGER = "contextmanager_in_threadpool"
FASTAPI_MANAGER = "fastapi's"
KIT_ITERATION = "iterate_in_threadpool"
STARLETTE_ITERATION = "starlette's"
DIRECT = "called on the loop"
BARE = "a bare thread"

CONCURRENCY = 50
SPIN_NS = 100_000
METRICS_TARGET = Target("<=", 5.0)

Function = Callable[[], object]
# What is awaited once for each hop, or for each use of a manager.
Hop = Callable[[], Awaitable[object]]
# Runs a batch: so many hops, for each that runs at once; in microseconds for each hop.
Drive = Callable[[Hop, int], Coroutine[Any, Any, float]]
# Makes the hop for a function; runs on the loop.
MakeHop = Callable[[Function], Hop]
Work = Callable[[], Coroutine[Any, Any, float]]
# Runs work on a loop, from another thread.
Call = Callable[[Work], float]


@dataclass(frozen=True)
class Placement:
    """Where a process may run.

    :param processors: None for all that there are.
    """

    name: str
    processors: frozenset[int] | None


@dataclass(frozen=True)
class Case:
    """One table, but for where it is measured. It goes to another process, so it is all names."""

    subject: str
    loop: str
    concurrency: int = 1


def run(settings: Settings) -> Iterator[Table]:
    for placement in placements():
        # A process to itself: it cannot take the pinning back, and a fork would inherit our heap.
        with ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=settle,
            initargs=(placement,),
        ) as process:
            for case in cases():
                yield process.submit(measure, case, placement.name, settings).result()


def placements() -> list[Placement]:
    free = Placement("any processor", None)
    if not hasattr(os, "sched_getaffinity"):
        return [free]
    allowed = os.sched_getaffinity(0)
    pinned = Placement("one processor", frozenset([max(allowed)]))
    return [pinned] if len(allowed) == 1 else [pinned, free]


def settle(placement: Placement) -> None:
    """Take the process to its place; all threads that it starts inherit it."""
    if placement.processors is not None:
        os.sched_setaffinity(0, placement.processors)


def cases() -> list[Case]:
    asyncio_loops = ["asyncio", *(["uvloop"] if installed("uvloop") else [])]
    found = [
        Case(subject, loop, concurrency)
        for loop in asyncio_loops
        for subject in ("no-op", "spin")
        for concurrency in (1, CONCURRENCY)
    ]
    if installed("trio"):
        found += [Case("no-op", "trio", concurrency) for concurrency in (1, CONCURRENCY)]
    found += [
        Case("manager", loop, concurrency)
        for loop in asyncio_loops
        for concurrency in (1, CONCURRENCY)
    ]
    found += [Case("iterator", loop) for loop in asyncio_loops]
    return found


def measure(case: Case, where: str, settings: Settings) -> Table:
    """Return the table of one case; runs in the process of a placement."""
    subjects = {
        "no-op": no_op_hops,
        "spin": spinning_hops,
        "manager": managers,
        "iterator": iterations,
    }
    return subjects[case.subject](case, where, settings)


# One hop.


def no_op() -> None:
    pass


def no_op_hops(case: Case, where: str, settings: Settings) -> Table:
    figures, hops, rounds = hop_figures(case, no_op, settings, hops=256)
    return hop_table(
        f"A hop to a thread and back, {occasion(case, where)}",
        case,
        figures,
        notes=[f"{rounds} rounds of {hops} hops."],
    )


def spinning_hops(case: Case, where: str, settings: Settings) -> Table:
    """Measure with a function that computes, and take off what it needs itself.

    It computes a fixed amount, and holds the interpreter meanwhile: N calls take N times as long as
    one, in however many threads. So what is on top of the same calls, made directly on the loop in
    the same round, is what the hops cost.
    """
    spin = spinner()
    figures, hops, rounds = hop_figures(case, spin, settings, hops=128)
    direct = figures.pop(DIRECT)
    on_top = {name: pair(values, direct, operator.sub) for name, values in figures.items()}
    return hop_table(
        f"On top of a function that computes for 100 us in a thread, {occasion(case, where)}",
        case,
        on_top,
        notes=[
            f"{rounds} rounds of {hops} hops.",
            f"Called on the loop, which is taken off, the function takes {statistics.median(direct):.1f} us.",
        ],
    )


def spinner() -> Function:
    """Return a function that computes for about 100 µs; the amount of work is the same each time."""

    def spin(turns: int) -> None:
        for _ in repeat(None, turns):
            pass

    turns = 1000
    best = min(timed(partial(spin, turns)) for _ in range(500))
    return partial(spin, round(turns * SPIN_NS / best))


def timed(function: Function) -> int:
    began = perf_counter_ns()
    function()
    return perf_counter_ns() - began


def hop_figures(
    case: Case, function: Function, settings: Settings, *, hops: int
) -> tuple[dict[str, list[float]], int, int]:
    """Return microseconds for each hop by contender, the hops of a batch, the rounds.

    :param hops: how many a batch has at least. With the metrics on, a batch is one request, which
        counts its observations in the histograms whenever 256 of them, two a hop, have come
        together: with a multiple of 128 that is part of what is timed.
    """
    rounds = settings.pick(30, 3)
    each = -(-hops // case.concurrency)
    hops = each * case.concurrency
    drive = drive_with(case)
    registry = Registry()
    driven = 0

    async def plain(make_hop: MakeHop) -> float:
        return await drive(make_hop(function), each)

    async def in_a_request() -> float:
        nonlocal driven
        hop = partial(run_in_threadpool, function)
        took = 0.0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal took
            took = await drive(hop, each)

        await PerformanceMiddleware(app, registry=registry)(scope_for("/hello"), receive, send)
        driven += hops
        return took

    async def bare() -> float:
        return await through_bare_thread(function, drive, each)

    async def direct() -> float:
        began = perf_counter_ns()
        for _ in range(hops):
            function()
        return (perf_counter_ns() - began) / hops / 1000

    work: dict[str, Work] = {KIT: partial(plain, make_kit_hop), KIT_IN_A_REQUEST: in_a_request}
    work |= {name: partial(plain, make_hop) for name, make_hop in peers(case.loop).items()}
    if case.concurrency == 1 and case.loop != "trio":
        work[BARE] = bare
    if function is not no_op:
        work[DIRECT] = direct
    figures = interleave_on_loops(work, case.loop, rounds)
    recorded = get_performance_stats(registry=registry)["thread_time"]["count"]
    if recorded != driven:
        raise RuntimeError(f"The metrics hold {recorded:,.0f} of {driven:,} calls in threads.")
    return figures, hops, rounds


async def through_bare_thread(function: Function, drive: Drive, each: int) -> float:
    """Run a batch with the least that a hop can be: one thread and one call at a time, a lock to
    wake the thread, a callback to wake the loop; no result, no error, no context, no limit.
    """
    loop = asyncio.get_running_loop()
    alarm = Lock()
    alarm.acquire()
    waiting: list[asyncio.Future[None]] = []

    def serve() -> None:
        while alarm.acquire() and waiting:
            function()
            loop.call_soon_threadsafe(waiting.pop().set_result, None)

    async def hop() -> None:
        future = loop.create_future()
        waiting.append(future)
        alarm.release()
        await future

    thread = Thread(target=serve)
    thread.start()
    try:
        await hop()
        return await drive(hop, each)
    finally:
        alarm.release()
        thread.join()


def make_kit_hop(function: Function) -> Hop:
    return partial(run_in_threadpool, function)


def peers(loop: str) -> dict[str, MakeHop]:
    """Return what makes a hop with each peer, those that are installed, by name."""
    if loop == "trio":
        import trio

        return {TRIO: lambda function: partial(trio.to_thread.run_sync, function)}
    found: dict[str, MakeHop] = {
        EXECUTOR: lambda function: partial(
            asyncio.get_running_loop().run_in_executor, None, function
        ),
        "asyncio.to_thread": lambda function: partial(asyncio.to_thread, function),
    }
    with contextlib.suppress(ImportError):
        import anyio.to_thread

        run_sync = anyio.to_thread.run_sync
        found[ANYIO] = lambda function: partial(run_sync, function)
    with contextlib.suppress(ImportError):
        from starlette.concurrency import run_in_threadpool as starlette_run

        found["starlette's run_in_threadpool"] = lambda function: partial(starlette_run, function)
    # Wrapped once: the wrapper can be kept, and what a hop costs is the call.
    for sensitive in (False, True):
        found[f"sync_to_async(thread_sensitive={sensitive})"] = partial(
            sync_to_async, thread_sensitive=sensitive
        )
    return found


def hop_table(title: str, case: Case, figures: dict[str, list[float]], notes: list[str]) -> Table:
    """Compare with the peer of the promise for this concurrency, and the metrics with none."""
    alone = case.concurrency == 1
    reference = TRIO if case.loop == "trio" else EXECUTOR if alone else ANYIO
    target = Target("<=", 0.75 if alone else 0.5, of="ratio")
    rows = compared(figures, reference, {} if case.loop == "trio" else {KIT: target})
    added = pair(figures[KIT_IN_A_REQUEST], figures[KIT], operator.sub)
    rows.append(Row("what the metrics add", Spread.of(added), target=METRICS_TARGET))
    if BARE in figures:
        notes.append("A bare thread is the least that a hop can be: woken by a lock, no result.")
    return against(reference, figures, Table(title, "us", rows, notes=notes))


# A context manager.


class NoOpManager:
    """Enters and exits at once."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


def managers(case: Case, where: str, settings: Settings) -> Table:
    rounds = settings.pick(30, 3)
    each = 100 if case.concurrency == 1 else 3
    drive = drive_with(case)
    manager = NoOpManager()

    async def batch(wrap: Callable[[Any], Any]) -> float:
        async def use() -> None:
            async with wrap(manager):
                pass

        return await drive(use, each)

    work: dict[str, Work] = {
        KIT_MANAGER: partial(batch, contextmanager_in_threadpool),
        f"{KIT_MANAGER}(same_thread=True)": partial(
            batch, partial(contextmanager_in_threadpool, same_thread=True)
        ),
    }
    with contextlib.suppress(ImportError):
        from fastapi.concurrency import contextmanager_in_threadpool as fastapi_manager

        work[FASTAPI_MANAGER] = partial(batch, fastapi_manager)
    figures = interleave_on_loops(work, case.loop, rounds)
    targets = {KIT_MANAGER: Target("<=", 0.5, of="ratio")}
    table = Table(
        f"A context manager, entered and exited in threads, {occasion(case, where)}",
        "us",
        compared(figures, FASTAPI_MANAGER, targets),
        notes=[f"{rounds} rounds of {each * case.concurrency}."],
    )
    return against(FASTAPI_MANAGER, figures, table)


# An iterator.


def iterations(case: Case, where: str, settings: Settings) -> Table:
    rounds = settings.pick(3, 1)
    many = settings.pick(1_000_000, 50_000)
    few = settings.pick(3_000, 500)

    async def batch(wrap: Callable[[Iterable[int]], AsyncIterable[int]], items: int) -> float:
        seen = 0
        began = perf_counter_ns()
        async for _ in wrap(number for number in range(items)):
            seen += 1
        took = perf_counter_ns() - began
        if seen != items:
            raise RuntimeError(f"Of {items:,} items {seen:,} came through.")
        return items / took * 1e9

    work: dict[str, Work] = {
        KIT_ITERATION: partial(batch, iterate_in_threadpool, many),
        f"{KIT_ITERATION}(same_thread=True)": partial(
            batch, partial(iterate_in_threadpool, same_thread=True), many
        ),
    }
    with contextlib.suppress(ImportError):
        from starlette.concurrency import iterate_in_threadpool as starlette_iterate

        work[STARLETTE_ITERATION] = partial(batch, starlette_iterate, few)
    figures = interleave_on_loops(work, case.loop, rounds, warm_up=0)
    targets = {KIT_ITERATION: Target(">=", 5.0, of="ratio")}
    table = Table(
        f"A generator, advanced in threads: {case.loop}, {where}",
        "items/s",
        compared(figures, STARLETTE_ITERATION, targets),
        notes=[f"{rounds} rounds of {many:,} items, starlette's of {few:,}."],
    )
    return against(STARLETTE_ITERATION, figures, table)


# What all of them have in common.


def occasion(case: Case, where: str) -> str:
    at_once = "one at a time" if case.concurrency == 1 else f"{case.concurrency} at once"
    return f"{at_once}: {case.loop}, {where}"


def compared(
    figures: dict[str, list[float]], reference: str, targets: dict[str, Target]
) -> list[Row]:
    """Return a row for each contender, with its ratio to `reference` if that is among them."""
    rows = []
    for name, values in figures.items():
        ratio = target = None
        if reference in figures:
            ratio = Spread.of(pair(values, figures[reference], operator.truediv))
            target = targets.get(name)
        rows.append(Row(name, Spread.of(values), ratio, target))
    return rows


def against(reference: str, figures: dict[str, list[float]], table: Table) -> Table:
    """Name the peer that the ratios of `table` are against, or say that it is not there."""
    if reference in figures:
        table.reference = reference
    else:
        table.notes.append(f"Not installed, so not compared: {reference}.")
    return table


def drive_with(case: Case) -> Drive:
    if case.concurrency == 1:
        return one_after_another
    return at_once_on_trio if case.loop == "trio" else at_once


async def one_after_another(hop: Hop, each: int) -> float:
    began = perf_counter_ns()
    for _ in range(each):
        await hop()
    return (perf_counter_ns() - began) / each / 1000


async def at_once(hop: Hop, each: int) -> float:
    async def some() -> None:
        for _ in range(each):
            await hop()

    began = perf_counter_ns()
    await asyncio.gather(*(some() for _ in range(CONCURRENCY)))
    return (perf_counter_ns() - began) / (CONCURRENCY * each) / 1000


async def at_once_on_trio(hop: Hop, each: int) -> float:
    import trio

    async def some() -> None:
        for _ in range(each):
            await hop()

    began = perf_counter_ns()
    async with trio.open_nursery() as nursery:
        for _ in range(CONCURRENCY):
            nursery.start_soon(some)
    return (perf_counter_ns() - began) / (CONCURRENCY * each) / 1000


def interleave_on_loops(
    work: dict[str, Work], kind: str, rounds: int, warm_up: int = 3
) -> dict[str, list[float]]:
    """Run `work` in interleaved rounds, each contender's on a loop of its own."""
    with contextlib.ExitStack() as stack:
        batches = {
            name: partial(stack.enter_context(running_loop(kind)), one)
            for name, one in work.items()
        }
        return interleave(batches, rounds=rounds, warm_up=warm_up)


def running_loop(kind: str) -> AbstractContextManager[Call]:
    """Run a loop in a thread of its own; yields what runs work on it."""
    if kind == "trio":
        return trio_loop()
    if kind == "uvloop":
        import uvloop

        return asyncio_loop(uvloop.new_event_loop())
    return asyncio_loop(asyncio.new_event_loop())


@contextlib.contextmanager
def asyncio_loop(loop: asyncio.AbstractEventLoop) -> Iterator[Call]:
    over = asyncio.Event()

    def live() -> None:
        loop.run_until_complete(over.wait())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = Thread(target=live)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work(), loop).result()
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


@contextlib.contextmanager
def trio_loop() -> Iterator[Call]:
    import trio

    started: SimpleQueue[trio.lowlevel.TrioToken] = SimpleQueue()
    over = trio.Event()

    async def live() -> None:
        started.put(trio.lowlevel.current_trio_token())
        await over.wait()

    thread = Thread(target=trio.run, args=(live,))
    thread.start()
    token = started.get()
    try:
        yield lambda work: trio.from_thread.run(work, trio_token=token)
    finally:
        trio.from_thread.run_sync(over.set, trio_token=token)
        thread.join()


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
