"""What the samples answer through the encoder: JSON, rows, events, and all of it compressed for who asks for that."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import datetime, timedelta, timezone
from uuid import NAMESPACE_URL, uuid5

import pytest

from tests.encoding.decoding import Reader, decompressed

from .client import PATIENCE_SECONDS, Connection
from .figures import Meter
from .harness import Server
from .test_threads import PRICES, SALES, SAMPLES

pytestmark = pytest.mark.anyio

GZIP = [("accept-encoding", "gzip")]

# All of a book is much to read, and is written by the app: each on one loop, and one on trio.
READERS = [
    deployment
    for deployment in SAMPLES
    if deployment.worker == "asyncio" or str(deployment) == "raw-trio"
]


class Events:
    """The sales as they are made, on a stream that stays open."""

    def __init__(self, connection: Connection, coding: str | None) -> None:
        self._connection = connection
        self._read = Reader(coding).read if coding else bytes
        self._text = b""

    async def next(self) -> int:
        """The number of the sale that the next event tells of: of one kettle."""
        while b"\n\n" not in self._text:
            part = await self._connection.receive_body_part()
            assert part is not None, "the stream has ended"
            self._text += self._read(part)
        event, _, self._text = self._text.partition(b"\n\n")
        kind, number, data = event.decode().splitlines()
        sale = json.loads(data.removeprefix("data: "))
        assert (kind, number) == ("event: sale", f"id: {sale['id']}")
        assert (sale["item"], float(sale["price"])) == (1, PRICES[1])
        return int(sale["id"])


@asynccontextmanager
async def watching(server: Server, headers: list[tuple[str, str]]) -> AsyncIterator[Events]:
    """The events, and at the end a client that hangs up."""
    # The samples compress; the variants that are built of them do not.
    coding = "gzip" if headers == GZIP and server.application.variant is None else None
    async with Connection(server.port) as connection:
        await connection.send_head("GET", "/ticker", headers=headers)
        await connection.send_end()
        status, response_headers = await connection.receive_head()
        assert status == 200
        assert response_headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response_headers.get("content-encoding") == coding
        yield Events(connection, coding)


def read_book(server: Server) -> list[tuple[int, int, float]]:
    """What is in the database, without the application."""
    query = "SELECT id, item, price FROM sales ORDER BY id"
    if server.application.framework == "django":
        query = "SELECT id, item_id, price FROM shop_sale ORDER BY id"
    assert server.database is not None
    with closing(sqlite3.connect(server.database)) as book:
        return book.execute(query).fetchall()


async def sell(server: Server) -> int:
    """Sell a kettle; return the number of the sale."""
    async with Connection(server.port) as connection:
        number: int = (await connection.request("POST", "/sales/1")).json()["sale"]
        return number


async def test_an_object_is_json_whatever_the_framework_makes_of_it(server: Server) -> None:
    """Digits of a Decimal, microseconds and the zone of a time, a UUID, all in one dataclass, model or dict."""
    async with Connection(server.port) as connection:
        response = await connection.request("GET", "/receipts/7")
        missing = await connection.request("GET", "/receipts/7000000")
    assert response.headers["content-type"] == "application/json"
    receipt = response.json()
    printed = receipt.pop("printed")
    assert printed.endswith("Z")
    at = datetime.fromisoformat(printed.removesuffix("Z") + "+00:00")
    assert timedelta(0) <= datetime.now(timezone.utc) - at < timedelta(seconds=PATIENCE_SECONDS)
    number = str(uuid5(NAMESPACE_URL, "https://shop.example.org/sales/7"))
    assert receipt == {"sale": 7, "number": number, "item": "teapot", "price": "31.00"}
    assert missing.status == 404


@pytest.mark.parametrize("server", READERS, indirect=True, ids=str)
async def test_each_row_is_a_line(server: Server) -> None:
    """All of the real book, compressed for who asks for that."""
    async with Connection(server.port) as connection:
        await connection.send_head("GET", "/book", headers=GZIP)
        await connection.send_end()
        response = await connection.receive()
    assert response.status == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["vary"] == "Accept-Encoding"
    body = decompressed("gzip", response.body)
    rows = [json.loads(line) for line in body.splitlines()]
    assert len(rows) >= SALES
    assert len(response.body) < len(body) / 5
    shown = [(row["id"], row["item"], float(row["price"])) for row in rows]
    assert shown == read_book(server)


async def test_a_sale_is_an_event_at_once(server: Server) -> None:
    """While the stream stays open, compressed too; who comes back is told of what was missed, who leaves ends it."""
    first = await sell(server)
    async with Meter(server) as meter:
        await meter.reset()
        async with watching(server, GZIP) as events:
            assert await events.next() == first
            second = await sell(server)
            assert await events.next() == second
        third = await sell(server)
        async with watching(server, [("last-event-id", str(first))]) as events:
            assert [await events.next(), await events.next()] == [second, third]
        figures = await meter.read()
    key = "GET ticker" if server.application.name == "raw_named" else "GET /ticker"
    assert figures[key]["outcomes"] == {"disconnected": 2}
