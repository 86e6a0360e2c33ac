"""The state of the process: its loop, its collector, its memory, and that watching them leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import selectors
import sys
import time
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import psutil
import pytest

from asgi_perfkit import PerformanceMiddleware, Registry, get_runtime_stats, run_in_threadpool
from asgi_perfkit.metrics import monitor
from asgi_perfkit.metrics.monitor import RuntimeMonitor, rss_reader
from tests.metrics.driver import ok_app, request

FIGURES = {"count", "sum", "avg", "min", "max", "p50", "p90", "p95", "p99"}
ALWAYS_TOLD = {"process", "requests", "thread_pool", "background_tasks", "metrics"}
BEAT = 0.05  # between two looks at the loop


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only when it waits, or when a test says so."""

    def __init__(self) -> None:
        super().__init__(_VirtualSelector(self))
        self.now = 1_000.0

    def time(self) -> float:
        return self.now


class _VirtualSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop.now += timeout or 0
        return super().select(0)


def lag(registry: Registry) -> dict[str, float]:
    stats = get_runtime_stats(registry=registry)
    return stats.get("event_loop_lag", dict.fromkeys(FIGURES, 0))


def on_virtual_asyncio(main: Callable[..., Coroutine[Any, Any, None]]) -> None:
    loop = VirtualLoop()

    def pass_time(seconds: float) -> None:
        loop.now += seconds

    try:
        loop.run_until_complete(main(pass_time))
    finally:
        loop.close()


def on_virtual_trio(main: Callable[..., Coroutine[Any, Any, None]]) -> None:
    import trio
    import trio.testing

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock.jump, clock=clock)


@pytest.fixture(params=[on_virtual_asyncio, on_virtual_trio], ids=["asyncio", "trio"])
def run_virtually(request: pytest.FixtureRequest) -> Any:
    """`run_virtually(main)` runs ``main(block)``: `block(seconds)` keeps the loop from running for so long."""
    return request.param


@pytest.fixture(autouse=True)
def _registries_of_others_are_gone() -> None:
    """Garbage of tests before this one, which the collector's listeners may belong to, is no longer there."""
    listeners = -1
    while listeners != len(gc.callbacks):
        listeners = len(gc.callbacks)
        gc.collect()


async def watch(registry: Registry) -> None:
    """Have the loop watched, as the first request does."""
    await request(PerformanceMiddleware(ok_app, registry=registry), "GET", "/")
    await anyio.sleep(0.001)  # on trio the heartbeat is a task: it has begun by now


def test_the_groups_and_their_keys(run: Any) -> None:
    """What is told of a process that has answered one request, and nothing else."""
    registry = Registry()

    async def main() -> dict[str, Any]:
        await watch(registry)
        gc.collect()
        await anyio.sleep(2 * BEAT)
        return get_runtime_stats(registry=registry)

    stats = run(main)
    assert stats.keys() == {"event_loop_lag", "gc_pause", *ALWAYS_TOLD}
    assert stats["event_loop_lag"].keys() == stats["gc_pause"].keys() == FIGURES
    assert stats["process"].keys() == {"rss", "cpu_percent", "threads", "open_files"}
    assert stats["requests"] == {"in_flight": 0}
    assert stats["metrics"] == {
        "series": 1,
        "squeezed": 0,
        "overflowed": 0,
        "malformed_messages": 0,
        "resolver_failures": 0,
        "server_timing_failures": 0,
        "kit_failures": 0,
    }


def test_before_the_first_request_nothing_is_watched() -> None:
    """Without a request there is no lag and no pause to tell, but there is the process."""
    gc.collect()
    stats = get_runtime_stats(registry=Registry())
    assert stats.keys() == ALWAYS_TOLD


def test_the_default_registry_is_read_without_another() -> None:
    """Called with nothing, it tells of the default registry."""
    assert get_runtime_stats().keys() >= ALWAYS_TOLD


def test_the_threads_and_the_tokens_of_the_default_limiter(run_asyncio: Any) -> None:
    """From inside of a call: its thread, which is not idle, and its token; afterwards the thread is idle."""

    async def main() -> list[dict[str, Any]]:
        inside = await run_in_threadpool(get_runtime_stats)
        return [stats["thread_pool"] for stats in (inside, get_runtime_stats())]

    inside, afterwards = run_asyncio(main)
    tokens = {"total_tokens": 40, "tasks_waiting": 0, "exits": 0, "rescued": 0}
    assert inside == {"threads": 1, "idle_threads": 0, "borrowed_tokens": 1, **tokens}
    assert afterwards == {"threads": 1, "idle_threads": 1, "borrowed_tokens": 0, **tokens}


def test_the_process_is_as_psutil_sees_it() -> None:
    """Memory, threads and open files are those of this process."""
    process = psutil.Process()
    told = get_runtime_stats(registry=Registry())["process"]
    assert told["rss"] == pytest.approx(process.memory_info().rss, abs=2**20)
    assert told["threads"] == process.num_threads()
    if sys.platform != "win32":
        assert told["open_files"] == process.num_fds()


