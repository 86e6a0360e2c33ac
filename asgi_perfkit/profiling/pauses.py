"""Tells time in which a thread ran, or waited, from time in which nobody let it run.

A watch on a clock alone cannot tell a blocked loop from a process that was stopped (SIGSTOP, a debugger, a laptop that
sleeps), throttled by its cgroup, or left waiting for a processor that others use. Such time is excused:

* The watching thread asks to be woken at a moment. What it is late by is excused, as both threads were most likely not
  let run, up to a few milliseconds, which waiting for the interpreter's lock takes. Not excused is what the watched
  thread has used of the processor meanwhile: it ran, in C code that holds that lock, and nobody else could look.
* On Linux, the time that the watched thread has waited in a run queue is excused. The kernel counts a wait when it is
  over, so of a thread that is runnable when it is looked at, all is excused but what it has used of the processor.

What is left is time that the thread ran or that it was blocked in a system call: sleeping, reading, waiting for a lock.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Garbage", "Pauses", "ThreadClock", "Tick", "lock_wait_ns", "lock_waited_ns"]

_USAGE_OF_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)
_LINUX = sys.platform == "linux"
_KEPT = (
    8  # ticks; a step is looked at within three of its beginning, unless the process was stopped
)


class ThreadClock:
    """What a thread has had of the processor. Made in that thread, read in any.

    :ivar ident: of the thread, as :func:`threading.get_ident` has it.
    """

    __slots__ = ("_clock", "_directory", "_schedstat")

    def __init__(self) -> None:
        self._clock: int | None = None
        # With the identity of a thread that has ended this would crash; the clock of one is refused by the kernel.
        if hasattr(time, "pthread_getcpuclockid"):
            with suppress(OSError):
                self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._directory = f"/proc/self/task/{threading.get_native_id()}/" if _LINUX else None
        self._schedstat: int | None = None
        if self._directory is not None:
            with suppress(OSError):
                self._schedstat = os.open(self._directory + "schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def cpu_ns(self) -> int:
        """The processor time of the thread; of the process, where threads have no clock of their own."""
        if self._clock is not None:
            with suppress(OSError):
                return time.clock_gettime_ns(self._clock)
        return time.process_time_ns()

    def waited_ns(self) -> int:
        """How long it has waited in run queues so far; 0 where nobody counts that."""
        if self._schedstat is not None:
            with suppress(OSError, ValueError, IndexError):
                return int(os.pread(self._schedstat, 96, 0).split()[1])
        return 0

    def sleeps(self) -> int | None:
        """How often it has gone to sleep by itself so far; None where nobody counts that."""
        if self._directory is not None:
            with suppress(OSError, IndexError, ValueError):
                status = Path(self._directory, "status").read_bytes()
                return int(status.rpartition(b"\nvoluntary_ctxt_switches:")[2].split(None, 1)[0])
        return None

    def is_runnable(self) -> bool:
        """Whether it runs, or would if it were let, or is stopped; False where that is not known."""
        if self._directory is not None:
            with suppress(OSError, IndexError):
                stat = Path(self._directory, "stat").read_bytes()
                # The name, in parentheses, may hold anything; the state follows it (proc(5)).
                return stat.rpartition(b")")[2].split(None, 1)[0] in (b"R", b"T", b"t")
        return False

    def __del__(self) -> None:
        descriptor = getattr(self, "_schedstat", None)
        if descriptor is not None:
            os.close(descriptor)


class Garbage:
    """Listens to garbage collections, which stop all threads of a process.

    Collections do not nest and run under the interpreter's lock, so there is one writer.

    :ivar pause_ns: how long all have taken so far.
    :ivar collections: how many there were.
    """

    __slots__ = ("_started_ns", "collections", "pause_ns")

    def __init__(self) -> None:
        self.pause_ns = self.collections = self._started_ns = 0

    def listen(self) -> None:
        """Listen from now on; more than once is as once."""
        if self._note not in gc.callbacks:
            gc.callbacks.append(self._note)

    def ignore(self) -> None:
        """Listen no more."""
        with suppress(ValueError):
            gc.callbacks.remove(self._note)

    def _note(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._started_ns = time.perf_counter_ns()
        elif self._started_ns:
            self.pause_ns += time.perf_counter_ns() - self._started_ns
            self.collections += 1
            self._started_ns = 0


class Tick(NamedTuple):
    """One turn of the watching thread, and what had been counted by then."""

    now_ns: int
    excused_ns: int  # since the tick before
    cpu_ns: int
    waited_ns: int
    collecting_ns: int
    collections: int


class Pauses:
    """What of the time that has passed does not count.

    :param now_ns: on the monotonic clock.
    :param clock: of the thread that is watched.
    :param garbage: what is known of garbage collections.
    :ivar last: the last tick.
    """

    def __init__(self, now_ns: int, clock: ThreadClock, garbage: Garbage) -> None:
        self._clock = clock
        self._garbage = garbage
        self.last = self._read(now_ns, 0, clock.cpu_ns(), clock.waited_ns())
        self._ticks = deque([self.last], _KEPT)
        self._sleeps: int | None = None

    def tick(self, now_ns: int, late_ns: int, lock_ns: int = 0, *, silent: bool) -> Tick:
        """Note a turn of the watching thread. Other threads may run meanwhile.

        :param late_ns: by how much it was woken too late.
        :param lock_ns: how much of that it has waited for the interpreter's lock.
        :param silent: whether the loop has not been heard of for so long that its thread is to be looked at.
        """
        last = self.last
        clock = self._clock
        cpu_ns, waited_ns = clock.cpu_ns(), clock.waited_ns()
        passed_ns = now_ns - last.now_ns
        sleeps, slept = (clock.sleeps() if silent else None), self._sleeps
        self._sleeps = sleeps
        # Who waits for the lock wakes at each interval. A thread that sleeps on is blocked, whoever has the lock.
        if (
            sleeps is not None
            and slept is not None
            and (sleeps - slept) * lock_wait_ns() < passed_ns
        ):
            late_ns -= lock_ns
        excused_ns = max(waited_ns - last.waited_ns, late_ns if late_ns > lock_wait_ns() else 0)
        if silent and clock.is_runnable():
            excused_ns = passed_ns
        excused_ns = max(0, min(excused_ns, passed_ns - (cpu_ns - last.cpu_ns)))
        self.last = self._read(now_ns, excused_ns, cpu_ns, waited_ns)
        self._ticks.append(self.last)
        return self.last

    def excused_since(self, begin_ns: int) -> int:
        """How much of the time from `begin_ns` to the last tick does not count."""
        return sum(
            min(tick.excused_ns, tick.now_ns - begin_ns)
            for tick in self._ticks
            if tick.now_ns > begin_ns
        )

    def before(self, begin_ns: int) -> Tick:
        """The last tick before `begin_ns`, or the first that is known."""
        found = self._ticks[0]
        for tick in self._ticks:
            if tick.now_ns <= begin_ns:
                found = tick
        return found

    def _read(self, now_ns: int, excused_ns: int, cpu_ns: int, waited_ns: int) -> Tick:
        garbage = self._garbage
        return Tick(now_ns, excused_ns, cpu_ns, waited_ns, garbage.pause_ns, garbage.collections)


def lock_wait_ns() -> int:
    """What the interpreter's lock may well be waited for: two of the intervals after which it changes hands."""
    return round(sys.getswitchinterval() * 2e9)


def lock_waited_ns() -> int:
    """For how long the calling thread can have waited for the interpreter's lock so far.

    A thread that waits for it wakes each time an interval is over after which the lock may change hands. One that is
    not let run, or is stopped, does not. Where nobody counts how often threads sleep it may have been all the time.
    """
    if _USAGE_OF_THREAD is None:
        return time.perf_counter_ns()
    return round(resource.getrusage(_USAGE_OF_THREAD).ru_nvcsw * sys.getswitchinterval() * 1e9)
