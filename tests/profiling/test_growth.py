"""Memory growth: the endpoint that leaks is named, from what is counted and read."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import PerfKit, Profiles, get_profile_stats
from asgi_perfkit.profiling import growth as module
from asgi_perfkit.profiling.growth import OTHERS, MemoryGrowth, estimate
from asgi_perfkit.profiling.heap import heap_reader
from tests.conftest import Run
from tests.support import BODY, START, Trouble, http_scope, no_collector, saying

SECOND = 1_000_000_000


def never(message: str, error: BaseException) -> None:
    raise AssertionError(message) from error


def watching(read: Callable[[], int]) -> MemoryGrowth:
    """One with a clock of its own, of which the garbage collector knows nothing."""
    growth = MemoryGrowth(never, read)
    growth._watches = True
    growth.watch()
    return growth


class Model:
    """A process whose memory grows as it is told to, and that is asked for endpoints in proportions that vary."""

    def __init__(self, leaks: dict[str, int], noise: int, seed: int) -> None:
        self.memory = 100_000_000
        self.noise = noise
        self.leaks = leaks
        self.chance = random.Random(seed)
        self.growth = watching(self.read)
        self.now_ns = SECOND
        self.growth.end_interval(self.now_ns)

    def read(self) -> int:
        return self.memory + self.chance.randrange(-self.noise, self.noise + 1)

    def run(self, intervals: int) -> None:
        for _ in range(intervals):
            for endpoint, bytes_each in self.leaks.items():
                for _ in range(self.chance.randrange(5, 30)):
                    self.memory += bytes_each
                    self.growth.count(endpoint, self.now_ns)
            self.now_ns += SECOND
            self.growth.end_interval(self.now_ns)

    def growing(self) -> list[str]:
        endpoints = self.growth.statistics()["endpoints"]
        return [name for name, told in endpoints.items() if told["grows"]]


@pytest.mark.parametrize("leaky", ["GET /a", "GET /b", "GET /c"])
@pytest.mark.parametrize("seed", range(4))
def test_the_leak_is_named_and_no_other(leaky: str, seed: int) -> None:
    """10 kB a request under a noise of 200 kB, in two minutes; the estimate is right within four of its errors."""
    leaks = {"GET /a": 0, "GET /b": 0, "GET /c": 0, leaky: 10_000}
    model = Model(leaks, 200_000, seed)
    model.run(240)
    assert model.growing() == [leaky]
    told = model.growth.statistics()
    assert next(iter(told["endpoints"])) == leaky
    found = told["endpoints"][leaky]
    assert abs(found["bytes_per_request"] - 10_000) < 4 * found["error"]
    assert found["error"] < 2500
    assert told["growth"] == pytest.approx(model.memory - 100_000_000, abs=400_000)


def test_without_a_leak_none_is_named() -> None:
    """Of 20 processes under noise alone, at any of their ages."""
    named = []
    for seed in range(20):
        model = Model({"GET /a": 0, "GET /b": 0, "GET /c": 0}, 300_000, seed)
        for _ in range(4):
            model.run(40)
            named += model.growing()
    assert named == []


def test_memory_that_grows_by_itself_is_nobodys() -> None:
    model = Model({"GET /a": 0, "GET /b": 0}, 1000, 3)
    for _ in range(120):
        model.memory += 1_000_000
        model.run(1)
    assert model.growing() == []
    assert model.growth.statistics()["growth"] > 100_000_000


def test_too_little_says_nothing() -> None:
    model = Model({"GET /a": 10_000, "GET /b": 0}, 0, 1)
    model.run(15)
    assert model.growth.statistics()["endpoints"] == {}
    assert estimate([]) == {}


def test_endpoints_that_always_go_together_are_told_of_none() -> None:
    """Which of the two it is, nothing tells: better no answer than a wrong one."""
    growth = watching(lambda: memory)
    memory, now_ns = 0, SECOND
    growth.end_interval(now_ns)
    for _ in range(100):
        now_ns += SECOND
        for _ in range(3):
            growth.count("GET /a", now_ns - 1)
            growth.count("GET /b", now_ns - 1)
        memory += 30_000
        growth.end_interval(now_ns)
    assert not any(told["grows"] for told in growth.statistics()["endpoints"].values())


def test_all_the_time_is_there_and_memory_is_bounded() -> None:
    """Old intervals are joined, so that a process of any age has no more than so many."""
    model = Model({"GET /a": 0, "GET /b": 500}, 1000, 5)
    model.run(3 * module.MAX_INTERVALS)
    assert len(model.growth._intervals) < module.MAX_INTERVALS
    assert model.growth._length_ns > SECOND
    assert model.growing() == ["GET /b"]
    total = sum(interval.duration_ns for interval in model.growth._intervals)
    assert total == pytest.approx(3 * module.MAX_INTERVALS * SECOND, rel=0.02)


def test_many_endpoints_are_told_apart_up_to_a_bound() -> None:
    model = Model({f"GET /{number}": 0 for number in range(100)}, 1000, 6)
    model.run(80)
    assert len(model.growth._numbers) == module.MAX_ENDPOINTS + 1
    assert OTHERS in model.growth._numbers
    assert len(model.growth.statistics()["endpoints"]) <= module.ASKED


def test_an_interval_ends_no_sooner_than_it_is_due_and_without_a_collector_late() -> None:
    read = []
    growth = MemoryGrowth(never, lambda: len(read) or read.append(1) or 5)
    growth.count("GET /a", 5)  # nobody watches yet
    assert not read
    growth._watches = True  # without the collector
    growth.watch()
    growth.count("GET /a", SECOND)
    growth.end_interval(SECOND + 1)
    assert growth.statistics()["intervals"] == 0
    for tenth in range(1, 100):
        growth.count("GET /a", SECOND + tenth * SECOND // 10)
    assert growth._intervals == []
    growth.count("GET /a", 12 * SECOND)
    assert len(growth._intervals) == 1
    growth.clear()
    assert growth.statistics()["growth"] == 0


def test_behind_a_garbage_collection_an_interval_ends() -> None:
    gc.collect()  # those of other tests
    growth = MemoryGrowth(never, lambda: 7)
    growth.watch()
    growth.watch()
    before = len(gc.callbacks)
    gc.collect()
    assert growth.statistics()["in_use"] == 7
    del growth
    gc.collect()
    assert len(gc.callbacks) == before - 1


def test_memory_that_cannot_be_read_is_reported_once() -> None:
    reported: list[str] = []

    def read() -> int:
        raise Trouble

    growth = MemoryGrowth(lambda message, _error: reported.append(message), read)
    growth._watches = True  # without the collector
    growth.watch()
    for second in range(1, 4):
        growth.count("GET /a", second * SECOND)
    assert len(reported) == 1


def test_what_is_in_use_is_known_to_the_byte_almost() -> None:
    """A large block and many small objects, and that they are gone again; where the platform tells."""
    read = heap_reader()
    if sys.platform != "linux" or "heap" not in getattr(read, "__module__", ""):
        pytest.skip("mallinfo2 is not there")
    with no_collector():  # or what earlier tests have left behind goes meanwhile
        before = read()
        block = bytes(5_000_000)
        assert read() - before == pytest.approx(5_000_000, abs=100_000)
        del block
        small = [[] for _ in range(20_000)]
        assert read() - before > 20_000 * 64
        del small
        assert read() - before == pytest.approx(0, abs=200_000)


def test_the_stack_counts_its_requests(run: Run) -> None:
    profiles = Profiles()

    async def main() -> None:
        kit = PerfKit(saying(START, BODY), profiling={"profiles": profiles})

        async def receive() -> Any:
            raise AssertionError

        async def send(_message: Any) -> None:
            pass

        for _ in range(3):
            await kit(http_scope("/a"), receive, send)

    run(main)
    assert profiles.growth._counts.get("GET /a", 0) + sum(
        sum(interval.counts[1::2]) for interval in profiles.growth._intervals
    ) in {2, 3}  # a collection in the midst begins the first interval
    assert get_profile_stats(profiles=profiles)["growth"]["endpoints"] == {}


def test_an_interval_that_does_not_end_is_bounded() -> None:
    """Of a flood of paths, where memory cannot be read, those that came first are told apart; none is forgotten."""
    growth = MemoryGrowth(lambda message, error: None)
    for number in range(5 * module.MAX_COUNTED):
        growth.count(f"GET /{number}", 0)
    assert len(growth._counts) == module.MAX_COUNTED + 1
    assert sum(growth._counts.values()) == 5 * module.MAX_COUNTED
