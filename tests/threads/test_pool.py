"""The worker threads: how many there are, how long they live, and that none is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_perfkit import (
    ThreadLimiter,
    contextmanager_in_threadpool,
    get_runtime_stats,
    iterate_in_threadpool,
    run_in_threadpool,
)
from asgi_perfkit.threads import pool as pool_module
from asgi_perfkit.threads.pool import count_threads
from tests.conftest import Run
from tests.support import checkpoint
from tests.threads.conftest import WORKER, workers
from tests.threads.gates import PATIENCE_SECONDS, Gate, Signal, spawn

EXIT_SECONDS = 15.0  # for a process of the tests that is to end at once: starting it takes some, on a busy machine


def set_idle_seconds(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", seconds)


async def ended(*threads: threading.Thread) -> None:
    """Wait until the threads have ended, with the loop free."""
    loop = asyncio.get_running_loop()
    for thread in threads:
        await loop.run_in_executor(None, thread.join, PATIENCE_SECONDS)
        assert not thread.is_alive()


def test_workers_are_daemons_with_a_name(run_asyncio: Run) -> None:
    """One recognises them in a dump of all threads, and they hold up no exit of the interpreter."""

    async def main() -> None:
        thread = await run_in_threadpool(threading.current_thread)
        assert thread.name == WORKER
        assert thread.daemon

    run_asyncio(main)


def test_a_worker_is_used_again(run_asyncio: Run) -> None:
    """Calls one after another need one thread, also those of different tasks, and with different limiters."""

    async def main() -> None:
        threads = {await run_in_threadpool(threading.current_thread) for _ in range(10)}
        for _ in range(10):
            limiter = ThreadLimiter(1)
            call = spawn(
                lambda limiter=limiter: run_in_threadpool(threading.current_thread, limiter=limiter)
            )
            threads.add(await call.result())
        assert len(threads) == 1

    run_asyncio(main)


def test_the_last_to_lie_down_is_the_first_to_be_woken(run_asyncio: Run) -> None:
    """So that those which there has been nothing to do for sleep until they end."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            gates = [stack.enter_context(Gate()) for _ in range(3)]
            calls = []
            for gate in gates:
                calls.append(spawn(lambda gate=gate: run_in_threadpool(gate)))
                await gate.reached()
            for number in (1, 2, 0):
                gates[number].open()
                await calls[number].result()
            for _ in range(5):
                thread = await run_in_threadpool(threading.current_thread)
                assert thread is gates[0].threads[0]
            assert count_threads() == (3, 3)

    run_asyncio(main)


