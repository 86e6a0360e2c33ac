"""Profiles on demand: what is in them, for how long, of whom, and in which files they are saved."""

from __future__ import annotations

import asyncio
import json
import pstats
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asgi_perfkit import (
    ConfigurationError,
    PerfKit,
    ProfileReport,
    Profiles,
    ProfilingMiddleware,
    get_profile_stats,
    profile,
)
from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.profiling.calls import CallsByEndpoint
from asgi_perfkit.profiling.feed import OUTSIDE, Feed
from asgi_perfkit.steps import current_account
from tests.profiling.stacks import PATIENCE_SECONDS, busy, in_thread, request, stack
from tests.steps.charging import Run
from tests.support import BODY, START, Trouble, checkpoint, together


@pytest.fixture
def profiles() -> Iterator[Profiles]:
    made = Profiles()
    yield made
    assert made.failures == 0
    for each in threading.enumerate():
        if each.name == "asgi_perfkit sampler":
            each.join(5)
            assert not each.is_alive()


def crunch(seconds: float = 0.05) -> None:
    busy(seconds)


def spin(seconds: float = 0.05) -> None:
    busy(seconds)


async def app(scope: Any, receive: Any, send: Any) -> None:
    await checkpoint()
    if scope["path"] == "/crunch":
        crunch()
    else:
        spin()
    await send(START)
    await send(BODY)


def functions(report: ProfileReport) -> set[str]:
    return {row["function"] for row in report.top(100)}


def report_of(*added: tuple[str, str, float]) -> ProfileReport:
    calls = CallsByEndpoint(100_000)
    for endpoint, names, seconds in added:
        calls.add(endpoint, stack(names), seconds)
    return ProfileReport(Feed(lambda feed: None, calls, 100))


# ---- what is in it


def test_what_ran_in_each_endpoint(run: Run, profiles: Profiles) -> None:
    kit = PerfKit(app, profiling={"profiles": profiles})

    async def main() -> ProfileReport:
        async with profile(hz=500, profiles=profiles) as report:
            until = time.monotonic() + PATIENCE_SECONDS
            while report.samples < 20 and time.monotonic() < until:
                await request(kit, "/crunch")
                await request(kit, "/spin")
        return report

    report = run(main)
    found = report.endpoints
    assert {"GET /crunch", "GET /spin"} <= set(found)
    assert {row["function"] for row in found["GET /crunch"]["top"]} >= {"app", "crunch", "busy"}
    assert "spin" not in {row["function"] for row in found["GET /crunch"]["top"]}
    assert 20 * 0.001 < report.seconds <= report.duration + 0.05
    assert get_profile_stats(profiles=profiles)["cpu"] == {}  # on demand means for the report alone


def test_of_one_endpoint_alone(profiles: Profiles) -> None:
    kit = ProfilingMiddleware(app, profiles=profiles)

    async def main() -> ProfileReport:
        async with profile(hz=500, endpoint="GET /spin", profiles=profiles) as report:
            await request(kit, "/crunch")
            await request(kit, "/spin")
        return report

    report = asyncio.run(main())
    assert list(report.endpoints) == ["GET /spin"]
    assert "crunch" not in functions(report)


def test_outside_of_any_middleware(run: Run, profiles: Profiles) -> None:
    """Also of threads that work for the loop."""

    async def main() -> ProfileReport:
        async with profile(hz=500, profiles=profiles) as report:
            until = time.monotonic() + PATIENCE_SECONDS
            while not {"crunch", "spin"} <= functions(report) and time.monotonic() < until:
                crunch(0.02)
                await in_thread(spin)
        return report

    report = run(main)
    assert list(report.endpoints) == [OUTSIDE]
    assert {"crunch", "spin"} <= functions(report)


def test_the_default_profiles() -> None:
    async def main() -> ProfileReport:
        async with profile(hz=500) as report:
            crunch()
        return report

    assert "crunch" in functions(asyncio.run(main()))


def test_a_request_in_flight_is_in_it(run: Run, profiles: Profiles) -> None:
    async def main() -> ProfileReport:
        reports = []

        async def inside(scope: Any, receive: Any, send: Any) -> None:
            async with profile(hz=500, profiles=profiles) as report:
                crunch()
            reports.append((report, dict(report.endpoints)))

        await request(ProfilingMiddleware(inside, profiles=profiles), "/crunch")
        ((report, in_flight),) = reports
        assert list(in_flight) == list(report.endpoints) == ["GET /crunch"]
        return report

    assert "crunch" in functions(run(main))


# ---- for how long


def test_after_so_many_seconds_no_more_is_taken(profiles: Profiles) -> None:
    async def main() -> ProfileReport:
        async with profile(hz=500, seconds=0.1, profiles=profiles) as report:
            crunch(0.05)
            await report.complete()
            duration = report.duration
            spin()
        assert report.duration == duration
        return report

    report = asyncio.run(main())
    assert 0.1 <= report.duration < 5
    assert "crunch" in functions(report)
    assert "spin" not in functions(report)


