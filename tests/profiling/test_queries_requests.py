"""The queries of requests: what is counted for whom, what is found to be repeated, and the bounds of it."""

from __future__ import annotations

import os
import random
import sqlite3
import string
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

import pytest

import asgi_perfkit.profiling.profiler
from asgi_perfkit import (
    Profiles,
    ProfilingMiddleware,
    get_profile_stats,
    profile_connection,
    reset_profile_stats,
)
from asgi_perfkit.profiling.queries.record import record_query
from asgi_perfkit.profiling.queries.request import RequestQueries
from asgi_perfkit.profiling.queries.statistics import QueryStatistics
from asgi_perfkit.steps import Account, current_account
from tests.conftest import Run
from tests.metrics.test_registry import size_of
from tests.support import Clock, checkpoint, http_scope, together

SELECT = "SELECT a FROM t WHERE b = ?"


class Profiler(asgi_perfkit.profiling.profiler.Profiler):
    """As a middleware has one, of requests that are accounts and no more."""

    def __init__(self) -> None:
        super().__init__(
            Profiles(),
            label=self.label_of,
            facts=lambda account, error: {},
            stall_threshold=None,
            slow_threshold=None,
            sample_hz=0,
            queries=True,
        )

    def label_of(self, account: Any, endpoint: str | None) -> str:
        return f"GET {endpoint or account.endpoint}"

    @property
    def endpoints(self) -> dict[str, Any]:
        assert self.profiles.failures == 0
        return get_profile_stats(profiles=self.profiles)["queries"]


class Work(Account):
    """A request, or a connection if it has a number of messages."""

    __slots__ = ("__dict__",)
    started_ns = 0


@contextmanager
def work(profiler: Profiler, endpoint: str = "/a", **attributes: Any) -> Iterator[Work]:
    """Do the work of a request."""
    account = Work()
    vars(account).update(attributes)
    account.endpoint = endpoint
    account.profile = profiler
    token = current_account.set(account)
    try:
        yield account
    finally:
        current_account.reset(token)
        account.closed = True
        account.profile.ended(account, endpoint, None)
        account.end(None)


