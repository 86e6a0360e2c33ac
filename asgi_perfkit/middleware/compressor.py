"""Compresses one response on its way out.

The rules by which messages pass:

* The start waits for the first message of the body: only then is it known whether the body is whole, and how long it
  will be. A server sends no start before that either (ASGI, "Response Start"). That of an event stream does not wait.
* A body that is one message is compressed as a whole. So is one whose first message has all the bytes that its
  Content-Length promises and is said to go on: middlewares make streams of what was none.
* Any other body is a stream, and flushed for each of its messages.
* Where anything but a body follows on the start (a file to send, a push, what is not known), the response passes as
  it is.
* A Content-Length that the body does not keep must not be mended by taking it back: a whole body passes as it is, for
  the server to judge, and a stream does not end.
* What is large is compressed in a worker thread, and so is what comes when much has been compressed on the loop: it
  gets its turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter_ns
from typing import NamedTuple

from asgiref.sync import markcoroutinefunction

from asgi_perfkit.encoding.compression import Coding, Stream
from asgi_perfkit.encoding.negotiation import Negotiator
from asgi_perfkit.middleware.exchange import exchange_of
from asgi_perfkit.middleware.representation import BODILESS, Header, coded, read, varied
from asgi_perfkit.steps import Account, current_account
from asgi_perfkit.threads.functions import run_in_threadpool
from asgi_perfkit.threads.limiter import ThreadLimiter
from asgi_perfkit.types import Message, Scope, Send

__all__ = ["Compressor", "Policy"]

# How far a compressed response has come.
_HELD = 0  # its start waits for the body
_STREAMING = 1  # its start is out, and the body is being compressed
_STUCK = 2  # a message is being worked on, or was given up while it was
_PASSING = 3  # what comes goes on as it is

_FILES = ("http.response.pathsend", "http.response.zerocopysend")
# What reading a message may raise that is not made as the specification has it.
_UNREADABLE = (TypeError, ValueError, LookupError, AttributeError)


class Policy(NamedTuple):
    """What holds for all responses of a middleware.

    :ivar negotiator: chooses the coding.
    :ivar minimum_size: bytes below which a body is left as it is.
    :ivar limiter: for the worker threads.
    """

    negotiator: Negotiator
    minimum_size: int
    limiter: ThreadLimiter


class Compressor:
    """Stands between an app and its `send` for one request, and finds out whether there is something to compress.

    :param scope: of the request.
    :param send: where the messages go.
    """

    __slots__ = ("_accepted", "_following", "_policy", "_send")

    def __init__(self, policy: Policy, scope: Scope, send: Send) -> None:
        self._policy = policy
        self._send = send
        self._following: Send | None = None  # takes the messages, once the start has come
        accepted = b""
        try:
            for name, value in scope["headers"]:
                if name == b"accept-encoding":
                    accepted = accepted + b"," + value if accepted else value
        except _UNREADABLE:
            accepted = b""
        self._accepted = (
            accepted  # as the client has said: who stands further in may change the scope
        )

    # A coroutine function to whoever looks (asgiref does); it hands on the coroutine of the next `send` to be awaited,
    # which costs half of awaiting it in one of its own.
    @markcoroutinefunction
    def send_message(self, message: Message) -> Awaitable[None]:
        """Pass on what the app says; the `send` for the app.

        :raises RuntimeError: as :meth:`CompressedResponse.take` does.
        """
        following = self._following
        if following is not None:
            return following(message)
        send = self._send
        policy = self._policy
        told = None
        try:
            if message["type"] == "http.response.start":
                self._following = send
                status = message["status"]
                if status == 200 or (status > 200 and status not in BODILESS):
                    headers: Iterable[Header] = message.get("headers") or ()
                    if not isinstance(headers, (list, tuple)):  # but one that can be read once
                        headers = list(headers)
                        message = {**message, "headers": headers}
                    # Without a weight nothing is refused; most clients give none.
                    accepted = self._accepted
                    if b";" in accepted and policy.negotiator.choose(accepted).refuses_identity:
                        told = read(headers, 0, True)
                    else:
                        told = read(headers, policy.minimum_size, False)
        except _UNREADABLE:
            pass  # for the server to judge
        if told is None:
            return send(message)
        coding, refuses_identity = policy.negotiator.choose(self._accepted)
        if coding is None:  # but another client may get one, and caches must know
            return send({**message, "headers": varied(headers)})
        length, is_event_stream = told
        response = CompressedResponse(
            coding, refuses_identity, policy, message, headers, length, send
        )
        self._following = response.take
        if is_event_stream and length is None:
            return send(response.start_stream())
        return _hold()


async def _hold() -> None:
    """The start is sent with the body."""


class CompressedResponse:
    """A response that may be compressed, and is if its body is worth it.

    :param coding: what the client gets.
    :param refuses_identity: whether it gets that for any body.
    :param start: as the app has sent it.
    :param headers: its headers.
    :param length: the bytes of the body, if that is told.
    :param send: where the messages go.
    """

    __slots__ = (
        "_account",
        "_coding",
        "_headers",
        "_length",
        "_on_loop",
        "_policy",
        "_refuses_identity",
        "_send",
        "_sent",
        "_spent_ns",
        "_stage",
        "_start",
        "_stream",
        "_taken",
    )

    def __init__(
        self,
        coding: Coding,
        refuses_identity: bool,
        policy: Policy,
        start: Message,
        headers: Iterable[Header],
        length: int | None,
        send: Send,
    ) -> None:
        self._coding = coding
        self._refuses_identity = refuses_identity
        self._policy = policy
        self._start = start
        self._headers = headers
        self._length = length
        self._send = send
        self._account: Account | None = exchange_of(send) or current_account.get()
        self._stage = _HELD
        self._taken = self._sent = 0  # bytes of the body, of a stream
        self._on_loop = 0  # bytes that were compressed since the loop had its turn
        self._spent_ns = 0

    async def take(self, message: Message) -> None:
        """Take what comes behind the start.

        :raises RuntimeError: the body is not as long as its Content-Length; a file follows on a compressed part of
            the body; an earlier message was given up while it was being compressed, or still is being compressed.
        """
        stage = self._stage
        if stage != _PASSING:
            try:
                kind = message["type"]
            except _UNREADABLE:
                kind = None
            if kind == "http.response.body":
                if stage == _HELD:
                    return await self._begin(message)
                if stage == _STREAMING:
                    return await self._go_on(message)
                raise RuntimeError(
                    "An earlier message of this response is not through: it was given up while it was being "
                    "compressed, or is being compressed now. Nothing can follow on it."
                )
            if stage == _HELD:
                self._stage = _PASSING
                await self._send(self._start)
            elif kind in _FILES:
                raise RuntimeError(
                    f"{kind} follows on a part of the body that was compressed, and a file is sent as it is: send "
                    "the whole body in the same way, or set a Content-Encoding to have none of it compressed."
                )
        return await self._send(message)

    def start_stream(self) -> Message:
        """Begin a body of unknown length; returns the start to send."""
        self._stream: Stream = self._coding.stream()
        self._stage = _STREAMING
        return {**self._start, "headers": coded(self._headers, self._coding.name, None)}

    async def _begin(self, message: Message) -> None:
        """Take the first message of the body."""
        body = message.get("body") or b""
        size = len(body)
        length = self._length
        if message.get("more_body", False) and size != length:
            await self._send(self.start_stream())
            return await self._go_on(message)
        self._stage = _STUCK
        start = self._start
        required = self._refuses_identity
        least = 1 if required else max(1, self._policy.minimum_size)
        if size >= least and (length is None or length == size):
            compressed = await self._work(self._coding.compress, body)
            if len(compressed) < size or required:
                headers = coded(self._headers, self._coding.name, len(compressed))
                message = {**message, "body": compressed}
                self._note(size, len(compressed))
            else:
                headers = varied(self._headers)
            start = {**start, "headers": headers}
        await self._send(start)
        self._stage = _PASSING
        return await self._send(message)

    async def _go_on(self, message: Message) -> None:
        """Take a message of a body that is a stream."""
        chunk = message.get("body") or b""
        more = message.get("more_body", False)
        taken = self._taken = self._taken + len(chunk)
        length = self._length
        if length is not None and (taken > length or (taken < length and not more)):
            self._stage = _STUCK
            raise RuntimeError(
                f"The response's Content-Length is {length}, and its body has {taken} bytes"
                + (" so far." if more else ".")
            )
        if chunk or not more:
            stream = self._stream
            compressed = await self._work(stream.flush if more else stream.finish, chunk)
            self._sent += len(compressed)
            message = {**message, "body": compressed}
        if not more:
            self._stage = _PASSING
            self._note(taken, self._sent)
        await self._send(message)

    async def _work(self, function: Callable[[bytes], bytes], data: bytes) -> bytes:
        """Compress `data`, on the loop or in a thread."""
        self._on_loop += len(data)
        if self._on_loop < self._coding.offload_bytes:
            return self._timed(function, data)
        self._on_loop = 0
        stage, self._stage = self._stage, _STUCK
        compressed = await run_in_threadpool(
            self._timed, function, data, limiter=self._policy.limiter
        )
        self._stage = stage
        return compressed

    def _timed(self, function: Callable[[bytes], bytes], data: bytes) -> bytes:
        started_ns = perf_counter_ns()
        compressed = function(data)
        self._spent_ns += perf_counter_ns() - started_ns
        return compressed

    def _note(self, size: int, compressed: int) -> None:
        account = self._account
        if account is not None:
            account.observe("compression_time", self._spent_ns)
            account.observe("compression_ratio", size * 1000 // compressed)
