"""The samples' worker threads behind real servers: right under load, measured, and leaving nothing open."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from .client import Connection, Response
from .conftest import ASYNCIO_ONLY, DEPLOYMENTS
from .figures import SETTLE_SECONDS, Bound, Meter, until_undisturbed
from .harness import Application, Deployment, Server, serve
from .test_names import without_own

pytestmark = pytest.mark.anyio

CLIENTS = 50
SALES = 50_000
PRICES = {1: 24.5, 2: 31.0, 3: 7.25}

DJANGO = [deployment for deployment in DEPLOYMENTS if deployment.application.framework == "django"]
SAMPLES = [
    deployment
    for deployment in DEPLOYMENTS
    if deployment.application.variant is None and deployment.worker != "uvicorn"
]

# uvloop's calls are asyncio's: one sample on it will do. How a middleware is added is no matter for threads.
ON_EACH = pytest.mark.parametrize(
    "server",
    [
        deployment
        for deployment in SAMPLES
        if deployment.worker != "uvloop" or deployment.application.framework == "raw"
    ],
    indirect=True,
    ids=str,
)
ONE_OF_EACH = [*{deployment.application.framework: deployment for deployment in SAMPLES}.values()]


async def at_once(server: Server, *requests: tuple[str, str]) -> list[Response]:
    """Make all the requests at the same time, each on a connection that is open already."""
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(Connection(server.port)) for _ in requests]
        return await asyncio.gather(
            *(
                connection.request(method, target)
                for connection, (method, target) in zip(connections, requests, strict=True)
            )
        )


async def ask(server: Server, method: str, target: str) -> Response:
    (response,) = await at_once(server, (method, target))
    return response


async def sold(server: Server, item_id: int) -> int:
    """How many of an item were sold, and that for its price."""
    found = (await ask(server, "GET", f"/sales/{item_id}")).json()
    assert found == {
        "item": item_id,
        "sold": found["sold"],
        "revenue": found["sold"] * PRICES[item_id],
    }
    number: int = found["sold"]
    return number


async def only_endpoint(meter: Meter) -> dict[str, Any]:
    """The figures of the one endpoint that was used; each application names it in its own way."""
    ((_, endpoint),) = without_own(await meter.read()).items()
    return endpoint


async def await_no_connection(server: Server, meter: Meter) -> None:
    """Wait until the server has closed all its connections to the database."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while number := server.count_connections():
        assert time.monotonic() < deadline, f"{number} connections are still open"
        await meter.read()


async def start_reading(connection: Connection) -> bytes:
    """Ask for the whole book, and read no more than the first part of it."""
    await connection.send_head("GET", "/sales/")
    await connection.send_end()
    status, _ = await connection.receive_head()
    assert status == 200
    part = await connection.receive_body_part()
    assert part is not None
    return part


def small_window(server: Server) -> Connection:
    """A connection that takes in next to nothing while nobody reads, so that the server has to wait."""
    return Connection(server.port, receive_buffer_bytes=4_096)


@ON_EACH
async def test_fifty_clients_each_have_their_own_answer(server: Server) -> None:
    """A connection for each, opened, used and closed in a thread; none is left when all have been answered."""
    targets = [f"/sales/{number % 3 + 1}" for number in range(CLIENTS)]
    async with Meter(server) as meter:
        expected = {target: (await ask(server, "GET", target)).json() for target in set(targets)}
        assert sum(found["sold"] for found in expected.values()) >= SALES
        await meter.reset()
        responses = await at_once(server, *(("GET", target) for target in targets))
        assert [response.json() for response in responses] == [
            expected[target] for target in targets
        ]
        endpoint = await only_endpoint(meter)
        assert endpoint["statuses"] == {"200": CLIENTS}
        # Enter, query, exit; Django makes two queries, and has no manager to enter.
        calls = 2 if server.application.framework == "django" else 3
        assert endpoint["thread_time"]["count"] == calls * CLIENTS
        assert endpoint["thread_wait_time"]["count"] == calls * CLIENTS
        assert server.count_connections() == 0


@ON_EACH
async def test_fifty_sales_at_once_are_all_in_the_book(server: Server) -> None:
    """Each has a number of its own; those who write wait for a thread, and do not run into each other."""
    before = await sold(server, 1) + await sold(server, 2)
    async with Meter(server) as meter:
        await meter.reset()
    began = time.perf_counter()
    responses = await at_once(
        server, *(("POST", f"/sales/{number % 2 + 1}") for number in range(CLIENTS))
    )
    elapsed = time.perf_counter() - began
    # A new connection: with Django that takes so long that the server would have closed the other.
    async with Meter(server) as meter:
        endpoint = await only_endpoint(meter)
    assert Counter(response.status for response in responses) == {200: CLIENTS}
    assert len({response.json()["sale"] for response in responses}) == CLIENTS
    assert await sold(server, 1) + await sold(server, 2) == before + CLIENTS
    assert endpoint["outcomes"] == {"ok": CLIENTS}
    if server.application.framework != "django":  # whose threads are one for each request
        assert endpoint["thread_time"]["count"] == CLIENTS
        assert endpoint["thread_time"]["sum"] <= elapsed  # one at a time
        # The last has waited for all the others; the first of all may not have.
        assert endpoint["thread_wait_time"]["max"] >= endpoint["thread_time"]["sum"] / 2


