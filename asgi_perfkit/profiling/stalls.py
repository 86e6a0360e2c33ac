"""What has kept an event loop from turning: the section `stalls` of the profiles."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from threading import RLock, Thread
from time import monotonic
from typing import Any

from asgi_perfkit.profiling.stacks import Line
from asgi_perfkit.profiling.worst import Worst

__all__ = ["Announcer", "Stall", "Stalls"]

_EACH = 5
_MAX_KINDS = 500
_MAX_PLACES = 8
_QUIET_SECONDS = 60.0
_MAX_LINES = 20  # in that time, of all places
_MAX_QUIET = 256

logger = logging.getLogger("asgi_perfkit")


class Stall:
    """One stretch in which a loop did not turn. The watching thread alone changes it.

    :ivar endpoint: whose step it was.
    :ivar duration: seconds, so far, without what does not count.
    :ivar place: where it was when it was found.
    :ivar stack: where that was called from, the innermost line first.
    :ivar thread: the name of the loop's thread.
    :ivar traceparent: of the request, if it has one.
    :ivar requests: names and ages in seconds of the oldest requests in flight, when it was found.
    :ivar in_flight: how many requests were in flight then.
    :ivar rss: the resident memory then, in bytes, if it is known.
    :ivar cpu: seconds for which the thread has used the processor meanwhile.
    :ivar collecting: seconds that garbage collections have taken meanwhile.
    :ivar collections: how many there were.
    :ivar places: where it was seen, and how often.
    :ivar finished: whether it is over.
    """

    __slots__ = (
        "collecting",
        "collections",
        "cpu",
        "duration",
        "endpoint",
        "finished",
        "in_flight",
        "place",
        "places",
        "requests",
        "rss",
        "stack",
        "started",
        "thread",
        "traceparent",
    )

    def __init__(
        self,
        endpoint: str,
        duration: float,
        place: Line,
        stack: list[Line],
        *,
        thread: str,
        traceparent: str | None = None,
        requests: list[tuple[str, float]] | None = None,
        in_flight: int = 0,
        rss: int | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.duration = duration
        self.place = place
        self.stack = stack
        self.thread = thread
        self.traceparent = traceparent
        self.requests = requests or []
        self.in_flight = in_flight
        self.rss = rss
        self.started = datetime.now(timezone.utc) - timedelta(seconds=duration)
        self.cpu = self.collecting = 0.0
        self.collections = 0
        self.places: list[tuple[Line, int]] = []
        self.finished = False

    def note(
        self,
        duration: float,
        *,
        cpu: float,
        collecting: float,
        collections: int,
        places: list[tuple[Line, int]],
    ) -> None:
        """Take what it has come to so far."""
        self.duration = duration
        self.cpu = min(cpu, duration)
        self.collecting = min(collecting, duration)
        self.collections = collections
        self.places = places[:_MAX_PLACES]

    def size(self) -> int:
        """About how many bytes it keeps."""
        lines = [*self.stack, *(line for line, _ in self.places)]
        texts = [self.endpoint, self.thread, *(name for name, _ in self.requests)]
        return (
            800
            + sum(150 + len(line.file) + len(line.function) for line in lines)
            + sum(120 + len(text) for text in texts)
        )

    def statistics(self, times: int) -> dict[str, Any]:
        """As users read it.

        :param times: how many there were of its kind.
        """
        return {
            "endpoint": self.endpoint,
            "duration": self.duration,
            **_told(self.place),
            "stack": [_told(line) for line in self.stack],
            "places": [{**_told(line), "looks": looks} for line, looks in self.places],
            "started": self.started.isoformat(timespec="milliseconds"),
            "finished": self.finished,
            "times": times,
            "thread": self.thread,
            "cpu": self.cpu,
            "gc": {"time": self.collecting, "collections": self.collections},
            "rss": self.rss,
            "traceparent": self.traceparent,
            "in_flight": self.in_flight,
            "requests": [{"endpoint": name, "age": age} for name, age in self.requests],
        }


class Stalls:
    """The longest stalls of each endpoint and place, and those that go on.

    :param max_bytes: what they may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self._worst: Worst[Stall] = Worst(max_bytes, _EACH)
        self.start_anew()

    def start_anew(self) -> None:
        """In a forked child: forget all, and wait for no thread of the parent."""
        self._lock = RLock()
        self._running: list[Stall] = []
        self._worst = Worst(self._worst.max_bytes, _EACH)
        self._times: OrderedDict[object, int] = OrderedDict()

    def begin(self, stall: Stall) -> None:
        """Take a stall that goes on."""
        with self._lock:
            self._running.append(stall)
            kind = _kind_of(stall)
            self._times[kind] = self._times.get(kind, 0) + 1
            self._times.move_to_end(kind)
            if len(self._times) > _MAX_KINDS:
                self._times.popitem(last=False)

    def end(self, stall: Stall) -> None:
        """A stall is over; unless it has been cleared away meanwhile, it is kept as far as it is among the worst."""
        with self._lock:
            if stall in self._running:
                self._running.remove(stall)
                self._worst.add(_kind_of(stall), stall.duration, stall.size(), stall)

    def statistics(self) -> list[dict[str, Any]]:
        """All, the longest first."""
        with self._lock:
            stalls = sorted([*self._running, *self._worst], key=_duration_of, reverse=True)
            return [stall.statistics(self._times.get(_kind_of(stall), 1)) for stall in stalls]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._running = []
            self._worst.clear()
            self._times.clear()

    def resize(self, max_bytes: int) -> None:
        """Keep no more than `max_bytes`."""
        with self._lock:
            self._worst.resize(max_bytes)


