"""The thread that watches event loops: one per process, for as long as somebody's requests run on a loop.

It wakes some forty times a second (a quarter of the shortest threshold), compares a few numbers, and goes to sleep; the
requests themselves pay nothing. How it tells what it sees stands at the top of `watch.py`, and what it does not count
at the top of `pauses.py`.
"""

from __future__ import annotations

import atexit
import os
import weakref
from asyncio import _get_running_loop
from threading import Event, RLock, Thread
from time import perf_counter_ns
from typing import Any

from asgi_perfkit.profiling.culprits import Reporter, Watching
from asgi_perfkit.profiling.pauses import Garbage, lock_wait_ns, lock_waited_ns
from asgi_perfkit.profiling.stalls import Announcer
from asgi_perfkit.profiling.watch import Turn
from asgi_perfkit.steps.loop import on_trio

__all__ = ["Watchdog", "watchdog"]


class Watchdog:
    """Watches loops, each for those whose requests run on it."""

    def __init__(self) -> None:
        self._garbage = Garbage()
        self.renew()

    def renew(self) -> None:
        """Begin anew: in a forked child there is no thread, and nobody releases the parent's locks."""
        self._lock = RLock()
        self._wake = Event()
        self._thread: Thread | None = None
        self._started_ns = 0
        self._over = False
        self._announcer = Announcer()
        self._reporters: weakref.WeakKeyDictionary[Any, Reporter] = weakref.WeakKeyDictionary()

    def stop(self) -> None:
        """Watch no more, for good: the interpreter is about to end."""
        self._over = True
        self._wake.set()
        thread = self._thread
        if thread is not None:
            thread.join(1)

    def watch(self, profiler: Watching) -> None:
        """Watch the running loop for `profiler`, until either of them ends; more than once is as once.

        :raises RuntimeError: no loop is running.
        """
        loop = _get_running_loop()
        if loop is not None:
            key: Any = loop
        elif on_trio():
            import trio

            key = trio.lowlevel.current_trio_token()
        else:
            raise RuntimeError("Watchdog.watch() needs a running asyncio or trio loop.")
        reporter = self._reporters.get(key)
        if (
            reporter is not None
            and self._thread is not None
            and profiler in reporter.profilers
            and not reporter.watch.stopped
        ):
            return
        with self._lock:
            if reporter is None or reporter.watch.stopped:
                reporter = self._reporters[key] = Reporter(
                    loop, profiler, self._garbage, self._announcer
                )
            else:
                reporter.add(profiler)
            if self._thread is None and not self._over:
                self._garbage.listen()
                self._started_ns = perf_counter_ns()
                thread = Thread(target=self._run, name="asgi_perfkit watchdog", daemon=True)
                thread.start()  # it may not be: then the next request tries again
                self._thread = thread

    def _run(self) -> None:
        due_ns, waited_ns = self._started_ns, 0
        again = False
        while True:
            with self._lock:
                reporters = self._needed()
                if not reporters or self._over:
                    self._garbage.ignore()
                    self._thread = None
                    return
            now_ns = perf_counter_ns()
            late_ns = now_ns - due_ns
            turn = Turn(now_ns, late_ns, min(late_ns, lock_waited_ns() - waited_ns))
            waited_ns = lock_waited_ns()
            for reporter in reporters:
                reporter.turn(turn)
            # A turn lets other threads run. If one has kept the interpreter's lock since, it is to be looked at now.
            again = not again and perf_counter_ns() - now_ns > lock_wait_ns()
            if again:
                due_ns = now_ns
                continue
            period_ns = min(reporter.watch.period_ns for reporter in reporters)
            waited_ns = lock_waited_ns()
            due_ns = perf_counter_ns() + period_ns
            self._wake.wait(period_ns / 1e9)

    def _needed(self) -> list[Reporter]:
        """Those whose loop may turn again, for somebody who is there still."""
        needed = []
        for reporter in self._reporters.values():
            if reporter.watch.ended or not reporter.profilers:
                reporter.stop()
            elif not reporter.watch.stopped:
                needed.append(reporter)
        return needed


watchdog = Watchdog()
"""The one of this process."""

atexit.register(watchdog.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watchdog.renew)
