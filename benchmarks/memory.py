"""Memory: bytes of a parked request, bytes of a series, and growth over a million paths.

Bytes are those that tracemalloc sees allocated and not freed, so a figure is what the code keeps,
to the byte, whatever the allocator does with it. The million paths are driven a second time without
it, for what the process really grows by.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import operator
import random
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import psutil

from asgi_perfkit import PerfKit, Registry, get_performance_stats

from .contenders import (
    REQUEST,
    Contender,
    Message,
    Site,
    baselines,
    kit_contenders,
    peers,
    receive,
    scope_for,
    send,
)
from .filling import MAX_SERIES, adversarial, fill, typical
from .harness import Row, Settings, Spread, Table, Target, interleave, pair

KIT = ("PerformanceMiddleware", "PerfKit")
KIB = 1024
MIB = 1024 * 1024
PARKED_TARGET = Target("<=", 1024.0)


def run(settings: Settings) -> Iterator[Table]:
    for place, title in PLACES.items():
        yield parked(place, title, settings)
    series = bytes_per_series(settings)
    yield series
    full = series.rows[-1].value
    assert full is not None
    yield million_paths(settings, full.median)


# -- parked requests ---------------------------------------------------------------------------------------------------

PLACES = {
    "app": "the application waits, before its response",
    "receive": "the application waits for the request's body",
    "stream": "the application waits in the middle of a streamed response",
    "websocket": "the application waits for a websocket message",
}


class ParkingLot:
    """An app whose requests all wait at the same `place` until they are let go."""

    def __init__(self, place: str, places: int) -> None:
        self.place = place
        self.places = places
        self.reset()

    def reset(self) -> None:
        self.taken = 0
        self.full = asyncio.Event()
        self.open = asyncio.Event()

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if self.place == "app":
            await self.park()
        elif self.place == "receive":
            await receive()
        elif self.place == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.place == "stream":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await self.park()
        await send({"type": "http.response.body", "body": b"last"})

    async def park(self) -> None:
        self.taken += 1
        if self.taken == self.places:
            self.full.set()
        await self.open.wait()

    def receiver(self) -> Callable[[], Awaitable[Message]]:
        """Return the `receive` of one request."""
        if self.place == "receive":

            async def body() -> Message:
                await self.park()
                return REQUEST

            return body
        if self.place == "websocket":
            connected = False

            async def event() -> Message:
                nonlocal connected
                if not connected:
                    connected = True
                    return {"type": "websocket.connect"}
                await self.park()
                return {"type": "websocket.disconnect", "code": 1000}

            return event
        return receive


def parked(place: str, title: str, settings: Settings) -> Table:
    """Return what each contender keeps for a request that waits at `place`."""
    requests = settings.pick(1000, 200)
    rounds = settings.pick(3, 2)
    lot = ParkingLot(place, requests)
    site = Site(title, lambda: lot.app, "/hello", "/hello", "/hello")
    rivals = [*baselines(site), *kit_contenders(site)]
    if place != "websocket":
        # The peers leave websockets alone, so there is nothing to compare.
        rivals += peers(site)
    loops = {rival.name: asyncio.new_event_loop() for rival in rivals}

    def batch_of(rival: Contender) -> Callable[[], float]:
        return lambda: loops[rival.name].run_until_complete(bytes_while_parked(rival, lot))

    try:
        with tracing():
            figures = interleave({rival.name: batch_of(rival) for rival in rivals}, rounds=rounds)
    finally:
        for loop in loops.values():
            loop.close()
    unwrapped, *others = figures
    rows = []
    for name in others:
        kept = pair(figures[name], figures[unwrapped], operator.sub)
        rows.append(Row(name, Spread.of(kept), target=PARKED_TARGET if name in KIT else None))
    return Table(
        f"Bytes kept for a parked request: {title}",
        "bytes",
        rows,
        notes=[
            f"{requests:,} requests parked at once, {rounds} rounds; what the same app keeps unwrapped is taken off."
        ],
    )


async def bytes_while_parked(rival: Contender, lot: ParkingLot) -> float:
    lot.reset()
    kind = "websocket" if lot.place == "websocket" else "http"
    # What a server makes for a request is made before the count starts, and is the same for all.
    prepared = [(dict(scope_for("/hello"), type=kind), lot.receiver()) for _ in range(lot.places)]
    tasks: list[asyncio.Task[Any]] = []
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for scope, receiver in prepared:
        tasks.append(asyncio.ensure_future(rival.app(scope, receiver, send)))
    await lot.full.wait()
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - before
    lot.open.set()
    await asyncio.gather(*tasks)
    return kept / lot.places


# -- series ------------------------------------------------------------------------------------


def bytes_per_series(settings: Settings) -> Table:
    """Return what a series keeps, filled by ordinary traffic and by somebody who wants it big."""
    series = settings.pick(200, 50)
    kinds = {
        "typical traffic": list(typical(settings.pick(1000, 100))),
        "every metric over its whole range": list(adversarial()),
    }
    rows = []
    with tracing():
        for name, requests in kinds.items():
            registry = Registry()
            # What a registry keeps once does not belong to any series.
            fill(registry, 1, requests)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            fill(registry, series, requests, first=1)
            gc.collect()
            kept = (tracemalloc.get_traced_memory()[0] - before) / series
            rows.append(Row(name, Spread.of([kept / KIB]), target=Target("<=", 64.0)))
    return Table("Memory of a series", "KiB", rows, notes=[f"The mean of {series} series."])


# -- a million paths ---------------------------------------------------------------------------------------------------


def million_paths(settings: Settings, full_series_kib: float) -> Table:
    """Return what a scanner adds to the memory, who asks for another path with each request."""
    requests = settings.pick(1_000_000, 50_000)
    limit = Target("<", MAX_SERIES * full_series_kib / KIB)
    rows = []
    for status in (200, 404):
        for what in ("allocated", "resident"):
            # In a process of its own each, where no memory that others have freed lies ready to be
            # used.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                grown = pool.apply(scan, (status, requests, what))
            rows.append(
                Row(f"an app that answers {status}, {what}", Spread.of([grown / MIB]), target=limit)
            )
    return Table(
        f"Memory after {requests:,} requests to {requests:,} different paths",
        "MiB",
        rows,
        notes=[f"The limit is max_series ({MAX_SERIES:,}) series of the full size measured above."],
    )


def answering(status: int) -> Any:
    """Return an app that answers everything with `status`."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def scanned_paths(number: int) -> Iterator[str]:
    """Return `number` different paths such as scanners try: words, numbers, tokens and files, few
    of them alike in form.
    """
    dice = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    for n in range(number):
        word, rest = "", n
        while True:
            rest, digit = divmod(rest, 26)
            word += letters[digit]
            if not rest:
                break
        form = n % 5
        if form == 0:
            yield f"/{word}"
        elif form == 1:
            yield f"/{word}/{dice.choice(letters)}.php"
        elif form == 2:
            yield f"/users/{n}/orders/{n}"
        elif form == 3:
            yield f"/files/{dice.getrandbits(128):032x}"
        else:
            yield f"/admin/{word}/{word}/../{n:x}"


def scan(status: int, requests: int, what: Literal["allocated", "resident"]) -> float:
    """Return by how many bytes this process grows over `requests` requests to different paths."""
    registry = Registry()
    app = PerfKit(answering(status), performance={"registry": registry})
    process = psutil.Process()
    warm_up = 1000

    def figure() -> int:
        gc.collect()
        return (
            tracemalloc.get_traced_memory()[0] if what == "allocated" else process.memory_info().rss
        )

    async def drive() -> float:
        # One path often, first: what the kit makes once is there, and is not taken for growth.
        for _ in range(warm_up):
            await app(scope_for("/"), receive, send)
        before = figure()
        for path in scanned_paths(requests):
            await app(scope_for(path), receive, send)
        return figure() - before

    with tracing() if what == "allocated" else contextlib.nullcontext():
        grown = asyncio.run(drive())
    recorded = get_performance_stats(registry=registry)["total_time"]["count"]
    if recorded != requests + warm_up:
        raise RuntimeError(f"The kit recorded {recorded:,} of {requests + warm_up:,} requests.")
    return grown


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Have tracemalloc count, with the shortest of records."""
    tracemalloc.start(1)
    try:
        yield
    finally:
        tracemalloc.stop()
