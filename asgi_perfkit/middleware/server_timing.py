"""The Server-Timing header: what is known about a request when its response begins.

https://www.w3.org/TR/server-timing/ : entries ``name;dur=milliseconds``, the name a token (RFC 9110, section 5.6.2).
"""

from __future__ import annotations

import re

from asgi_perfkit.middleware.exchange import Exchange
from asgi_perfkit.profiling.queries.request import RequestQueries
from asgi_perfkit.types import Message

__all__ = ["add_server_timing"]

MAX_ENTRIES = 20
"""Browsers show them all; the bound keeps the header of a request that measures in a loop short."""

_NOT_TOKEN = re.compile(r"[^!#$%&'*+.^_`|~0-9A-Za-z-]+")
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')


def add_server_timing(exchange: Exchange, message: Message) -> Message:
    """The `http.response.start` message with the timings of `exchange` behind those that the app has set.

    The processing time comes first, then what was measured, by name, the sum of each, and the time in queries, where
    they are profiled. The app's message and its
    headers are left as they are; with all entries together there are never more than 20, the app's own first.
    """
    headers = list(message.get("headers", ()))
    own = [value for name, value in headers if name.lower() == b"server-timing"]
    room = MAX_ENTRIES - sum(_QUOTED.sub(b"", value).count(b",") + 1 for value in own)
    entries = _entries(exchange)[: max(0, room)]
    if not entries:
        return {**message, "headers": headers}  # which the app may have given as an iterator
    value = ", ".join(entries).encode("ascii")
    if own:
        last = max(
            index for index, header in enumerate(headers) if header[0].lower() == b"server-timing"
        )
        headers[last] = (headers[last][0], headers[last][1] + b", " + value)
    else:
        headers.append((b"server-timing", value))
    return {**message, "headers": headers}


def _entries(exchange: Exchange) -> list[str]:
    assert exchange.processing_ns is not None
    durations_ns: dict[str, int] = {}
    condensed = exchange.condensed or {}
    sums = [(metric, histogram.total) for metric, histogram in condensed.items()]
    for metric, value in (*sums, *(exchange.observations or ())):
        name = _NOT_TOKEN.sub("_", metric)
        durations_ns[name] = durations_ns.get(name, 0) + value
    profile = exchange.profile
    if isinstance(profile, RequestQueries):
        durations_ns.setdefault("query", profile.time_ns)
    entries = [("processing", exchange.processing_ns), *durations_ns.items()]
    return [f"{name};dur={duration_ns / 1e6:.3f}" for name, duration_ns in entries]
