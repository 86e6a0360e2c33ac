"""What is compressed on its way out, and what is left as it is."""

from __future__ import annotations

import asyncio
import copy
import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from hypothesis import given
from hypothesis import strategies as st

from asgi_perfkit import PerfKit, Registry, ResponseEncoderMiddleware
from asgi_perfkit.encoding.compression import Gzip, Stream
from tests.encoding.decoding import CODINGS, Reader, decompressed
from tests.support import (
    App,
    Clock,
    Message,
    Scope,
    Trouble,
    checkpoint,
    forever,
    http_scope,
    outcomes,
    saying,
    the_figures,
    together,
    websocket_scope,
)

Headers = list[tuple[bytes, bytes]]

TEXT = b"".join(b'{"id": %d, "name": "kettle", "price": 24.50}\n' % number for number in range(99))
LARGE = TEXT * 50
NOISE = random.Random(5).randbytes(4_000)
JSON = (b"content-type", b"application/json")


def start(*headers: tuple[bytes, bytes], **more: Any) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": list(headers), **more}


def body(data: bytes, *, more: bool | None = None) -> Message:
    message = {"type": "http.response.body", "body": data}
    return message if more is None else {**message, "more_body": more}


def declared(data: bytes) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(data)


def request(accept: str | None = "gzip", **items: Any) -> Scope:
    headers = [(b"host", b"testserver")]
    if accept is not None:
        headers.append((b"accept-encoding", accept.encode()))
    return http_scope(**{"headers": headers, **items})


async def heard_from(app: App, scope: Scope) -> list[Message]:
    """All that the server hears of a response."""
    heard: list[Message] = []

    async def send(message: Message) -> None:
        heard.append(message)
        await checkpoint()

    await app(scope, None, send)
    return heard


async def answer(*messages: Message, accept: str | None = "gzip", **options: Any) -> list[Message]:
    """What the server hears of an app that sends `messages`."""
    app = ResponseEncoderMiddleware(saying(*messages), **{"compression": CODINGS, **options})
    return await heard_from(app, request(accept))


def values(message: Message, name: bytes) -> list[bytes]:
    return [value for key, value in message["headers"] if key.lower() == name]


def read(messages: list[Message]) -> bytes:
    """The body that a client reads in `messages`, which are a response as a whole."""
    first, *bodies = messages
    (coding,) = values(first, b"content-encoding")
    assert all(message["type"] == "http.response.body" for message in bodies)
    assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [
        False
    ]
    received = b"".join(message.get("body", b"") for message in bodies)
    for length in values(first, b"content-length"):
        assert int(length) == len(received)
    return decompressed(coding, received)


# ---- whole bodies


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("data", [TEXT, LARGE], ids=["small", "large"])
def test_a_whole_body(run: Any, coding: str, data: bytes) -> None:
    """It is shorter, the headers say what it is and how long, and what the app has sent is as the app has made it."""
    messages = [start(JSON, declared(data), (b"x-other", b"1")), body(data)]
    sent = copy.deepcopy(messages)
    first, last = heard = run(lambda: answer(*messages, accept=coding))
    assert read(heard) == data
    assert sorted(first["headers"]) == sorted(
        [
            JSON,
            (b"x-other", b"1"),
            (b"vary", b"Accept-Encoding"),
            (b"content-encoding", coding.encode()),
            (b"content-length", b"%d" % len(last["body"])),
        ]
    )
    assert len(last["body"]) < len(data) / 5
    assert messages == sent


def test_the_servers_preference_and_the_clients_weights(run: Any) -> None:
    """The order that was given, among what the client likes best; a field may come in several lines."""

    async def main() -> None:
        async def coding(scope: Scope, **options: Any) -> list[bytes]:
            app = ResponseEncoderMiddleware(saying(start(), body(TEXT)), **options)
            return values((await heard_from(app, scope))[0], b"content-encoding")

        browser = request("gzip, deflate, br, zstd")
        assert await coding(browser, compression=True) == [b"zstd"]
        assert await coding(browser, compression=("br", "gzip")) == [b"br"]
        assert await coding(browser, compression=["gzip"]) == [b"gzip"]
        assert await coding(request("gzip, br;q=0.5"), compression=True) == [b"gzip"]
        lines = [(b"accept-encoding", b"br;q=0.9"), (b"accept-encoding", b"gzip;q=0.5")]
        assert await coding(request(headers=lines), compression=True) == [b"br"]

    run(main)


def test_a_body_without_content_length(run: Any) -> None:
    """It gets one; what is short is left as it is."""
    first, _ = heard = run(lambda: answer(start(), body(TEXT)))
    assert read(heard) == TEXT
    assert values(first, b"content-length")


