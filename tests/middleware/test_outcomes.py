"""How a request ends: each outcome, the very exception, and nothing left in flight."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from asgi_perfkit import (
    PerformanceMiddleware,
    Registry,
    get_performance_stats,
)
from asgi_perfkit.steps import Account, current_account
from tests.support import (
    BODY,
    DISCONNECT,
    REQUEST,
    START,
    App,
    Receive,
    Scope,
    Send,
    Server,
    Trouble,
    checkpoint,
    forever,
    http_scope,
    in_flight,
    outcomes,
    saying,
    statuses,
    together,
    websocket_scope,
)

Run = Callable[..., Any]


def serve(
    run: Run,
    registry: Registry,
    app: App,
    server: Server | None = None,
    scope: Scope | None = None,
    **options: Any,
) -> Server:
    """Run one request through a new middleware; the server, that has heard it."""
    server = Server() if server is None else server
    middleware = PerformanceMiddleware(app, registry=registry, **options)
    run(middleware, http_scope() if scope is None else scope, server.receive, server.send)
    return server


# Outcomes


def failing(*messages: Any, error: BaseException) -> App:
    """An app that sends these messages and then raises."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await saying(*messages)(scope, receive, send)
        raise error

    return app


def test_a_response_is_ok(run: Run, registry: Registry) -> None:
    """A request that is answered in full is ok, with its status."""
    serve(run, registry, saying({**START, "status": 404}, BODY))
    assert outcomes(registry) == {"ok": 1}
    assert statuses(registry) == {"404": 1}


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (START,),
        (START, {**BODY, "more_body": True}),
        (START, BODY),
        ({**START, "status": 500}, BODY),
    ],
    ids=[
        "before the response",
        "after its start",
        "during it",
        "behind it",
        "framework's 500, then raised again",
    ],
)
@pytest.mark.parametrize("error", [Trouble(), TimeoutError(), OSError()], ids=repr)
def test_an_exception_is_an_error(
    messages: Any, error: Exception, run: Run, registry: Registry
) -> None:
    """An exception of the app's is an error whenever it comes, with the status that was sent; the same object."""
    with pytest.raises(type(error)) as caught:
        serve(run, registry, failing(*messages, error=error))
    assert caught.value is error
    assert outcomes(registry) == {"error": 1}
    assert statuses(registry) == ({str(messages[0]["status"]): 1} if messages else {})
    assert in_flight(registry) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_what_ends_the_process_is_recorded(error: BaseException, registry: Registry) -> None:
    """An interrupt passes, and the request that it hit is an error."""
    coro = PerformanceMiddleware(failing(error=error), registry=registry)(
        http_scope(), forever, forever
    )
    with pytest.raises(type(error)) as caught:
        coro.send(None)
    assert caught.value is error
    assert outcomes(registry) == {"error": 1}
    assert in_flight(registry) == 0


@pytest.mark.parametrize(
    "messages",
    [(), (START,), (START, {**BODY, "more_body": True})],
    ids=["nothing", "start", "half a body"],
)
def test_a_response_that_is_not_finished_is_incomplete(
    messages: Any, run: Run, registry: Registry
) -> None:
    """An app that returns before it has said all has left its client waiting."""
    serve(run, registry, saying(*messages))
    assert outcomes(registry) == {"incomplete": 1}
    assert in_flight(registry) == 0


def test_an_app_that_is_called_and_raises_at_once(run: Run, registry: Registry) -> None:
    """An app need not be a coroutine function: what its call raises is recorded too."""
    error = Trouble()

    class Broken:
        def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
            raise error

    async def main() -> None:
        middleware = PerformanceMiddleware(Broken(), registry=registry)
        # Whatever asgiref makes of the call, it must not be taken for an app of two callables.
        middleware.app = Broken()
        with pytest.raises(Trouble) as caught:
            await middleware(http_scope(), forever, forever)  # type: ignore[arg-type]
        assert caught.value is error

    run(main)
    assert outcomes(registry) == {"error": 1}
    assert in_flight(registry) == 0


