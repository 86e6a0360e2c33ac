"""Listens to the process: how late the loop is, how long garbage collections stop it, its memory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import weakref
from collections.abc import Callable
from contextvars import Context
from time import perf_counter_ns
from typing import Any

import psutil

from asgi_perfkit.metrics.histogram import Histogram
from asgi_perfkit.steps.loop import on_trio

__all__ = ["RuntimeMonitor", "rss_reader"]

# How often the loop is asked how late it is. Twenty times a second sees a loop that is blocked for 50 ms for sure,
# and costs less than a thousandth of a core.
HEARTBEAT_SECONDS = 0.05


class RuntimeMonitor:
    """Listens to the process on behalf of one registry, from the first request on.

    :ivar event_loop_lag: nanoseconds; of all loops that were watched.
    :ivar gc_pause: nanoseconds; of all generations.
    :ivar memory_due_ns: when, at the earliest, memory is to be read for another request.
    """

    def __init__(self) -> None:
        self.event_loop_lag = Histogram()
        self.gc_pause = Histogram()
        self._process: psutil.Process | None = None
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._listens_to_gc = False
        self._read_memory: Callable[[], int] | None = None
        self._process_id = 0
        self.memory_due_ns = 0

    def watch(self) -> None:
        """Watch the running loop, until it ends; more than once is as once.

        :raises RuntimeError: no loop is running.
        """
        if not self._listens_to_gc:
            self._listens_to_gc = True
            _listen_to_gc(self)
        loop = asyncio._get_running_loop()
        if loop is not None:
            if loop not in self._watched:
                self._watched.add(loop)
                # In a context of its own: the timer would keep that of the first request for as long as it lives.
                Context().run(self._beat, loop, None, None)
        elif on_trio():
            import trio

            token = trio.lowlevel.current_trio_token()
            if token not in self._watched:
                self._watched.add(token)
                trio.lowlevel.spawn_system_task(
                    self._beat_on_trio,
                    trio.current_time() + HEARTBEAT_SECONDS,
                    name="asgi_perfkit heartbeat",
                )
        else:
            raise RuntimeError("RuntimeMonitor.watch() needs a running asyncio or trio loop.")

    def resident_memory(self) -> int:
        """The resident memory of this process, in bytes.

        :raises OSError: it cannot be read.
        """
        if (
            self._read_memory is None or self._process_id != os.getpid()
        ):  # the file is that of a process
            self._process_id = os.getpid()
            self._read_memory = rss_reader()
        return self._read_memory()

    def process_stats(self) -> dict[str, float]:
        """Memory, CPU, threads and open files of this process."""
        process = self._process
        if process is None or process.pid != os.getpid():  # another process since a fork
            process = self._process = psutil.Process()
        with process.oneshot():
            return {
                "rss": process.memory_info().rss,
                "cpu_percent": process.cpu_percent(),
                "threads": process.num_threads(),
                "open_files": _open_files(process),
            }

    def _beat(self, loop: asyncio.AbstractEventLoop, due: float | None, run: object) -> None:
        """Note how late this call is and ask for the next one.

        The timer is what measures: it is due at a moment that does not depend on how long this function, or a
        reader of the statistics, takes. It keeps no loop alive: a pending timer is dropped when the loop ends. A loop
        that was stopped and runs again was not late meanwhile; each run sets asynchronous generator hooks of its own.
        """
        now = loop.time()
        this_run = sys.get_asyncgen_hooks().firstiter
        if due is not None and run is this_run:
            self.event_loop_lag.observe(max(0, round((now - due) * 1e9)))
        due = now + HEARTBEAT_SECONDS
        loop.call_at(due, self._beat, loop, due, this_run)

    async def _beat_on_trio(self, due: float) -> None:
        import trio

        while True:
            await trio.sleep_until(due)
            now = trio.current_time()
            self.event_loop_lag.observe(max(0, round((now - due) * 1e9)))
            due = now + HEARTBEAT_SECONDS


def _open_files(process: psutil.Process) -> int:
    if sys.platform == "win32":
        return process.num_handles()
    return process.num_fds()


def _listen_to_gc(monitor: RuntimeMonitor) -> None:
    """Count each pause, for as long as somebody holds the `monitor`.

    Collections do not nest and run under the interpreter's lock, so this is the histogram's only writer.
    """
    pauses = monitor.gc_pause
    started_ns = 0

    def listen(phase: str, _info: dict[str, int]) -> None:
        nonlocal started_ns
        if phase == "start":
            started_ns = perf_counter_ns()
        elif started_ns:
            pauses.observe(perf_counter_ns() - started_ns)
            started_ns = 0

    gc.callbacks.append(listen)
    # Not by `listen` itself: who takes something out of the list while it is gone through makes others miss a call.
    weakref.finalize(monitor, _stop_listening, listen)


def _stop_listening(listen: Callable[[str, dict[str, int]], None]) -> None:
    with contextlib.suppress(ValueError):
        gc.callbacks.remove(listen)


def rss_reader() -> Callable[[], int]:
    """A function that tells the resident memory of this process in bytes, as fast as the platform has it.

    It belongs to the process that made it: after a fork, make another.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return _StatmReader().read
    process = psutil.Process()
    return lambda: int(process.memory_info().rss)


class _StatmReader:
    """Reads /proc/self/statm through one open descriptor: a tenth of the cost of psutil.

    The second field is the number of resident pages (proc(5)).
    """

    __slots__ = ("_descriptor", "_page_size")

    def __init__(self) -> None:
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        self._descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        return int(os.pread(self._descriptor, 64, 0).split(None, 2)[1]) * self._page_size

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)
