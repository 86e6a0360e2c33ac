"""What is noted of the messages of a request or connection: sizes, times, statuses; and that none is changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from asgi_perfkit import BackgroundTaskMiddleware, PerformanceMiddleware, Registry
from tests.support import (
    BODY,
    DISCONNECT,
    REQUEST,
    START,
    App,
    Clock,
    Receive,
    Scope,
    Send,
    Server,
    checkpoint,
    http_scope,
    outcomes,
    saying,
    statuses,
    the_figures,
    troubles,
    websocket_scope,
)

Run = Callable[..., Any]

CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept", "subprotocol": None, "headers": []}
CLOSE = {"type": "websocket.close", "code": 1000}


def serve(
    run: Run, registry: Registry, app: App, server: Server | None = None, scope: Scope | None = None
) -> Server:
    """Run one request or connection through the middleware; the server, that has heard it."""
    server = Server() if server is None else server
    middleware = PerformanceMiddleware(app, registry=registry, memory=None)
    run(middleware, http_scope() if scope is None else scope, server.receive, server.send)
    return server


def identical(heard: list[Any], said: list[Any]) -> bool:
    return len(heard) == len(said) and all(
        one is other for one, other in zip(heard, said, strict=True)
    )


def size(registry: Registry, metric: str) -> float:
    figures = the_figures(registry)[metric]
    assert figures["count"] == 1
    return round(figures["sum"], 9)  # the figures are floats, kept to the nanosecond


# Sizes


def test_response_bytes_are_counted(run: Run, registry: Registry) -> None:
    """The size of a response is the bytes of its body, of a stream all of them together."""
    chunks = [
        {"type": "http.response.body", "body": b"12345", "more_body": True},
        {"type": "http.response.body", "more_body": True},
        {"type": "http.response.body", "body": b"", "more_body": True},
        {"type": "http.response.body", "body": b"678"},
    ]
    server = serve(run, registry, saying(START, *chunks))
    assert identical(server.heard, [START, *chunks])
    assert size(registry, "response_size") == 8


def test_request_bytes_are_counted(run: Run, registry: Registry) -> None:
    """The size of a request is the bytes of its body that the app has received."""
    chunks: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"12345", "more_body": True},
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": b"678"},
    ]
    received = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.extend([await receive() for _ in chunks])
        await saying(START, BODY)(scope, receive, send)

    serve(run, registry, app, Server(*chunks))
    assert identical(received, chunks)
    assert size(registry, "request_size") == 8


def test_a_request_that_is_not_read_has_no_size(run: Run, registry: Registry) -> None:
    """What the app never asked for has neither a size nor a time."""
    serve(run, registry, saying(START, BODY))
    assert not {"request_size", "receive_time"} & the_figures(registry).keys()


def test_no_response_has_no_size(run: Run, registry: Registry) -> None:
    """Where no response has begun there is nothing to measure of it."""
    serve(run, registry, saying())
    assert (
        not {"processing_time", "response_time", "response_size", "send_time"}
        & the_figures(registry).keys()
    )
    assert the_figures(registry)["total_time"]["count"] == 1


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_a_body_that_never_leaves_the_server_has_no_size(
    method: str, status: int, run: Run, registry: Registry
) -> None:
    """A response to HEAD has no bytes, nor has a 204 or 304, whatever the app says."""
    serve(run, registry, saying({**START, "status": status}, BODY), scope=http_scope(method=method))
    assert size(registry, "response_size") == 0


def test_bytes_that_the_server_refuses_are_not_counted(run: Run, registry: Registry) -> None:
    """A byte counts when the server has taken it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({**BODY, "body": b"123", "more_body": True})
        with pytest.raises(OSError, match="gone"):
            await send({**BODY, "body": b"456789"})

    serve(run, registry, app, Server(hears=[None, None, OSError("gone")]))
    assert size(registry, "response_size") == 3


# Extensions of HTTP


