"""Compressed responses: what they cost, whole and as streams, and what it costs to have nothing to compress.

A request is an app that is called in process, with a `send` that never waits. What has nothing to
compress is counted in CPU time of the loop's thread, as in `cost`; what is compressed in CPU time of
the process, since the kit compresses large bodies in a thread. For how long the loop is busy with it
at a stretch has a table of its own: that is what all other requests wait.

Peers have their own defaults. They are compared in the coding that they are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import operator
import random
import zlib
from collections.abc import Callable, Iterator
from time import process_time_ns
from typing import Any

from asgi_perfkit import PerfKit, Registry, ResponseEncoderMiddleware
from asgi_perfkit.encoding.compression import find_codings

from .contenders import ASGIApp, Message, receive, scope_for, send
from .cost import clock_ns
from .harness import Row, Settings, Spread, Table, Target, interleave, pair

KIT = "ResponseEncoderMiddleware"
STARLETTE = "GZipMiddleware, of Starlette"
PASSING_TARGET = Target("<=", 1.5)
STALL_TARGET = Target("<", 1.0)
# What is not nothing: the one is told that others may be compressed, the other's start waits for the body.
ACCEPTS_NOTHING = "a client that accepts nothing"
NO_LENGTH = "a small body without Content-Length"
CODINGS = ("zstd", "br", "gzip")
EVENT = (
    b'data: {"id": %d, "price": 12.5, "name": "a kettle of iron", "at": "2026-11-24T12:00:00Z"}\n\n'
)


def run(settings: Settings) -> Iterator[Table]:
    yield passing(settings)
    for rows in (10, 100, 1_000):
        yield whole(rows, settings)
    yield stalls(settings)
    yield stream(settings)
    yield levels(settings)


# ---- apps and requests


def document(rows: int) -> bytes:
    """JSON such as handlers return: some of it repeats, and some does not."""
    rng = random.Random(7)
    names = ["kettle", "teapot", "cup", "saucer", "spoon", "tray", "caddy", "strainer"]
    return json.dumps(
        [
            {
                "id": number,
                "name": " ".join(rng.choices(names, k=3)),
                "token": f"{rng.getrandbits(64):016x}",
                "price": round(rng.random() * 100, 2),
                "sold": rng.randrange(1_000),
                "at": f"2026-11-{rng.randrange(1, 29):02}T{rng.randrange(24):02}:00:00Z",
            }
            for number in range(rows)
        ]
    ).encode()


def app_of(body: bytes, content_type: bytes = b"application/json", *, length: bool = True) -> Any:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"content-type", content_type)]
        if length:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def request(accepted: bytes) -> dict[str, Any]:
    scope = scope_for("/rows")
    scope["headers"] = [
        (name, accepted if name == b"accept-encoding" else value)
        for name, value in scope["headers"]
    ]
    return scope


def peers(app: ASGIApp) -> dict[str, tuple[ASGIApp, str]]:
    """What is installed of others, and the coding that it is asked for."""
    found: dict[str, tuple[ASGIApp, str]] = {}
    with contextlib.suppress(ImportError):
        from starlette.middleware.gzip import GZipMiddleware

        found[STARLETTE] = GZipMiddleware(app), "gzip"
    with contextlib.suppress(ImportError):
        from brotli_asgi import BrotliMiddleware

        found["brotli-asgi"] = BrotliMiddleware(app), "br"
    with contextlib.suppress(ImportError):
        from zstd_asgi import ZstdMiddleware

        found["zstd-asgi"] = ZstdMiddleware(app), "zstd"
    with contextlib.suppress(ImportError):
        from starlette_compress import CompressMiddleware

        for coding in CODINGS:
            found[f"starlette-compress, {coding}"] = CompressMiddleware(app), coding
    return found


def kits(app: ASGIApp) -> dict[str, tuple[ASGIApp, str]]:
    return {
        f"{KIT}, {coding}": (ResponseEncoderMiddleware(app, compression=(coding,)), coding)
        for coding in CODINGS
    }


async def size_of_answer(app: ASGIApp, coding: str) -> int:
    """The bytes of the body; makes sure that it is compressed."""
    heard: list[Message] = []

    async def hear(message: Message) -> None:
        heard.append(message)

    await app(request(coding.encode()), receive, hear)
    if (b"content-encoding", coding.encode()) not in heard[0]["headers"]:
        raise RuntimeError(f"{app!r} does not compress with {coding}.")
    return sum(len(message.get("body", b"")) for message in heard[1:])


# ---- tables


def passing(settings: Settings) -> Table:
    """What the layer adds to the stack where it finds nothing to do."""
    requests = settings.pick(200, 50)
    cases = {
        "off": (app_of(b"Hello, world", b"text/plain"), b"gzip, deflate", None),
        "a small body": (app_of(b"Hello, world", b"text/plain"), b"gzip, deflate", True),
        "a type that does not get smaller": (
            app_of(bytes(5_000), b"image/png"),
            b"gzip, deflate",
            True,
        ),
        ACCEPTS_NOTHING: (app_of(document(40)), b"identity", True),
        NO_LENGTH: (
            app_of(b"Hello, world", b"text/plain", length=False),
            b"gzip, deflate",
            True,
        ),
    }
    loop = asyncio.new_event_loop()

    async def drive(app: ASGIApp, accepted: bytes) -> float:
        began = clock_ns()
        for _ in range(requests):
            await app(request(accepted), receive, send)
        return (clock_ns() - began) / requests / 1_000

    def batch(app: ASGIApp, accepted: bytes) -> Callable[[], float]:
        return lambda: loop.run_until_complete(drive(app, accepted))

    contenders = {}
    for name, (app, accepted, compression) in cases.items():
        for around, encoder in (("without", True), ("with", {"compression": compression})):
            kit = PerfKit(app, performance={"registry": Registry()}, encoder=encoder)
            contenders[f"{around} {name}"] = batch(kit, accepted)
    try:
        figures = interleave(contenders, rounds=settings.pick(150, 5), warm_up=3)
    finally:
        loop.close()
    rows = []
    for name in cases:
        added = pair(figures[f"with {name}"], figures[f"without {name}"], operator.sub)
        rows.append(
            Row(
                name,
                Spread.of(added),
                target=None if name in (ACCEPTS_NOTHING, NO_LENGTH) else PASSING_TARGET,
            )
        )
    return Table("Added to a request in the stack, with nothing to compress", "us", rows)


def whole(rows: int, settings: Settings) -> Table:
    body = document(rows)
    app = app_of(body)
    contenders = {**kits(app), **peers(app)}
    requests = max(2, settings.pick(2_000, 200) // rows)
    loop = asyncio.new_event_loop()

    async def drive(app: ASGIApp, accepted: bytes) -> float:
        began = process_time_ns()
        for _ in range(requests):
            await app(request(accepted), receive, send)
        return (process_time_ns() - began) / requests / 1_000

    def batch(app: ASGIApp, coding: str) -> Callable[[], float]:
        return lambda: loop.run_until_complete(drive(app, coding.encode()))

    try:
        sizes = {
            name: loop.run_until_complete(size_of_answer(*contender))
            for name, contender in contenders.items()
        }
        figures = interleave(
            {name: batch(*contender) for name, contender in contenders.items()},
            rounds=settings.pick(25, 3),
        )
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    reference = STARLETTE if STARLETTE in figures else None
    table_rows = [
        Row(
            f"{name}: {sizes[name]:,} B",
            Spread.of(figures[name]),
            Spread.of(pair(figures[name], figures[reference], operator.truediv))
            if reference
            else None,
        )
        for name in contenders
    ]
    return Table(
        f"A response of {len(body):,} B of JSON, compressed: CPU of all threads",
        "us",
        table_rows,
        reference=reference,
    )


def stalls(settings: Settings) -> Table:
    """For how long at a stretch the loop is busy, while bodies of a megabyte are compressed."""
    body = document(9_000)
    app = app_of(body)
    contenders = {**kits(app), **peers(app)}

    async def watch(app: ASGIApp, coding: str) -> float:
        longest = 0.0
        busy = True

        async def tick() -> None:
            nonlocal longest
            before = clock_ns()
            while busy:
                await asyncio.sleep(0)
                now = clock_ns()
                longest = max(longest, now - before)
                before = now

        ticking = asyncio.ensure_future(tick())
        await asyncio.sleep(0)
        for _ in range(3):
            await app(request(coding.encode()), receive, send)
        busy = False
        await ticking
        return longest / 1_000_000

    def batch(app: ASGIApp, coding: str) -> Callable[[], float]:
        return lambda: asyncio.run(watch(app, coding))

    figures = interleave(
        {name: batch(*contender) for name, contender in contenders.items()},
        rounds=settings.pick(10, 2),
        warm_up=1,
    )
    return Table(
        f"The longest stretch of the loop's CPU time, while {len(body):,} B are compressed",
        "ms",
        [
            Row(
                name,
                Spread.of(figures[name]),
                target=STALL_TARGET if name.startswith(KIT) else None,
            )
            for name in contenders
        ],
    )


def stream(settings: Settings) -> Table:
    """An event of a stream, flushed."""
    events = [EVENT % number for number in range(settings.pick(500, 50))]

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    contenders: dict[str, tuple[ASGIApp, str]] = {"not compressed": (app, "identity"), **kits(app)}
    with contextlib.suppress(ImportError):
        from starlette_compress import CompressMiddleware

        for coding in CODINGS:
            contenders[f"starlette-compress, {coding}"] = CompressMiddleware(app), coding
    loop = asyncio.new_event_loop()

    async def drive(app: ASGIApp, accepted: bytes) -> float:
        began = process_time_ns()
        await app(request(accepted), receive, send)
        return (process_time_ns() - began) / len(events) / 1_000

    def batch(app: ASGIApp, coding: str) -> Callable[[], float]:
        return lambda: loop.run_until_complete(drive(app, coding.encode()))

    try:
        sizes = {
            name: loop.run_until_complete(size_of_answer(*contender))
            for name, contender in contenders.items()
            if name != "not compressed"
        }
        figures = interleave(
            {name: batch(*contender) for name, contender in contenders.items()},
            rounds=settings.pick(30, 3),
        )
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    size = sum(map(len, events))
    return Table(
        f"An event of {size // len(events)} B in a stream",
        "us",
        [
            Row(f"{name}: {sizes.get(name, size) / len(events):.0f} B", Spread.of(figures[name]))
            for name in contenders
        ],
        notes=["Starlette's GZipMiddleware compresses no event stream."],
    )


def levels(settings: Settings) -> Table:
    """The codings alone, at the levels around those that were chosen."""
    body = document(1_000)
    contenders: dict[str, Callable[[], bytes]] = {}
    for coding in find_codings("compression", True).values():
        contenders[f"{coding.name.decode()}, as chosen"] = lambda coding=coding: coding.compress(
            body
        )  # type: ignore[misc]
    with contextlib.suppress(ImportError):
        from backports import zstd

        for level in (1, 3, 6):
            contenders[f"zstd {level}"] = lambda level=level: zstd.compress(body, level)  # type: ignore[misc]
    with contextlib.suppress(ImportError):
        import brotli

        for level in (3, 4, 5):
            contenders[f"br {level}"] = lambda level=level: brotli.compress(body, quality=level)  # type: ignore[misc]
    for level in (1, 4, 6, 9):
        contenders[f"gzip {level}"] = lambda level=level: zlib.compress(body, level)  # type: ignore[misc]

    def batch(function: Callable[[], bytes]) -> Callable[[], float]:
        def timed() -> float:
            began = clock_ns()
            function()
            return (clock_ns() - began) / 1_000

        return timed

    figures = interleave(
        {name: batch(function) for name, function in contenders.items()},
        rounds=settings.pick(30, 3),
    )
    return Table(
        f"{len(body):,} B of JSON",
        "us",
        [
            Row(f"{name}: {len(function()):,} B", Spread.of(figures[name]))
            for name, function in contenders.items()
        ],
    )
