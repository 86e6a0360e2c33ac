"""A small shop without a framework: an ASGI application written by hand, measured by PerfKit.

Run it from this folder, on any of hypercorn's workers, then read http://127.0.0.1:8000/stats:

    hypercorn app:app
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import smtplib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.parse import parse_qs
from uuid import NAMESPACE_URL, UUID, uuid5

# The standard library sleeps on asyncio only; anyio does it on trio as well.
import anyio

from asgi_perfkit import (
    NDJSON,
    Depends,
    Event,
    EventStream,
    PerfKit,
    ProfileReport,
    ThreadLimiter,
    add_task,
    cached,
    contextmanager_in_threadpool,
    current_resources,
    exact_by_header,
    get_performance_stats,
    get_profile_stats,
    get_runtime_stats,
    iterate_in_threadpool,
    measure,
    profile,
    profile_allocations,
    profile_connection,
    reset_performance_stats,
    reset_profile_stats,
    resolve,
    run_in_threadpool,
    send_json,
)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

logger = logging.getLogger("shop")

ITEMS = {
    1: {"id": 1, "name": "kettle", "price": 24.5},
    2: {"id": 2, "name": "teapot", "price": 31.0},
    3: {"id": 3, "name": "cup", "price": 7.25},
}
STOCK = {(shop_id, item_id): shop_id * item_id for shop_id in (1, 2) for item_id in ITEMS}
RATES = {"DKK": 7.46, "NOK": 11.6, "USD": 1.09}  # what the bank says that a euro is worth
EXPORT_PART = b"1,kettle,24.50\n" * 4_000
DATABASE = os.environ.get("SHOP_DATABASE") or Path(__file__).with_name("shop.sqlite3")
MAIL_SERVER = os.environ.get("SHOP_MAIL_SERVER")  # host:port; without one, mails are shown here
PROFILE_SECRET = os.environ.get("SHOP_PROFILE_SECRET")  # who sends it has his request recorded
REPORTS = {  # the forms of a report, by the name that it is asked for under
    "cpu.html": "text/html",
    "cpu.speedscope.json": "application/json",
    "cpu.collapsed": "text/plain",
    "cpu.pstats": "application/octet-stream",
}

# SQLite lets in one writer at a time. Those who would wait for its lock, each in a thread, wait for a thread instead.
writers = ThreadLimiter(1)

customers: set[object] = set()  # who look at prices


@dataclass
class Receipt:
    sale: int
    number: UUID
    item: str
    price: Decimal
    printed: datetime


async def items(scope: Scope, receive: Receive, send: Send) -> None:
    """List what the shop sells."""
    await send_json(send, list(ITEMS.values()))


async def item(scope: Scope, receive: Receive, send: Send, item_id: int) -> None:
    """Show one item."""
    if item_id in ITEMS:
        await send_json(send, ITEMS[item_id])
    else:
        await send_json(send, {"detail": "There is no such item."}, 404)


async def stock(scope: Scope, receive: Receive, send: Send, shop_id: int, item_id: int) -> None:
    """Show how many of an item one shop has."""
    if (shop_id, item_id) in STOCK:
        quantity = STOCK[shop_id, item_id]
        await send_json(send, {"shop": shop_id, "item": item_id, "quantity": quantity})
    else:
        await send_json(send, {"detail": "There is no such item in this shop."}, 404)


async def wait(scope: Scope, receive: Receive, send: Send) -> None:
    """Ask a supplier who takes 100 ms to answer; the loop is free meanwhile."""
    began = time.perf_counter()
    await anyio.sleep(0.1)
    await send_json(send, {"seconds": time.perf_counter() - began})


@contextmanager
def open_book() -> Iterator[sqlite3.Connection]:
    """Connect to the book of sales; sqlite3 wants a connection to be used in this thread only."""
    with closing(profile_connection(sqlite3.connect(DATABASE))) as book:
        yield book


def prepare_book() -> None:
    """Make the book, with 50,000 sales to begin with."""
    sales = (
        (number, item_id := number % len(ITEMS) + 1, ITEMS[item_id]["price"])
        for number in range(1, 50_000 + 1)
    )
    with open_book() as book:
        # So that whoever exports keeps nobody from selling.
        book.execute("PRAGMA journal_mode = wal")
        with book:
            book.execute(
                "CREATE TABLE IF NOT EXISTS sales (id INTEGER PRIMARY KEY, item INTEGER, price REAL)"
            )
            book.executemany("INSERT OR IGNORE INTO sales VALUES (?, ?, ?)", sales)


def write_sale(item_id: int) -> int:
    """Write a sale into the book, and return its number."""
    with open_book() as book, book:
        sale = (item_id, ITEMS[item_id]["price"])
        return book.execute("INSERT INTO sales (item, price) VALUES (?, ?)", sale).lastrowid


def sum_up(book: sqlite3.Connection, item_id: int) -> dict[str, float]:
    """Go through the book for one item."""
    found = book.execute("SELECT count(*), total(price) FROM sales WHERE item = ?", [item_id])
    sold, revenue = found.fetchone()
    return {"item": item_id, "sold": sold, "revenue": revenue}


def print_receipt(sale_id: int) -> Receipt | None:
    """Make the receipt of a sale, if there is such a sale."""
    with open_book() as book:
        found = book.execute(  # found by /profile: the N+1
            "SELECT item, price FROM sales WHERE id = ?", [sale_id]
        )
        sale = found.fetchone()
    if sale is None:
        return None
    item_id, price = sale
    return Receipt(
        sale=sale_id,
        number=uuid5(NAMESPACE_URL, f"https://shop.example.org/sales/{sale_id}"),
        item=ITEMS[item_id]["name"],
        price=Decimal(f"{price:.2f}"),
        printed=datetime.now(timezone.utc),
    )


def read_sales(after: int = 0) -> Iterator[dict[str, Any]]:
    """Read the book out, a sale at a time, from behind one of them on."""
    with open_book() as book:
        sales = book.execute("SELECT id, item, price FROM sales WHERE id > ? ORDER BY id", [after])
        for number, item_id, price in sales:
            yield {"id": number, "item": item_id, "price": price}


def find_last_sale() -> int:
    with open_book() as book:
        return book.execute("SELECT max(id) FROM sales").fetchone()[0]


def print_latest_receipts() -> list[Receipt]:
    """Make the receipts of the ten latest sales, and look each of them up: the mistake that /profile finds."""
    last = find_last_sale()
    return [print_receipt(number) for number in range(last, last - 10, -1)]


def copy_book() -> Iterator[bytes]:
    """Read the book out, some hundred lines of CSV at a time."""
    with open_book() as book:
        sales = book.execute("SELECT id, item, price FROM sales ORDER BY id")
        while some := sales.fetchmany(500):
            yield "".join(
                f"{number},{item_id},{price}\n" for number, item_id, price in some
            ).encode()


async def sell(scope: Scope, receive: Receive, send: Send, item_id: int) -> None:
    """Sell one of an item."""
    if item_id in ITEMS:
        sale = await run_in_threadpool(write_sale, item_id, limiter=writers)
        await send_json(send, {"sale": sale})
    else:
        await send_json(send, {"detail": "There is no such item."}, 404)


async def sold(scope: Scope, receive: Receive, send: Send, item_id: int) -> None:
    """Show how many of an item were sold."""
    async with contextmanager_in_threadpool(open_book(), same_thread=True) as book:
        found = await run_in_threadpool(sum_up, book, item_id, same_thread=True)
    await send_json(send, found)


async def sales(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the whole book while it is being read."""
    async with aclosing(iterate_in_threadpool(copy_book(), same_thread=True)) as lines:
        await send_csv(receive, send, lines)


