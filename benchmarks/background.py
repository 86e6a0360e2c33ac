"""Work after the response: what the client feels of it, what a task costs, what a request without any pays.

What the client feels is wall time over a socket, behind hypercorn. A round asks each server once for
an answer that leaves nothing behind, and once for one that leaves a hundred tasks, each time with a
second request on the same connection behind it; then everybody's tasks have the time to end. What is
queued is part of the handler, and so of the answer: it is measured in process, too.

The rest is CPU time of the loop's thread, in process, each contender on a loop of its own. FastAPI's
BackgroundTasks are Starlette's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import operator
import socket
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter_ns
from typing import Any

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    PerfKit,
    Registry,
    add_task,
    get_performance_stats,
    get_runtime_stats,
)

from .contenders import ASGIApp, bare_app, lifespan_of, receive, scope_for, send
from .cost import clock_ns
from .harness import Row, Settings, Spread, Table, Target, interleave, pair
from .load import first_length
from .throughput import serve

KIT = "PerfKit, add_task"
STARLETTE = "Starlette's BackgroundTasks"
FASTAPI = "FastAPI's BackgroundTasks"
QUART = "Quart's add_background_task"
SEMAPHORE = "create_task, a semaphore"
BARE = "a bare loop"

TASKS = 100
TASK_SECONDS = 0.01

# The apps of `benchmarks.task_apps`, which hypercorn serves.
SERVED = {KIT: "perfkit", STARLETTE: "starlette", FASTAPI: "fastapi", QUART: "quart"}


def run(settings: Settings) -> Iterator[Table]:
    yield from latencies(settings)
    yield from drains(settings)
    yield idle_requests(settings)
    yield memory(settings)


# -- what the client feels ---------------------------------------------------------------------------------------------


class Client:
    """A connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, tasks: int) -> float:
        """Ask for an answer that leaves so many tasks behind; return the microseconds until it is there."""
        request = f"GET /{tasks} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        began = perf_counter_ns()
        self._socket.sendall(request)
        first_length(self._socket)
        return (perf_counter_ns() - began) / 1000

    def close(self) -> None:
        self._socket.close()


def latencies(settings: Settings) -> Iterator[Table]:
    rounds = settings.pick(60, 5)
    warm_up = 3
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, app in SERVED.items():
            if not installed(app):
                continue
            command = [sys.executable, "-m", "hypercorn", "--bind", "fd://{fd}"]
            command += ["--log-level", "WARNING", f"benchmarks.task_apps:make_{app}()"]
            ports[name], _ = stack.enter_context(serve(command))
        figures: dict[str, dict[tuple[int, int], list[float]]] = {
            name: {(tasks, nth): [] for tasks in (0, TASKS) for nth in (0, 1)} for name in ports
        }
        names = list(ports)
        for number in range(-warm_up, rounds):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                with contextlib.closing(Client(ports[name])) as client:
                    # What is not done all the time is slow: its code is in no cache.
                    for queued in [1] * 10 + [0] * 40:
                        client.ask(queued)
                    # With none first, or else it would be measured beside the tasks of the other.
                    for tasks in (0, TASKS):
                        for nth, queued in enumerate((tasks, 0)):
                            took = client.ask(queued)
                            if number >= 0:
                                figures[name][tasks, nth].append(took)
            time.sleep(1.3 * TASKS * TASK_SECONDS)
    for nth, title in enumerate(("that queues them", "on the same connection, while they run")):
        rows = []
        for name, found in figures.items():
            without, queued = found[0, nth], found[TASKS, nth]
            ratio = Spread.of(pair(queued, without, operator.truediv))
            target = Target("<=", 1.05, of="ratio") if name == KIT else None
            rows.append(Row(f"{name}: none", Spread.of(without)))
            rows.append(Row(f"{name}: {TASKS}", Spread.of(queued), ratio, target))
        yield Table(
            f"Latency of a request {title}: {TASKS} tasks of 10 ms, behind hypercorn",
            "us",
            rows,
            reference="none",
            notes=[f"{rounds} rounds of one request each. One worker, on asyncio."],
        )


