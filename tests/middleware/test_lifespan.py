"""The lifespan protocol: passed through where the app speaks it, answered for it where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import PerformanceMiddleware, Registry, get_performance_stats
from tests.support import LOGGER, App, Receive, Scope, Send, Server, forever

Run = Callable[..., Any]

STARTUP = {"type": "lifespan.startup"}
SHUTDOWN = {"type": "lifespan.shutdown"}
STARTUP_COMPLETE = {"type": "lifespan.startup.complete"}
SHUTDOWN_COMPLETE = {"type": "lifespan.shutdown.complete"}


def lifespan_scope() -> Scope:
    return {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}


def serve(
    run: Run, app: App, server: Server, scope: Scope | None = None, layers: int = 1
) -> Registry:
    registry = Registry()
    for _ in range(layers):
        app = PerformanceMiddleware(app, registry=registry)
    run(app, lifespan_scope() if scope is None else scope, server.receive, server.send)
    return registry


def test_an_app_that_speaks_it_is_left_alone(run: Run) -> None:
    """The messages pass in both directions, the very objects, and so do the scope and its state."""
    received: list[Any] = []
    scopes = []
    complete, done = dict(STARTUP_COMPLETE), dict(SHUTDOWN_COMPLETE)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        scope["state"]["pool"] = "open"
        received.append(await receive())
        await send(complete)
        received.append(await receive())
        await send(done)

    scope = lifespan_scope()
    server = Server(STARTUP, SHUTDOWN)
    registry = serve(run, app, server, scope)
    assert received[0] is STARTUP
    assert received[1] is SHUTDOWN
    assert server.heard[0] is complete
    assert server.heard[1] is done
    assert len(server.heard) == 2
    assert scopes[0] is scope
    assert scope["state"] == {"pool": "open"}
    assert get_performance_stats(registry=registry) == {}


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("Django can only handle ASGI/HTTP connections, not lifespan.")


async def returns(scope: Scope, receive: Receive, send: Send) -> None:
    return


@pytest.mark.parametrize("app", [raises, returns])
@pytest.mark.parametrize("layers", [1, 2])
def test_an_app_that_does_not_know_it_is_answered_for(
    app: App, layers: int, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Startup and shutdown are completed in the place of an app that raises or returns before it has listened."""
    caplog.set_level(logging.INFO, LOGGER)
    server = Server(STARTUP, SHUTDOWN)
    serve(run, app, server, layers=layers)
    assert server.heard == [STARTUP_COMPLETE, SHUTDOWN_COMPLETE]
    assert [record.levelname for record in caplog.records] == ["INFO"] * (app is raises)
    assert "Django" in caplog.text or app is returns


def test_messages_that_are_not_known_are_not_answered(run: Run) -> None:
    """A message of a later version of the protocol gets no answer from the kit."""
    server = Server(STARTUP, {"type": "lifespan.reload"}, SHUTDOWN)
    serve(run, raises, server)
    assert server.heard == [STARTUP_COMPLETE, SHUTDOWN_COMPLETE]


@pytest.mark.parametrize("stage", ["listened", "answered", "spoken first"])
def test_a_failure_of_a_startup_reaches_the_server(stage: str, run: Run) -> None:
    """An app that has begun to speak and then raises fails as it does without the kit: the same exception."""
    error = RuntimeError("no database")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if stage != "spoken first":
            await receive()
        if stage != "listened":
            await send(STARTUP_COMPLETE)
        raise error

    server = Server(STARTUP)
    with pytest.raises(RuntimeError) as caught:
        serve(run, app, server)
    assert caught.value is error
    assert server.heard == ([] if stage == "listened" else [STARTUP_COMPLETE])


def test_a_startup_that_the_app_declares_failed(run: Run) -> None:
    """`lifespan.startup.failed` passes as the app has sent it, and nothing is answered behind it."""
    failed = {"type": "lifespan.startup.failed", "message": "no database"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(failed)

    server = Server(STARTUP)
    serve(run, app, server)
    assert len(server.heard) == 1
    assert server.heard[0] is failed


def test_an_app_that_only_listens_is_not_answered_for(run: Run) -> None:
    """An app that returns after it has listened has had its say."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    server = Server(STARTUP)
    serve(run, app, server)
    assert server.heard == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_ends_the_process_is_not_answered(error: BaseException) -> None:
    """An interrupt before the app has listened is no sign of an app without lifespan."""
    server = Server(STARTUP)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    coro = PerformanceMiddleware(app, registry=Registry())(
        lifespan_scope(), server.receive, server.send
    )
    with pytest.raises(type(error)) as caught:
        coro.send(None)
    assert caught.value is error
    assert server.heard == []


def test_a_cancelled_startup_is_cancelled(run_trio: Run) -> None:
    """A startup that the server gives up is not answered for."""
    import trio

    server = Server(STARTUP)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await forever()

    async def main() -> None:
        with trio.move_on_after(0) as scope:
            await PerformanceMiddleware(app)(lifespan_scope(), server.receive, server.send)
        assert scope.cancelled_caught

    run_trio(main)
    assert (server.said, server.heard) == (0, [])


def test_what_the_server_raises_reaches_its_caller(run: Run) -> None:
    """Where the kit answers, an exception of the server's own `receive` comes out as it is."""
    error = OSError("gone")
    with pytest.raises(OSError, match="gone") as caught:
        serve(run, raises, Server(error))
    assert caught.value is error