def test_trailers_end_the_response(run: Run, registry: Registry) -> None:
    """A response with trailers is complete when they are sent, not before."""
    trailers = {"type": "http.response.trailers", "headers": [(b"a", b"b")], "more_trailers": False}
    first = {**trailers, "more_trailers": True}
    messages = [{**START, "trailers": True}, BODY, first, trailers]
    server = serve(run, registry, saying(*messages))
    assert identical(server.heard, messages)
    assert outcomes(registry) == {"ok": 1}
    assert the_figures(registry)["response_time"]["count"] == 1
    registry.reset()
    serve(run, registry, saying(*messages[:3]))
    assert outcomes(registry) == {"incomplete": 1}
    registry.reset()
    serve(run, registry, saying(*messages[:2]))
    assert outcomes(registry) == {"incomplete": 1}
    assert troubles(registry) == {}


def test_a_file_by_its_path(run: Run, registry: Registry, tmp_path: Path) -> None:
    """`http.response.pathsend` counts the bytes of the file, and ends the response."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1234)
    pathsend = {"type": "http.response.pathsend", "path": str(file)}
    server = serve(run, registry, saying(START, pathsend))
    assert identical(server.heard, [START, pathsend])
    assert size(registry, "response_size") == 1234
    assert outcomes(registry) == {"ok": 1}
    assert the_figures(registry)["response_time"]["count"] == 1
    assert troubles(registry) == {}


@pytest.mark.parametrize("as_number", [True, False], ids=["descriptor", "file"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 100),
        ({"offset": 30}, 70),
        ({"count": 20}, 20),
        ({"offset": 30, "count": 10}, 10),
        ({"offset": 1000}, 0),
    ],
    ids=repr,
)
def test_a_file_by_its_descriptor(
    as_number: bool,
    options: dict[str, int],
    expected: int,
    run: Run,
    registry: Registry,
    tmp_path: Path,
) -> None:
    """`http.response.zerocopysend` counts the bytes that it stands for, of a descriptor or a file object."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file:
        message = {
            "type": "http.response.zerocopysend",
            "file": file.fileno() if as_number else file,
            **options,
        }
        server = serve(run, registry, saying(START, message))
    assert identical(server.heard, [START, message])
    assert size(registry, "response_size") == expected
    assert outcomes(registry) == {"ok": 1}


def test_a_file_in_parts(run: Run, registry: Registry, tmp_path: Path) -> None:
    """`http.response.zerocopysend` may be one of many messages."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file:
        part = {"type": "http.response.zerocopysend", "file": file, "count": 60, "more_body": True}
        serve(run, registry, saying(START, part))
        assert outcomes(registry) == {"incomplete": 1}
        registry.reset()
        serve(run, registry, saying(START, part, BODY))
    assert size(registry, "response_size") == 64
    assert outcomes(registry) == {"ok": 1}


def test_files_and_trailers(run: Run, registry: Registry, tmp_path: Path) -> None:
    """A response that announces trailers is not complete with the file."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    start = {**START, "trailers": True}
    with path.open("rb") as file:
        for message in (
            {"type": "http.response.pathsend", "path": str(path)},
            {"type": "http.response.zerocopysend", "file": file},
        ):
            registry.reset()
            serve(run, registry, saying(start, message))
            assert outcomes(registry) == {"incomplete": 1}
            registry.reset()
            serve(
                run,
                registry,
                saying(start, message, {"type": "http.response.trailers", "headers": []}),
            )
            assert outcomes(registry) == {"ok": 1}


def test_a_file_that_is_missing_is_for_the_server_to_judge(
    run: Run, registry: Registry, tmp_path: Path
) -> None:
    """The server's error about a file reaches the app, and is no client that has left."""
    missing = {"type": "http.response.pathsend", "path": os.fspath(tmp_path / "missing")}
    error = FileNotFoundError("missing")
    with pytest.raises(FileNotFoundError) as caught:
        serve(run, registry, saying(START, missing), Server(hears=[None, error]))
    assert caught.value is error
    assert outcomes(registry) == {"error": 1}


@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.response.push", "path": "/style.css", "headers": []},
        {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
        {"type": "http.response.debug", "info": {"template": object()}},
    ],
    ids=lambda message: message["type"],
)
def test_messages_beside_the_response(message: Any, run: Run, registry: Registry) -> None:
    """Push, early hints and debug information pass, and are neither a start nor an end nor malformed."""
    server = serve(run, registry, saying(message, START, message, BODY))
    assert identical(server.heard, [message, START, message, BODY])
    assert outcomes(registry) == {"ok": 1}
    assert size(registry, "response_size") == 4
    assert troubles(registry) == {}


