"""The watchdog: what it does not take for a stall, and how long it lives."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asgi_perfkit.profiling import watchdog as module
from asgi_perfkit.profiling.pauses import Garbage, Pauses, ThreadClock
from asgi_perfkit.profiling.watchdog import watchdog
from tests.profiling.stalling import PATIENCE, Stalling

MS = 1_000_000


class _Clock(ThreadClock):
    """What a thread has had of the processor, as the test says."""

    __slots__ = ("cpu", "runnable", "waited")

    def __init__(self) -> None:
        super().__init__()
        self.cpu = self.waited = 0
        self.runnable = False

    def cpu_ns(self) -> int:
        return self.cpu

    def waited_ns(self) -> int:
        return self.waited

    def is_runnable(self) -> bool:
        return self.runnable


class _Ticks:
    """Turns of the watching thread, 25 ms apart unless one is late."""

    def __init__(self) -> None:
        self.clock = _Clock()
        self.now = 0
        self.pauses = Pauses(0, self.clock, Garbage())

    def tick(self, *, late: int = 0, ran: int = 0, waited: int = 0, runnable: bool = False) -> None:
        self.now += (25 + late) * MS
        self.clock.cpu += ran * MS
        self.clock.waited += waited * MS
        self.clock.runnable = runnable
        self.pauses.tick(self.now, late * MS, silent=True)

    def excused(self, since: int = 0) -> int:
        return self.pauses.excused_since(since * MS) // MS


def test_a_thread_that_sleeps_is_excused_for_nothing() -> None:
    ticks = _Ticks()
    for _ in range(4):
        ticks.tick(late=5)  # which is what the interpreter's lock may take
    assert ticks.excused() == 0


def test_being_woken_late_is_excused_unless_the_thread_ran_meanwhile() -> None:
    ticks = _Ticks()
    ticks.tick(late=2000, ran=20)
    assert ticks.excused() == 2000
    ticks.tick(late=500, ran=520)
    assert ticks.excused() == 2005


def test_waiting_for_a_processor_is_excused() -> None:
    ticks = _Ticks()
    ticks.tick(waited=20, ran=5)
    assert ticks.excused() == 20
    ticks.tick(
        waited=50, ran=25
    )  # a wait of before that was counted late: no more than did not run
    assert ticks.excused() == 20


def test_a_wait_that_goes_on_is_seen_by_the_state_of_the_thread() -> None:
    """The kernel counts it when it is over."""
    ticks = _Ticks()
    ticks.tick(ran=5, runnable=True)
    assert ticks.excused() == 20


def test_what_was_excused_before_a_step_began_is_no_part_of_it() -> None:
    """Two seconds of being stopped do not hide what comes right after."""
    ticks = _Ticks()
    ticks.tick(late=2000)  # now it is 2025
    ticks.tick()
    assert ticks.excused(since=2020) == 5
    assert ticks.excused(since=2030) == 0


def test_the_clock_of_a_thread_tells_of_that_thread() -> None:
    clocks: list[ThreadClock] = []
    go, end = threading.Event(), threading.Event()

    def other() -> None:
        clocks.append(ThreadClock())
        go.set()
        end.wait(PATIENCE)

    thread = threading.Thread(target=other)
    thread.start()
    go.wait(PATIENCE)
    own = ThreadClock()
    before = own.cpu_ns(), clocks[0].cpu_ns()
    stop = time.thread_time() + 0.05
    while time.thread_time() < stop:
        pass
    ran = own.cpu_ns() - before[0]
    assert ran >= 45 * MS
    if hasattr(time, "pthread_getcpuclockid"):
        assert clocks[0].cpu_ns() - before[1] < ran / 2
    if sys.platform == "linux":
        assert own.is_runnable()
        assert not clocks[0].is_runnable()
    end.set()
    thread.join()
    assert clocks[0].cpu_ns() >= 0  # one that has ended does no harm
    assert clocks[0].waited_ns() >= 0


# In a process of its own: it says "ready" within a step, and goes on as it is told.
CHILD = """
import asyncio, sys, time
from asgi_perfkit.middleware.profiling import ProfilingMiddleware
from asgi_perfkit.profiling.profiles import Profiles

def reads():
    print("ready", flush=True)
    sys.stdin.readline()

def computes(seconds):
    began = time.perf_counter()
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    walls.append(time.perf_counter() - began)

walls = []

async def app(scope, receive, send):
    await asyncio.sleep(0)
    {step}
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b""}})

async def receive():
    return {{"type": "http.request", "body": b"", "more_body": False}}

async def send(message):
    pass

async def main():
    scope = {{"type": "http", "method": "GET", "path": "/", "headers": []}}
    for _ in range({times}):
        await middleware(scope, receive, send)
        await asyncio.sleep(0.05)

