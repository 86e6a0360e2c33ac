"""Connections of drivers that are profiled: they do what they did, and their queries are counted."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg.rows
import pytest
from psycopg import sql

from asgi_perfkit import PerfKit, Profiles, get_profile_stats, run_in_threadpool
from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.profiling.queries.dbapi import profile_connection
from tests.conftest import Run
from tests.profiling.postgres import Postgres
from tests.profiling.serving import queries_of
from tests.support import BODY, START, Server, checkpoint, http_scope, together


class OwnConnection(sqlite3.Connection):
    """A class of somebody's own."""

    def double(self, number: int) -> int:
        return self.execute("SELECT 2 * ?", (number,)).fetchone()[0]


class CountingConnection(OwnConnection):
    """Changes what there is."""

    executed = 0

    def execute(self, *args: Any) -> Any:
        self.executed += 1
        return super().execute(*args)


class OwnCursor(sqlite3.Cursor):
    def only(self) -> Any:
        (row,) = self.fetchall()
        return row


def open_sqlite(factory: Any = sqlite3.Connection) -> Any:
    raw = sqlite3.connect(
        ":memory:", factory=factory, isolation_level=None, check_same_thread=False
    )
    raw.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
    raw.executemany("INSERT INTO t VALUES (?, ?)", [(number, f"b{number}") for number in range(10)])
    return profile_connection(raw)


@pytest.fixture(params=[sqlite3.Connection, OwnConnection])
def sqlite(request: pytest.FixtureRequest) -> Iterator[Any]:
    connection = open_sqlite(request.param)
    with contextlib.closing(connection):
        yield connection


# ---- sqlite3


def test_the_queries_of_sqlite(run: Run, sqlite: Any) -> None:
    """What each way to send one counts: queries, executions, errors, and the rows where the driver knows of them."""

    async def handler() -> None:
        assert sqlite.execute("SELECT a FROM t WHERE a < ?", (3,)).fetchall() == [(0,), (1,), (2,)]
        cursor = sqlite.cursor()
        assert cursor.execute("SELECT b FROM t ORDER BY a LIMIT 4") is cursor
        assert cursor.fetchone() == ("b0",)
        assert cursor.fetchmany(size=2) == [("b1",), ("b2",)]
        assert list(cursor) == [("b3",)]  # one by one they are not seen
        assert cursor.fetchone() is None
        assert sqlite.execute("UPDATE t SET b = 'x' WHERE a > 5").rowcount == 4
        sqlite.executemany("INSERT INTO t (b) VALUES (?)", [("y",)] * 3)
        cursor.executemany("DELETE FROM t WHERE b = ?", iter([("y",), ("x",)]))
        sqlite.executescript("SELECT 1; SELECT 2;")
        with pytest.raises(sqlite3.OperationalError, match="no such table: u") as caught:
            sqlite.execute("SELECT a FROM u")
        assert caught.value.__context__ is None

    queries = run(queries_of, handler)
    assert queries.statements("count", "executions", "errors", "rows") == {
        "SELECT a FROM t WHERE a < ?": (1, 1, 0, 3),
        "SELECT b FROM t ORDER BY a LIMIT ?": (1, 1, 0, 3),
        "UPDATE t SET b = ? WHERE a > ?": (1, 1, 0, 4),
        "INSERT INTO t (b) VALUES (?)": (1, 3, 0, 3),
        "DELETE FROM t WHERE b = ?": (1, 1, 0, 7),
        "SELECT ?; SELECT ?;": (1, 1, 0, None),
        "SELECT a FROM u": (1, 1, 1, None),
    }
    assert queries.metrics["query_count"]["sum"] == 7
    assert queries.metrics["query_time"]["sum"] == pytest.approx(queries.figures["time"])
    assert queries.lines()["SELECT a FROM u"] == 'sqlite.execute("SELECT a FROM u")'


