"""Both sides of one request to an endpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.support import checkpoint, http_scope

JSON = ((b"content-type", b"application/json"),)


@dataclass
class Answer:
    """What an app has said, and what it has asked for."""

    messages: list[Any] = field(default_factory=list)
    received: int = 0

    @property
    def status(self) -> Any:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problems(self) -> list[tuple[str, str, str]]:
        assert self.status == 422, self.body
        return [(each["in"], each["place"], each["reason"]) for each in self.json()["problems"]]


async def ask(
    app: Any, *chunks: bytes, method: str = "", hangs_up: bool = False, **items: Any
) -> Answer:
    """Send a request whose body comes in `chunks`.

    :param hangs_up: behind them, in the middle of the body.
    :param items: of the scope; headers are those of JSON, if there are chunks.
    """
    answer = Answer()
    items.setdefault("headers", JSON if chunks else ())
    parts = list(chunks) or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": hangs_up or number < len(parts)}
        for number, chunk in enumerate(parts, start=1)
    ]
    messages.append({"type": "http.disconnect"})

    async def receive() -> Any:
        await checkpoint()
        answer.received += 1
        return messages.pop(0)

    async def send(message: Any) -> None:
        await checkpoint()
        answer.messages.append(message)

    method = method or ("POST" if chunks else "GET")
    await app(http_scope(method=method, **items), receive, send)
    return answer
