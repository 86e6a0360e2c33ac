"""What is answered with: JSON, and streams of rows and events, to whoever speaks ASGI."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

import asgi_perfkit
from asgi_perfkit import (
    JSON,
    NDJSON,
    ConfigurationError,
    EncodeError,
    Encoder,
    EventStream,
    JSONArray,
    PerfKit,
    PerformanceMiddleware,
    Registry,
    iterate_in_threadpool,
    send_json,
)
from asgi_perfkit.encoding import streams
from tests.conftest import Run
from tests.support import (
    DISCONNECT,
    REQUEST,
    App,
    Clock,
    Message,
    Trouble,
    checkpoint,
    forever,
    http_scope,
    outcomes,
    the_figures,
    together,
)


@pytest.fixture(autouse=True, scope="module")
def _clock() -> Iterator[None]:
    """Time stands still: on a busy machine rows would leave for having taken long."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(streams, "perf_counter_ns", Clock())
        yield


@pytest.fixture
def running_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "perf_counter_ns", time.perf_counter_ns)


ROWS = [{"id": number, "name": f"item {number}"} for number in range(3)]
LINES = b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in ROWS)


class Client:
    """The server's side: a request without a body, a client that stays until it leaves."""

    def __init__(self, *before: Message) -> None:
        self.heard: list[Message] = []
        self.gone: anyio.Event | None = None
        self.said: list[Message] = list(before or (REQUEST,))

    async def receive(self) -> Message:
        if self.said:
            return self.said.pop(0)
        if self.gone is None:
            self.gone = anyio.Event()
        await self.gone.wait()
        return DISCONNECT

    async def send(self, message: Message) -> None:
        await checkpoint()
        self.heard.append(message)

    async def leave(self) -> None:
        """Leave, once the app would be told of it."""
        while self.gone is None:
            await checkpoint()
        self.gone.set()

    async def ask(self, app: App, **items: Any) -> None:
        await app(http_scope(**items), self.receive, self.send)

    @property
    def status(self) -> int:
        assert self.heard[0]["type"] == "http.response.start"
        status: int = self.heard[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        headers = self.heard[0]["headers"]
        assert len(dict(headers)) == len(headers)
        return dict(headers)

    @property
    def body(self) -> bytes:
        assert {message["type"] for message in self.heard[1:]} <= {"http.response.body"}
        return b"".join(message["body"] for message in self.heard[1:])

    @property
    def ended(self) -> bool:
        return not self.heard[-1].get("more_body", False)


async def rows(*others: Any) -> AsyncIterator[Any]:
    for row in (*ROWS, *others):
        await checkpoint()
        yield row


STREAMS: dict[str, Callable[..., Any]] = {
    "NDJSON": NDJSON,
    "JSONArray": JSONArray,
    "EventStream": EventStream,
}
each_stream = pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)


# ---- JSON


def test_json_is_a_whole_response(run: Run) -> None:
    client = Client()
    run(client.ask, JSON({"a": [1, 2]}))
    assert client.status == 200
    assert client.headers == {b"content-type": b"application/json", b"content-length": b"11"}
    assert client.body == b'{"a":[1,2]}'
    assert len(client.heard) == 2
    assert client.ended


def test_json_with_a_status_and_headers(run: Run) -> None:
    headers = [("X-Trace", "café"), (b"Content-Type", "application/problem+json"), ("ETag", " 1 ")]
    client = Client()
    run(client.ask, JSON("no", 404, headers))
    assert client.status == 404
    assert client.headers == {
        b"x-trace": b"caf\xe9",
        b"content-type": b"application/problem+json",
        b"etag": b"1",
        b"content-length": b"4",
    }


def test_json_for_head_has_the_length_of_the_body_it_leaves_out(run: Run) -> None:
    client = Client()
    run(lambda: client.ask(JSON([1, 2]), method="HEAD"))
    assert client.headers[b"content-length"] == b"5"
    assert client.body == b""
    assert client.ended


def test_json_may_answer_many_requests() -> None:
    """Each start has headers of its own: who gets it may change them."""
    app = JSON([])
    for _ in range(2):
        client = Client()
        asyncio.run(client.ask(app))
        client.heard[0]["headers"].append((b"x-more", b"1"))
        assert len(client.headers) == 3


