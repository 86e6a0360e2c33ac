"""Answers in JSON, as ASGI apps: one object, or rows as they come.

Each can be what a handler returns (Starlette and Litestar await it), what a route leads to, or called by hand:
``await NDJSON(rows)(scope, receive, send)``. Where a framework wants a response class of its own, docs/streams.md
shows the few lines that it takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final

from asgi_perfkit.encoding.encoder import dumps
from asgi_perfkit.encoding.events import EventFraming
from asgi_perfkit.encoding.framing import ArrayFraming, LineFraming
from asgi_perfkit.encoding.streams import Rows, RowStream, is_rows
from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.threads.hop import checkpoint
from asgi_perfkit.types import Message, Receive, Scope, Send

__all__ = ["JSON", "EventStream", "Headers", "JSONArray", "NDJSON", "send_json"]

Headers = Iterable[tuple[str | bytes, str | bytes]] | Mapping[str, str]

_RawHeaders = tuple[tuple[bytes, bytes], ...]

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_JSON: Final = ((b"content-type", b"application/json"),)
_OF_THE_BODY: Final = (b"content-length", b"transfer-encoding")


class JSON:
    """An answer that is the JSON of `obj`, made by the ambient encoder when the answer is sent.

    :param status: of the response.
    :param headers: more headers, as pairs of strings or bytes; a ``content-type`` replaces the usual one.
    :raises ConfigurationError: `status` or `headers` cannot be sent.
    """

    __slots__ = ("_headers", "_obj", "_status")

    def __init__(self, obj: object, status: int = 200, headers: Headers = ()) -> None:
        self._obj = obj
        self._status = _check_status("JSON(status=...)", status)
        self._headers = _check_headers("JSON(headers=...)", headers, _JSON)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        :raises EncodeError: `obj` has no JSON; nothing was sent then.
        """
        _check_type("JSON", scope)
        body = dumps(self._obj)
        await _send_whole(send, self._status, self._headers, body, scope["method"] == "HEAD")


async def send_json(send: Send, obj: object, status: int = 200, headers: Headers = ()) -> None:
    """Send a whole response that is the JSON of `obj`; the arguments are those of :class:`JSON`.

    :raises ConfigurationError: `status` or `headers` cannot be sent.
    :raises EncodeError: `obj` has no JSON; nothing was sent then.
    """
    _check_status("send_json(status=...)", status)
    raw_headers = _check_headers("send_json(headers=...)", headers, _JSON)
    await _send_whole(send, status, raw_headers, dumps(obj), False)