# Malformed messages


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "http.response.unknown"},
        {"type": "websocket.send", "text": "wrong protocol"},
        {"type": None},
        {"type": []},
        {"type": "http.response.start"},
        {"type": "http.response.start", "status": "200"},
        {"type": "http.response.start", "status": None},
        {"type": "http.response.start", "status": 1000},
        {"type": "http.response.start", "status": 99},
        {"type": "http.response.start", "status": True},
        {"type": "http.response.body", "body": 5},
        {"type": "http.response.pathsend"},
        {"type": "http.response.zerocopysend"},
        {"type": "http.response.zerocopysend", "file": None},
        {"type": "http.response.zerocopysend", "file": 0, "count": "many"},
        None,
        "http.response.start",
        ["type"],
        5,
    ],
    ids=repr,
)
def test_a_malformed_message_is_passed_on_and_counted(
    message: object, run: Run, registry: Registry
) -> None:
    """What the kit can not read it leaves for the server to judge, the very object, and goes on."""
    server = serve(run, registry, saying(message, START, BODY))
    assert identical(server.heard, [message, START, BODY])
    assert troubles(registry) == {"malformed_messages": 1}
    assert the_figures(registry)["total_time"]["count"] == 1


@pytest.mark.parametrize(
    "message", [{}, {"type": "http.unknown"}, {"type": "http.request", "body": 5}, None], ids=repr
)
def test_a_malformed_message_of_the_server_is_passed_on_and_counted(
    message: object, run: Run, registry: Registry
) -> None:
    """The app gets whatever the server says."""
    received = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(await receive())
        await saying(START, BODY)(scope, receive, send)

    serve(run, registry, app, Server(lambda: message))
    assert identical(received, [message])
    assert outcomes(registry) == {"ok": 1}
    assert troubles(registry) == {"malformed_messages": 1}


def test_a_second_start_is_the_servers_to_judge(run: Run, registry: Registry, clock: Clock) -> None:
    """An app that sends its start twice is recorded with the first."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(1)
        await send(START)
        clock.advance(1)
        await send({**START, "status": 500})
        await send(BODY)
        await send(BODY)

    server = serve(run, registry, app)
    assert len(server.heard) == 4
    assert statuses(registry) == {"200": 1}
    assert size(registry, "processing_time") == 1
    assert outcomes(registry) == {"ok": 1}


def test_a_status_of_the_enumeration(run: Run, registry: Registry) -> None:
    """A status may be an `http.HTTPStatus`: it is the number that counts."""
    serve(run, registry, saying({**START, "status": HTTPStatus.CREATED}, BODY))
    assert statuses(registry) == {"201": 1}
    assert troubles(registry) == {}


def test_a_message_is_read_before_it_is_handed_over(run: Run, registry: Registry) -> None:
    """A server may change the message that it gets; what was said counts."""
    start, body = dict(START), dict(BODY)
    server = Server(hears=[start.clear, body.clear])
    serve(run, registry, saying(start, body), server)
    assert outcomes(registry) == {"ok": 1}
    assert statuses(registry) == {"200": 1}
    assert size(registry, "response_size") == 4


# Times


def test_the_times_of_a_request(run: Run, registry: Registry, clock: Clock) -> None:
    """Each time is from where to where the reference says it is."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(1)
        assert (await receive())["more_body"]
        await receive()
        clock.advance(2)
        await send(START)
        clock.advance(4)
        await send({**BODY, "more_body": True})
        await send(BODY)
        clock.advance(8)

    def after(seconds: float, message: Any = None) -> Callable[[], Any]:
        def answer() -> Any:
            clock.advance(seconds)
            return message

        return answer

    server = Server(
        after(100, {**REQUEST, "more_body": True}),
        after(200, REQUEST),
        hears=[after(1000), after(2000), after(4000)],
    )
    serve(run, registry, app, server)
    expected = {
        "receive_time": 300,
        "processing_time": 303,
        "send_time": 7000,
        "response_time": 7307,
        "total_time": 7315,
    }
    figures = the_figures(registry)
    assert {metric: figures[metric]["sum"] for metric in expected} == pytest.approx(expected)


