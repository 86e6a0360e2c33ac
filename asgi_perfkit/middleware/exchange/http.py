"""A request and its response."""

from __future__ import annotations

import os
from time import perf_counter_ns
from typing import Any

from asgi_perfkit.middleware.exchange.base import (
    COMPLETE,
    ENDING,
    OPEN,
    TOLD,
    TRAILED,
    UNREADABLE,
    Exchange,
)
from asgi_perfkit.middleware.exchange.unread_body import UnreadBody, is_worth_reading
from asgi_perfkit.steps import current_account
from asgi_perfkit.types import Message

__all__ = ["HTTPExchange"]


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

    def held_up(self) -> None:
        # The server may want the body to be read, which the app leaves unread.
        if self._stage != ENDING or self._uploaded or self._receiving or self.tasks is None:
            return
        if self._unread is None:
            try:
                if not is_worth_reading(self.scope):
                    return
            except UNREADABLE:
                return
            self._unread = UnreadBody(self._receive)
        self._unread.read_on()

    async def receive_message(self) -> Message:
        started_ns = perf_counter_ns()
        self._receiving += 1
        try:
            message = await (self._receive() if self._unread is None else self._unread.receive())
        except BaseException:
            self._count_upload_time(started_ns)
            raise
        else:
            self._note_received(message, started_ns)
            return message
        finally:
            self._receiving -= 1
            if self.ending:
                self.held_up()

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
                if self._stage <= OPEN:
                    self.disconnected = True
                elif self._stage == ENDING:
                    self._stage = TOLD
            else:
                self.malformed += 1
        except UNREADABLE:
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
                if "more_body" not in message or not message["more_body"]:
                    last = True
                    if self._stage == OPEN:
                        self._stage = ENDING
            elif kind == "http.response.start":
                if self.processing_ns is None:  # or else it is sent twice, for the server to judge
                    self.processing_ns = started_ns - self.started_ns
                    if "trailers" in message and message["trailers"] and self._stage == OPEN:
                        self._stage = TRAILED
                    status = message["status"]
                    if type(status) is not int or not 100 <= status <= 999:
                        status = self._read_status(status)
                    self.status = status
                    if self.decorate_start is not None:
                        message = self.decorate_start(self, message)
            else:
                size, last = self._read_extension(kind, message)
        except UNREADABLE:
            self.malformed += 1
        # What a server starts when it has the last message is not part of this request: uvicorn 0.54 makes the task of
        # the next one, where requests are pipelined, and timers that live for as long as the connection.
        token = None
        if self._stage > OPEN:
            token = current_account.set(self.parent)
            self.ending = True
            if not self.stepping:  # in a task that is not followed, whose steps are not known
                self.held_up()
        taken = False
        try:
            await self._send(message)
            taken = True
        except OSError:
            # How a server says that the client has left (ASGI 2.4); a file to send may also be missing.
            if kind in ("http.response.start", "http.response.body") and self._stage != COMPLETE:
                self.disconnected = True
            raise
        except BaseException:
            # Told of the end while its last message is on the way, an app may give up waiting for that.
            taken = self._stage == TOLD
            raise
        finally:
            now_ns = perf_counter_ns()
            self.send_ns = (self.send_ns or 0) + now_ns - started_ns
            if taken:
                self.response_bytes += size
                if last and self.response_ns is None:
                    self.response_ns = now_ns - self.started_ns
                if token is not None:
                    self._stage = COMPLETE
            if token is not None:
                self.ending = False
                if self._unread is not None:
                    self._unread.stop()
                try:
                    current_account.reset(token)
                except ValueError:
                    pass  # closed in another context than it began in; there is nothing to restore

    def _read_extension(self, kind: object, message: Message) -> tuple[int, bool]:
        """How many body bytes a message of an extension stands for, and whether it ends the body."""
        if kind == "http.response.trailers":
            if not message.get("more_trailers", False) and self._stage <= OPEN:
                self._stage = ENDING
        elif kind == "http.response.pathsend":
            if self._stage == OPEN:
                self._stage = ENDING
            return _size_of(message["path"]), True
        elif kind == "http.response.zerocopysend":
            last = not message.get("more_body", False)
            if last and self._stage == OPEN:
                self._stage = ENDING
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


def _size_of(file: Any, offset: int = 0) -> int:
    """The bytes of a file, by path, descriptor or file object, behind `offset`; 0 if it cannot be told."""
    try:
        status = os.stat(file if isinstance(file, (str, bytes, int)) else file.fileno())  # noqa: PTH116  # a descriptor
        return max(0, status.st_size - offset)
    except OSError:
        return 0  # the server will say what is wrong with it
