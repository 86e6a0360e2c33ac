"""Allocation windows: whose bytes on which line, for how long, and beside whom."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pytest

from asgi_perfkit import ConfigurationError, PerfKit, Profiles, get_profile_stats
from asgi_perfkit.exceptions import AlreadyProfilingError
from asgi_perfkit.profiling.allocations import AllocationProfiles, AllocationWindow
from asgi_perfkit.profiling.tracing import profile_allocations
from asgi_perfkit.steps import DrivenAccount
from tests.conftest import Run
from tests.support import (
    BODY,
    START,
    Receive,
    Scope,
    Send,
    checkpoint,
    http_scope,
    together,
)

LARGE = 1_000_000


@pytest.fixture(autouse=True)
def _nothing_stays_on() -> Iterator[None]:
    assert not tracemalloc.is_tracing()
    yield
    assert not tracemalloc.is_tracing()


class Owner:
    def work_ended(self, account: DrivenAccount, error: BaseException | None) -> None:
        account.closed = True


class Shop:
    """An app that keeps a megabyte for each request of /keeps, and needs three for a moment for /peaks."""

    def __init__(self) -> None:
        self.profiles = Profiles()
        self.kept: list[bytes] = []
        self.begun = self.window_open = self.window_over = False
        self.kit = PerfKit(self.app, profiling={"profiles": self.profiles, "stall_threshold": None})

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await checkpoint()
        if scope["path"] == "/long":
            self.begun = True
            while not self.window_open:
                await checkpoint()
            self.keep()
            while not self.window_over:
                await checkpoint()
        if scope["path"] == "/keeps":
            self.keep()
        elif scope["path"] == "/peaks":
            bytes(3 * LARGE)
        await checkpoint()
        await send(START)
        await send(BODY)

    def keep(self) -> None:
        self.kept.append(bytes(LARGE))

    async def ask(self, path: str) -> None:
        async def receive() -> Any:
            raise AssertionError

        async def send(_message: Any) -> None:
            pass

        await self.kit(http_scope(path), receive, send)

    async def ask_all(self) -> None:
        async def ask(path: str) -> None:
            await self.ask(path)

        await together(*(lambda path=path: ask(path) for path in ("/keeps", "/peaks", "/idle") * 3))


def test_bytes_belong_to_the_request_and_the_line(run: Run) -> None:
    shop = Shop()

    async def main() -> Any:
        async with profile_allocations(profiles=shop.profiles) as report:
            await shop.ask_all()
            assert report.open
        assert not report.open
        await shop.ask_all()  # seen no more
        return report

    report = run(main)
    told = report.endpoints
    assert set(told) == {"GET /keeps", "GET /peaks", "GET /idle"}
    assert all(each["requests"] == 3 for each in told.values())
    assert told["GET /keeps"]["bytes"] == pytest.approx(3 * LARGE, rel=0.1)
    top = told["GET /keeps"]["top"][0]
    line = Shop.keep.__code__.co_firstlineno + 1
    assert (top["file"], top["line"]) == (__file__, line)
    assert top["bytes"] == pytest.approx(3 * LARGE, rel=0.01)
    assert top["blocks"] >= 3
    assert told["GET /peaks"]["bytes"] < LARGE / 2
    assert told["GET /peaks"]["peak"] == pytest.approx(3 * LARGE, rel=0.1)
    assert told["GET /idle"]["peak"] < LARGE / 2
    assert get_profile_stats(profiles=shop.profiles)["allocations"]["endpoints"] == told
    assert "3 endpoints" in repr(report)


def test_of_one_endpoint_alone(run: Run) -> None:
    shop = Shop()

    async def main() -> Any:
        async with profile_allocations(
            endpoint="GET /keeps", frames=1, profiles=shop.profiles
        ) as report:
            await shop.ask_all()
        return report

    assert list(run(main).endpoints) == ["GET /keeps"]


@pytest.mark.parametrize(("frames", "file"), [(8, __file__), (1, json.decoder.__file__)])
def test_what_a_library_allocates_is_told_of_the_apps_line(frames: int, file: str) -> None:
    window = AllocationWindow(AllocationProfiles(1 << 20), seconds=10, endpoint=None, frames=frames)
    account = DrivenAccount(Owner(), 0)
    text = json.dumps([str(number) * 9 for number in range(1000)])
    window.start()
    try:
        window.observe(account, lambda: "GET /")
        window.step_started(account)
        kept = json.loads(text)
        window.step_ended(account, 0)
        window.ended(account, "GET /")
    finally:
        window.stop()
    assert window.statistics()["GET /"]["top"][0]["file"] == file
    assert len(kept) == 1000


def test_requests_in_flight_are_seen_at_both_ends(run: Run) -> None:
    """One that begins before the window and ends after it."""
    shop = Shop()
    reports = []

    async def window() -> None:
        while not shop.begun:
            await checkpoint()
        async with profile_allocations(profiles=shop.profiles) as report:
            reports.append(report)
            shop.window_open = True
            while not shop.kept:
                await checkpoint()
        shop.window_over = True

    async def ask() -> None:
        await shop.ask("/long")

    run(together, window, ask)
    told = reports[0].endpoints
    assert told["GET /long"]["requests"] == 1
    assert told["GET /long"]["bytes"] == pytest.approx(LARGE, rel=0.1)


def test_it_ends_by_itself(run: Run) -> None:
    """When the time is over, though the block lasts."""
    shop = Shop()
    over = threading.Event()

    async def main() -> None:
        async with profile_allocations(seconds=0.05, profiles=shop.profiles) as report:
            window = shop.profiles.allocations.window
            assert window is not None
            assert window._timer is not None
            window._timer.join(10)
            assert not report.open
            assert not tracemalloc.is_tracing()
            assert shop.profiles.allocations.window is None
            await shop.ask("/keeps")
            assert report.endpoints == {}
        over.set()

    run(main)
    assert over.is_set()


def test_somebody_elses_tracing_is_left_alone(run: Run) -> None:
    shop = Shop()

    async def main() -> None:
        with pytest.raises(AlreadyProfilingError, match="tracing already"):
            async with profile_allocations(profiles=shop.profiles):
                raise AssertionError
        await shop.ask("/keeps")

    tracemalloc.start()
    try:
        mine = bytes(LARGE)
        run(main)
        assert tracemalloc.is_tracing()
        assert tracemalloc.get_object_traceback(mine) is not None
    finally:
        tracemalloc.stop()


def test_one_window_at_a_time(run: Run) -> None:
    """The second is refused, and the first goes on; then another one may."""
    shop, other = Shop(), Profiles()

    async def main() -> Any:
        async with profile_allocations(profiles=shop.profiles) as report:
            for profiles in (shop.profiles, other):
                with pytest.raises(AlreadyProfilingError):
                    async with profile_allocations(profiles=profiles):
                        raise AssertionError
            await shop.ask("/keeps")
        async with profile_allocations(profiles=other):
            pass
        return report

    assert run(main).endpoints["GET /keeps"]["requests"] == 1


def test_whoever_stops_the_tracing_is_told_of(run: Run) -> None:
    shop = Shop()

    async def main() -> Any:
        async with profile_allocations(profiles=shop.profiles) as report:
            tracemalloc.stop()
            await shop.ask("/keeps")
        return report

    report = run(main)
    assert report.interrupted
    assert report.endpoints == {}


def test_an_error_in_the_block_ends_it(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with profile_allocations(profiles=Profiles()):
                raise ZeroDivisionError

    run(main)


def window_of(profiles: AllocationProfiles) -> AllocationWindow:
    return AllocationWindow(profiles, seconds=10, endpoint=None, frames=1)


def test_a_step_in_a_step_is_part_of_it() -> None:
    """And one of another thread's loop meanwhile is counted as not looked at."""
    window = window_of(AllocationProfiles(1 << 20))
    window.start()
    outer, inner, other = (DrivenAccount(Owner(), perf_counter_ns()) for _ in range(3))
    for account in (outer, inner, other):
        window.observe(account, lambda: "GET /")
        window.observe(account, lambda: "GET /")
        assert account.observers == (window,)
    try:
        kept = [bytes(LARGE)]  # before any step
        window.step_started(outer)
        kept.append(bytes(LARGE))

        def elsewhere() -> None:
            window.step_started(other)
            window.step_ended(other, 0)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        window.step_started(inner)
        kept.append(bytes(LARGE))
        window.step_ended(inner, 0)
        window.step_ended(outer, 0)
        window.ended(outer, "GET /outer")
        window.ended(inner, "GET /inner")
    finally:
        window.stop()
    told = window.statistics()
    assert list(told) == ["GET /outer"]
    assert told["GET /outer"]["bytes"] == pytest.approx(2 * LARGE, rel=0.1)
    assert window.overlapping_steps == 1
    assert other.observers == ()
    assert len(kept) == 3


