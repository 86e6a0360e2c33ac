"""More than one middleware around one app: what is recorded where, and that the same request is not opened twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    PerformanceMiddleware,
    Registry,
    get_performance_stats,
    measure,
)
from tests.support import (
    BODY,
    REQUEST,
    START,
    App,
    Clock,
    Receive,
    Scope,
    Send,
    Server,
    Trouble,
    http_scope,
    in_flight,
    outcomes,
    saying,
    the_figures,
    together,
    websocket_scope,
)

Run = Callable[..., Any]


class Seen:
    """An app that notes which `send` it is given."""

    def __init__(self) -> None:
        self.sends: list[Send] = []

    def __call__(self, app: App) -> App:
        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            self.sends.append(send)
            await app(scope, receive, send)

        return layer


def wrapping_send(app: App) -> App:
    """A middleware of somebody else's, with a `send` of its own."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        async def shortening(message: Any) -> None:
            if "body" in message:
                message = {**message, "body": message["body"][:1]}
            await send(message)

        await app(scope, receive, shortening)

    return layer


@pytest.mark.parametrize("scope", [http_scope(), websocket_scope()], ids=["http", "websocket"])
def test_with_nothing_between_the_inner_one_uses_the_same_exchange(scope: Scope, run: Run) -> None:
    """The app gets the very `send` that the outer middleware has made: nothing is wrapped twice."""
    seen = Seen()
    registries = Registry(), Registry()
    app = seen(saying(START, BODY))
    inner = PerformanceMiddleware(app, registry=registries[0])
    server = Server()
    run(
        PerformanceMiddleware(seen(inner), registry=registries[1]),
        scope,
        server.receive,
        server.send,
    )
    outer_send, inner_send = seen.sends
    assert outer_send == inner_send
    assert outer_send != server.send


def test_one_request_is_recorded_once_in_one_registry(run: Run) -> None:
    """Middlewares with the same registry and nothing between them record one request."""
    registry = Registry()
    open_inside = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        open_inside.append(in_flight(registry))
        await saying(START, BODY)(scope, receive, send)

    layers: App = app
    for _ in range(3):
        layers = PerformanceMiddleware(layers, registry=registry)
    server = Server()
    run(layers, http_scope(), server.receive, server.send)
    assert outcomes(registry) == {"ok": 1}
    assert the_figures(registry)["total_time"]["count"] == 1
    assert open_inside == [1]
    assert in_flight(registry) == 0


def test_one_request_is_recorded_in_each_registry(run: Run, clock: Clock) -> None:
    """Middlewares with different registries record the same facts, each when its own app has returned."""
    inside, outside = Registry(), Registry()
    open_inside = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        open_inside.append((in_flight(inside), in_flight(outside)))
        clock.advance(1)
        await send(START)
        await send(BODY)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await PerformanceMiddleware(app, registry=inside)(scope, receive, send)
        assert (in_flight(inside), in_flight(outside)) == (0, 1)
        clock.advance(10)

    server = Server()
    run(PerformanceMiddleware(slow, registry=outside), http_scope(), server.receive, server.send)
    assert open_inside == [(1, 1)]
    assert (in_flight(inside), in_flight(outside)) == (0, 0)
    assert (
        the_figures(inside)["processing_time"]["sum"]
        == the_figures(outside)["processing_time"]["sum"]
        == 1
    )
    assert (
        the_figures(inside)["response_size"]["sum"]
        == the_figures(outside)["response_size"]["sum"]
        == 4
    )
    assert the_figures(inside)["total_time"]["sum"] == 1
    assert the_figures(outside)["total_time"]["sum"] == 11


