"""Rows streamed through uvicorn and hypercorn: rows a second, and how long the loop waits; the memory of ten million.

One server serves all contenders, so they share whatever it is like. A round asks each for its rows
once; the client reads them off a raw socket in this process and counts them, for a response that is
not whole would be a fast one.

How long the loop waits is the longest stretch between two beats of a heart that beats each
millisecond, in CPU time of the loop's thread: what the thread did while others ran on its processor
is not counted, and nothing else of the machine is. FastAPI sends fewer rows, for a run would
take minutes; the rate is per row.
"""

from __future__ import annotations

import asyncio
import json
import operator
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import orjson
import psutil

from asgi_perfkit import JSON, NDJSON, JSONArray, PerfKit

from .contenders import ASGIApp, scope_for
from .harness import Row, Settings, Spread, Table, Target, interleave, pair
from .throughput import serve

PEER = "Starlette, a chunk per row"
ROWS = 100_000
STALL_MS = 5
MANY_ROWS = 10_000_000
OURS = ("ndjson", "perfkit", "sync", "array")
# What the allocator and the interpreter take or give back meanwhile; a row kept would be a gigabyte.
FLAT_KB = 1024


async def rows(number: int) -> AsyncIterator[dict[str, Any]]:
    for id_ in range(number):
        yield {"id": id_, "name": "kettle", "price": 24.5}


# ---- what is served


class Heart:
    """Beats while a request is served.

    :ivar longest: the most CPU time that the loop's thread took between two beats (seconds).
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._beat = time.thread_time()
        self._timer = asyncio.get_running_loop().call_soon(self._on_beat)

    def _on_beat(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._beat)
        self._beat = now
        self._timer = asyncio.get_running_loop().call_later(0.001, self._on_beat)

    def stop(self) -> float:
        self._on_beat()
        self._timer.cancel()
        return self.longest


def starlette_response(number: int) -> ASGIApp:
    from starlette.responses import StreamingResponse

    async def lines() -> AsyncIterator[bytes]:
        async for row in rows(number):
            yield orjson.dumps(row) + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def fastapi_app() -> ASGIApp:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/fastapi/{number}")
    async def stream(number: int) -> AsyncIterator[dict[str, Any]]:
        async for row in rows(number):
            yield row

    return app


RESPONSES: dict[str, Callable[[int], ASGIApp]] = {
    "ndjson": lambda number: NDJSON(rows(number)),
    "sync": lambda number: NDJSON(
        {"id": id_, "name": "kettle", "price": 24.5} for id_ in range(number)
    ),
    "array": lambda number: JSONArray(rows(number)),
    "starlette": starlette_response,
}


class Application:
    """What the servers serve: `/contender/rows`, and the longest stretch of the latest request."""

    def __init__(self) -> None:
        self._fastapi: ASGIApp | None = None
        self._longest = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        if scope["path"] == "/longest":
            await JSON(self._longest)(scope, receive, send)
            return
        _, name, number = scope["path"].split("/")
        if name == "fastapi":
            app = self._fastapi = self._fastapi or fastapi_app()
        elif name == "perfkit":
            app = PerfKit(NDJSON(rows(int(number))))
        else:
            app = RESPONSES[name](int(number))
        heart = Heart()
        try:
            await app(scope, receive, send)
        finally:
            self._longest = heart.stop()


app = Application()


# ---- who asks


def ask(port: int, path: str, count: bytes) -> tuple[float, int]:
    """Read a response to its end; the seconds that it took, and how often `count` is in it."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        buffer = bytearray(262_144)
        view = memoryview(buffer)
        found = 0
        tail = b""
        began = time.perf_counter()
        connection.sendall(request.encode())
        while size := connection.recv_into(buffer):
            part = tail + view[:size]
            found += part.count(count)
            tail = part[1 - len(count) :] if len(count) > 1 else b""
        return time.perf_counter() - began, found


