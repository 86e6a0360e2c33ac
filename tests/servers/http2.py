"""An HTTP/2 client that speaks in clear text, of prior knowledge, and sends what the test says, when it says so."""

from __future__ import annotations

import socket
from types import TracebackType

import h2.config
import h2.connection
import h2.events

PATIENCE_SECONDS = 10


class HTTP2Connection:
    """A connection, as a context manager; several requests at the same time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._bodies: dict[int, bytes] = {}
        self._complete: set[int] = set()
        self._h2.initiate_connection()
        self._flush()

    def __enter__(self) -> HTTP2Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def ask(self, path: str) -> int:
        """Send a GET request; the number of its stream."""
        return self._begin("GET", path, end_stream=True)

    def begin_upload(self, path: str, *parts: bytes) -> int:
        """Send a POST request with the first parts of its body, each in a frame; the number of its stream."""
        stream = self._begin("POST", path, end_stream=False)
        for part in parts:
            self._h2.send_data(stream, part)
        self._flush()
        return stream

    def receive(self, stream: int) -> bytes:
        """Wait for the whole response; its body."""
        while stream not in self._complete:
            data = self._socket.recv(65_536)
            assert data, "the server has closed the connection"
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    assert event.stream_id is not None
                    self._bodies[event.stream_id] += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    assert event.stream_id is not None
                    self._complete.add(event.stream_id)
            self._flush()
        return self._bodies[stream]

    def _begin(self, method: str, path: str, *, end_stream: bool) -> int:
        stream = self._h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", "there"), (":path", path)]
        self._h2.send_headers(stream, head, end_stream=end_stream)
        self._bodies[stream] = b""
        self._flush()
        return stream

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())
