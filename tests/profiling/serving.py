"""Requests that are handled by a function, profiled as behind a server."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from asgi_perfkit import PerfKit, Profiles, Registry, get_performance_stats, get_profile_stats
from tests.support import BODY, START, Receive, Scope, Send, Server, http_scope

Handler = Callable[[], Awaitable[object]]


class Queries:
    """What requests have sent to their databases.

    :ivar figures: as the profiles tell them of the one endpoint that there is.
    :ivar metrics: of that, too.
    """

    def __init__(self, figures: dict[str, Any], metrics: dict[str, Any]) -> None:
        self.figures = figures
        self.metrics = metrics

    def statements(self, *names: str) -> dict[str, Any]:
        """By statement, these figures of it: one value, or a tuple of several."""
        rows = {
            row["statement"]: tuple(row[name] for name in names)
            for row in self.figures["statements"]
        }
        return {text: row[0] if len(row) == 1 else row for text, row in rows.items()}

    def repeated(self) -> list[tuple[str, str]]:
        """Each statement that was sent again and again, and the text of the line that has sent it."""
        return [(row["statement"], text_of(row)) for row in self.figures["n_plus_one"]]

    def lines(self) -> dict[str, str]:
        """By statement, the text of the line that has sent it."""
        return {row["statement"]: text_of(row) for row in self.figures["statements"]}


def text_of(row: dict[str, Any]) -> str:
    with open(row["file"], encoding="utf-8") as file:  # noqa: PTH123
        return file.read().splitlines()[row["line"] - 1].strip()


async def queries_of(*handlers: Handler) -> Queries:
    """Serve a request with each of `handlers`, and tell what it has sent."""
    profiles, registry = Profiles(), Registry()
    pending = list(handlers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        result = pending.pop(0)()
        assert inspect.isawaitable(result)
        await result
        await send(START)
        await send(BODY)

    served = PerfKit(app, performance={"registry": registry}, profiling={"profiles": profiles})
    for _ in handlers:
        server = Server()
        await served(http_scope("/a"), server.receive, server.send)
    assert profiles.failures == 0
    figures = get_profile_stats(profiles=profiles)["queries"]
    assert list(figures) == ["GET /a"]
    return Queries(figures["GET /a"], get_performance_stats(registry=registry))
