"""Stalls: who keeps the loop, on which line, seen while it lasts."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from asgi_perfkit.profiling.stacks import Line
from asgi_perfkit.profiling.stalls import Announcer, Stall, Stalls
from tests.profiling.stalling import PATIENCE, Stalling, text_of
from tests.support import LOGGER, checkpoint, together

Run = Callable[..., Any]
TRIES = 2


async def _breathe(seconds: float = 0.05) -> None:
    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(seconds)
    else:
        import trio

        await trio.sleep(seconds)


async def _until(event: threading.Event) -> None:
    """Let the loop turn until another thread has set `event`."""
    deadline = time.perf_counter() + PATIENCE
    while not event.is_set() and time.perf_counter() < deadline:
        await _breathe(0.01)
    assert event.is_set()


def _blocked_in_helpers(stalling: Stalling) -> Any:
    async def inner() -> None:
        await checkpoint()
        stalling.block()

    async def outer() -> None:
        await inner()

    return outer


def _blocked_in_a_child_task(stalling: Stalling) -> Any:
    async def child() -> None:
        await checkpoint()
        stalling.block()

    async def parent() -> None:
        await together(child)

    return parent


def _blocked_in_the_database(stalling: Stalling) -> Any:
    async def query() -> None:
        connection = sqlite3.connect(":memory:")
        connection.create_function("block", 0, lambda: stalling.block() or 1)
        try:
            connection.execute("select block()").fetchall()
        finally:
            connection.close()

    return query


@pytest.mark.parametrize(
    ("make", "function"),
    [
        (_blocked_in_helpers, "inner"),
        (_blocked_in_a_child_task, "child"),
        (_blocked_in_the_database, "query"),
    ],
)
def test_a_stall_is_seen_while_it_lasts_with_its_line(make: Any, function: str, run: Run) -> None:
    stalling = Stalling()
    stalling.paths = {"/blocks": make(stalling), "/waits": lambda: _until(stalling.stalls.over)}
    seen: list[dict[str, Any]] = []
    blocking = stalling.block

    def block_and_look() -> None:
        blocking()
        seen.append(stalling.found())

    stalling.block = block_and_look  # type: ignore[method-assign]

    async def main() -> None:
        async def victim() -> None:
            await stalling.request("/waits")

        async def culprit() -> None:
            await checkpoint()
            await stalling.request("/blocks")

        for _ in range(TRIES if make is _blocked_in_helpers else 1):
            stalling.stalls.clear()
            stalling.stalls.seen.clear()
            stalling.stalls.over.clear()
            await together(victim, culprit)

    run(main)
    for stall in seen:
        assert stall["endpoint"] == "GET /blocks"
        assert stall["finished"] is False
        assert 0.1 <= stall["duration"] < PATIENCE
        called = [place["function"].rpartition(".")[2] for place in stall["stack"]]
        assert function in called
        assert "_step" not in called  # of the kit there is no frame that is not on the way
        assert {each["endpoint"] for each in stall["requests"]} == {"GET /blocks", "GET /waits"}
        assert stall["in_flight"] == 2
    ended = stalling.found()
    assert ended["finished"] is True
    assert ended["duration"] >= seen[-1]["duration"]
    assert ended["rss"] > 0
    assert ended["thread"] == threading.current_thread().name
    assert json.loads(json.dumps(ended)) == ended


def test_the_line_is_the_innermost_of_the_apps_own() -> None:
    """What the line calls, in a library or in C, is above it in the stack."""
    stalling = Stalling()
    seen = stalling.stalls.seen

    async def handler() -> None:
        await checkpoint()
        seen.wait(PATIENCE)

    stalling.paths["/blocks"] = handler

    async def main() -> None:
        await stalling.request("/blocks")
        await _until(stalling.stalls.over)

    asyncio.run(main())
    stall = stalling.found()
    assert text_of(stall) == "seen.wait(PATIENCE)"
    assert stall["function"].rpartition(".")[2] == "handler"
    assert stall["stack"][0]["file"] == threading.__file__
    assert stall["places"][0]["line"] == stall["line"]
    assert stall["cpu"] < stall["duration"] / 2  # it was blocked, and did not compute


def test_what_is_no_request_is_outside(run: Run) -> None:
    stalling = Stalling()
    stalling.paths["/"] = lambda: None

    async def main() -> None:
        await stalling.request("/")
        await _breathe()
        stalling.stalls.seen.wait(PATIENCE)
        await _until(stalling.stalls.over)

    run(main)
    stall = stalling.found()
    assert stall["endpoint"] == "<outside>"
    assert text_of(stall) == "stalling.stalls.seen.wait(PATIENCE)"
    assert 0.1 <= stall["duration"] < PATIENCE


def test_a_function_that_is_not_written_in_python_is_found_where_the_loop_calls_it() -> None:
    stalling = Stalling()
    stalling.paths["/"] = lambda: None

    async def main() -> None:
        await stalling.request("/")
        await _breathe()
        asyncio.get_running_loop().call_soon(time.sleep, 0.3)
        await _until(stalling.stalls.over)

    asyncio.run(main())
    assert stalling.found()["endpoint"] == "<outside>"
    assert stalling.found()["function"].rpartition(".")[2] == "_run"


@cache
def _size_of_a_long_sum() -> int:
    """So many numbers take a quarter of a second, if nothing else does."""
    size, taken = 1_000_000, 0.0
    while taken < 0.05:
        size *= 2
        started = time.thread_time()
        sum(range(size))
        taken = time.thread_time() - started
    return round(size * 0.25 / taken)


def test_c_code_that_keeps_the_interpreter_to_itself_is_told_of_with_its_line(run: Run) -> None:
    """Nobody can look while it lasts, so it is told of right after it."""
    stalling = Stalling()
    size = _size_of_a_long_sum()

    async def compute() -> None:
        await checkpoint()
        sum(range(size))
        await _breathe()

    stalling.paths["/computes"] = compute
    stalling.paths["/"] = lambda: None

    async def main() -> None:
        await stalling.request("/")
        for _ in range(5):  # who is not let run in time, on a crowded machine, finds nobody there
            await _breathe(0.1)
            await stalling.request("/computes")
            await _breathe(0.1)
            if stalling.stalls.over.is_set():
                break
        await _until(stalling.stalls.over)

    run(main)
    stall = stalling.found()
    assert stall["endpoint"] == "GET /computes"
    assert text_of(stall) == "sum(range(size))"
    assert stall["cpu"] > stall["duration"] / 2


def test_a_garbage_collection_within_is_told() -> None:
    stalling = Stalling()

    async def handler() -> None:
        gc.collect()
        stalling.block()

    stalling.paths["/blocks"] = handler

    async def main() -> None:
        stalling.paths["/"] = lambda: None
        await stalling.request("/")
        await _breathe()
        await stalling.request("/blocks")
        await _until(stalling.stalls.over)

    asyncio.run(main())
    assert stalling.found()["gc"]["collections"] >= 1
    assert stalling.found()["gc"]["time"] > 0


@pytest.mark.parametrize("clients", [15, 1], ids=["requests", "others"])
def test_a_loop_that_is_busy_with_many_short_steps_does_not_stall(clients: int, run: Run) -> None:
    """Its queue takes longer than the threshold to go through, and so do all requests."""
    stalling = Stalling()
    longest = 0.0
    asking = clients

    def work(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            sum(range(100))

    async def handler() -> None:
        for _ in range(2):
            work(0.008)
            await checkpoint()

    stalling.paths["/busy"] = handler

    async def client() -> None:
        nonlocal longest, asking
        for _ in range(2):
            started = time.perf_counter()
            await stalling.request("/busy")
            longest = max(longest, time.perf_counter() - started)
        asking -= 1

    async def outside() -> None:
        while asking:
            work(0.008)
            await checkpoint()

    async def main() -> None:
        await together(*[client] * clients, *[outside] * (25 - clients))

    run(main)
    assert longest > 0.15  # and the threshold is 0.1
    assert stalling.profiles.statistics()["stalls"] == []


def test_without_a_threshold_nobody_watches() -> None:
    stalling = Stalling(stall_threshold=None)
    stalling.paths["/blocks"] = lambda: time.sleep(0.2)
    asyncio.run(stalling.request("/blocks"))
    assert stalling.profiles.statistics()["stalls"] == []


def test_a_label_that_raises_is_counted_and_the_stall_is_kept(run_asyncio: Run) -> None:
    stalling = Stalling()

    def label(*_: Any) -> str:
        raise ZeroDivisionError

    stalling.app._profiler.label = label
    stalling.paths["/blocks"] = stalling.block

    async def main() -> None:
        server_task = asyncio.ensure_future(stalling.request("/blocks"))
        await asyncio.wait([server_task])
        await _until(stalling.stalls.over)

    run_asyncio(main)
    assert stalling.found()["endpoint"] == "<outside>"
    assert stalling.profiles.failures >= 1


# What is kept, and what is logged


def a_stall(duration: float = 0.2, endpoint: str = "GET /", line: int = 1, **more: Any) -> Stall:
    place = Line("app.py", line, "handler")
    return Stall(endpoint, duration, place, [place], thread="MainThread", **more)


def kept(stalls: Stalls, stall: Stall) -> None:
    stalls.begin(stall)
    stalls.end(stall)


def test_the_longest_of_each_place_are_kept() -> None:
    """A place that stalls again and again crowds out no other."""
    stalls = Stalls(1 << 20)
    for number in range(100):
        kept(stalls, a_stall(0.2 + number / 100))
    kept(stalls, a_stall(0.1, line=2))
    told = stalls.statistics()
    assert [round(stall["duration"], 2) for stall in told] == [1.19, 1.18, 1.17, 1.16, 1.15, 0.1]
    assert [stall["times"] for stall in told] == [100] * 5 + [1]


def test_stalls_are_bounded_in_bytes() -> None:
    stalls = Stalls(20_000)
    for number in range(1000):
        kept(stalls, a_stall(number, f"GET /{number}", number))
    told = stalls.statistics()
    assert 5 < len(told) < 25
    assert told[0]["duration"] == 999
    stalls.resize(0)
    assert stalls.statistics() == []


def test_one_that_goes_on_is_shown_and_what_was_cleared_is_not_kept() -> None:
    stalls = Stalls(1 << 20)
    stall = a_stall()
    stalls.begin(stall)
    assert len(stalls.statistics()) == 1
    stalls.clear()
    stalls.end(stall)
    assert stalls.statistics() == []


class _Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Lines(logging.Handler):
    """Keeps what is logged, and tells when there is something."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[logging.LogRecord] = []
        self.came = threading.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record)
        self.came.release()

    def wait(self) -> str:
        assert self.came.acquire(timeout=PATIENCE)
        return self.lines[-1].getMessage()