def test_reports_at_the_same_time_see_what_is_theirs(profiles: Profiles) -> None:
    async def main() -> tuple[ProfileReport, ProfileReport]:
        async with profile(hz=500, profiles=profiles) as outer:
            crunch()
            async with profile(hz=300, profiles=profiles) as inner:
                spin(0.1)
            seen = inner.samples
            crunch()
        assert inner.samples == seen
        return outer, inner

    outer, inner = asyncio.run(main())
    assert {"crunch", "spin"} <= functions(outer)
    assert "spin" in functions(inner)
    assert "crunch" not in functions(inner)


def test_a_report_is_whole_when_the_block_fails(profiles: Profiles) -> None:
    async def main() -> ProfileReport:
        report: Any = None
        with suppress(Trouble):
            async with profile(hz=500, profiles=profiles) as report:
                crunch()
                raise Trouble
        duration = report.duration
        assert report.duration == duration
        return report

    assert "crunch" in functions(asyncio.run(main()))
    assert not profiles.sampler.feeds


# ---- of the requests that take long, of so many


def age(seconds: float = 10.0) -> None:
    """Have the request that runs here last for so much longer."""
    account: Any = current_account.get()
    account.started_ns -= round(seconds * 1e9)


async def slow_and_fast(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/streams":
        await send({**START, "headers": []})
    await checkpoint()
    if scope["path"] == "/fast":
        spin(0.03)
    else:
        age()
        crunch(0.03)
    await checkpoint()
    if scope["path"] != "/streams":
        await send(START)
    await send(BODY)


def test_of_requests_that_took_long_alone(run: Run, profiles: Profiles) -> None:
    """By the measure of the slow requests; what belongs to no request is left out."""
    kit = ProfilingMiddleware(slow_and_fast, profiles=profiles, slow_threshold=5)

    async def main() -> ProfileReport:
        async with profile(hz=500, slower_than=5, profiles=profiles) as report:
            busy(0.02)
            paths = ("/slow", "/fast", "/streams", "/slow", "/fast")
            await together(*(partial(request, kit, path) for path in paths))
        return report

    report = run(main)
    assert list(report.endpoints) == ["GET /slow"]
    assert report.requests == 2 == len(get_profile_stats(profiles=profiles)["slow"])
    assert "crunch" in functions(report)
    assert "spin" not in functions(report)
    assert report.seconds < report.duration


def test_one_in_flight_is_of_them_as_soon_as_it_has_lasted_for_so_long(
    run: Run, profiles: Profiles
) -> None:
    async def main() -> ProfileReport:
        reports = []

        async def inside(scope: Any, receive: Any, send: Any) -> None:
            for seconds in (0, 10):
                async with profile(hz=500, slower_than=5, profiles=profiles) as report:
                    crunch(0.03)
                    assert not report.endpoints
                    age(seconds)
                    assert bool(report.endpoints) == bool(seconds)
                reports.append(report)

        await request(ProfilingMiddleware(inside, profiles=profiles), "/crunch")
        too_short, long_enough = reports
        assert (too_short.samples, too_short.requests) == (0, 0)
        return long_enough

    report = run(main)
    assert list(report.endpoints) == ["GET /crunch"]
    assert "crunch" in functions(report)
    assert report.requests == 0  # that have ended


def test_until_so_many_have_ended(run: Run, profiles: Profiles) -> None:
    kit = ProfilingMiddleware(app, profiles=profiles)

    async def main() -> ProfileReport:
        async with profile(hz=500, requests=2, profiles=profiles) as report:
            crunch(0.03)
            await request(kit, "/crunch")
            assert report.requests == 1
            await request(kit, "/crunch")
            await report.complete()
            assert not profiles.sampler.feeds
            duration = report.duration
            await request(kit, "/spin")
        assert report.duration == duration
        return report

    report = run(main)
    assert report.requests == 2
    assert set(report.endpoints) == {"GET /crunch", OUTSIDE}
    assert "spin" not in functions(report)


def test_only_the_first_of_those_that_took_long(run: Run, profiles: Profiles) -> None:
    """What is in flight when they have ended is left out, however long it lasts already."""

    async def main() -> ProfileReport:
        async def inside(scope: Any, receive: Any, send: Any) -> None:
            age()
            if scope["path"] == "/lasts":
                spin()
                assert list(report.endpoints) == ["GET /lasts"]
                await report.complete()
            else:
                while not report.samples:  # of the other one
                    await checkpoint()
                crunch()
            await send(START)
            await send(BODY)

        kit = ProfilingMiddleware(inside, profiles=profiles)
        async with profile(hz=500, slower_than=5, requests=1, profiles=profiles) as report:
            await together(partial(request, kit, "/lasts"), partial(request, kit, "/ends"))
            await request(kit, "/late")
        return report

    report = run(main)
    assert report.requests == 1
    assert list(report.endpoints) == ["GET /ends"]
    assert "spin" not in functions(report)


def test_requests_of_other_endpoints_are_not_counted(run: Run, profiles: Profiles) -> None:
    """Nor must a request have been seen to run, to be counted."""

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(BODY)

    async def main() -> None:
        kit = ProfilingMiddleware(answers, profiles=profiles)
        async with profile(hz=1, endpoint="GET /a", requests=3, profiles=profiles) as report:
            for _ in range(3):
                await request(kit, "/b")
            assert report.requests == 0
            for _ in range(5):
                await request(kit, "/a")
            assert report.requests == 3
            await report.complete()

    run(main)


def test_who_waits_goes_on_when_the_block_ends(run: Run, profiles: Profiles) -> None:
    async def main() -> None:
        entered = []

        async def block() -> None:
            async with profile(requests=1000, profiles=profiles) as report:
                entered.append(report)
                for _ in range(3):
                    await checkpoint()

        async def waiting() -> None:
            while not entered:
                await checkpoint()
            await entered[0].complete()
            await entered[0].complete()  # it is over

        await together(block, waiting)

    run(main)


def test_who_waits_no_more_is_forgotten(profiles: Profiles) -> None:
    async def main() -> None:
        async with profile(requests=1000, profiles=profiles) as report:
            waiting = asyncio.ensure_future(report.complete())
            await asyncio.sleep(0)
            assert len(report._feed._waiting) == 1
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            assert report._feed._waiting == []

    asyncio.run(main())


def test_waiting_for_nothing_is_refused(run: Run, profiles: Profiles) -> None:
    async def main() -> None:
        async with profile(profiles=profiles) as report:
            with pytest.raises(RuntimeError, match=r"profile\(requests=\.\.\.\)"):
                await report.complete()
        await report.complete()  # it has ended

    run(main)


# ---- what it says


def test_the_heaviest_functions() -> None:
    report = report_of(("GET /a", "x y", 1.0), ("GET /b", "x z", 2.0), ("GET /b", "x", 0.5))
    assert [(row["function"], row["self"], row["total"]) for row in report.top()] == [
        ("z", 2.0, 2.0),
        ("y", 1.0, 1.0),
        ("x", 0.5, 3.5),
    ]
    assert [row["function"] for row in report.top(1, endpoint="GET /a")] == ["y"]
    assert list(report.endpoints) == ["GET /b", "GET /a"]
    assert (report.samples, report.seconds) == (3, 3.5)
    assert repr(report) == "<ProfileReport: 3 samples, 3.500 s>"


def test_a_report_is_saved_in_each_form_while_it_is_taken(
    profiles: Profiles, tmp_path: Path
) -> None:
    async def main() -> None:
        async with profile(hz=500, profiles=profiles) as report:
            crunch(0.1)
            for suffix in (".speedscope.json", ".collapsed", ".pstats", ".html"):
                report.save(tmp_path / f"report{suffix}")

    asyncio.run(main())
    names = {
        each["name"]
        for each in json.loads((tmp_path / "report.speedscope.json").read_text())["shared"][
            "frames"
        ]
    }
    assert "crunch" in names
    assert "crunch@" in (tmp_path / "report.collapsed").read_text()
    stats = pstats.Stats(str(tmp_path / "report.pstats")).stats  # type: ignore[attr-defined]
    assert any(name == "crunch" for _, _, name in stats)
    assert "<code>crunch</code>" in (tmp_path / "report.html").read_text()


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationValueError, match=r"\.speedscope\.json, \.collapsed"):
        report_of(("GET /", "a", 1.0)).save(tmp_path / "report.txt")


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"seconds": 0}, ConfigurationValueError),
        ({"seconds": -1.5}, ConfigurationValueError),
        ({"seconds": float("nan")}, ConfigurationValueError),
        ({"seconds": float("inf")}, ConfigurationValueError),
        ({"seconds": "10"}, ConfigurationTypeError),
        ({"seconds": True}, ConfigurationTypeError),
        ({"endpoint": ""}, ConfigurationValueError),
        ({"endpoint": b"GET /"}, ConfigurationTypeError),
        ({"hz": 0}, ConfigurationValueError),
        ({"hz": 1001}, ConfigurationValueError),
        ({"hz": float("nan")}, ConfigurationValueError),
        ({"hz": None}, ConfigurationTypeError),
        ({"hz": True}, ConfigurationTypeError),
        ({"slower_than": 0}, ConfigurationValueError),
        ({"slower_than": -1}, ConfigurationValueError),
        ({"slower_than": float("nan")}, ConfigurationValueError),
        ({"slower_than": float("inf")}, ConfigurationValueError),
        ({"slower_than": "1"}, ConfigurationTypeError),
        ({"slower_than": True}, ConfigurationTypeError),
        ({"requests": 0}, ConfigurationValueError),
        ({"requests": -3}, ConfigurationValueError),
        ({"requests": 2.0}, ConfigurationTypeError),
        ({"requests": True}, ConfigurationTypeError),
        ({"profiles": {}}, ConfigurationTypeError),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    arguments: Any, kind: type[ConfigurationError]
) -> None:
    with pytest.raises(kind) as caught:
        profile(**arguments)
    ((name, value),) = arguments.items()
    assert str(caught.value).startswith(f"profile({name}=...) got {value!r}: give ")


def test_without_a_loop_it_is_said_what_is_missing() -> None:
    entering: Any = profile().__aenter__()
    with pytest.raises(RuntimeError, match="asyncio or trio"):
        entering.send(None)
