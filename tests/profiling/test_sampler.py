"""The sampling thread: whose time it is, how much of it, and that nothing is left of it when it is off."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio.to_thread
import pytest

from asgi_perfkit import (
    PerfKit,
    Profiles,
    ProfilingMiddleware,
    get_profile_stats,
    reset_profile_stats,
    run_in_threadpool,
)
from asgi_perfkit.profiling import sampler as sampler_module
from asgi_perfkit.profiling.calls import CallsByEndpoint
from asgi_perfkit.profiling.feed import OUTSIDE, Feed
from asgi_perfkit.profiling.sampler import Sampler
from asgi_perfkit.profiling.stacks import Reading
from asgi_perfkit.steps import Account
from tests.profiling.stacks import PATIENCE_SECONDS, busy, in_thread, request
from tests.steps.charging import Run
from tests.support import BODY, START, checkpoint, together

THREAD = "asgi_perfkit sampler"


def sampling_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == THREAD]


def wait_for_the_end() -> None:
    """The thread lets go of a middleware by its next sample, and of a feed that nobody wants any more after that."""
    until = time.monotonic() + 5
    while (threads := sampling_threads()) and time.monotonic() < until:
        gc.collect()
        threads[0].join(0.02)
    assert sampling_threads() == []


@pytest.fixture(autouse=True)
def switch_interval() -> Iterator[None]:
    """Every test leaves the interpreter as it was."""
    before = sys.getswitchinterval()
    yield
    wait_for_the_end()
    assert sys.getswitchinterval() == before


def no_failure(message: str, failure: BaseException) -> None:
    raise AssertionError(message) from failure


# ---- whose it is


def first_work() -> None:
    busy(0.002)


def first_child() -> None:
    busy(0.002)


def first_thread() -> None:
    busy(0.002)


def second_work() -> None:
    busy(0.001)


def second_child() -> None:
    busy(0.001)


def second_thread() -> None:
    busy(0.001)


async def two_endpoints(scope: Any, receive: Any, send: Any) -> None:
    """Each in its task, in child tasks, and in worker threads of three libraries."""
    name = scope["path"].removeprefix("/")
    work, in_child, for_thread = (
        globals()[f"{name}_{kind}"] for kind in ("work", "child", "thread")
    )

    async def child() -> None:
        for _ in range(2):
            await checkpoint()
            in_child()

    work()
    await checkpoint()
    work()
    await together(child, child)
    await run_in_threadpool(for_thread)
    await anyio.to_thread.run_sync(for_thread)
    await in_thread(for_thread)
    await send(START)
    await send(BODY)


def samples_of(profiles: Profiles) -> int:
    return sum(tree.total()[0] for _, tree in profiles.cpu.trees())


def test_two_endpoints_that_run_at_the_same_time(run: Run) -> None:
    profiles = Profiles()
    app = ProfilingMiddleware(two_endpoints, profiles=profiles, sample_hz=1000)

    async def main() -> None:
        async def client(path: str) -> None:
            until = time.perf_counter() + 0.15
            while time.perf_counter() < until:
                await request(app, path)

        until = time.perf_counter() + PATIENCE_SECONDS
        while samples_of(profiles) < 300 and time.perf_counter() < until:
            await together(*[lambda: client("/first"), lambda: client("/second")] * 3)

    run(main)
    right = wrong = 0
    kinds = set()
    for endpoint, tree in profiles.cpu.trees():
        for stack, node in tree.stacks():
            for place in stack:
                name, _, kind = place.function.partition("_")
                if name in {"first", "second"} and kind in {"work", "child", "thread"}:
                    kinds.add(place.function)
                    if endpoint == f"GET /{name}":
                        right += node.samples
                    else:
                        wrong += node.samples
    assert right > 100
    assert right >= 0.97 * (right + wrong)
    assert len(kinds) == 6
    assert profiles.failures == 0


def test_the_statistics_have_the_names_of_the_metrics() -> None:
    """The route is known when the request has ended; the first samples came before."""
    profiles = Profiles()

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        busy(0.05)
        scope["path_template"] = "/items/{id}"  # as Litestar does
        await send(START)
        busy(0.05)
        await send(BODY)

    app = PerfKit(routed, profiling={"profiles": profiles, "sample_hz": 200})
    asyncio.run(request(app, "/items/17"))
    found = get_profile_stats(profiles=profiles)["cpu"]
    assert found["GET /items/{id}"]["seconds"] > 0.02
    assert found["GET /items/{id}"]["top"][0]["function"] == "busy"
    assert "GET /items/17" not in found
    reset_profile_stats(profiles=profiles)
    assert get_profile_stats(profiles=profiles)["cpu"] == {}


# ---- how much it is, by a clock that the test sets


class Times:
    """A clock and a CPU clock for the sampler, and what it does between: one entry for each sample.

    :param wall: seconds that pass until the sample.
    :param cpu: seconds of CPU that the process has used meanwhile.
    """

    def __init__(self, sampler: Sampler, steps: list[tuple[float, float]]) -> None:
        self.wall = 1000.0
        self.cpu = 0.0
        self.steps = iter(steps)
        self.weights: list[float] = []
        self.sampler = sampler

    def acquire(self, timeout: float) -> bool:
        """In the place of the alarm that the thread waits for."""
        step = next(self.steps, None)
        if step is None:
            self.sampler.feeds = ()
            return True
        self.wall += step[0]
        self.cpu += step[1]
        return False

    def release(self) -> None:
        pass

    def look(self, feeds: Any, seconds: float) -> None:
        self.weights.append(seconds)


def weights(monkeypatch: pytest.MonkeyPatch, *steps: tuple[float, float]) -> list[float]:
    sampler = Sampler(no_failure)
    times = Times(sampler, list(steps))
    monkeypatch.setattr(sampler_module, "perf_counter", lambda: times.wall)
    monkeypatch.setattr(sampler_module, "process_time", lambda: times.cpu)
    monkeypatch.setattr(sampler, "_alarm", times)
    monkeypatch.setattr(sampler, "_look", times.look)
    sampler.feed(CallsByEndpoint(100_000), 100)
    wait_for_the_end()
    return times.weights


def test_a_sample_is_worth_the_time_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = weights(monkeypatch, (0.009, 0.0), (0.01, 0.01), (0.005, 0.0))
    assert found == [pytest.approx(0.009), pytest.approx(0.01), pytest.approx(0.005)]


def test_a_late_one_is_worth_it_all_if_the_process_has_worked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C code that keeps the interpreter for seconds is seen once, at its end."""
    assert weights(monkeypatch, (3.0, 2.9)) == [pytest.approx(2.9)]