@pytest.fixture
def lines() -> Iterator[_Lines]:
    handler = _Lines()
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_one_line_tells_of_a_stall(lines: _Lines) -> None:
    Announcer(_Time()).announce(a_stall(0.1234))
    assert lines.wait() == (
        "The event loop has been kept for 0.123 s so far by GET /: app.py:1 in handler"
    )
    assert lines.lines[0].levelno == logging.WARNING


def test_a_place_is_told_of_once_a_minute_and_all_places_twenty_times(lines: _Lines) -> None:
    now = _Time()
    announcer = Announcer(now)
    for _ in range(1000):
        announcer.announce(a_stall())
    lines.wait()
    now.now = 61
    announcer.announce(a_stall())
    assert lines.wait().endswith("in handler (999 more stalls there were not logged)")
    for number in range(1000):
        announcer.announce(a_stall(line=10 + number))
    for _ in range(19):
        lines.wait()
    assert not lines.came.acquire(timeout=0.05)
    assert len(lines.lines) == 21


def test_a_handler_that_raises_or_blocks_keeps_nobody_up(lines: _Lines) -> None:
    logger = logging.getLogger(LOGGER)
    release = threading.Event()
    attempts = []

    def trouble(record: logging.LogRecord) -> bool:
        attempts.append(record)
        if len(attempts) == 1:
            raise ZeroDivisionError
        release.wait(PATIENCE)
        return True

    logger.addFilter(trouble)
    try:
        announcer = Announcer(_Time())
        for line in range(3):
            announcer.announce(a_stall(line=line))  # returns, whatever becomes of it
        assert lines.lines == []
        release.set()
        lines.wait()
        lines.wait()
    finally:
        logger.removeFilter(trouble)