def installed(app: str) -> bool:
    """Whether the framework of one of `benchmarks.task_apps` is there."""
    from .threads import installed as is_installed

    return app == "perfkit" or is_installed(app)


# -- what a task costs -------------------------------------------------------------------------------------------------


async def no_op() -> None:
    pass


def drains(settings: Settings) -> Iterator[Table]:
    tasks = settings.pick(100_000, 5_000)
    few = tasks // 10  # of one that takes its time
    rounds = settings.pick(6, 3)
    warm_up = 1
    work: dict[str, Callable[[int], Any]] = {
        KIT: through_the_kit,
        SEMAPHORE: through_create_task,
        STARLETTE: through_starlette,
        QUART: through_quart,
        BARE: through_a_loop,
    }
    for name, app in SERVED.items():
        if name in work and not installed(app):
            del work[name]
    queueing: dict[str, list[float]] = {name: [] for name in work}
    loops = {name: asyncio.new_event_loop() for name in work}

    def batch(name: str) -> float:
        number = few if name == QUART else tasks
        queued, drained = loops[name].run_until_complete(work[name](number))
        queueing[name].append(queued / number / 1000)
        return drained / number / 1000

    try:
        figures = interleave(
            {name: partial(batch, name) for name in work}, rounds=rounds, warm_up=warm_up
        )
    finally:
        for loop in loops.values():
            loop.close()
    notes = [f"{rounds} rounds of {tasks:,} async functions that do nothing, Quart's of {few:,}."]

    rates = {name: [1e6 / value for value in values] for name, values in figures.items()}
    rows = []
    for name, values in rates.items():
        ratio = None
        if name != BARE:
            ratio = Spread.of(pair(values, rates[SEMAPHORE], operator.truediv))
        target = Target(">=", 3.0, of="ratio") if name == KIT else None
        rows.append(Row(name, Spread.of(values), ratio, target))
    yield Table("Draining tasks", "tasks/s", rows, reference=SEMAPHORE, notes=notes)

    rows = []
    for name, values in figures.items():
        if name != BARE:
            on_top = pair(values, figures[BARE], operator.sub)
            target = Target("<=", 2.0) if name == KIT else None
            rows.append(Row(name, Spread.of(on_top), target=target))
    yield Table(f"What a task costs on top of {BARE}", "us", rows, notes=notes)

    rows = [
        Row(name, Spread.of(values[warm_up:]))
        for name, values in queueing.items()
        if name not in (BARE, SEMAPHORE)
    ]
    yield Table("What it costs to queue a task, in the request", "us", rows, notes=notes)


async def through_the_kit(tasks: int) -> tuple[int, int]:
    """Queue `tasks` in a request, and have them run; returns the nanoseconds of both."""
    registry = Registry()
    added = begun = ended = 0
    over = asyncio.Event()

    async def end() -> None:
        nonlocal ended
        ended = clock_ns()
        over.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal added, begun
        began = clock_ns()
        for _ in range(tasks):
            add_task(no_op)
        add_task(end)
        added = clock_ns() - began
        gc.collect()
        begun = clock_ns()

    wrapped = PerfKit(app, performance={"registry": registry}, background={"max_pending": 200_000})
    done = get_runtime_stats()["background_tasks"]["done"]
    async with lifespan_of(wrapped):
        await wrapped(scope_for("/"), receive, send)
        await over.wait()
    done = get_runtime_stats()["background_tasks"]["done"] - done
    timed = get_performance_stats(registry=registry)["background_time"]["count"]
    if not done == timed == tasks + 1:
        raise RuntimeError(f"{done:,} of {tasks + 1:,} tasks are done, and {timed:,} were timed.")
    return added, ended - begun


async def through_create_task(tasks: int) -> tuple[int, int]:
    semaphore = asyncio.Semaphore(TASKS)

    async def limited() -> None:
        async with semaphore:
            await no_op()

    gc.collect()
    began = clock_ns()
    await asyncio.gather(*[asyncio.create_task(limited()) for _ in range(tasks)])
    return 0, clock_ns() - began


async def through_starlette(tasks: int) -> tuple[int, int]:
    from starlette.background import BackgroundTasks

    background = BackgroundTasks()
    began = clock_ns()
    for _ in range(tasks):
        background.add_task(no_op)
    added = clock_ns() - began
    gc.collect()
    began = clock_ns()
    await background()
    return added, clock_ns() - began


