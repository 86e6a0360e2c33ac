"""What is sent as it comes. These are ASGI apps, which a view cannot return: they have paths beside those of Django.

None of Django's middleware is around them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from django.db.models import Max

from asgi_perfkit import NDJSON, Event, EventStream, iterate_in_threadpool, run_in_threadpool
from shop.models import Sale


def read_sales(after: int = 0) -> AsyncIterator[dict[str, Any]]:
    """Read the book of sales out in a thread, from behind one of them on."""
    sales = Sale.objects.filter(pk__gt=after).order_by("pk").values("id", "item", "price")
    return iterate_in_threadpool(sales.iterator(500), same_thread=True)


async def follow_sales(last_event_id: str | None) -> AsyncIterator[Event]:
    """Tell of the last sale, and of each that comes; who was here before is told of what was missed.

    Whoever writes a sale, this process or another: every 100 ms the book is looked into.
    """
    if last_event_id is None:
        last = (await run_in_threadpool(Sale.objects.aggregate, last=Max("pk")))["last"] - 1
    else:
        last = int(last_event_id)
    while True:
        async with aclosing(read_sales(last)) as sales:
            async for sale in sales:
                last = sale["id"]
                yield Event(sale, event="sale", id=last)
        await asyncio.sleep(0.1)


# The whole book, a line of JSON for each sale; and sales as they are made, as server-sent events.
STREAMS = {"/book": NDJSON(read_sales), "/ticker": EventStream(follow_sales)}
