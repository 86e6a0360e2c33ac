"""`endpoint` in process, PerfKit with everything on around it: requests a second on one core; FastAPI beside it.

No server and no socket: the app is called with a new scope, a `receive` that has the body at once and
a `send` that never waits. It is counted in CPU time of the loop's thread. The same work is done by
both: the same models, the same query to a database of SQLite in memory, the same JSON.

The query is a plain call on the loop, which is what a query of some microseconds is best at; a
worker thread would cost several times as much.
"""

from __future__ import annotations

import asyncio
import operator
import sqlite3
from collections.abc import Callable, Iterator
from time import thread_time_ns
from typing import Annotated, Any

import pydantic

from asgi_perfkit import Body, Depends, PerfKit, Query, endpoint

from .contenders import ASGIApp
from .harness import Row, Settings, Spread, Table, Target, interleave, pair

PEER = "FastAPI"


class Item(pydantic.BaseModel):
    name: str
    price: float
    tags: list[str] = []


class Line(pydantic.BaseModel):
    item: Item
    count: int


class Address(pydantic.BaseModel):
    street: str
    city: str
    zip_code: str


class Order(pydantic.BaseModel):
    id: int
    customer: str
    address: Address
    lines: list[Line]
    note: str | None = None


ITEM = b'{"name":"kettle","price":24.5,"tags":["kitchen","tea"]}'
ORDER = Order(
    id=7,
    customer="Ann",
    address=Address(street="1 High Street", city="York", zip_code="YO1"),
    lines=[
        Line(item=Item(name=f"item {number}", price=1.5 * number, tags=["a", "b"]), count=number)
        for number in range(10)
    ],
)


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
    rows = ((number, f"item {number}", number / 2) for number in range(1000))
    connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
    return connection


DATABASE = database()
SELECT = "SELECT id, name, price FROM items WHERE id = ?"


async def connection() -> sqlite3.Connection:
    return DATABASE


Database = Annotated[sqlite3.Connection, Depends(connection)]


async def simple() -> Any:
    return {"id": 7, "name": "kettle", "in_stock": True}


async def validated(item: Annotated[Item, Body()]) -> Any:
    return {"name": item.name, "total": item.price * 2}


async def queried(db: Database, item_id: Annotated[int, Query()]) -> Any:
    id_, name, price = db.execute(SELECT, (item_id,)).fetchone()
    return {"id": id_, "name": name, "price": price}


async def nested(order: Annotated[Order, Body()]) -> Any:
    return order


# What is asked: the function, the method, the query, the body, and the promised rate.
WORK: dict[str, tuple[Any, str, bytes, bytes, int]] = {
    "simple JSON": (simple, "GET", b"", b"", 60_000),
    "a pydantic body": (validated, "POST", b"", ITEM, 45_000),
    "a query to SQLite": (queried, "GET", b"item_id=7", b"", 25_000),
    "an order of 10 lines, there and back": (
        nested,
        "POST",
        b"",
        ORDER.model_dump_json().encode(),
        15_000,
    ),
}


def fastapi_app(name: str) -> ASGIApp:
    """Return the same work as a route of FastAPI."""
    import fastapi

    app = fastapi.FastAPI()

    @app.get("/simple")
    async def simple() -> dict[str, Any]:
        return {"id": 7, "name": "kettle", "in_stock": True}

    @app.post("/validated")
    async def validated(item: Item) -> dict[str, Any]:
        return {"name": item.name, "total": item.price * 2}

    @app.get("/queried")
    async def queried(
        item_id: int,
        db: Any = fastapi.Depends(connection),  # noqa: B008  # its other way is not for names in a function
    ) -> dict[str, Any]:
        id_, name, price = db.execute(SELECT, (item_id,)).fetchone()
        return {"id": id_, "name": name, "price": price}

    @app.post("/nested")
    async def nested(order: Order) -> Order:
        return order

    return app


def run(settings: Settings) -> Iterator[Table]:
    for name, (func, method, query, body, promised) in WORK.items():
        yield compare(name, func, method, query, body, promised, settings)


def compare(
    title: str,
    func: Any,
    method: str,
    query: bytes,
    body: bytes,
    promised: int,
    settings: Settings,
) -> Table:
    bare = endpoint(func)
    apps: dict[str, tuple[ASGIApp, int]] = {
        "endpoint in PerfKit": (PerfKit(bare), 2000),
        "endpoint alone": (bare, 2000),
        PEER: (fastapi_app(func.__name__), 200),
    }
    calls = {name: settings.pick(calls, 20) for name, (_, calls) in apps.items()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": f"/{func.__name__}",
        "raw_path": f"/{func.__name__}".encode(),
        "query_string": query,
        "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"user-agent", b"benchmark"),
            (b"accept", b"*/*"),
            *(
                [
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(body)),
                ]
                if body
                else []
            ),
        ],
    }
    batches = {
        name: batch_of(app, scope, body, calls[name], title) for name, (app, _) in apps.items()
    }
    rates = interleave(batches, rounds=settings.pick(25, 3))
    return Table(
        f"Requests a second: {title}",
        "requests/s",
        [
            Row(
                name,
                Spread.of(rates[name]),
                None
                if name == PEER
                else Spread.of(pair(rates[name], rates[PEER], operator.truediv)),
                Target(">=", promised) if name == "endpoint in PerfKit" else None,
            )
            for name in apps
        ],
        reference=PEER,
    )


def batch_of(
    app: ASGIApp, scope: dict[str, Any], body: bytes, calls: int, title: str
) -> Callable[[], float]:
    loop = asyncio.new_event_loop()
    message = {"type": "http.request", "body": body, "more_body": False}
    statuses: list[int] = []

    async def receive() -> Any:
        return message

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    async def batch() -> float:
        began = thread_time_ns()
        for _ in range(calls):
            await app(dict(scope), receive, send)
        return calls / (thread_time_ns() - began) * 1e9

    def run() -> float:
        statuses.clear()
        rate = loop.run_until_complete(batch())
        if statuses != [200] * calls:
            raise RuntimeError(f"{title}: a request was answered with {set(statuses)}.")
        return rate

    return run