def test_a_profiled_connection_is_one(sqlite: Any) -> None:
    """To `isinstance`, by its attributes, as a context manager, to itself: as the one that it is or stands for."""
    assert isinstance(sqlite, sqlite3.Connection)
    assert profile_connection(sqlite) is sqlite
    assert sqlite == sqlite  # noqa: PLR0124
    assert len({sqlite, profile_connection(sqlite)}) == 1
    assert "sqlite3.Connection object" in repr(sqlite) or "OwnConnection object" in repr(sqlite)
    assert {"cursor", "commit", "row_factory"} <= set(dir(sqlite))
    sqlite.row_factory = sqlite3.Row
    cursor = sqlite.cursor()
    assert isinstance(cursor, sqlite3.Cursor)
    assert type(cursor).__name__ == "Cursor"
    assert cursor.execute("SELECT a AS x FROM t").fetchone()["x"] == 0
    sqlite.row_factory = None
    assert sqlite.cursor(OwnCursor).execute("SELECT 5").only() == (5,)
    assert isinstance(sqlite.cursor(factory=OwnCursor), OwnCursor)
    assert isinstance(sqlite.cursor(lambda connection: OwnCursor(connection)), OwnCursor)  # noqa: PLW0108
    with pytest.raises(TypeError):
        sqlite.cursor(5)
    with pytest.raises(AttributeError, match="nothing"):
        sqlite.nothing  # noqa: B018
    sqlite.isolation_level = "DEFERRED"
    with pytest.raises(RuntimeError), sqlite as entered:  # noqa: PT012
        assert entered is sqlite
        sqlite.execute("DELETE FROM t")
        assert sqlite.in_transaction
        raise RuntimeError
    assert sqlite.execute("SELECT count(*) FROM t").fetchone() == (10,)
    with contextlib.closing(sqlite3.connect(":memory:")) as target:
        sqlite.backup(target)
        assert target.execute("SELECT count(*) FROM t").fetchone() == (10,)
    with contextlib.closing(open_sqlite()) as target:
        sqlite.backup(target)
    assert any("INSERT INTO" in line for line in sqlite.iterdump())


def test_a_closed_connection_says_so(sqlite: Any) -> None:
    sqlite.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        sqlite.execute("SELECT 1")


def test_what_a_class_of_ones_own_does_goes_on(run: Run) -> None:
    """Its methods are called, and what they send is counted once."""
    connection = open_sqlite(CountingConnection)
    assert type(connection).__name__ == "CountingConnection"
    executed = connection.executed

    async def handler() -> None:
        assert connection.double(4) == 8

    queries = run(queries_of, handler)
    assert connection.executed == executed + 1
    assert queries.statements("count", "rows") == {"SELECT ? * ?": (1, 1)}
    connection.close()


@pytest.mark.parametrize("child", [False, True])
def test_child_tasks_and_threads_of_a_request(run: Run, sqlite: Any, child: bool) -> None:
    """What they send is the request's."""

    def in_thread() -> None:
        for _ in range(5):
            sqlite.execute("SELECT 'in a thread'")

    async def handle() -> None:
        await checkpoint()
        await run_in_threadpool(in_thread)
        for _ in range(5):
            await checkpoint()
            sqlite.execute("SELECT 5 + 5")

    async def handler() -> None:
        await (together(handle) if child else handle())

    queries = run(queries_of, handler)
    assert queries.figures["count"] == 10
    assert sorted(queries.repeated()) == [
        ("SELECT ?", "sqlite.execute(\"SELECT 'in a thread'\")"),
        ("SELECT ? + ?", 'sqlite.execute("SELECT 5 + 5")'),
    ]


def through_the_kit(function: Any, *args: Any) -> Any:
    return run_in_threadpool(function, *args)


def through_asgiref(function: Any, *args: Any) -> Any:
    from asgiref.sync import sync_to_async

    return sync_to_async(function)(*args)


def through_anyio(function: Any, *args: Any) -> Any:
    import anyio.to_thread

    return anyio.to_thread.run_sync(function, *args)


@pytest.mark.parametrize(
    "hop", [through_the_kit, asyncio.to_thread, through_asgiref, through_anyio]
)
@pytest.mark.parametrize("child", [False, True])
def test_the_line_of_who_waits_for_a_thread(
    run_asyncio: Run, sqlite: Any, hop: Any, child: bool
) -> None:
    """Where no frame in the thread is the app's, it is the line that waits for the thread, in child tasks too."""

    async def handle() -> None:
        for _ in range(5):
            await hop(sqlite.execute, "SELECT 1")

    async def handler() -> None:
        await (asyncio.create_task(handle()) if child else handle())

    queries = run_asyncio(queries_of, handler)
    assert queries.repeated() == [("SELECT ?", 'await hop(sqlite.execute, "SELECT 1")')]


