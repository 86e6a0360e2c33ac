"""Drives ASGI apps in process, and puts figures into a registry, for the tests of what comes of it."""

from __future__ import annotations

import asyncio
import random
import string
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio

from asgi_perfkit import PerformanceMiddleware, Registry, get_performance_stats

App = Callable[..., Awaitable[None]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
#: By endpoint: how often which status was sent.
Statuses = dict[str, dict[str, int]]


async def request(app: App, method: str, path: str, **scope: Any) -> dict[str, Any]:
    """Send one request to `app`, as a server does; return the `http.response.start` message.

    :param scope: more for the scope, or other things in place of the usual.
    """
    answered = anyio.Event()
    incoming = [{"type": "http.request", "body": b"", "more_body": False}]
    starts = []

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            starts.append(message)
        elif not message.get("more_body", False):
            answered.set()

    try:
        await app(_scope("http", path, {"method": method, **scope}), receive, send)
    except Exception:
        # Some frameworks raise on behind a 500 that they have sent: that is for the server's log.
        if not starts:
            raise
    (start,) = starts
    return start


async def connect(app: App, path: str, *texts: str, **scope: Any) -> list[dict[str, Any]]:
    """Open a websocket, send `texts` and leave; return the messages that `app` sent."""
    incoming: list[dict[str, Any]] = [
        {"type": "websocket.connect"},
        *({"type": "websocket.receive", "text": text} for text in texts),
        {"type": "websocket.disconnect", "code": 1000},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not incoming:  # asked on behind the end, in a task that the app then cancels
            await anyio.sleep_forever()
        return incoming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(_scope("websocket", path, {"subprotocols": [], **scope}), receive, send)
    return sent


def visit(app: App, *lines: str, **scope: Any) -> Statuses:
    """Send a request for each line (``"GET /items/1"``); return which endpoints they went to, and their statuses.

    The method ``WEBSOCKET`` opens a connection.

    :param scope: for the scope of each.
    """
    registry = Registry()
    measured = PerformanceMiddleware(app, registry=registry, memory=None)

    async def run() -> None:
        for line in lines:
            method, path = line.split(" ", 1)
            if method == "WEBSOCKET":
                await connect(measured, path, "hello", **scope)
            else:
                await request(measured, method, path, **scope)

    asyncio.run(run())
    return statuses(registry)


def endpoint(app: App, line: str, **scope: Any) -> str:
    """The one endpoint that a request for `line` goes to."""
    (label,) = visit(app, line, **scope)
    return label


def statuses(registry: Registry) -> Statuses:
    """By endpoint, the statuses that were sent."""
    stats: dict[str, Any] = get_performance_stats(by="endpoint", registry=registry)
    return {label: figures.get("statuses", {}) for label, figures in stats.items()}


def record(
    registry: Registry,
    path: str = "/",
    *,
    method: str = "GET",
    outcome: str = "ok",
    status: int | None = 200,
    observations: Iterable[tuple[str, int]] = (),
    max_series: int = 1000,
    **metrics: int | None,
) -> Callable[[str, int], None]:
    """Record one request with the given figures; return what takes a figure of it that comes late.

    :param metrics: nanoseconds, bytes or a number, by the metric's name; without any, a total time of a microsecond.
    """
    metrics = metrics or {"total_time": 1000}
    # A registry knows the metrics of a kind of request by their tuple, which is always the same object.
    names = _ROWS.setdefault(tuple(metrics), tuple(metrics))
    values = tuple(metrics.values())
    series = registry.record(
        method, path, names, values, observations, None, outcome, status, max_series
    )
    return series.observe_late


_ROWS: dict[tuple[str, ...], tuple[str, ...]] = {}


async def answer(send: Send, status: int = 200, headers: Iterable[Any] = ()) -> None:
    """Send a whole response."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"body"})


async def raw_app(scope: dict[str, Any], receive: Any, send: Send) -> None:
    """A bare app that knows no path with "missing" in it."""
    await answer(send, 404 if "missing" in scope["path"] else 200)


async def ok_app(scope: dict[str, Any], receive: Any, send: Send) -> None:
    """A bare app that answers 200 to anything."""
    await answer(send)


def _scope(kind: str, path: str, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        "extensions": {},
        **more,
    }


def scanner_paths(*prefixes: str, number: int = 2_000) -> list[str]:
    """What somebody tries who looks for holes, the same each time: below the root and below each of `prefixes`."""
    dice = random.Random(20)
    letters = string.ascii_lowercase
    segments: list[Callable[[], str]] = [
        lambda: "".join(dice.choices(letters, k=dice.randint(1, 12))),
        lambda: "".join(dice.choices(letters + string.digits + "-_.~%+", k=dice.randint(1, 80))),
        lambda: str(dice.randint(0, 10**12)),
        lambda: str(uuid.UUID(int=dice.getrandbits(128))),
        lambda: "".join(map(chr, dice.choices(range(1, 0x3000), k=5))).replace("/", ""),
        lambda: dice.choice(
            [
                "..",
                ".",
                "",
                ".env",
                ".git",
                "wp-login.php",
                "items",
                "{item_id}",
                "%2e%2e",
                "\\",
                "<script>",
            ]
        ),
    ]
    return [
        dice.choice(["", *prefixes])
        + "".join("/" + dice.choice(segments)() for _ in range(dice.randint(1, 5)))
        for _ in range(number)
    ]