def test_each_registry_has_the_outcome_that_it_has_seen(run: Run) -> None:
    """An error that is handled between two middlewares is an error inside and none outside."""
    inside, outside = Registry(), Registry()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Trouble

    async def handling(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await PerformanceMiddleware(app, registry=inside)(scope, receive, send)
        except Trouble:
            await saying({**START, "status": 500}, BODY)(scope, receive, send)

    server = Server()
    run(
        PerformanceMiddleware(handling, registry=outside), http_scope(), server.receive, server.send
    )
    assert outcomes(inside) == {"error": 1}
    assert outcomes(outside) == {"ok": 1}
    assert (in_flight(inside), in_flight(outside)) == (0, 0)


def test_where_send_is_wrapped_each_measures_what_it_sees(run: Run) -> None:
    """Behind a middleware that changes the bytes the inner one opens an exchange of its own."""
    inside, outside = Registry(), Registry()
    inner = PerformanceMiddleware(saying(START, BODY), registry=inside)
    server = Server()
    run(
        PerformanceMiddleware(wrapping_send(inner), registry=outside),
        http_scope(),
        server.receive,
        server.send,
    )
    assert the_figures(inside)["response_size"]["sum"] == 4
    assert the_figures(outside)["response_size"]["sum"] == 1
    assert (in_flight(inside), in_flight(outside)) == (0, 0)


def test_where_send_is_wrapped_one_registry_gets_one(run: Run) -> None:
    """One request is one in a registry that two middlewares share, as the outer one has seen it."""
    registry = Registry()
    inner = PerformanceMiddleware(saying(START, BODY), registry=registry)

    async def copying(scope: Scope, receive: Receive, send: Send) -> None:
        await wrapping_send(inner)({**scope}, receive, send)

    server = Server()
    run(
        PerformanceMiddleware(copying, registry=registry), http_scope(), server.receive, server.send
    )
    assert outcomes(registry) == {"ok": 1}
    assert the_figures(registry)["response_size"]["sum"] == 1
    assert in_flight(registry) == 0


def test_a_request_within_a_request_is_another_one(run: Run) -> None:
    """An app that calls a wrapped app with a request of its own has both recorded."""
    registry = Registry()
    inner = PerformanceMiddleware(saying(START, BODY), registry=registry)

    async def calling(scope: Scope, receive: Receive, send: Send) -> None:
        other = Server()
        await inner(http_scope("/inner"), other.receive, other.send)
        await saying(START, BODY)(scope, receive, send)

    server = Server()
    run(
        PerformanceMiddleware(calling, registry=registry),
        http_scope("/outer"),
        server.receive,
        server.send,
    )
    assert set(get_performance_stats(by="endpoint", registry=registry)) == {
        "GET /inner",
        "GET /outer",
    }
    assert outcomes(registry) == {"ok": 2}
    assert in_flight(registry) == 0


def test_what_is_measured_is_in_each_registry(run: Run) -> None:
    """With a shared exchange both registries have the timings of one's own, the inner those until it ends."""
    inside, outside = Registry(), Registry()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with measure("step"):
            await send(START)
        await send(BODY)

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        await PerformanceMiddleware(app, registry=inside)(scope, receive, send)
        with measure("afterwards"):
            pass

    server = Server()
    run(PerformanceMiddleware(between, registry=outside), http_scope(), server.receive, server.send)
    assert the_figures(outside)["step"]["count"] == 1
    assert the_figures(outside)["afterwards"]["count"] == 1
    assert the_figures(inside)["step"]["count"] == 1
    assert "afterwards" not in the_figures(inside)


def test_many_timings_are_in_each_registry_once(run: Run) -> None:
    """The same holds where there are so many that they are condensed meanwhile."""
    inside, outside = Registry(), Registry()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(300):
            with measure("step"):
                pass

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        await PerformanceMiddleware(app, registry=inside)(scope, receive, send)
        for _ in range(300):
            with measure("step"):
                pass

    server = Server()
    run(PerformanceMiddleware(between, registry=outside), http_scope(), server.receive, server.send)
    assert the_figures(outside)["step"]["count"] == 600
    assert the_figures(inside)["step"]["count"] == 300


def test_a_receive_that_was_wrapped_between_is_kept(run: Run) -> None:
    """The app gets the `receive` of whatever stands before it, also where the exchange is shared."""
    received = []
    fresh = {"type": "http.request", "body": b"decoded"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(await receive())

    async def decoding(scope: Scope, receive: Receive, send: Send) -> None:
        async def decode() -> Any:
            await receive()
            return fresh

        await PerformanceMiddleware(app, registry=Registry())(scope, decode, send)

    server = Server(REQUEST)
    run(
        PerformanceMiddleware(decoding, registry=Registry()),
        http_scope(),
        server.receive,
        server.send,
    )
    assert received[0] is fresh


def test_time_on_the_loop_is_charged_to_each_exchange(run: Run, clock: Clock) -> None:
    """Steps of an app inside of two exchanges count for both."""
    inside, outside = Registry(), Registry()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(1)
        await send(START)
        clock.advance(2)
        await send(BODY)

    inner = PerformanceMiddleware(app, registry=inside)
    server = Server()
    run(
        PerformanceMiddleware(wrapping_send(inner), registry=outside),
        http_scope(),
        server.receive,
        server.send,
    )
    assert the_figures(inside)["loop_time"]["sum"] == 3
    assert the_figures(outside)["loop_time"]["sum"] == 3


def test_child_tasks_are_charged_to_each_exchange(run: Run, clock: Clock) -> None:
    """Child tasks of an app inside of two exchanges count for both, too."""
    inside, outside = Registry(), Registry()

    async def child() -> None:
        clock.advance(1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await together(child)
        await saying(START, BODY)(scope, receive, send)

    inner = PerformanceMiddleware(app, registry=inside)
    server = Server()
    run(
        PerformanceMiddleware(wrapping_send(inner), registry=outside),
        http_scope(),
        server.receive,
        server.send,
    )
    assert the_figures(inside)["loop_time"]["sum"] == 1
    assert the_figures(outside)["loop_time"]["sum"] == 1


def test_exchanges_are_nested_in_the_context_and_restored(run: Run) -> None:
    """After an inner exchange has ended, timings go to the outer one again."""
    inside, outside = Registry(), Registry()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with measure("inner"):
            pass
        await saying(START, BODY)(scope, receive, send)

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        await wrapping_send(PerformanceMiddleware(app, registry=inside))(scope, receive, send)
        with measure("outer"):
            pass

    server = Server()
    run(PerformanceMiddleware(between, registry=outside), http_scope(), server.receive, server.send)
    assert "inner" in the_figures(inside)
    assert "outer" not in the_figures(inside)
    assert "outer" in the_figures(outside)
    assert "inner" not in the_figures(outside)


def test_a_bound_method_of_another_object_is_no_exchange(run: Run) -> None:
    """A server whose `send` is a method of its own is recognised as a stranger."""
    registry = Registry()
    server = Server()
    assert server.send.__self__ is server  # type: ignore[attr-defined]
    run(
        PerformanceMiddleware(saying(START, BODY), registry=registry),
        http_scope(),
        server.receive,
        server.send,
    )
    assert outcomes(registry) == {"ok": 1}


def test_an_exchange_that_is_over_is_not_recorded_again() -> None:
    """A task that outlives its request and calls a wrapped app does not have the old request counted twice."""
    registry = Registry()

    async def main() -> None:
        over = asyncio.Event()
        tasks = []
        inner = PerformanceMiddleware(saying(), registry=registry)

        async def afterwards(scope: Scope, receive: Receive, send: Send) -> None:
            await over.wait()
            await inner(scope, receive, send)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await saying(START, BODY)(scope, receive, send)
            tasks.append(asyncio.ensure_future(afterwards(http_scope("/other"), receive, send)))

        server = Server()
        await PerformanceMiddleware(app, registry=registry)(
            http_scope("/first"), server.receive, server.send
        )
        over.set()
        await tasks[0]

    asyncio.run(main())
    stats = get_performance_stats(by="endpoint", registry=registry)
    assert stats["GET /first"]["outcomes"] == {"ok": 1}
    assert stats["GET /other"]["outcomes"] == {"incomplete": 1}


@pytest.mark.parametrize("times", [1, 700])  # so many are counted before the end
def test_what_nobody_records_inside_is_recorded_further_out(times: int, run: Run) -> None:
    """An exchange that another middleware has opened behind a foreign `send` hands on what was measured in it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(times):
            with measure("part"):
                pass
        await saying(START, BODY)(scope, receive, send)

    registry = Registry()
    inner = BackgroundTaskMiddleware(app)
    server = Server()
    measured = PerformanceMiddleware(wrapping_send(inner), registry=registry)
    run(measured, http_scope(), server.receive, server.send)
    assert the_figures(registry)["part"]["count"] == times