def test_a_start_without_headers(run: Any) -> None:
    """They are optional."""
    bare = {"type": "http.response.start", "status": 200}
    assert read(run(lambda: answer(bare, body(TEXT)))) == TEXT
    assert "headers" not in bare


@pytest.mark.parametrize("shape", [list, tuple, iter, lambda headers: (each for each in headers)])
@pytest.mark.parametrize("pair", [list, tuple])
def test_headers_of_any_shape(run: Any, shape: Any, pair: Any) -> None:
    """Names in any case; lists, tuples, and what can be read but once, whether or not something is compressed."""
    headers = [
        pair((b"Content-Type", b"Text/HTML; charset=utf-8")),
        pair((b"Content-LENGTH", declared(TEXT)[1])),
        pair((b"VARY", b"Cookie")),
        pair((b"eTag", b'"1"')),
    ]

    async def main() -> None:
        message = {"type": "http.response.start", "status": 200, "headers": shape(headers)}
        first, _ = heard = await answer(message, body(TEXT))
        assert read(heard) == TEXT
        assert values(first, b"vary") == [b"Cookie, Accept-Encoding"]
        assert values(first, b"etag") == [b'W/"1"']
        assert len(values(first, b"content-length")) == 1
        for accept in (None, "gzip"):
            message = {"type": "http.response.start", "status": 404, "headers": shape(headers[2:])}
            first, last = await answer(message, body(b"short"), accept=accept)
            assert last["body"] == b"short"
            assert values(first, b"etag") == [b'"1"']

    run(main)


def test_what_does_not_get_smaller_is_sent_as_it_is(run: Any) -> None:
    """A cache is told all the same: another body may."""
    whole = body(NOISE)
    first, last = run(lambda: answer(start(declared(NOISE), (b"etag", b'"1"')), whole))
    assert last is whole
    assert first["headers"] == [
        declared(NOISE),
        (b"etag", b'"1"'),
        (b"vary", b"Accept-Encoding"),
    ]


@pytest.mark.parametrize(
    "content_type",
    [
        b"text/html; charset=utf-8",
        b"text/event-stream",
        b"application/json",
        b"application/problem+json",
        b"application/javascript",
        b"application/xhtml+xml",
        b"application/wasm",
        b"application/x-zipper",
        b"image/svg+xml",
        b"IMAGE/SVG+XML; charset=utf-8",
        b"image/bmp",
        b"font/ttf",
        b"",
    ],
)
def test_types_that_get_smaller(run: Any, content_type: bytes) -> None:
    first = start((b"content-type", content_type), declared(TEXT))
    assert read(run(lambda: answer(first, body(TEXT)))) == TEXT


# ---- what is left as it is

UNTOUCHED: dict[str, Message] = {
    **{
        f"status {status}": start(JSON, declared(TEXT), status=status)
        for status in (100, 103, 199, 204, 206, 304)
    },
    **{
        f"type {kind}": start((b"Content-Type", kind.encode()), declared(TEXT))
        for kind in (
            "image/png",
            "IMAGE/JPEG",
            "image/webp; x=y",
            "video/mp4",
            "audio/ogg",
            "font/woff",
            "font/woff2",
            "application/zip",
            "application/gzip",
            "application/zstd",
            "application/pdf",
            "application/octet-stream",
            "application/grpc+proto",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            "multipart/byteranges; boundary=THIS_STRING_SEPARATES",
        )
    },
    **{
        f"{name}: {value}": start(JSON, declared(TEXT), (name.encode(), value.encode()))
        for name, value in (
            ("Content-Encoding", "gzip"),
            ("content-encoding", "identity"),
            ("content-encoding", ""),
            ("cache-control", "public, No-Transform"),
            ("Content-Range", "bytes 0-99/200"),
            ("content-digest", "sha-256=:AAAA:"),
            ("Repr-Digest", "sha-256=:AAAA:"),
            ("digest", "sha-256=AAAA"),
            ("content-md5", "AAAA"),
            ("Transfer-Encoding", "gzip, chunked"),
        )
    },
    "no-transform in a second line": start(
        JSON, (b"cache-control", b"max-age=5"), (b"cache-control", b"no-transform")
    ),
}


@pytest.mark.parametrize("accept", ["gzip", None])
@pytest.mark.parametrize("first", UNTOUCHED.values(), ids=UNTOUCHED)
def test_left_as_it_is(run: Any, first: Message, accept: str | None) -> None:
    """The very messages, as a whole and as a stream, whatever the client accepts."""

    async def main() -> None:
        for bodies in ([body(TEXT)], [body(TEXT, more=True), body(b"", more=True), body(b"")]):
            heard = await answer(first, *bodies, accept=accept)
            assert [id(message) for message in heard] == [id(each) for each in (first, *bodies)]

    run(main)