def test_generators_have_lines_of_their_own(run: Run, sqlite: Any) -> None:
    """The line of a generator that sends is told, and not that of who iterates."""

    def rows() -> Iterator[Any]:
        for _ in range(5):
            yield sqlite.execute("SELECT 'of a generator'")

    async def handler() -> None:
        for _ in rows():
            pass

    assert run(queries_of, handler).repeated() == [
        ("SELECT ?", "yield sqlite.execute(\"SELECT 'of a generator'\")")
    ]


def test_the_line_is_never_that_of_the_server(run: Run) -> None:
    """Where no frame of the request is the app's, what has called the app is not taken for it."""
    profiles = Profiles()
    names: dict[str, Any] = {"connection": open_sqlite(), "START": START, "BODY": BODY}
    exec(  # its file is no file
        "async def app(scope, receive, send):\n"
        "    connection.execute('SELECT 1')\n"
        "    await send(START)\n"
        "    connection.execute('SELECT 1, 2')\n"
        "    await send(BODY)\n",
        names,
    )

    async def main() -> None:
        server = Server()
        app = PerfKit(names["app"], profiling={"profiles": profiles})
        await app(http_scope("/a"), server.receive, server.send)

    run(main)
    names["connection"].close()
    rows = get_profile_stats(profiles=profiles)["queries"]["GET /a"]["statements"]
    assert [(row["count"], row["file"], row["line"]) for row in rows] == [(1, None, None)] * 2


def test_without_a_request_nothing_is_counted(sqlite: Any) -> None:
    """Nor in a thread that no request has started."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(sqlite.execute("SELECT 5").fetchall()))
    thread.start()
    thread.join()
    assert found == sqlite.execute("SELECT 5").fetchall() == [(5,)]


# ---- psycopg


def test_the_queries_of_psycopg(run: Run, postgres: Postgres) -> None:
    """Its connection stays the same object; composed statements and streams are seen, and no value of theirs."""
    with psycopg.connect(
        postgres.url, autocommit=True, row_factory=psycopg.rows.dict_row
    ) as connection:
        assert profile_connection(connection) is connection
        factory = connection.cursor_factory
        assert profile_connection(connection).cursor_factory is factory

        async def handler() -> None:
            assert connection.execute("SELECT %s + 1 AS a", (5,)).fetchone() == {"a": 6}
            with connection.cursor() as cursor:
                assert isinstance(cursor, psycopg.Cursor)
                assert repr(cursor).startswith("<psycopg.Cursor")
                cursor.executemany("SELECT %s::int", [(1,), (2,)])
                streamed = list(cursor.stream("SELECT a FROM generate_series(1, %s) a", (3,)))
                assert [row["a"] for row in streamed] == [1, 2, 3]
            name = sql.Identifier("u v")
            with pytest.raises(psycopg.errors.UndefinedTable):
                connection.execute(sql.SQL("SELECT a FROM {} WHERE b = {}").format(name, "secret"))
            with connection.transaction(), connection.cursor("named") as cursor:
                cursor.execute("SELECT a FROM generate_series(1, 9) a")
                assert len(cursor.fetchmany(4)) == 4
            for _ in range(5):
                connection.execute(b"SELECT 'bytes'")

        queries = run(queries_of, handler)
    assert queries.statements("count", "executions", "errors", "rows") == {
        "SELECT ? + ? AS a": (1, 1, 0, 1),
        "SELECT ?::int": (1, 2, 0, 2),
        "SELECT a FROM generate_series(?, ?) a": (2, 2, 0, 3),
        'SELECT a FROM "u v" WHERE b = ?': (1, 1, 1, None),
        "SELECT ?": (5, 5, 0, 5),
    }
    assert queries.repeated() == [("SELECT ?", "connection.execute(b\"SELECT 'bytes'\")")]


def test_the_queries_of_psycopg_async(run_asyncio: Run, postgres: Postgres) -> None:
    """As those of its sync connections, and from a child task."""

    async def main() -> Any:
        connection = await psycopg.AsyncConnection.connect(postgres.url, autocommit=True)
        assert profile_connection(connection) is connection

        async def handle() -> None:
            async with connection.cursor() as cursor:
                for number in range(5):
                    await cursor.execute("SELECT %s + 1", (number,))
                    assert await cursor.fetchone() == (number + 1,)
                await cursor.executemany("SELECT %s::int", [(1,), (2,)])
                streamed = [
                    row async for row in cursor.stream("SELECT a FROM generate_series(1, 3) a")
                ]
                assert streamed == [(1,), (2,), (3,)]
            with pytest.raises(psycopg.errors.UndefinedTable):
                await connection.execute("SELECT a FROM u")

        async with connection:
            return await queries_of(lambda: together(handle))

    queries = run_asyncio(main)
    assert queries.statements("count", "executions", "errors", "rows") == {
        "SELECT ? + ?": (5, 5, 0, 5),
        "SELECT ?::int": (1, 2, 0, 2),
        "SELECT a FROM generate_series(?, ?) a": (1, 1, 0, 3),
        "SELECT a FROM u": (1, 1, 1, None),
    }
    assert queries.repeated() == [
        ("SELECT ? + ?", 'await cursor.execute("SELECT %s + 1", (number,))')
    ]


def test_a_stream_that_is_left(run: Run, postgres: Postgres) -> None:
    """It counts with the rows that were taken, and is no error; one that fails is."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        profile_connection(connection)

        async def handler() -> None:
            with connection.cursor() as cursor:
                rows = cursor.stream("SELECT a FROM generate_series(1, 100) a")
                assert next(rows) == (1,)
                rows.close()
                with pytest.raises(psycopg.errors.DivisionByZero):
                    list(cursor.stream("SELECT 1 / (3 - a) FROM generate_series(1, 100) a"))

        queries = run(queries_of, handler)
    assert queries.statements("rows", "errors") == {
        "SELECT a FROM generate_series(?, ?) a": (1, 0),
        "SELECT ? / (? - a) FROM generate_series(?, ?) a": (2, 1),
    }


