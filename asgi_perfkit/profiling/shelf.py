"""Keeps something of each endpoint within a bound of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import RLock
from typing import Generic, Protocol, TypeVar

__all__ = ["Kept", "Shelf"]


class Kept(Protocol):
    """What is kept of an endpoint."""

    @property
    def size(self) -> int:
        """About how many bytes it takes."""

    def shrink(self) -> bool:
        """Do without something; False if there is nothing that it could do without."""


K = TypeVar("K", bound=Kept)
R = TypeVar("R")


class _Contents(Generic[K]):
    """Under a lock of its own: in a forked child nobody releases the one that a thread of the parent holds."""

    __slots__ = ("dropped", "endpoints", "lock", "size")

    def __init__(self) -> None:
        self.lock = RLock()
        self.endpoints: OrderedDict[str, K] = OrderedDict()  # the latest changed last
        self.size = 0
        self.dropped = 0


class Shelf(Generic[K]):
    """Keeps something of each endpoint. For any thread.

    Where there is no room, what is kept of the others shrinks, and then the endpoint goes that was changed the longest
    ago.

    :param make: makes what is kept of an endpoint.
    :param max_bytes: what all may take.
    """

    def __init__(self, make: Callable[[], K], max_bytes: int) -> None:
        self._make = make
        self._max_bytes = max_bytes
        self._contents: _Contents[K] = _Contents()

    @property
    def dropped(self) -> int:
        """How many endpoints had to go."""
        return self._contents.dropped

    def change(self, endpoint: str, change: Callable[[K], None]) -> None:
        """Change what is kept of an `endpoint`."""
        contents = self._contents
        with contents.lock:
            kept = contents.endpoints.pop(endpoint, None)
            if kept is None:
                kept = self._make()
            else:
                contents.size -= kept.size
            change(kept)
            contents.endpoints[endpoint] = kept
            contents.size += kept.size
            self._make_room(contents)

    def read(self, read: Callable[[K], R], endpoint: str | None = None) -> dict[str, R]:
        """What `read` makes of what is kept of an `endpoint`, or of each; it must not keep the thing itself."""
        contents = self._contents
        with contents.lock:
            return {
                name: read(kept)
                for name, kept in contents.endpoints.items()
                if endpoint is None or name == endpoint
            }

    def clear(self) -> None:
        """Forget all."""
        self._contents = _Contents()

    def resize(self, max_bytes: int) -> None:
        """Keep no more than `max_bytes`."""
        self._max_bytes = max_bytes
        contents = self._contents
        with contents.lock:
            self._make_room(contents)

    def _make_room(self, contents: _Contents[K]) -> None:
        if contents.size > self._max_bytes:
            for kept in contents.endpoints.values():
                contents.size -= kept.size
                while kept.shrink() and contents.size + kept.size > self._max_bytes:
                    pass
                contents.size += kept.size
        while contents.size > self._max_bytes and contents.endpoints:
            _name, kept = contents.endpoints.popitem(last=False)
            contents.size -= kept.size
            contents.dropped += 1
