"""One request, or one websocket connection: the facts about it, recorded once.

Whichever middleware of the kit is outermost opens an :class:`Exchange` and hands the exchange's own `receive` and
`send` to the app. A middleware further in knows by these that the exchange is open (:func:`exchange_of`) and reads the
same facts; it wraps nothing. Where something that is not of the kit stands between and has put its own `send` in
place, the messages may have changed on the way, and the inner middleware opens an exchange of its own.

The rules by which facts are noted:

* A message is passed on first and unchanged, whatever it is. What the kit cannot read in it is counted as malformed
  and left for the server to judge.
* What a message says is read before it is handed over: who gets it may change it.
* A byte counts as sent when the server's `send` has returned.
* The wait for a message of the request body is upload time; the wait for a disconnect behind the body is not.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from threading import RLock
from time import perf_counter_ns
from typing import Any, ClassVar

from asgi_perfkit.metrics.histogram import Histogram, Snapshot
from asgi_perfkit.metrics.registry import condense
from asgi_perfkit.steps import Account, DrivenAccount, LateObserver, Owner, current_account
from asgi_perfkit.types import Message, Receive, Scope, Send

__all__ = ["Exchange", "HTTPExchange", "WebSocketExchange", "exchange_of"]

# How far a response, or a connection, has come. Where trailers are announced, the last message is theirs.
_TRAILED = -1  # trailers are announced
_OPEN = 0
_ENDING = 1  # its last message is on the way to the server
_TOLD = 2  # and the server has told of the end since
_COMPLETE = 3  # the server has taken the last message

_condensing = RLock()  # observations may come from several threads of a request
# Stands in for the scope of an exchange that is over: a task that outlives its request holds the exchange.
_NO_SCOPE: Scope = {}
# What reading a message may raise that is not made as the specification has it.
_UNREADABLE = (TypeError, ValueError, LookupError, AttributeError)


class Exchange(DrivenAccount):
    """What is known about one request or connection so far. Times are nanoseconds on the monotonic clock.

    :ivar started_ns: when the app was called.
    :ivar memory: the resident memory when the app was called, in bytes; None if it was not read.
    :ivar path: as it was then: routers rewrite the scope's.
    :ivar processing_ns: from the call of the app to `http.response.start`; None before.
    :ivar response_ns: from the call until the server took the last body message; None before.
    :ivar receive_ns: awaiting the request's body; None if the app never asked for it.
    :ivar send_ns: awaiting `send`; None if the app has sent nothing.
    :ivar status: of the response or of the handshake; None before.
    :ivar disconnected: whether the client left before all had been said: the last body message taken by the server,
        and the trailers if there were to be any; of a connection, before one side had closed it.
    :ivar request_bytes: body bytes received.
    :ivar response_bytes: body bytes sent.
    :ivar condensed: what :meth:`condense` has made of observations, by metric; None as a rule.
    :ivar malformed: messages that the kit could not read.
    :ivar decorate_start: makes the `http.response.start` message that is sent of the one that the app sent.
    """

    __slots__ = (
        "_receive",
        "_send",
        "_stage",
        "_uploaded",
        "condensed",
        "decorate_start",
        "disconnected",
        "malformed",
        "memory",
        "path",
        "processing_ns",
        "receive_ns",
        "request_bytes",
        "response_bytes",
        "response_ns",
        "scope",
        "send_ns",
        "status",
    )

    metrics: ClassVar[tuple[str, ...]]
    """The names of the :meth:`figures`."""

    def __init__(
        self, owner: Owner, parent: Account | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.started_ns = perf_counter_ns()
        # Account's fields, set here: a call of its constructor costs as much as a third of all this.
        self.loop_ns = self.longest_ns = 0
        self.stepping = self.closed = False
        self.observers = ()
        self.first = None
        self.parent = parent
        self.endpoint = self.late = self.observations = self.tasks = self.encoder = None
        self.condensed: dict[str, Histogram] | None = None
        self.owner = owner
        self.memory: int | None = None
        self.scope = scope
        self.path: object = scope.get("path", "")  # a string, if the server is right
        self._receive = receive
        self._send = send
        self.processing_ns: int | None = None
        self.response_ns: int | None = None
        self.receive_ns: int | None = None
        self.send_ns: int | None = None
        self.request_bytes = self.response_bytes = 0
        self.malformed = 0
        self.status: int | None = None
        self._stage = _OPEN
        self.disconnected = False
        self.decorate_start: Callable[[Exchange, Message], Message] | None = None
        self._uploaded = False  # whether the request's body is in

    async def receive_message(self) -> Message:
        """Pass on what comes from the client; the `receive` for the app."""
        raise NotImplementedError

    async def send_message(self, message: Message) -> None:
        """Pass on what the app says; the `send` for the app."""
        raise NotImplementedError

    def end(self, late: LateObserver | None) -> None:
        self.scope = _NO_SCOPE
        Account.end(self, late)

    @property
    def method(self) -> str:
        """As it is told: one that is not a method is `OTHER`."""
        raise NotImplementedError

    def figures(self, total_ns: int, memory_delta: int | None) -> tuple[int | None, ...]:
        """What this request or connection has come to.

        :param total_ns: from the call of the app until now.
        :param memory_delta: by how many bytes the resident memory has grown, if that is known.
        """
        raise NotImplementedError

    def condense(self) -> None:
        with _condensing:
            if self.condensed is None:
                self.condensed = {}
            condense(self.condensed, self.take_observations())

    def observations_so_far(self) -> tuple[list[tuple[str, int]], dict[str, Snapshot]]:
        """A copy of the observations, and one of what was condensed of others."""
        with _condensing:
            condensed = self.condensed or {}
            copies = {metric: histogram.snapshot() for metric, histogram in condensed.items()}
            return list(self.observations or ()), copies

    def finish_tasks(self, error: BaseException | None) -> None:
        """Let go of the tasks that were added, if there is somebody for them: the app has returned or raised `error`.

        A response that is with the client stands, also when the server cancels what the app does after it.
        """
        if self.tasks is not None:
            failed = error is not None and not (
                self._stage == _COMPLETE and _is_cancellation(error)
            )
            self.tasks.finish(self, failed=failed)

    def outcome(self, error: BaseException | None) -> str:
        """How it ended, once the app has returned or has raised `error`.

        Whoever leaves before the last byte is `disconnected`, whatever the app made of it then.
        """
        if self.disconnected:
            return "disconnected"
        if error is None:
            return "ok" if self._stage == _COMPLETE else "incomplete"
        return "cancelled" if _is_cancellation(error) else "error"

    def _read_status(self, status: object) -> int | None:
        if isinstance(status, int) and 100 <= status <= 999:  # http.HTTPStatus is an int, too
            return int(status)
        self.malformed += 1
        return None


class HTTPExchange(Exchange):
    """A request and its response."""

    __slots__ = ()

    metrics = (
        "processing_time",
        "response_time",
        "total_time",
        "receive_time",
        "send_time",
        "loop_time",
        "longest_step",
        "request_size",
        "response_size",
        "memory_delta",
    )

    @property
    def method(self) -> str:
        method: str = self.scope.get("method", "")
        # That is not a method, though a client may send it as one.
        return "OTHER" if method == "WEBSOCKET" else method

    def figures(self, total_ns: int, memory_delta: int | None) -> tuple[int | None, ...]:
        # What an app says in reply to HEAD stays with the server (RFC 9110, section 9.3.2).
        # Nor has a 204 or 304 a body (sections 15.3.5 and 15.4.5).
        bodiless = self.status in (204, 304) or self.scope.get("method") == "HEAD"
        return (
            self.processing_ns,
            self.response_ns,
            total_ns,
            self.receive_ns,
            self.send_ns,
            self.loop_ns,
            self.longest_ns,
            None if self.receive_ns is None else self.request_bytes,
            None if self.processing_ns is None else 0 if bodiless else self.response_bytes,
            memory_delta,
        )

    async def receive_message(self) -> Message:
        started_ns = perf_counter_ns()
        try:
            message = await self._receive()
        except BaseException:
            self._count_upload_time(started_ns)
            raise
        self._note_received(message, started_ns)
        return message

    def _note_received(self, message: Message, started_ns: int) -> None:
        # Not in the coroutine: what it keeps while it waits is kept for every request that does.
        try:
            kind = message["type"]
            if kind == "http.request":
                self._count_upload_time(started_ns)
                self.request_bytes += len(message.get("body") or b"")
                if not message.get("more_body", False):
                    self._uploaded = True
            elif kind == "http.disconnect":
                self._count_upload_time(started_ns)
                # A server tells of a disconnect behind a complete response too, and may do so before its `send` of
                # the last message has returned (hypercorn 0.18 does): that is no client who left early.
                if self._stage <= _OPEN:
                    self.disconnected = True
                elif self._stage == _ENDING:
                    self._stage = _TOLD
            else:
                self.malformed += 1
        except _UNREADABLE:
            self.malformed += 1

    async def send_message(self, message: Message) -> None:
        kind = None
        size = 0
        last = False
        started_ns = perf_counter_ns()
        try:
            kind = message["type"]
            if kind == "http.response.body":
                if "body" in message:
                    size = len(message["body"] or b"")
                if not message.get("more_body"):
                    last = True
                    if self._stage == _OPEN:
                        self._stage = _ENDING
            elif kind == "http.response.start":
                if self.processing_ns is None:  # or else it is sent twice, for the server to judge
                    self.processing_ns = started_ns - self.started_ns
                    if message.get("trailers") and self._stage == _OPEN:
                        self._stage = _TRAILED
                    self.status = self._read_status(message["status"])
                    if self.decorate_start is not None:
                        message = self.decorate_start(self, message)
            else:
                size, last = self._read_extension(kind, message)
        except _UNREADABLE:
            self.malformed += 1
        # What a server starts when it has the last message is not part of this request: uvicorn 0.54 makes the task of
        # the next one, where requests are pipelined, and timers that live for as long as the connection.
        ending = self._stage > _OPEN
        token = current_account.set(self.parent) if ending else None
        taken = False
        try:
            await self._send(message)
            taken = True
        except OSError:
            # How a server says that the client has left (ASGI 2.4); a file to send may also be missing.
            if kind in ("http.response.start", "http.response.body") and self._stage != _COMPLETE:
                self.disconnected = True
            raise
        except BaseException:
            # Told of the end while its last message is on the way, an app may give up waiting for that.
            taken = self._stage == _TOLD
            raise
        finally:
            now_ns = perf_counter_ns()
            self.send_ns = (self.send_ns or 0) + now_ns - started_ns
            if taken:
                self.response_bytes += size
                if last and self.response_ns is None:
                    self.response_ns = now_ns - self.started_ns
                if ending:
                    self._stage = _COMPLETE
            if token is not None:
                try:
                    current_account.reset(token)
                except ValueError:
                    pass  # closed in another context than it began in; there is nothing to restore

    def _read_extension(self, kind: object, message: Message) -> tuple[int, bool]:
        """How many body bytes a message of an extension stands for, and whether it ends the body."""
        if kind == "http.response.trailers":
            if not message.get("more_trailers", False) and self._stage <= _OPEN:
                self._stage = _ENDING
        elif kind == "http.response.pathsend":
            if self._stage == _OPEN:
                self._stage = _ENDING
            return _size_of(message["path"]), True
        elif kind == "http.response.zerocopysend":
            last = not message.get("more_body", False)
            if last and self._stage == _OPEN:
                self._stage = _ENDING
            count = message.get("count")
            if count is None:
                return _size_of(message["file"], message.get("offset") or 0), last
            return int(count), last
        elif kind not in ("http.response.push", "http.response.early_hint", "http.response.debug"):
            self.malformed += 1
        return 0, False

    def _count_upload_time(self, started_ns: int) -> None:
        if not self._uploaded:
            self.receive_ns = (self.receive_ns or 0) + perf_counter_ns() - started_ns


class WebSocketExchange(Exchange):
    """A websocket connection.

    :ivar messages_in: `websocket.receive` messages.
    :ivar messages_out: `websocket.send` messages.
    """

    __slots__ = ("messages_in", "messages_out")

    metrics = (
        "websocket_time",
        "websocket_messages_in",
        "websocket_messages_out",
        "send_time",
        "loop_time",
        "longest_step",
    )

    def __init__(
        self, owner: Owner, parent: Account | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        super().__init__(owner, parent, scope, receive, send)
        self.messages_in = self.messages_out = 0

    @property
    def method(self) -> str:
        return "WEBSOCKET"

    def figures(self, total_ns: int, memory_delta: int | None) -> tuple[int | None, ...]:
        return (
            total_ns,
            self.messages_in,
            self.messages_out,
            self.send_ns,
            self.loop_ns,
            self.longest_ns,
        )

    async def receive_message(self) -> Message:
        message = await self._receive()
        self._note_received(message)
        return message

    def _note_received(self, message: Message) -> None:
        try:
            kind = message["type"]
            if kind == "websocket.receive":
                self.messages_in += 1
            elif kind == "websocket.disconnect":
                # The end of a connection as any other: its code does not tell a client that was lost from one that
                # has closed (hypercorn 0.18 reports 1006 for both).
                self._stage = _COMPLETE
            elif kind != "websocket.connect":
                self.malformed += 1
        except _UNREADABLE:
            self.malformed += 1

    async def send_message(self, message: Message) -> None:
        kind = None
        ends = False
        try:
            kind = message["type"]
            ends = self._note(kind, message)
        except _UNREADABLE:
            self.malformed += 1
        started_ns = perf_counter_ns()
        try:
            await self._send(message)
        except OSError:
            if self._stage != _COMPLETE:
                self.disconnected = True
            raise
        finally:
            self.send_ns = (self.send_ns or 0) + perf_counter_ns() - started_ns
        if kind == "websocket.send":
            self.messages_out += 1
        elif kind == "websocket.accept":
            self.status = 101
        elif ends:
            self._stage = _COMPLETE

    def _note(self, kind: object, message: Message) -> bool:
        """Note the status that a message says; returns whether it ends the connection."""
        if kind == "websocket.close":
            if self.status is None:
                self.status = 403  # what a close before the handshake comes to
            return True
        if kind == "websocket.http.response.start":
            self.status = self._read_status(message["status"])
        elif kind == "websocket.http.response.body":
            return not message.get("more_body", False)
        elif kind not in ("websocket.accept", "websocket.send"):
            self.malformed += 1
        return False


def exchange_of(send: Send) -> Exchange | None:
    """The open exchange whose own `send` this is; None if it is another's."""
    owner = getattr(send, "__self__", None)
    return owner if isinstance(owner, Exchange) else None


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return True
    # Another thread may be importing trio just now: then the module is there, and nothing in it.
    cancelled = getattr(sys.modules.get("trio"), "Cancelled", None)
    if cancelled is not None and isinstance(error, cancelled):
        return True
    # An exception group, of Python 3.11 or of the package that brings it to 3.10.
    inner = getattr(error, "exceptions", None)
    return isinstance(inner, tuple) and bool(inner) and all(map(_is_cancellation, inner))


def _size_of(file: Any, offset: int = 0) -> int:
    """The bytes of a file, by path, descriptor or file object, behind `offset`; 0 if it cannot be told."""
    try:
        status = os.stat(file if isinstance(file, (str, bytes, int)) else file.fileno())  # noqa: PTH116  # a descriptor
        return max(0, status.st_size - offset)
    except OSError:
        return 0  # the server will say what is wrong with it
