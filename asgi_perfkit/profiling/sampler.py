"""Looks at what runs, many times a second, and adds up where the time goes.

A thread wakes up, reads the stacks of the threads that serve requests, and sleeps again; the requests know nothing of
it. A sample is worth the time since the one before: where one comes late, because nobody let go of the interpreter
meanwhile, what is seen has lasted for that long.

Two things would falsify what it sees. Looking at even intervals sees again and again the same part of what happens at
even intervals: so they are uneven. And a thread that wants the interpreter gets it when another lets go of it, which
that does where it calls the operating system, or else when the switch interval is over, of 5 ms: of a busy loop that
shows its calls of `send` and `select` and little else. So as long as samples are taken that interval is short.
"""

from __future__ import annotations

import atexit
import os
import random
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Event, Lock, RLock, Thread, get_ident
from time import perf_counter, process_time
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from asgi_perfkit.profiling.calls import CallsByEndpoint, Place
from asgi_perfkit.profiling.feed import OUTSIDE, Feed
from asgi_perfkit.profiling.stacks import Hops, LoopThread, Reading

if TYPE_CHECKING:
    from asgi_perfkit.steps import Account

__all__ = ["MAX_HZ", "MIN_HZ", "OUTSIDE", "Feed", "Sampler"]

MIN_HZ: Final = 1
MAX_HZ: Final = 1000
SWITCH_SECONDS: Final = 0.0001
_LEARN_SECONDS: Final = 1.0  # how often to look for libraries that were imported meanwhile
_LINGER_SECONDS: Final = 0.1
_MAX_LINGERS: Final = 100
_MAX_LINES: Final = 4096  # places that are known by where they are in the code
_EXIT_SECONDS: Final = 1.0