def test_a_late_one_is_worth_little_if_the_process_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (found,) = weights(monkeypatch, (3.0, 0.0))
    assert 0.01 <= found <= 0.03


def test_the_pauses_are_uneven(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(no_failure)
    times = Times(sampler, [(0.01, 0.0)] * 50)
    timeouts: list[float] = []

    def acquire(timeout: float) -> bool:
        timeouts.append(timeout)
        return Times.acquire(times, timeout)

    monkeypatch.setattr(times, "acquire", acquire)
    monkeypatch.setattr(sampler_module, "perf_counter", lambda: times.wall)
    monkeypatch.setattr(sampler_module, "process_time", lambda: times.cpu)
    monkeypatch.setattr(sampler, "_alarm", times)
    monkeypatch.setattr(sampler, "_look", times.look)
    sampler.feed(CallsByEndpoint(100_000), 100)
    wait_for_the_end()
    assert 0.005 <= min(timeouts) < 0.008
    assert 0.012 < max(timeouts) <= 0.015


def test_a_busy_loop_is_seen_to_be_busy(run: Run) -> None:
    """Where its time goes, and not only where it calls the operating system."""

    async def main() -> tuple[CallsByEndpoint, float, float]:
        sampler, calls = Sampler(no_failure), CallsByEndpoint(1_000_000)
        sampler.meet_loop()
        feed = sampler.feed(calls, 500)
        began = time.perf_counter()
        began_thread = time.thread_time()  # on a busy machine it gets only a part of the time
        while (
            sum(tree.total()[1] for _, tree in calls.trees()) < 0.1
            and time.perf_counter() < began + PATIENCE_SECONDS
        ):
            for _ in range(10):
                busy(0.001)
                await checkpoint()
        feed.stop()
        return calls, time.thread_time() - began_thread, time.perf_counter() - began

    calls, used, lasted = run(main)
    found = calls.statistics()[OUTSIDE]
    own = {row["function"]: row["self"] for row in found["top"]}
    assert 0.1 <= found["seconds"] < lasted + 0.05
    assert found["seconds"] > 0.2 * used
    assert own["busy"] > 0.5 * found["seconds"]


class Ending:
    """A profiler of requests that are none of its open ones any more, and have not been told of as ended yet."""

    open: frozenset[Any] = frozenset()

    def label(self, account: Any, endpoint: str | None) -> str:
        return "GET /unknown"


@pytest.mark.parametrize("told", [True, False])
def test_a_request_that_is_just_ending_keeps_its_samples(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """What nobody has told of by the next sample belongs to nobody."""
    sampler, calls, profiler = Sampler(no_failure), CallsByEndpoint(1_000_000), Ending()
    account: Any = Account()
    feed = Feed(sampler._stop, calls, 500)
    monkeypatch.setattr(sampler, "_read_all", lambda: [Reading(account, [])])
    monkeypatch.setattr(sampler, "_known", lambda account: (account, profiler))
    sampler._look((feed,), 0.01)
    assert list(calls.statistics()) == [OUTSIDE]  # as far as it is known
    if told:
        feed.request_ended(profiler, account, "GET /", None)
    sampler._sample()
    assert list(calls.statistics()) == ["GET /" if told else OUTSIDE]
    assert not calls.pending


# ---- on and off


def look_at_something(sampler: Sampler, seconds: float = 0.05) -> CallsByEndpoint:
    calls = CallsByEndpoint(1_000_000)

    async def main() -> None:
        sampler.meet_loop()
        feed = sampler.feed(calls, 500)
        busy(seconds)
        feed.stop()

    asyncio.run(main())
    return calls


def test_there_is_no_thread_unless_somebody_wants_samples(run: Run) -> None:
    profiles = Profiles()
    app = ProfilingMiddleware(two_endpoints, profiles=profiles)
    run(request, app, "/first")
    assert sampling_threads() == []


def test_the_thread_ends_with_the_last_who_wants_samples_and_comes_again() -> None:
    sampler = Sampler(no_failure)
    first, second = (sampler.feed(CallsByEndpoint(1000), 100) for _ in range(2))
    (thread,) = sampling_threads()
    first.stop()
    first.stop()
    thread.join(0.05)
    assert thread.is_alive()
    second.stop()
    wait_for_the_end()
    assert look_at_something(sampler).statistics()[OUTSIDE]["seconds"] > 0.01


def test_the_thread_ends_with_the_middleware() -> None:
    async def main() -> None:
        app = ProfilingMiddleware(two_endpoints, profiles=Profiles(), sample_hz=100)
        await request(app, "/first")
        assert len(sampling_threads()) == 1

    asyncio.run(main())
    wait_for_the_end()


def test_a_feed_stops_by_itself_when_its_time_is_over() -> None:
    sampler = Sampler(no_failure)
    feed = sampler.feed(CallsByEndpoint(1000), 500, seconds=0.05)
    wait_for_the_end()
    assert feed not in sampler.feeds


def test_who_waits_for_samples_that_nobody_takes_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    failures: list[str] = []
    sampler = Sampler(lambda message, failure: failures.append(message))
    monkeypatch.setattr(threading.Thread, "start", start)
    feed = sampler.feed(CallsByEndpoint(1000), 500, requests=1)
    asyncio.run(feed.wait())
    assert failures == ["Nothing is sampled"]


def test_while_samples_are_taken_threads_make_way_for_each_other_at_once() -> None:
    before = sys.getswitchinterval()
    feed = Sampler(no_failure).feed(CallsByEndpoint(1000), 500)
    until = time.monotonic() + 5
    while sys.getswitchinterval() == before and time.monotonic() < until:
        time.sleep(0.001)
    assert sys.getswitchinterval() == pytest.approx(0.0001)
    feed.stop()


def test_a_switch_interval_that_somebody_sets_meanwhile_stays() -> None:
    before = sys.getswitchinterval()
    feed = Sampler(no_failure).feed(CallsByEndpoint(1000), 500)
    until = time.monotonic() + 5
    while sys.getswitchinterval() == before and time.monotonic() < until:
        time.sleep(0.001)
    try:
        sys.setswitchinterval(0.003)
        feed.stop()
        wait_for_the_end()
        assert sys.getswitchinterval() == pytest.approx(0.003)
    finally:
        sys.setswitchinterval(before)


def test_a_failure_is_reported_and_the_next_sample_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures: list[str] = []
    sampler = Sampler(lambda message, failure: failures.append(message))
    look = sampler._look
    monkeypatch.setattr(sampler, "_look", Once(look))
    assert look_at_something(sampler).statistics()[OUTSIDE]["samples"] > 1
    wait_for_the_end()
    assert failures == ["A sample could not be taken"]


class Once:
    """Fails at the first call."""

    def __init__(self, then: Callable[..., object]) -> None:
        self.then = then
        self.failed = False

    def __call__(self, *args: Any) -> None:
        if not self.failed:
            self.failed = True
            raise RuntimeError("planted")
        self.then(*args)


def test_loops_in_two_threads_are_both_looked_at() -> None:
    sampler, calls = Sampler(no_failure), CallsByEndpoint(1_000_000)

    def one_loop() -> None:
        busy(0.15)

    def other_loop() -> None:
        busy(0.15)

    async def main(function: Callable[[], None]) -> None:
        sampler.meet_loop()
        function()

    feed = sampler.feed(calls, 500)
    threads = [
        threading.Thread(target=asyncio.run, args=(main(function),))
        for function in (one_loop, other_loop)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    feed.stop()
    functions = {row["function"].rpartition(".")[2] for row in calls.statistics()[OUTSIDE]["top"]}
    assert {"one_loop", "other_loop"} <= functions


def test_a_process_ends_while_it_is_sampled() -> None:
    script = """
        import asyncio, threading
        from asgi_perfkit import ProfilingMiddleware
        async def app(scope, receive, send): pass
        app = ProfilingMiddleware(app, sample_hz=1000)
        async def nothing(*args): pass
        asyncio.run(app({"type": "http", "method": "GET", "path": "/", "headers": []}, nothing, nothing))
        assert any(each.name == "asgi_perfkit sampler" for each in threading.enumerate())
        print("done")
    """
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


def in_child(sampler: Sampler, results: Any) -> None:
    threads = sampling_threads()
    found = look_at_something(sampler, 0.1).statistics()
    results.put((len(threads), bool(sampler.feeds), found[OUTSIDE]["seconds"]))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_a_forked_child_it_begins_anew() -> None:
    sampler = Sampler(no_failure)
    feed = sampler.feed(CallsByEndpoint(1000), 500)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    child = fork.Process(target=in_child, args=(sampler, results))
    child.start()
    found = results.get(timeout=10)
    child.join(10)
    feed.stop()
    assert found[:2] == (0, False)
    assert found[2] > 0.02


def test_what_fails_inside_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    profiles = Profiles()
    with caplog.at_level(logging.ERROR, "asgi_perfkit"):
        for _ in range(3):
            profiles.report("A sample could not be taken", RuntimeError("planted"))
    assert len(caplog.records) == 1
    assert profiles.failures == 3
