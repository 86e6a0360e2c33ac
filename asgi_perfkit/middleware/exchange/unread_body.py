"""Reads on in a request's body while the server does not take the end of its response.

hypercorn 0.18 keeps 10 messages for an app that does not receive them, and has no room for more: neither for the rest
of the body, nor for the disconnect that it puts there behind the last message of a response, before its `send` returns.
An app that answers without reading a large body has its client answered, and waits in that `send` for ever.

The rules:

* Something is read only while the last `send` waits and the app does not receive by itself, one message in each turn of
  the loop: of what hypercorn has, two or three are enough.
* Nothing is taken from the app: what was read is kept, and what it receives later is what the server has said, in
  order. Only of a body of which too much would have to be kept it gets the beginning, and then the disconnect, as if
  the client had left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from contextvars import copy_context

from asgi_perfkit.steps.loop import asyncio_loop
from asgi_perfkit.tasks.item import in_context
from asgi_perfkit.tasks.loop import Flag, Job
from asgi_perfkit.tasks.running import running_loop
from asgi_perfkit.threads.hop import checkpoint
from asgi_perfkit.types import Message, Receive, Scope

__all__ = ["UnreadBody", "is_worth_reading"]

# More than the server has in its queue (10 messages of 64 KiB): an app that could read them without this, can.
_KEPT_BYTES = 1 << 20


class UnreadBody:
    """What the server says, read on behalf of an app that does not ask for it.

    :param receive: the server's.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: deque[Message | Exception] = deque()
        self._room_bytes = _KEPT_BYTES  # below 0 there is a hole behind what was kept
        self._is_over = False  # there is no more to read: the body is in, or the client gone
        self._context = copy_context()
        self._job: Job | None = None
        self._ended: Flag | None = None  # of that job
        self._is_stopping = self._again = (
            False  # whether it is to end, and another one to begin then
        )

    def read_on(self) -> None:
        """Begin to read, unless that goes on already, or there is nothing more."""
        if self._is_over:
            return
        if self._job is not None:
            self._again = self._is_stopping
            return
        try:
            loop = running_loop()
        except RuntimeError:  # somebody drives the app by hand, who will know what it waits for
            return
        self._ended = loop.flag()
        self._is_stopping = False
        self._job = loop.start(self._begin, self._note_end)

    def stop(self) -> None:
        """Read no more; a `receive` that waits is given up."""
        self._again = False
        if self._job is not None:
            self._is_stopping = True
            with suppress(RuntimeError):  # the loop is closed
                self._job.cancel()

    async def receive(self) -> Message:
        """What the server has said, or says next; for the app."""
        if self._job is not None:
            self.stop()
            assert self._ended is not None
            await self._ended.wait()
        if self._kept:
            kept = self._kept.popleft()
            if isinstance(kept, Exception):
                raise kept
            return kept
        message = await self._receive()
        while self._room_bytes < 0 and _is_body(message):
            message = await self._receive()
        return message

    async def _begin(self) -> None:
        # Whatever is around the server's `receive` finds the context of the request.
        await in_context(self._read(), self._context)

    async def _read(self) -> None:
        while not self._is_over:
            try:
                message = await self._receive()
            except Exception as error:  # for the app, if it asks
                self._is_over = True
                self._kept.append(error)
            else:
                self._keep(message)
                await checkpoint()

    def _keep(self, message: Message) -> None:
        if _is_body(message):
            self._is_over = not message.get("more_body", False)
            body = message.get("body")
            if self._room_bytes >= 0 and isinstance(body, bytes):
                self._room_bytes -= len(body)
            if self._room_bytes < 0:
                return
        else:
            self._is_over = True
        self._kept.append(message)

    def _note_end(self) -> None:
        self._job = None
        if self._ended is not None:
            self._ended.set()
        if self._again:
            self._again = False
            self.read_on()


def _is_body(message: object) -> bool:
    # Whatever the server says, it is for the app to judge.
    return isinstance(message, Mapping) and message.get("type") == "http.request"


def is_worth_reading(scope: Scope) -> bool:
    """Whether a request may have a body that keeps its response from ending, so far as its head tells.

    A request of HTTP/1 without one of these headers has none. One of HTTP/2 and later may have; a GET or HEAD then is
    taken to have none: there are too many without one, and hardly any with.
    """
    is_http_1 = scope.get("http_version", "1.1").startswith("1")
    if not is_http_1 and asyncio_loop() is None:
        # hypercorn's trio worker dies of what comes of a body when its response is complete (a KeyError, which on
        # asyncio costs the connection): better that it does not come.
        return False
    for name, value in scope["headers"]:
        if name == b"content-length":
            return bool(value != b"0")
        if name == b"transfer-encoding":
            return True
    return not is_http_1 and scope["method"] not in ("GET", "HEAD")
