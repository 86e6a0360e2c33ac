"""What profiling has found in this process so far."""

from __future__ import annotations

import logging
import os
import weakref
from threading import RLock
from typing import Any

from asgi_perfkit.profiling.allocations import AllocationProfiles
from asgi_perfkit.profiling.calls import CallsByEndpoint
from asgi_perfkit.profiling.exact import ExactProfiles
from asgi_perfkit.profiling.growth import MemoryGrowth
from asgi_perfkit.profiling.queries.statistics import QueryStatistics
from asgi_perfkit.profiling.sampler import Sampler
from asgi_perfkit.profiling.slow import Slow
from asgi_perfkit.profiling.stalls import Stalls

__all__ = [
    "DEFAULT_MAX_MEMORY",
    "Profiles",
    "default_profiles",
    "get_profile_stats",
    "reset_profile_stats",
]

DEFAULT_MAX_MEMORY = 16 * 1024 * 1024

logger = logging.getLogger("asgi_perfkit")


class Profiles:
    """Keeps what profiling finds, within a bound. All methods may be called from any thread.

    :ivar failures: how often the kit itself has failed; the request goes on.
    :ivar profilers: those that keep here what they find.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.failures = 0
        self.sampler = Sampler(self.report)
        self.cpu = CallsByEndpoint(_share(DEFAULT_MAX_MEMORY, 3))
        self.exact = ExactProfiles(_share(DEFAULT_MAX_MEMORY, 1))
        self.allocations = AllocationProfiles(_share(DEFAULT_MAX_MEMORY, 1))
        self.growth = MemoryGrowth(self.report)
        self.profilers: weakref.WeakSet[Any] = weakref.WeakSet()
        self.queries = QueryStatistics(_share(DEFAULT_MAX_MEMORY, 4))  # and half of that in flight
        self.slow = Slow(_share(DEFAULT_MAX_MEMORY, 4))
        self.stalls = Stalls(_share(DEFAULT_MAX_MEMORY, 1))
        # sections: each is made with its share of the memory, has `statistics()`, `clear()` and `resize(max_bytes)`
        _forget_after_fork(self)

    def resize(self, max_memory: int) -> None:
        """Keep no more than `max_memory` bytes."""
        self.queries.resize(_share(max_memory, 4))
        self.cpu.resize(_share(max_memory, 3))
        self.exact.resize(_share(max_memory, 1))
        self.allocations.resize(_share(max_memory, 1))
        self.slow.resize(_share(max_memory, 4))
        self.stalls.resize(_share(max_memory, 1))

    def statistics(self) -> dict[str, Any]:
        """What was found, as :func:`get_profile_stats` tells it."""
        return {
            "queries": self.queries.statistics(),
            "cpu": self.cpu.statistics(),
            "exact": self.exact.statistics(),
            "allocations": self.allocations.statistics(),
            "growth": self.growth.statistics(),
            "slow": self.slow.statistics(),
            "stalls": self.stalls.statistics(),
        }

    def clear(self) -> None:
        """Forget all that was found."""
        self.queries.clear()
        self.cpu.clear()
        self.exact.clear()
        self.allocations.clear()
        self.growth.clear()
        self.slow.clear()
        self.stalls.clear()

    def report(self, message: str, error: BaseException) -> None:
        """Count a failure of the kit itself, and log the first with the traceback of `error`."""
        with self.lock:
            self.failures += 1
            first = self.failures == 1
        if first:
            try:
                logger.error(
                    "%s (logged once; further ones are counted as failures)",
                    message,
                    exc_info=error,
                )
            except (
                Exception
            ):  # a filter or handler of the app's: it is counted, and the request goes on
                with self.lock:
                    self.failures += 1


def _share(max_memory: int, sixteenths: int) -> int:
    return max_memory * sixteenths // 16


def get_profile_stats(*, profiles: Profiles | None = None) -> dict[str, Any]:
    """What profiling has found so far.

    :param profiles: where the middleware keeps it, if not in the default ones.
    """
    return (default_profiles if profiles is None else profiles).statistics()


def reset_profile_stats(*, profiles: Profiles | None = None) -> None:
    """Forget what was found.

    :param profiles: where the middleware keeps it, if not in the default ones.
    """
    (default_profiles if profiles is None else profiles).clear()


def _forget_after_fork(profiles: Profiles) -> None:
    """In a forked child the parent's findings are told by the parent, and nobody will release its locks."""
    reference = weakref.ref(profiles)

    def forget() -> None:
        alive = reference()
        if alive is not None:
            alive.lock = RLock()
            alive.queries.start_anew()
            alive.cpu.start_anew()
            alive.exact.start_anew()
            alive.allocations.start_anew()
            alive.growth.start_anew()
            alive.slow.start_anew()
            alive.stalls.start_anew()
            alive.clear()
            for profiler in list(alive.profilers):
                profiler.open.clear()  # these are the parent's

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


default_profiles = Profiles()
"""Where everything is kept unless others are given."""
