"""Plain functions, from several threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import pytest

from asgi_perfkit import RequestScopedCache, cached, run_in_threadpool
from asgi_perfkit.caching.flights import ThreadFlight
from asgi_perfkit.caching.shared import SharedCache
from tests.conftest import Run
from tests.support import Trouble
from tests.threads.gates import PATIENCE_SECONDS, Gate, Signal, spawn


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Is released for each thread that joins a call."""
    semaphore = threading.Semaphore(0)
    join = ThreadFlight.join

    def counted(flight: ThreadFlight) -> bool:
        semaphore.release()
        return join(flight)

    monkeypatch.setattr(ThreadFlight, "join", counted)
    return semaphore


def await_joined(joined: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert joined.acquire(timeout=PATIENCE_SECONDS)


def ask_together(
    pool: ThreadPoolExecutor,
    joined: threading.Semaphore,
    gate: Gate,
    ask: Callable[[], Any],
    count: int = 8,
) -> list[Future[Any]]:
    """So many threads ask, all while the first one stands before the gate."""
    futures = [pool.submit(ask) for _ in range(count)]
    await_joined(joined, count - 1)
    gate.open()
    return futures


def test_threads_share_one_call(pool: ThreadPoolExecutor, joined: threading.Semaphore) -> None:
    with Gate() as gate:
        func = cached(60)(gate)
        futures = ask_together(pool, joined, gate, lambda: func("value"))
        assert {future.result() for future in futures} == {"value"}
        assert gate.passed == 1
        figures = func.cache_info()
        assert (figures.misses, figures.hits) == (1, 7)


def test_what_a_call_raises_is_raised_in_all_threads(
    pool: ThreadPoolExecutor, joined: threading.Semaphore
) -> None:
    with Gate() as gate:
        error = Trouble()
        func = cached(60, key=len)(lambda _: gate(error))
        futures = ask_together(pool, joined, gate, lambda: func(""))
        assert {future.exception() for future in futures} == {error}
        assert gate.passed == 1
        assert func.cache_info().size == 0
        with pytest.raises(Trouble):
            func("")
        assert gate.passed == 2


class EndOfThread(BaseException):
    """What ends a thread rather than a call."""


def test_a_call_that_is_broken_off_is_made_by_another(
    pool: ThreadPoolExecutor, joined: threading.Semaphore
) -> None:
    """As the cancellation of a first caller: it does not concern the others."""

    @cached(60)
    def func() -> str:
        calls.append(1)
        if len(calls) == 1:
            gate(EndOfThread())
        return "value"

    calls: list[int] = []
    with Gate() as gate:
        futures = ask_together(pool, joined, gate, func)
        outcomes = [future.exception() or future.result() for future in futures]
        assert outcomes.count("value") == 7
        assert sum(isinstance(outcome, EndOfThread) for outcome in outcomes) == 1
        assert len(calls) == 2


def test_what_is_cleared_meanwhile_is_not_kept(
    pool: ThreadPoolExecutor, joined: threading.Semaphore
) -> None:
    with Gate() as gate:
        func = cached(60)(gate)
        futures = [pool.submit(func, "value") for _ in range(2)]
        await_joined(joined, 1)
        func.cache_clear()
        later = pool.submit(func, "value")
        gate_reached(gate, 2)
        gate.open()
        assert {future.result() for future in (*futures, later)} == {"value"}
        assert gate.passed == 2
        assert func.cache_info().size == 1


def gate_reached(gate: Gate, count: int) -> None:
    with gate._lock:
        signal = gate._reached(count)
    signal.block()


def test_a_value_that_comes_between_looking_and_asking_is_taken(pool: ThreadPoolExecutor) -> None:
    cache = RequestScopedCache()
    assert cache.find("key") is not None
    cache.set("key", "of another thread")
    assert cache.fetch("key", lambda: pytest.fail("it was there")) == "of another thread"


def test_a_value_that_comes_between_is_taken_by_tasks(run: Run) -> None:
    async def main() -> None:
        cache = RequestScopedCache()
        cache.set("key", "of another thread")
        fail: Any = lambda: pytest.fail("it was there")  # noqa: E731
        assert await cache.afetch("key", fail) == "of another thread"

    run(main)


def test_a_function_that_asks_for_its_own_value_is_told() -> None:
    @cached(60)
    def load(key: int) -> object:
        return load(key)

    with pytest.raises(RuntimeError, match="load waits for itself"):
        load(1)
    assert load.cache_info().size == 0


def test_so_it_is_in_another_context() -> None:
    @cached(60)
    def load() -> object:
        return Context().run(load)

    with pytest.raises(RuntimeError, match="load waits for itself: it was called again in the thr"):
        load()


def test_so_are_two_threads_that_wait_for_each_other(pool: ThreadPoolExecutor) -> None:
    both = threading.Barrier(2)

    @cached(60)
    def one() -> object:
        both.wait(PATIENCE_SECONDS)
        return other()

    @cached(60)
    def other() -> object:
        both.wait(PATIENCE_SECONDS)
        return one()

    for future in (pool.submit(one), pool.submit(other)):
        error = future.exception(PATIENCE_SECONDS)
        assert isinstance(error, RuntimeError)
        assert "waits for itself" in str(error)


def test_recursion_with_other_keys_is_none() -> None:
    @cached(60)
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(80) == 23416728348467685
    assert fibonacci.cache_info().misses == 81


def test_worker_threads_of_a_request_share_its_cache(run: Run) -> None:
    async def main() -> None:
        cache = RequestScopedCache()
        with Gate() as gate:
            task = spawn(lambda: run_in_threadpool(cache.get_or_create, "key", gate))
            await gate.reached()
            gate.open()
            await task.result()
            assert "key" in cache
            assert await run_in_threadpool(cache.get_or_create, "key", gate) is None
            assert gate.passed == 1

    run(main)


@contextmanager
def switching_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def test_threads_at_random_leave_a_cache_in_order(pool: ThreadPoolExecutor) -> None:
    """Every ask is a hit or a miss, every value fits its key, and neither bound nor order suffer."""

    class Key:
        """Python code runs whenever two are compared, so threads change in the middle of everything."""

        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            return self.number % 3

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key) and self.number == other.number

    calls: list[int] = []

    @cached(1e-4, max_size=5)
    def double(key: Key) -> int:
        calls.append(key.number)
        return key.number * 2

    def ask(seed: int) -> None:
        for turn in range(400):
            number = (seed * 7 + turn * turn) % 11
            assert double(Key(number)) == number * 2
            if turn % 50 == 0:
                double.cache_invalidate(Key(number))
            if turn % 150 == 0:
                double.cache_clear()

    with switching_often():
        for future in [pool.submit(ask, seed) for seed in range(8)]:
            future.result(PATIENCE_SECONDS)
    figures = double.cache_info()
    assert figures.hits + figures.misses == 8 * 400
    assert figures.misses == len(calls)
    assert figures.size <= 5


