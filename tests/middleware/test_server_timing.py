"""The Server-Timing header: what it tells, and that nothing else changes."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterable
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_perfkit import (
    ConfigurationError,
    PerfKit,
    PerformanceMiddleware,
    Profiles,
    Registry,
    get_profile_stats,
    get_runtime_stats,
    measure,
    profile_connection,
)
from asgi_perfkit.metrics.catalogue import METRICS
from tests.metrics.driver import answer, connect, ok_app, request

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What a client sees as separate entries: commas within quotes do not part them.
ENTRY = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^,"])+')

TAKEN = {"outcomes", "statuses", "processing"}

Headers = list[tuple[bytes, bytes]]


def values(headers: Iterable[Any]) -> list[bytes]:
    return [value for name, value in headers if name.lower() == b"server-timing"]


def entries(headers: Iterable[Any]) -> dict[str, float]:
    """By name, the durations (milliseconds) of one header, each entry of the form that is specified."""
    (value,) = values(headers)
    found: dict[str, float] = {}
    for entry in ENTRY.findall(value.decode("ascii")):
        name, _, duration = entry.strip().partition(";dur=")
        assert TOKEN.fullmatch(name), name
        assert re.fullmatch(r"\d+\.\d{3}", duration), entry
        assert name not in found
        found[name] = float(duration)
    return found


async def respond(
    *names: str, headers: Any = (), server_timing: Any = True, **scope: Any
) -> dict[str, Any]:
    """The start message of an app that measures `names` and has set `headers`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for name in names:
            with measure(name):
                pass
        await answer(send, headers=headers)

    measured = PerformanceMiddleware(app, registry=Registry(), server_timing=server_timing)
    return await request(measured, "GET", "/", **scope)


def test_the_processing_time_is_told(run: Any) -> None:
    """Alone, the header has the time from the call to the response's start, in milliseconds."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        start = perf_counter()
        while perf_counter() - start < 0.005:
            pass
        await answer(send)

    async def main() -> tuple[float, dict[str, Any]]:
        start = perf_counter()
        measured = PerformanceMiddleware(app, registry=Registry(), server_timing=True)
        message = await request(measured, "GET", "/")
        return (perf_counter() - start) * 1000, message

    took, message = run(main)
    told = entries(message["headers"])
    assert told.keys() == {"processing"}
    assert 5 <= told["processing"] <= took


def test_what_was_measured_is_told_by_name(run: Any) -> None:
    """Each name once, with the sum of its times, behind the processing time, in the order of the first of each."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for name in ("db", "cache", "db"):
            with measure(name):
                start = perf_counter()
                while perf_counter() - start < 0.002:
                    pass
        await answer(send)
        with measure("too_late"):
            pass

    measured = PerformanceMiddleware(app, registry=Registry(), server_timing=True)
    told = entries(run(request, measured, "GET", "/")["headers"])
    assert list(told) == ["processing", "db", "cache"]
    assert told["db"] >= 4
    assert told["cache"] >= 2
    assert told["processing"] >= told["db"] + told["cache"] - 0.002


def test_the_time_in_queries_is_told(run: Any) -> None:
    """Of those sent before the response, where they are profiled; none where a measure of the app's has that name."""
    connection = profile_connection(sqlite3.connect(":memory:", check_same_thread=False))
    profiles = Profiles()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/measured":
            with measure("query"):
                pass
        if scope["path"] != "/none":
            connection.execute("SELECT 1").fetchall()
        await answer(send)
        connection.execute("SELECT 1, 2").fetchall()

    measured = PerfKit(
        app,
        performance={"registry": Registry(), "server_timing": True},
        profiling={"profiles": profiles},
    )

    async def main() -> list[dict[str, float]]:
        paths = ("/", "/none", "/measured")
        return [entries((await request(measured, "GET", path))["headers"]) for path in paths]

    told, none, own = run(main)
    connection.close()
    assert list(told) == ["processing", "query"]
    assert list(none) == ["processing"]
    rows = get_profile_stats(profiles=profiles)["queries"]["GET /"]["statements"]
    times = {row["statement"]: row["time"] for row in rows}
    assert told["query"] == pytest.approx(times["SELECT ?"] * 1000, abs=0.001)
    assert list(own) == ["processing", "query"]
    assert own["query"] < own["processing"]


@pytest.mark.parametrize("server_timing", [False, lambda scope: False, lambda scope: None])
def test_nothing_is_told_that_is_not_wanted(run: Any, server_timing: Any) -> None:
    """By default, or where a function says no, the app's own message is sent, the very object."""
    message = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(message)

    async def send(message: Any) -> None:
        sent.append(message)

    measured = PerformanceMiddleware(app, registry=Registry(), server_timing=server_timing)
    run(measured, {"type": "http", "method": "GET", "path": "/"}, None, send)
    assert sent[0] is message
    assert message == {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}


