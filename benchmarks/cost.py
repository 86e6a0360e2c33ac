"""What a middleware adds to a request, in process, in microseconds; peers beside it.

No server and no socket: the app is called with a new scope, a `receive` and a `send` that never
wait, so that everything measured is the middleware's own work. It is counted in CPU time of the
loop's thread, where the platform has a fine enough clock for that: nobody waits here, so it is the
same as wall time on an idle machine, and on a busy one it leaves the others' work out.

Every contender has an event loop to itself, because a middleware may install things on the loop (a
task factory, a heartbeat) that would otherwise be charged to its neighbours.
"""

from __future__ import annotations

import asyncio
import operator
import statistics
from collections.abc import Callable, Iterator
from itertools import islice
from time import get_clock_info, perf_counter_ns, thread_time_ns
from typing import Any

from asgi_perfkit import PerfKit, PerformanceMiddleware

from .contenders import (
    ASGIApp,
    Contender,
    Site,
    absent_peers,
    bare_app,
    baselines,
    contenders,
    kit,
    kit_contenders,
    lifespan_of,
    peers,
    receive,
    scope_for,
    send,
    starlette_app,
)
from .harness import Row, Settings, Spread, Table, Target, interleave, pair

REFERENCE = "starlette_exporter"
AIM = "timing-asgi"
TARGETS = {
    "PerformanceMiddleware": Target("<=", 0.30, of="ratio"),
    "PerfKit": Target("<=", 0.40, of="ratio"),
}

RAW = Site("a raw app", bare_app, "/hello", "/hello", "/hello")
RAW_PATHS = Site(
    "a raw app, another path each time", bare_app, "/items/{n}", "/items/{id}", "/items"
)
ROUTE = Site("a Starlette route", starlette_app, "/hello", "/hello", "/hello")
PARAMETER = Site(
    "a Starlette route with a path parameter",
    starlette_app,
    "/items/{n}",
    "/items/{item_id}",
    "/items",
)

clock_ns = thread_time_ns if get_clock_info("thread_time").resolution < 1e-6 else perf_counter_ns

Drive = Callable[[ASGIApp, list[str]], Any]


def run(settings: Settings) -> Iterator[Table]:
    for site in (RAW, ROUTE, PARAMETER):
        yield compare(f"Added to a request to {site.name}", site, contenders(site), settings)

    yield compare(
        f"Added to a request to {RAW.name} in a task of its own, as servers call it",
        RAW,
        contenders(RAW),
        settings,
        drive=in_tasks,
    )

    try:
        import uvloop
    except ImportError:
        pass
    else:
        yield compare(
            f"Added to a request to {RAW.name} in a task of its own, on uvloop",
            RAW,
            contenders(RAW),
            settings,
            drive=in_tasks,
            new_loop=uvloop.new_event_loop,
        )

    # The peers that keep a series for each path would be measured filling their memory.
    folding = [one for one in peers(RAW_PATHS) if one.name in (AIM, "asgi-prometheus")]
    yield compare(
        f"Added to a request to {RAW_PATHS.name}",
        RAW_PATHS,
        [*baselines(RAW_PATHS), *kit_contenders(RAW_PATHS), *folding],
        settings,
    )

    yield compare(
        f"Added to a request to {RAW.name} at 1,000 requests a second, where each has its memory measured",
        RAW,
        [
            *baselines(RAW),
            kit("PerformanceMiddleware", PerformanceMiddleware, RAW),
            kit("PerformanceMiddleware(memory=None)", PerformanceMiddleware, RAW, {"memory": None}),
            kit("PerfKit", PerfKit, RAW),
            *peers(RAW),
        ],
        settings,
        drive=paced,
        requests=settings.pick(60, 20),
        rounds=settings.pick(30, 3),
    )

    yield compare(
        f"What the parts add to a request to {RAW.name}",
        RAW,
        [
            *baselines(RAW),
            kit("PerformanceMiddleware", PerformanceMiddleware, RAW),
            kit("PerformanceMiddleware(memory=None)", PerformanceMiddleware, RAW, {"memory": None}),
            kit(
                "PerformanceMiddleware(server_timing=True)",
                PerformanceMiddleware,
                RAW,
                {"server_timing": True},
            ),
            kit(
                "PerformanceMiddleware(endpoint=...)",
                PerformanceMiddleware,
                RAW,
                {"endpoint": lambda scope: "/hello"},
            ),
            Contender("PerfKit(performance=False)", PerfKit(bare_app(), performance=False)),
            kit("PerfKit", PerfKit, RAW),
        ],
        settings,
    )


