"""Server-sent events, as the HTML standard has them (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from asgi_perfkit.encoding.encoder import Encoder
from asgi_perfkit.encoding.framing import Framing
from asgi_perfkit.exceptions import (
    ConfigurationTypeError,
    ConfigurationValueError,
    EncodeError,
)

__all__ = ["Event", "EventFraming"]

# The only ends of lines that the standard knows; str.splitlines() knows many more.
_LINE_ENDS = re.compile(r"\r\n|\n|\r")
_NO_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event, or a comment between events.

    :param data: what the client gets as ``data``: a string as it is, of one line or of several, anything else as its
        JSON. None for none; an event without data is not told to anybody, so it has no `event` either.
    :param event: its type; the client's ``"message"`` if None.
    :param id: what a client that comes back says as ``Last-Event-ID``; an empty one makes it forget the last.
    :param retry: after how many milliseconds a client that has lost the connection comes back.
    :param comment: what clients skip.
    :raises ConfigurationTypeError: `event` or `comment` is no string, `id` no string and no integer, `retry` no
        integer, or there is nothing at all.
    :raises ConfigurationValueError: `event` or `id` has a line break, `id` a NUL, `retry` is negative, or there is an
        `event` without data.
    """

    data: Any = None
    event: str | None = None
    id: str | int | None = None
    retry: int | None = None
    comment: str | None = None

    def __post_init__(self) -> None:
        event, name, retry, comment = self.event, self.id, self.retry, self.comment
        if event is not None:
            _check_line("Event(event=...)", event, "\r\n")
            if self.data is None:
                raise ConfigurationValueError(
                    "Event(event=...)", event, "without data no client is told of it; give data=''."
                )
        if name is not None and type(name) is not int:
            _check_line("Event(id=...)", name, "\r\n\0")
        if retry is not None:
            if type(retry) is not int:
                raise ConfigurationTypeError(
                    "Event(retry=...)", retry, "an integer of milliseconds is needed."
                )
            if retry < 0:
                raise ConfigurationValueError("Event(retry=...)", retry, "it must not be negative.")
        if comment is not None and not isinstance(comment, str):
            raise ConfigurationTypeError("Event(comment=...)", comment, "a comment is a string.")
        if self.data is None and name is None and retry is None and comment is None:
            raise ConfigurationTypeError(
                "Event(data=...)", None, "there is nothing to send; null is Event('null')."
            )


def _check_line(subject: str, text: object, forbidden: str) -> None:
    if not isinstance(text, str):
        raise ConfigurationTypeError(subject, text, "a string is needed.")
    if any(character in text for character in forbidden):
        raise ConfigurationValueError(subject, text, "a line break or NUL would end it there.")


class EventFraming(Framing):
    """A stream of :class:`Event`; any other row is the data of one, as JSON."""

    end: ClassVar[bytes] = b"\n\n"
    idle: ClassVar[bytes] = b":\n\n"

    def encode_with(self, encoder: Encoder) -> Callable[[Any], bytes]:
        dumps = encoder.dumps

        def encode(row: Any) -> bytes:
            if isinstance(row, Event):
                try:
                    return _lines_of(row, dumps)
                except UnicodeEncodeError as error:
                    raise EncodeError(
                        "$",
                        "asgi_perfkit.Event",
                        f"{error.object!r} has a lone surrogate, and events are UTF-8; replace it.",
                    ) from None
            return b"data: " + _one_line(dumps(row))

        return encode

    def flatten(self, row: bytes) -> bytes:
        return row  # an event has lines


def _lines_of(event: Event, dumps: Callable[[Any], bytes]) -> bytes:
    lines: list[bytes] = []
    if event.comment is not None:
        lines += (f": {line}".encode() for line in _LINE_ENDS.split(event.comment))
    if event.event is not None:
        lines.append(f"event: {event.event}".encode())
    if event.id is not None:
        lines.append(f"id: {event.id}".encode())
    if event.retry is not None:
        lines.append(b"retry: %d" % event.retry)
    data = event.data
    if isinstance(data, str):
        lines += (f"data: {line}".encode() for line in _LINE_ENDS.split(data))
    elif data is not None:
        lines.append(b"data: " + _one_line(dumps(data)))
    return b"\n".join(lines)


def _one_line(body: bytes) -> bytes:
    if b"\n" in body or b"\r" in body:
        return body.translate(_NO_LINE_ENDS)
    return body