@pytest.mark.parametrize(
    ("messages", "minimum_size"),
    [
        ([start(JSON, declared(TEXT[:499])), body(TEXT[:499])], 500),
        ([start(JSON), body(TEXT[:499])], 500),
        ([start(JSON), body(TEXT[:499], more=False)], 500),
        ([start(JSON, declared(TEXT[:9])), body(TEXT[:4], more=True), body(TEXT[4:9])], 10),
        ([start(JSON), body(b"")], 0),
        ([start(JSON), {"type": "http.response.body"}], 0),
        ([start(JSON), {"type": "http.response.body", "body": None}], 0),
    ],
)
def test_a_small_body_is_left_as_it_is(
    run: Any, messages: list[Message], minimum_size: int
) -> None:
    """Also as a stream, if a Content-Length tells; and what is empty cannot be less."""
    heard = run(lambda: answer(*messages, minimum_size=minimum_size))
    assert [id(message) for message in heard] == [id(message) for message in messages]


@pytest.mark.parametrize("size", [499, 500])
def test_the_minimum_size_is_the_least_that_is_compressed(run: Any, size: int) -> None:
    data = TEXT[:size]
    for headers in ((), (declared(data),)):
        first, _ = run(lambda headers=headers: answer(start(*headers), body(data)))
        assert bool(values(first, b"content-encoding")) is (size == 500)


def test_head_has_the_servers_own_send(run: Any) -> None:
    """Nothing stands between: what an app says in reply to HEAD is its own."""
    seen = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(send)

    async def send(message: Message) -> None: ...

    app = ResponseEncoderMiddleware(app, compression=True)
    run(app, request(method="HEAD"), None, send)
    assert seen == [send]


def test_websockets_and_the_rest_have_the_servers_own_send(run: Any) -> None:
    """Whatever a scope is that is no request."""
    seen = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    async def send(message: Message) -> None: ...

    async def receive() -> Any: ...

    scopes = [websocket_scope(), {"type": "lifespan"}, {"type": "mqtt"}]
    for scope in scopes:
        run(ResponseEncoderMiddleware(app, compression=True), scope, receive, send)
    assert seen == [(scope, receive, send) for scope in scopes]


# ---- what other clients and caches are told


@pytest.mark.parametrize("accept", [None, "", "deflate", "identity", "gzip;q=0", "gzip;q=x"])
def test_a_client_that_accepts_nothing(run: Any, accept: str | None) -> None:
    """It gets the body as it is; a cache is told that others do not."""
    first, last = start(JSON, declared(TEXT), (b"etag", b'"1"')), body(TEXT)
    heard = run(lambda: answer(first, last, accept=accept))
    assert heard[0] == {**first, "headers": [*first["headers"], (b"vary", b"Accept-Encoding")]}
    assert heard[1] is last


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [b"Accept-Encoding"]),
        ([b"Origin"], [b"Origin, Accept-Encoding"]),
        ([b"Origin", b"Cookie"], [b"Origin, Accept-Encoding", b"Cookie"]),
        ([b""], [b"Accept-Encoding"]),
        ([b"accept-ENCODING"], [b"accept-ENCODING"]),
        ([b"Cookie", b"Origin,Accept-Encoding"], [b"Cookie", b"Origin,Accept-Encoding"]),
        ([b"*"], [b"*"]),
        ([b"Cookie", b"*"], [b"Cookie", b"*"]),
        ([b"X-Accept-Encoding"], [b"X-Accept-Encoding, Accept-Encoding"]),
    ],
)
@pytest.mark.parametrize("accept", ["gzip", None])
def test_vary_has_the_field_once(
    run: Any, before: list[bytes], after: list[bytes], accept: str | None
) -> None:
    first = start(*((b"Vary", value) for value in before))
    heard = run(lambda: answer(first, body(TEXT), accept=accept))
    assert values(heard[0], b"vary") == after


@pytest.mark.parametrize(
    ("before", "after"), [(b'"1"', b'W/"1"'), (b'W/"1"', b'W/"1"'), (b"odd", b"odd")]
)
def test_a_strong_validator_becomes_a_weak_one(run: Any, before: bytes, after: bytes) -> None:
    first, _ = run(lambda: answer(start((b"ETag", before)), body(TEXT)))
    assert values(first, b"etag") == [after]


def test_no_range_of_the_app_is_one_of_what_was_sent(run: Any) -> None:
    """A client that asked for the rest of it would get the rest of something else."""
    first, _ = run(lambda: answer(start((b"Accept-Ranges", b"bytes")), body(TEXT)))
    assert values(first, b"accept-ranges") == []


