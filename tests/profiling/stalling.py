"""What tests of the watchdog share: a profiled app, and what blocks until the watchdog has seen it."""

from __future__ import annotations

import linecache
import threading
from collections.abc import Callable
from typing import Any

from asgi_perfkit.middleware.profiling import ProfilingMiddleware
from asgi_perfkit.profiling.profiles import Profiles
from asgi_perfkit.profiling.stalls import Stall, Stalls
from tests.support import BODY, REQUEST, START, Server, http_scope

PATIENCE = 8.0  # seconds; what has not been seen then never will be


class WatchedStalls(Stalls):
    """Tells who waits when a stall has been seen, and when it is over."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.seen = threading.Event()
        self.over = threading.Event()

    def begin(self, stall: Stall) -> None:
        super().begin(stall)
        self.seen.set()

    def end(self, stall: Stall) -> None:
        super().end(stall)
        self.over.set()


class Stalling:
    """An app whose requests call what the test has put at their path.

    :param options: of its ProfilingMiddleware.
    """

    def __init__(self, **options: Any) -> None:
        self.profiles = Profiles()
        self.stalls = self.profiles.stalls = WatchedStalls()
        self.paths: dict[str, Callable[[], Any]] = {}
        self.app = ProfilingMiddleware(self._serve, profiles=self.profiles, **options)

    async def request(self, path: str, **items: Any) -> None:
        server = Server(REQUEST)
        await self.app(http_scope(path, **items), server.receive, server.send)
        assert server.heard == [START, BODY]

    def block(self) -> None:
        """Block until that has been seen."""
        self.stalls.seen.wait(PATIENCE)

    def found(self) -> dict[str, Any]:
        """The only stall that there is."""
        (stall,) = self.profiles.statistics()["stalls"]
        return stall

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        made = self.paths[scope["path"]]()
        if made is not None:
            await made
        await send(START)
        await send(BODY)


def text_of(place: dict[str, Any]) -> str:
    """The line of code at a place."""
    return linecache.getline(place["file"], place["line"]).strip()