def longest(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(b"GET /longest HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    return float(json.loads(answer.partition(b"\r\n\r\n")[2]))


SERVERS = {
    "uvicorn": "uvicorn --fd {fd} --lifespan off --no-access-log --log-level warning benchmarks.streams:app",
    "hypercorn (asyncio)": "hypercorn --bind fd://{fd} --workers 1 --log-level WARNING benchmarks.streams:app",
    "hypercorn (uvloop)": "hypercorn --worker-class uvloop --bind fd://{fd} --workers 1 --log-level WARNING "
    "benchmarks.streams:app",
}


def run(settings: Settings) -> Iterator[Table]:
    for name, command in SERVERS.items():
        if name.endswith("(uvloop)"):
            try:
                import uvloop  # noqa: F401
            except ImportError:
                continue
        yield from through(name, command.split(), settings)
    yield memory(settings)


def through(name: str, command: list[str], settings: Settings) -> Iterator[Table]:
    number = settings.pick(ROWS, 10_000)
    few = settings.pick(20_000, 2_000)
    rounds = settings.pick(8, 2)
    jobs = {
        "NDJSON": ("ndjson", number),
        "NDJSON in PerfKit": ("perfkit", number),
        "NDJSON, not asynchronous": ("sync", number),
        "JSONArray": ("array", number),
        PEER: ("starlette", number),
        "FastAPI JSON lines": ("fastapi", few),
    }
    stalls: dict[str, list[float]] = {job: [] for job in jobs}

    with serve([sys.executable, "-m", *command]) as (port, _):

        def batch_of(job: str) -> Callable[[], float]:
            path, number = jobs[job]

            def batch() -> float:
                seconds, found = ask(port, f"/{path}/{number}", b'{"id"')
                if found != number:
                    raise RuntimeError(f"{job} through {name} sent {found} rows, not {number}.")
                stalls[job].append(longest(port) * 1000)
                return number / seconds

            return batch

        warm_up = 1
        rates = interleave({job: batch_of(job) for job in jobs}, rounds=rounds, warm_up=warm_up)

    notes = [f"{rounds} rounds of {number:,} rows of some 45 bytes, of FastAPI {few:,}."]
    target = Target(">=", 5, of="ratio")
    yield Table(
        f"Rows streamed through {name}",
        "rows/s",
        [
            Row(
                job,
                Spread.of(rates[job]),
                None if job == PEER else Spread.of(pair(rates[job], rates[PEER], operator.truediv)),
                target if job == "NDJSON" else None,
            )
            for job in jobs
        ],
        reference=PEER,
        notes=notes,
    )
    limit = Target("<=", STALL_MS)
    yield Table(
        f"The longest that the loop of {name} waits for a response",
        "ms of CPU",
        [
            Row(job, Spread.of(stalls[job][warm_up:]), target=limit if path in OURS else None)
            for job, (path, _) in jobs.items()
        ],
        notes=notes,
    )


def memory(settings: Settings) -> Table:
    """Stream rows to nobody, and look at the process every so often."""
    number = settings.pick(MANY_ROWS, 300_000)
    process = psutil.Process()

    def growth(make: Callable[[int], ASGIApp]) -> float:
        resident: list[int] = []
        messages = 0

        async def send(message: Any) -> None:
            nonlocal messages
            messages += 1
            if messages % 200 == 0:
                resident.append(process.memory_info().rss)

        async def receive() -> Any:
            return await asyncio.get_running_loop().create_future()

        asyncio.run(make(number)(scope_for("/"), receive, send))
        settled = len(resident) // 20  # after a twentieth of the way
        return (max(resident[settled:]) - resident[settled]) / 1024

    return Table(
        f"Growth of the resident memory over {number:,} rows, in process",
        "kB",
        [
            Row(name, Spread.of([growth(RESPONSES[path])]), None, Target("<=", FLAT_KB))
            for name, path in (
                ("NDJSON", "ndjson"),
                ("NDJSON, not asynchronous", "sync"),
                ("JSONArray", "array"),
            )
        ],
        notes=["The most from a twentieth of the way on, against what it was then."],
    )
