"""Caches that live as long as the process, whose values get old."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import RLock
from weakref import WeakSet

from asgi_perfkit.caching.cache import Cache

__all__ = ["SharedCache"]

_caches: WeakSet[SharedCache] = WeakSet()


class SharedCache(Cache):
    """A cache of values that are good for a time, for all requests; for the arguments see :class:`Store`.

    In a forked child it has the values, and nobody makes one: the threads and loops of the parent are not there.
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
        max_size: int,
        ttl: float | None = None,
        clock_ns: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(name, max_size, ttl, clock_ns)
        _caches.add(self)

    def _start_anew(self) -> None:
        if not self._lock.acquire(blocking=False):  # another thread was in the middle of a change
            self._take_all()
        self._lock = RLock()
        self._flights = None


def _start_all_anew() -> None:
    for cache in list(_caches):
        cache._start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)
