"""One request as it is read: what its head says, once it is asked for, and the chunks of its body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from asgi_perfkit.exceptions import (
    BodyTooLargeError,
    ClientDisconnectedError,
    InvalidRequestError,
    Problem,
)
from asgi_perfkit.types import Receive, Scope

__all__ = ["BodyStream", "Intake", "Texts", "parse_pairs"]

Texts = dict[str, list[str]]


class Intake:
    """What a request has brought so far.

    :ivar values: of the parameters, by what makes them.
    :ivar begun: whether any of its body was asked for.
    :ivar whole: whether all of its body has come, or the client has left.
    :ivar uploads: the files that have come, to be closed at the end.
    """

    __slots__ = ("_headers", "_query", "begun", "receive", "scope", "uploads", "values", "whole")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive
        self.values: dict[Any, Any] = {}
        self.whole = False
        self.begun = False
        self.uploads: list[Any] = []
        self._query: Texts | None = None
        self._headers: Texts | None = None

    def query(self) -> Texts:
        """The values in the query string, in their order, by name.

        :raises InvalidRequestError: it is not UTF-8.
        """
        found = self._query
        if found is None:
            try:
                found = parse_pairs(self.scope["query_string"])
            except UnicodeDecodeError:
                raise InvalidRequestError([Problem("query", "", "it is not UTF-8")]) from None
            self._query = found
        return found

    def headers(self) -> Texts:
        """The values of the headers, each line's by itself, by name in lower case."""
        found = self._headers
        if found is None:
            found = self._headers = {}
            for name, value in self.scope["headers"]:
                found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        return found

    def path(self) -> Mapping[str, Any]:
        """What the router has found in the path, by name."""
        found: Mapping[str, Any] = self.scope.get("path_params") or {}
        return found

    def content(self) -> tuple[bytes | None, int | None]:
        """What the head says of the body: its type and its length."""
        content_type = length = None
        for name, value in self.scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                # Python refuses to read a number of very many digits, and no body is that long.
                length = int(value) if value.isdigit() and len(value) < 20 else None
        return content_type, length

    async def chunk(self) -> bytes:
        """What comes next of the body, which may be nothing.

        :raises ClientDisconnectedError: the client has left.
        """
        self.begun = True
        message = await self.receive()
        if message["type"] != "http.request":
            self.whole = True
            raise ClientDisconnectedError
        self.whole = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def body(self, max_size: int | None, length: int | None) -> bytes:
        """All of the body.

        :param max_size: how many bytes it may have; None for any number.
        :param length: how many it has, as the head says.
        :raises BodyTooLargeError: it has more; it has not been read whole then.
        :raises ClientDisconnectedError: the client has left.
        """
        if max_size is not None and length is not None and length > max_size:
            raise BodyTooLargeError(max_size)
        chunk = await self.chunk()
        size = len(chunk)
        chunks = [chunk]
        while True:
            if max_size is not None and size > max_size:
                raise BodyTooLargeError(max_size)
            if self.whole:
                return chunk if len(chunks) == 1 else b"".join(chunks)
            chunk = await self.chunk()
            size += len(chunk)
            chunks.append(chunk)


class BodyStream:
    """The body of a request, chunk by chunk as it comes: an asynchronous iterator.

    :ivar size: bytes that have come so far.
    :ivar length: bytes in all, if the head says it: for progress.
    """

    __slots__ = ("_intake", "_max_size", "length", "size")

    def __init__(self, intake: Intake, max_size: int | None, length: int | None) -> None:
        self._intake = intake
        self._max_size = max_size
        self.length = length
        self.size = 0

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        """The next chunk, which is never empty.

        :raises BodyTooLargeError: there are more bytes than there may be.
        :raises ClientDisconnectedError: the client has left.
        """
        while not self._intake.whole:
            chunk = await self._intake.chunk()
            self.size += len(chunk)
            if self._max_size is not None and self.size > self._max_size:
                raise BodyTooLargeError(self._max_size)
            if chunk:
                return chunk
        raise StopAsyncIteration


def parse_pairs(raw: bytes) -> Texts:
    """What ``a=1&b=2`` has, as it is in a query or a form.

    :raises UnicodeDecodeError: it is not UTF-8, or what is percent-encoded in it is not.
    """
    found: Texts = {}
    for pair in raw.decode().split("&"):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        if "%" in pair or "+" in pair:
            name = unquote(name.replace("+", " "), errors="strict")
            value = unquote(value.replace("+", " "), errors="strict")
        values = found.get(name)
        if values is None:
            found[name] = [value]
        else:
            values.append(value)
    return found
