"""What is planted in the samples is found behind real servers, and told by the right endpoint with its line.

The planted lines have a comment, by which these tests find them: `# found by /profile: ...`.
"""

from __future__ import annotations

import asyncio
import json
import marshal
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from .client import Connection, Response
from .figures import OWN, Meter
from .harness import PROFILE_SECRET, Server
from .test_threads import ON_EACH, ONE_OF_EACH, SAMPLES, at_once

pytestmark = pytest.mark.anyio

ON_EVERY = pytest.mark.parametrize("server", SAMPLES, indirect=True, ids=str)
ON_ONE_OF_EACH = pytest.mark.parametrize("server", ONE_OF_EACH, indirect=True, ids=str)
ON_ONE = pytest.mark.parametrize("server", SAMPLES[:1], indirect=True, ids=str)

CLIENTS = 3
TRIES = 3
WINDOWS = (0.25, 1, 3)  # seconds: when the machine is busy, a short one may see nothing
SLEPT = 0.29  # of 300 ms, as far as clocks agree
LABELS = 1_000
LABEL_BYTES = 60  # at least, as a string

PARENTS = {
    "/freeze": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "/supplies": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
}


def source_of(server: Server) -> Path:
    """Where the sample's planted lines are."""
    file = "shop/views.py" if server.application.framework == "django" else "app.py"
    return server.application.folder / file


def planted(server: Server, what: str) -> tuple[str, int]:
    """The file and the line that has this comment."""
    file = source_of(server)
    lines = file.read_text(encoding="utf-8").splitlines()
    (number,) = (
        number for number, line in enumerate(lines, 1) if f"# found by /profile: {what}" in line
    )
    return str(file), number


def place_of(found: dict[str, Any]) -> tuple[str, int]:
    return found["file"], found["line"]


def names_of(server: Server, *targets: str) -> list[str]:
    """The endpoints that paths belong to, as the application's way of naming them has it."""
    names = [f"GET {target}" for target in targets]
    if (
        server.application.framework == "litestar"
    ):  # to which a slash at the end makes no other route
        return [name.rstrip("/") for name in names]
    if server.application.framework == "raw":  # which has no routes
        return [re.sub(r"{\w+}", "{id}", name) for name in names]
    return names