@pytest.mark.parametrize("bodies", [[body(TEXT)], [body(TEXT[:9], more=True), body(TEXT[9:])]])
@pytest.mark.parametrize("name", [b"transfer-encoding", b"Transfer-Encoding"])
def test_a_transfer_that_is_chunked_is_the_servers_to_say(
    run: Any, name: bytes, bodies: list[Message]
) -> None:
    """A proxy hands it on; it must not stand beside the Content-Length of what was compressed."""
    first, *_ = heard = run(lambda: answer(start(JSON, (name, b"Chunked")), *bodies))
    assert read(heard) == TEXT
    assert values(first, b"transfer-encoding") == []
    assert len(values(first, b"content-length")) == (len(bodies) == 1)


# ---- clients that refuse what is not compressed


@pytest.mark.parametrize(
    "messages",
    [
        [start(JSON, declared(b"{}")), body(b"{}")],
        [start(JSON), body(b"{}")],
        [start((b"content-type", b"image/png"), declared(NOISE)), body(NOISE)],
        [start(JSON, declared(b"{}")), body(b"{", more=True), body(b"}")],
    ],
)
@pytest.mark.parametrize("accept", ["gzip, identity;q=0", "gzip, *;q=0"])
def test_it_gets_anything_compressed(run: Any, messages: list[Message], accept: str) -> None:
    """However small, of whatever type, and even if that makes it larger."""
    heard = run(lambda: answer(*messages, accept=accept))
    assert read(heard) == b"".join(message["body"] for message in messages[1:])


@pytest.mark.parametrize("accept", ["identity;q=0", "*;q=0", "deflate, identity;q=0"])
def test_it_gets_the_body_as_it_is_where_nothing_else_is_left(run: Any, accept: str) -> None:
    """What it can use is for it to see; an error in its place could not be used either."""
    last = body(TEXT)
    assert run(lambda: answer(start(), last, accept=accept))[1] is last


def test_it_gets_nothing_compressed_that_must_not_be(run: Any) -> None:
    first, last = start((b"cache-control", b"no-transform")), body(TEXT)
    assert run(lambda: answer(first, last, accept="gzip, identity;q=0")) == [first, last]


# ---- streams


@pytest.mark.parametrize("coding", CODINGS)
def test_each_chunk_can_be_read_when_it_has_come(run: Any, coding: str) -> None:
    """One message for each, with the other things that the app has said in it; no Content-Length."""
    chunks = [b"data: 1\n\n", b"data: 2\n\n" * 3_000, b"", b"data: 3\n\n"]
    messages = [{**body(chunk, more=True), "own": number} for number, chunk in enumerate(chunks)]
    sent = copy.deepcopy(messages)
    first = start(JSON, (b"etag", b'"1"'), own=True)
    heard = run(lambda: answer(first, *messages, body(b"end"), accept=coding))
    reader = Reader(coding)
    assert heard[0]["own"] is True
    assert values(heard[0], b"content-length") == []
    assert values(heard[0], b"etag") == [b'W/"1"']
    for number, chunk in enumerate(chunks, start=1):
        assert reader.read(heard[number]["body"]) == chunk
        assert heard[number]["more_body"] is True
        assert heard[number]["own"] == number - 1
    assert not reader.ended
    assert reader.read(heard[-1]["body"]) == b"end"
    assert reader.ended
    assert messages == sent


@given(
    chunks=st.lists(st.binary(max_size=300) | st.just(TEXT), min_size=1, max_size=8),
    coding=st.sampled_from(CODINGS),
    with_length=st.booleans(),
    minimum_size=st.sampled_from([0, 500]),
)
def test_any_body_in_any_pieces(
    chunks: list[bytes], coding: str, with_length: bool, minimum_size: int
) -> None:
    """What the client reads is what the app has sent, in as many messages."""
    whole = b"".join(chunks)
    first = start(*([declared(whole)] if with_length else []))
    *others, last = chunks
    messages = [first, *(body(chunk, more=True) for chunk in others), body(last)]
    heard = asyncio.run(answer(*messages, accept=coding, minimum_size=minimum_size))
    assert len(heard) == len(messages)
    if values(heard[0], b"content-encoding"):
        assert read(heard) == whole
    else:
        assert heard[1:] == messages[1:]
        assert values(heard[0], b"content-length") == values(first, b"content-length")


@pytest.mark.parametrize("rest", [[body(b"")], [body(b"", more=True), body(b"", more=False)]])
def test_a_stream_of_one_chunk_that_is_all_is_a_whole_body(run: Any, rest: list[Message]) -> None:
    """So BaseHTTPMiddleware hands on what was whole: it keeps its Content-Length, and the rest is empty."""
    first, *bodies = heard = run(
        lambda: answer(start(declared(LARGE)), body(LARGE, more=True), *rest)
    )
    assert read(heard) == LARGE
    assert values(first, b"content-length") == [b"%d" % len(bodies[0]["body"])]