def hears_of_it(*before: Any, after: tuple[Any, ...] = (), error: Exception | None = None) -> App:
    """An app that sends messages, receives one, sends some more and may raise."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await saying(*before)(scope, receive, send)
        await receive()
        await saying(*after)(scope, receive, send)
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(
    "app",
    [
        hears_of_it(),
        hears_of_it(START),
        hears_of_it(START, {**BODY, "more_body": True}),
        hears_of_it(START, after=(BODY,)),
        hears_of_it(after=(START, BODY)),
        hears_of_it({**START, "trailers": True}, BODY),
    ],
    ids=[
        "nothing sent",
        "start sent",
        "half sent",
        "finished all the same",
        "answered all the same",
        "no trailers",
    ],
)
def test_a_client_that_leaves_before_the_last_byte_is_disconnected(
    app: App, run: Run, registry: Registry
) -> None:
    """Whoever leaves early is disconnected, whatever the app then makes of it."""
    serve(run, registry, app, Server(DISCONNECT))
    assert outcomes(registry) == {"disconnected": 1}
    assert in_flight(registry) == 0


def test_an_error_over_a_client_that_has_left_is_a_disconnect(run: Run, registry: Registry) -> None:
    """An app that raises because its client has left is no failing app."""
    error = Trouble()
    with pytest.raises(Trouble) as caught:
        serve(run, registry, hears_of_it(START, error=error), Server(DISCONNECT))
    assert caught.value is error
    assert outcomes(registry) == {"disconnected": 1}


def test_a_disconnect_behind_the_response_is_ok(run: Run, registry: Registry) -> None:
    """Servers report a disconnect after a complete response too: nobody has left early."""
    serve(run, registry, hears_of_it(START, BODY), Server(DISCONNECT))
    assert outcomes(registry) == {"ok": 1}


def test_a_disconnect_during_the_last_send_is_ok(run: Run, registry: Registry) -> None:
    """A listener may hear of a disconnect while the last message is on its way (hypercorn 0.18 does that)."""
    heard: list[Any] = []

    class Telling(Server):
        async def send(self, message: Any) -> None:
            await super().send(message)
            while message is BODY and not heard:
                await checkpoint()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            await saying(START, BODY)(scope, receive, send)

        async def listen() -> None:
            while len(server.heard) < 2:
                await checkpoint()
            heard.append(await receive())

        await together(listen, answer)

    server = Telling(DISCONNECT)
    serve(run, registry, app, server)
    assert heard == [DISCONNECT]
    assert outcomes(registry) == {"ok": 1}


@pytest.mark.parametrize(
    ("told", "outcome"), [(True, "ok"), (False, "incomplete")], ids=["told", "not told"]
)
def test_an_app_that_gives_up_its_last_send(
    told: bool, outcome: str, run: Run, registry: Registry
) -> None:
    """Who is told of the end while the last message is on the way need not wait for that; who is not told must."""

    class Stuck(Server):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message is BODY:
                await forever()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(saying(START, BODY), scope, receive, send)
            while len(server.heard) < 2:
                await checkpoint()
            if told:
                await receive()
            group.cancel_scope.cancel()

    server = Stuck(DISCONNECT)
    serve(run, registry, app, server)
    assert outcomes(registry) == {outcome: 1}
    assert in_flight(registry) == 0


@pytest.mark.parametrize("number", [0, 1, 2], ids=["start", "body", "last"])
def test_a_client_that_the_server_says_is_gone_is_disconnected(
    number: int, run: Run, registry: Registry
) -> None:
    """An OSError of `send` means that the client has left (ASGI 2.4); the app sees the very exception."""
    error = OSError("gone")
    hears = [None] * number + [error]
    with pytest.raises(OSError, match="gone") as caught:
        serve(run, registry, saying(START, {**BODY, "more_body": True}, BODY), Server(hears=hears))
    assert caught.value is error
    assert outcomes(registry) == {"disconnected": 1}
    assert in_flight(registry) == 0


def test_a_client_that_is_gone_may_be_ignored(run: Run, registry: Registry) -> None:
    """An app that swallows the server's OSError has still lost its client."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(OSError, match="gone"):
            await send(START)

    serve(run, registry, app, Server(hears=[OSError("gone")]))
    assert outcomes(registry) == {"disconnected": 1}