FORKING = """
import os, threading, warnings
from asgi_perfkit import cached

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
parent = os.getpid()
began, may_end = threading.Event(), threading.Event()

@cached(60)
def func(key):
    if key == "slow" and os.getpid() == parent:
        began.set()
        assert may_end.wait(10)
    return os.getpid()

def hold_the_lock():
    with func.cache_info.__self__._lock:
        began.set()
        assert may_end.wait(10)

def forked(other):
    began.clear()
    may_end.clear()
    thread = threading.Thread(target=other)
    thread.start()
    assert began.wait(10)
    child = os.fork()
    if not child:
        os._exit(2 * (func("quick") == parent) + (func("slow") == os.getpid()))
    _, status = os.waitpid(child, 0)
    may_end.set()
    thread.join()
    return os.waitstatus_to_exitcode(status)

assert func("quick") == parent
print(forked(lambda: func("slow")), forked(hold_the_lock))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_waits_for_nobody() -> None:
    """Neither for a call in a thread that it does not have, nor for a lock that such a thread held.

    It has the values of the parent, but for a cache that was in the middle of a change.
    """
    ran = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", FORKING],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (ran.stdout, ran.stderr) == ("3 1\n", "")


@pytest.mark.parametrize("held", [False, True])
def test_what_a_fork_leaves_of_a_cache(pool: ThreadPoolExecutor, held: bool) -> None:
    """The same in this process, as the hook sees it."""
    cache = SharedCache("values", 10)
    cache.set("key", "value")
    locked, may_end = Signal(), Signal()

    def hold() -> None:
        with cache._lock:
            locked.set()
            may_end.block()

    if held:
        other = pool.submit(hold)
        locked.block()
    cache._start_anew()
    assert len(cache) == (not held)
    if held:
        may_end.set()
        other.result()
