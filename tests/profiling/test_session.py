"""Profiles on demand: what is in them, for how long, of whom, and in which files they are saved."""

from __future__ import annotations

import asyncio
import json
import pstats
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
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
from asgi_perfkit.profiling.sampler import OUTSIDE
from tests.profiling.stacks import busy, in_thread, request, stack
from tests.steps.charging import Run
from tests.support import BODY, START, Trouble, checkpoint


@pytest.fixture
def profiles() -> Iterator[Profiles]:
    made = Profiles()
    yield made
    assert made.failures == 0
    for each in threading.enumerate():
        if each.name == "asgi_perfkit sampler":
            each.join(5)
            assert not each.is_alive()


def crunch(seconds: float = 0.06) -> None:
    busy(seconds)


def spin(seconds: float = 0.06) -> None:
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
    return ProfileReport(calls)


# ---- what is in it


def test_what_ran_in_each_endpoint(run: Run, profiles: Profiles) -> None:
    kit = PerfKit(app, profiling={"profiles": profiles})

    async def main() -> ProfileReport:
        async with profile(hz=500, profiles=profiles) as report:
            await request(kit, "/crunch")
            await request(kit, "/spin")
        return report

    report = run(main)
    found = report.endpoints
    assert {"GET /crunch", "GET /spin"} <= set(found)
    assert {row["function"] for row in found["GET /crunch"]["top"]} >= {"app", "crunch", "busy"}
    assert "spin" not in {row["function"] for row in found["GET /crunch"]["top"]}
    assert report.samples >= 10
    assert 0.05 < report.seconds <= report.duration + 0.05
    assert get_profile_stats(profiles=profiles)["cpu"] == {}  # on demand means for the report alone


def test_of_one_endpoint_alone(run: Run, profiles: Profiles) -> None:
    kit = ProfilingMiddleware(app, profiles=profiles)

    async def main() -> ProfileReport:
        async with profile(hz=500, endpoint="GET /spin", profiles=profiles) as report:
            await request(kit, "/crunch")
            await request(kit, "/spin")
        return report

    report = run(main)
    assert list(report.endpoints) == ["GET /spin"]
    assert "crunch" not in functions(report)


def test_outside_of_any_middleware(run: Run, profiles: Profiles) -> None:
    """Also of threads that work for the loop."""

    async def main() -> ProfileReport:
        async with profile(hz=500, profiles=profiles) as report:
            crunch()
            await in_thread(spin)
        return report

    report = run(main)
    assert list(report.endpoints) == [OUTSIDE]
    assert {"crunch", "spin"} <= functions(report)


def test_the_default_profiles(run: Run) -> None:
    async def main() -> ProfileReport:
        async with profile(hz=500) as report:
            crunch()
        return report

    assert "crunch" in functions(run(main))


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


def test_after_so_many_seconds_no_more_is_taken(run: Run, profiles: Profiles) -> None:
    async def main() -> ProfileReport:
        async with profile(hz=500, seconds=0.1, profiles=profiles) as report:
            crunch(0.05)
            until = time.monotonic() + 5
            while profiles.sampler.feeds and time.monotonic() < until:
                await asyncio.sleep(0.005) if asyncio._get_running_loop() else await checkpoint()
            spin()
        return report

    report = run(main)
    assert "crunch" in functions(report)
    assert "spin" not in functions(report)


def test_reports_at_the_same_time_see_what_is_theirs(run: Run, profiles: Profiles) -> None:
    async def main() -> tuple[ProfileReport, ProfileReport]:
        async with profile(hz=500, profiles=profiles) as outer:
            crunch()
            async with profile(hz=300, profiles=profiles) as inner:
                spin(0.1)
            seen = inner.samples
            crunch()
        assert inner.samples == seen
        return outer, inner

    outer, inner = run(main)
    assert {"crunch", "spin"} <= functions(outer)
    assert "spin" in functions(inner)
    assert "crunch" not in functions(inner)


def test_a_report_is_whole_when_the_block_fails(run: Run, profiles: Profiles) -> None:
    async def main() -> ProfileReport:
        report: Any = None
        with suppress(Trouble):
            async with profile(hz=500, profiles=profiles) as report:
                crunch()
                raise Trouble
        duration = report.duration
        assert report.duration == duration
        return report

    assert "crunch" in functions(run(main))
    assert not profiles.sampler.feeds


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
    run: Run, profiles: Profiles, tmp_path: Path
) -> None:
    async def main() -> None:
        async with profile(hz=500, profiles=profiles) as report:
            crunch(0.1)
            for suffix in (".speedscope.json", ".collapsed", ".pstats", ".html"):
                report.save(tmp_path / f"report{suffix}")

    run(main)
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
