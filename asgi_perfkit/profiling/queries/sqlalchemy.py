"""profile_engine(): engines of SQLAlchemy."""

from __future__ import annotations

import sys
from time import perf_counter_ns
from typing import Any, TypeVar

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.profiling.queries.record import profiled_account, record_query, times_of
from asgi_perfkit.profiling.queries.statements import MySQL

__all__ = ["profile_engine"]

Engine = TypeVar("Engine")


def profile_engine(engine: Engine) -> Engine:
    """Count the queries of an engine of SQLAlchemy, sync or async, for the requests that send them.

    :return: the engine itself. Calling it again changes nothing.
    :raises ConfigurationTypeError: `engine` is none.
    """
    # Who has made an engine has imported it.
    sqlalchemy: Any = sys.modules.get("sqlalchemy")
    sync_engine: Any = getattr(engine, "sync_engine", engine)
    if sqlalchemy is None or not isinstance(sync_engine, sqlalchemy.engine.Engine):
        raise ConfigurationTypeError(
            "profile_engine(engine)",
            engine,
            "give what create_engine or create_async_engine of SQLAlchemy has made.",
        )
    for name, listener in _LISTENERS.items():
        sqlalchemy.event.listen(sync_engine, name, listener)  # which it does once for each
    return engine


def _before(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    if context is not None:
        context.asgi_perfkit_sent_ns = 0 if profiled_account() is None else perf_counter_ns()


def _after(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    sent_ns = getattr(context, "asgi_perfkit_sent_ns", 0)
    if sent_ns:
        context.asgi_perfkit_sent_ns = 0
        rows = getattr(cursor, "rowcount", None)
        record_query(
            _in_dialect(connection.dialect, statement),
            sent_ns,
            rows if isinstance(rows, int) and rows >= 0 else None,
            times_of(parameters) if executemany else 1,
        )


def _failed(failure: Any) -> None:
    sent_ns = getattr(failure.execution_context, "asgi_perfkit_sent_ns", 0)
    if sent_ns:
        failure.execution_context.asgi_perfkit_sent_ns = 0
        record_query(_in_dialect(failure.dialect, failure.statement), sent_ns, failed=True)


def _in_dialect(dialect: Any, statement: str) -> str:
    # Which quotes names so, quotes values as MySQL does: it, its kin, BigQuery, Hive.
    is_kin = (
        dialect.name in {"mysql", "mariadb"} or dialect.identifier_preparer.initial_quote == "`"
    )
    return MySQL(statement) if is_kin else statement


_LISTENERS = {
    "before_cursor_execute": _before,
    "after_cursor_execute": _after,
    "handle_error": _failed,
}