def test_the_start_waits_for_the_first_of_the_body_and_no_longer(run: Any) -> None:
    """An empty chunk lets it go, as it does in a server."""
    heard: list[Message] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(start())
        assert heard == []
        await send(body(b"", more=True))
        assert [message["type"] for message in heard] == [
            "http.response.start",
            "http.response.body",
        ]
        await send(body(b"line", more=True))
        assert Reader("gzip").read(heard[2]["body"]) == b"line"
        await send(body(b""))

    async def main() -> None:
        async def send(message: Message) -> None:
            heard.append(message)

        await ResponseEncoderMiddleware(app, compression=("gzip",))(request(), None, send)

    run(main)
    assert read(heard) == b"line"


@pytest.mark.parametrize("accept", ["gzip", None])
def test_the_start_of_an_event_stream_does_not_wait(run: Any, accept: str | None) -> None:
    """A browser tells that it is connected when the headers are there, long before the first event."""
    heard: list[Message] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(start((b"content-type", b"text/event-stream; charset=utf-8")))
        assert len(heard) == 1
        await forever()

    async def main() -> None:
        async def send(message: Message) -> None:
            heard.append(message)

        call = ResponseEncoderMiddleware(app, compression=("gzip",))(request(accept), None, send)
        call.send(None)
        call.close()

    run(main)
    assert values(heard[0], b"vary") == [b"Accept-Encoding"]
    assert bool(values(heard[0], b"content-encoding")) is (accept is not None)


@pytest.mark.parametrize("bodies", [[body(TEXT)], [body(TEXT, more=True), body(b"")]])
def test_events_that_are_there_as_a_whole_are_a_whole_body(run: Any, bodies: list[Message]) -> None:
    """A Content-Length tells: such a response keeps one."""
    kind = (b"content-type", b"text/event-stream")
    first, *_ = heard = run(lambda: answer(start(kind, declared(TEXT)), *bodies))
    assert read(heard) == TEXT
    assert values(first, b"content-length") == [b"%d" % len(heard[1]["body"])]


# ---- other messages

HINT = {"type": "http.response.early_hint", "links": []}
PUSH = {"type": "http.response.push", "path": "/style.css", "headers": []}
TRAILERS = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
FILE = {"type": "http.response.pathsend", "path": "/etc/hostname"}
ZEROCOPY = {"type": "http.response.zerocopysend", "file": 5}
ODD = {"type": "example.odd"}


@pytest.mark.parametrize(
    "messages",
    [
        [start(JSON), FILE],
        [start(JSON, declared(TEXT)), FILE],
        [start(JSON), ZEROCOPY],
        [start(JSON), PUSH, body(TEXT)],
        [start(JSON), ODD, body(TEXT, more=True), ODD, body(TEXT)],
        [start(JSON), TRAILERS],
        # Not in the order that the specification has, for the server to judge.
        [body(TEXT), start(JSON), PUSH],
        [start(JSON), start(JSON), body(TEXT)],
        [TRAILERS],
        [],
    ],
)
def test_what_is_no_body_is_sent_as_it_is(run: Any, messages: list[Message]) -> None:
    """A file that the server sends itself, and whatever else follows on the start: in its order."""
    heard = run(lambda: answer(*messages))
    assert [id(message) for message in heard] == [id(message) for message in messages]


def test_a_start_with_nothing_behind_it_is_not_sent(run: Any) -> None:
    """Nor would a server send it; it answers in the place of an app that has not (500)."""
    assert run(lambda: answer(start(JSON))) == []


def test_other_messages_keep_their_place(run: Any) -> None:
    """Before the start, in a stream and behind the end."""
    first = start(JSON, trailers=True)
    chunk, last = body(TEXT, more=True), body(TEXT)
    messages = [HINT, ODD, first, chunk, ODD, last, TRAILERS]
    heard = run(lambda: answer(*messages))
    assert [message["type"] for message in heard] == [message["type"] for message in messages]
    assert read([heard[2], heard[3], heard[5]]) == TEXT + TEXT
    assert heard[2]["trailers"] is True
    for place in (0, 1, 4, 6):
        assert heard[place] is messages[place]


@pytest.mark.parametrize("file", [FILE, ZEROCOPY])
def test_no_file_goes_into_a_compressed_body(run: Any, file: Message) -> None:
    """It would be sent as it is, and the client could read neither."""
    with pytest.raises(RuntimeError, match="Content-Encoding"):
        run(lambda: answer(start(), body(TEXT, more=True), file))


