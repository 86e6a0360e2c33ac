"""A small shop in FastAPI, measured by PerfKit.

Run it from this folder, then read http://127.0.0.1:8000/stats:

    hypercorn app:app
"""

from __future__ import annotations

import hashlib
import logging
import os
import smtplib
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
)
from datetime import datetime, timezone
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from uuid import NAMESPACE_URL, UUID, uuid5

import anyio
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Request,
    Response,
    WebSocket,
)
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import URL, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool
from starlette.types import ASGIApp, Receive, Scope, Send

from asgi_perfkit import (
    NDJSON,
    Event,
    EventStream,
    PerfKit,
    ProfileReport,
    ThreadLimiter,
    add_task,
    cached,
    contextmanager_in_threadpool,
    current_resources,
    dumps,
    exact_by_header,
    get_performance_stats,
    get_profile_stats,
    get_runtime_stats,
    iterate_in_threadpool,
    measure,
    profile,
    profile_allocations,
    profile_connection,
    profile_engine,
    reset_performance_stats,
    reset_profile_stats,
    resolve,
    run_in_threadpool,
)
from asgi_perfkit import Depends as Needs  # FastAPI has a Depends of its own

logger = logging.getLogger("shop")


class Item(BaseModel):
    id: int
    name: str
    price: float


class Stock(BaseModel):
    shop: int
    item: int
    quantity: int


class Sold(BaseModel):
    item: int
    sold: int
    revenue: float


class Receipt(BaseModel):
    sale: int
    number: UUID
    item: str
    price: Decimal
    printed: datetime


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sales"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[int]
    price: Mapped[float]


