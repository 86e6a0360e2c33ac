"""A small shop in Quart, measured by PerfKit.

Run it from this folder, then read http://127.0.0.1:8000/stats:

    hypercorn app:app
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from quart import Blueprint, Quart, abort, request, websocket

from asgi_perfkit import PerfKit, get_performance_stats, get_runtime_stats, reset_performance_stats
from asgi_perfkit.metrics.endpoints import quart_endpoint

logger = logging.getLogger("shop")

ITEMS = {
    1: {"id": 1, "name": "kettle", "price": 24.5},
    2: {"id": 2, "name": "teapot", "price": 31.0},
    3: {"id": 3, "name": "cup", "price": 7.25},
}
STOCK = {(shop_id, item_id): shop_id * item_id for shop_id in (1, 2) for item_id in ITEMS}
EXPORT_PART = b"1,kettle,24.50\n" * 4_000

app = Quart(__name__)
shop = Blueprint("shop", __name__, url_prefix="/shop/<int:shop_id>")


@app.get("/items/")
async def items() -> list[dict[str, Any]]:
    """List what the shop sells."""
    return list(ITEMS.values())


@app.get("/items/<int:item_id>")
async def item(item_id: int) -> dict[str, Any]:
    """Show one item."""
    if item_id not in ITEMS:
        abort(404, "There is no such item.")
    return ITEMS[item_id]


@shop.get("/items/<int:item_id>")
async def stock(shop_id: int, item_id: int) -> dict[str, int]:
    """Show how many of an item one shop has; the shop's id is in the blueprint's own prefix."""
    if (shop_id, item_id) not in STOCK:
        abort(404, "There is no such item in this shop.")
    return {"shop": shop_id, "item": item_id, "quantity": STOCK[shop_id, item_id]}


@app.get("/wait")
async def wait() -> dict[str, float]:
    """Ask a supplier who takes 100 ms to answer; the loop is free meanwhile."""
    began = time.perf_counter()
    await asyncio.sleep(0.1)
    return {"seconds": time.perf_counter() - began}


def spin(seconds: float) -> float:
    """Compute without a pause, and return for how long that was."""
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        pass
    return spent


@app.get("/block")
async def block() -> dict[str, float]:
    """Compute for 30 ms on the event loop: the mistake that the statistics uncover."""
    return {"seconds": spin(0.03)}


@app.get("/sync")
def sync() -> dict[str, Any]:
    """Hash a password; Quart runs a plain function in a thread."""
    began = time.perf_counter()
    digest = hashlib.pbkdf2_hmac("sha256", b"correct horse", b"battery staple", 50_000)
    return {"digest": digest.hex(), "seconds": time.perf_counter() - began}


async def export() -> AsyncIterator[bytes]:
    """Produce a list in five parts, 50 ms apart."""
    yield EXPORT_PART
    for _ in range(4):
        await asyncio.sleep(0.05)
        yield EXPORT_PART


@app.get("/stream")
async def stream() -> tuple[AsyncIterator[bytes], dict[str, str]]:
    """Send a list while it is being made."""
    return export(), {"content-type": "text/csv"}


@app.post("/upload")
async def upload() -> dict[str, Any]:
    """Digest a body without holding it; Quart refuses more than MAX_CONTENT_LENGTH, 16 MiB."""
    size, digest = 0, hashlib.sha256()
    async for chunk in request.body:
        size += len(chunk)
        digest.update(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


@app.get("/error")
async def error() -> None:
    """Fail."""
    raise RuntimeError("The warehouse does not answer.")


async def send_receipt() -> None:
    """Hand a receipt to a mail server, which takes 50 ms."""
    await asyncio.sleep(0.05)
    logger.info("receipt sent")


@app.post("/after")
async def after() -> dict[str, bool]:
    """Take an order; Quart sends the receipt beside the request, in a task of its own."""
    app.add_background_task(send_receipt)
    return {"accepted": True}


@app.websocket("/ws")
async def echo() -> None:
    """Send every message back."""
    while True:
        await websocket.send(await websocket.receive())


@app.get("/stats")
async def stats() -> dict[str, Any]:
    """Show what PerfKit has measured in this process."""
    return {"runtime": get_runtime_stats(), "endpoints": get_performance_stats(by="endpoint")}


@app.delete("/stats")
async def reset() -> tuple[str, int]:
    """Begin anew."""
    reset_performance_stats()
    return "", 204


app.register_blueprint(shop)
quart_endpoint(app)
app.asgi_app = PerfKit(app.asgi_app)