def test_json_that_cannot_be_made_is_refused_before_anything_is_sent(run: Run) -> None:
    client = Client()

    async def main() -> None:
        with pytest.raises(EncodeError):
            await client.ask(JSON(object()))

    run(main)
    assert client.heard == []


def test_send_json(run: Run) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send_json(send, [1], 201, {"X-Trace": "1"})

    client = Client()
    run(client.ask, app)
    assert client.status == 201
    assert client.headers == {
        b"content-type": b"application/json",
        b"x-trace": b"1",
        b"content-length": b"3",
    }
    assert client.body == b"[1]"


# ---- streams


def test_ndjson(run: Run) -> None:
    client = Client()
    run(client.ask, NDJSON(rows(), 203, [("x-trace", "1")]))
    assert client.status == 203
    assert client.headers == {b"content-type": b"application/x-ndjson", b"x-trace": b"1"}
    assert client.body == LINES
    assert client.ended


def test_a_json_array(run: Run) -> None:
    client = Client()
    run(client.ask, JSONArray(rows(), headers={"content-type": "application/vnd.items+json"}))
    assert client.headers == {b"content-type": b"application/vnd.items+json"}
    assert json.loads(client.body) == ROWS
    assert client.ended


def test_an_event_stream(run: Run) -> None:
    client = Client()
    run(client.ask, EventStream(rows(), [("x-trace", "1")]))
    assert client.headers == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-store",
        b"x-accel-buffering": b"no",
        b"x-trace": b"1",
    }
    events = client.body.decode().split("\n\n")
    assert events.pop() == ""
    assert [json.loads(event.removeprefix("data: ")) for event in events] == ROWS


def test_an_event_stream_begins_before_there_is_an_event(run: Run) -> None:
    """With a body message, without which a server keeps the headers to itself."""

    async def main() -> None:
        async def producer() -> AsyncIterator[int]:
            while len(client.heard) < 2:
                await checkpoint()
            yield 1

        client = Client()
        await client.ask(EventStream(producer()))
        assert client.heard[1] == {"type": "http.response.body", "body": b"", "more_body": True}
        assert client.body == b"data: 1\n\n"

    run(main)


@each_stream
def test_a_stream_without_rows(run: Run, make: Callable[..., Any]) -> None:
    client = Client()
    run(client.ask, make([]))
    assert client.body == {NDJSON: b"", JSONArray: b"[]\n", EventStream: b""}[make]
    assert client.headers[b"content-length"] == b"%d" % len(client.body)
    assert client.ended


def test_what_is_known_as_a_whole_has_its_length(run: Run) -> None:
    client = Client()
    run(client.ask, NDJSON(ROWS))
    assert client.headers[b"content-length"] == b"%d" % len(LINES)
    assert client.body == LINES
    assert len(client.heard) == 2


@each_stream
def test_head_is_answered_without_the_producer(run: Run, make: Callable[..., Any]) -> None:
    called = []

    def produce(*arguments: Any) -> Iterator[int]:
        called.append(arguments)
        yield 1

    for source in (produce, produce()):
        client = Client()
        run(lambda client=client, source=source: client.ask(make(source), method="HEAD"))
        assert client.headers[b"content-type"]
        assert b"content-length" not in client.headers
        assert client.body == b""
        assert client.ended
    assert called == []


@pytest.mark.parametrize("make", [NDJSON, JSONArray])
def test_a_function_makes_the_rows_of_each_request(run: Run, make: Callable[..., Any]) -> None:
    app = make(rows)
    bodies = set()
    for _ in range(2):
        client = Client()
        run(client.ask, app)
        bodies.add(client.body)
    (body,) = bodies
    assert b"item 2" in body


@each_stream
def test_what_can_be_iterated_over_again_answers_again(run: Run, make: Callable[..., Any]) -> None:
    app = make(ROWS)
    for _ in range(2):
        client = Client()
        run(client.ask, app)
        assert b"item 2" in client.body


@each_stream
@pytest.mark.parametrize("source", [rows, lambda: iter(ROWS)], ids=["async", "sync"])
def test_an_iterator_answers_once(
    run: Run, make: Callable[..., Any], source: Callable[[], Any]
) -> None:
    """A second time there would be no rows, and nothing to show it."""
    app = make(source())
    client = Client()
    run(client.ask, app)

    async def again() -> None:
        with pytest.raises(RuntimeError, match="give it a function"):
            await Client().ask(app)

    run(again)