async def receipt(scope: Scope, receive: Receive, send: Send, sale_id: int) -> None:
    """Show the receipt of a sale: a dataclass, with types that the standard library's json does not know."""
    found = await run_in_threadpool(print_receipt, sale_id)
    if found is not None:
        await send_json(send, found)
    else:
        await send_json(send, {"detail": "There is no such sale."}, 404)


async def receipts(scope: Scope, receive: Receive, send: Send) -> None:
    """Show the receipts of the latest sales."""
    await send_json(send, await run_in_threadpool(print_latest_receipts))


@cached(ttl=300)
async def exchange_rate(currency: str) -> dict[str, Any]:
    """Ask the bank, which takes 100 ms; who asks meanwhile, or within five minutes, gets the same answer."""
    await anyio.sleep(0.1)
    return {"currency": currency, "rate": RATES[currency], "quoted": datetime.now(timezone.utc)}


@contextmanager
def open_snapshot() -> Iterator[sqlite3.Connection]:
    """Connect to the book, which stays as it is for who reads by this connection, whatever is sold meanwhile."""
    with open_book() as book:
        book.execute("BEGIN")
        yield book


async def snapshot() -> sqlite3.Connection:
    """One connection for all who need it in this request, and a thread of its own, until the client has its answer."""
    connecting = contextmanager_in_threadpool(open_snapshot(), same_thread=True)
    return await current_resources().enter(connecting)


