"""The content codings that there are: zstd, br and gzip.

Bodies are compressed while clients wait, so the levels are where the next higher one would take half as much time
again and more, for a few percent less to send (benchmarks/compression.py measures them). A stream is flushed for each
chunk, so that the client can read all that was sent, and is open for as long as its client likes: it has the levels
and windows that keep little memory, a quarter of a megabyte for zstd and gzip, half a one for br.

zstd is the module of Python 3.14's standard library, or its backport; br is Google's package; gzip is zlib, which is
always there. What is not asked for is not imported.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar, Protocol

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError

__all__ = ["Coding", "Stream", "find_codings"]


class Stream(Protocol):
    """A body that is compressed as it comes, by one call after the other."""

    def flush(self, chunk: bytes) -> bytes:
        """Compress a `chunk`; all of what was given so far can be read from all that has come out."""

    def finish(self, chunk: bytes) -> bytes:
        """Compress the last `chunk`, which may be empty."""


class Coding(ABC):
    """A content coding.

    :ivar name: as headers have it.
    :ivar offload_bytes: what takes it about half a millisecond, some six times what it costs to go to another thread.
    """

    name: ClassVar[bytes]
    offload_bytes: ClassVar[int]

    @abstractmethod
    def compress(self, body: bytes) -> bytes:
        """Compress a whole body; may be called from several threads at once."""

    @abstractmethod
    def stream(self) -> Stream:
        """Begin a new body."""


class Zstd(Coding):
    """RFC 8878. The windows are smaller than the eight megabytes that a browser takes (RFC 9659)."""

    name = b"zstd"
    offload_bytes = 150_000

    _LEVEL = 3
    _SMALL_BYTES = 20_000
    _STREAM_LEVEL = 1
    _STREAM_WINDOW_LOG = 17

    def __init__(self) -> None:
        self._zstd = zstd = _zstd()
        # Making one takes longer than a small body does; for a large one its tables are rather new than out of the
        # processor's cache. It locks itself.
        self._compressor = zstd.ZstdCompressor(level=self._LEVEL)
        self._whole = self._compressor.FLUSH_FRAME
        self._options = {
            zstd.CompressionParameter.compression_level: self._STREAM_LEVEL,
            zstd.CompressionParameter.window_log: self._STREAM_WINDOW_LOG,
        }

    def compress(self, body: bytes) -> bytes:
        if len(body) < self._SMALL_BYTES:
            compressed: bytes = self._compressor.compress(body, self._whole)
        else:
            compressed = self._zstd.compress(body, self._LEVEL)
        return compressed

    def stream(self) -> Stream:
        return _ZstdStream(self._zstd.ZstdCompressor(options=self._options))


class _ZstdStream:
    __slots__ = ("_compressor",)

    def __init__(self, compressor: Any) -> None:
        self._compressor = compressor

    def flush(self, chunk: bytes) -> bytes:
        compressor = self._compressor
        compressed: bytes = compressor.compress(chunk, compressor.FLUSH_BLOCK)
        return compressed

    def finish(self, chunk: bytes) -> bytes:
        compressor = self._compressor
        compressed: bytes = compressor.compress(chunk, compressor.FLUSH_FRAME)
        return compressed


class Brotli(Coding):
    """RFC 7932."""

    name = b"br"
    offload_bytes = 50_000

    _QUALITY = 4
    _STREAM_QUALITY = 3
    _STREAM_WINDOW_LOG = 18

    def __init__(self) -> None:
        self._brotli = import_module("brotli")

    def compress(self, body: bytes) -> bytes:
        compressed: bytes = self._brotli.compress(body, quality=self._QUALITY)
        return compressed

    def stream(self) -> Stream:
        return _BrotliStream(
            self._brotli.Compressor(quality=self._STREAM_QUALITY, lgwin=self._STREAM_WINDOW_LOG)
        )


class _BrotliStream:
    __slots__ = ("_compressor",)

    def __init__(self, compressor: Any) -> None:
        self._compressor = compressor

    def flush(self, chunk: bytes) -> bytes:
        compressed: bytes = self._compressor.process(chunk) + self._compressor.flush()
        return compressed

    def finish(self, chunk: bytes) -> bytes:
        compressed: bytes = self._compressor.process(chunk) + self._compressor.finish()
        return compressed


class Gzip(Coding):
    """RFC 1952, without a time in it: the same body is the same bytes."""

    name = b"gzip"
    offload_bytes = 50_000

    _LEVEL = 4
    _WINDOW_LOG = 15 + 16  # the largest, and the 16 that asks zlib for gzip's header and checksum

    def compress(self, body: bytes) -> bytes:
        return self.stream().finish(body)

    def stream(self) -> Stream:
        return _GzipStream(zlib.compressobj(self._LEVEL, zlib.DEFLATED, self._WINDOW_LOG))


class _GzipStream:
    __slots__ = ("_compressor",)

    def __init__(self, compressor: Any) -> None:
        self._compressor = compressor

    def flush(self, chunk: bytes) -> bytes:
        compressed: bytes = self._compressor.compress(chunk)
        compressed += self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return compressed

    def finish(self, chunk: bytes) -> bytes:
        compressed: bytes = self._compressor.compress(chunk)
        compressed += self._compressor.flush()
        return compressed


def _zstd() -> Any:
    try:
        return import_module("compression.zstd")
    except ImportError:
        return import_module("backports.zstd")


# The one that does most in the least time first.
_CODINGS: dict[str, Callable[[], Coding]] = {"zstd": Zstd, "br": Brotli, "gzip": Gzip}


def find_codings(subject: str, wanted: object) -> dict[bytes, Coding]:
    """Make the codings that a setting asks for.

    :param subject: the setting, for what is raised.
    :param wanted: True for all that are installed, the best first; a sequence of names in the order of preference;
        None or False for none.
    :raises ConfigurationTypeError: it is none of these.
    :raises ConfigurationValueError: there is no coding of such a name, its package is not installed, or there is no
        name at all.
    """
    if wanted is None or wanted is False:
        return {}
    if wanted is True:
        found = [coding for make in _CODINGS.values() if (coding := _installed(make)) is not None]
    else:
        found = [_named(subject, name) for name in _names(subject, wanted)]
    return {coding.name: coding for coding in found}


def _names(subject: str, wanted: object) -> list[object]:
    names = ", ".join(map(repr, _CODINGS))
    if isinstance(wanted, (str, bytes)) or not isinstance(wanted, Sequence):
        raise ConfigurationTypeError(
            subject, wanted, f"give True, None, or a sequence of {names} in order of preference."
        )
    if not wanted:
        raise ConfigurationValueError(
            subject, wanted, f"name one or more of {names}, or give None to compress nothing."
        )
    return list(wanted)


def _named(subject: str, name: object) -> Coding:
    make = _CODINGS.get(name) if isinstance(name, str) else None
    if make is None:
        raise ConfigurationValueError(
            subject, name, f"the codings are {', '.join(map(repr, _CODINGS))}."
        )
    coding = _installed(make)
    if coding is None:
        raise ConfigurationValueError(
            subject,
            name,
            "its package is not installed: pip install 'asgi_perfkit[compression]', or leave it out.",
        )
    return coding


def _installed(make: Callable[[], Coding]) -> Coding | None:
    try:
        return make()
    except ImportError:
        return None