def test_of_a_thousand_times_the_sum_is_told(run: Any) -> None:
    """However often something is measured, the header has all of it."""
    spent = 0.0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal spent
        for _ in range(1_000):
            with measure("db"):
                start = perf_counter()
                while perf_counter() - start < 5e-6:
                    pass
                spent += perf_counter() - start
        await answer(send)

    measured = PerformanceMiddleware(app, registry=Registry(), server_timing=True)
    told = entries(run(request, measured, "GET", "/")["headers"])
    assert spent * 1000 - 0.001 <= told["db"] <= told["processing"]


def test_a_function_of_the_scope_says_for_whom(run: Any) -> None:
    """`server_timing` may decide for each request, by its scope."""

    def wanted(scope: Any) -> bool:
        return (b"x-debug", b"1") in scope["headers"]

    assert values(run(respond_to, wanted, [(b"x-debug", b"1")])["headers"])
    assert not values(run(respond_to, wanted, [])["headers"])


async def respond_to(server_timing: Any, headers: Headers) -> dict[str, Any]:
    measured = PerformanceMiddleware(ok_app, registry=Registry(), server_timing=server_timing)
    return await request(measured, "GET", "/", headers=headers)


def test_a_function_that_raises_fails_no_request(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, logged once, and the request is answered without the header."""
    registry = Registry()

    def wanted(scope: Any) -> bool:
        raise LookupError("of the function")

    async def main() -> None:
        measured = PerformanceMiddleware(ok_app, registry=registry, server_timing=wanted)
        for _ in range(3):
            message = await request(measured, "GET", "/")
            assert message["status"] == 200
            assert not values(message["headers"])

    run(main)
    assert get_runtime_stats(registry=registry)["metrics"]["server_timing_failures"] == 3
    assert [record.name for record in caplog.records] == ["asgi_perfkit"]


@pytest.mark.parametrize("name", [b"server-timing", b"Server-Timing", b"SERVER-TIMING"])
def test_the_apps_own_entries_come_first(run: Any, name: bytes) -> None:
    """An existing header is kept and added to, whatever the case of its name; others stay in their place."""
    headers = [(b"a", b"1"), (name, b'db;dur=5;desc="a, b"'), (b"a", b"2")]

    async def main() -> dict[str, Any]:
        return await respond("cache", headers=headers)

    sent = run(main)["headers"]
    assert [header[0] for header in sent] == [b"a", name, b"a"]
    assert sent[0] == (b"a", b"1")
    assert sent[2] == (b"a", b"2")
    pattern = rb'db;dur=5;desc="a, b", processing;dur=\d+\.\d{3}, cache;dur=\d+\.\d{3}'
    assert re.fullmatch(pattern, sent[1][1])


def test_of_several_headers_the_last_is_added_to(run: Any) -> None:
    """An app may have set the header more than once; none of its entries is lost."""

    async def main() -> dict[str, Any]:
        return await respond(headers=[(b"server-timing", b"a"), (b"server-timing", b"b")])

    first, last = values(run(main)["headers"])
    assert first == b"a"
    assert re.fullmatch(rb"b, processing;dur=\d+\.\d{3}", last)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"a", b"b")],
        [(b"a", b"b"), (b"server-timing", b"db;dur=1")],
        [[b"a", b"b"], [b"server-timing", b"db;dur=1"]],
        ((b"a", b"b"), (b"server-timing", b"db;dur=1")),
    ],
    ids=["none", "own", "lists", "tuple"],
)
def test_the_apps_message_stays_as_it_is(run: Any, headers: Any) -> None:
    """Neither the message that the app has sent nor its headers are changed."""
    before = repr(headers)
    message = {
        "type": "http.response.start",
        "status": 200,
        "headers": headers,
        "trailers": False,
        "unknown": object(),
    }
    copy = dict(message)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(message)

    async def send(message: Any) -> None:
        sent.append(message)

    measured = PerformanceMiddleware(app, registry=Registry(), server_timing=True)
    run(measured, {"type": "http", "method": "GET", "path": "/"}, None, send)
    assert message == copy
    assert message["headers"] is headers
    assert repr(headers) == before
    assert sent[0] is not message
    assert values(sent[0]["headers"])
    assert {**sent[0], "headers": headers} == copy


def test_a_message_without_headers_gets_some(run: Any) -> None:
    """`headers` may be left out of a message; the header is sent all the same."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    measured = PerformanceMiddleware(app, registry=Registry(), server_timing=True)
    assert entries(run(request, measured, "GET", "/")["headers"]).keys() == {"processing"}


@pytest.mark.parametrize("number", [0, 18, 19, 20, 255])
def test_there_are_never_more_than_20_entries(run: Any, number: int) -> None:
    """Of many names, the first 19 are told behind the processing time."""

    async def main() -> dict[str, Any]:
        return await respond(*(f"name_{each}" for each in range(number)))

    told = entries(run(main)["headers"])
    assert list(told) == ["processing", *(f"name_{each}" for each in range(min(number, 19)))]


@pytest.mark.parametrize("own", [1, 18, 19, 20, 30])
@pytest.mark.parametrize("apart", [False, True])
def test_the_apps_entries_count(run: Any, own: int, apart: bool) -> None:
    """What the app has set takes of the 20, in one header or several, and is never cut."""
    mine = [f'own_{each};desc="a, \\"b"'.encode() for each in range(own)]
    headers = (
        [(b"server-timing", value) for value in mine]
        if apart
        else [(b"server-timing", b", ".join(mine))]
    )

    async def main() -> dict[str, Any]:
        return await respond("a", "b", "c", headers=headers)

    sent = b", ".join(values(run(main)["headers"])).decode()
    found = [entry.strip().split(";")[0] for entry in ENTRY.findall(sent)]
    assert (
        found
        == ([f"own_{each}" for each in range(own)] + ["processing", "a", "b", "c"])[: max(20, own)]
    )


@pytest.mark.parametrize("own", [0, 1, 20], ids=["none", "one", "full"])
def test_headers_that_can_be_read_only_once(run: Any, own: int) -> None:
    """`headers` is any iterable (ASGI 3.0): one that is used up by reading reaches the server whole."""
    mine = [(b"server-timing", b"own")] * own

    async def main() -> dict[str, Any]:
        return await respond(headers=iter([(b"a", b"b"), *mine]))

    headers = list(run(main)["headers"])
    assert headers[0] == (b"a", b"b")
    assert len(values(headers)) == max(own, 1)


@given(st.text(min_size=1, max_size=100).filter(lambda name: name not in {*METRICS, *TAKEN}))
def test_a_name_is_made_a_token(name: str) -> None:
    """Whatever a timing is called, the header is ASCII and its names are tokens (RFC 9110, section 5.6.2)."""
    told = list(entries(asyncio.run(respond(name))["headers"]))
    assert told[0] == "processing"
    assert len(told) == 2
    if TOKEN.fullmatch(name):
        assert told[1] == name


def test_no_timing_can_be_called_processing() -> None:
    """That is the name of the kit's own entry."""
    with pytest.raises(ConfigurationError, match="'processing'"):
        measure("processing")


def test_of_hundreds_of_names_those_that_came_first_are_told(run: Any) -> None:
    """What was condensed meanwhile has the first names, and one for all that found no room."""

    async def main() -> dict[str, Any]:
        return await respond(*(f"name_{each}" for each in range(256)))

    told = list(entries(run(main)["headers"]))
    assert told == ["processing", *(f"name_{each}" for each in range(8)), "_overflow_"]


@pytest.mark.parametrize("headers", [None, 5, [1], [(b"a",)], [(None, b"b")], ["ab"]])
def test_headers_that_cannot_be_read_are_left_for_the_server(run: Any, headers: Any) -> None:
    """What is malformed is passed on as it is, and counted."""
    registry = Registry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, headers=headers)

    measured = PerformanceMiddleware(app, registry=registry, server_timing=True)
    message = run(request, measured, "GET", "/")
    sent = message["headers"]
    assert sent is headers or (isinstance(headers, list) and sent[: len(headers)] == headers)
    if sent is headers:
        assert get_runtime_stats(registry=registry)["metrics"]["malformed_messages"] == 1


def test_two_layers_tell_once(run: Any) -> None:
    """Where two middlewares of the kit are asked for it, the header is there once."""
    registry = Registry()
    inner = PerformanceMiddleware(ok_app, registry=registry, server_timing=True)
    outer = PerformanceMiddleware(inner, registry=Registry(), server_timing=True)
    message = run(request, outer, "GET", "/")
    assert entries(message["headers"]).keys() == {"processing"}


def test_a_connection_has_no_such_header(run: Any) -> None:
    """A websocket's handshake is passed on as it is."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": []})
        await receive()
        await receive()

    measured = PerformanceMiddleware(app, registry=Registry(), server_timing=True)
    assert run(connect, measured, "/ws", "x") == [{"type": "websocket.accept", "headers": []}]
