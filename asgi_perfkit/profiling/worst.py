"""The worst of each kind, within a bound."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from operator import itemgetter
from typing import Generic, TypeVar

__all__ = ["Worst"]

T = TypeVar("T")
_Entry = tuple[float, int, int, T]  # weight, number, size, what is kept


class Worst(Generic[T]):
    """Keeps the heaviest of what is added. Whoever calls it holds its owner's lock.

    No kind crowds out the others: each has room for `each`, and where there is no room for all, the lightest of the
    kind that has most gives way.

    :param max_bytes: of all that is kept.
    :param each: how many of one kind are kept.
    :ivar kept_bytes: what it is now.
    """

    def __init__(self, max_bytes: int, each: int) -> None:
        self.max_bytes = max_bytes
        self.kept_bytes = 0
        self._each = each
        self._kinds: dict[object, list[_Entry[T]]] = {}  # of each kind a heap, the lightest first
        self._number = count()

    def add(self, kind: object, weight: float, size: int, item: T) -> bool:
        """Keep `item` if there is nothing worse in its place; returns whether it is kept."""
        entries = self._kinds.get(kind)
        if size > self.max_bytes or (
            entries is not None and len(entries) >= self._each and weight <= entries[0][0]
        ):
            return False
        if entries is None:
            entries = self._kinds[kind] = []
        number = next(self._number)
        heapq.heappush(entries, (weight, number, size, item))
        self.kept_bytes += size
        if len(entries) > self._each:
            self._drop(kind)
        self.resize(self.max_bytes)
        return any(entry[1] == number for entry in entries)

    def resize(self, max_bytes: int) -> None:
        """Keep no more than `max_bytes` from now on."""
        self.max_bytes = max_bytes
        while self.kept_bytes > max_bytes:
            kinds = self._kinds
            self._drop(min(kinds, key=lambda kind: (-len(kinds[kind]), kinds[kind][0][0])))

    def clear(self) -> None:
        """Keep nothing of what there is."""
        self._kinds = {}
        self.kept_bytes = 0

    def __iter__(self) -> Iterator[T]:
        """What is kept, the heaviest first."""
        entries = [entry for kind in self._kinds.values() for entry in kind]
        entries.sort(key=itemgetter(0, 1), reverse=True)
        return (entry[3] for entry in entries)

    def _drop(self, kind: object) -> None:
        entries = self._kinds[kind]
        self.kept_bytes -= heapq.heappop(entries)[2]
        if not entries:
            del self._kinds[kind]
