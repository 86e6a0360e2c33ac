"""Streams, and what has become of their producers."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio

from asgi_perfkit import (
    JSON,
    NDJSON,
    Event,
    EventStream,
    JSONArray,
    PerfKit,
    get_performance_stats,
    reset_performance_stats,
)
from asgi_perfkit.steps import Account, current_account

ROW = {"name": "kettle", "price": 24.5}


class Producer:
    """What the latest one has done.

    :ivar produced: how many rows it has yielded.
    :ivar ended: when it was ended (seconds, monotonic); None before.
    :ivar longest_step: of its request (seconds of the processor's time).
    """

    def __init__(self) -> None:
        self.produced = 0
        self.longest_step = 0.0
        self.step_began = time.thread_time()
        account = current_account.get()
        assert account is not None
        self.ended: float | None = None
        self.release = anyio.Event()  # which imports anyio's backend at its first use
        account.join(self)

    def step_started(self, account: Account) -> None:
        self.step_began = time.thread_time()

    def step_ended(self, account: Account, duration_ns: int) -> None:
        self.longest_step = max(self.longest_step, time.thread_time() - self.step_began)

    async def rows(self, number: int | None = None) -> AsyncIterator[Any]:
        try:
            for id_ in itertools.count() if number is None else range(number):
                self.produced += 1
                yield {"id": id_, **ROW}
        finally:
            self.ended = time.monotonic()

    async def one_and_wait(self) -> AsyncIterator[Any]:
        try:
            yield ROW
            await anyio.sleep_forever()
        finally:
            self.ended = time.monotonic()

    async def each_when_released(self) -> AsyncIterator[Any]:
        for id_ in range(3):
            yield {"id": id_}
            await self.release.wait()
            self.release = anyio.Event()

    async def one_and_fail(self) -> AsyncIterator[Any]:
        yield ROW
        await anyio.sleep(0.01)
        raise RuntimeError("The warehouse does not answer.")


STATE = ("produced", "ended", "longest_step")
producer: Any = None


def answer(path: str) -> Any:
    global producer  # noqa: PLW0603
    match path:
        case "/items/1":
            return JSON({"id": 1})
        case "/state":
            return JSON({name: getattr(producer, name, None) for name in STATE})
        case "/release":
            producer.release.set()
            return JSON({})
        case "/stats":
            return JSON(get_performance_stats(by="endpoint"))
        case "/reset":
            reset_performance_stats()
            return JSON({})
    producer = Producer()
    match path:
        case "/rows":
            return NDJSON(producer.rows(100_000))
        case "/array":
            return JSONArray(producer.rows(10_000))
        case "/endless":
            return NDJSON(producer.rows())
        case "/waiting":
            return NDJSON(producer.one_and_wait())
        case "/released":
            return NDJSON(producer.each_when_released())
        case "/broken":
            return NDJSON(producer.one_and_fail(), error_line=lambda error: {"error": str(error)})
        case "/broken-array":
            return JSONArray(producer.one_and_fail())
        case "/events":
            return EventStream(events, keep_alive=0.05)
    raise AssertionError(path)


async def events(last_event_id: str | None) -> AsyncIterator[Any]:
    number = int(last_event_id or 0) + 1
    yield Event({"number": number}, event="tick", id=number)
    await anyio.sleep_forever()


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await answer(scope["path"])(scope, receive, send)


app = PerfKit(application)
