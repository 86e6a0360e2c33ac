"""`endpoint` in process: requests a second on one core, bytes of a parked one; FastAPI beside it.

No server and no socket: the app is called with a new scope, a `receive` that has the body at once and
a `send` that never waits. It is counted in CPU time of the loop's thread. The same work is done by
both: the same models, the same query to a database of SQLite in memory, the same JSON. Around
`endpoint` there is PerfKit with everything on, around FastAPI nothing.

The query is a plain call on the loop, which is what a query of some microseconds is best at; a
worker thread would cost several times as much.

The graphs have five levels of dependencies, and each of these needs all of the level below, as
permissions need roles, and both of them the user. Cached, each is called once for a request;
without, once for each way that leads to it.
"""

from __future__ import annotations

import asyncio
import gc
import operator
import sqlite3
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from inspect import Parameter, Signature
from time import perf_counter_ns, thread_time_ns
from typing import Annotated, Any

import fastapi
import pydantic

from asgi_perfkit import Body, Depends, PerfKit, Query, current_resources, endpoint

from .contenders import ASGIApp
from .harness import Row, Settings, Spread, Table, Target, interleave, pair
from .memory import KIB, ParkingLot, tracing

KIT = "endpoint in PerfKit"
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
SUM = "SELECT sum(price) FROM items WHERE id BETWEEN ? AND ?"


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
        yield compare(
            name, func, scope_of(func.__name__, method, query, body), body, promised, settings
        )
    yield graphs_that_query(settings)
    yield graphs_that_wait(settings)
    yield parked(settings)


# ---- requests a second


def scope_of(name: str, method: str, query: bytes, body: bytes) -> dict[str, Any]:
    headers = [(b"host", b"127.0.0.1"), (b"user-agent", b"benchmark"), (b"accept", b"*/*")]
    if body:
        headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", b"%d" % len(body)))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": f"/{name}",
        "raw_path": f"/{name}".encode(),
        "query_string": query,
        "root_path": "",
        "headers": headers,
    }


def compare(
    title: str, func: Any, scope: dict[str, Any], body: bytes, promised: int, settings: Settings
) -> Table:
    bare = endpoint(func)
    apps: dict[str, tuple[ASGIApp, int]] = {
        KIT: (PerfKit(bare), 2000),
        "endpoint alone": (bare, 2000),
        PEER: (fastapi_app(func.__name__), 200),
    }
    batches = {
        name: batch_of(app, scope, body, settings.pick(calls, 20), title)
        for name, (app, calls) in apps.items()
    }
    rates = interleave(batches, rounds=settings.pick(25, 3))
    rows = [
        Row(
            name,
            Spread.of(rates[name]),
            None if name == PEER else Spread.of(pair(rates[name], rates[PEER], operator.truediv)),
            Target(">=", promised) if name == KIT else None,
        )
        for name in apps
    ]
    return Table(f"Requests a second: {title}", "requests/s", rows, reference=PEER)


