"""Names who keeps an event loop from turning, and what for."""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from asgi_perfkit.metrics.monitor import rss_reader
from asgi_perfkit.metrics.registry import OUTSIDE
from asgi_perfkit.profiling.pauses import Garbage
from asgi_perfkit.profiling.slow import traceparent_of
from asgi_perfkit.profiling.stacks import Line
from asgi_perfkit.profiling.stalls import Announcer, Stall, Stalls
from asgi_perfkit.profiling.watch import AsyncioWatch, Look, TrioWatch, Turn, Watch

__all__ = ["Reporter", "Watching"]

_MAX_REQUESTS = 20


class Watching(Protocol):
    """Whose loops are watched: a profiler.

    :ivar stall_ns: from which duration on a step is a stall.
    """

    profiles: Any
    label: Callable[..., str]
    facts: Callable[[Any, BaseException | None], Mapping[str, Any]]
    open: set[Any]
    stall_ns: int


class Reporter:
    """Tells the profilers of one loop what keeps it from turning.

    :ivar profilers: those whose requests run there.
    """

    def __init__(
        self, loop: Any, profiler: Watching, garbage: Garbage, announcer: Announcer
    ) -> None:
        self._announcer = announcer
        self._stall: Stall | None = None
        self._met: tuple[str, str | None] | None = None
        self._told: list[Stalls] = []
        self.profilers: weakref.WeakSet[Watching] = weakref.WeakSet([profiler])
        self.watch: Watch
        if loop is None:
            self.watch = TrioWatch(profiler.stall_ns, garbage, self)
        else:
            self.watch = AsyncioWatch(loop, profiler.stall_ns, garbage, self)

    def add(self, profiler: Watching) -> None:
        """Tell another one, too."""
        self.profilers.add(profiler)
        if profiler.stall_ns < self.watch.threshold_ns:
            self.watch.set_threshold(profiler.stall_ns)

    def stop(self) -> None:
        """Tell nobody any more."""
        try:
            self.watch.stop()
        except Exception as failure:
            self._report(failure)

    def turn(self, turn: Turn) -> None:
        """See how the loop does. A failure of the kit is reported, and ends nothing."""
        try:
            self.watch.turn(turn)
        except Exception as failure:
            self._report(failure)
        finally:
            self._met = None

    def met(self, account: Any) -> None:
        """Note whose step it is as long as that can be told; see :class:`Listener`."""
        profiler, known = _profiled(account, list(self.profilers))
        if profiler is not None:
            self._met = _label(profiler, known), _traceparent(profiler, known)

    def stalled(self, watch: Watch, look: Look, place: Line, stack: list[Line]) -> None:
        """A step has lasted for the threshold of one of the profilers; see :class:`Listener`."""
        profilers = list(self.profilers)
        label, traceparent = self._met or (OUTSIDE, None)
        self._stall = stall = Stall(
            label,
            _seconds(look.seen_ns - look.begin_ns - look.excused_ns),
            place,
            stack,
            thread=watch.thread,
            traceparent=traceparent,
            rss=_rss(),
        )
        flying = [(profiler, account) for profiler in profilers for account in list(profiler.open)]
        stall.in_flight = len(flying)
        oldest = heapq.nsmallest(_MAX_REQUESTS, flying, key=lambda pair: pair[1].started_ns)
        stall.requests = [
            (_label(profiler, account), _seconds(look.seen_ns - account.started_ns))
            for profiler, account in oldest
        ]
        del flying, oldest
        self._note(stall, watch, look, stall.duration)
        self._told = []
        self._tell(stall)
        self._announcer.announce(stall)

    def lasts(self, watch: Watch, look: Look) -> None:
        """It goes on; see :class:`Listener`."""
        if self._stall is not None:
            duration_ns = look.seen_ns - look.begin_ns - look.excused_ns
            self._note(self._stall, watch, look, _seconds(duration_ns))
            self._tell(self._stall)

    def over(self, watch: Watch, look: Look, duration_ns: int) -> None:
        """It is over; see :class:`Listener`."""
        stall, self._stall = self._stall, None
        if stall is not None:
            self._note(stall, watch, look, _seconds(duration_ns))
            stall.finished = True
            self._tell(stall)
            for stalls in self._told:
                stalls.end(stall)
            self._told = []

    def _tell(self, stall: Stall) -> None:
        """Give it to all for whom it is a stall by now."""
        for profiler in list(self.profilers):
            stalls = profiler.profiles.stalls
            if stall.duration * 1e9 >= profiler.stall_ns and stalls not in self._told:
                self._told.append(stalls)
                stalls.begin(stall)

    def _note(self, stall: Stall, watch: Watch, look: Look, duration: float) -> None:
        cpu_ns, collecting_ns, collections = watch.used_by(look)
        stall.note(
            duration,
            cpu=_seconds(cpu_ns),
            collecting=_seconds(collecting_ns),
            collections=collections,
            places=look.places.most_common(),
        )

    def _report(self, failure: Exception) -> None:
        for profiler in list(self.profilers):
            profiler.profiles.report("The event loop could not be looked at", failure)


def _profiled(account: Any, profilers: list[Watching]) -> tuple[Watching | None, Any]:
    """Who profiles an account, or the one that it was opened in; and which of them it is."""
    while account is not None:
        for profiler in profilers:
            if account.profile is profiler or account in profiler.open:
                return profiler, account
        account = account.parent
    return None, None


def _label(profiler: Watching, account: Any) -> str:
    try:
        return profiler.label(account, None)
    except Exception as failure:
        profiler.profiles.report("The endpoint of a request could not be named", failure)
        return account.endpoint or OUTSIDE


def _traceparent(profiler: Watching, account: Any) -> str | None:
    try:
        return traceparent_of(profiler.facts(account, None))
    except Exception as failure:
        profiler.profiles.report("The facts of a request could not be told", failure)
        return None


def _rss() -> int | None:
    try:
        return rss_reader()()
    except Exception:  # who may not read it goes without
        return None


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / 1e9
