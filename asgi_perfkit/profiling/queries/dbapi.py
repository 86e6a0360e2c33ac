"""profile_connection(): connections of DB-API drivers."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from asgi_perfkit.exceptions import ConfigurationTypeError

__all__ = ["profile_connection"]

Connection = TypeVar("Connection")


def profile_connection(connection: Connection) -> Connection:
    """Count the queries of a connection of sqlite3 or psycopg 3, sync or async, for the requests that send them.

    Call it once the connection is made, and use what it returns from then on: that is the connection itself, or, for
    one of `sqlite3`, an object that stands in for it. Calling it again changes nothing.

    :raises ConfigurationTypeError: `connection` is of another kind.
    """
    # A driver that has made a connection has been imported.
    sqlite3: Any = sys.modules.get("sqlite3")
    if sqlite3 is not None and isinstance(connection, sqlite3.Connection):
        from asgi_perfkit.profiling.queries.sqlite import profile_sqlite

        return profile_sqlite(connection)  # type: ignore[no-any-return]
    psycopg: Any = sys.modules.get("psycopg")
    if psycopg is not None and isinstance(
        connection, (psycopg.Connection, psycopg.AsyncConnection)
    ):
        from asgi_perfkit.profiling.queries.psycopg import profile_psycopg

        return profile_psycopg(  # type: ignore[no-any-return]
            connection, isinstance(connection, psycopg.AsyncConnection)
        )
    raise ConfigurationTypeError(
        "profile_connection(connection)",
        connection,
        "give a connection of sqlite3 or of psycopg 3 (sync or async). For SQLAlchemy there is profile_engine, for "
        "Django django_query_wrapper, for asyncpg asyncpg_query_logger.",
    )