def test_another_error_of_the_server_is_an_error(run: Run, registry: Registry) -> None:
    """What else a server raises about a message is the app's error."""
    error = RuntimeError("Unexpected ASGI message")
    with pytest.raises(RuntimeError) as caught:
        serve(run, registry, saying(BODY), Server(hears=[error]))
    assert caught.value is error
    assert outcomes(registry) == {"error": 1}


def test_an_error_of_send_behind_the_response_is_an_error(run: Run, registry: Registry) -> None:
    """A complete response is not undone by what is sent behind it."""
    with pytest.raises(OSError, match="closed"):
        serve(
            run, registry, saying(START, BODY, BODY), Server(hears=[None, None, OSError("closed")])
        )
    assert outcomes(registry) == {"error": 1}


# Cancellation


class Gate:
    """A server that stops at its n-th call, forever, and says when."""

    def __init__(self, stop_at: int) -> None:
        self.calls = 0
        self.stop_at = stop_at
        self.reached = asyncio.Event()

    async def pause(self) -> None:
        self.calls += 1
        if self.calls == self.stop_at:
            self.reached.set()
            await forever()
        await checkpoint()

    async def receive(self) -> Any:
        await self.pause()
        return REQUEST

    async def send(self, message: Any) -> None:
        await self.pause()


def awaiting(gate: Gate, seen: list[BaseException]) -> App:
    """An app that awaits each kind of thing: receive, itself, a child, send, and cleans up when it is cancelled."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
            await gate.pause()
            await together(gate.pause)
            await send(START)
            await send({**BODY, "more_body": True})
            await send(BODY)
            await gate.pause()
        except BaseException as error:
            seen.append(error)
            raise
        finally:
            await checkpoint_shielded()

    return app


async def checkpoint_shielded() -> None:
    """A cleanup that suspends while its task is being cancelled."""
    if asyncio._get_running_loop() is not None:
        await checkpoint()
    else:
        import trio

        with trio.CancelScope(shield=True):
            await checkpoint()


STOPS = {
    1: "receive",
    2: "the app",
    3: "a child",
    4: "start",
    5: "body",
    6: "last",
    7: "behind the response",
}


@pytest.mark.parametrize("stop_at", STOPS, ids=STOPS.values())
def test_cancelled_at_each_await(stop_at: int, run_asyncio: Run, registry: Registry) -> None:
    """Wherever a request is cancelled it is recorded as that, and the CancelledError is the one the app has seen."""
    gate = Gate(stop_at)
    seen: list[BaseException] = []
    out: list[BaseException] = []

    async def request() -> None:
        try:
            await PerformanceMiddleware(awaiting(gate, seen), registry=registry)(
                http_scope(), gate.receive, gate.send
            )
        except BaseException as error:
            out.append(error)
            raise

    async def main() -> None:
        task = asyncio.ensure_future(request())
        waiting = asyncio.ensure_future(gate.reached.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        assert waiting.done()
        assert in_flight(registry) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run_asyncio(main)
    assert len(out) == len(seen) == 1
    assert out[0] is seen[0]
    assert outcomes(registry) == {"cancelled": 1}
    assert statuses(registry) == ({"200": 1} if stop_at >= 4 else {})
    assert in_flight(registry) == 0


@pytest.mark.parametrize("stop_at", STOPS, ids=STOPS.values())
def test_cancelled_at_each_await_on_trio(stop_at: int, run_trio: Run, registry: Registry) -> None:
    """Wherever trio cancels a request it is recorded as that, and what comes out is what the app has seen."""
    import trio

    gate = Gate(stop_at)
    seen: list[BaseException] = []
    out: list[BaseException] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def request() -> None:
                try:
                    await PerformanceMiddleware(awaiting(gate, seen), registry=registry)(
                        http_scope(), gate.receive, gate.send
                    )
                except BaseException as error:
                    out.append(error)
                    raise

            nursery.start_soon(request)
            await trio.testing.wait_all_tasks_blocked()
            assert gate.calls == stop_at
            assert in_flight(registry) == 1
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught

    run_trio(main)
    assert out[0] is seen[0]
    assert outcomes(registry) == {"cancelled": 1}
    assert in_flight(registry) == 0


def test_a_cancelled_task_that_never_began_is_no_request(
    run_asyncio: Run, registry: Registry
) -> None:
    """What is cancelled before its first step has not been called."""

    async def main() -> None:
        middleware = PerformanceMiddleware(saying(START, BODY), registry=registry)
        task = asyncio.ensure_future(middleware(http_scope(), forever, forever))  # type: ignore[arg-type]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_asyncio(main)
    assert get_performance_stats(registry=registry) == {}
    assert in_flight(registry) == 0


class Group(BaseException):
    """An exception group, as the package for Python 3.10 makes them: known by its `exceptions`."""

    def __init__(self, *exceptions: BaseException) -> None:
        self.exceptions = exceptions


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (Group(asyncio.CancelledError(), Group(asyncio.CancelledError())), "cancelled"),
        (Group(asyncio.CancelledError(), Trouble()), "error"),
        (Group(Group(Trouble()), asyncio.CancelledError()), "error"),
        (Group(), "error"),
    ],
    ids=["cancelled", "closed", "group", "mixed group", "nested mixed group", "empty group"],
)
def test_groups_of_cancellations(error: BaseException, outcome: str, registry: Registry) -> None:
    """A group is a cancellation if all that is in it is."""
    coro = PerformanceMiddleware(failing(error=error), registry=registry)(
        http_scope(), forever, forever
    )
    with pytest.raises(type(error)) as caught:
        coro.send(None)
    assert caught.value is error
    assert outcomes(registry) == {outcome: 1}


def test_a_group_of_trio_cancellations(run_trio: Run, registry: Registry) -> None:
    """trio's own Cancelled, alone or in a group, is a cancellation; together with an error it is an error."""
    import trio

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await forever()
        except trio.Cancelled as error:
            raise Group(error, *scope["more"]) from error

    async def main() -> None:
        for more in [], [Trouble()]:
            with trio.CancelScope() as scope:
                scope.cancel()
                with pytest.raises(Group):
                    await PerformanceMiddleware(app, registry=registry)(
                        http_scope(more=more), forever, forever
                    )  # type: ignore[arg-type]

    run_trio(main)
    assert outcomes(registry) == {"cancelled": 1, "error": 1}


