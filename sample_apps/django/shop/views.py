from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator

from django.db.models import Sum
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from asgi_perfkit import get_performance_stats, get_runtime_stats, reset_performance_stats
from shop.models import Item, Stock

logger = logging.getLogger("shop")

EXPORT_PART = b"1,kettle,24.50\n" * 4_000


@require_safe
async def items(request: HttpRequest) -> JsonResponse:
    """List what the shop sells."""
    return JsonResponse([item.as_dict() async for item in Item.objects.order_by("pk")], safe=False)


@require_safe
async def item(request: HttpRequest, item_id: int) -> JsonResponse:
    """Show one item."""
    try:
        found = await Item.objects.aget(pk=item_id)
    except Item.DoesNotExist:
        raise Http404("There is no such item.") from None
    return JsonResponse(found.as_dict())


@require_safe
def stock(request: HttpRequest, shop_id: int, item_id: int) -> JsonResponse:
    """Show how many of an item one shop has; a sync view, and a join."""
    try:
        found = Stock.objects.select_related("item").get(shop=shop_id, item=item_id)
    except Stock.DoesNotExist:
        raise Http404("There is no such item in this shop.") from None
    return JsonResponse({"shop": shop_id, "item": found.item.pk, "quantity": found.quantity})


@require_safe
async def wait(request: HttpRequest) -> JsonResponse:
    """Ask a supplier who takes 100 ms to answer; the loop is free meanwhile."""
    began = time.perf_counter()
    await asyncio.sleep(0.1)
    return JsonResponse({"seconds": time.perf_counter() - began})


def spin(seconds: float) -> float:
    """Compute without a pause, and return for how long that was."""
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        pass
    return spent


@require_safe
async def block(request: HttpRequest) -> JsonResponse:
    """Compute for 30 ms on the event loop: the mistake that the statistics uncover."""
    return JsonResponse({"seconds": spin(0.03)})


@require_safe
def sync(request: HttpRequest) -> JsonResponse:
    """Count the stock and hash a password; Django runs a sync view in a thread."""
    began = time.perf_counter()
    total = Stock.objects.aggregate(total=Sum("quantity"))["total"]
    digest = hashlib.pbkdf2_hmac("sha256", b"correct horse", b"battery staple", 50_000)
    seconds = time.perf_counter() - began
    return JsonResponse({"stock": total, "digest": digest.hex(), "seconds": seconds})


async def export() -> AsyncIterator[bytes]:
    """Produce a list in five parts, 50 ms apart."""
    yield EXPORT_PART
    for _ in range(4):
        await asyncio.sleep(0.05)
        yield EXPORT_PART


@require_safe
async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Send a list while it is being made."""
    return StreamingHttpResponse(export(), content_type="text/csv")


@require_POST
async def upload(request: HttpRequest) -> JsonResponse:
    """Digest a body piece by piece; Django has spooled it before the view is called."""
    size, digest = 0, hashlib.sha256()
    while chunk := request.read(65_536):
        size += len(chunk)
        digest.update(chunk)
    return JsonResponse({"size": size, "sha256": digest.hexdigest()})


@require_safe
async def error(request: HttpRequest) -> HttpResponse:
    """Fail."""
    raise RuntimeError("The warehouse does not answer.")


class OrderResponse(JsonResponse):
    """An answer whose receipt goes out when the client has it: Django closes it after sending."""

    def close(self) -> None:
        super().close()
        time.sleep(0.05)  # a mail server takes its time; Django calls this in a thread
        logger.info("receipt sent")


@require_POST
async def after(request: HttpRequest) -> OrderResponse:
    """Take an order."""
    return OrderResponse({"accepted": True})


@require_http_methods(["GET", "DELETE"])
async def stats(request: HttpRequest) -> HttpResponse:
    """Show what PerfKit has measured in this process, or begin anew (DELETE)."""
    if request.method == "DELETE":
        reset_performance_stats()
        return HttpResponse(status=204)
    return JsonResponse(
        {"runtime": get_runtime_stats(), "endpoints": get_performance_stats(by="endpoint")}
    )