def test_a_worker_that_is_idle_for_long_ends(
    run_asyncio: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted no more, and the next call gets a new one."""
    set_idle_seconds(monkeypatch, 0.001)

    async def main() -> None:
        thread = await run_in_threadpool(threading.current_thread)
        await ended(thread)
        assert count_threads() == (0, 0)
        assert await run_in_threadpool(threading.current_thread) is not thread

    run_asyncio(main)


def test_workers_are_kept_for_ten_seconds(
    run_asyncio: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is how long each sleeps before it ends."""
    timeouts: list[float] = []
    asleep = Signal()
    allocate_lock = pool_module.allocate_lock

    class Lock:
        def __init__(self) -> None:
            lock = allocate_lock()
            self._lock = lock
            self.release = lock.release

        def acquire(self, timeout: float = -1) -> bool:
            if timeout >= 0:
                timeouts.append(timeout)
                asleep.set()
            return self._lock.acquire(timeout=timeout)

    async def main() -> None:
        await run_in_threadpool(int)
        await asleep.wait()

    monkeypatch.setattr(pool_module, "allocate_lock", Lock)
    run_asyncio(main)
    assert set(timeouts) == {10.0}


def test_a_busy_worker_does_not_end(run_asyncio: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its function takes, and although others end meanwhile."""
    set_idle_seconds(monkeypatch, 0.001)

    async def main() -> None:
        with Gate() as gate, Gate() as other:
            call = spawn(lambda: run_in_threadpool(gate, 5))
            second = spawn(lambda: run_in_threadpool(other))
            await gate.reached()
            await other.reached()
            other.open()
            await second.result()
            await ended(*other.threads)
            assert count_threads() == (1, 0)
            gate.open()
            assert await call.result() == 5

    run_asyncio(main)


def test_no_call_is_lost_between_workers_that_end(
    run_asyncio: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that end as soon as they have nothing to do, and callers that come all the time."""
    set_idle_seconds(monkeypatch, 0.0)

    async def one_after_another() -> None:
        for number in range(100):
            assert await run_in_threadpool(str, number) == str(number)

    async def main() -> None:
        for task in [spawn(one_after_another) for _ in range(5)]:
            await task.result()

    run_asyncio(main)


def test_a_worker_may_be_woken_in_the_moment_in_which_it_would_end(
    run_asyncio: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has slept for long, and then there is a call for it all the same: it does not end, and makes the call."""
    allocate_lock = pool_module.allocate_lock

    class LateLock:
        """Tells once that nobody has released it, and it has been."""

        def __init__(self) -> None:
            self._lock = allocate_lock()
            self._late = True
            self.release = self._lock.release

        def acquire(self, timeout: float = -1) -> bool:
            acquired = self._lock.acquire(timeout=timeout)
            if timeout >= 0 and self._late:
                self._late = False
                self._lock.release()
                return False
            return acquired

    monkeypatch.setattr(pool_module, "allocate_lock", LateLock)

    async def main() -> None:
        threads = {await run_in_threadpool(threading.current_thread) for _ in range(3)}
        assert len(threads) == 1

    run_asyncio(main)


@pytest.mark.parametrize("total", [1, 3])
def test_there_are_never_more_workers_than_tokens(run_asyncio: Run, total: int) -> None:
    """A token that is handed over is used by a worker that is there."""
    limiter = ThreadLimiter(total)
    seen: set[threading.Thread] = set()

    def function() -> None:
        seen.add(threading.current_thread())

    async def one_after_another() -> None:
        for _ in range(20):
            await run_in_threadpool(function, limiter=limiter)

    async def main() -> None:
        for task in [spawn(one_after_another) for _ in range(20)]:
            await task.result()
        assert count_threads()[0] <= total

    run_asyncio(main)
    assert len(seen) <= total


def test_what_is_done_is_told_in_batches() -> None:
    """While the loop has other things to do, one wake-up is enough for all calls that end meanwhile."""
    wakings = 0

    class Done(deque[Any]):
        def append(self, call: Any) -> None:
            super().append(call)
            if len(self) == 20:
                all_done.set()

    all_done = Signal()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def counting(callback: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal wakings
            wakings += callback == pool._deliver
            return wake(callback, *args, **kwargs)

        with Gate() as gate:
            limiter = ThreadLimiter(20)
            calls = [spawn(lambda: run_in_threadpool(gate, limiter=limiter)) for _ in range(20)]
            await gate.reached(20)
            await checkpoint()
            pool = pool_module._pools[loop]
            pool._done = Done()
            loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
            gate.open()
            all_done.block()  # and so is the loop
            for call in calls:
                await call.result()

    asyncio.run(main())
    assert 1 <= wakings <= 3  # those that end at the very same time may each do it


def test_no_thread_is_left_when_the_loop_ends(
    run_asyncio: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have ended by then, to their last instruction."""
    work = pool_module.Worker.run

    def linger(worker: pool_module.Worker) -> None:
        work(worker)
        threading.Event().wait(0.02)

    monkeypatch.setattr(pool_module.Worker, "run", linger)

    async def main() -> list[threading.Thread]:
        with Gate() as gate:
            calls = [spawn(lambda: run_in_threadpool(gate)) for _ in range(10)]
            await gate.reached(10)
            gate.open()
            for call in calls:
                await call.result()
        return gate.threads

    threads = run_asyncio(main)
    assert len(threads) == 10
    assert not any(thread.is_alive() for thread in threads)


async def _use_threads() -> None:
    with Gate() as gate:
        calls = [spawn(lambda: run_in_threadpool(gate)) for _ in range(3)]
        await gate.reached(3)
        gate.open()
        for call in calls:
            await call.result()


async def _use_a_manager() -> None:
    async with contextmanager_in_threadpool(contextlib.nullcontext(), same_thread=True):
        pass


@pytest.mark.parametrize("main", [_use_threads, _use_a_manager])
def test_a_loop_may_end_when_its_threads_have_just_been_used(run_asyncio: Run, main: Any) -> None:
    """Those that are on their way to sleep, or to their end, are waited for, too: in whatever order things come."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(20):
            run_asyncio(main)
            assert workers() == []
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner is new in Python 3.11")
def test_no_thread_is_left_when_a_runner_ends() -> None:
    """Between two runs of one loop they stay, and the second run uses them."""
    with asyncio.Runner() as runner:
        first = runner.run(run_in_threadpool(threading.current_thread))
        assert first.is_alive()
        assert runner.run(run_in_threadpool(threading.current_thread)) is first
    assert not first.is_alive()


@pytest.mark.parametrize("calls", [1, 4])
@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
def test_cleanups_at_the_close_of_the_loop_may_make_calls(
    run_asyncio: Run, calls: int, used: bool
) -> None:
    """Those of other asynchronous generators that the loop closes together with the pool, or after it."""

    async def generator() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await make_calls()
            for _ in range(20):
                await checkpoint()
            await make_calls()

    async def make_calls() -> None:
        for number in range(calls):
            ended.append(await run_in_threadpool(int, number))  # noqa: PERF401  # clearer than the list

    async def main() -> None:
        for _ in range(3):
            left.append(generator())
            await left[-1].__anext__()
        if used:
            await run_in_threadpool(int)

    for _ in range(10):
        left: list[AsyncGenerator[None, None]] = []
        ended: list[int] = []
        run_asyncio(main)
        assert sorted(ended) == sorted([*range(calls)] * 6)
        for thread in workers():  # of those behind the pool's end nobody waits for
            thread.join(PATIENCE_SECONDS)


def test_a_loop_may_be_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without word of it to the pool: its threads end when they have been idle for long, and the next loop works."""
    set_idle_seconds(monkeypatch, 0.001)
    loop = asyncio.new_event_loop()
    first = loop.run_until_complete(run_in_threadpool(threading.current_thread))
    loop.close()
    first.join(PATIENCE_SECONDS)
    assert not first.is_alive()
    second = asyncio.run(run_in_threadpool(threading.current_thread))
    assert second is not first
    assert count_threads() == (0, 0)
    gc.collect()


def test_a_loop_may_be_closed_while_a_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it any more; its thread ends after it, and the token is given back."""
    set_idle_seconds(monkeypatch, 0.001)
    limiter = ThreadLimiter(1)
    with Gate() as gate:
        loop = asyncio.new_event_loop()

        async def main() -> None:
            task = loop.create_task(run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            tasks.append(task)

        tasks: list[asyncio.Task[Any]] = []
        loop.run_until_complete(main())
        loop.close()
        assert limiter.borrowed_tokens == 1
        gate.open()
        (thread,) = gate.threads
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert limiter.borrowed_tokens == 0
    tasks.clear()
    gc.collect()


def test_the_state_of_the_pool_is_in_the_runtime_stats(run_asyncio: Run) -> None:
    """How many threads live, how many of them are idle, and how the default limiter stands."""

    async def main() -> None:
        with Gate() as gate, Gate() as other:
            calls = [spawn(lambda gate=gate: run_in_threadpool(gate)) for gate in (gate, other)]
            await gate.reached()
            await other.reached()
            other.open()
            await calls[1].result()
            stats = get_runtime_stats()["thread_pool"]
            assert stats == {
                "threads": 2,
                "idle_threads": 1,
                "total_tokens": 40,
                "borrowed_tokens": 1,
                "tasks_waiting": 0,
                "exits": 0,
                "rescued": 0,
            }
            gate.open()
            await calls[0].result()

    run_asyncio(main)
    assert get_runtime_stats()["thread_pool"]["threads"] == 0


# ---- the system has no thread left


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """`no_threads()`: from now on no thread can be started, on any loop."""
    import trio

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def fail_on_trio(*args: Any, **kwargs: Any) -> None:
        fail()

    def patch() -> None:
        monkeypatch.setattr(threading.Thread, "start", fail)
        monkeypatch.setattr(trio.to_thread, "run_sync", fail_on_trio)

    return patch


def test_without_a_thread_the_caller_is_told(
    run: Run,
    limiter: ThreadLimiter,
    no_threads: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of the system; no token is lost, and when there are threads again all is as before."""

    async def main() -> None:
        no_threads()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await run_in_threadpool(int, limiter=limiter)
            assert limiter.borrowed_tokens == 0
        monkeypatch.undo()
        assert await run_in_threadpool(int, limiter=limiter) == 0

    run(main)


def test_without_a_thread_for_a_manager_the_caller_is_told(
    run: Run, limiter: ThreadLimiter, no_threads: Callable[[], None]
) -> None:
    """One that is to have a thread to itself, likewise."""

    async def main() -> None:
        no_threads()
        manager = contextmanager_in_threadpool(
            contextlib.nullcontext(), limiter=limiter, same_thread=True
        )
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await manager.__aenter__()
        assert limiter.borrowed_tokens == 0

    run(main)


def test_without_a_thread_who_waits_is_told_too(
    run: Run,
    limiter: ThreadLimiter,
    no_threads: Callable[[], None],
) -> None:
    """The token goes from one to the next, and each of them is told."""

    async def main() -> None:
        with Gate() as gate:
            first = spawn(lambda: run_in_threadpool(gate, 5, limiter=limiter))
            await gate.reached()
            others = [spawn(lambda: run_in_threadpool(int, limiter=limiter)) for _ in range(10)]
            while limiter.statistics().tasks_waiting != 10:
                await checkpoint()
            no_threads()
            limiter.total_tokens = 2
            for other in others:
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await other.result()
            assert limiter.borrowed_tokens == 1
            gate.open()
            assert await first.result() == 5

    run(main)


def test_without_a_new_thread_those_that_are_there_go_on(
    run_asyncio: Run, limiter: ThreadLimiter, no_threads: Callable[[], None]
) -> None:
    """Calls one after another need no other than the first."""

    async def main() -> None:
        thread = await run_in_threadpool(threading.current_thread, limiter=limiter)
        no_threads()
        calls = [
            spawn(lambda: run_in_threadpool(threading.current_thread, limiter=limiter))
            for _ in range(10)
        ]
        assert {await call.result() for call in calls} == {thread}

    run_asyncio(main)


# ---- processes


Python = Callable[[str], str]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """`python(code)`: what a process that runs it has printed; it must end at once, and complain of nothing."""

    def run_it(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
            capture_output=True,
            cwd=tmp_path,  # or else the source tree would be imported
            text=True,
            timeout=EXIT_SECONDS,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run_it


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

# What a test that forks runs. Python 3.12 warns of a fork beside threads, which is what is tested.
FORKING = """
    import asyncio, os, sys, threading, traceback, warnings
    from asgi_perfkit import ThreadLimiter, default_limiter, run_in_threadpool

    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

    def forked(main):
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            return os.waitstatus_to_exitcode(status)
        try:
            main()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
"""


@needs_fork
def test_a_forked_child_has_threads_of_its_own(python: Python) -> None:
    """One that was forked between two loops, with idle threads in the parent."""
    code = """
        limiter = ThreadLimiter(1)

        async def hundred():
            for number in range(100):
                assert await run_in_threadpool(str, number, limiter=limiter) == str(number)

        def child():
            asyncio.run(hundred())
            assert threading.active_count() == 1

        loop = asyncio.new_event_loop()
        loop.run_until_complete(hundred())  # and the loop is not closed: its thread is idle
        assert threading.active_count() == 2
        assert forked(child) == 0
        loop.run_until_complete(hundred())
        assert forked(lambda: loop.run_until_complete(hundred())) == 0
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        assert threading.active_count() == 1
        print("done")
    """
    assert python(textwrap.dedent(FORKING) + textwrap.dedent(code)) == "done\n"


@needs_fork
@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_forked_child_has_all_tokens(python: Python, library: str) -> None:
    """What calls of the parent had taken when it forked would never be given back in the child."""
    code = (
        f"""
        import trio
        library = {library!r}
        """
        """
        limiter = ThreadLimiter(1)
        inside, out = threading.Event(), threading.Event()

        def hold():
            inside.set()
            assert out.wait(10)

        async def call(function):
            return await run_in_threadpool(function, limiter=limiter)

        def child():
            assert limiter.statistics().borrowed_tokens == 0
            assert limiter.statistics().tasks_waiting == 0
            assert default_limiter().borrowed_tokens == 0
            assert asyncio.run(call(int)) == 0
            assert trio.run(call, int) == 0

        def parent():
            if library == "asyncio":
                asyncio.run(call(hold))
            else:
                trio.run(call, hold)

        thread = threading.Thread(target=parent)
        thread.start()
        assert inside.wait(10)
        assert limiter.borrowed_tokens == 1
        code = forked(child)
        assert limiter.borrowed_tokens == 1
        out.set()
        thread.join()
        assert limiter.borrowed_tokens == 0
        print(code)
    """
    )
    assert python(textwrap.dedent(FORKING) + textwrap.dedent(code)) == "0\n"


@needs_fork
def test_a_worker_may_fork(python: Python) -> None:
    """A function that forks, as multiprocessing does: the child may run a loop of its own and call functions there."""
    code = """
        def fork():
            return forked(lambda: asyncio.run(run_in_threadpool(int)))

        print(asyncio.run(run_in_threadpool(fork)), default_limiter().borrowed_tokens)
    """
    assert python(textwrap.dedent(FORKING) + textwrap.dedent(code)) == "0 0\n"


def test_idle_threads_do_not_hold_up_the_exit(python: Python) -> None:
    """Those of a loop that was never closed: the interpreter ends at once, and complains of nothing."""
    code = """
        import asyncio, threading, warnings
        from asgi_perfkit import run_in_threadpool

        async def main():
            barrier = threading.Barrier(10)
            await asyncio.gather(*(run_in_threadpool(barrier.wait) for _ in range(10)))

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        print(threading.active_count())
        warnings.simplefilter("ignore")  # of the loop that is left open
    """
    assert python(code) == "11\n"


@pytest.mark.parametrize("closed", [False, True], ids=["alive", "closed"])
def test_busy_threads_do_not_hold_up_the_exit(python: Python, closed: bool) -> None:
    """A function that would run for ever is cut off: its loop has gone without waiting for it."""
    code = (
        f"""
        import asyncio, threading, warnings
        from asgi_perfkit import run_in_threadpool

        started = threading.Event()
        closed = {closed}
        """
        """
        def for_ever():
            started.set()
            threading.Event().wait()

        loop = asyncio.new_event_loop()
        task = loop.create_task(run_in_threadpool(for_ever))
        task._log_destroy_pending = False
        while not started.is_set():
            loop.run_until_complete(asyncio.sleep(0))
        if closed:
            loop.close()
        print("at the end")
        warnings.simplefilter("ignore")  # of the loop that is left open
    """
    )
    assert python(code) == "at the end\n"


def test_trio_is_imported_only_where_it_runs(python: Python) -> None:
    """Neither the package nor a call on asyncio imports it, nor anyio."""
    code = """
        import asyncio, sys
        import asgi_perfkit

        asyncio.run(asgi_perfkit.run_in_threadpool(int))
        print(sorted({"trio", "anyio", "sniffio"} & sys.modules.keys()))
    """
    assert python(code) == "[]\n"


def test_the_loop_waits_for_a_worker_that_came_while_it_closed(
    run_asyncio: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was started for a last call, and has ended before the loop looks again, is joined, too."""
    over = threading.Semaphore(0)
    note_end = pool_module.Pool.note_end

    def note_end_and_linger(self: pool_module.Pool, worker: pool_module.Worker) -> None:
        note_end(self, worker)
        over.release()
        time.sleep(0.05)  # there is no telling for how long a thread has still something to do

    async def keep_the_loop_from_looking() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await checkpoint()
            while count_threads()[0]:  # the call is made by the one that is there, or by another
                assert over.acquire(timeout=PATIENCE_SECONDS)

    async def main() -> list[Any]:
        open_ones = [iterate_in_threadpool(iter_forever()), keep_the_loop_from_looking()]
        for each in open_ones:
            await each.__anext__()
        return open_ones

    def iter_forever() -> Iterator[int]:
        while True:
            yield 1

    monkeypatch.setattr(pool_module.Pool, "note_end", note_end_and_linger)
    for _ in range(8):  # a loop closes its asynchronous generators in any order
        held = run_asyncio(main)
        assert workers() == []
        del held