def test_rows_from_a_thread(run: Run) -> None:
    client = Client()
    run(lambda: client.ask(NDJSON(iterate_in_threadpool(ROWS))))
    assert client.body == LINES


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([(b"last-event-id", b"42")], "42"),
        ([(b"Last-Event-ID", "ä".encode())], "ä"),
        ([(b"last-event-id", b"\xff")], "\ufffd"),
        ([(b"accept", b"*/*"), (b"last-event-id", b"")], ""),
    ],
)
def test_events_behind_the_last_that_the_client_has_seen(
    headers: list[tuple[bytes, bytes]], expected: str | None
) -> None:
    def events(last_event_id: str | None) -> Iterator[Any]:
        yield {"after": last_event_id}

    client = Client()
    asyncio.run(client.ask(EventStream(events), headers=headers))
    assert json.loads(client.body.removeprefix(b"data: ")) == {"after": expected}


@pytest.mark.usefixtures("running_clock")
def test_an_event_stream_is_kept_alive(run: Run) -> None:
    async def main() -> None:
        async def events() -> AsyncIterator[int]:
            while client.body.count(b":\n\n") < 3:
                await checkpoint()
            yield 1

        client = Client()
        await client.ask(EventStream(events(), keep_alive=0.001))
        assert client.body.endswith(b":\n\ndata: 1\n\n")

    run(main)


def test_an_event_stream_that_is_not_kept_alive(run: Run) -> None:
    async def main() -> None:
        async def events() -> AsyncIterator[int]:
            await anyio.sleep(0.01)
            yield 1

        client = Client()
        await client.ask(EventStream(events(), keep_alive=None))
        assert client.body == b"data: 1\n\n"

    run(main)


@each_stream
def test_a_client_that_leaves_ends_the_producer(run: Run, make: Callable[..., Any]) -> None:
    """Also where the body of the request has not been read."""

    async def main() -> None:
        ended = []

        async def producer() -> AsyncIterator[int]:
            try:
                yield 1
                await forever()
            finally:
                ended.append(True)

        part = {"type": "http.request", "body": b"x" * 1000, "more_body": True}
        client = Client(part, part, REQUEST)
        await together(lambda: client.ask(make(producer())), client.leave)
        assert ended
        assert client.said == []
        assert not client.ended

    run(main)


def test_a_client_that_left_before_is_noticed(run: Run) -> None:
    async def main() -> None:
        async def producer() -> AsyncIterator[int]:
            await forever()
            yield 1

        client = Client(DISCONNECT)
        await client.ask(NDJSON(producer()))
        assert client.heard == []

    run(main)


def test_a_receive_that_always_has_something_stops_nobody(run: Run) -> None:
    async def main() -> None:
        async def receive() -> Message:
            return REQUEST

        client = Client()
        await NDJSON(rows())(http_scope(), receive, client.send)
        assert client.body == LINES

    run(main)


def test_rows_that_are_made_of_the_body_receive_it_themselves(run: Run) -> None:
    async def main() -> None:
        parts = [
            {"type": "http.request", "body": b"%d" % number, "more_body": number < 5}
            for number in range(6)
        ]
        client = Client(*parts)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def doubled() -> AsyncIterator[int]:
                more = True
                while more:
                    await checkpoint()
                    message = await receive()
                    yield 2 * int(message["body"])
                    more = message["more_body"]

            await NDJSON(doubled(), watch=False)(scope, receive, send)

        await client.ask(app)
        assert client.body.split() == [b"0", b"2", b"4", b"6", b"8", b"10"]
        assert client.gone is None

    run(main)


# ---- failures


async def in_the_middle() -> AsyncIterator[Any]:
    yield ROWS[0]
    for _ in range(5):
        await checkpoint()
    raise Trouble("no more rows")