def test_the_wait_for_a_disconnect_is_no_upload(run: Run, registry: Registry, clock: Clock) -> None:
    """`receive_time` is the upload: who listens for the client to leave, behind the body, does not wait for it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await send(BODY)
        await receive()

    def later() -> Any:
        clock.advance(100)
        return DISCONNECT

    serve(run, registry, app, Server(REQUEST, later))
    assert size(registry, "receive_time") == 0
    assert outcomes(registry) == {"ok": 1}


def test_an_upload_that_breaks_off_has_taken_its_time(
    run: Run, registry: Registry, clock: Clock
) -> None:
    """The wait counts also where it ends in a disconnect or an exception."""

    def gone() -> Any:
        clock.advance(5)
        return DISCONNECT

    def broken() -> Any:
        clock.advance(6)
        raise ConnectionResetError

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()

    part = {**REQUEST, "more_body": True}
    serve(run, registry, app, Server(part, gone))
    assert size(registry, "receive_time") == 5
    registry.reset()
    with pytest.raises(ConnectionResetError):
        serve(run, registry, app, Server(part, broken))
    assert size(registry, "receive_time") == 6
    assert outcomes(registry) == {"error": 1}


# Websockets


def talking(*messages: Any, listens: int = 1) -> App:
    """An app that receives `listens` messages and then sends these."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(listens):
            await receive()
        await saying(*messages)(scope, receive, send)

    return app


