"""Values by key: not more than may be, and none older than it may be."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import RLock
from time import perf_counter_ns
from typing import Any, Final

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError

__all__ = ["MISSING", "CacheStatistics", "Store", "checked_size", "checked_ttl_ns"]

MISSING: Final[Any] = object()
"""Stands where there is no value; None is one."""

_FOR_EVER = 1e18  # seconds


@dataclass(frozen=True)
class CacheStatistics:
    """A cache at one moment.

    :ivar hits: how often somebody got what was there, or was being made for somebody else.
    :ivar misses: how often nothing was there.
    :ivar evictions: how many values went because there were too many; those that had become too old are not counted.
    :ivar size: how many values there are.
    :ivar max_size: how many there may be.
    """

    hits: int
    misses: int
    evictions: int
    size: int
    max_size: int


class Store:
    """Keeps values, and finds them; may be used from any thread. :class:`~asgi_perfkit.caching.cache.Cache` fills it.

    :param name: what it keeps; for the messages of errors.
    :param max_size: how many values; the least recently used one makes room.
    :param ttl: how long a value is good (seconds, monotonic); None for ever. The same for all, so the order in which
        they are stored is that in which they expire.
    :param clock_ns: in the place of :func:`time.perf_counter_ns`.
    :raises ConfigurationError: `max_size` is no whole number above 0, or `ttl` no number above 0.
    """

    __slots__ = (
        "_clock_ns",
        "_evictions",
        "_expiries_ns",
        "_hits",
        "_lock",
        "_max_size",
        "_misses",
        "_ttl_ns",
        "_values",
        "name",
    )

    def __init__(
        self,
        name: str,
        max_size: int,
        ttl: float | None = None,
        clock_ns: Callable[[], int] | None = None,
    ) -> None:
        self.name = name
        self._max_size = checked_size(name, max_size)
        self._ttl_ns = checked_ttl_ns(name, ttl)
        self._clock_ns = clock_ns or perf_counter_ns
        # A value or a key may run code of the user when it goes or is compared, and that may come back here: hence
        # re-entrant, and what is dropped is let go of when the lock is free, as far as it can be.
        self._lock = RLock()
        # Ordered dictionaries find their first item at once, however many were taken out before it; a dict does not.
        self._values: OrderedDict[Hashable, Any] = OrderedDict()  # the least recently used first
        # The first to expire first; empty if none does.
        self._expiries_ns: dict[Hashable, int] = {} if self._ttl_ns is None else OrderedDict()
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def find(self, key: Hashable) -> Any:
        """The value, which is the most recently used one then, or MISSING; counts a hit, and nothing otherwise.

        :raises TypeError: `key` is not hashable.
        """
        with self._lock:
            value = self._values.get(key, MISSING)
            if value is MISSING:
                return MISSING
            if self._ttl_ns is None or self._expiries_ns[key] > self._clock_ns():
                self._values.move_to_end(key)
                self._hits += 1
                return value
            self._take(key)
        return MISSING  # `value` goes here

    def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of `key`, or `default` if there is none.

        :raises TypeError: `key` is not hashable.
        """
        value = self.find(key)
        if value is not MISSING:
            return value
        with self._lock:
            self._misses += 1
        return default

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._values and (
                self._ttl_ns is None or self._expiries_ns[key] > self._clock_ns()
            )

    def __len__(self) -> int:
        return self.statistics().size

    def statistics(self) -> CacheStatistics:
        """What was asked for and what there is, now."""
        with self._lock:
            expired = self._expire()
            figures = CacheStatistics(
                self._hits, self._misses, self._evictions, len(self._values), self._max_size
            )
        del expired
        return figures

    # With the lock held. What is returned is for the caller to let go of, without it.

    def _insert(self, key: Hashable, value: Any) -> object:
        dropped = self._expire()
        dropped.append(self._take(key))
        self._values[key] = value
        if self._ttl_ns is not None:
            self._expiries_ns[key] = self._clock_ns() + self._ttl_ns
        if len(self._values) > self._max_size:
            oldest = next(iter(self._values))
            dropped.append((oldest, self._take(oldest)))
            self._evictions += 1
        return dropped

    def _expire(self) -> list[object]:
        """Take out what is too old; each value once, so it costs nothing over the life of a value."""
        dropped: list[object] = []
        expiries_ns = self._expiries_ns
        if expiries_ns:
            now_ns = self._clock_ns()
            while expiries_ns:
                key = next(iter(expiries_ns))
                if expiries_ns[key] > now_ns:
                    break
                dropped.append((key, self._take(key)))
        return dropped

    def _take(self, key: Hashable) -> Any:
        value = self._values.pop(key, MISSING)
        self._expiries_ns.pop(key, None)
        return value

    def _take_all(self) -> object:
        dropped = self._values
        self._values = OrderedDict()
        self._expiries_ns = type(self._expiries_ns)()
        return dropped


def checked_size(subject: str, max_size: object) -> int:
    """`max_size`, if it can be one.

    :param subject: what it is for, as the user wrote it.
    :raises ConfigurationError: it is no whole number above 0.
    """
    if not isinstance(max_size, int) or isinstance(max_size, bool):
        raise ConfigurationTypeError(
            f"{subject}(max_size=...)", max_size, "give how many values there may be, such as 1000."
        )
    if max_size < 1:
        raise ConfigurationValueError(
            f"{subject}(max_size=...)", max_size, "a cache holds one value or more."
        )
    return max_size


def checked_ttl_ns(subject: str, ttl: object) -> int | None:
    """`ttl`, in seconds, as nanoseconds; None for ever.

    :param subject: what it is for, as the user wrote it.
    :raises ConfigurationError: it is neither None nor a number above 0.
    """
    if ttl is None:
        return None
    if not isinstance(ttl, (int, float)) or isinstance(ttl, bool):
        raise ConfigurationTypeError(
            f"{subject}(ttl=...)", ttl, "give seconds, such as 60 or 0.5, or None to keep values."
        )
    if not ttl > 0:
        raise ConfigurationValueError(
            f"{subject}(ttl=...)",
            ttl,
            "values must be good for some time: give seconds above 0, or None.",
        )
    return None if ttl > _FOR_EVER else max(1, round(ttl * 1e9))