@ON_EACH
async def test_the_work_is_the_threads_and_not_the_loops(server: Server) -> None:
    """Going through 50,000 sales is thread_time; the request's share of the loop is the framework's own."""

    async def look() -> list[Bound]:
        async with Meter(server) as meter:
            await meter.reset()
            await ask(server, "GET", "/sales/1")
            endpoint = await only_endpoint(meter)
        worked = endpoint["thread_time"]
        assert worked["max"] <= endpoint["total_time"]["max"]
        return [
            Bound("loop_time", endpoint["loop_time"]["max"], worked["sum"]),
            Bound("longest_step", endpoint["longest_step"]["max"], worked["max"] / 2),
            Bound("thread_wait_time", endpoint["thread_wait_time"]["max"], worked["sum"]),
        ]

    await until_undisturbed(look)


@ON_EACH
async def test_the_book_is_sent_as_a_whole_and_in_order(server: Server) -> None:
    """Every line, once; the thread that has read it out has closed its connection."""
    async with Meter(server) as meter:
        await meter.reset()
        response = await ask(server, "GET", "/sales/")
        endpoint = await only_endpoint(meter)
        assert server.count_connections() == 0
    assert response.headers["content-type"].startswith("text/csv")
    rows = [line.split(",") for line in response.body.decode().splitlines()]
    assert len(rows) >= SALES
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    assert all(float(price) == PRICES[int(item_id)] for _, item_id, price in rows)
    assert endpoint["thread_time"]["count"] == endpoint["thread_wait_time"]["count"] > 1
    assert endpoint["thread_time"]["sum"] <= endpoint["total_time"]["max"]
    assert endpoint["response_size"]["sum"] == len(response.body)


@ON_EACH
async def test_reading_stops_when_the_reader_leaves(server: Server) -> None:
    """Its connection is closed in its thread: anywhere else sqlite3 would raise, and the log would have it."""
    async with Meter(server) as meter:
        await meter.reset()
        async with small_window(server) as hasty:
            await start_reading(hasty)
            await meter.await_in_flight(1)
            assert server.count_connections() == 1
            # Who reads keeps nobody from selling.
            assert (await ask(server, "POST", "/sales/1")).status == 200
        await await_no_connection(server, meter)
        figures = without_own(await meter.read())
    (left,) = (endpoint for key, endpoint in figures.items() if key.startswith("GET"))
    assert left["outcomes"] == {"disconnected": 1}
    # What was not sent was not read either, but for the few parts that are fetched ahead.
    assert left["response_size"]["max"] < 10 * SALES


@pytest.mark.parametrize("deployment", ONE_OF_EACH, ids=str)
async def test_ten_who_leave_at_once_leave_nothing(deployment: Deployment) -> None:
    """A new server, none of whose threads are left with a connection."""
    with serve(deployment) as server:
        async with Meter(server) as meter:
            async with AsyncExitStack() as stack:
                for _ in range(10):
                    await start_reading(await stack.enter_async_context(small_window(server)))
                await meter.await_in_flight(10)
                assert server.count_connections() == 10
            await await_no_connection(server, meter)
            assert await sold(server, 1) > SALES // 4  # and it answers


# ---- Django


def django(variant: str) -> list[Deployment]:
    return [Deployment(Application("django", variant), worker) for worker in ASYNCIO_ONLY]


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param) as server:
        yield server


async def keep_threads_busy(server: Server) -> int:
    """Have many of the kit's threads use the ORM; returns how many of them are alive, and idle, afterwards."""
    async with Meter(server) as meter:
        await at_once(server, *[("GET", "/sales/1")] * CLIENTS, *[("GET", "/sales/")] * 2)
        await meter.read()
        stats = (await ask(server, "GET", "/stats")).json()
    number: int = stats["runtime"]["thread_pool"]["idle_threads"]
    return number


@pytest.mark.parametrize("server", DJANGO, indirect=True, ids=str)
async def test_no_connection_stays_open_in_a_thread(server: Server) -> None:
    """The threads are still there, and have none."""
    assert await keep_threads_busy(server) > 1
    assert server.count_connections() == 0


@pytest.mark.parametrize("variant", django("django_without_hooks"), indirect=True, ids=str)
async def test_without_the_hooks_they_stay_open(variant: Server) -> None:
    """Which shows that the hooks are what closes them, and that an open one is seen."""
    assert await keep_threads_busy(variant) > 1
    assert variant.count_connections() > 1


@pytest.mark.parametrize("server", DJANGO, indirect=True, ids=str)
async def test_a_transaction_holds_in_asynchronous_code(server: Server) -> None:
    """A sale is undone if the stock does not allow it, though both are written by asynchronous methods."""
    stock = (await ask(server, "GET", "/shop/3/items/3")).json()["quantity"]
    before = await sold(server, 3)
    refused = 10
    responses = await at_once(server, *[("POST", "/sales/3")] * (stock + refused))
    assert Counter(response.status for response in responses) == {200: stock, 409: refused}
    assert (await ask(server, "GET", "/shop/3/items/3")).json()["quantity"] == 0
    assert await sold(server, 3) == before + stock
    assert server.count_connections() == 0


@pytest.mark.parametrize("variant", django("django_threads"), indirect=True, ids=str)
async def test_a_sensitive_call_runs_where_django_does(variant: Server) -> None:
    """In the one thread of the request, and not in the kit's."""
    for response in await at_once(variant, *[("GET", "/threads")] * CLIENTS):
        threads = response.json()
        assert threads["sensitive"] == threads["django"] != threads["own"]


@pytest.mark.parametrize("variant", django("django_sync_middleware"), indirect=True, ids=str)
async def test_a_sensitive_call_runs_in_the_middlewares_thread(variant: Server) -> None:
    """A synchronous middleware waits for the view; its thread is where the call runs meanwhile."""
    for response in await at_once(variant, *[("GET", "/threads")] * CLIENTS):
        threads = response.json()
        assert str(threads["sensitive"]) == response.headers["x-middleware-thread"]
        assert threads["sensitive"] == threads["django"] != threads["own"]
