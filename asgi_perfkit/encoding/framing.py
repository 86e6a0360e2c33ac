"""How rows follow each other in one body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from asgi_perfkit.encoding.encoder import Encoder

__all__ = ["ArrayFraming", "Framing", "LineFraming"]


class Framing:
    """Of one stream.

    :cvar end: what stands behind each row.
    :cvar idle: what tells the reader that the stream is alive, if it has no row; nothing, as a rule.
    """

    end: ClassVar[bytes] = b"\n"
    idle: ClassVar[bytes] = b""

    def encode_with(self, encoder: Encoder) -> Callable[[Any], bytes]:
        """The function that makes the bytes of a row."""
        return encoder.dumps

    def flatten(self, row: bytes) -> bytes:
        """Make one line of a row that has a line break; in JSON it is white space."""
        return row.replace(b"\n", b" ")

    def dress(self, rows: bytes) -> bytes:
        """What is sent for `rows`, the next of the stream: at least one, each with its :attr:`end`."""
        return rows

    def dress_last(self, rows: bytes) -> bytes:
        """What is sent for the last `rows`; there may be none."""
        return rows


class LineFraming(Framing):
    """Newline-delimited JSON."""


class ArrayFraming(Framing):
    """One JSON array, an element on each line."""

    def __init__(self) -> None:
        self._before = b"["

    def dress(self, rows: bytes) -> bytes:
        dressed = self._before + rows[:-1].replace(b"\n", b",\n")
        self._before = b",\n"
        return dressed

    def dress_last(self, rows: bytes) -> bytes:
        if rows:
            return self.dress(rows) + b"]\n"
        return b"[]\n" if self._before == b"[" else b"]\n"