def is_kit(rival: Contender) -> bool:
    return isinstance(rival.app, (PerfKit, PerformanceMiddleware))


async def one_after_another(app: ASGIApp, paths: list[str]) -> float:
    """Await the app directly: nothing but the middleware and the app runs."""
    began = clock_ns()
    for path in paths:
        await app(scope_for(path), receive, send)
    return (clock_ns() - began) / len(paths)


async def in_tasks(app: ASGIApp, paths: list[str]) -> float:
    """Give each request its own task, which also charges what a middleware does to every task of
    the loop.
    """
    create_task = asyncio.get_running_loop().create_task
    began = clock_ns()
    for path in paths:
        await create_task(app(scope_for(path), receive, send))
    return (clock_ns() - began) / len(paths)


async def paced(app: ASGIApp, paths: list[str]) -> float:
    """Start a request each 1.05 milliseconds and time the requests alone.

    The time between is spun away: a sleep would let the core change its clock, and measure that.
    """
    total = 0
    due = perf_counter_ns()
    for path in paths:
        while perf_counter_ns() < due:
            pass
        due = perf_counter_ns() + 1_050_000
        began = clock_ns()
        await app(scope_for(path), receive, send)
        total += clock_ns() - began
    return total / len(paths)


def compare(
    title: str,
    site: Site,
    rivals: list[Contender],
    settings: Settings,
    *,
    drive: Drive = one_after_another,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    requests: int | None = None,
    rounds: int | None = None,
) -> Table:
    """Return what each of `rivals` adds to the first of them, the unwrapped app."""
    requests = requests or settings.pick(300, 100)
    rounds = rounds or settings.pick(60, 5)
    driven = dict.fromkeys((rival.name for rival in rivals), 0)
    loops = {rival.name: new_loop() for rival in rivals}

    def batch_of(rival: Contender) -> Callable[[], float]:
        paths = site.paths()

        def batch() -> float:
            these = list(islice(paths, requests))
            driven[rival.name] += len(these)
            return loops[rival.name].run_until_complete(drive(rival.app, these)) / 1000

        return batch

    # The kit does something else where nobody has told it of a startup, as servers do.
    lives = {rival.name: lifespan_of(rival.app) for rival in rivals if is_kit(rival)}
    try:
        for name, life in lives.items():
            loops[name].run_until_complete(life.__aenter__())
        figures = interleave(
            {rival.name: batch_of(rival) for rival in rivals},
            rounds=rounds,
            warm_up=settings.pick(5, 2),
        )
        for name, life in lives.items():
            loops[name].run_until_complete(life.__aexit__(None, None, None))
    finally:
        for loop in loops.values():
            loop.close()
    for rival in rivals:
        recorded = driven[rival.name] if rival.recorded is None else rival.recorded()
        if recorded != driven[rival.name]:
            raise RuntimeError(
                f"{rival.name} recorded {recorded:,.0f} of {driven[rival.name]:,} requests to {site.name}: "
                "it is not set up to do the work that it is compared for."
            )

    unwrapped, *others = [rival.name for rival in rivals]
    added = {name: pair(figures[name], figures[unwrapped], operator.sub) for name in others}
    rows = []
    for name in others:
        ratio = target = None
        if REFERENCE in added:
            ratio = Spread.of(pair(added[name], added[REFERENCE], operator.truediv))
            target = TARGETS.get(name)
        rows.append(Row(name, Spread.of(added[name]), ratio, target))
    if AIM in added:
        ratio = Spread.of(pair(added["PerfKit"], added[AIM], operator.truediv))
        rows.append(
            Row("PerfKit", None, ratio, Target("<", 1.0, of="ratio", aim=True), against=AIM)
        )
    own_time = statistics.median(figures[unwrapped])
    notes = [
        f"Unwrapped, a request takes {own_time:.1f} us. {rounds} rounds of {requests} requests."
    ]
    if REFERENCE in added and (absent := absent_peers(rivals)):
        notes.append(f"Not installed, so not compared: {', '.join(absent)}.")
    return Table(
        title, "us", rows, reference=REFERENCE if REFERENCE in added else None, notes=notes
    )
