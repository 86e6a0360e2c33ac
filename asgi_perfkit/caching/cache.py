"""A store whose values are made by those who need them, one call at a time for each."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from asgi_perfkit.caching.asyncio_flight import AsyncioFlight
from asgi_perfkit.caching.flights import AsyncFlight, Flight, ThreadFlight
from asgi_perfkit.caching.store import MISSING, Store
from asgi_perfkit.steps.loop import asyncio_loop, on_trio

__all__ = ["Cache"]

T = TypeVar("T")
AnyFlight = TypeVar("AnyFlight", bound=Flight)


class Cache(Store):
    """Keeps values, and knows who makes one just now; may be used from any thread and on any event loop.

    For the arguments see :class:`Store`.
    """

    __slots__ = ("__weakref__", "_flights")

    def __init__(
        self,
        name: str,
        max_size: int,
        ttl: float | None = None,
        clock_ns: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(name, max_size, ttl, clock_ns)
        # By place and key, those that may be joined. A flight is kept by its call and by those who wait: when a loop
        # has been closed in the middle of it, nothing is left here.
        self._flights: WeakValueDictionary[tuple[int, Hashable], Flight] | None = None

    def get_or_create(self, key: Hashable, factory: Callable[[], T]) -> T:
        """The value of `key`; if there is none, what `factory` returns, and that is kept.

        Threads that ask for the same key meanwhile wait for that call, and get what it returns or raises. On the
        event loop a call in another thread would hold everybody up: :meth:`aget_or_create` is for there.

        :param factory: a function without arguments; called in this thread.
        :raises TypeError: `key` is not hashable, or `factory` returned an awaitable.
        :raises RuntimeError: `factory` asks for the same key.
        """
        value: T = self.find(key)
        if value is MISSING:
            value = self.fetch(key, factory)
        return value

    async def aget_or_create(self, key: Hashable, factory: Callable[[], Awaitable[T]]) -> T:
        """The value of `key`; if there is none, what awaiting `factory()` returns, and that is kept.

        Tasks of this event loop that ask for the same key meanwhile wait for that call, and get what it returns or
        raises. It runs in a task of its own, in a copy of the context of the first who asked. Who is cancelled leaves
        the others alone; when all are, the call is cancelled, and the last one waits until it has ended.

        :param factory: an async function without arguments.
        :raises TypeError: `key` is not hashable.
        :raises RuntimeError: `factory` asks for the same key, or no event loop runs.
        """
        value: T = self.find(key)
        if value is MISSING:
            value = await self.afetch(key, factory)
        return value

    def fetch(self, key: Hashable, factory: Callable[[], Any]) -> Any:
        """:meth:`get_or_create` for who has not found it."""
        while True:
            value, flight, is_new = self._board(ThreadFlight, None, key)
            if flight is None:
                return value
            try:
                if is_new:
                    return flight.make(factory)
                if flight.join():
                    return flight.result()
            finally:
                self._depart(flight)

    async def afetch(self, key: Hashable, factory: Callable[[], Awaitable[Any]]) -> Any:
        """:meth:`aget_or_create` for who has not found it."""
        kind: type[AsyncFlight] = AsyncioFlight
        place: object = asyncio_loop()
        if place is None:
            if not on_trio():
                raise RuntimeError(
                    f"{self.name} was awaited where no event loop runs: await it under asyncio, uvloop or trio."
                )
            from asgi_perfkit.caching.trio_flight import TrioFlight

            kind = TrioFlight
            place = sys.modules["trio"].lowlevel.current_trio_token()
        value, flight, is_new = self._board(kind, place, key)
        if flight is None:
            return value
        try:
            return await (flight.make(factory) if is_new else flight.join())
        finally:
            self._depart(flight)

    def set(self, key: Hashable, value: Any) -> None:
        """Keep a `value`, in the place of the one that is there. One that is being made now will not be kept.

        :raises TypeError: `key` is not hashable.
        """
        with self._lock:
            self._ground(key)
            dropped = self._insert(key, value)
        del dropped

    def delete(self, key: Hashable) -> bool:
        """Forget the value of `key`; whether there was one. One that is being made now will not be kept.

        :raises TypeError: `key` is not hashable.
        """
        with self._lock:
            self._ground(key)
            expired = self._expire()
            value = self._take(key)
        del expired
        return value is not MISSING

    def clear(self) -> None:
        """Forget all values, those that are being made now, too; what was counted stays."""
        with self._lock:
            self._flights = None
            dropped = self._take_all()
        del dropped

    # What flights need; see `flights.Owner`.

    def land(self, flight: Flight) -> None:
        with self._lock:
            dropped = None
            if self._remove(flight) and flight.error is None:
                dropped = self._insert(flight.key, flight.value)
        del dropped

    def forsake(self, flight: Flight) -> None:
        with self._lock:
            self._remove(flight)

    def _board(
        self, kind: Callable[[Cache, Any, Hashable], AnyFlight], place: object, key: Hashable
    ) -> tuple[Any, AnyFlight | None, bool]:
        """The value, or the flight to join, or a new one to make."""
        slot = id(place), key
        with self._lock:
            value = self.find(key)  # another thread may have been quicker
            if value is not MISSING:
                return value, None, False
            flights = self._flights
            if flights is None:
                flights = self._flights = WeakValueDictionary()
            flight: Any = flights.get(slot)
            is_new = flight is None
            if is_new:
                self._misses += 1
                flight = flights[slot] = kind(self, place, key)
            else:
                self._hits += 1
            flight.askers += 1
            return MISSING, flight, is_new

    def _depart(self, flight: Flight) -> None:
        with self._lock:
            flight.askers -= 1
            was_last = not flight.askers
        if was_last and flight.over:
            flight.let_go()

    def _remove(self, flight: Flight) -> bool:
        """Let nobody join `flight`; False if nobody could."""
        flights = self._flights
        slot = id(flight.place), flight.key
        if flights is None or flights.get(slot) is not flight:
            return False
        del flights[slot]
        return True

    def _ground(self, key: Hashable) -> None:
        """Let nobody join the flights for `key`, wherever they are: there are as many as loops, and few."""
        if self._flights:
            for flight in list(self._flights.values()):
                if flight.key == key:
                    self._remove(flight)
