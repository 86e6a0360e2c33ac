"""Reads compressed bodies back: not with the objects that have made them."""

from __future__ import annotations

import zlib
from typing import Any

import brotli

try:
    from compression import zstd
except ImportError:
    from backports import zstd

CODINGS = ("zstd", "br", "gzip")


class Reader:
    """Reads a body as it arrives.

    :ivar ended: whether the end that is in the coding itself was seen.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._decoder: Any = {
            "zstd": zstd.ZstdDecompressor,
            "br": brotli.Decompressor,
            "gzip": lambda: zlib.decompressobj(31),
        }[coding]()

    def read(self, data: bytes) -> bytes:
        """What can be read by now, that could not before."""
        if self._coding != "br":
            return self._decoder.decompress(data)
        parts = [self._decoder.process(data)]
        while parts[-1]:  # it hands out no more than a window at once
            parts.append(self._decoder.process(b""))
        return b"".join(parts)

    @property
    def ended(self) -> bool:
        if self._coding == "br":
            return self._decoder.is_finished()
        assert not self._decoder.unused_data
        return self._decoder.eof


def decompressed(coding: str | bytes, body: bytes) -> bytes:
    """The whole of a body, which must be complete, and have nothing behind it."""
    reader = Reader(coding if isinstance(coding, str) else coding.decode())
    read = reader.read(body)
    assert reader.ended
    return read