class Announcer:
    """Logs stalls, in a thread of its own: a handler that blocks, be it on what stalls the loop, keeps nobody up.

    The same place is told of once a minute, and all places together twenty times: what stalls again and again fills no
    disk. How often nothing was said is told the next time.

    :param now: seconds on the monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._lock = RLock()
        self._waiting: list[tuple[Any, ...]] = []
        self._thread: Thread | None = None
        self._told: OrderedDict[tuple[str, int], tuple[float, int]] = OrderedDict()
        self._since = now()
        self._lines = 0

    def announce(self, stall: Stall) -> None:
        """Log a stall that goes on, unless its place was told of a short while ago."""
        place = (stall.place.file, stall.place.line)
        now = self._now()
        with self._lock:
            if now - self._since >= _QUIET_SECONDS:
                self._since, self._lines = now, 0
            last, unsaid = self._told.get(place, (now - _QUIET_SECONDS, 0))
            if now - last < _QUIET_SECONDS or self._lines >= _MAX_LINES:
                self._remember(place, last, unsaid + 1)
                return
            self._lines += 1
            self._remember(place, now, 0)
            self._waiting.append(
                (
                    "The event loop has been kept for %.3f s so far by %s: %s:%d in %s%s",
                    stall.duration,
                    stall.endpoint,
                    stall.place.file,
                    stall.place.line,
                    stall.place.function,
                    f" ({unsaid} more stalls there were not logged)" if unsaid else "",
                )
            )
            if self._thread is None:
                thread = Thread(target=self._log, name="asgi_perfkit stalls", daemon=True)
                thread.start()
                self._thread = thread

    def _remember(self, place: tuple[str, int], last: float, unsaid: int) -> None:
        self._told[place] = last, unsaid
        self._told.move_to_end(place)
        if len(self._told) > _MAX_QUIET:
            self._told.popitem(last=False)

    def _log(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                line = self._waiting.pop(0)
            try:
                logger.warning(*line)
            except (
                BaseException
            ):  # a filter or handler of the app's; there is no better place to tell of it
                continue


def _told(line: Line) -> dict[str, Any]:
    return {"file": line.file, "line": line.line, "function": line.function}


def _kind_of(stall: Stall) -> object:
    return stall.endpoint, stall.place.file, stall.place.line


def _duration_of(stall: Stall) -> float:
    return stall.duration
