"""The reader's side: get_performance_stats() over 1,000 series, and what the loop feels of it."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Iterator
from time import perf_counter, sleep
from typing import Any

from asgi_perfkit import PerfKit, Registry, get_performance_stats

from .contenders import bare_app, receive, scope_for, send
from .filling import MAX_SERIES, fill, typical
from .harness import Row, Settings, Spread, Table, Target, interleave

BEAT_SECONDS = 0.001
IDLE = "an idle thread"
BUSY = "a thread of plain Python"


def run(settings: Settings) -> Iterator[Table]:
    registry = Registry()
    requests = settings.pick(300, 30)
    fill(registry, MAX_SERIES, typical(requests))
    held = len(get_performance_stats(by="endpoint", registry=registry))
    if held != MAX_SERIES:
        raise RuntimeError(f"The registry holds {held} series instead of {MAX_SERIES}.")
    calls: dict[str, Callable[[], object]] = {
        "get_performance_stats()": functools.partial(get_performance_stats, registry=registry),
        'get_performance_stats(by="endpoint")': functools.partial(
            get_performance_stats, by="endpoint", registry=registry
        ),
    }
    filled = f"{MAX_SERIES:,} series, each of {requests} requests with 10 metrics."
    yield durations(calls, filled, settings)
    yield lateness(registry, calls, filled, settings)


def durations(calls: dict[str, Callable[[], object]], filled: str, settings: Settings) -> Table:
    """Return how long each call takes on a thread that has the interpreter to itself."""

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        def batch() -> float:
            began = perf_counter()
            call()
            return (perf_counter() - began) * 1000

        return batch

    rounds = settings.pick(20, 3)
    figures = interleave({name: timed(call) for name, call in calls.items()}, rounds=rounds)
    rows = [
        Row(name, Spread.of(samples), target=Target("<", 50.0)) for name, samples in figures.items()
    ]
    return Table("Reading the figures", "ms", rows, notes=[f"{filled} {rounds} rounds."])


def lateness(
    registry: Registry, calls: dict[str, Callable[[], object]], filled: str, settings: Settings
) -> Table:
    """Return how late the loop gets, at worst, while another thread reads the figures.

    The loop serves a request of the kit every millisecond meanwhile, so that it is felt, too, if
    the reader holds a lock that recording needs.
    """
    app = PerfKit(bare_app(), performance={"registry": registry})
    as_long = settings.pick(60, 20) / 1000

    def idle() -> None:
        sleep(as_long)

    def busy() -> None:
        until = perf_counter() + as_long
        number = 0
        while perf_counter() < until:
            number += 1

    def watched(work: Callable[[], object]) -> Callable[[], float]:
        return lambda: asyncio.run(worst_lateness(app, work)) * 1000

    rounds = settings.pick(30, 3)
    work = {IDLE: idle, BUSY: busy, **calls}
    figures = interleave({name: watched(one) for name, one in work.items()}, rounds=rounds)
    rows = [
        Row(name, Spread.of(samples), target=Target("<=", 5.0) if name in calls else None)
        for name, samples in figures.items()
    ]
    worst = ", ".join(f"{name} {max(samples):.1f}" for name, samples in figures.items())
    return Table(
        "The latest the loop gets while a worker thread reads the figures",
        "ms",
        rows,
        notes=[
            f"A request every {BEAT_SECONDS * 1000:g} ms on the loop. {rounds} rounds. {filled}",
            f"The interpreter's switch interval is {sys.getswitchinterval() * 1000:g} ms.",
            f"The worst of all rounds: {worst}.",
        ],
    )


async def worst_lateness(app: Any, work: Callable[[], object]) -> float:
    """Run `work` in a thread; return the longest that a beat of the loop came after its time."""
    loop = asyncio.get_running_loop()
    # The thread is there before anything is measured.
    await asyncio.to_thread(lambda: None)
    working = loop.run_in_executor(None, work)
    worst = 0.0
    while not working.done():
        due = perf_counter() + BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS)
        await app(scope_for("/hello"), receive, send)
        worst = max(worst, perf_counter() - due)
    await working
    return worst
