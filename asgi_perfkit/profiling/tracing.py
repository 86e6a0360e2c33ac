"""Windows in which it is looked at what requests allocate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.profiling.allocations import AllocationWindow
from asgi_perfkit.profiling.profiles import Profiles, default_profiles

__all__ = ["AllocationReport", "profile_allocations"]

MAX_SECONDS = 600
MAX_FRAMES = 100


class AllocationReport:
    """What was allocated in the steps of requests, so far; it may be read at any time, and from any thread."""

    def __init__(self, window: AllocationWindow) -> None:
        self._window = window

    def __repr__(self) -> str:
        state = "open" if self.open else "over"
        return f"<AllocationReport: {state}, {len(self.endpoints)} endpoints>"

    @property
    def open(self) -> bool:
        """Whether it is still looked at what requests allocate."""
        return self._window.open

    @property
    def interrupted(self) -> bool:
        """Whether somebody else has stopped `tracemalloc`, so that nothing was seen from then on."""
        return self._window.interrupted

    @property
    def overlapping_steps(self) -> int:
        """How many steps were not looked at, because one on another event loop was."""
        return self._window.overlapping_steps

    @property
    def endpoints(self) -> dict[str, dict[str, Any]]:
        """By endpoint, of the requests that have ended and of those that the end of the window has met.

        ``requests`` and ``steps``; ``bytes`` that were allocated in these steps and still there at their ends, and the
        ``peak`` within one of them; ``top``, the lines that have allocated the most of the bytes, each with its
        ``file``, ``line``, ``bytes`` and their ``blocks``.
        """
        return self._window.statistics()


def profile_allocations(
    *,
    seconds: float = 10.0,
    endpoint: str | None = None,
    frames: int = 8,
    profiles: Profiles | None = None,
) -> AbstractAsyncContextManager[AllocationReport]:
    """See what requests allocate while the block lasts, or for so many `seconds`, whichever is shorter.

    All code of the process is several times slower meanwhile.

    :param seconds: after which it ends by itself; up to 600.
    :param endpoint: the name of one ("GET /items/{item_id}"), to see no other; None for all.
    :param frames: how many callers of each allocation are known, 1 to 100. What is told is the innermost line of the
        app among them; where there is none, the line that has allocated. More are slower.
    :param profiles: those of the middleware, if not the default ones.
    :raises AlreadyProfilingError: on entering the block: `tracemalloc` is tracing, for somebody else or for another
        such block. It is left alone.
    :raises ConfigurationTypeError: an argument of the wrong type.
    :raises ConfigurationValueError: an argument outside of what is allowed.
    """
    _check(seconds, endpoint, frames, profiles)
    return _tracing(default_profiles if profiles is None else profiles, seconds, endpoint, frames)


@asynccontextmanager
async def _tracing(
    profiles: Profiles, seconds: float, endpoint: str | None, frames: int
) -> AsyncIterator[AllocationReport]:
    window = AllocationWindow(
        profiles.allocations, seconds=seconds, endpoint=endpoint, frames=frames
    )
    window.start()
    try:
        for profiler in list(profiles.profilers):
            for account in list(profiler.open):
                window.observe(account, partial(profiler.label, account, None))
        yield AllocationReport(window)
    finally:
        window.stop()


def _option(name: str) -> str:
    return f"profile_allocations({name}=...)"


def _check(seconds: object, endpoint: object, frames: object, profiles: object) -> None:
    """Refuse arguments that cannot be used."""
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise ConfigurationTypeError(_option("seconds"), seconds, "give seconds.")
    if not 0 < seconds <= MAX_SECONDS:  # nor NaN
        raise ConfigurationValueError(
            _option("seconds"), seconds, f"give more than 0, up to {MAX_SECONDS}."
        )
    remedy = 'give the name of one ("GET /items/{item_id}"), or None for all.'
    if endpoint is not None and not isinstance(endpoint, str):
        raise ConfigurationTypeError(_option("endpoint"), endpoint, remedy)
    if endpoint == "":
        raise ConfigurationValueError(_option("endpoint"), endpoint, remedy)
    if not isinstance(frames, int) or isinstance(frames, bool):
        raise ConfigurationTypeError(_option("frames"), frames, "give a whole number.")
    if not 1 <= frames <= MAX_FRAMES:
        raise ConfigurationValueError(_option("frames"), frames, f"give 1 to {MAX_FRAMES}.")
    if profiles is not None and not isinstance(profiles, Profiles):
        raise ConfigurationTypeError(
            _option("profiles"), profiles, "give Profiles, or None for the default ones."
        )