def test_handles_are_counted_where_there_are_no_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Windows, open files are handles."""
    monkeypatch.setattr(monitor, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(psutil.Process, "num_handles", lambda process: 1_234, raising=False)
    assert get_runtime_stats(registry=Registry())["process"]["open_files"] == 1_234


def test_cpu_percent_is_of_the_time_since_the_last_call() -> None:
    """A process that spins between two calls has used the share of a core that it was given."""
    registry = Registry()
    get_runtime_stats(registry=registry)
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() < cpu + 0.2:
        pass
    told = get_runtime_stats(registry=registry)["process"]["cpu_percent"]
    used = 100 * (time.process_time() - cpu) / (time.perf_counter() - wall)
    assert told == pytest.approx(used, rel=0.3)


def test_requests_in_flight_are_counted(run: Any) -> None:
    """From the call of the app until it has returned or raised, a request is in flight."""
    registry = Registry()

    async def main() -> None:
        leave = anyio.Event()
        entered = 0
        all_in = anyio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal entered
            entered += 1
            if entered == 3:
                all_in.set()
            await leave.wait()
            raise LookupError

        async def visit() -> None:
            with pytest.raises(LookupError):
                await request(PerformanceMiddleware(app, registry=registry), "GET", "/")

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(visit)
            await all_in.wait()
            assert get_runtime_stats(registry=registry)["requests"] == {"in_flight": 3}
            assert get_runtime_stats(registry=Registry())["requests"] == {"in_flight": 0}
            leave.set()
        assert get_runtime_stats(registry=registry)["requests"] == {"in_flight": 0}

    run(main)


# ---- the lag of the loop


def test_a_loop_that_is_free_is_not_late(run_virtually: Any) -> None:
    """Twenty times a second the loop is looked at, and a loop that is free runs its timers when they are due."""
    registry = Registry()

    async def main(block: Any) -> None:
        await watch(registry)
        await anyio.sleep(10.01)

    run_virtually(main)
    assert lag(registry)["count"] == pytest.approx(200, abs=1)
    assert lag(registry)["max"] < 1e-6


@pytest.mark.parametrize("begin", [0.001, 0.01, 0.049])
def test_a_loop_that_is_blocked_is_as_late_as_it_was_blocked(
    run_virtually: Any, begin: float
) -> None:
    """A timer that falls into the blocked time is late by what was left of it; the next is on time again."""
    registry = Registry()

    async def main(block: Any) -> None:
        await watch(registry)
        await anyio.sleep(begin - 0.001)
        block(0.06)
        await anyio.sleep(1)

    run_virtually(main)
    assert lag(registry)["max"] == pytest.approx(begin + 0.06 - BEAT, abs=0.0011)
    assert lag(registry)["sum"] == pytest.approx(lag(registry)["max"], abs=1e-6)


def test_a_blocked_loop_is_seen_for_sure(run_virtually: Any) -> None:
    """Whenever it begins, a loop blocked for 110 ms shows a lag of 60 ms or more."""
    registry = Registry()

    async def main(block: Any) -> None:
        await watch(registry)
        for step in range(40):
            await anyio.sleep(1 + step / 700)
            seen = lag(registry)["sum"]
            block(0.11)
            await anyio.sleep(0.001)
            assert lag(registry)["sum"] - seen >= 0.06 - 1e-6

    run_virtually(main)


def test_reading_is_no_lag(run_virtually: Any) -> None:
    """However long a reader takes between two looks at the loop, the loop is not late for it."""
    registry = Registry()

    async def main(block: Any) -> None:
        await watch(registry)
        await anyio.sleep(0.01)
        for _ in range(20):
            get_runtime_stats(registry=registry)
            block(0.03)
            get_runtime_stats(registry=registry)
            await anyio.sleep(0.02)

    run_virtually(main)
    assert lag(registry)["count"] >= 19
    assert lag(registry)["max"] < 1e-6


def test_the_lag_in_real_time(run: Any) -> None:
    """A loop that a handler blocks for 120 ms shows at least the 60 ms that can not be missed, and not much more."""
    registry = Registry()

    async def main() -> None:
        await watch(registry)
        time.sleep(0.12)  # noqa: ASYNC251  # blocking is the point
        with anyio.fail_after(5):
            while lag(registry)["count"] == 0:
                await anyio.lowlevel.checkpoint()

    run(main)
    assert 0.06 <= lag(registry)["max"] < 0.5


def test_each_loop_is_watched_once(run_virtually: Any) -> None:
    """Several middlewares and many requests make one heartbeat, and a new loop gets one of its own."""
    registry = Registry()

    async def main(block: Any) -> None:
        apps = [PerformanceMiddleware(ok_app, registry=registry) for _ in range(3)]
        for _ in range(4):
            for app in apps:
                await request(app, "GET", "/")
        await anyio.sleep(1.01)

    for times in (1, 2):
        run_virtually(main)
        assert lag(registry)["count"] == pytest.approx(20 * times, abs=times)


def test_watching_needs_a_loop() -> None:
    """Outside of a loop there is nothing to watch, and the message says so."""
    with pytest.raises(RuntimeError, match="running asyncio or trio loop"):
        RuntimeMonitor().watch()


# ---- that nothing is left behind


def test_the_heartbeat_ends_with_the_loop(run: Any) -> None:
    """No task or timer keeps a loop from ending, and nothing keeps what it watched for alive."""

    async def main() -> tuple[set[Any], list[weakref.ref[Any]]]:
        registry = Registry()
        await watch(registry)
        tasks: set[Any] = set()
        if asyncio._get_running_loop() is not None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
        return tasks, [weakref.ref(registry), weakref.ref(registry.monitor)]

    start = time.monotonic()
    tasks, gone = run(main)
    assert time.monotonic() - start < 5
    assert tasks == set()
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_the_heartbeat_lets_go_of_the_first_request(run: Any) -> None:
    """What the context of the first request holds is free when the request is over, while the loop runs on."""

    class Belongings:
        pass

    variable: contextvars.ContextVar[object] = contextvars.ContextVar("belongings")
    registry = Registry()

    async def main() -> None:
        references = []

        async def visit() -> None:
            belongings = Belongings()
            references.append(weakref.ref(belongings))
            variable.set(belongings)
            await watch(registry)

        async with anyio.create_task_group() as group:
            group.start_soon(visit)
        await anyio.sleep(2 * BEAT)
        gc.collect()
        assert [reference() for reference in references] == [None]

    run(main)
    assert lag(registry)["count"] > 0


def test_a_collection_is_a_pause(run: Any) -> None:
    """Each garbage collection after the first request is counted, with what it took."""
    registry = Registry()

    async def main() -> None:
        await watch(registry)
        gc.disable()
        try:
            before = get_runtime_stats(registry=registry).get("gc_pause", {}).get("count", 0)
            start = time.perf_counter()
            for generation in (0, 1, 2):
                gc.collect(generation)
            took = time.perf_counter() - start
            pause = get_runtime_stats(registry=registry)["gc_pause"]
        finally:
            gc.enable()
        assert pause["count"] - before == 3
        assert 0 < pause["max"] <= took

    run(main)


def test_the_collector_is_left_with_the_registry(run: Any) -> None:
    """When a registry is gone, the collector calls nobody on its behalf."""
    before = list(gc.callbacks)
    registry = Registry()
    run(watch, registry)
    assert len(gc.callbacks) == len(before) + 1
    del registry
    for _ in range(3):
        gc.collect()
    assert gc.callbacks == before


def test_others_who_listen_to_the_collector_miss_nothing(run: Any) -> None:
    """While a registry goes, who else listens to the collector is told of each begin and each end."""
    registry = Registry()
    run(watch, registry)
    phases: list[str] = []

    def listen(phase: str, info: dict[str, int]) -> None:
        phases.append(phase)

    gc.callbacks.append(listen)
    try:
        del registry
        for _ in range(3):
            gc.collect()
    finally:
        gc.callbacks.remove(listen)
    assert phases == ["start", "stop"] * (len(phases) // 2)
    assert len(phases) >= 6


# ---- resident memory


def test_resident_memory_is_as_psutil_sees_it() -> None:
    """In bytes, and of this process; it follows when memory is taken."""
    read = rss_reader()
    assert read() == pytest.approx(psutil.Process().memory_info().rss, abs=2**20)
    before = read()
    block = bytearray(os.urandom(1)) * 32 * 2**20
    assert read() - before == pytest.approx(len(block), rel=0.25)


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *args: Any, **kwargs: Any) -> int:
        raise FileNotFoundError(2, "No such file or directory", path)

    fake = SimpleNamespace(**{name: getattr(os, name) for name in ("O_RDONLY", "getpid", "close")})
    fake.O_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
    fake.sysconf = lambda name: 4096
    fake.open = refuse
    monkeypatch.setattr(monitor, "os", fake)
    monkeypatch.setattr(monitor, "sys", SimpleNamespace(platform="linux"))


def on_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "sys", SimpleNamespace(platform="darwin"))


@pytest.mark.parametrize("elsewhere", [without_proc, on_another_platform])
def test_without_proc_psutil_reads_the_memory(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Where there is no /proc, the figure is the same, and no error is left over."""
    elsewhere(monkeypatch)
    value = rss_reader()()
    assert isinstance(value, int)
    assert value == pytest.approx(psutil.Process().memory_info().rss, abs=2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc here")
def test_readers_close_their_files() -> None:
    """A reader holds one descriptor for as long as it lives, and its child processes do not get it."""
    process = psutil.Process()
    before = process.num_fds()
    readers = [rss_reader() for _ in range(5)]
    assert process.num_fds() == before + 5
    statm = [int(entry.name) for entry in Path("/proc/self/fd").iterdir() if is_statm(entry)]
    assert len(statm) >= 5
    assert not any(os.get_inheritable(fd) for fd in statm)
    del readers
    gc.collect()
    assert process.num_fds() == before


def is_statm(entry: Path) -> bool:
    try:
        return entry.readlink().name == "statm"
    except OSError:  # the one that the directory was read with
        return False
