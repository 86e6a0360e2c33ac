"""An HTTP/1.1 and websocket client whose every byte moves when the test says so.

The usual clients read ahead and write behind; here a slow reader is one that has not called
`receive_body_part()`, and the bytes of a body are counted as they come off the wire.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import h11
import wsproto
import wsproto.events

#: No exchange of these tests takes so long; a server that hangs fails its test instead of stopping the run.
PATIENCE_SECONDS = 10


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class _Socket:
    """A connected socket, as an asynchronous context manager."""

    def __init__(self, port: int, *, receive_buffer_bytes: int | None = None) -> None:
        self._port = port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        if receive_buffer_bytes is not None:
            # Before connecting: the window that is offered to the server depends on it.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)

    async def __aenter__(self) -> Any:
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    async def _write(self, data: bytes) -> None:
        writing = asyncio.get_running_loop().sock_sendall(self._socket, data)
        await asyncio.wait_for(writing, PATIENCE_SECONDS)

    async def _read(self) -> bytes:
        reading = asyncio.get_running_loop().sock_recv(self._socket, 65_536)
        return await asyncio.wait_for(reading, PATIENCE_SECONDS)


class Connection(_Socket):
    """A keep-alive connection: whole requests with `request()`, or one step at a time."""

    def __init__(self, port: int, *, receive_buffer_bytes: int | None = None) -> None:
        super().__init__(port, receive_buffer_bytes=receive_buffer_bytes)
        self._h11 = h11.Connection(h11.CLIENT)

    async def request(self, method: str, target: str, body: bytes | None = None) -> Response:
        """Send a whole request and read the whole response."""
        await self.send_head(method, target, length=None if body is None else len(body))
        if body:
            await self.send_body_part(body)
        await self.send_end()
        return await self.receive()

    async def send_head(
        self,
        method: str,
        target: str,
        *,
        length: int | None = None,
        chunked: bool = False,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        head = [("host", "127.0.0.1"), *headers]
        if length is not None:
            head.append(("content-length", str(length)))
        if chunked:
            head.append(("transfer-encoding", "chunked"))
        await self._send(h11.Request(method=method, target=target, headers=head))

    async def send_body_part(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def send_end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def receive(self) -> Response:
        status, headers = await self.receive_head()
        body = b"".join([part async for part in self.receive_body()])
        return Response(status, headers, body)

    async def receive_head(self) -> tuple[int, dict[str, str]]:
        while isinstance(event := await self._next_event(), h11.InformationalResponse):
            pass
        assert isinstance(event, h11.Response), event
        headers = {name.decode(): value.decode("latin1") for name, value in event.headers}
        return event.status_code, headers

    async def receive_body(self) -> AsyncIterator[bytes]:
        """What the body is made of, without the chunked encoding's frames."""
        while (part := await self.receive_body_part()) is not None:
            yield part

    async def receive_body_part(self) -> bytes | None:
        """What has arrived of the body; None at its end."""
        event = await self._next_event()
        if isinstance(event, h11.EndOfMessage):
            return None
        assert isinstance(event, h11.Data), event
        return bytes(event.data)

    async def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            await self._write(data)

    async def _next_event(self) -> h11.Event:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._read())
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("The server closed the connection.")
        assert not isinstance(event, type), event
        return event


class WebSocket(_Socket):
    """A websocket connection; entering the block does the handshake, leaving it closes with code 1000."""

    def __init__(self, port: int, target: str) -> None:
        super().__init__(port)
        self._target = target
        self._ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)

    async def __aenter__(self) -> WebSocket:
        await super().__aenter__()
        await self._send(wsproto.events.Request(host="127.0.0.1", target=self._target))
        event = await self._next_event()
        if not isinstance(event, wsproto.events.AcceptConnection):
            self.close()
            raise ConnectionError(f"The server refused the websocket: {event}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self._send(wsproto.events.CloseConnection(code=1000))
            event = await self._next_event()
            assert isinstance(event, wsproto.events.CloseConnection), event
        self.close()

    async def send_text(self, text: str) -> None:
        await self._send(wsproto.events.TextMessage(data=text))

    async def receive_text(self) -> str:
        text = ""
        while True:
            event = await self._next_event()
            assert isinstance(event, wsproto.events.TextMessage), event
            text += event.data
            if event.message_finished:
                return text

    async def _send(self, event: wsproto.events.Event) -> None:
        await self._write(self._ws.send(event))

    async def _next_event(self) -> wsproto.events.Event:
        while True:
            for event in self._ws.events():
                return event
            data = await self._read()
            self._ws.receive_data(data or None)
