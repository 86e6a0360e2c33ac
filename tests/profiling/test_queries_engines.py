"""SQLAlchemy, Django and asyncpg: what their own hooks tell of queries, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import django
import pytest
import sqlalchemy
from asgiref.sync import sync_to_async
from django.conf import settings
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine

from asgi_perfkit import run_in_threadpool
from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.profiling.queries.asyncpg import asyncpg_query_logger
from asgi_perfkit.profiling.queries.django import django_query_wrapper
from asgi_perfkit.profiling.queries.sqlalchemy import profile_engine
from tests.conftest import Run
from tests.profiling.postgres import Postgres
from tests.profiling.serving import queries_of
from tests.support import together

# ---- SQLAlchemy


def url_of(database: str, request: pytest.FixtureRequest) -> str:
    name, driver = database.split("+")
    if name == "sqlite":
        return f"{database}://"
    server: Postgres = request.getfixturevalue("postgres")
    return server.sqlalchemy_url(driver)


CREATE = "CREATE TEMPORARY TABLE t (a INTEGER PRIMARY KEY, b VARCHAR)"
T = sqlalchemy.table("t", sqlalchemy.column("a"), sqlalchemy.column("b"))


def check_sqlalchemy(queries: Any, rows: int | None, line: str) -> None:
    """The figures of what both tests below send, which differ by dialect in how they are written."""
    counts = {
        text.partition("(")[0]: figures
        for text, figures in queries.statements("count", "executions", "errors", "rows").items()
    }
    assert counts["SELECT t.a, t.b FROM t WHERE t.a = ?" + cast_of(queries)] == (5, 5, 0, rows)
    assert counts["INSERT INTO t "][:3] == (1, 3, 0)
    assert counts["SELECT x FROM nowhere"][:3] == (1, 1, 1)
    assert [text for _, text in queries.repeated()] == [line]


def cast_of(queries: Any) -> str:
    (text,) = (text for text in queries.lines() if text.startswith("SELECT t.a"))
    return text.rpartition("?")[2]


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("database", ["sqlite+pysqlite", "postgresql+psycopg"])
def test_an_engine(
    request: pytest.FixtureRequest, run: Run, database: str, in_thread: bool
) -> None:
    """Its queries are counted for the request, from a worker thread of it as well, by the line that sends them."""
    options = {"connect_args": {"check_same_thread": False}} if "sqlite" in database else {}
    engine = sqlalchemy.create_engine(
        url_of(database, request), poolclass=pool.StaticPool, **options
    )
    assert profile_engine(engine) is engine
    profile_engine(engine)  # which is not to count them twice
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(CREATE))
        connection.commit()

    def work() -> None:
        with engine.connect() as connection:
            connection.execute(T.insert(), [{"a": a, "b": "x"} for a in range(3)])
            connection.commit()
            for a in range(5):
                connection.execute(T.select().where(T.c.a == a)).all()
            with pytest.raises(sqlalchemy.exc.DBAPIError):
                connection.execute(sqlalchemy.text("SELECT x FROM nowhere"))

    async def handler() -> None:
        await run_in_threadpool(work) if in_thread else work()

    try:
        queries = run(queries_of, handler)
    finally:
        engine.dispose()
    line = "connection.execute(T.select().where(T.c.a == a)).all()"
    check_sqlalchemy(queries, None if "sqlite" in database else 3, line)


@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize(
    "database", ["sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"]
)
def test_an_async_engine(
    request: pytest.FixtureRequest, run_asyncio: Run, database: str, child: bool
) -> None:
    """Its drivers run in greenlets, and the line is that of the coroutine that waits for them."""

    async def main() -> Any:
        engine = create_async_engine(url_of(database, request), poolclass=pool.StaticPool)
        assert profile_engine(engine) is engine
        async with engine.connect() as connection:
            await connection.execute(sqlalchemy.text(CREATE))
            await connection.commit()

        async def handle() -> None:
            async with engine.connect() as connection:
                await connection.execute(T.insert(), [{"a": a, "b": "x"} for a in range(3)])
                await connection.commit()
                for a in range(5):
                    (await connection.execute(T.select().where(T.c.a == a))).all()
                with pytest.raises(sqlalchemy.exc.DBAPIError):
                    await connection.execute(sqlalchemy.text("SELECT x FROM nowhere"))

        try:
            return await queries_of(lambda: together(handle) if child else handle())
        finally:
            await engine.dispose()

    queries = run_asyncio(main)
    line = "(await connection.execute(T.select().where(T.c.a == a))).all()"
    check_sqlalchemy(queries, None if "sqlite" in database else 3, line)


def test_savepoints_of_sqlalchemy_are_one_statement(run: Run) -> None:
    """It numbers them, and they are not taken for something that is repeated."""
    engine = profile_engine(sqlalchemy.create_engine("sqlite://"))

    async def handler() -> None:
        with engine.connect() as connection:
            for _ in range(6):
                with connection.begin_nested():
                    pass

    queries = run(queries_of, handler)
    engine.dispose()
    assert queries.statements("count") == {"SAVEPOINT ?": 6, "RELEASE SAVEPOINT ?": 6}
    assert queries.repeated() == []


@pytest.mark.parametrize("engine", [None, 5, "sqlite://", sqlalchemy])
def test_what_is_no_engine(engine: Any) -> None:
    with pytest.raises(ConfigurationTypeError, match="create_async_engine"):
        profile_engine(engine)


# ---- Django


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def item(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model of Django's, with six rows in a database whose connections are profiled."""
    if not settings.configured:
        settings.configure(LOGGING_CONFIG=None, SECRET_KEY="secret", USE_TZ=True)
    django.setup()
    from django.db import connections, models
    from django.db.backends.signals import connection_created
    from django.test.utils import isolate_apps

    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("django")
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "db"}
    else:
        server: Postgres = request.getfixturevalue("postgres")
        database = {
            "ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": server.port,
            "NAME": "postgres", "USER": "postgres",
        }  # fmt: skip
    alias = f"queries_{request.param}"
    connections.settings[alias] = connections.configure_settings(
        {**connections.settings, alias: database}
    )[alias]
    with isolate_apps():

        class Item(models.Model):
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "queries"

        connection_created.connect(django_query_wrapper.install)
        with connections[alias].schema_editor() as editor:
            editor.create_model(Item)
        Item.objects.using(alias).bulk_create([Item(pk=n, name=str(n)) for n in range(1, 7)])
        yield Item.objects.using(alias)
        connection_created.disconnect(django_query_wrapper.install)
        connections[alias].close()