def test_what_comes_behind_the_end_is_for_the_server_to_judge(run: Any) -> None:
    """As it is, of a whole body and of a stream."""
    late = body(TEXT)
    for bodies in ([body(TEXT)], [body(TEXT, more=True), body(TEXT)]):
        heard = run(lambda bodies=bodies: answer(start(), *bodies, late, start()))
        assert heard[-2] is late
        assert read(heard[:-2]) == b"".join(message["body"] for message in bodies)


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        5,
        {"type": "http.response.start"},
        {"type": "http.response.start", "status": "200", "headers": []},
        start(status=None),
        start(headers=5),
        start(headers=[5]),
        start(headers=[(b"content-type",)]),
        start(headers=[(None, b"")]),
        start(headers=[(b"content-type", None)]),
        *(
            start((b"content-length", length.replace(b"N", declared(TEXT)[1])))
            for length in (b"many", b"", b"+N", b" N", b"N ", b"0_N", b"-N")
        ),
    ],
)
def test_a_message_that_cannot_be_read_is_for_the_server_to_judge(run: Any, message: Any) -> None:
    """It gets it as it is, and the body behind it."""
    heard = run(lambda: answer(message, body(TEXT)))
    assert heard[0] is message
    assert heard[1] == body(TEXT)


def test_a_message_in_a_stream_that_cannot_be_read(run: Any) -> None:
    odd: Any = {"no": "type"}
    heard = run(lambda: answer(start(), body(TEXT, more=True), odd, body(TEXT)))
    assert heard[2] is odd
    assert read([heard[0], heard[1], heard[3]]) == TEXT + TEXT


# ---- what does not end well


@pytest.mark.parametrize("data", [TEXT[:-1], TEXT + b"!", b""])
def test_a_whole_body_of_another_length_is_for_the_server_to_judge(run: Any, data: bytes) -> None:
    """A Content-Length that is wrong is not made a right one: the body may not be whole."""
    messages = [start(JSON, declared(TEXT)), body(data)]
    assert run(lambda: answer(*messages)) == messages


@pytest.mark.parametrize(
    ("chunks", "heard_chunks"),
    [
        ([TEXT[:10], TEXT[10:-1], b""], 2),
        ([TEXT[:10], TEXT[10:-1]], 1),
        ([TEXT[:10], TEXT], 1),
        ([TEXT + b"!", b""], 0),
    ],
)
def test_a_stream_of_another_length_does_not_end(
    run: Any, chunks: list[bytes], heard_chunks: int
) -> None:
    """Without its Content-Length nobody else would see that something is missing."""
    wrong = rf"Content-Length is {len(TEXT)}, .* has \d+ bytes"

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        *others, last = chunks
        await send(start(declared(TEXT)))
        messages = [*(body(chunk, more=True) for chunk in others), body(last)]
        with pytest.raises(RuntimeError, match=wrong):
            await saying(*messages)(scope, receive, send)
        with pytest.raises(RuntimeError, match="Nothing can follow"):
            await send(body(b""))

    heard = run(heard_from, ResponseEncoderMiddleware(app, compression=("gzip",)), request())
    assert [message["type"] for message in heard[1:]] == ["http.response.body"] * heard_chunks
    assert all(message["more_body"] for message in heard[1:])


@pytest.mark.parametrize(
    "before", [[], [start()], [start(), body(TEXT, more=True)], [start(), body(TEXT)]]
)
def test_an_exception_of_the_app_comes_out_and_ends_nothing(
    run: Any, before: list[Message]
) -> None:
    """The same object; a body that was not at its end is not brought there."""
    trouble = Trouble()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        for message in before:
            await send(message)
        raise trouble

    heard: list[Message] = []

    async def main() -> None:
        async def send(message: Message) -> None:
            heard.append(message)

        with pytest.raises(Trouble) as caught:
            await ResponseEncoderMiddleware(app, compression=True)(request(), None, send)
        assert caught.value is trouble

    run(main)
    complete = len(before) > 1 and not before[-1].get("more_body")
    bodies = [message for message in heard if message["type"] == "http.response.body"]
    assert any(not message.get("more_body") for message in bodies) is complete


def test_a_client_that_has_left(run: Any) -> None:
    """What the server's `send` raises reaches the app, the same object, and the outcome is the client's."""
    gone = OSError("gone")
    registry = Registry()
    caught = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(start())
        try:
            await send(body(TEXT, more=True))
        except OSError as error:
            caught.append(error)
            raise

    async def main() -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                raise gone

        kit = PerfKit(app, performance={"registry": registry}, encoder={"compression": ("gzip",)})
        with pytest.raises(OSError, match="gone") as raised:
            await kit(request(), None, send)
        assert raised.value is gone

    run(main)
    assert caught == [gone]
    assert outcomes(registry) == {"disconnected": 1}