async def through_quart(tasks: int) -> tuple[int, int]:
    from quart import Quart

    app = Quart("benchmarks")
    began = clock_ns()
    for _ in range(tasks):
        app.add_background_task(no_op)
    added = clock_ns() - began
    gc.collect()
    began = clock_ns()
    await asyncio.gather(*app.background_tasks)
    return added, clock_ns() - began


async def through_a_loop(tasks: int) -> tuple[int, int]:
    functions = [no_op] * tasks
    gc.collect()
    began = clock_ns()
    for function in functions:
        await function()
    return 0, clock_ns() - began


# -- what a request without any pays -----------------------------------------------------------------------------------


def idle_requests(settings: Settings) -> Table:
    requests = settings.pick(300, 100)
    rounds = settings.pick(120, 5)
    off = "PerfKit(background=False)"
    off_again = f"{off}, again"
    on = "PerfKit"
    bare = "unwrapped"
    alone = "BackgroundTaskMiddleware"
    apps = {
        bare: bare_app(),
        off: PerfKit(bare_app(), performance={"registry": Registry()}, background=False),
        off_again: PerfKit(bare_app(), performance={"registry": Registry()}, background=False),
        on: PerfKit(bare_app(), performance={"registry": Registry()}),
        alone: BackgroundTaskMiddleware(bare_app()),
    }
    loops = {name: asyncio.new_event_loop() for name in apps}
    lives = {name: lifespan_of(app) for name, app in apps.items()}

    async def drive(app: ASGIApp) -> float:
        began = clock_ns()
        for _ in range(requests):
            await app(scope_for("/hello"), receive, send)
        return (clock_ns() - began) / requests / 1000

    for name, life in lives.items():
        loops[name].run_until_complete(life.__aenter__())
    figures = interleave(
        {
            name: lambda name=name, app=app: loops[name].run_until_complete(drive(app))  # type: ignore[misc]
            for name, app in apps.items()
        },
        rounds=rounds,
        warm_up=settings.pick(5, 2),
    )
    for name, life in lives.items():
        loops[name].run_until_complete(life.__aexit__(None, None, None))
        loops[name].close()

    def added(name: str, to: str) -> Spread:
        return Spread.of(pair(figures[name], figures[to], operator.sub))

    return Table(
        "Added to a request to a raw app that queues nothing",
        "us",
        [
            Row(f"{on}, to {off}", added(on, off), target=Target("<=", 0.3)),
            Row(f"{off_again}, to the other", added(off_again, off)),
            Row(f"{alone}, to the app alone", added(alone, bare)),
        ],
        notes=[f"{rounds} rounds of {requests} requests. The apps have had their startup."],
    )


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(settings: Settings) -> Table:
    tasks = settings.pick(10_000, 1_000)

    async def kept(requests: int) -> float:
        gate = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/gate":
                add_task(gate.wait)
                return
            for number in range(tasks // requests):
                add_task(no_op_for, number, name="n")

        wrapped = PerfKit(
            app,
            performance={"registry": Registry()},
            background={"max_concurrency": 1, "max_pending": tasks},
        )
        async with lifespan_of(wrapped):
            await wrapped(scope_for("/gate"), receive, send)
            await asyncio.sleep(0)  # it runs, and the others wait
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(requests):
                await wrapped(scope_for("/"), receive, send)
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
            gate.set()
        return (after - before) / tasks

    tracemalloc.start(1)
    try:
        figures = {
            "all of one request": asyncio.run(kept(1)),
            "each the only one of its request": asyncio.run(kept(tasks)),
        }
    finally:
        tracemalloc.stop()
    return Table(
        "Bytes kept for a task that waits",
        "bytes",
        [
            Row(f"{KIT}: {name}", Spread.of([size]), target=Target("<", 1000.0))
            for name, size in figures.items()
        ],
        notes=[
            f"The mean of {tasks:,}, with one argument and one keyword argument, after the request."
        ],
    )


async def no_op_for(number: int, *, name: str) -> None:
    pass