def send(
    statement: Any = SELECT,
    seconds: float = 0,
    rows: int | None = None,
    times: int = 1,
    failed: bool = False,
) -> None:
    record_query(statement, perf_counter_ns() - round(seconds * 1e9), rows, times, failed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock.install(monkeypatch)
    monkeypatch.setattr(f"{__name__}.perf_counter_ns", clock)
    return clock


def test_the_figures_of_an_endpoint(clock: Clock) -> None:
    """By statement, the one that took longest first; rows where a driver knows of them; errors; the line."""
    profiler = Profiler()
    for seconds in (0.1, 0.3):
        with work(profiler):
            send("SELECT 1", seconds, rows=2)
            send("SELECT 2", 0.5, rows=3)
            send("DELETE FROM t", 2, failed=True)
            send("INSERT INTO t VALUES (?)", 0.25, times=10)
            send("INSERT INTO t VALUES (?)", 0.25, rows=7, times=0)  # more of the same query
    (figures,) = profiler.endpoints.values()
    delete, select, insert = figures["statements"]
    line = send.__code__.co_firstlineno + 7
    of_send = {"file": __file__, "line": line, "function": "send"}
    assert delete == {
        "statement": "DELETE FROM t", "count": 2, "executions": 2, "errors": 2, "time": 4.0, "slowest": 2.0,
        "rows": None, **of_send,
    }  # fmt: skip
    assert select == {
        "statement": "SELECT ?", "count": 4, "executions": 4, "errors": 0, "time": 1.4, "slowest": 0.5,
        "rows": 10, **of_send,
    }  # fmt: skip
    assert (insert["count"], insert["executions"], insert["time"]) == (2, 20, 1.0)
    assert (insert["rows"], insert["slowest"]) == (14, 0.25)
    together = {
        name: figures[name] for name in ("count", "executions", "errors", "rows", "slowest")
    }
    assert together == {"count": 8, "executions": 26, "errors": 2, "rows": 24, "slowest": 2.0}
    assert figures["time"] == pytest.approx(6.4)
    assert figures["n_plus_one"] == []


def test_the_metrics_of_a_request(clock: Clock) -> None:
    """One value each, however often and by whomever they are asked for, and none where there was no query."""
    profiler = Profiler()
    with work(profiler) as account:
        send(seconds=1)
        send(seconds=2, times=5)
        account.profile.settle(account)
    assert account.take_observations() == []
    account = Work()
    account.profile = RequestQueries(profiler, account)
    for _ in range(2):
        account.profile.query(account, SELECT, clock() - 3, None, 1, False)
    account.profile.settle(account)
    account.profile.ended(account, "/a", None)
    assert account.take_observations() == [("query_time", 6), ("query_count", 2)]
    with work(profiler) as account:
        pass
    assert account.observations is None


def test_the_end_is_passed_on() -> None:
    """Who profiles the request is told of it once, while the figures of its queries can still be read."""
    profiler, figures = Profiler(), []
    profiler.ended = lambda account, *end: figures.append((account.profile.figures(), *end))  # type: ignore[method-assign]
    with work(profiler):
        send()
        send("SELECT 1", rows=5)
    ((seen, endpoint, error),) = figures
    assert (endpoint, error, seen["count"], seen["rows"]) == ("/a", None, 2, 5)
    assert seen["statements"] == sorted(
        profiler.endpoints["GET /a"]["statements"], key=lambda row: -row["time"]
    )


# ---- the same again and again


def n_plus_one(profiler: Profiler, endpoint: str = "GET /a") -> list[tuple[str, int, int, int]]:
    rows = profiler.endpoints[endpoint]["n_plus_one"]
    return [(row["statement"], row["count"], row["requests"], row["most"]) for row in rows]


def test_five_times_in_a_request_are_too_many() -> None:
    """In one request, whatever the values; and the line is told that has sent the fifth."""
    profiler = Profiler()
    for requests in (4, 5, 7):
        with work(profiler):
            for number in range(requests):
                record_query(f"SELECT a FROM t WHERE b = {number}", 0)
                send(f"SELECT {', '.join('c' * (number + 1))}")
    assert n_plus_one(profiler) == [("SELECT a FROM t WHERE b = ?", 12, 2, 7)]
    (row,) = profiler.endpoints["GET /a"]["n_plus_one"]
    code = test_five_times_in_a_request_are_too_many.__code__
    assert (row["file"], row["line"]) == (__file__, code.co_firstlineno + 6)
    assert row["function"] == code.co_name


def test_a_repeated_statement_is_told_by_line() -> None:
    """Two places that send the same are two to be mended."""
    profiler = Profiler()
    for _ in range(2):
        with work(profiler):
            for _ in range(5):
                record_query(SELECT, 0)
        with work(profiler):
            for _ in range(6):
                record_query(SELECT, 0)
    assert n_plus_one(profiler) == [(SELECT, 12, 2, 6), (SELECT, 10, 2, 5)]


def test_what_is_sent_again_and_again_by_right() -> None:
    """Executions of one query are one, and what controls transactions asks for nothing."""
    profiler = Profiler()
    with work(profiler):
        send("INSERT INTO t VALUES (?)", times=100)
        for number in range(10):
            for statement in (
                "BEGIN",
                "savepoint s{}",
                "RELEASE SAVEPOINT s{}",
                "COMMIT",
                "set x = 1",
            ):
                send(statement.format(number))
            send(rows=1, times=1 if number == 0 else 0)
    assert n_plus_one(profiler) == []


def test_each_message_of_a_connection_is_a_turn() -> None:
    """A connection that sends one query for each message has none too many; five for one message are."""
    profiler = Profiler()
    with work(profiler, messages_in=0) as connection:
        for _ in range(20):
            connection.messages_in += 1
            send()
        assert connection.profile.figures()["n_plus_one"] == []
        connection.messages_in += 1
        for _ in range(5):
            send()
    assert n_plus_one(profiler) == [(SELECT, 5, 1, 5)]
    assert profiler.endpoints["GET /a"]["count"] == 25


# ---- requests that last, and what comes after them


def test_a_long_request_is_told_of_on_the_way(clock: Clock) -> None:
    """Every ten seconds, so that a connection of days is seen; nothing is told twice."""
    profiler = Profiler()
    with work(profiler) as account:
        for _ in range(7):
            send(seconds=1, rows=2)
        assert profiler.endpoints == {}
        clock.advance(10)
        send(seconds=3, rows=1)
        assert n_plus_one(profiler) == [(SELECT, 8, 1, 8)]
        assert profiler.endpoints["GET /a"]["time"] == 10
        clock.advance(10)
        send(seconds=1, failed=True)
        send(seconds=1)
        assert account.profile.figures()["count"] == 10
    assert n_plus_one(profiler) == [(SELECT, 10, 1, 10)]
    (row,) = profiler.endpoints["GET /a"]["statements"]
    assert (row["count"], row["time"], row["rows"], row["errors"]) == (10, 12, 15, 1)


@pytest.mark.parametrize("queries", [0, 1])
def test_what_comes_after_a_request_counts_for_its_endpoint(queries: int) -> None:
    """That of background tasks and of whatever goes on; it is no part of the request, nor repeated in it."""
    profiler = Profiler()
    with work(profiler) as account:
        for _ in range(queries):
            send()
    taken_before = account.profile
    current_account.set(account.outlasting())
    try:
        for _ in range(9):
            send(rows=1)
    finally:
        current_account.set(None)
    figures = profiler.endpoints["GET /a"]
    assert (figures["count"], figures["rows"], figures["n_plus_one"]) == (9 + queries, 9, [])
    assert figures["statements"][0]["function"] == "send"
    assert size_of(taken_before, without=(profiler.profiles,)) < 500


def test_a_query_that_ends_after_its_request(clock: Clock) -> None:
    """A thread that has found the request open before may tell of its query behind the end."""
    profiler = Profiler()
    with work(profiler) as account:
        send()
        taker = account.profile
    taker.query(account, SELECT, clock() - 5, None, 1, False)
    assert profiler.endpoints["GET /a"]["count"] == 2


def test_an_inner_account_leaves_them_to_the_one_around() -> None:
    """As long as nobody profiles it."""
    profiler = Profiler()
    with work(profiler) as account:
        inner = Account()
        inner.parent = account
        token = current_account.set(inner)
        send()
        current_account.reset(token)
    assert profiler.endpoints["GET /a"]["count"] == 1


def test_outside_of_requests_nothing_is_counted() -> None:
    record_query(SELECT, 0)
    token = current_account.set(Account())
    record_query(SELECT, 0)
    current_account.reset(token)


def test_threads_of_a_request_lose_nothing() -> None:
    """The first queries of several threads at once are those of one request."""
    for _ in range(20):
        profiler = Profiler()
        with work(profiler) as account:
            start = threading.Barrier(4)

            def send_some(account: Account = account, start: threading.Barrier = start) -> None:
                current_account.set(account)
                start.wait()
                for number in range(50):
                    send(f"SELECT {'abcde'[number % 5]}", rows=1)

            threads = [threading.Thread(target=send_some) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        figures = profiler.endpoints["GET /a"]
        assert (figures["count"], figures["rows"], len(figures["statements"])) == (200, 200, 5)
        assert sum(row["count"] for row in figures["n_plus_one"]) == 200


def test_a_failure_of_the_kit_is_reported_and_the_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a query, or a request, or what comes after it cannot be counted; the first is in the log."""
    profiler = Profiler()

    def fails(*args: Any) -> None:
        raise RuntimeError("not to be counted")

    monkeypatch.setattr(profiler.profiles.queries, "add", fails)
    with work(profiler) as account:
        send()
    assert profiler.profiles.failures == 1
    with work(profiler) as account:
        pass
    token = current_account.set(account.outlasting())
    send()
    current_account.reset(token)
    assert profiler.profiles.failures == 2
    with work(profiler) as account:
        monkeypatch.setattr(f"{RequestQueries.__module__}.normalised", fails)
        send()
        assert account.profile.count == 0
    assert profiler.profiles.failures == 4
    assert len(caplog.records) == 1
    assert "not to be counted" in caplog.text


# ---- bounds


def test_of_one_request_a_hundred_statements_are_kept_apart() -> None:
    """The others are counted together, and are not taken for one that is repeated."""
    profiler = Profiler()
    with work(profiler) as account:
        for number in range(1_000):
            send(f"SELECT {name(number)}")
        assert size_of(account.profile, without=(profiler, profiler.profiles)) < 100_000
    figures = profiler.endpoints["GET /a"]
    counts = {row["statement"]: row["count"] for row in figures["statements"]}
    assert (figures["count"], len(counts), counts["<overflow>"]) == (1_000, 101, 900)
    assert figures["n_plus_one"] == []


def name(number: int) -> str:
    """A name without digits for each number."""
    return "c" + "".join(string.ascii_letters[int(digit)] for digit in str(number))


@pytest.mark.parametrize("max_bytes", [50_000, 1_000_000])
@pytest.mark.parametrize("flood", ["statements", "endpoints", "both"])
def test_the_statistics_have_their_bound(flood: str, max_bytes: int) -> None:
    """Whatever comes, no more memory is taken, and every query is counted."""
    statistics = QueryStatistics(max_bytes)
    profiler = Profiler()
    profiler.profiles.queries = statistics
    numbers = random.Random(1)
    for number in range(4_000):
        some = numbers.randrange(5_000)
        endpoint = "/a" if flood == "statements" else f"/{some}"
        with work(profiler, endpoint):
            for each in range(5):
                send("SELECT a" if flood == "endpoints" else f"SELECT {name(number)}{'x' * 300}")
                if each == 0:
                    send(f"SELECT {name(some)} FROM {'y' * numbers.randrange(1_000)}")
    told = statistics.statistics()
    assert sum(figures["count"] for figures in told.values()) == 24_000
    lines = [row[1] for each in statistics._endpoints.values() for row in each.repeated]
    assert size_of(statistics, without=(statistics.lock, statistics.sending, *lines)) <= max_bytes
    if flood != "statements":
        assert told["<overflow>"]["count"] > 0
    if flood != "endpoints":
        overflowed = [
            row
            for each in told.values()
            for row in each["statements"]
            if row["statement"] == "<overflow>"
        ]
        assert overflowed


def test_fewer_bytes_leave_what_took_longest(clock: Clock) -> None:
    """The others are counted together; when not even the endpoints have room, all begins anew."""
    profiler = Profiler()
    with work(profiler):
        for number in range(50):
            send(f"SELECT {name(number)}", seconds=number)
    statistics = profiler.profiles.queries
    statistics.resize(1_400 + 200 + 10 * 800)
    figures = profiler.endpoints["GET /a"]
    assert figures["count"] == 50
    assert figures["time"] == sum(range(50))
    times = [row["time"] for row in figures["statements"] if row["statement"] != "<overflow>"]
    assert times == list(range(49, 49 - len(times), -1))
    assert 8 <= len(times) <= 12
    statistics.resize(100)
    assert profiler.endpoints == {}


def test_reset_begins_anew() -> None:
    """Of a request in flight, what is told of later."""
    profiler = Profiler()
    with work(profiler):
        send()
    with work(profiler):
        send()
        reset_profile_stats(profiles=profiler.profiles)
        assert profiler.endpoints == {}
    assert profiler.endpoints["GET /a"]["count"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_begins_anew() -> None:
    """With no figures, and with locks of its own, though the parent's are held by a thread that is not there."""
    profiler = Profiler()
    with work(profiler):
        send()
    queries = profiler.profiles.queries
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with queries.lock, queries.sending:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            begun_anew = profiler.endpoints == {}
            with work(profiler):
                send()
            code = 0 if begun_anew and profiler.endpoints["GET /a"]["count"] == 1 else 2
        finally:
            os._exit(code)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert profiler.endpoints["GET /a"]["count"] == 1


def test_what_requests_in_flight_have_sent_is_bounded(run: Run) -> None:
    """All together; what has no room is counted for the overflow, and room comes back with the end of a request."""
    profiles = Profiles()
    statistics = profiles.queries
    connection = profile_connection(sqlite3.connect(":memory:"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number in range(90):
            connection.execute(f"SELECT 1 AS {scope['path'][1:]}_{number * '_'}")
        taken.append(statistics.in_flight_bytes)
        while len(taken) < 20:
            await checkpoint()

    taken: list[int] = []

    async def main() -> None:
        wrapped = ProfilingMiddleware(app, profiles=profiles, max_memory=1 << 20)
        await together(
            *(
                lambda number=number: wrapped(http_scope(f"/{chr(97 + number)}"), None, None)
                for number in range(20)
            )
        )

    run(main)
    room = (1 << 20) * 4 // 16 // 2
    assert room * 0.9 < max(taken) <= room
    assert statistics.in_flight_bytes == 0
    found = get_profile_stats(profiles=profiles)["queries"]
    assert sum(each["count"] for each in found.values()) == 20 * 90
    connection.close()