@pytest.mark.parametrize("connection", [None, 5, object(), "sqlite://"])
def test_a_connection_of_an_unknown_kind(connection: Any) -> None:
    """What there is for others is said."""
    with pytest.raises(ConfigurationTypeError, match="sqlite3 or of psycopg 3") as caught:
        profile_connection(connection)
    assert caught.value.value is connection


def test_a_cursor_that_has_sent_nothing(sqlite: Any) -> None:
    """It may be fetched from, as any other."""
    cursor = sqlite.cursor()
    assert (cursor.fetchone(), cursor.fetchmany(2), cursor.fetchall()) == (None, [], [])


class WithSlots(sqlite3.Connection):
    __slots__ = ()


class CountsCursors(sqlite3.Connection):
    made = 0

    def cursor(self, *arguments: Any) -> Any:
        CountsCursors.made += 1
        return super().cursor(*arguments)


def test_a_class_of_ones_own_is_used_as_sqlite3_uses_it() -> None:
    """One with slots can be profiled; its `cursor` is called where sqlite3 calls it, and nowhere else."""
    profiled = profile_connection(sqlite3.connect(":memory:", factory=WithSlots))
    assert profiled.execute("SELECT 1").fetchone() == (1,)
    profiled.close()
    counts = []
    for change in (lambda connection: connection, profile_connection):
        CountsCursors.made = 0
        connection = change(sqlite3.connect(":memory:", factory=CountsCursors))
        connection.execute("CREATE TABLE t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
        connection.executescript("SELECT 1")
        connection.cursor()
        counts.append(CountsCursors.made)
        connection.close()
    assert counts[0] == counts[1]


def test_a_connection_is_no_more_copied_than_a_real_one(sqlite: Any) -> None:
    with pytest.raises(TypeError):
        copy.copy(sqlite)
    with pytest.raises(TypeError):
        pickle.dumps(sqlite)
