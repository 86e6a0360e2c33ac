from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from uuid import NAMESPACE_URL, uuid5

from django.core.mail import send_mail
from django.db import IntegrityError, transaction
from django.db.models import Count, F, Max, Sum
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from asgi_perfkit import (
    Depends,
    ProfileReport,
    add_task,
    cached,
    contextmanager_in_threadpool,
    current_resources,
    dumps,
    get_performance_stats,
    get_profile_stats,
    get_runtime_stats,
    iterate_in_threadpool,
    measure,
    profile,
    profile_allocations,
    reset_performance_stats,
    reset_profile_stats,
    resolve,
    run_in_threadpool,
)
from shop.models import Item, Sale, Stock

logger = logging.getLogger("shop")

RATES = {"DKK": 7.46, "NOK": 11.6, "USD": 1.09}  # what the bank says that a euro is worth
EXPORT_PART = b"1,kettle,24.50\n" * 4_000
WEB_SHOP = 3
REPORTS = {  # the forms of a report, by the name that it is asked for under
    "cpu.html": "text/html",
    "cpu.speedscope.json": "application/json",
    "cpu.collapsed": "text/plain",
    "cpu.pstats": "application/octet-stream",
}

customers: set[object] = set()  # who look at prices


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


async def sold(item_id: int) -> JsonResponse:
    """Show how many of an item were sold.

    Two queries at once, in two of the kit's threads; Django's own asynchronous methods, all in the one thread of the
    request, would make one after the other.
    """
    exists, sums = await asyncio.gather(
        run_in_threadpool(Item.objects.filter(pk=item_id).exists),
        run_in_threadpool(
            Sale.objects.filter(item=item_id).aggregate, sold=Count("pk"), revenue=Sum("price")
        ),
    )
    if not exists:
        raise Http404("There is no such item.")
    return JsonResponse(
        {"item": item_id, "sold": sums["sold"], "revenue": float(sums["revenue"] or 0)}
    )


async def sell(item_id: int) -> JsonResponse:
    """Sell one of an item, unless the web shop has no more.

    A transaction belongs to a thread: it is begun and ended in that of the request, where Django's asynchronous methods
    run, too.
    """
    try:
        item = await Item.objects.aget(pk=item_id)
        async with contextmanager_in_threadpool(transaction.atomic(), thread_sensitive=True):
            sale = await Sale.objects.acreate(item=item, price=item.price)
            stock = Stock.objects.filter(shop=WEB_SHOP, item=item)
            await stock.aupdate(quantity=F("quantity") - 1)  # which the database refuses below 0
    except Item.DoesNotExist:
        raise Http404("There is no such item.") from None
    except IntegrityError:
        return JsonResponse({"detail": "There is no more of this item."}, status=409)
    return JsonResponse({"sale": sale.pk})


@require_http_methods(["GET", "HEAD", "POST"])
async def sales_of(request: HttpRequest, item_id: int) -> JsonResponse:
    return await (sell if request.method == "POST" else sold)(item_id)


def copy_book() -> Iterator[str]:
    """Read the book of sales out, some hundred lines of CSV at a time."""
    sales = Sale.objects.order_by("pk").values_list("pk", "item_id", "price").iterator(500)
    while some := list(islice(sales, 500)):
        yield "".join(f"{number},{item_id},{price}\n" for number, item_id, price in some)


@require_safe
async def sales(request: HttpRequest) -> StreamingHttpResponse:
    """Send the whole book while it is being read; Django would collect all of it before it sent a synchronous iterator.

    In one thread, since the connection that the book is read with belongs to it.
    """
    lines = iterate_in_threadpool(copy_book(), same_thread=True)
    return StreamingHttpResponse(lines, content_type="text/csv")


def print_receipt(sale: Sale) -> dict[str, Any]:
    """Make a receipt; prices keep their digits, and times their microseconds."""
    item = sale.item  # found by /profile: the N+1
    return {
        "sale": sale.pk,
        "number": uuid5(NAMESPACE_URL, f"https://shop.example.org/sales/{sale.pk}"),
        "item": item.name,
        "price": sale.price,
        "printed": datetime.now(timezone.utc),
    }


@require_safe
async def receipt(request: HttpRequest, sale_id: int) -> HttpResponse:
    """Show the receipt of a sale."""
    try:
        sale = await Sale.objects.select_related("item").aget(pk=sale_id)
    except Sale.DoesNotExist:
        raise Http404("There is no such sale.") from None
    return HttpResponse(dumps(print_receipt(sale)), content_type="application/json")


@require_safe
def receipts(request: HttpRequest) -> HttpResponse:
    """Show the receipts of the ten latest sales, and ask for the item of each: the mistake that /profile finds."""
    latest = Sale.objects.order_by("-pk")[:10]
    return HttpResponse(dumps(map(print_receipt, latest)), content_type="application/json")


@require_POST
def order(request: HttpRequest, item_id: int) -> JsonResponse:
    """Take an order; the sale is written and mailed when the client has its answer. A sync view, and two sync tasks."""
    try:
        item = Item.objects.get(pk=item_id)
    except Item.DoesNotExist:
        raise Http404("There is no such item.") from None
    add_task(Sale.objects.create, item=item, price=item.price)
    subject, text = f"Order: {item.name}", f"One {item.name}, for {item.price:.2f}.\n"
    add_task(send_mail, subject, text, None, ["orders@example.org"])
    return JsonResponse({"accepted": True}, status=202)


@cached(ttl=300)
async def exchange_rate(currency: str) -> dict[str, Any]:
    """Ask the bank, which takes 100 ms; who asks meanwhile, or within five minutes, gets the same answer."""
    await asyncio.sleep(0.1)
    return {"currency": currency, "rate": RATES[currency], "quoted": datetime.now(timezone.utc)}