def test_a_connection_is_measured(run: Run, registry: Registry, clock: Clock) -> None:
    """A connection has a time, its messages in both directions, and the status of its handshake."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() is CONNECT
        await send(ACCEPT)
        clock.advance(10)
        for _ in range(3):
            assert (await receive())["text"]
            await send({"type": "websocket.send", "text": "yes"})
            await send({"type": "websocket.send", "bytes": b"yes"})
        await send(CLOSE)

    words = [{"type": "websocket.receive", "text": text} for text in "abc"]
    serve(
        run,
        registry,
        app,
        Server(CONNECT, *words, hears=[lambda: clock.advance(1)]),
        websocket_scope(),
    )
    figures = the_figures(registry)
    assert figures["websocket_time"]["sum"] == 11
    assert figures["send_time"]["sum"] == 1
    assert figures["websocket_messages_in"]["sum"] == 3
    assert figures["websocket_messages_out"]["sum"] == 6
    assert figures["outcomes"] == {"ok": 1}
    assert figures["statuses"] == {"101": 1}
    assert not {"total_time", "response_size", "processing_time"} & figures.keys()
    assert troubles(registry) == {}


@pytest.mark.parametrize(
    ("app", "incoming", "outcome", "status"),
    [
        pytest.param(talking(ACCEPT, CLOSE), [], "ok", "101", id="closed by the app"),
        pytest.param(talking(CLOSE), [], "ok", "403", id="refused"),
        pytest.param(talking(ACCEPT), [], "incomplete", "101", id="left open"),
        pytest.param(talking(), [], "incomplete", None, id="left unanswered"),
        pytest.param(
            talking(
                {"type": "websocket.http.response.start", "status": 418, "headers": []},
                {"type": "websocket.http.response.body", "body": b"a", "more_body": True},
                {"type": "websocket.http.response.body", "body": b"b"},
            ),
            [],
            "ok",
            "418",
            id="denied with a response",
        ),
        pytest.param(
            talking(
                {"type": "websocket.http.response.start", "status": 418, "headers": []},
                {"type": "websocket.http.response.body", "body": b"a", "more_body": True},
            ),
            [],
            "incomplete",
            "418",
            id="denied with half a response",
        ),
        pytest.param(talking(listens=2), [1000], "ok", None, id="closed by the client"),
        pytest.param(talking(listens=2), [1001], "ok", None, id="the client goes away"),
        pytest.param(talking(listens=2), [1005], "ok", None, id="closed without a code"),
        pytest.param(talking(listens=2), [None], "ok", None, id="closed with no code at all"),
        pytest.param(talking(listens=2), [1006], "ok", None, id="connection lost"),
        pytest.param(talking(CLOSE, listens=2), [1006], "ok", "403", id="closed after it was lost"),
        pytest.param(talking(listens=3), [1000, 1006], "ok", None, id="lost after it was closed"),
    ],
)
def test_how_a_connection_ends(
    app: App,
    incoming: list[int | None],
    outcome: str,
    status: str | None,
    run: Run,
    registry: Registry,
) -> None:
    """Whoever ends it, a connection that has ended is ok, with whatever code: servers report 1006 also for others."""
    goodbyes = [
        {"type": "websocket.disconnect", **({"code": code} if code else {})} for code in incoming
    ]
    serve(run, registry, app, Server(CONNECT, *goodbyes), websocket_scope())
    assert outcomes(registry) == {outcome: 1}
    assert statuses(registry) == ({status: 1} if status else {})
    assert troubles(registry) == {}


@pytest.mark.parametrize(
    "message",
    [
        ACCEPT,
        {"type": "websocket.send", "text": "anybody there?"},
        CLOSE,
        {"type": "websocket.http.response.body", "body": b""},
    ],
    ids=lambda message: message["type"],
)
def test_a_connection_that_the_server_says_is_gone(
    message: Any, run: Run, registry: Registry
) -> None:
    """An OSError of `send` means that the client has left (ASGI 2.4), and reaches the app."""
    error = OSError("gone")
    with pytest.raises(OSError, match="gone") as caught:
        serve(run, registry, saying(message), Server(hears=[error]), websocket_scope())
    assert caught.value is error
    assert outcomes(registry) == {"disconnected": 1}
    assert the_figures(registry)["websocket_messages_out"]["sum"] == 0


def test_an_error_behind_the_close_is_an_error(run: Run, registry: Registry) -> None:
    """What `send` raises when the app has closed says nothing of the client."""
    with pytest.raises(OSError, match="closed"):
        serve(
            run,
            registry,
            saying(ACCEPT, CLOSE, ACCEPT),
            Server(hears=[None, None, OSError("closed")]),
            websocket_scope(),
        )
    assert outcomes(registry) == {"error": 1}


@pytest.mark.parametrize(
    "message",
    [
        {},
        None,
        {"type": "websocket.unknown"},
        {"type": "http.response.start", "status": 200},
        {"type": "websocket.http.response.start"},
        {"type": "websocket.http.response.start", "status": "418"},
    ],
    ids=repr,
)
def test_a_malformed_message_to_a_websocket(message: object, run: Run, registry: Registry) -> None:
    """The same holds for a connection: passed on in both directions, and counted."""
    received = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(await receive())
        await saying(message, ACCEPT, CLOSE)(scope, receive, send)

    server = serve(run, registry, app, Server(lambda: message), websocket_scope())
    assert identical(received, [message])
    assert identical(server.heard, [message, ACCEPT, CLOSE])
    assert outcomes(registry) == {"ok": 1}
    assert troubles(registry) == {"malformed_messages": 2}


# Time on the loop


def test_time_on_the_loop(run: Run, registry: Registry, clock: Clock) -> None:
    """`loop_time` is what the app uses between its waits, `longest_step` the longest of these stretches."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(1)
        await send(START)
        clock.advance(30)
        await checkpoint()
        clock.advance(4)
        await send(BODY)

    serve(run, registry, app)
    assert size(registry, "loop_time") == 35
    assert size(registry, "longest_step") == 30


def test_nothing_stands_in_for_an_exchange_before_its_end(run: Run) -> None:
    """Nor when one further in has recorded it and the app has returned: who is told of that may add tasks."""
    told: list[bool] = []

    class Told:
        def settle(self, account: Any) -> None:
            pass

        def ended(self, account: Any, endpoint: str | None, error: BaseException | None) -> None:
            told.append(account.closed and account.outlasting() is account)

    def note(scope: Scope, receive: Receive, send: Send) -> Any:
        send.__self__.profile = Told()  # type: ignore[attr-defined]
        return recorded(scope, receive, send)

    recorded = PerformanceMiddleware(saying(START, BODY), registry=Registry())
    server = Server()
    run(BackgroundTaskMiddleware(note), http_scope(), server.receive, server.send)
    assert told == [True]