SELECT = 'SELECT "queries_item"."id", "queries_item"."name" FROM "queries_item"'


def close_connection(item: Any) -> None:
    from django.db import connections

    connections[item.db].close()


def test_the_queries_of_django(run_asyncio: Run, item: Any) -> None:
    """Those of a sync view in a thread of its own, where Django makes a new connection; each is wrapped once."""
    from django.db import DatabaseError, connections, transaction

    def view() -> None:
        for _ in range(2):
            close_connection(item)
            for pk in range(1, 4):
                assert item.get(pk=pk).name == str(pk)
        for _ in range(5):
            with transaction.atomic(using=item.db), transaction.atomic(using=item.db):
                pass
        with pytest.raises(DatabaseError), connections[item.db].cursor() as cursor:
            cursor.execute("SELECT x FROM nowhere WHERE y = 'secret'")
        with connections[item.db].cursor() as cursor:
            cursor.executemany("UPDATE queries_item SET name = name WHERE id = %s", [(1,), (2,)])
        close_connection(item)

    async def handler() -> None:
        await sync_to_async(view)()

    queries = run_asyncio(queries_of, handler)
    counts = queries.statements("count", "executions", "errors")
    assert counts[f'{SELECT} WHERE "queries_item"."id" = ? LIMIT ?'] == (6, 6, 0)
    assert counts["SELECT x FROM nowhere WHERE y = ?"] == (1, 1, 1)
    assert counts["UPDATE queries_item SET name = name WHERE id = ?"] == (1, 2, 0)
    assert counts["SAVEPOINT ?"] == counts["RELEASE SAVEPOINT ?"] == (5, 5, 0)
    assert [text for _, text in queries.repeated()] == ["assert item.get(pk=pk).name == str(pk)"]