async def snapshot() -> str:
    """Have the database stay as it is for who reads in this request by the alias, whatever is sold meanwhile.

    The transaction ends when Django is through with the request and its threads are gone: it is in one of the kit's.
    """
    beginning = contextmanager_in_threadpool(transaction.atomic(using="reader"), same_thread=True)
    await current_resources().enter(beginning)
    return "reader"


Snapshot = Annotated[str, Depends(snapshot)]


async def count_sales(alias: Snapshot) -> list[Item]:
    """The items, and how many of each were sold."""
    items = Item.objects.using(alias).annotate(sold=Count("sale")).order_by("pk")
    return await run_in_threadpool(list, items, same_thread=True)


async def last_number(alias: Snapshot) -> int:
    """The number of the last sale."""
    sales = Sale.objects.using(alias)
    return (await run_in_threadpool(sales.aggregate, last=Max("pk"), same_thread=True))["last"]


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
    counted: Annotated[list[Item], Depends(count_sales)],
    last: Annotated[int, Depends(last_number)],
    watching: Annotated[int, Depends(count_customers)],
) -> dict[str, Any]:
    """What the shop sells, its prices in another currency, and how many were sold up to which sale."""
    items = [
        item.as_dict() | {"price": round(float(item.price) * rate["rate"], 2), "sold": item.sold}
        for item in counted
    ]
    return {**rate, "items": items, "last_sale": last, "customers": watching}


async def prices_in(currency: str) -> dict[str, Any]:
    """Make the price list; the database is read while the bank is asked."""
    if currency not in RATES:
        raise Http404("The bank does not know this currency.")
    return await resolve(price_list, currency=currency, concurrent=True)


@require_safe
async def prices(request: HttpRequest, currency: str) -> HttpResponse:
    """Show the price list in another currency, with its time as RFC 3339 has it."""
    return HttpResponse(dumps(await prices_in(currency)), content_type="application/json")


@require_POST
async def offer(request: HttpRequest, currency: str) -> HttpResponse:
    """Make an offer in another currency; it is mailed when the client has it and the transaction has ended."""
    found = await prices_in(currency)
    text = "".join(f"{item['name']}: {item['price']:.2f}\n" for item in found["items"])
    add_task(send_mail, f"Offer in {currency}", text, None, ["orders@example.org"])
    return HttpResponse(dumps(found), status=202, content_type="application/json")


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
async def freeze(request: HttpRequest) -> JsonResponse:
    """Wait for a supplier as one does in a thread, which keeps all other requests waiting, too: a mistake again."""
    began = time.perf_counter()
    time.sleep(0.3)  # noqa: ASYNC251  # found by /profile: a stall
    return JsonResponse({"seconds": time.perf_counter() - began})


@require_safe
async def supplies(request: HttpRequest) -> JsonResponse:
    """Ask the supplier for one item after the other: that is slow, and harms nobody else."""
    for _ in range(3):
        with measure("supplier"):
            await asyncio.sleep(0.1)
    last_sale = await Sale.objects.alatest("pk")
    return JsonResponse({"supplied": 3, "last_sale": last_sale.pk})


@require_safe
async def labels(request: HttpRequest) -> JsonResponse:
    """Make all labels before the first is printed, which takes memory while it waits for the printer."""
    texts = [f"sale {number:08}" for number in range(1_000)]  # found by /profile: allocations
    await asyncio.sleep(0.01)
    return JsonResponse({"labels": len(texts)})


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


class WishResponse(JsonResponse):
    """An answer behind which the supplier is asked for more: Django closes it after sending."""

    def close(self) -> None:
        super().close()
        time.sleep(0.05)  # the supplier takes his time; Django calls this in a thread
        logger.info("asked for more")


@require_POST
async def after(request: HttpRequest) -> WishResponse:
    """Take a wish; the supplier hears of it when the client has its answer, while the request still runs."""
    return WishResponse({"accepted": True})


@require_http_methods(["GET", "DELETE"])
async def stats(request: HttpRequest) -> HttpResponse:
    """Show what PerfKit has measured in this process, or begin anew (DELETE)."""
    if request.method == "DELETE":
        reset_performance_stats()
        return HttpResponse(status=204)
    return JsonResponse(
        {"runtime": get_runtime_stats(), "endpoints": get_performance_stats(by="endpoint")}
    )


@require_http_methods(["GET", "DELETE"])
async def profiles(request: HttpRequest) -> HttpResponse:
    """Show what profiling has found in this process, or begin anew (DELETE)."""
    if request.method == "DELETE":
        reset_profile_stats()
        return HttpResponse(status=204)
    return JsonResponse(get_profile_stats())


@require_safe
async def profile_memory(request: HttpRequest) -> JsonResponse:
    """Look for some seconds at what is allocated; all requests are slower meanwhile."""
    seconds = float(request.GET.get("seconds", "5"))
    async with profile_allocations(seconds=seconds) as report:
        await asyncio.sleep(seconds)
    return JsonResponse(report.endpoints)


def write_report(report: ProfileReport, name: str) -> bytes:
    """Write what was seen to run, in the form that the suffix of the name stands for."""
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        report.save(path)
        return path.read_bytes()


@require_safe
async def profile_cpu(request: HttpRequest, name: str) -> HttpResponse:
    """Look for some seconds at what runs."""
    if name not in REPORTS:
        raise Http404("There is no such report.")
    async with profile() as report:
        await asyncio.sleep(float(request.GET.get("seconds", "5")))
    content = await run_in_threadpool(write_report, report, name)
    return HttpResponse(content, content_type=REPORTS[name])
