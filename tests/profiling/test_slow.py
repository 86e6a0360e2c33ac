"""Slow requests: which ones are kept, and what of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import measure
from asgi_perfkit.metrics.histogram import Histogram
from asgi_perfkit.middleware.profiling import ProfilingMiddleware
from asgi_perfkit.profiling.calls import CallTree, Place
from asgi_perfkit.profiling.profiles import Profiles
from asgi_perfkit.profiling.slow import Slow, duration_of, samples_of, spans_of, traceparent_of
from asgi_perfkit.profiling.worst import Worst
from asgi_perfkit.steps import current_account
from tests.support import (
    BODY,
    DISCONNECT,
    REQUEST,
    START,
    Clock,
    Server,
    Trouble,
    http_scope,
    saying,
    websocket_scope,
)

Run = Callable[..., Any]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.install(monkeypatch)


@pytest.fixture
def profiles() -> Profiles:
    return Profiles()


def serve(run: Run, profiles: Profiles, app: Any, scope: Any, *says: object) -> None:
    server = Server(*says)
    # Where time stands still, nobody is to watch it.
    middleware = ProfilingMiddleware(app, profiles=profiles, stall_threshold=None)
    run(middleware, scope, server.receive, server.send)


def kept(profiles: Profiles) -> list[dict[str, Any]]:
    return profiles.statistics()["slow"]


def test_a_request_is_slow_from_the_threshold_on(
    run: Run, clock: Clock, profiles: Profiles
) -> None:
    for milliseconds in (999, 1000):

        async def app(
            scope: Any, receive: Any, send: Any, seconds: float = milliseconds / 1000
        ) -> None:
            clock.advance(seconds)
            await saying(START, BODY)(scope, receive, send)

        serve(run, profiles, app, http_scope("/things"))
    (slow,) = kept(profiles)
    assert slow["endpoint"] == "GET /things"
    assert slow["duration"] == slow["total_time"] == slow["longest_step"] == 1.0
    assert (slow["method"], slow["path"], slow["status"], slow["outcome"]) == (
        "GET", "/things", 200, "ok",
    )  # fmt: skip
    assert json.loads(json.dumps(slow)) == slow


def test_what_was_timed_and_observed_within_is_kept(
    run: Run, clock: Clock, profiles: Profiles
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for seconds in (0.5, 1.5):
            with measure("render"):
                clock.advance(seconds)
        account = current_account.get()
        assert account is not None
        for _ in range(300):
            account.observe("request_size", 10)
        await saying(START, BODY)(scope, receive, send)

    serve(run, profiles, app, http_scope())
    (slow,) = kept(profiles)
    assert slow["spans"]["render"] == {"count": 2, "sum": 2.0, "max": 1.5}
    assert slow["spans"]["request_size"]["count"] == 300
    assert slow["spans"]["request_size"]["sum"] == 3000


def test_a_request_that_raises_is_kept_with_its_outcome(
    run: Run, clock: Clock, profiles: Profiles
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        clock.advance(2)
        raise Trouble

    with pytest.raises(Trouble):
        serve(run, profiles, app, http_scope())
    (slow,) = kept(profiles)
    assert (slow["outcome"], slow["status"], slow["duration"]) == ("error", None, 2.0)


def test_a_stream_a_slow_upload_and_a_connection_are_not_slow(
    run: Run, clock: Clock, profiles: Profiles
) -> None:
    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        clock.advance(3600)
        await send(BODY)

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await saying(START, BODY)(scope, receive, send)

    async def chats(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        clock.advance(3600)
        await receive()

    def uploads_slowly() -> Any:
        clock.advance(30)
        return REQUEST

    serve(run, profiles, streams, http_scope())
    serve(run, profiles, reads, http_scope(), uploads_slowly)
    serve(
        run,
        profiles,
        chats,
        websocket_scope(),
        {"type": "websocket.connect"},
        {"type": "websocket.disconnect", "code": 1000},
    )
    assert kept(profiles) == []
    assert profiles.failures == 0


def test_without_a_threshold_none_is_kept(run: Run, clock: Clock, profiles: Profiles) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        clock.advance(3600)
        await saying(START, BODY)(scope, receive, send)

    server = Server(DISCONNECT)
    middleware = ProfilingMiddleware(
        app, profiles=profiles, stall_threshold=None, slow_threshold=None
    )
    run(middleware, http_scope(), server.receive, server.send)
    assert kept(profiles) == []


def test_facts_that_raise_are_counted_and_the_request_goes_on(
    run: Run, clock: Clock, profiles: Profiles
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        clock.advance(2)
        await saying(START, BODY)(scope, receive, send)

    middleware = ProfilingMiddleware(app, profiles=profiles, stall_threshold=None)
    middleware._profiler.facts = lambda *_: 1 / 0  # type: ignore[assignment,return-value]
    server = Server()
    run(middleware, http_scope(), server.receive, server.send)
    assert server.heard == [START, BODY]
    assert kept(profiles) == []
    assert profiles.failures == 1


def test_the_duration_is_what_the_client_has_waited() -> None:
    assert duration_of({"processing_time": 2.0, "receive_time": 0.5}, 9.0) == 1.5
    assert duration_of({"receive_time": 0.5}, 9.0) == 8.5
    assert duration_of({}, 9.0) == 9.0


ID = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (f"00-{ID}-{SPAN}-01", f"00-{ID}-{SPAN}-01"),
        (f"00-{ID}-{SPAN}-01".encode(), f"00-{ID}-{SPAN}-01"),
        (f"00-{ID}-{SPAN}-01-more", None),
        (f"01-{ID}-{SPAN}-01-more", f"01-{ID}-{SPAN}-01"),
        (f"01-{ID}-{SPAN}-01more", None),
        (f"ff-{ID}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{ID}-{'0' * 16}-01", None),
        (f"00-{ID.upper()}-{SPAN}-01", None),
        (f"00-{ID}-{SPAN}-01\n", None),
        ("<script>", None),
        (None, None),
    ],
)
def test_a_traceparent_is_taken_if_it_is_one(given: object, taken: str | None) -> None:
    assert traceparent_of({"traceparent": given}) == taken
    assert traceparent_of({}) is None


def test_spans_add_up_with_what_was_condensed() -> None:
    histogram = Histogram()
    for value in (1_000_000_000, 3_000_000_000):
        histogram.observe(value)
    spans = spans_of([("render", 2_000_000_000)], {"render": histogram.snapshot()})
    assert spans == {"render": {"count": 3, "sum": 6.0, "max": 3.0}}


def test_samples_name_the_functions_with_the_most_seconds() -> None:
    tree = CallTree()
    for function, seconds in (("fast", 0.1), ("slow", 0.9)):
        tree.add([Place(function, "app.py", 1, 2)], seconds)
    assert [row["function"] for row in samples_of(tree)] == ["slow", "fast"]


# The bounds


def add(slow: Slow, endpoint: str, duration: float, **facts: Any) -> bool:
    return slow.add(endpoint, duration, facts, total=duration, spans={})


def test_one_endpoint_does_not_crowd_out_the_others() -> None:
    slow = Slow(1 << 20)
    assert add(slow, "GET /rare", 1.0)
    for number in range(1000):
        add(slow, "GET /often", 10.0 + number)
    assert not add(slow, "GET /often", 10.0)
    found = slow.statistics()
    assert [each["duration"] for each in found] == [*map(float, range(1009, 989, -1)), 1.0]


def test_what_is_kept_is_bounded_in_bytes_whatever_it_is() -> None:
    slow = Slow(100_000)
    path, many = "x" * 10**6, list(range(10**5))
    for number in range(200):
        add(slow, f"GET /{number}", number, path=path, deep=[[[[[[1]]]]]], many=many)
    found = slow.statistics()
    assert 5 < len(found) < 100
    assert len(json.dumps(found)) < 200_000
    assert found[0]["endpoint"] == "GET /199"
    assert len(found[0]["path"]) == 2000
    assert len(found[0]["many"]) == 20
    slow.clear()
    assert slow.statistics() == []


def test_the_worst_gives_way_by_the_rule() -> None:
    """Where there is no room for all, the lightest of the kind that has most gives way."""
    worst: Worst[str] = Worst(40, each=3)
    for kind, weight in (("a", 5), ("a", 4), ("b", 1), ("a", 6)):
        assert worst.add(kind, weight, 10, f"{kind}{weight}")
    assert worst.add("b", 2, 10, "b2")
    assert list(worst) == ["a6", "a5", "b2", "b1"]
    assert not worst.add("a", 1, 10, "a1")  # there is no room, and nothing is lighter
    assert not worst.add("c", 9, 41, "c9")  # nor ever will be
    assert list(worst) == ["a6", "a5", "b2", "b1"]
    worst.resize(10)
    assert list(worst) == ["a6"]
    assert worst.kept_bytes == 10


def test_adding_stays_fast_when_it_is_full() -> None:
    slow = Slow(1 << 20)
    for number in range(3000):
        add(slow, f"GET /{number}", 1.0)
    started = time.thread_time()
    for number in range(20):
        add(slow, f"POST /{number}", 2.0)
    assert time.thread_time() - started < 0.5