# ---- worker threads


class Gate:
    """Stands in a coding: tells in which threads it has worked, and lets none of them go before it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_open: bool) -> None:
        self.threads: list[int] = []
        self.reached = threading.Event()
        self.open = threading.Event()
        if is_open:
            self.open.set()
        make_stream = Gzip.stream

        monkeypatch.setattr(Gzip, "stream", lambda coding: self._stream(make_stream(coding)))

    def _stream(self, stream: Stream) -> Any:
        return SimpleNamespace(flush=self._gated(stream.flush), finish=self._gated(stream.finish))

    def _gated(self, function: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def work(data: bytes) -> bytes:
            self.threads.append(threading.get_ident())
            self.reached.set()
            assert self.open.wait(10)
            return function(data)

        return work

    def places(self) -> list[bool]:
        """For each time, whether it was in another thread."""
        return [thread != threading.get_ident() for thread in self.threads]


@pytest.mark.parametrize("more", [False, True])
def test_what_is_large_is_compressed_in_a_thread(
    run: Any, monkeypatch: pytest.MonkeyPatch, more: bool
) -> None:
    """The loop goes on meanwhile: it is the loop that opens the gate."""
    gate = Gate(monkeypatch, is_open=False)

    async def main() -> None:
        async def open_gate() -> None:
            while not gate.reached.is_set():
                await checkpoint()
            gate.open.set()

        async def respond() -> None:
            last = [body(b"")] if more else []
            heard = await answer(start(), body(LARGE, more=more), *last)
            assert read(heard) == LARGE

        await together(respond, open_gate)

    run(main)
    assert gate.places()[0] is True


def test_what_is_small_is_compressed_on_the_loop(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread would take longer."""
    gate = Gate(monkeypatch, is_open=True)
    data = LARGE[: Gzip.offload_bytes - 1]
    assert read(run(lambda: answer(start(), body(data)))) == data
    assert gate.places() == [False]


