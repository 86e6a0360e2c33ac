"""A small shop in Litestar, measured by PerfKit.

Run it from this folder, then read http://127.0.0.1:8000/stats:

    hypercorn app:app
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
from litestar import Litestar, Request, Response, Router, WebSocket, delete, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import NotFoundException, WebSocketDisconnect
from litestar.response import Stream

from asgi_perfkit import PerfKit, get_performance_stats, get_runtime_stats, reset_performance_stats

logger = logging.getLogger("shop")


@dataclass
class Item:
    id: int
    name: str
    price: float


@dataclass
class Stock:
    shop: int
    item: int
    quantity: int


ITEMS = {1: Item(1, "kettle", 24.5), 2: Item(2, "teapot", 31.0), 3: Item(3, "cup", 7.25)}
STOCK = {(shop_id, item_id): shop_id * item_id for shop_id in (1, 2) for item_id in ITEMS}
EXPORT_PART = b"1,kettle,24.50\n" * 4_000


@get("/items")
async def items() -> list[Item]:
    """List what the shop sells."""
    return list(ITEMS.values())


@get("/items/{item_id:int}")
async def item(item_id: int) -> Item:
    """Show one item."""
    if item_id not in ITEMS:
        raise NotFoundException("There is no such item.")
    return ITEMS[item_id]


@get("/items/{item_id:int}")
async def stock(shop_id: int, item_id: int) -> Stock:
    """Show how many of an item one shop has; the shop's id is in the router's own path."""
    if (shop_id, item_id) not in STOCK:
        raise NotFoundException("There is no such item in this shop.")
    return Stock(shop_id, item_id, STOCK[shop_id, item_id])


@get("/wait")
async def wait() -> dict[str, float]:
    """Ask a supplier who takes 100 ms to answer; the loop is free meanwhile."""
    began = time.perf_counter()
    await anyio.sleep(0.1)
    return {"seconds": time.perf_counter() - began}


def spin(seconds: float) -> float:
    """Compute without a pause, and return for how long that was."""
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        pass
    return spent


@get("/block")
async def block() -> dict[str, float]:
    """Compute for 30 ms on the event loop: the mistake that the statistics uncover."""
    return {"seconds": spin(0.03)}


@get("/sync", sync_to_thread=True)
def sync() -> dict[str, Any]:
    """Hash a password; Litestar runs a plain function in a thread when it is told to."""
    began = time.perf_counter()
    digest = hashlib.pbkdf2_hmac("sha256", b"correct horse", b"battery staple", 50_000)
    return {"digest": digest.hex(), "seconds": time.perf_counter() - began}


async def export() -> AsyncIterator[bytes]:
    """Produce a list in five parts, 50 ms apart."""
    yield EXPORT_PART
    for _ in range(4):
        await anyio.sleep(0.05)
        yield EXPORT_PART


@get("/stream")
async def stream() -> Stream:
    """Send a list while it is being made."""
    return Stream(export(), media_type="text/csv")


@post("/upload", status_code=200)
async def upload(request: Request) -> dict[str, Any]:
    """Digest a body of any size without holding it."""
    size, digest = 0, hashlib.sha256()
    async for chunk in request.stream():
        size += len(chunk)
        digest.update(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


@get("/error")
async def error() -> None:
    """Fail."""
    raise RuntimeError("The warehouse does not answer.")


async def send_receipt() -> None:
    """Hand a receipt to a mail server, which takes 50 ms."""
    await anyio.sleep(0.05)
    logger.info("receipt sent")


@post("/after", status_code=200)
async def after() -> Response[dict[str, bool]]:
    """Take an order; the receipt goes out when the client has its answer."""
    return Response({"accepted": True}, background=BackgroundTask(send_receipt))


@websocket("/ws")
async def echo(socket: WebSocket) -> None:
    """Send every message back."""
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


@get("/stats")
async def stats() -> dict[str, Any]:
    """Show what PerfKit has measured in this process."""
    return {"runtime": get_runtime_stats(), "endpoints": get_performance_stats(by="endpoint")}


@delete("/stats")
async def reset() -> None:
    """Begin anew."""
    reset_performance_stats()


shop = Router("/shop/{shop_id:int}", route_handlers=[stock])
route_handlers = [
    items, item, shop, wait, block, sync, stream, upload, error, after, echo, stats, reset
]  # fmt: skip

app = Litestar(route_handlers)
app = PerfKit(app)