@each_stream
def test_an_error_in_the_middle_reaches_the_server(
    run: Run, make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent stays, and no last message makes a whole response of it."""

    async def main() -> None:
        client = Client()
        with pytest.raises(Trouble):
            await client.ask(make(in_the_middle()))
        assert b"item 0" in client.body
        assert not client.ended

    run(main)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("asgi_perfkit", logging.ERROR)


def test_an_error_line(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        client = Client()
        app = NDJSON(in_the_middle(), error_line=lambda error: {"error": str(error)})
        with pytest.raises(Trouble):
            await client.ask(app)
        assert client.body.splitlines()[1:] == [b'{"error":"no more rows"}']
        assert not client.ended

    run(main)
    assert len(caplog.records) == 1


@each_stream
def test_an_error_before_the_first_row_leaves_the_answer_to_the_app(
    run: Run, make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def producer() -> AsyncIterator[int]:
        raise Trouble
        yield 1

    async def main() -> None:
        client = Client()
        with pytest.raises(Trouble):
            await client.ask(make(producer()))
        assert client.heard == []

    run(main)
    assert caplog.records == []


def test_a_client_that_is_told_of_by_send(run: Run) -> None:
    """As servers may since ASGI 2.4; their own exception goes back to them."""

    async def main() -> None:
        ended = []

        async def producer() -> AsyncIterator[int]:
            try:
                yield 1
                await forever()
            finally:
                ended.append(True)

        async def send(message: Message) -> None:
            raise ConnectionResetError("gone")

        with pytest.raises(ConnectionResetError, match="gone"):
            await NDJSON(producer())(http_scope(), Client().receive, send)
        assert ended

    run(main)


# ---- refusals

BAD_HEADERS = [
    5,
    "ab",
    b"ab",
    ["ab"],
    [("a",)],
    [("a", "b", "c")],
    [("a", 1)],
    [(None, "b")],
    [("", "b")],
    [("a b", "c")],
    [("a:", "c")],
    [("a\n", "c")],
    [("ä", "c")],
    [("a", "b\r\nc: d")],
    [("a", "b\0")],
    [("a", "\u20ac")],
    [("Content-Length", "5")],
    [(b"transfer-encoding", b"chunked")],
    {"a": 1},
]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=repr)
@pytest.mark.parametrize("make", [JSON, *STREAMS.values()])
def test_headers_that_cannot_be_sent_are_refused(make: Callable[..., Any], headers: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{make.__name__}\(headers=\.\.\.\)"):
        make([], headers=headers)


@pytest.mark.parametrize("status", ["200", None, True, 2.0, 100, 199, 204, 205, 304, 600])
@pytest.mark.parametrize("make", [JSON, NDJSON, JSONArray])
def test_a_status_without_a_body_is_refused(make: Callable[..., Any], status: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{make.__name__}\(status=\.\.\.\)"):
        make([], status)


@pytest.mark.parametrize(
    "arguments", [{"status": 204}, {"headers": [("a\n", "b")]}], ids=["status", "headers"]
)
def test_send_json_refuses_as_json_does(arguments: dict[str, Any]) -> None:
    client = Client()
    with pytest.raises(ConfigurationError, match=r"^send_json\("):
        asyncio.run(send_json(client.send, [], **arguments))
    assert client.heard == []


@each_stream
@pytest.mark.parametrize("source", [None, 5, "text", b"bytes", bytearray(), {"a": 1}], ids=repr)
def test_what_is_no_series_of_rows_is_refused(make: Callable[..., Any], source: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{make.__name__}\(\)"):
        make(source)


@each_stream
@pytest.mark.parametrize("source", [5, "text", {"a": 1}], ids=repr)
def test_a_function_has_to_return_rows(make: Callable[..., Any], source: Any) -> None:
    app = make(lambda *arguments: source)
    with pytest.raises(ConfigurationError, match="has to return"):
        asyncio.run(Client().ask(app))


def test_an_error_line_that_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^NDJSON\(error_line=\.\.\.\)"):
        NDJSON([], error_line={"error": "?"})  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", ["15", True, 0, -1, float("inf"), float("nan")])
def test_a_keep_alive_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^EventStream\(keep_alive=\.\.\.\)"):
        EventStream([], keep_alive=seconds)


@pytest.mark.parametrize("make", [JSON, *STREAMS.values()])
@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_what_is_no_http_request_is_refused(make: Callable[..., Any], kind: str) -> None:
    client = Client()
    with pytest.raises(ConfigurationError, match="http requests and nothing else"):
        asyncio.run(make([])(http_scope(type=kind), client.receive, client.send))
    assert client.heard == []


# ---- in the stack


@pytest.mark.parametrize("make", [JSON, *STREAMS.values()])
def test_the_encoder_around_the_app_is_used(run: Run, make: Callable[..., Any]) -> None:
    encoder = Encoder(custom_encoders={complex: lambda value: [value.real, value.imag]})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await make([1 + 2j])(scope, receive, send)

    client = Client()
    run(client.ask, PerfKit(app, encoder={"encoder": encoder}))
    assert b"[1.0,2.0]" in client.body


@pytest.mark.usefixtures("running_clock")
@pytest.mark.parametrize("make", [JSON, *STREAMS.values()])
def test_the_time_of_the_encoding_is_one_figure(run: Run, make: Callable[..., Any]) -> None:
    """Of all rows together, whichever way the response ends."""
    registry = Registry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await make(ROWS * 1_000)(scope, receive, send)

    run(lambda: Client().ask(PerformanceMiddleware(app, registry=registry)))
    figures = the_figures(registry)
    assert figures["serialization_time"]["count"] == 1
    assert 0 < figures["serialization_time"]["sum"] < figures["total_time"]["sum"]


def test_the_time_of_the_encoding_is_known_of_a_stream_that_failed(run: Run) -> None:
    registry = Registry()

    async def main() -> None:
        with pytest.raises(Trouble):
            await Client().ask(PerformanceMiddleware(NDJSON(in_the_middle()), registry=registry))

    run(main)
    assert the_figures(registry)["serialization_time"]["count"] == 1
    assert outcomes(registry) == {"error": 1}


def test_a_client_that_has_left_is_recorded_as_such(run: Run) -> None:
    registry = Registry()

    async def main() -> None:
        async def producer() -> AsyncIterator[int]:
            yield 1
            await forever()

        client = Client()
        app = PerformanceMiddleware(NDJSON(producer()), registry=registry)
        await together(lambda: client.ask(app), client.leave)

    run(main)
    assert outcomes(registry)["disconnected"] == 1


# ---- in frameworks


async def ask(app: Any, path: str) -> tuple[int, str, bytes]:
    client = Client()
    await client.ask(app, path=path, raw_path=path.encode(), server=("test", 80), client=None)
    return client.status, client.headers[b"content-type"].decode(), client.body


def starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.routing import Route

    async def handler(request: Any) -> Any:
        return NDJSON(rows())

    return Starlette(routes=[Route("/returned", handler), Route("/route", NDJSON(rows))])


def starlette_with_layers() -> Any:
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.gzip import GZipMiddleware

    app = starlette_app()
    app.add_middleware(GZipMiddleware, minimum_size=1)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
    return app


def fastapi_app() -> Any:
    from fastapi import FastAPI, Response

    class ASGIResponse(Response):
        def __init__(self, app: Any) -> None:
            super().__init__()
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    app = FastAPI()

    @app.get("/returned")
    async def handler() -> ASGIResponse:
        return ASGIResponse(NDJSON(rows()))

    app.add_route("/route", NDJSON(rows))
    return app


def litestar_app() -> Any:
    from litestar import Litestar, get

    @get("/returned")
    async def handler() -> NDJSON:
        return NDJSON(rows())

    return Litestar([handler], openapi_config=None, logging_config=None)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (starlette_app, "/returned"),
        (starlette_app, "/route"),
        (starlette_with_layers, "/returned"),
        (fastapi_app, "/returned"),
        (fastapi_app, "/route"),
        (litestar_app, "/returned"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda app: app, PerfKit], ids=["bare", "PerfKit"])
# BaseHTTPMiddleware leaves it to the garbage collector.
@pytest.mark.filterwarnings("ignore:Async generator 'starlette.requests:ResourceWarning")
def test_frameworks_send_what_their_handlers_return(
    run: Run, make: Callable[[], Any], path: str, wrap: Callable[[Any], Any]
) -> None:
    assert run(ask, wrap(make()), path) == (200, "application/x-ndjson", LINES)


def test_a_framework_s_own_error_handling_sees_an_error_before_the_first_row(run: Run) -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def producer() -> AsyncIterator[int]:
        await checkpoint()
        raise Trouble
        yield 1

    async def handler(request: Any) -> Any:
        return NDJSON(producer())

    async def answer(request: Any, error: Exception) -> Any:
        return PlainTextResponse("sorry", 503)

    app = Starlette(routes=[Route("/", handler)], exception_handlers={Trouble: answer})
    status, _, body = run(ask, app, "/")
    assert (status, body) == (503, b"sorry")


def test_the_names_are_public() -> None:
    names = {"JSON", "NDJSON", "JSONArray", "EventStream", "Event", "send_json"}
    assert names <= set(asgi_perfkit.__all__)