def test_many_chunks_are_as_one_large_one(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop gets its turn before so much has been compressed on it as would go to a thread at once."""
    gate = Gate(monkeypatch, is_open=True)
    chunk = LARGE[: Gzip.offload_bytes // 4]
    heard = run(lambda: answer(start(), *[body(chunk, more=True)] * 9, body(b"")))
    assert read(heard) == chunk * 9
    assert gate.places() == [False, False, False, True] * 2 + [False, False]


@pytest.mark.parametrize("more", [False, True])
def test_who_is_cancelled_meanwhile_has_sent_nothing(
    run_asyncio: Any, monkeypatch: pytest.MonkeyPatch, more: bool
) -> None:
    """The thread is waited for; an app that goes on all the same cannot end the response well."""
    gate = Gate(monkeypatch, is_open=False)
    heard: list[Message] = []
    refused = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(start())
        try:
            await send(body(LARGE, more=more))
        except asyncio.CancelledError:
            with pytest.raises(RuntimeError, match="was given up"):
                await send(body(b""))
            refused.append(True)
            raise

    async def send(message: Message) -> None:
        heard.append(message)

    async def main() -> None:
        call = ResponseEncoderMiddleware(app, compression=("gzip",))(request(), None, send)
        task = asyncio.ensure_future(call)
        while not gate.reached.is_set():
            await checkpoint()
        task.cancel()
        await checkpoint()
        assert not task.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_asyncio(main)
    assert refused == [True]
    assert [message for message in heard if message["type"] == "http.response.body"] == []


def test_who_is_cancelled_on_trio_sends_what_was_compressed(
    run_trio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a cancellation shows at the next checkpoint, and so in the server's `send`."""
    import trio

    gate = Gate(monkeypatch, is_open=False)
    heard: list[Message] = []

    async def send(message: Message) -> None:
        heard.append(message)
        await trio.lowlevel.checkpoint()

    async def main() -> None:
        app = ResponseEncoderMiddleware(
            saying(start(), body(LARGE, more=True), body(b"")), compression=("gzip",)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app, request(), None, send)
            await trio.testing.wait_all_tasks_blocked()
            assert gate.reached.wait(10)
            nursery.cancel_scope.cancel()
            gate.open.set()

    run_trio(main)
    first, chunk = heard
    assert first["type"] == "http.response.start"
    assert chunk["more_body"] is True
    assert Reader("gzip").read(chunk["body"]) == LARGE


def test_two_messages_at_once_are_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came while another is in a thread would get in front of it."""
    gate = Gate(monkeypatch, is_open=False)

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        async def large() -> None:
            await send(body(LARGE, more=True))

        async def small() -> None:
            while not gate.reached.is_set():
                await checkpoint()
            with pytest.raises(RuntimeError, match="being compressed now"):
                await send(body(TEXT, more=True))
            gate.open.set()

        await send(start())
        await together(large, small)
        await send(body(b"end"))

    heard = run(heard_from, ResponseEncoderMiddleware(app, compression=("gzip",)), request())
    assert read(heard) == LARGE + b"end"


def test_no_more_threads_than_processors(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a thread waits for the middleware's own: those that block in handlers are others."""
    gate = Gate(monkeypatch, is_open=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    app = ResponseEncoderMiddleware(saying(start(), body(LARGE)), compression=("gzip",))

    async def main() -> None:
        async def respond() -> None:
            assert read(await heard_from(app, request())) == LARGE

        async def watch() -> None:
            while len(gate.threads) < 2:
                await checkpoint()
            for _ in range(50):
                await checkpoint()
            assert len(gate.threads) == 2
            gate.open.set()

        await together(watch, *[respond] * 5)

    run(main)
    assert len(gate.threads) == 5


# ---- what stands around


def test_the_send_of_the_app_is_a_coroutine_function(run: Any) -> None:
    """asgiref warns of one that is not when it is called from a thread."""
    seen = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(iscoroutinefunction(send))
        call = send(start())
        assert asyncio.iscoroutine(call)
        await call
        await send(body(TEXT))

    run(heard_from, ResponseEncoderMiddleware(app, compression=True), request())
    assert seen == [True]


def test_the_figures_are_of_what_was_sent(run: Any) -> None:
    """The size is that of the compressed body; time and ratio are of each response that was compressed."""
    registry = Registry()
    kit = PerfKit(
        saying(start(), body(TEXT)),
        performance={"registry": registry},
        encoder={"compression": ("gzip",)},
    )

    async def main() -> int:
        _, last = await heard_from(kit, request())
        return len(last["body"])

    size = run(main)
    figures = the_figures(registry)
    assert figures["response_size"]["sum"] == size
    assert figures["compression_ratio"]["count"] == figures["compression_time"]["count"] == 1
    assert figures["compression_ratio"]["max"] == pytest.approx(len(TEXT) / size, abs=0.001)
    assert 0 < figures["compression_time"]["max"] < figures["total_time"]["max"]
    run(heard_from, kit, request(None))
    assert the_figures(registry)["compression_time"]["count"] == 1


def test_the_figures_of_a_stream(run: Any) -> None:
    """One for all of its chunks, whichever thread they were compressed in; none for one that was broken off."""
    registry = Registry()
    chunks = [body(TEXT, more=True), body(LARGE, more=True)]
    options: Any = {
        "performance": {"registry": registry},
        "encoder": {"compression": ("gzip",)},
    }

    async def main() -> int:
        kit = PerfKit(saying(start(), *chunks, body(b"")), **options)
        heard = await heard_from(kit, request())
        await heard_from(PerfKit(saying(start(), *chunks), **options), request())
        return sum(len(message["body"]) for message in heard[1:])

    size = run(main)
    figures = the_figures(registry)
    assert figures["compression_ratio"]["count"] == figures["compression_time"]["count"] == 1
    ratio = (len(TEXT) + len(LARGE)) / size
    assert figures["compression_ratio"]["max"] == pytest.approx(ratio, rel=0.01)
    assert figures["thread_time"]["count"] == 2


def test_the_time_of_a_stream_is_that_of_all_its_chunks(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else's: what the server takes for a message is not in it."""
    clock = Clock.install(monkeypatch)
    make_stream = Gzip.stream

    def slow(coding: Gzip) -> Any:
        stream = make_stream(coding)

        def work(data: bytes) -> bytes:
            clock.advance(1)
            return stream.flush(data)

        return SimpleNamespace(flush=work, finish=work)

    async def send(message: Message) -> None:
        clock.advance(10)

    monkeypatch.setattr(Gzip, "stream", slow)
    registry = Registry()
    app = saying(start(), body(TEXT, more=True), body(LARGE, more=True), body(b""))
    kit = PerfKit(app, performance={"registry": registry}, encoder={"compression": ("gzip",)})
    run(kit, request(), None, send)
    assert the_figures(registry)["compression_time"]["sum"] == pytest.approx(3)


def test_compressed_once(run: Any) -> None:
    """A second middleware of the kind, further in or out, finds that it is done."""
    inner = ResponseEncoderMiddleware(saying(start(), body(TEXT)), compression=("gzip",))
    outer = ResponseEncoderMiddleware(inner, compression=("br",))
    heard = run(heard_from, outer, request("gzip, br"))
    assert values(heard[0], b"content-encoding") == [b"gzip"]
    assert values(heard[0], b"vary") == [b"Accept-Encoding"]
    assert read(heard) == TEXT
