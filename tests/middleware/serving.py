"""How the tests of tasks run an app: with a lifespan or without one, and with the kit's middlewares in any order."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    PerfKit,
    PerformanceMiddleware,
    Registry,
    get_runtime_stats,
)
from tests.support import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    Server,
    checkpoint,
    http_scope,
    together,
)

Wrap = Callable[..., App]
Handler = Callable[[Receive, Send], Awaitable[None]]

STARTUP = {"type": "lifespan.startup"}
SHUTDOWN = {"type": "lifespan.shutdown"}
STARTUP_COMPLETE = {"type": "lifespan.startup.complete"}
SHUTDOWN_COMPLETE = {"type": "lifespan.shutdown.complete"}


def event() -> Any:
    """An event of the running loop."""
    if asyncio._get_running_loop() is not None:
        return asyncio.Event()
    import trio

    return trio.Event()


async def until(condition: Callable[[], object]) -> None:
    """Let others run until `condition` holds; the test's time limit ends the wait for one that never does."""
    while not condition():
        await checkpoint()


async def cancel_when(waiting: Any, call: Callable[[], Awaitable[None]]) -> None:
    """Run `call`, cancel it as soon as the event `waiting` is set, and wait for its end."""
    if asyncio._get_running_loop() is not None:
        task = asyncio.ensure_future(call())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await waiting.wait()
            nursery.cancel_scope.cancel()


def handled_by(handler: Handler) -> App:
    """An app of one handler, which does not speak lifespan."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await handler(receive, send)

    return app


async def ask(app: App, scope: Scope | None = None, *says: Message) -> list[Message]:
    """One request, or connection; what the server was told."""
    server = Server(*says)
    await app(http_scope() if scope is None else scope, server.receive, server.send)
    return server.heard


async def live(app: App, client: Callable[[], Awaitable[object]]) -> list[Message]:
    """Start `app` up, run `client`, and shut it down; what the server was told."""
    told: list[Message] = []
    started, leaving = event(), event()
    messages = iter([STARTUP, SHUTDOWN])

    async def receive() -> Message:
        message = next(messages)
        if message is SHUTDOWN:
            await leaving.wait()
        return message

    async def send(message: Message) -> None:
        told.append(message)
        started.set()

    async def lifespan() -> None:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    async def visit() -> None:
        await started.wait()
        await client()
        leaving.set()

    await together(lifespan, visit)
    return told


async def serve(app: App, client: Callable[[], Awaitable[object]]) -> None:
    """Run `client` without a lifespan."""
    await client()


MODES = {"lifespan": live, "no lifespan": serve}


def replacing_send(app: App) -> App:
    """A middleware of somebody else's, with a `send` of its own."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        async def resend(message: Message) -> None:
            await send(dict(message))

        await app(scope, receive, resend)

    return layer


def performance(app: App) -> App:
    return PerformanceMiddleware(app, registry=Registry())


WRAPS: dict[str, Wrap] = {
    "alone": BackgroundTaskMiddleware,
    "in the stack": lambda app, **options: PerfKit(app, background=options),  # noqa: PLW0108  # options is one argument there
    "the stack's only": lambda app, **options: PerfKit(app, performance=False, background=options),
    "inside of performance": lambda app, **options: performance(
        BackgroundTaskMiddleware(app, **options)
    ),
    "outside of performance": lambda app, **options: BackgroundTaskMiddleware(
        performance(app), **options
    ),
    "the stack inside of performance": lambda app, **options: performance(
        PerfKit(app, background=options)
    ),
    "twice": lambda app, **options: BackgroundTaskMiddleware(
        BackgroundTaskMiddleware(app, **options), **options
    ),
    "twice, send replaced between": lambda app, **options: BackgroundTaskMiddleware(
        replacing_send(BackgroundTaskMiddleware(app, **options)), **options
    ),
    "send replaced outside": lambda app, **options: performance(
        replacing_send(BackgroundTaskMiddleware(app, **options))
    ),
    "send replaced inside": lambda app, **options: BackgroundTaskMiddleware(
        replacing_send(performance(app)), **options
    ),
}


def counts() -> dict[str, int]:
    stats: dict[str, int] = get_runtime_stats()["background_tasks"]
    return stats


class Counted:
    """How the counts of background tasks have changed since; those that have not are left out."""

    def __init__(self) -> None:
        gc.collect()  # the middlewares of other tests are counted for as long as they are there
        self._before = counts()
        self._apps: list[App] = []

    def keep(self, app: App) -> App:
        """Hold on to a middleware, with which its counts would go."""
        self._apps.append(app)
        return app

    def since(self) -> dict[str, int]:
        changes = {name: number - self._before[name] for name, number in counts().items()}
        return {name: change for name, change in changes.items() if change}


def detach(function: Callable[[], Awaitable[None]]) -> object:
    """Run `function` in the context of now, apart from whoever calls this."""
    if asyncio._get_running_loop() is not None:
        return asyncio.ensure_future(function())
    import trio

    return trio.lowlevel.spawn_system_task(function, context=contextvars.copy_context())
