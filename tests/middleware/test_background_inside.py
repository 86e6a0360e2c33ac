"""The middleware of an app that is mounted in another, and what is measured of the threads of tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    PerfKit,
    Registry,
    add_task,
    get_performance_stats,
    run_in_threadpool,
)
from tests.support import BODY, START, Receive, Scope, Send, http_scope

Run = Callable[..., Any]

PATIENCE_SECONDS = 10


class Life:
    """A server's lifespan, and a request to an app that lives."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.said: list[str] = []

    async def live(self, visit: Callable[[], Any]) -> None:
        """Start the app, do something, and shut it down."""
        messages = ["lifespan.startup", "lifespan.shutdown"]

        async def receive() -> dict[str, str]:
            if len(messages) == 1:
                await visit()
            return {"type": messages.pop(0)}

        async def send(message: dict[str, str]) -> None:
            self.said.append(message["type"])

        await self._app({"type": "lifespan", "asgi": {}}, receive, send)

    async def request(self) -> None:
        async def receive() -> dict[str, str]:
            raise AssertionError

        async def send(message: Any) -> None:
            self.said.append(message["type"])

        await self._app(http_scope(), receive, send)
        self.said.append("returned")


def mounted(app: Any) -> Any:
    """A router: it keeps the lifespan to itself, and puts a `send` of its own in place."""

    async def router(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return

        async def pass_on(message: Any) -> None:
            await send(message)

        await app(scope, receive, pass_on)

    return router


@pytest.mark.parametrize("inner", [BackgroundTaskMiddleware, PerfKit])
@pytest.mark.parametrize("outer", [BackgroundTaskMiddleware, PerfKit])
def test_the_tasks_of_a_mounted_app_are_those_of_the_app_around(
    outer: Any, inner: Any, run: Run
) -> None:
    """The mounted one gets no lifespan: the request would last as long as its tasks, and no shutdown would wait."""
    goes_on = threading.Event()

    def work() -> None:
        assert goes_on.wait(PATIENCE_SECONDS)
        life.said.append("worked")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        add_task(work)
        await send(START)
        await send(BODY)

    life = Life(outer(mounted(inner(app))))

    async def visit() -> None:
        await life.request()
        goes_on.set()

    async def main() -> None:
        await life.live(visit)

    run(main)
    assert life.said == [
        "lifespan.startup.complete",
        "http.response.start",
        "http.response.body",
        "returned",
        "worked",
        "lifespan.shutdown.complete",
    ]


def test_a_mounted_app_with_nobody_around_runs_its_own(run: Run) -> None:
    """In the call of its request, as behind a server that has no lifespan."""

    async def work() -> None:
        life.said.append("worked")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        add_task(work)
        await send(START)
        await send(BODY)

    life = Life(mounted(BackgroundTaskMiddleware(app)))

    async def main() -> None:
        await life.live(life.request)

    run(main)
    assert life.said[1:5] == ["http.response.start", "http.response.body", "worked", "returned"]


def test_the_thread_of_a_task_is_background_time(run: Run) -> None:
    """And no thread_time, which is that of the calls that requests, and tasks, make themselves."""
    registry = Registry()

    def in_a_thread() -> None:
        pass

    async def on_the_loop() -> None:
        await run_in_threadpool(in_a_thread)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        add_task(in_a_thread)
        add_task(in_a_thread)
        add_task(on_the_loop)
        await send(START)
        await send(BODY)

    life = Life(PerfKit(app, performance={"registry": registry}))

    async def main() -> None:
        await life.live(life.request)

    run(main)
    figures = get_performance_stats(registry=registry)
    assert figures["background_time"]["count"] == 3
    assert figures["thread_time"]["count"] == 1