class _Streamed:
    """An answer of many rows.

    The producer is not called for HEAD. It is stopped when the client has left, and closed in any case: at the end,
    by an error of its own, by a cancellation. Its error in the middle goes on to the server, without the last message,
    so that the client can see that something is missing.
    """

    __slots__ = ("_begun", "_headers", "_rows", "_status", "_watch")

    _defaults: ClassVar[_RawHeaders]

    def __init__(self, rows: object, status: int, headers: Headers, watch: bool) -> None:
        name = type(self).__name__
        if not _has_rows(rows) and not callable(rows):
            raise ConfigurationTypeError(
                f"{name}()", rows, "what can be iterated over is needed, one row after the other."
            )
        self._rows: Any = rows
        self._status = _check_status(f"{name}(status=...)", status)
        self._headers = _check_headers(f"{name}(headers=...)", headers, self._defaults)
        self._watch = watch
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        :raises: what the producer raises, or the server's `send` and `receive`.
        """
        name = type(self).__name__
        _check_type(name, scope)
        if scope["method"] == "HEAD":
            await send(_start(self._status, self._headers))
            await send(_body(b""))
            return
        rows = self._rows if is_rows(self._rows) else self._call(self._rows, scope)
        if not _has_rows(rows):
            raise ConfigurationTypeError(
                f"{name}()", rows, "what can be iterated over is what the function has to return."
            )
        if hasattr(type(rows), "__next__") or hasattr(type(rows), "__anext__"):
            if self._begun and rows is self._rows:
                raise RuntimeError(
                    f"{name} has answered one request already, and an iterator has its rows only once: "
                    "make a new one for each request, or give it a function that returns the rows."
                )
            self._begun = True
        reader = _Client(self._status, self._headers, receive, send)
        await self._stream(rows, reader).run()

    def _call(self, make_rows: Callable[..., Any], scope: Scope) -> Any:
        return make_rows()

    def _stream(self, rows: Rows, reader: _Client) -> RowStream:
        raise NotImplementedError


class NDJSON(_Streamed):
    """An answer of rows, each its JSON on a line of its own (newline-delimited JSON, also called JSON lines).

    :param rows: an asynchronous iterable; or any other, which must not block (what does is for
        :func:`iterate_in_threadpool`); or a function that returns one for each request.
    :param status: of the response.
    :param headers: more headers, as pairs of strings or bytes; a ``content-type`` replaces the usual one.
    :param error_line: makes, of the error that has ended the rows in the middle, a last one.
    :param watch: whether to call `receive`, to stop when the client has left; False where the rows are made of the
        body of the request, which the producer receives itself.
    :raises ConfigurationError: `rows`, `status` or `headers` cannot be sent, or `error_line` cannot be called.
    """

    __slots__ = ("_error_line",)

    _defaults = ((b"content-type", b"application/x-ndjson"),)

    def __init__(
        self,
        rows: Rows | Callable[[], Rows],
        status: int = 200,
        headers: Headers = (),
        *,
        error_line: Callable[[Exception], Any] | None = None,
        watch: bool = True,
    ) -> None:
        super().__init__(rows, status, headers, watch)
        if error_line is not None and not callable(error_line):
            raise ConfigurationTypeError(
                "NDJSON(error_line=...)", error_line, "a function of the error is needed."
            )
        self._error_line = error_line

    def _stream(self, rows: Rows, reader: _Client) -> RowStream:
        return RowStream(rows, LineFraming(), reader, watch=self._watch, error_row=self._error_line)


class JSONArray(_Streamed):
    """An answer of rows that is one JSON array, sent as the rows come; an element on each line.

    :param rows: an asynchronous iterable; or any other, which must not block (what does is for
        :func:`iterate_in_threadpool`); or a function that returns one for each request.
    :param status: of the response.
    :param headers: more headers, as pairs of strings or bytes; a ``content-type`` replaces the usual one.
    :param watch: whether to call `receive`, to stop when the client has left; False where the rows are made of the
        body of the request, which the producer receives itself.
    :raises ConfigurationError: `rows`, `status` or `headers` cannot be sent.
    """

    __slots__ = ()

    _defaults = _JSON

    def __init__(
        self,
        rows: Rows | Callable[[], Rows],
        status: int = 200,
        headers: Headers = (),
        *,
        watch: bool = True,
    ) -> None:
        super().__init__(rows, status, headers, watch)

    def _stream(self, rows: Rows, reader: _Client) -> RowStream:
        return RowStream(rows, ArrayFraming(), reader, watch=self._watch)


class EventStream(_Streamed):
    """An answer of server-sent events, what a browser's ``EventSource`` reads.

    It begins when the producer waits for its first event, and not only with that.

    :param events: an iterable as for :class:`NDJSON`, or a function that returns one for each request. The function is
        given the client's ``Last-Event-ID``, None of a new one: what came after that is what the client has missed. An
        item is an :class:`Event`, or anything else, whose JSON is the data of one.
    :param headers: more headers, as pairs of strings or bytes; they replace the usual ones of the same name.
    :param keep_alive: after so many seconds without an event a comment is sent, which keeps proxies from
        giving up, and shows that the client is still there; None for never.
    :raises ConfigurationError: `events`, `headers` or `keep_alive` cannot be used.
    """

    __slots__ = ("_keep_alive",)

    _defaults = (
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # nginx hands on what it gets
    )

    def __init__(
        self,
        events: Rows | Callable[[str | None], Rows],
        headers: Headers = (),
        *,
        keep_alive: float | None = 15.0,
    ) -> None:
        super().__init__(events, 200, headers, True)
        if keep_alive is not None:
            if isinstance(keep_alive, bool) or not isinstance(keep_alive, (int, float)):
                raise ConfigurationTypeError(
                    "EventStream(keep_alive=...)", keep_alive, "give seconds, or None for never."
                )
            if not 0 < keep_alive < float("inf"):
                raise ConfigurationValueError(
                    "EventStream(keep_alive=...)", keep_alive, "give seconds, or None for never."
                )
        self._keep_alive = keep_alive

    def _call(self, make_rows: Callable[..., Any], scope: Scope) -> Any:
        last_event_id = None
        for name, value in scope["headers"]:
            if name.lower() == b"last-event-id":
                last_event_id = value.decode("utf-8", "replace")
        return make_rows(last_event_id)

    def _stream(self, rows: Rows, reader: _Client) -> RowStream:
        return RowStream(rows, EventFraming(), reader, eager=True, idle_seconds=self._keep_alive)


class _Client:
    """Who asked, as the reader of a stream."""

    __slots__ = ("_headers", "_receive", "_send", "_status", "begun")

    def __init__(self, status: int, headers: _RawHeaders, receive: Receive, send: Send) -> None:
        self._status = status
        self._headers = headers
        self._receive = receive
        self._send = send
        self.begun = False

    async def write(self, chunk: bytes, more: bool) -> None:
        if not self.begun:
            self.begun = True
            length = None if more else len(chunk)  # it is all that there is
            await self._send(_start(self._status, self._headers, length))
        await self._send(_body(chunk, more))

    async def left(self) -> None:
        # The body of the request comes first, if nobody has asked for it. It has to be taken: hypercorn 0.18 holds up
        # the response of a request whose body is not.
        while (await self._receive())["type"] != "http.disconnect":
            await checkpoint()  # a `receive` of a test may never wait


def _has_rows(rows: object) -> bool:
    """Whether one iterates over it and gets rows, and not letters or keys."""
    return is_rows(rows) and not isinstance(rows, (str, bytes, bytearray, Mapping))


def _start(status: int, headers: _RawHeaders, length: int | None = None) -> Message:
    sent = list(headers)  # which is whose to change that gets it
    if length is not None:
        sent.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": status, "headers": sent}


def _body(body: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _send_whole(
    send: Send, status: int, headers: _RawHeaders, body: bytes, without_body: bool
) -> None:
    await send(_start(status, headers, len(body)))
    await send(_body(b"" if without_body else body))


def _check_type(name: str, scope: Scope) -> None:
    if scope["type"] != "http":
        raise ConfigurationValueError(
            f"{name} as an app", scope["type"], "it answers http requests and nothing else."
        )


def _check_status(subject: str, status: object) -> int:
    if not isinstance(status, int) or isinstance(status, bool):
        raise ConfigurationTypeError(subject, status, "a status is an integer.")
    if not 200 <= status <= 599 or status in (204, 205, 304):
        raise ConfigurationValueError(
            subject, status, "it is one from 200 to 599 whose response has a body."
        )
    return int(status)


def _check_headers(subject: str, headers: object, defaults: _RawHeaders) -> _RawHeaders:
    """Return `headers` as they are sent, with the defaults that they do not replace."""
    if isinstance(headers, Mapping):
        headers = headers.items()
    elif isinstance(headers, (str, bytes)) or not isinstance(headers, Iterable):
        raise ConfigurationTypeError(subject, headers, "pairs of name and value are needed.")
    given = []
    for header in headers:
        if not isinstance(header, (tuple, list)) or len(header) != 2:
            raise ConfigurationTypeError(subject, header, "pairs of name and value are needed.")
        name, value = (_as_bytes(subject, part) for part in header)
        name = name.lower()
        if not _TOKEN.fullmatch(name):
            raise ConfigurationValueError(subject, header, "its name is not one of a header.")
        if name in _OF_THE_BODY:
            raise ConfigurationValueError(
                subject, header, "the body's length is counted; leave it out."
            )
        if _CONTROL.search(value):
            raise ConfigurationValueError(subject, header, "its value has a control character.")
        given.append((name, value.strip(b" \t")))
    names = {name for name, _ in given}
    return (*(default for default in defaults if default[0] not in names), *given)


def _as_bytes(subject: str, part: object) -> bytes:
    if isinstance(part, bytes):
        return part
    if not isinstance(part, str):
        raise ConfigurationTypeError(subject, part, "a name or value is a string or bytes.")
    try:
        return part.encode("latin-1")
    except UnicodeEncodeError:
        raise ConfigurationValueError(
            subject, part, "a header is latin-1; encode it to bytes as its receiver expects."
        ) from None