class Profile:
    """What a server has found since the block began, and who asks it."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.server = meter.server

    async def read(self) -> dict[str, Any]:
        """All of it, as soon as every request has been recorded."""
        await self.meter.read()
        (response,) = await at_once(self.server, ("GET", "/profile"))
        found: dict[str, Any] = response.json()
        return found

    async def during(self, windows: Sequence[str], *targets: str) -> list[Response]:
        """What windows over some time answer; meanwhile a client for each of `targets` asks for it again and again."""
        async with AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(Connection(self.server.port))
                for _ in (*windows, *targets)
            ]
            opened, clients = connections[: len(windows)], connections[len(windows) :]
            looking = asyncio.gather(
                *(each.request("GET", window) for each, window in zip(opened, windows, strict=True))
            )
            await self.meter.await_in_flight(len(windows))

            async def ask(client: Connection, target: str) -> None:
                while not looking.done():
                    assert (await client.request("GET", target)).status == 200

            await asyncio.gather(*map(ask, clients, targets))
            responses = await looking
        assert {response.status for response in responses} == {200}
        return responses


@asynccontextmanager
async def profiled(server: Server) -> AsyncIterator[Profile]:
    async with Meter(server) as meter:
        await meter.reset()
        (response,) = await at_once(server, ("DELETE", "/profile"))
        assert response.status == 204
        yield Profile(meter)


async def get(server: Server, target: str, **headers: str) -> Response:
    async with Connection(server.port) as connection:
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        await connection.send_head("GET", target, headers=named)
        await connection.send_end()
        response = await connection.receive()
    assert response.status == 200
    return response


def seconds_of(function: str, report: dict[str, Any], file: Path) -> dict[str, float]:
    """By endpoint, for how many seconds a speedscope file has seen a function of `file`."""
    wanted = {
        number
        for number, frame in enumerate(report["shared"]["frames"])
        if (frame["name"], frame.get("file")) == (function, str(file))
    }
    found: dict[str, float] = {}
    for each in report["profiles"]:
        for stack, weight in zip(each["samples"], each["weights"], strict=True):
            if wanted.intersection(stack):
                found[each["name"]] = found.get(each["name"], 0) + weight
    return found


@ON_EVERY
async def test_what_is_asked_again_and_again_is_named_with_its_line(server: Server) -> None:
    """Each endpoint has its own queries, and as many in the metrics, though threads send them for several at once."""
    targets = ["/receipts/", "/receipts/1", "/sales/1"]
    async with profiled(server) as profile:
        responses = await at_once(server, *[("GET", target) for target in targets] * CLIENTS)
        metrics = await profile.meter.read()
        queries = (await profile.read())["queries"]
    assert {response.status for response in responses} == {200}
    assert len(responses[0].json()) == 10
    many, one, sold = names_of(server, "/receipts/", "/receipts/{sale_id}", "/sales/{item_id}")
    counts = {many: 11, one: 1, sold: 2 if server.application.framework == "django" else 1}
    assert {name: queries[name]["count"] for name in counts} == {
        name: count * CLIENTS for name, count in counts.items()
    }
    for name, count in counts.items():
        told, measured = queries[name], metrics[name]
        assert (measured["query_count"]["min"], measured["query_count"]["max"]) == (count, count)
        assert measured["query_time"]["sum"] == pytest.approx(told["time"])
        assert told["errors"] == 0
    (repeated,) = queries[many]["n_plus_one"]
    assert place_of(repeated) == planted(server, "the N+1")
    assert repeated["statement"].startswith("SELECT ")
    assert [repeated[key] for key in ("count", "requests", "most")] == [10 * CLIENTS, CLIENTS, 10]
    assert queries[one]["n_plus_one"] == queries[sold]["n_plus_one"] == []


@ON_EACH
async def test_who_freezes_the_loop_and_who_is_slow(server: Server) -> None:
    """The stall has its line, and who waits for its end; both requests are kept as slow, with what they were about."""
    for _ in range(TRIES):  # time in which the machine starves the watching thread does not count
        async with profiled(server) as profile:
            slow = asyncio.create_task(get(server, "/supplies", traceparent=PARENTS["/supplies"]))
            await profile.meter.await_in_flight(1)
            frozen = await get(server, "/freeze", traceparent=PARENTS["/freeze"])
            await slow
            found = await profile.read()
        stalls = [each for each in found["stalls"] if each["endpoint"] == "GET /freeze"]
        if stalls:
            break
    (stall,) = stalls
    assert place_of(stall) == planted(server, "a stall")
    assert (stall["function"], stall["finished"]) == ("freeze", True)
    assert 0.1 <= stall["duration"] <= frozen.json()["seconds"] + 0.1
    assert stall["traceparent"] == PARENTS["/freeze"]
    assert {"GET /freeze", "GET /supplies"} <= {each["endpoint"] for each in stall["requests"]}

    kept = {each["path"]: each for each in found["slow"] if each["endpoint"] not in OWN}
    assert kept.keys() == PARENTS.keys()
    for path, each in kept.items():
        assert (each["endpoint"], each["status"], each["outcome"]) == (f"GET {path}", 200, "ok")
        assert each["traceparent"] == PARENTS[path]
        assert each["duration"] >= SLEPT
    assert kept["/freeze"]["longest_step"] >= SLEPT
    assert kept["/supplies"]["spans"]["supplier"]["count"] == 3
    (query,) = kept["/supplies"]["queries"]["statements"]
    assert query["file"] == str(source_of(server))


@ON_EACH
async def test_where_the_time_goes(server: Server) -> None:
    """What computes is in the profile of its endpoint, and not in that of another which is served meanwhile."""
    async with profiled(server) as profile:
        for seconds in WINDOWS:
            window = f"/profile/cpu.speedscope.json?seconds={seconds}"
            (response,) = await profile.during([window], "/block", "/items/")
            computing = seconds_of("spin", response.json(), source_of(server))
            if "GET /block" in computing:
                break
    assert computing["GET /block"] >= 0.97 * sum(computing.values()) > 0


@ON_ONE
async def test_a_report_has_the_form_that_is_asked_for(server: Server) -> None:
    """Four windows are open at a time, and each sees what runs."""
    async with profiled(server) as profile:
        forms = ("html", "speedscope.json", "collapsed", "pstats")
        windows = [f"/profile/cpu.{form}?seconds=0.3" for form in forms]
        page, speedscope, collapsed, pstats = await profile.during(windows, "/block")
    assert page.headers["content-type"].startswith("text/html")
    assert b"spin" in page.body
    assert b"GET /block" in page.body
    assert "GET /block" in {each["name"] for each in json.loads(speedscope.body)["profiles"]}
    assert re.search(rb"^GET_/block;.*;spin@\S+ \d+$", collapsed.body, re.MULTILINE)
    functions = marshal.loads(pstats.body)
    assert (str(source_of(server)), "spin") in {(file, name) for file, _, name in functions}


@ON_EACH
async def test_chosen_requests_are_recorded_call_by_call(server: Server) -> None:
    """Those with the secret in a header, each without what the others call meanwhile."""
    async with profiled(server) as profile:
        await asyncio.gather(
            get(server, "/block", x_profile=PROFILE_SECRET),
            get(server, "/block", x_profile=PROFILE_SECRET),
            get(server, "/block", x_profile="only-a-guess-of-it"),
            get(server, "/receipts/", x_profile=PROFILE_SECRET),
            get(server, "/items/"),
        )
        exact = (await profile.read())["exact"]
    (receipts,) = names_of(server, "/receipts/")
    assert (exact["unavailable"], exact["unavailable_requests"]) == (None, 0)
    assert exact["endpoints"].keys() == {"GET /block", receipts}
    calls = {
        name: {
            row["function"]: row["calls"]
            for row in found["top"]
            if row["file"] == str(source_of(server))
        }
        for name, found in exact["endpoints"].items()
    }
    assert exact["endpoints"]["GET /block"]["requests"] == calls["GET /block"]["spin"] == 2
    assert exact["endpoints"][receipts]["requests"] == 1
    assert "spin" not in calls[receipts]


@ON_ONE_OF_EACH
async def test_what_allocates_is_named_with_its_line(server: Server) -> None:
    async with profiled(server) as profile:
        await get(server, "/labels")  # what is imported when it is first needed is not looked for
        for seconds in WINDOWS:
            window = f"/profile/allocations?seconds={seconds}"
            (response,) = await profile.during([window], "/labels", "/items/")
            endpoints = response.json()
            labels = endpoints.get("GET /labels", {"peak": 0})
            if labels["peak"] >= LABELS * LABEL_BYTES:
                break
        found = await profile.read()
    most = labels["top"][0]
    assert place_of(most) == planted(server, "allocations")
    assert LABELS <= most["blocks"] <= 1.1 * LABELS * labels["requests"]
    assert LABELS * LABEL_BYTES <= most["bytes"] <= labels["bytes"]
    (items,) = names_of(server, "/items/")
    others = endpoints.get(items, {"top": []})
    assert place_of(most) not in map(place_of, others["top"])
    assert found["allocations"]["endpoints"]["GET /labels"]["bytes"] >= labels["bytes"]
