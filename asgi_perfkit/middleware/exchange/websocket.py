"""A websocket connection."""

from __future__ import annotations

from time import perf_counter_ns

from asgi_perfkit.middleware.exchange.base import COMPLETE, UNREADABLE, Exchange
from asgi_perfkit.steps import Account, Owner
from asgi_perfkit.types import Message, Receive, Scope, Send

__all__ = ["WebSocketExchange"]


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
                self._stage = COMPLETE
            elif kind != "websocket.connect":
                self.malformed += 1
        except UNREADABLE:
            self.malformed += 1

    async def send_message(self, message: Message) -> None:
        kind = None
        ends = False
        try:
            kind = message["type"]
            ends = self._note(kind, message)
        except UNREADABLE:
            self.malformed += 1
        started_ns = perf_counter_ns()
        try:
            await self._send(message)
        except OSError:
            if self._stage != COMPLETE:
                self.disconnected = True
            raise
        finally:
            self.send_ns = (self.send_ns or 0) + perf_counter_ns() - started_ns
        if kind == "websocket.send":
            self.messages_out += 1
        elif kind == "websocket.accept":
            self.status = 101
        elif ends:
            self._stage = COMPLETE

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