def test_a_coroutine_that_is_closed_elsewhere(registry: Registry) -> None:
    """A request whose coroutine is closed from another context, as a garbage collection does, ends in order."""
    log = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
        finally:
            log.append("closed")

    class Waiting:
        def __await__(self) -> Any:
            yield

    async def receive() -> Any:
        await Waiting()

    coro = PerformanceMiddleware(app, registry=registry)(http_scope(), receive, receive)  # type: ignore[arg-type]
    contextvars.copy_context().run(coro.send, None)
    assert in_flight(registry) == 1
    elsewhere, another = contextvars.copy_context(), Account()
    elsewhere.run(current_account.set, another)
    elsewhere.run(coro.close)
    assert log == ["closed"]
    assert elsewhere[current_account] is another
    assert outcomes(registry) == {"cancelled": 1}
    assert in_flight(registry) == 0


def test_requests_in_flight_are_counted(run: Run, registry: Registry) -> None:
    """Requests and connections that have not returned are in flight."""
    counts = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await checkpoint()
        counts.append(in_flight(registry))
        await checkpoint()

    async def main() -> None:
        middleware = PerformanceMiddleware(app, registry=registry)

        async def request() -> None:
            await middleware(http_scope(), forever, forever)  # type: ignore[arg-type]

        async def connection() -> None:
            await middleware(websocket_scope(), forever, forever)  # type: ignore[arg-type]

        await together(request, connection, request)

    run(main)
    assert max(counts) == 3
    assert in_flight(registry) == 0
