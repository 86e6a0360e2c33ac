"""Reads a server's figures over HTTP, as a person would."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from .client import Connection
from .harness import Server

SETTLE_SECONDS = 5
ROUNDS = 12

Figures = dict[str, dict[str, Any]]
#: The endpoint that the figures themselves are read from; it is part of every reading.
OWN = ("GET /stats", "DELETE /stats")


class Bound(NamedTuple):
    """A figure, and what it has to be less than."""

    name: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.name} was never less than {self.value:.6f} (allowed: {self.limit:.6f})"


class Meter:
    """The connection that the figures are read and reset through."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection = Connection(server.port)

    async def __aenter__(self) -> Meter:
        await self._connection.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._connection.close()

    async def await_in_flight(self, number: int) -> Figures:
        """The figures as soon as exactly `number` other requests are under way."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            answer = (await self._connection.request("GET", "/stats")).json()
            in_flight = answer["runtime"]["requests"]["in_flight"] - 1  # without this one
            if in_flight == number:
                endpoints: Figures = answer["endpoints"]
                return endpoints
            assert time.monotonic() < deadline, f"{in_flight} requests in flight, not {number}"

    async def read(self) -> Figures:
        """The figures when every request has been recorded.

        The client has the last byte a moment before the application returns, and only then is a request recorded.
        """
        return await self.await_in_flight(0)

    async def reset(self) -> None:
        await self.read()
        response = await self._connection.request("DELETE", "/stats")
        assert response.status == 204


async def until_undisturbed(measure: Callable[[], Awaitable[list[Bound]]]) -> None:
    """Repeat `measure` until each of its figures has been within its bound once.

    A figure that is too high may be the machine's doing, which takes the CPU (or another thread, the interpreter's
    lock) away when it likes; so an upper bound has to hold in one round out of several. A figure that is too low
    cannot be: `measure` asserts those in every round.
    """
    best: dict[str, Bound] = {}
    for _ in range(ROUNDS):
        for bound in await measure():
            known = best.setdefault(bound.name, bound)
            if bound.value / bound.limit < known.value / known.limit:
                best[bound.name] = bound
        exceeded = [bound for bound in best.values() if bound.value >= bound.limit]
        if not exceeded:
            return
    raise AssertionError(f"Too high in {ROUNDS} rounds: " + "; ".join(map(str, exceeded)))


def below(limit: float, **values: float) -> list[Bound]:
    """The same bound for several figures."""
    return [Bound(name, value, limit) for name, value in values.items()]