ITEMS = {
    1: Item(id=1, name="kettle", price=24.5),
    2: Item(id=2, name="teapot", price=31.0),
    3: Item(id=3, name="cup", price=7.25),
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

# Receipts are read by SQLAlchemy's ORM. No connection is kept: each would belong to its thread.
engine = create_engine(URL.create("sqlite", database=str(DATABASE)), poolclass=NullPool)
profile_engine(engine)

# SQLite lets in one writer at a time. Those who would wait for its lock, each in a thread, wait for a thread instead.
writers = ThreadLimiter(1)

customers: set[object] = set()  # who look at prices

router = APIRouter()
shop = APIRouter(prefix="/shop/{shop_id}")


@router.get("/items/")
async def items() -> list[Item]:
    """List what the shop sells."""
    return list(ITEMS.values())


@router.get("/items/{item_id}")
async def item(item_id: int) -> Item:
    """Show one item."""
    if item_id not in ITEMS:
        raise HTTPException(404, "There is no such item.")
    return ITEMS[item_id]


@shop.get("/items/{item_id}")
async def stock(shop_id: int, item_id: int) -> Stock:
    """Show how many of an item one shop has; the shop's id is in the router's own prefix."""
    if (shop_id, item_id) not in STOCK:
        raise HTTPException(404, "There is no such item in this shop.")
    return Stock(shop=shop_id, item=item_id, quantity=STOCK[shop_id, item_id])


@router.get("/wait")
async def wait() -> dict[str, float]:
    """Ask a supplier who takes 100 ms to answer; the loop is free meanwhile."""
    began = time.perf_counter()
    await anyio.sleep(0.1)
    return {"seconds": time.perf_counter() - began}


@contextmanager
def open_book() -> Iterator[sqlite3.Connection]:
    """Connect to the book of sales; sqlite3 wants a connection to be used in this thread only."""
    with closing(profile_connection(sqlite3.connect(DATABASE))) as book:
        yield book


def prepare_book() -> None:
    """Make the book, with 50,000 sales to begin with."""
    sales = (
        (number, item_id := number % len(ITEMS) + 1, ITEMS[item_id].price)
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
        sale = (item_id, ITEMS[item_id].price)
        return book.execute("INSERT INTO sales (item, price) VALUES (?, ?)", sale).lastrowid


def sum_up(book: sqlite3.Connection, item_id: int) -> Sold:
    """Go through the book for one item."""
    found = book.execute("SELECT count(*), total(price) FROM sales WHERE item = ?", [item_id])
    sold, revenue = found.fetchone()
    return Sold(item=item_id, sold=sold, revenue=revenue)


def print_receipt(sale: Sale) -> Receipt:
    return Receipt(
        sale=sale.id,
        number=uuid5(NAMESPACE_URL, f"https://shop.example.org/sales/{sale.id}"),
        item=ITEMS[sale.item].name,
        price=Decimal(f"{sale.price:.2f}"),
        printed=datetime.now(timezone.utc),
    )


def find_receipt(sale_id: int) -> Receipt | None:
    """Make the receipt of a sale, if there is such a sale."""
    with Session(engine) as session:
        sale = session.get(Sale, sale_id)
        return None if sale is None else print_receipt(sale)


def find_latest_receipts() -> list[Receipt]:
    """Make the receipts of the ten latest sales, and ask for each of them: the mistake that /profile finds."""
    found = []
    with Session(engine) as session:
        for number in session.scalars(select(Sale.id).order_by(Sale.id.desc()).limit(10)):
            sale = session.get_one(Sale, number)  # found by /profile: the N+1
            found.append(print_receipt(sale))
    return found


def read_sales(after: int = 0) -> Iterator[dict[str, Any]]:
    """Read the book out, a sale at a time, from behind one of them on."""
    with open_book() as book:
        sales = book.execute("SELECT id, item, price FROM sales WHERE id > ? ORDER BY id", [after])
        for number, item_id, price in sales:
            yield {"id": number, "item": item_id, "price": price}


def find_last_sale() -> int:
    with open_book() as book:
        return book.execute("SELECT max(id) FROM sales").fetchone()[0]


def copy_book() -> Iterator[str]:
    """Read the book out, some hundred lines of CSV at a time."""
    with open_book() as book:
        sales = book.execute("SELECT id, item, price FROM sales ORDER BY id")
        while some := sales.fetchmany(500):
            yield "".join(f"{number},{item_id},{price}\n" for number, item_id, price in some)


async def book_of_sales() -> AsyncIterator[sqlite3.Connection]:
    """A connection for the length of a request, and a thread of its own."""
    async with contextmanager_in_threadpool(open_book(), same_thread=True) as book:
        yield book


@router.post("/sales/{item_id}")
async def sell(item_id: int) -> dict[str, int]:
    """Sell one of an item."""
    if item_id not in ITEMS:
        raise HTTPException(404, "There is no such item.")
    return {"sale": await run_in_threadpool(write_sale, item_id, limiter=writers)}


@router.get("/sales/{item_id}")
async def sold(item_id: int, book: Annotated[sqlite3.Connection, Depends(book_of_sales)]) -> Sold:
    """Show how many of an item were sold."""
    return await run_in_threadpool(sum_up, book, item_id, same_thread=True)


@router.get("/sales/")
async def sales() -> StreamingResponse:
    """Send the whole book while it is being read."""
    lines = iterate_in_threadpool(copy_book(), same_thread=True)
    return StreamingResponse(lines, media_type="text/csv")


@router.get("/receipts/{sale_id}")
async def receipt(sale_id: int) -> Response:
    """Show the receipt of a sale: a model that is not checked again, as a return value would be."""
    found = await run_in_threadpool(find_receipt, sale_id)
    if found is None:
        raise HTTPException(404, "There is no such sale.")
    return Response(dumps(found), media_type="application/json")


@router.get("/receipts/")
async def receipts() -> Response:
    """Show the receipts of the latest sales."""
    found = await run_in_threadpool(find_latest_receipts)
    return Response(dumps(found), media_type="application/json")


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


Snapshot = Annotated[sqlite3.Connection, Needs(snapshot)]


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
    rate: Annotated[dict[str, Any], Needs(exchange_rate)],
    sold: Annotated[dict[int, int], Needs(count_sales)],
    last: Annotated[int, Needs(last_number)],
    watching: Annotated[int, Needs(count_customers)],
) -> dict[str, Any]:
    """What the shop sells, its prices in another currency, and how many were sold up to which sale."""
    items = [
        item.model_dump() | {"price": round(item.price * rate["rate"], 2), "sold": sold[item_id]}
        for item_id, item in ITEMS.items()
    ]
    return {**rate, "items": items, "last_sale": last, "customers": watching}


async def prices_in(currency: str) -> dict[str, Any]:
    """Make the price list; the book is read while the bank is asked."""
    if currency not in RATES:
        raise HTTPException(404, "The bank does not know this currency.")
    return await resolve(price_list, currency=currency, concurrent=True)


@router.get("/prices/{currency}")
async def prices(currency: str) -> dict[str, Any]:
    """Show the price list in another currency."""
    return await prices_in(currency)


class ASGIResponse(Response):
    """A response that is made by an ASGI app: FastAPI wants one of its own kind."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@router.get("/book")
async def book() -> ASGIResponse:
    """Send the whole book, a line of JSON for each sale."""
    return ASGIResponse(NDJSON(iterate_in_threadpool(read_sales(), same_thread=True)))


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


@router.get("/ticker")
async def ticker() -> ASGIResponse:
    """Send sales as they are made, as server-sent events."""
    return ASGIResponse(EventStream(follow_sales))


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


def mail_order(item: Item) -> None:
    send_mail(f"Order: {item.name}", f"One {item.name}, for {item.price:.2f}.")


def mail_offer(offer: dict[str, Any]) -> None:
    lines = (f"{item['name']}: {item['price']:.2f}\n" for item in offer["items"])
    send_mail(f"Offer in {offer['currency']}", "".join(lines))


@router.post("/orders/{item_id}", status_code=202)
async def order(item_id: int) -> dict[str, bool]:
    """Take an order; the sale is written and mailed when the client has its answer."""
    if item_id not in ITEMS:
        raise HTTPException(404, "There is no such item.")
    add_task(run_in_threadpool, write_sale, item_id, limiter=writers)
    add_task(mail_order, ITEMS[item_id])
    return {"accepted": True}


@router.post("/offers/{currency}", status_code=202)
async def offer(currency: str) -> dict[str, Any]:
    """Make an offer in another currency; it is mailed when the client has it and the book is closed."""
    found = await prices_in(currency)
    add_task(mail_offer, found)
    return found


def spin(seconds: float) -> float:
    """Compute without a pause, and return for how long that was."""
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        pass
    return spent


@router.get("/block")
async def block() -> dict[str, float]:
    """Compute for 30 ms on the event loop: the mistake that the statistics uncover."""
    return {"seconds": spin(0.03)}


@router.get("/freeze")
async def freeze() -> dict[str, float]:
    """Wait for a supplier as one does in a thread, which keeps all other requests waiting, too: a mistake again."""
    began = time.perf_counter()
    time.sleep(0.3)  # noqa: ASYNC251  # found by /profile: a stall
    return {"seconds": time.perf_counter() - began}


@router.get("/supplies")
async def supplies() -> dict[str, int]:
    """Ask the supplier for one item after the other: that is slow, and harms nobody else."""
    for _ in ITEMS:
        with measure("supplier"):
            await anyio.sleep(0.1)
    last_sale = await run_in_threadpool(find_last_sale)
    return {"supplied": len(ITEMS), "last_sale": last_sale}


@router.get("/labels")
async def labels() -> dict[str, int]:
    """Make all labels before the first is printed, which takes memory while it waits for the printer."""
    texts = [f"sale {number:08}" for number in range(1_000)]  # found by /profile: allocations
    await anyio.sleep(0.01)
    return {"labels": len(texts)}


@router.get("/sync")
def sync() -> dict[str, Any]:
    """Hash a password; FastAPI runs a plain function in a thread."""
    began = time.perf_counter()
    digest = hashlib.pbkdf2_hmac("sha256", b"correct horse", b"battery staple", 50_000)
    return {"digest": digest.hex(), "seconds": time.perf_counter() - began}


async def export() -> AsyncIterator[bytes]:
    """Produce a list in five parts, 50 ms apart."""
    yield EXPORT_PART
    for _ in range(4):
        await anyio.sleep(0.05)
        yield EXPORT_PART


@router.get("/stream")
async def stream() -> StreamingResponse:
    """Send a list while it is being made."""
    return StreamingResponse(export(), media_type="text/csv")


@router.post("/upload")
async def upload(request: Request) -> dict[str, Any]:
    """Digest a body of any size without holding it."""
    size, digest = 0, hashlib.sha256()
    async for chunk in request.stream():
        size += len(chunk)
        digest.update(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


@router.get("/error")
async def error() -> None:
    """Fail."""
    raise RuntimeError("The warehouse does not answer.")


async def ask_for_more() -> None:
    """Ask the supplier for more, who takes 50 ms to answer."""
    await anyio.sleep(0.05)
    logger.info("asked for more")


@router.post("/after")
async def after(tasks: BackgroundTasks) -> dict[str, bool]:
    """Take a wish; the supplier hears of it when the client has its answer, through FastAPI's own task."""
    tasks.add_task(ask_for_more)
    return {"accepted": True}


@router.websocket("/ws")
async def echo(websocket: WebSocket) -> None:
    """Send every message back."""
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message)