@pytest.mark.parametrize("child", [False, True])
def test_the_async_queries_of_django(run_asyncio: Run, item: Any, child: bool) -> None:
    """Django runs them in a thread where nothing is the app's: the line is that of the view that waits."""

    async def view() -> None:
        for pk in range(1, 6):
            await item.aget(pk=pk)
        async for found in item.all():
            await item.filter(pk=found.pk, name="x").aexists()
        await sync_to_async(close_connection)(item)

    async def handler() -> None:
        await (asyncio.create_task(view()) if child else view())

    queries = run_asyncio(queries_of, handler)
    lines = {text for _, text in queries.repeated()}
    assert lines == {
        "await item.aget(pk=pk)",
        'await item.filter(pk=found.pk, name="x").aexists()',
    }


def test_a_connection_of_django_alone(run_asyncio: Run, item: Any) -> None:
    """What the signal installs may be put around a block by hand, too; it stays in place once."""
    from django.db import connections

    def view() -> None:
        connection = connections[item.db]
        connection.ensure_connection()
        assert connection.execute_wrappers.count(django_query_wrapper) == 1
        django_query_wrapper.install(None, connection)
        assert connection.execute_wrappers.count(django_query_wrapper) == 1
        connection.execute_wrappers.clear()
        with connection.execute_wrapper(django_query_wrapper):
            item.count()
        item.count()
        connection.close()

    async def handler() -> None:
        await sync_to_async(view)()

    assert run_asyncio(queries_of, handler).figures["count"] == 1


# ---- asyncpg


@pytest.mark.parametrize("child", [False, True])
def test_the_queries_of_asyncpg(run_asyncio: Run, postgres: Postgres, child: bool) -> None:
    """By a logger, set once for each connection of a pool; errors, many executions, prepared ones, the line."""

    async def initialise(connection: Any) -> None:
        connection.add_query_logger(asyncpg_query_logger)

    async def main() -> Any:
        async with asyncpg.create_pool(postgres.url, init=initialise, min_size=1) as connections:

            async def handle() -> None:
                async with connections.acquire() as connection:
                    for number in range(5):
                        assert await connection.fetchval("SELECT $1::int + 1", number) == number + 1
                with pytest.raises(asyncpg.UndefinedTableError):
                    await connections.execute("SELECT x FROM nowhere WHERE y = 'secret'")
                await connections.executemany("SELECT $1::int", [(1,), (2,), (3,)])
                async with connections.acquire() as connection:
                    statement = await connection.prepare("SELECT $1::text")
                    assert await statement.fetchval("secret") == "secret"

            return await queries_of(lambda: together(handle) if child else handle())

    queries = run_asyncio(main)
    counts = queries.statements("count", "executions", "errors")
    assert counts["SELECT ?::int + ?"] == (5, 5, 0)
    assert counts["SELECT x FROM nowhere WHERE y = ?"] == (1, 1, 1)
    assert counts["SELECT ?::int"] == (1, 3, 0)
    assert 0 < queries.figures["slowest"] <= queries.figures["time"] < 10
    line = 'assert await connection.fetchval("SELECT $1::int + 1", number) == number + 1'
    assert ("SELECT ?::int + ?", line) in queries.repeated()


def test_a_logger_of_asyncpg_leaves_no_task_behind(run_asyncio: Run, postgres: Postgres) -> None:
    """What asyncpg makes a task of has nothing to do, outside of requests too."""

    async def main() -> int:
        connection = await asyncpg.connect(postgres.url)
        connection.add_query_logger(asyncpg_query_logger)
        assert await connection.fetchval("SELECT 5") == 5
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        connection.remove_query_logger(asyncpg_query_logger)
        await connection.close()
        return len(asyncio.all_tasks())

    assert run_asyncio(main) == 1