Snapshot = Annotated[sqlite3.Connection, Depends(snapshot)]


async def read(book: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    return await run_in_threadpool(lambda: book.execute(query).fetchall(), same_thread=True)


async def count_sales(book: Snapshot) -> dict[int, int]:
    """How many of each item were sold."""
    return dict(await read(book, "SELECT item, count(*) FROM sales GROUP BY item"))


async def last_number(book: Snapshot) -> int:
    """The number of the last sale."""
    ((number,),) = await read(book, "SELECT max(id) FROM sales")
    return number


async def count_customers() -> AsyncIterator[int]:
    """How many there are who look at prices, this one included until he has his answer."""
    customer = object()
    customers.add(customer)
    try:
        yield len(customers)
    finally:
        customers.remove(customer)


async def price_list(
    rate: Annotated[dict[str, Any], Depends(exchange_rate)],
    sold: Annotated[dict[int, int], Depends(count_sales)],
    last: Annotated[int, Depends(last_number)],
    watching: Annotated[int, Depends(count_customers)],
) -> dict[str, Any]:
    """What the shop sells, its prices in another currency, and how many were sold up to which sale."""
    items = [
        item | {"price": round(item["price"] * rate["rate"], 2), "sold": sold[item_id]}
        for item_id, item in ITEMS.items()
    ]
    return {**rate, "items": items, "last_sale": last, "customers": watching}


async def prices(scope: Scope, receive: Receive, send: Send, currency: str) -> None:
    """Show the price list in another currency; the book is read while the bank is asked."""
    if currency in RATES:
        await send_json(send, await resolve(price_list, currency=currency, concurrent=True))
    else:
        await send_json(send, {"detail": "The bank does not know this currency."}, 404)


async def book(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the whole book, a line of JSON for each sale."""
    rows = iterate_in_threadpool(read_sales(), same_thread=True)
    await NDJSON(rows)(scope, receive, send)


async def follow_sales(last_event_id: str | None) -> AsyncIterator[Event]:
    """Tell of the last sale, and of each that comes; who was here before is told of what was missed.

    Whoever writes a sale, this process or another: every 100 ms the book is looked into.
    """
    if last_event_id is None:
        last = await run_in_threadpool(find_last_sale) - 1
    else:
        last = int(last_event_id)
    while True:
        async with aclosing(iterate_in_threadpool(read_sales(last), same_thread=True)) as sales:
            async for sale in sales:
                last = sale["id"]
                yield Event(sale, event="sale", id=last)
        await anyio.sleep(0.1)


async def ticker(scope: Scope, receive: Receive, send: Send) -> None:
    """Send sales as they are made, as server-sent events."""
    await EventStream(follow_sales)(scope, receive, send)


def send_mail(subject: str, text: str) -> None:
    """Send a mail to those who pack; a plain function, which runs in a thread."""
    mail = EmailMessage()
    mail["From"], mail["To"] = "shop@example.org", "orders@example.org"
    mail["Subject"] = subject
    mail.set_content(text)
    if MAIL_SERVER:
        with smtplib.SMTP(MAIL_SERVER, timeout=10) as server:
            server.send_message(mail)
    else:
        print(mail)


def mail_order(item: dict[str, Any]) -> None:
    send_mail(f"Order: {item['name']}", f"One {item['name']}, for {item['price']:.2f}.")


def mail_offer(offer: dict[str, Any]) -> None:
    lines = (f"{item['name']}: {item['price']:.2f}\n" for item in offer["items"])
    send_mail(f"Offer in {offer['currency']}", "".join(lines))


async def order(scope: Scope, receive: Receive, send: Send, item_id: int) -> None:
    """Take an order; the sale is written and mailed when the client has its answer."""
    if item_id in ITEMS:
        add_task(run_in_threadpool, write_sale, item_id, limiter=writers)
        add_task(mail_order, ITEMS[item_id])
        await send_json(send, {"accepted": True}, 202)
    else:
        await send_json(send, {"detail": "There is no such item."}, 404)


async def offer(scope: Scope, receive: Receive, send: Send, currency: str) -> None:
    """Make an offer in another currency; it is mailed when the client has it and the book is closed."""
    if currency in RATES:
        found = await resolve(price_list, currency=currency, concurrent=True)
        add_task(mail_offer, found)
        await send_json(send, found, 202)
    else:
        await send_json(send, {"detail": "The bank does not know this currency."}, 404)


def spin(seconds: float) -> float:
    """Compute without a pause, and return for how long that was."""
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        pass
    return spent


async def block(scope: Scope, receive: Receive, send: Send) -> None:
    """Compute for 30 ms on the event loop: the mistake that the statistics uncover."""
    await send_json(send, {"seconds": spin(0.03)})


async def freeze(scope: Scope, receive: Receive, send: Send) -> None:
    """Wait for a supplier as one does in a thread, which keeps all other requests waiting, too: a mistake again."""
    began = time.perf_counter()
    time.sleep(0.3)  # noqa: ASYNC251  # found by /profile: a stall
    await send_json(send, {"seconds": time.perf_counter() - began})


async def supplies(scope: Scope, receive: Receive, send: Send) -> None:
    """Ask the supplier for one item after the other: that is slow, and harms nobody else."""
    for _ in ITEMS:
        with measure("supplier"):
            await anyio.sleep(0.1)
    last_sale = await run_in_threadpool(find_last_sale)
    await send_json(send, {"supplied": len(ITEMS), "last_sale": last_sale})


async def labels(scope: Scope, receive: Receive, send: Send) -> None:
    """Make all labels before the first is printed, which takes memory while it waits for the printer."""
    texts = [f"sale {number:08}" for number in range(1_000)]  # found by /profile: allocations
    await anyio.sleep(0.01)
    await send_json(send, {"labels": len(texts)})


def hash_password() -> dict[str, Any]:
    began = time.perf_counter()
    digest = hashlib.pbkdf2_hmac("sha256", b"correct horse", b"battery staple", 50_000)
    return {"digest": digest.hex(), "seconds": time.perf_counter() - began}


async def sync(scope: Scope, receive: Receive, send: Send) -> None:
    """Hash a password in a thread."""
    await send_json(send, await anyio.to_thread.run_sync(hash_password))


async def export() -> AsyncIterator[bytes]:
    """Produce a list in five parts, 50 ms apart."""
    yield EXPORT_PART
    for _ in range(4):
        await anyio.sleep(0.05)
        yield EXPORT_PART


async def cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def send_csv(receive: Receive, send: Send, parts: AsyncIterator[bytes]) -> None:
    """Send a list while it is being made, and stop when the client has gone."""
    headers = [(b"content-type", b"text/csv")]
    async with anyio.create_task_group() as group:
        group.start_soon(cancel_on_disconnect, receive, group.cancel_scope)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        group.cancel_scope.cancel()


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Send a list that takes its time."""
    await send_csv(receive, send, export())


async def upload(scope: Scope, receive: Receive, send: Send) -> None:
    """Digest a body of any size without holding it."""
    size, digest, more_body = 0, hashlib.sha256(), True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        chunk = message.get("body", b"")
        size += len(chunk)
        digest.update(chunk)
        more_body = message.get("more_body", False)
    await send_json(send, {"size": size, "sha256": digest.hexdigest()})


async def error(scope: Scope, receive: Receive, send: Send) -> None:
    """Fail."""
    raise RuntimeError("The warehouse does not answer.")


async def after(scope: Scope, receive: Receive, send: Send) -> None:
    """Take a wish; the supplier hears of it when the client has its answer, while the application still runs."""
    await send_json(send, {"accepted": True})
    await anyio.sleep(0.05)
    logger.info("asked for more")


async def stats(scope: Scope, receive: Receive, send: Send) -> None:
    """Show what PerfKit has measured in this process."""
    runtime, endpoints = get_runtime_stats(), get_performance_stats(by="endpoint")
    await send_json(send, {"runtime": runtime, "endpoints": endpoints})


async def reset(scope: Scope, receive: Receive, send: Send) -> None:
    """Begin anew."""
    reset_performance_stats()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def profiles(scope: Scope, receive: Receive, send: Send) -> None:
    """Show what profiling has found in this process."""
    await send_json(send, get_profile_stats())


async def reset_profiles(scope: Scope, receive: Receive, send: Send) -> None:
    """Begin anew."""
    reset_profile_stats()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def seconds_of(scope: Scope) -> float:
    (seconds,) = parse_qs(scope["query_string"].decode()).get("seconds", ["5"])
    return float(seconds)


async def profile_memory(scope: Scope, receive: Receive, send: Send) -> None:
    """Look for some seconds at what is allocated; all requests are slower meanwhile."""
    seconds = seconds_of(scope)
    async with profile_allocations(seconds=seconds) as report:
        await anyio.sleep(seconds)
    await send_json(send, report.endpoints)


def write_report(report: ProfileReport, name: str) -> bytes:
    """Write what was seen to run, in the form that the suffix of the name stands for."""
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        report.save(path)
        return path.read_bytes()


async def profile_cpu(scope: Scope, receive: Receive, send: Send, name: str) -> None:
    """Look for some seconds at what runs."""
    if name not in REPORTS:
        await send_json(send, {"detail": "There is no such report."}, 404)
        return
    async with profile() as report:
        await anyio.sleep(seconds_of(scope))
    content = await run_in_threadpool(write_report, report, name)
    headers = [(b"content-type", REPORTS[name].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def echo(receive: Receive, send: Send) -> None:
    """Send every message back."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text")})


ROUTES = [
    (re.compile(pattern), methods)
    for pattern, methods in {
        r"/items/": {"GET": items},
        r"/items/(?P<item_id>\d+)": {"GET": item},
        r"/shop/(?P<shop_id>\d+)/items/(?P<item_id>\d+)": {"GET": stock},
        r"/sales/": {"GET": sales},
        r"/sales/(?P<item_id>\d+)": {"GET": sold, "POST": sell},
        r"/receipts/": {"GET": receipts},
        r"/receipts/(?P<sale_id>\d+)": {"GET": receipt},
        r"/prices/(?P<currency>[A-Z]+)": {"GET": prices},
        r"/book": {"GET": book},
        r"/ticker": {"GET": ticker},
        r"/orders/(?P<item_id>\d+)": {"POST": order},
        r"/offers/(?P<currency>[A-Z]+)": {"POST": offer},
        r"/wait": {"GET": wait},
        r"/block": {"GET": block},
        r"/freeze": {"GET": freeze},
        r"/supplies": {"GET": supplies},
        r"/labels": {"GET": labels},
        r"/sync": {"GET": sync},
        r"/stream": {"GET": stream},
        r"/upload": {"POST": upload},
        r"/error": {"GET": error},
        r"/after": {"POST": after},
        r"/stats": {"GET": stats, "DELETE": reset},
        r"/profile": {"GET": profiles, "DELETE": reset_profiles},
        r"/profile/allocations": {"GET": profile_memory},
        r"/profile/(?P<name>[^/]+)": {"GET": profile_cpu},
    }.items()
]


async def http(scope: Scope, receive: Receive, send: Send) -> None:
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    for pattern, methods in ROUTES:
        if match := pattern.fullmatch(scope["path"]):
            if method in methods:
                parameters = {
                    name: int(value) if name.endswith("_id") else value
                    for name, value in match.groupdict().items()
                }
                await methods[method](scope, receive, send, **parameters)
            else:
                allow = (b"allow", ", ".join(methods).encode())
                await send_json(send, {"detail": "Method not allowed."}, 405, (allow,))
            return
    await send_json(send, {"detail": "Not found."}, 404)


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/ws":
        await echo(receive, send)
    else:
        await receive()
        await send({"type": "websocket.close"})


async def lifespan(receive: Receive, send: Send) -> None:
    await receive()  # lifespan.startup
    await run_in_threadpool(prepare_book)
    await send({"type": "lifespan.startup.complete"})
    await receive()  # lifespan.shutdown
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await http(scope, receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    elif scope["type"] == "lifespan":
        await lifespan(receive, send)


# Always on. Requests count as slow from a quarter of a second on, so that there is something to see.
profiling: dict[str, Any] = {"slow_threshold": 0.25}
if PROFILE_SECRET:
    profiling["exact"] = exact_by_header("x-profile", PROFILE_SECRET)

app = PerfKit(app, encoder={"compression": True}, profiling=profiling)
