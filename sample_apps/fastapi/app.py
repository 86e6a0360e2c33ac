"""A small shop in FastAPI, measured by PerfKit.

Run it from this folder, then read http://127.0.0.1:8000/stats:

    hypercorn app:app
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from asgi_perfkit import PerfKit, get_performance_stats, get_runtime_stats, reset_performance_stats

logger = logging.getLogger("shop")


class Item(BaseModel):
    id: int
    name: str
    price: float


class Stock(BaseModel):
    shop: int
    item: int
    quantity: int


ITEMS = {
    1: Item(id=1, name="kettle", price=24.5),
    2: Item(id=2, name="teapot", price=31.0),
    3: Item(id=3, name="cup", price=7.25),
}
STOCK = {(shop_id, item_id): shop_id * item_id for shop_id in (1, 2) for item_id in ITEMS}
EXPORT_PART = b"1,kettle,24.50\n" * 4_000

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


async def send_receipt() -> None:
    """Hand a receipt to a mail server, which takes 50 ms."""
    await anyio.sleep(0.05)
    logger.info("receipt sent")


@router.post("/after")
async def after(tasks: BackgroundTasks) -> dict[str, bool]:
    """Take an order; the receipt goes out when the client has its answer."""
    tasks.add_task(send_receipt)
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


app = FastAPI(title="Shop")
app.include_router(router)
app.include_router(shop)
app = PerfKit(app)
