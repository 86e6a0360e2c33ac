"""What several tests share: a clock that stands still, both sides of an ASGI connection, a pause."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
import types
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import pytest

import asgi_perfkit
from asgi_perfkit.metrics import histogram

Message = Any
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOGGER = "asgi_perfkit"


class Clock:
    """Stands still until it is told to go on; in the place of `time.perf_counter_ns`."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """Give the kit, wherever it times something, a new clock."""
        clock = cls()
        for name, module in list(sys.modules.items()):
            if name.startswith("asgi_perfkit.") and hasattr(module, "perf_counter_ns"):
                monkeypatch.setattr(module, "perf_counter_ns", clock)
        return clock


class Trouble(Exception):
    """An exception of the tests' own."""


@types.coroutine
def ask(question: object) -> Generator[object, Any, Any]:
    """Suspend with `question`; what is sent in comes back."""
    return (yield question)


def finish(coro: Any) -> Any:
    """Step a coroutine that does not suspend any more; its result."""
    try:
        coro.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it has suspended once more")


async def checkpoint() -> None:
    """Suspend, on whichever loop is running, and go on as soon as it comes round."""
    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(0)
    else:
        import trio

        await trio.lowlevel.checkpoint()


async def forever() -> None:
    """Suspend until cancelled, on whichever loop is running."""
    if asyncio._get_running_loop() is not None:
        await asyncio.get_running_loop().create_future()
    else:
        import trio

        await trio.sleep_forever()


async def together(*functions: Callable[[], Awaitable[None]]) -> None:
    """Run async functions as child tasks of whoever calls this, and wait for all."""
    if asyncio._get_running_loop() is not None:
        await asyncio.gather(*(asyncio.ensure_future(function()) for function in functions))
    else:
        import trio

        async with trio.open_nursery() as nursery:
            for function in functions:
                nursery.start_soon(function)


@contextmanager
def no_collector() -> Iterator[None]:
    """Leave it to reference counts alone to free things: what is in a cycle stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def traced_bytes() -> int:
    """The memory that `tracemalloc` knows of, without what grows by leaps, whoever is measured.

    In each registry that the tests of the process have left there is a histogram of the pauses of garbage collections,
    and all of these grow when one takes longer than any before. asyncio's set of all tasks is made anew, larger or
    smaller, now and then.
    """
    gc.collect()
    leaping = (histogram.__file__, WeakSet.add.__code__.co_filename)
    without = [tracemalloc.Filter(False, filename) for filename in leaping]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(without).traces)


class Server:
    """The server's side of one connection: says what it is given, one after another, and keeps what it is told.

    Each of its answers suspends once, so that the app runs in several steps.

    :param says: for each call of `receive`, a message to return or an exception to raise.
    :param hears: for the first calls of `send`, what to do: an exception is raised, a function is called, None does
        nothing.
    """

    def __init__(self, *says: object, hears: Sequence[object] = ()) -> None:
        self.said = 0
        self.heard: list[Message] = []
        self._says = says
        self._hears = hears

    async def receive(self) -> Message:
        await checkpoint()
        assert self.said < len(self._says), "the app receives more often than the test has foreseen"
        saying = self._says[self.said]
        self.said += 1
        if isinstance(saying, BaseException):
            raise saying
        return saying() if callable(saying) else saying

    async def send(self, message: Message) -> None:
        self.heard.append(message)
        await checkpoint()
        if len(self.heard) <= len(self._hears):
            reaction = self._hears[len(self.heard) - 1]
            if isinstance(reaction, BaseException):
                raise reaction
            if callable(reaction):
                reaction()


def http_scope(path: str = "/things", **items: Any) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "extensions": {},
        **items,
    }


def websocket_scope(path: str = "/live", **items: Any) -> Scope:
    return http_scope(path, type="websocket", scheme="ws", subprotocols=[], **items)


REQUEST = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}
START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"done", "more_body": False}


def saying(*messages: Message) -> App:
    """An app that sends these messages."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def the_figures(registry: asgi_perfkit.Registry) -> dict[str, Any]:
    """The statistics of the only endpoint that there is."""
    (figures,) = asgi_perfkit.get_performance_stats(by="endpoint", registry=registry).values()
    return figures


def outcomes(registry: asgi_perfkit.Registry) -> dict[str, Any]:
    """How often each outcome came, of all requests."""
    return asgi_perfkit.get_performance_stats(registry=registry).get("outcomes", {})


def statuses(registry: asgi_perfkit.Registry) -> dict[str, Any]:
    """How often each status came, of all responses."""
    return asgi_perfkit.get_performance_stats(registry=registry).get("statuses", {})


def in_flight(registry: asgi_perfkit.Registry) -> int:
    return asgi_perfkit.get_runtime_stats(registry=registry)["requests"]["in_flight"]


def troubles(registry: asgi_perfkit.Registry) -> dict[str, int]:
    """The kinds of trouble that the kit has met, without those that it has not."""
    metrics = asgi_perfkit.get_runtime_stats(registry=registry)["metrics"]
    return {name: times for name, times in metrics.items() if times and name != "series"}
