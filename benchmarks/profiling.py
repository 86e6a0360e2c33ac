"""Profiling: what it adds to a request, to a query and to a server's throughput; whether it is right.

Everything is compared with the same kit without profiling. CPU time of the loop's thread in
process, where nobody waits; requests a second over real sockets for the throughput.
"""

from __future__ import annotations

import asyncio
import operator
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from time import perf_counter, thread_time_ns
from typing import Any

from asgi_perfkit import (
    PerfKit,
    Profiles,
    Registry,
    get_profile_stats,
    profile,
    profile_connection,
)

from .contenders import bare_app, receive, scope_for, send
from .harness import Row, Settings, Spread, Table, Target, interleave, pair
from .throughput import CONTROL, Case
from .throughput import compare as compare_throughput

OFF = "PerfKit"
ON = "PerfKit(profiling=True)"
SAMPLED = "PerfKit(profiling={'sample_hz': 100})"
STATEMENT = "SELECT price FROM items WHERE id = ?"
QUERIES = 20  # that a request sends
WORK_SECONDS = 0.002  # for which a request occupies the loop at a stretch
STALL_SECONDS = 0.3


def run(settings: Settings) -> Iterator[Table]:
    yield request_cost(settings)
    yield query_cost(settings)
    yield from throughput(settings)
    yield attribution(settings)
    yield stalls(settings)
    yield flood(settings)


# ---- what it costs


def in_rounds(apps: dict[str, Any], settings: Settings, *, requests: int) -> dict[str, list[float]]:
    """Return microseconds of CPU of a request, by app, one for each round."""

    async def batch(app: Any) -> float:
        began = thread_time_ns()
        for _ in range(requests):
            await app(scope_for("/hello"), receive, send)
        return (thread_time_ns() - began) / requests / 1000

    with closing(asyncio.new_event_loop()) as loop:
        batches = {
            name: partial(lambda app: loop.run_until_complete(batch(app)), app)
            for name, app in apps.items()
        }
        return interleave(batches, rounds=settings.pick(60, 3))


def kit(app: Any, **options: Any) -> PerfKit:
    return PerfKit(app, performance={"registry": Registry()}, **options)


def profiling(**options: Any) -> dict[str, Any]:
    return {"profiles": Profiles(), **options}


def request_cost(settings: Settings) -> Table:
    apps = {
        OFF: kit(bare_app()),
        ON: kit(bare_app(), profiling=profiling()),
        f"{ON}, queries=False": kit(bare_app(), profiling=profiling(queries=False)),
        f"{ON}, no watch, nothing slow": kit(
            bare_app(), profiling=profiling(stall_threshold=None, slow_threshold=None)
        ),
        SAMPLED: kit(bare_app(), profiling=profiling(sample_hz=100)),
    }
    found = in_rounds(apps, settings, requests=settings.pick(1000, 200))
    rows = [Row(OFF, Spread.of(found[OFF]))]
    for name in list(apps)[1:]:
        added = Spread.of(pair(found[name], found[OFF], operator.sub))
        target = Target("<=", 2.0) if name == ON else None
        rows.append(Row(f"{name}: added", added, target=target))
    return Table("Profiling: added to a request that sends no query", "us", rows)


def query_cost(settings: Settings) -> Table:
    plain = database()
    profiled = profile_connection(database())

    def asking(connection: Any) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            for number in range(QUERIES):
                connection.execute(STATEMENT, (number,)).fetchone()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        return app

    apps = {
        "plain connection": kit(asking(plain), profiling=profiling()),
        "profiled, in a request that is profiled": kit(asking(profiled), profiling=profiling()),
        "profiled, in one that is not": kit(asking(profiled)),
    }
    found = in_rounds(apps, settings, requests=settings.pick(100, 20))
    first, *others = apps
    rows = [Row(first, Spread.of([each / QUERIES for each in found[first]]))]
    for name in others:
        added = [each / QUERIES for each in pair(found[name], found[first], operator.sub)]
        target = Target("<=", 5.0) if name == others[0] else None
        rows.append(Row(f"{name}: added", Spread.of(added), target=target))
    return Table(
        "Profiling: added to a query (sqlite3, one row by its key)",
        "us",
        rows,
        notes=[f"{QUERIES} queries of one statement in each request, fetched."],
    )


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, price INTEGER)")
    connection.executemany("INSERT INTO items VALUES (?, ?)", ((n, n) for n in range(QUERIES)))
    connection.commit()
    return connection


def throughput(settings: Settings) -> Iterator[Table]:
    raw = {OFF: "wrapped", ON: "profiled", SAMPLED: "sampled", CONTROL: "wrapped"}
    starlette = {name: f"starlette_{app}" for name, app in raw.items()}
    for title, path, apps in (
        ("a raw app with profiling", "/hello", raw),
        ("a Starlette route that answers 100 rows, with profiling", "/rows", starlette),
    ):
        yield from compare_throughput(Case(title, "asyncio", path, apps), settings)