class Sampler:
    """Looks at the threads of the loops that it knows, as long as anybody wants samples of them.

    :param report: told of a failure of its own: a message and the exception.
    :ivar feeds: who wants samples.
    """

    def __init__(self, report: Callable[[str, BaseException], object]) -> None:
        self._report = report
        self._profilers: tuple[weakref.ref[Any], ...] = ()
        self._switch: tuple[float, float] | None = None
        self._reset()
        _end_with_the_process(self)

    def _reset(self) -> None:
        self._switch_back()  # in a forked child, which has no thread that would
        self._lock = RLock()
        self.feeds: tuple[Feed, ...] = ()
        self._loops: dict[int, LoopThread] = {}
        self._thread: Thread | None = None
        self._alarm = (
            Lock()
        )  # held while nobody wakes the thread; an Event's wait costs twice as much
        self._alarm.acquire()
        self._leaving = Event()
        self._hops = Hops()
        self._places: dict[tuple[int, int], tuple[CodeType, Place]] = {}
        self._doubtful: list[tuple[Feed, Account | None]] = []

    def meet_loop(self, profiler: Any = None) -> None:
        """Look at the running loop, too; to be called in a task of it. More than once is as once.

        :param profiler: who knows the requests there.
        """
        known = self._loops.get(get_ident())
        if known is None or not known.is_here():
            thread = LoopThread()
            with self._lock:
                self._loops[thread.ident] = thread
        if profiler is not None and not any(each() is profiler for each in self._profilers):
            with self._lock:
                alive = [each for each in self._profilers if each() is not None]
                self._profilers = (*alive, weakref.ref(profiler))

    def feed(
        self,
        calls: CallsByEndpoint,
        hz: float,
        seconds: float | None = None,
        *,
        slower_than: float = 0.0,
        requests: int | None = None,
    ) -> Feed:
        """Give samples to `calls`, `hz` times a second or more often; the parameters are those of :class:`Feed`."""
        feed = Feed(self._stop, calls, hz, seconds, slower_than=slower_than, requests=requests)
        with self._lock:
            self.feeds = (*self.feeds, feed)
            if self._thread is None:
                self._start()
            self._wake()
        return feed

    def _start(self) -> None:
        self._thread = Thread(target=self._run, name="asgi_perfkit sampler", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as failure:  # the system has no thread left, or the interpreter ends
            self._thread = None
            for feed in self.feeds:
                feed.stop()
            self._report("Nothing is sampled", failure)

    def ended(
        self, profiler: Any, account: Account, label: str, error: BaseException | None
    ) -> None:
        """The work of an `account` is over; called for all that a profiler knows, as long as there are :attr:`feeds`.

        :param label: the name of its endpoint.
        :param error: what it has raised; None if it has returned.
        """
        ended = False
        for feed in self.feeds:
            feed.request_ended(profiler, account, label, error)
            ended |= feed.full
        if ended:
            self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # it is about to wake up anyway
            self._alarm.release()

    def _stop(self, feed: Feed) -> None:
        with self._lock:
            self.feeds = tuple(each for each in self.feeds if each is not feed)
            self._wake()

    def leave(self) -> None:
        """Give no samples to anybody any more, and wait for the thread's end: that of the process is near."""
        with self._lock:
            self.feeds = ()
            thread = self._thread
            self._wake()
            self._leaving.set()
        if thread is not None:
            thread.join(_EXIT_SECONDS)

    # ---- in the thread

    def _run(self) -> None:
        switch = sys.getswitchinterval()
        sys.setswitchinterval(min(switch, SWITCH_SECONDS))
        self._switch = switch, sys.getswitchinterval()  # it is kept in whole microseconds
        try:
            self._sample()
        except Exception as failure:
            self._report("Sampling has ended", failure)
        with self._lock:
            self._switch_back()
            self._thread = None
            if self.feeds:
                self._start()
        self._linger()

    def _switch_back(self) -> None:
        if self._switch is not None:
            switch, shortened = self._switch
            self._switch = None
            if sys.getswitchinterval() == shortened:  # or somebody has set another meanwhile
                sys.setswitchinterval(switch)

    def _sample(self) -> None:
        chance = random.Random()
        learnt = -_LEARN_SECONDS
        last = perf_counter()
        last_cpu = process_time()
        while True:
            for feed, account in self._doubtful:
                feed.withdraw(account)
            self._doubtful.clear()
            now = perf_counter()
            for feed in self.feeds:
                if feed.is_due(now):
                    feed.finish()
            feeds = self.feeds
            if not feeds:
                return
            interval = 1 / max(feed.hz for feed in feeds)
            pause = interval * chance.uniform(0.5, 1.5)
            if self._alarm.acquire(timeout=max(0.0, last + pause - perf_counter())):
                continue
            now, cpu = perf_counter(), process_time()
            # Later than it should be: because the interpreter was busy, or the process was not running at all.
            seconds = min(now - last, max(2 * pause, cpu - last_cpu))
            last, last_cpu = now, cpu
            if now - learnt >= _LEARN_SECONDS:
                learnt = now
                self._hops.learn()
            try:
                self._look(feeds, seconds)
            except Exception as failure:
                self._report("A sample could not be taken", failure)
            for feed in feeds:
                feed.calls.settle()

    def _look(self, feeds: tuple[Feed, ...], seconds: float) -> None:
        for reading in self._read_all():
            stack = [self._place_of(code, where) for code, where in reversed(reading.stack)]
            account, profiler = self._known(reading.account)
            for feed in feeds:
                feed.add(account, profiler, stack, seconds)
                if account is not None and account not in profiler.open:
                    # It has ended just now, perhaps before it was pending: then nobody tells of that any more.
                    self._doubtful.append((feed, account))

    def _read_all(self) -> list[Reading]:
        """What runs now. The frames are held for as short as possible: what they hold would be freed in here."""
        readings = []
        frames = sys._current_frames()
        # The frame of this function knows `frames`: with it among them, all would stay until a garbage collection.
        del frames[get_ident()]
        for ident, frame in frames.items():
            loop_thread = self._loops.get(ident)
            if loop_thread is not None and loop_thread.is_alive():
                reading = loop_thread.read(frame)
            else:
                reading = self._hops.read(frame)
            if reading is not None:
                readings.append(reading)
        for ident in [ident for ident, each in self._loops.items() if not each.is_alive()]:
            with self._lock:
                if not self._loops[ident].is_alive():
                    del self._loops[ident]
        return readings

    def _known(self, account: Account | None) -> tuple[Account | None, Any]:
        """The innermost account around the work that a profiler knows, and that profiler."""
        while account is not None:
            for each in self._profilers:
                profiler = each()
                if profiler is not None and account in profiler.open:
                    return account, profiler
            account = account.parent
        return None, None

    def _place_of(self, code: CodeType, where: int) -> Place:
        known = self._places.get((id(code), where))
        if known is not None:
            return known[1]
        place = Place(
            getattr(code, "co_qualname", code.co_name),
            code.co_filename,
            code.co_firstlineno,
            _line_at(code, where),
        )
        if len(self._places) >= _MAX_LINES:
            self._places.clear()
        self._places[id(code), where] = (
            code,
            place,
        )  # with the code, or its identity may become another's
        return place

    def _linger(self) -> None:
        """Stay, for a while, until the calls have ended whose frames hold more than they would for having been read."""
        for _ in range(_MAX_LINGERS):
            if self._thread is not None or not self._hops.let_go(sys._current_frames()):
                return  # the next thread looks after them
            if self._leaving.wait(_LINGER_SECONDS):
                return


def _line_at(code: CodeType, where: int) -> int:
    """The line of an instruction, by its offset."""
    for start, end, line in code.co_lines():
        if start <= where < end:
            return line or code.co_firstlineno
    return code.co_firstlineno


def _end_with_the_process(sampler: Sampler) -> None:
    reference = weakref.ref(sampler)

    def call(method: Callable[[Sampler], object]) -> None:
        alive = reference()
        if alive is not None:
            method(alive)

    atexit.register(call, Sampler.leave)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(call, Sampler._reset))