@router.get("/stats")
async def stats() -> dict[str, Any]:
    """Show what PerfKit has measured in this process."""
    return {"runtime": get_runtime_stats(), "endpoints": get_performance_stats(by="endpoint")}


@router.delete("/stats", status_code=204)
async def reset() -> None:
    """Begin anew."""
    reset_performance_stats()


@router.get("/profile")
async def profiles() -> dict[str, Any]:
    """Show what profiling has found in this process."""
    return get_profile_stats()


@router.delete("/profile", status_code=204)
async def reset_profiles() -> None:
    """Begin anew."""
    reset_profile_stats()


@router.get("/profile/allocations")
async def profile_memory(seconds: float = 5) -> dict[str, Any]:
    """Look for some seconds at what is allocated; all requests are slower meanwhile."""
    async with profile_allocations(seconds=seconds) as report:
        await anyio.sleep(seconds)
    return report.endpoints


def write_report(report: ProfileReport, name: str) -> bytes:
    """Write what was seen to run, in the form that the suffix of the name stands for."""
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        report.save(path)
        return path.read_bytes()


@router.get("/profile/{name}")
async def profile_cpu(name: str, seconds: float = 5) -> Response:
    """Look for some seconds at what runs."""
    if name not in REPORTS:
        raise HTTPException(404, "There is no such report.")
    async with profile() as report:
        await anyio.sleep(seconds)
    content = await run_in_threadpool(write_report, report, name)
    return Response(content, media_type=REPORTS[name])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await run_in_threadpool(prepare_book)
    yield


# Always on. Requests count as slow from a quarter of a second on, so that there is something to see.
profiling: dict[str, Any] = {"slow_threshold": 0.25}
if PROFILE_SECRET:
    profiling["exact"] = exact_by_header("x-profile", PROFILE_SECRET)

app = FastAPI(title="Shop", lifespan=lifespan)
app.include_router(router)
app.include_router(shop)
app = PerfKit(app, encoder={"compression": True}, profiling=profiling)