profiles = Profiles()
middleware = ProfilingMiddleware(app, profiles=profiles, stall_threshold={threshold})
asyncio.run(main())
stalls = [round(stall["duration"], 3) for stall in profiles.statistics()["stalls"]]
print(max(walls, default=0), *stalls, flush=True)
"""


@contextmanager
def a_child(step: str, times: int, threshold: float) -> Iterator[subprocess.Popen[str]]:
    code = CHILD.format(step=step, times=times, threshold=threshold)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def what_it_found(child: subprocess.Popen[str]) -> tuple[float, list[float]]:
    """The longest step on the wall clock, and the stalls."""
    assert child.stdout is not None
    longest, *stalls = map(float, child.stdout.readline().split())
    return longest, stalls


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes are not stopped here")
@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "blocked"])
def test_a_process_that_was_stopped_has_not_stalled(stopped: bool) -> None:
    """One that has waited as long for its input has."""
    with a_child("reads()", 1, threshold=0.25) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        if stopped:
            child.send_signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
        time.sleep(0.6)  # is what is tested
        if stopped:
            child.send_signal(signal.SIGCONT)
        child.stdin.write("\n")
        child.stdin.flush()
        _, stalls = what_it_found(child)
    if stopped:
        assert stalls == []
    else:
        (duration,) = stalls
        assert 0.5 < duration < 3


def _can_starve() -> bool:
    return hasattr(os, "sched_setaffinity") and Path("/proc/self/schedstat").exists()


@pytest.mark.skipif(not _can_starve(), reason="nobody tells here how long threads wait to run")
@pytest.mark.parametrize("seconds", [0.04, 0.2], ids=["starved", "computes"])
def test_a_process_that_does_not_get_to_run_has_not_stalled(seconds: float) -> None:
    """One that takes as long for itself has."""
    (core, *_) = sorted(os.sched_getaffinity(0))
    hogs = []
    times = 3 if seconds < 0.1 else 1
    step = f"walls or reads(); computes({seconds})"
    try:
        with a_child(step, times, threshold=0.12) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            for _ in range(4):
                hogs.append(subprocess.Popen([sys.executable, "-ISc", "while True: pass"]))
                os.sched_setaffinity(hogs[-1].pid, {core})
            for thread in Path(f"/proc/{child.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})
            child.stdin.write("\n")
            child.stdin.flush()
            longest, stalls = what_it_found(child)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert longest > 2 * seconds  # it was starved indeed
    if seconds < 0.1:
        assert longest > 0.12
        assert [duration for duration in stalls if duration > 0.12] == []
    else:
        assert 0.15 < max(stalls) < longest


# The thread


def _watchdogs() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "asgi_perfkit watchdog"]


def _wait_for_its_end() -> None:
    for thread in _watchdogs():
        thread.join(PATIENCE)
    assert _watchdogs() == []


def test_there_is_one_thread_which_ends_with_the_last_loop_and_comes_back(run: Any) -> None:
    async def main() -> None:
        for stalling in several:
            stalling.paths["/"] = lambda: None
            await stalling.request("/")
        assert len(_watchdogs()) == 1
        assert _watchdogs()[0].daemon

    several = [Stalling(), Stalling(stall_threshold=0.5)]
    for _ in range(2):
        run(main)
        _wait_for_its_end()


def test_it_ends_with_the_last_who_wants_to_know(run: Any) -> None:
    async def main() -> None:
        stalling = Stalling()
        stalling.paths["/"] = lambda: None
        await stalling.request("/")
        thread = _watchdogs()[0]
        del stalling
        gc.collect()
        while thread.is_alive():
            if asyncio._get_running_loop() is not None:
                await asyncio.sleep(0.01)
            else:
                import trio

                await trio.sleep(0.01)

    run(main)
    assert watchdog._garbage._note not in gc.callbacks


def test_the_shortest_threshold_counts_and_each_is_told_of_its_own() -> None:
    eager, patient = Stalling(stall_threshold=0.1), Stalling(stall_threshold=30)
    eager.paths = {"/": lambda: None, "/blocks": eager.block}
    patient.paths = {"/": lambda: None}

    async def main() -> None:
        await patient.request("/")
        await eager.request("/")
        await eager.request("/blocks")

    asyncio.run(main())
    _wait_for_its_end()
    assert len(eager.profiles.statistics()["stalls"]) == 1
    assert patient.profiles.statistics()["stalls"] == []


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
def test_a_loop_that_was_left_for_a_while_has_not_stalled(library: str) -> None:
    """Who runs a loop bit by bit does something else in between."""
    stalling = Stalling()
    stalling.paths["/"] = lambda: None
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await stalling.request("/")
        await asyncio.sleep(0.05)

    def wait(depth: int) -> None:  # deeper than what a loop calls
        if depth:
            wait(depth - 1)
        else:
            stalling.stalls.seen.wait(0.25)

    loop = pytest.importorskip(library).new_event_loop()
    try:
        loop.run_until_complete(main())
        wait(20)
        loop.run_until_complete(main())
    finally:
        loop.close()
    _wait_for_its_end()
    assert stalling.profiles.statistics()["stalls"] == []


def test_a_failure_while_it_looks_is_counted_and_it_looks_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stalling = Stalling()
    stalling.paths = {"/": lambda: None, "/blocks": stalling.block}
    failed = threading.Event()
    tick = Pauses.tick

    def once(*args: Any, **kwargs: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return tick(*args, **kwargs)

    monkeypatch.setattr(Pauses, "tick", once)

    async def main() -> None:
        await stalling.request("/")
        failed.wait(PATIENCE)
        stalling.stalls.seen.clear()
        await stalling.request("/blocks")

    asyncio.run(main())
    assert stalling.stalls.seen.is_set()
    assert stalling.profiles.failures == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_watches_its_own_loops() -> None:
    stalling = Stalling()
    stalling.paths = {"/": lambda: None, "/blocks": stalling.block}

    def child() -> int:
        if module.watchdog._thread is not None:
            return 1
        asyncio.run(stalling.request("/blocks"))
        return 0 if len(stalling.profiles.statistics()["stalls"]) == 1 else 2

    async def main() -> int:
        await stalling.request("/")
        return os.fork()

    pid = asyncio.run(main())
    if pid == 0:
        code = 3
        try:
            code = child()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_it_needs_a_loop() -> None:
    with pytest.raises(RuntimeError, match="running asyncio or trio loop"):
        watchdog.watch(Stalling().app._profiler)