# ---- whether it is right


def busy(seconds: float) -> None:
    ends = perf_counter() + seconds
    while perf_counter() < ends:
        sum(range(50))


def one_work() -> None:
    busy(WORK_SECONDS)


def other_work() -> None:
    busy(WORK_SECONDS * 2)


async def two_endpoints(scope: Any, receive: Any, send: Any) -> None:
    work = one_work if scope["path"] == "/one" else other_work
    for _ in range(3):
        work()
        await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def attribution(settings: Settings) -> Table:
    """Of the samples within one endpoint's own function, how many are given to that endpoint."""

    async def main() -> float:
        profiles = Profiles()
        app = kit(two_endpoints, profiling={"profiles": profiles})
        ends = perf_counter() + settings.pick(10, 1)

        async def client(path: str) -> None:
            while perf_counter() < ends:
                await app(scope_for(path), receive, send)

        async with profile(hz=1000, profiles=profiles) as report:
            await asyncio.gather(*(client(path) for path in ("/one", "/other") * 4))
        right = total = 0.0
        for label in report.endpoints:
            for row in report.top(100, endpoint=label):
                if row["function"] in ("one_work", "other_work"):
                    total += row["total"]
                    right += row["total"] * (label == f"GET /{row['function'][:-5]}")
        return right / total * 100

    rows = [
        Row(
            "samples given to the right endpoint",
            Spread.of([asyncio.run(main()) for _ in range(settings.pick(3, 1))]),
            target=Target(">=", 97.0),
        )
    ]
    return Table(
        "Profiling: two endpoints that run concurrently, sampled at 1,000 Hz",
        "%",
        rows,
        notes=["8 clients; each request holds the loop three times, for 2 ms or 4 ms."],
    )


def freeze() -> None:
    time.sleep(STALL_SECONDS)  # the line


async def freezing(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/freezing":
        freeze()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def stalls(settings: Settings) -> Table:
    """Stalls that were reported with the right endpoint and line; those reported under full load."""
    tries = settings.pick(100, 5)
    healthy = settings.pick(60, 3)
    line = freeze.__code__.co_firstlineno + 1

    async def main() -> tuple[int, int]:
        profiles = Profiles()
        app = kit(freezing, profiling={"profiles": profiles})
        caught = 0
        for _ in range(tries):
            profiles.clear()
            await app(scope_for("/freezing"), receive, send)
            found = get_profile_stats(profiles=profiles)["stalls"]
            caught += [(each["endpoint"], each["line"], each["function"]) for each in found] == [
                ("GET /freezing", line, "freeze")
            ]
            await asyncio.sleep(0.01)
        profiles.clear()
        ends = perf_counter() + healthy
        while perf_counter() < ends:
            await asyncio.gather(*(app(scope_for("/healthy"), receive, send) for _ in range(50)))
        return caught, len(get_profile_stats(profiles=profiles)["stalls"])

    caught, false_alarms = asyncio.run(main())
    rows = [
        Row(
            f"of {tries} stalls of {STALL_SECONDS:g} s, caught while they last, with the line",
            Spread.of([float(caught)]),
            target=Target(">=", float(tries)),
        ),
        Row(
            f"reported in {healthy} s of full load without one",
            Spread.of([float(false_alarms)]),
            target=Target("<=", 0.0),
        ),
    ]
    return Table("Profiling: stalls", "", rows)


def flood(settings: Settings) -> Table:
    """Distinct statements without end, from endpoints without end."""
    import tracemalloc

    statements = settings.pick(100_000, 5_000)
    connection = profile_connection(database())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number in range(10):
            column = f"column_{scope['path'][-8:].replace('/', '_')}_{number}"
            connection.execute(f"SELECT price AS {column} FROM items WHERE id = 3").fetchone()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def word(number: int) -> str:
        return "".join(chr(97 + int(digit)) for digit in f"{number:06d}")

    async def main() -> float:
        profiles = Profiles()
        wrapped = kit(app, profiling={"profiles": profiles, "slow_threshold": 1e-9})
        for number in range(100):
            await wrapped(scope_for(f"/{word(number)}"), receive, send)
        profiles.clear()
        tracemalloc.start()
        try:
            for number in range(statements // 10):
                await wrapped(scope_for(f"/{word(number)}"), receive, send)
            held = tracemalloc.get_traced_memory()[0]
            profiles.clear()
            return (held - tracemalloc.get_traced_memory()[0]) / 2**20
        finally:
            tracemalloc.stop()

    rows = [
        Row(
            "kept by the profiles",
            Spread.of([asyncio.run(main())]),
            target=Target("<=", 16.0),
        )
    ]
    return Table(
        f"Profiling: memory after {statements:,} distinct statements from as many endpoints as requests",
        "MiB",
        rows,
        notes=["Ten statements a request; each request is kept as a slow one, too."],
    )
