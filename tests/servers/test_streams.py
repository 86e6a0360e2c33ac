"""Streams behind real servers: whole, at once, no faster than they are read, and over when the client is gone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest

from .client import Connection, Response
from .harness import VARIANTS, Application, Deployment, Server, serve

pytestmark = pytest.mark.anyio

APPLICATION = Application("raw", "streams")
ROW = {"name": "kettle", "price": 24.5}
PATIENCE_SECONDS = 10


@pytest.fixture(
    scope="module",
    params=[Deployment(APPLICATION, worker) for worker in (*APPLICATION.workers, "uvicorn")],
    ids=str,
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    deployment: Deployment = request.param
    command = None
    if deployment.worker == "uvicorn":  # which takes no path
        options = ["--fd", "{fd}", "--app-dir", str(VARIANTS), "--log-level", "warning"]
        command = [sys.executable, "-m", "uvicorn", *options, "streams:app"]
    with serve(deployment, command=command) as server:
        yield server


async def ask(server: Server, target: str) -> Response:
    async with Connection(server.port) as connection:
        response: Response = await connection.request("GET", target)
        return response


async def until(server: Server, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The state of the latest producer, once it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        state: dict[str, Any] = (await ask(server, "/state")).json()
        if condition(state):
            return state
        assert time.monotonic() < deadline, state


@asynccontextmanager
async def reading(
    server: Server, target: str, *, headers: tuple[tuple[str, str], ...] = (), **options: Any
) -> AsyncIterator[Connection]:
    """A connection on which the response has begun."""
    async with Connection(server.port, **options) as connection:
        await connection.send_head("GET", target, headers=headers)
        await connection.send_end()
        status, _ = await connection.receive_head()
        assert status == 200
        yield connection


async def read_until(connection: Connection, end: bytes) -> bytes:
    body = b""
    while not body.endswith(end):
        part = await connection.receive_body_part()
        assert part is not None
        body += part
    return body


async def read_all(connection: Connection, body: bytearray) -> None:
    async for part in connection.receive_body():
        body += part


async def test_100_000_rows_are_whole_and_leave_the_loop_to_others(server: Server) -> None:
    await ask(server, "/reset")
    response = await ask(server, "/rows")
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = response.body.splitlines()
    assert len(lines) == 100_000
    assert json.loads(lines[99_999]) == {"id": 99_999, **ROW}
    ids = [line.split(b",", 1)[0] for line in lines]
    assert ids == [b'{"id":%d' % number for number in range(100_000)]
    state = await until(server, lambda state: state["ended"] is not None)
    # Of the processor's time: what else the machine does is not counted.
    assert state["longest_step"] <= 0.005
    endpoint = (await ask(server, "/stats")).json()["GET /rows"]
    assert endpoint["outcomes"] == {"ok": 1}
    assert endpoint["serialization_time"]["count"] == 1
    assert endpoint["serialization_time"]["sum"] < endpoint["loop_time"]["sum"]


async def test_an_array_is_json(server: Server) -> None:
    rows = (await ask(server, "/array")).json()
    assert [row["id"] for row in rows] == list(range(10_000))


async def test_a_body_that_nobody_reads_does_not_hold_the_response_up(server: Server) -> None:
    """As hypercorn 0.18 does for good, once it has more of it than fits into its queue."""
    async with Connection(server.port) as connection:
        response = await connection.request("POST", "/array", bytes(1_000_000))
    assert len(response.json()) == 10_000


async def test_a_row_arrives_while_the_producer_waits(server: Server) -> None:
    async with reading(server, "/released") as connection:
        for number in range(3):
            assert await read_until(connection, b"\n") == b'{"id":%d}\n' % number
            await ask(server, "/release")
        assert await connection.receive_body_part() is None


async def test_a_slow_reader_holds_the_producer_up(server: Server) -> None:
    async with reading(server, "/rows", receive_buffer_bytes=4_096) as connection:
        body = bytearray(await connection.receive_body_part() or b"")
        counts = [-2, -1]
        while len(set(counts[-5:])) > 1 or len(counts) < 7:
            counts.append((await ask(server, "/state")).json()["produced"])
        assert 0 < counts[-1] < 50_000
        await read_all(connection, body)
    assert body.count(b"\n") == 100_000
    assert json.loads(body.splitlines()[-1]) == {"id": 99_999, **ROW}


@pytest.mark.parametrize("target", ["/waiting", "/endless"])
async def test_a_producer_ends_within_100_ms_when_the_client_has_left(
    server: Server, target: str
) -> None:
    delays = []
    for _ in range(3):
        async with reading(server, target) as connection:
            await connection.receive_body_part()
            connection.close()
            left = time.monotonic()
        state = await until(server, lambda state: state["ended"] is not None)
        delays.append(state["ended"] - left)
    assert min(delays) < 0.1  # the others may have met with a busy machine


async def test_a_client_that_does_not_read_and_leaves_ends_the_producer(server: Server) -> None:
    async with reading(server, "/endless", receive_buffer_bytes=4_096):
        counts = [-1]
        while len(set(counts[-5:])) > 1 or len(counts) < 6:
            counts.append((await ask(server, "/state")).json()["produced"])
    await until(server, lambda state: state["ended"] is not None)


@pytest.mark.parametrize("target", ["/broken", "/broken-array"])
async def test_a_stream_that_fails_is_broken_for_the_client(server: Server, target: str) -> None:
    body = bytearray()
    async with reading(server, target) as connection:
        with pytest.raises((h11.RemoteProtocolError, ConnectionError)):
            await read_all(connection, body)
    server.provoked += 1
    if target == "/broken":
        first, last = body.splitlines()
        assert json.loads(first) == ROW
        assert json.loads(last) == {"error": "The warehouse does not answer."}
    else:
        assert json.loads(body + b"]") == [ROW]


async def test_events_and_their_client_that_comes_back(server: Server) -> None:
    async with reading(server, "/events") as connection:
        assert await read_until(connection, b":\n\n") == (
            b'event: tick\nid: 1\ndata: {"number":1}\n\n:\n\n'
        )
    async with reading(server, "/events", headers=(("last-event-id", "1"),)) as connection:
        event = await read_until(connection, b":\n\n:\n\n")
        assert event == b'event: tick\nid: 2\ndata: {"number":2}\n\n:\n\n:\n\n'