def test_memory_is_bounded() -> None:
    profiles = AllocationProfiles(4000)
    window = window_of(profiles)
    window.start()
    try:
        for number in range(20):
            account = DrivenAccount(Owner(), 0)
            window.observe(account, lambda: "GET /")
            window.step_started(account)
            kept = bytes(1000)
            window.step_ended(account, 0)
            window.ended(account, f"GET /{number}")
            del kept
    finally:
        window.stop()
    told = profiles.statistics()
    assert told["dropped_endpoints"] > 0
    assert list(told["endpoints"])[-1] == "GET /19"
    profiles.resize(0)
    assert profiles.statistics()["endpoints"] == {}
    profiles.clear()
    assert profiles.statistics()["dropped_endpoints"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_trace(tmp_path: Path) -> None:
    """The timer that would end it is in the parent, where the window goes on."""
    profiles = Profiles()
    window = window_of(profiles.allocations)
    window.start()
    told = tmp_path / "told"
    try:
        child = os.fork()
        if not child:
            told.write_text(f"{tracemalloc.is_tracing()} {profiles.allocations.window}")
            os._exit(0)
        os.waitpid(child, 0)
        assert tracemalloc.is_tracing()
    finally:
        window.stop()
    assert told.read_text() == "False None"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", 0),
        ("seconds", -1),
        ("seconds", float("nan")),
        ("seconds", 601),
        ("seconds", "5"),
        ("seconds", True),
        ("endpoint", ""),
        ("endpoint", 5),
        ("frames", 0),
        ("frames", 101),
        ("frames", 1.5),
        ("frames", True),
        ("profiles", {}),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        profile_allocations(**{name: value})
