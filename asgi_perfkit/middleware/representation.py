"""What the headers of a response say about compressing it, and how they change with it.

A response is left as it is where no middleware may change its coding (RFC 9110, sections 7.7 and 8.4), where it has no
body, and where it would not get smaller:

* statuses 1xx, 204, 206 and 304; a Content-Range;
* a Content-Encoding, `identity` too: that is how an app keeps a response from being compressed;
* `Cache-Control: no-transform`;
* a digest of the body, which would be wrong then;
* a type whose data are compressed by themselves, a `multipart` one, whose parts have headers of their own, gRPC, which
  has a compression of its own, and `application/octet-stream`, which may be anything;
* a Transfer-Encoding that is more than `chunked`: the app's own, of the bytes that it sends.

`chunked` says nothing of the bytes, and is for the server to say (ASGI, "HTTP"): proxies copy it from the answers that
they hand on. Beside a Content-Length it must not stand (RFC 9112, section 6.2), so it goes from what is compressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = ["BODILESS", "Header", "coded", "read", "varied"]

Header = Sequence[bytes]

BODILESS = frozenset((204, 206, 304))
"""The statuses from 200 on that go with no body, or with a part of one."""

# What is asked for its value, and what leaves a response as it is by being there.
_TELLING = frozenset(
    b"content-type content-length cache-control transfer-encoding "
    b"content-encoding content-range content-digest repr-digest digest content-md5".split()
)
_COMPRESSIBLE_IMAGES = frozenset(
    b"image/svg+xml image/bmp image/x-ms-bmp image/x-icon image/vnd.microsoft.icon".split()
)
_INCOMPRESSIBLE_FAMILIES = (
    b"audio/",
    b"image/",
    b"multipart/",
    b"video/",
    b"application/grpc",
    b"application/vnd.oasis.opendocument",
    b"application/vnd.openxmlformats-officedocument",
)
_INCOMPRESSIBLE = frozenset(
    b"font/woff font/woff2 application/font-woff application/font-woff2 application/x-font-woff "
    b"application/epub+zip application/gzip application/java-archive application/octet-stream application/ogg "
    b"application/pdf application/vnd.android.package-archive application/vnd.debian.binary-package "
    b"application/vnd.rar application/x-7z-compressed application/x-bzip application/x-bzip2 application/x-gzip "
    b"application/x-rar-compressed application/x-rpm application/x-xz application/x-zip-compressed "
    b"application/zip application/zlib application/zstd".split()
)
_NEVER_SENT_AS_CODED = frozenset((b"content-length", b"accept-ranges", b"transfer-encoding"))


def read(
    headers: Iterable[Header], minimum_size: int, any_type: bool
) -> tuple[int | None, bool] | None:
    """Read the headers of a response.

    :param minimum_size: bytes below which a body is to stay as it is.
    :param any_type: whether a type that does not get smaller is to be compressed, too.
    :return: the bytes of the body, if that is told, and whether it is an event stream; None if the body is to stay as
        it is.
    :raises ValueError: they are malformed; so are TypeError and AttributeError.
    """
    length = None
    content_type = b""
    for name, value in headers:
        # Django sends them as it shows them.
        if name in _TELLING or (name := name.lower()) in _TELLING:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                length = int(value)
                # int() takes signs, spaces and underscores, too.
                if length < minimum_size or not value.isdigit():
                    return None
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    return None
            elif name != b"cache-control" or b"no-transform" in value.lower():
                return None
    # Last: most of what stays as it is does so for being small.
    compressible, is_event_stream = _read_type(content_type)
    return (length, is_event_stream) if compressible or any_type else None


@lru_cache(128)
def _read_type(content_type: bytes) -> tuple[bool, bool]:
    """Whether it is compressible, and whether it is an event stream."""
    media_type = content_type.partition(b";")[0].strip().lower()
    compressible = media_type in _COMPRESSIBLE_IMAGES or not (
        media_type in _INCOMPRESSIBLE or media_type.startswith(_INCOMPRESSIBLE_FAMILIES)
    )
    return compressible, media_type == b"text/event-stream"


def coded(headers: Iterable[Header], coding: bytes, length: int | None) -> list[Header]:
    """The headers of a response whose body is compressed.

    A strong validator is for the bytes of one representation, so the app's becomes a weak one. A range of the body that
    the app has is none of what was sent.

    :param coding: its name.
    :param length: of the compressed body; None if it is not known yet.
    """
    changed: list[Header] = []
    for header in varied(headers):
        name, value = header
        name = name.lower()
        if name in _NEVER_SENT_AS_CODED:
            continue
        if name == b"etag" and value.startswith(b'"'):
            header = (header[0], b"W/" + value)
        changed.append(header)
    changed.append((b"content-encoding", coding))
    if length is not None:
        changed.append((b"content-length", b"%d" % length))
    return changed


def varied(headers: Iterable[Header]) -> list[Header]:
    """The headers of a response that another client may get in another coding: caches must know."""
    for name, _ in headers:
        if name.lower() == b"vary":
            return _varied_more(list(headers))
    return [*headers, (b"vary", b"Accept-Encoding")]


def _varied_more(headers: list[Header]) -> list[Header]:
    lines = [number for number, (name, _) in enumerate(headers) if name.lower() == b"vary"]
    for number in lines:
        fields = [field.strip().lower() for field in headers[number][1].split(b",")]
        if b"accept-encoding" in fields or b"*" in fields:
            return headers
    name, value = headers[lines[0]]
    headers[lines[0]] = (name, value + b", Accept-Encoding" if value else b"Accept-Encoding")
    return headers