def batch_of(
    app: ASGIApp,
    scope: dict[str, Any],
    body: bytes,
    calls: int,
    title: str,
    *,
    at_once: int = 0,
) -> Callable[[], float]:
    """Return what answers `calls` requests, and tells how many a second.

    :param at_once: so many clients make them, each one after the other, and it is a second by the clock; 0: one client,
        and a second of CPU.
    """
    loop = asyncio.new_event_loop()
    message = {"type": "http.request", "body": body, "more_body": False}
    statuses: list[int] = []

    async def receive() -> Any:
        return message

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    async def client(number: int) -> None:
        for _ in range(number):
            await app(dict(scope), receive, send)

    async def batch() -> float:
        if not at_once:
            began = thread_time_ns()
            await client(calls)
            return calls / (thread_time_ns() - began) * 1e9
        began = perf_counter_ns()
        await asyncio.gather(*(client(calls // at_once) for _ in range(at_once)))
        return calls / (perf_counter_ns() - began) * 1e9

    def run() -> float:
        statuses.clear()
        rate = loop.run_until_complete(batch())
        if statuses != [200] * calls:
            raise RuntimeError(f"{title}: a request was answered with {set(statuses)}.")
        return rate

    return run


# ---- graphs of dependencies, each called once, or once for each way that leads to it

LEVELS = 5
GRAPH_TARGET = Target(">=", 15.0, "ratio")


class Graph:
    """Dependencies in `LEVELS` levels of `width` each.

    :param work: what each of them does; it is called with a number.
    """

    def __init__(self, width: int, work: Callable[[int], Awaitable[object]]) -> None:
        self.width = width
        self.work = work
        self.called = 0
        self.nodes = LEVELS * width
        self.ways = sum(width**level for level in range(1, LEVELS + 1))

    def top(self, depends: Callable[[Any], Any]) -> Any:
        """Return a function that needs all of the uppermost level.

        :param depends: a framework's own.
        """

        async def answer(**level: object) -> dict[str, Any]:
            return {"id": 7, "name": "kettle", "in_stock": True}

        below: list[Any] = []
        for depth in range(LEVELS):
            numbers = range(depth * self.width, (depth + 1) * self.width)
            below = [wants(self.node(number), below, depends) for number in numbers]
        return wants(answer, below, depends)

    def node(self, number: int) -> Any:
        async def node(**level: object) -> object:
            self.called += 1
            return await self.work(number)

        return node


def wants(func: Any, sources: list[Any], depends: Callable[[Any], Any]) -> Any:
    """Return `func` as one that has a parameter for each of `sources`."""
    func.__signature__ = Signature(
        Parameter(f"a{number}", Parameter.KEYWORD_ONLY, default=depends(source))
        for number, source in enumerate(sources)
    )
    return func


async def sum_up(number: int) -> object:
    return DATABASE.execute(SUM, (number, number + 99)).fetchone()


async def look_up(number: int) -> object:
    return DATABASE.execute(SELECT, (number,)).fetchone()


async def wait(number: int) -> None:
    await asyncio.sleep(0.001)


CACHED: Callable[[Any], Any] = Depends
NOT_CACHED = partial(Depends, use_cache=False)


def in_perfkit(graph: Graph, depends: Callable[[Any], Any]) -> ASGIApp:
    app: ASGIApp = PerfKit(endpoint(graph.top(depends)))
    return app


def in_fastapi(graph: Graph, depends: Callable[[Any], Any]) -> ASGIApp:
    app = fastapi.FastAPI()
    app.get("/graph")(graph.top(depends))
    return app


def graphs_that_query(settings: Settings) -> Table:
    kits = (in_perfkit, Depends, partial(Depends, use_cache=False))
    peers = (in_fastapi, fastapi.Depends, partial(fastapi.Depends, use_cache=False))
    contenders: list[tuple[str, Graph, Any]] = [
        ("3 a level", Graph(3, sum_up), kits),
        ("2 a level", Graph(2, sum_up), kits),
        ("a chain", Graph(1, sum_up), kits),
        ("3 a level, one row by its key", Graph(3, look_up), kits),
        (f"3 a level, {PEER}", Graph(3, sum_up), peers),
    ]
    scope = scope_of("graph", "GET", b"", b"")
    batches: dict[str, Callable[[], float]] = {}
    rows_of: list[tuple[str, str]] = []
    for name, graph, (app, *marks) in contenders:
        names = (f"{name}: {graph.nodes} queries", f"{name}, not cached: {graph.ways}")
        rows_of.append(names)
        for each, mark, calls in zip(names, marks, (graph.nodes, graph.ways), strict=True):
            requests = settings.pick(6000 // calls, 5)
            batch = batch_of(app(graph, mark), scope, b"", requests, each)
            batches[each] = counted(graph, calls, batch, requests)
    rates = interleave(batches, rounds=settings.pick(25, 3))
    rows: list[Row] = []
    for number, (cached, not_cached) in enumerate(rows_of):
        ratio = Spread.of(pair(rates[cached], rates[not_cached], operator.truediv))
        rows += [
            Row(cached, Spread.of(rates[cached]), ratio, None if number else GRAPH_TARGET),
            Row(not_cached, Spread.of(rates[not_cached])),
        ]
    return Table(
        f"Requests a second: {LEVELS} levels of dependencies, each a query to SQLite over 100 rows",
        "requests/s",
        rows,
        reference="not cached",
    )


def counted(
    graph: Graph, calls: int, batch: Callable[[], float], requests: int
) -> Callable[[], float]:
    """Return `batch`, which fails where the graph was not called as often as is said of it."""

    def run() -> float:
        graph.called = 0
        rate = batch()
        if graph.called != calls * requests:
            raise RuntimeError(f"{graph.called} calls for {requests} requests, not {calls} each.")
        return rate

    return run


def graphs_that_wait(settings: Settings) -> Table:
    clients = 20
    graph = Graph(3, wait)
    ways: dict[str, tuple[Callable[[Any], Any], int]] = {
        "cached": (CACHED, graph.nodes),
        "not cached": (NOT_CACHED, graph.ways),
        "cached, concurrent=True": (partial(Depends, concurrent=True), graph.nodes),
        "not cached, concurrent=True": (
            partial(Depends, use_cache=False, concurrent=True),
            graph.ways,
        ),
    }
    scope = scope_of("graph", "GET", b"", b"")
    batches = {
        name: counted(
            graph,
            calls,
            batch_of(in_perfkit(graph, depends), scope, b"", clients, name, at_once=clients),
            clients,
        )
        for name, (depends, calls) in ways.items()
    }
    rates = interleave(batches, rounds=settings.pick(10, 2))
    against = rates["not cached"]
    rows = [
        Row(
            name,
            Spread.of(found),
            Spread.of(pair(found, against, operator.truediv)),
            GRAPH_TARGET if name == "cached" else None,
        )
        for name, found in rates.items()
    ]
    return Table(
        f"Requests a second: {LEVELS} levels of 3 dependencies, each waits for 1 ms",
        "requests/s",
        rows,
        reference="not cached",
        notes=[f"By the clock, {clients} clients at once. {graph.nodes} waits, or {graph.ways}."],
    )


# ---- what a request keeps that waits


def parked(settings: Settings) -> Table:
    """Return what is kept for a request that waits in its function, by what it has needed before."""
    requests = settings.pick(1000, 100)
    lot = ParkingLot("app", requests)

    async def plain() -> Any:
        await lot.park()
        return {"id": 7}

    async def validated(item: Annotated[Item, Body()]) -> Any:
        await lot.park()
        return {"name": item.name}

    async def cached(item: Annotated[Item, Body()], db: Database) -> Any:
        cache = current_resources().cache
        for number in range(5):
            cache.get_or_create(number, object)
        await lot.park()
        return {"name": item.name}

    peer = fastapi.FastAPI()
    peer.post("/plain")(plain)

    @peer.post("/validated")
    async def validated_too(item: Item) -> dict[str, Any]:
        await lot.park()
        return {"name": item.name}

    @peer.post("/cached")
    async def cached_too(
        item: Item,
        request: fastapi.Request,
        db: Any = fastapi.Depends(connection),  # noqa: B008  # as above
    ) -> dict[str, Any]:
        request.state.values = {number: object() for number in range(5)}
        await lot.park()
        return {"name": item.name}

    needs = {
        plain: ("", 2 * KIB),
        validated: (", a pydantic body", 5 * KIB),
        cached: (", a body, a dependency, a cache of five", 8 * KIB),
    }
    apps: dict[str, tuple[ASGIApp, str, Target | None]] = {"raw": (lot.app, "plain", None)}
    for func, (what, limit) in needs.items():
        apps[KIT + what] = (PerfKit(endpoint(func)), func.__name__, Target("<=", limit))
    apps["endpoint alone"] = (endpoint(plain), "plain", None)
    for func, (what, _) in needs.items():
        apps[PEER + what] = (peer, func.__name__, None)
    loops = {name: asyncio.new_event_loop() for name in apps}
    batches = {
        name: partial(kept_on, loops[name], app, path, lot) for name, (app, path, _) in apps.items()
    }
    with tracing():
        found = interleave(batches, rounds=settings.pick(5, 2))
    for loop in loops.values():
        loop.close()
    raw = found.pop("raw")
    rows = [
        Row(name, Spread.of(pair(kept, raw, operator.sub)), target=apps[name][2])
        for name, kept in found.items()
    ]
    with_task, task = (Spread.of(each).median for each in (found[KIT], raw))
    return Table(
        "Bytes kept for a parked request: it waits in its function",
        "bytes",
        rows,
        notes=[
            f"{requests:,} parked at once; what a raw app keeps, with its task, is taken off: {task:,.0f}.",
            f"All of the first row together: {(with_task - task) * requests / 1e6:.2f} MB.",
        ],
    )


def kept_on(loop: asyncio.AbstractEventLoop, app: ASGIApp, path: str, lot: ParkingLot) -> float:
    return loop.run_until_complete(kept(app, path, lot))


async def kept(app: ASGIApp, path: str, lot: ParkingLot) -> float:
    message = {"type": "http.request", "body": ITEM, "more_body": False}

    async def receive() -> Any:
        return message

    async def send(message: Any) -> None: ...

    lot.reset()
    # The scopes are the server's.
    scopes = [scope_of(path, "POST", b"", ITEM) for _ in range(lot.places)]
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    tasks = [asyncio.ensure_future(app(scope, receive, send)) for scope in scopes]
    await lot.full.wait()
    gc.collect()
    found = tracemalloc.get_traced_memory()[0] - before
    lot.open.set()
    await asyncio.gather(*tasks)
    return found / lot.places
