"""The cache of one request."""

from __future__ import annotations

from asgi_perfkit.caching.cache import Cache

__all__ = ["RequestScopedCache"]


class RequestScopedCache(Cache):
    """Keeps values for as long as it lives, the least recently used ones making room for new ones.

    Every value is one, None and False too. It may be used from all tasks and worker threads of a request. Reading,
    storing and making room take the same time however many values there are.

    :param max_size: how many values it may hold.
    :raises ConfigurationError: `max_size` is no whole number above 0.
    """

    __slots__ = ()

    def __init__(self, max_size: int = 1000) -> None:
        super().__init__("RequestScopedCache", max_size)
