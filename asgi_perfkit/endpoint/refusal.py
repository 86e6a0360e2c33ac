"""Answers requests that cannot be used, at once and in such a way that the next one can be.

A server of HTTP/1 closes a connection whose request was not read whole when its response ends. So the response does
not end yet: the client has all of it, by its length, while the rest of the body is read and thrown away. A client that
has very much left to send, or is very slow to do so, is better cut off. So is one that sends its body only when it is
asked to (``Expect: 100-continue``), and was not: it may never do so.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import orjson

from asgi_perfkit.endpoint.intake import Intake
from asgi_perfkit.exceptions import ClientDisconnectedError
from asgi_perfkit.middleware.exchange.unread_body import UnreadBody, is_worth_reading
from asgi_perfkit.tasks.running import running_loop
from asgi_perfkit.types import Receive, Scope, Send

__all__ = ["refuse", "refuse_method", "send_last"]

_DRAINED_BYTES: Final = 16 << 20
_DRAIN_SECONDS: Final = 5.0

Headers = list[tuple[bytes, bytes]]


async def refuse(
    intake: Intake, send: Send, status: int, answer: object, headers: Headers | None = None
) -> None:
    """Answer with a `status` and the JSON of `answer`."""
    body = orjson.dumps(answer, None, orjson.OPT_NON_STR_KEYS)
    scope = intake.scope
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": status,
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *(headers or ()),
        ],
    }
    await send(start)
    if scope["method"] == "HEAD":
        body = b""
    if intake.whole or not is_worth_reading(scope) or _waits_to_be_asked(intake):
        await send_last(intake, send, body)
        return
    await send({"type": "http.response.body", "body": body, "more_body": True})
    length = intake.content()[1]
    if length is None or length <= _DRAINED_BYTES:
        await running_loop().attempt(_drain(intake), _DRAIN_SECONDS)
    await send_last(intake, send, b"")


def _waits_to_be_asked(intake: Intake) -> bool:
    return not intake.begun and any(
        name == b"expect" and value.lower() == b"100-continue"
        for name, value in intake.scope["headers"]
    )


async def send_last(intake: Intake, send: Send, body: bytes) -> None:
    """Send the end of a response, whose `body` this is, to a request that may not have been read whole.

    hypercorn 0.18 has room for so much of a body that nobody reads, and then not for the end of the response.
    """
    message = {"type": "http.response.body", "body": body, "more_body": False}
    if intake.whole or not is_worth_reading(intake.scope):
        await send(message)
        return
    rest = UnreadBody(intake.receive)
    rest.read_on()
    try:
        await send(message)
    finally:
        rest.stop()


async def refuse_method(
    scope: Scope, receive: Receive, send: Send, methods: Collection[str]
) -> None:
    """Answer that there is no such method here, but others."""
    allowed = ", ".join(sorted(methods))
    answer = {"error": f"The method is none of those that are answered here: {allowed}."}
    headers = [(b"allow", allowed.encode())]
    await refuse(Intake(scope, receive), send, 405, answer, headers)


async def _drain(intake: Intake) -> None:
    left = _DRAINED_BYTES
    try:
        while left > 0 and not intake.whole:
            left -= len(await intake.chunk())
    except ClientDisconnectedError:
        pass
