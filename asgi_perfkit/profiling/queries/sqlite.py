"""Connections of :mod:`sqlite3`.

The class of one that is a plain `sqlite3.Connection` cannot be changed, so another object stands in for it, and is one
to ``isinstance``. One of a class of somebody's own stays what it is, and gets a subclass of that as its class. Either
way the cursors are real ones, of a subclass.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from functools import lru_cache
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from asgi_perfkit.profiling.queries.record import profiled_account, record_query, times_of

__all__ = ["profile_sqlite"]


def profile_sqlite(connection: Any) -> Any:
    """What to use in place of `connection`; see :func:`profile_connection`."""
    kind: Any = type(connection)
    if kind is sqlite3.Connection:
        return ProfiledConnection(connection)
    if kind is not ProfiledConnection and not issubclass(kind, _ProfiledSubclass):
        connection.__class__ = _subclass_of(kind)
    return connection


@lru_cache(64)
def _subclass_of(kind: Any) -> type:
    names = {"__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind, _ProfiledSubclass), names)


class _ProfiledSubclass(sqlite3.Connection):
    """Comes behind a class of somebody's own, and before what that is made of."""

    __slots__ = ()  # or a class with slots could not be left for one of these

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        return super().cursor(_profiled(factory))

    def execute(self, sql: str, *parameters: Any) -> Any:
        return self._own_cursor().execute(sql, *parameters)

    def executemany(self, sql: str, *parameters: Any) -> Any:
        return self._own_cursor().executemany(sql, *parameters)

    def executescript(self, sql: str) -> Any:
        return self._own_cursor().executescript(sql)

    if sys.version_info >= (3, 11):

        def _own_cursor(self) -> Any:
            return super().cursor(_CURSOR)

    else:  # asks the class that somebody has made of it

        def _own_cursor(self) -> Any:
            return self.cursor()

    def backup(self, target: Any, **options: Any) -> None:
        super().backup(_real(target), **options)


class ProfiledConnection:
    """Stands in for a `sqlite3.Connection`."""

    __slots__ = ("__weakref__", "_connection", "_execute", "_new_cursor")

    _connection: sqlite3.Connection
    _execute: Callable[..., Any]
    _new_cursor: Callable[..., Any]

    def __init__(self, connection: sqlite3.Connection) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_new_cursor", connection.cursor)
        object.__setattr__(self, "_execute", connection.execute)

    @property  # type: ignore[misc]  # the class is told to isinstance, and cannot be set
    def __class__(self) -> Any:
        return sqlite3.Connection

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        return self._new_cursor(_profiled(factory))

    def execute(self, sql: str, *parameters: Any) -> Any:
        if profiled_account() is None:
            return self._execute(sql, *parameters)
        return self._new_cursor(_CURSOR).execute(sql, *parameters)

    def executemany(self, sql: str, *parameters: Any) -> Any:
        return self._new_cursor(_CURSOR).executemany(sql, *parameters)

    def executescript(self, sql: str) -> Any:
        return self._new_cursor(_CURSOR).executescript(sql)

    def backup(self, target: Any, **options: Any) -> None:
        self._connection.backup(_real(target), **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._connection, name)

    def __dir__(self) -> list[str]:
        return dir(self._connection)

    def __repr__(self) -> str:
        return repr(self._connection)

    def __eq__(self, other: object) -> bool:
        return self._connection is _real(other)

    def __hash__(self) -> int:
        return hash(self._connection)

    def __call__(self, sql: str) -> Any:
        return self._connection(sql)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._connection.__reduce_ex__(protocol)

    def __enter__(self) -> ProfiledConnection:
        self._connection.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        return self._connection.__exit__(kind, error, traceback)


def _real(connection: Any) -> Any:
    """What a connection is, or stands for."""
    return connection._connection if type(connection) is ProfiledConnection else connection


@lru_cache(64)
def _profiled_class(base: Any) -> Any:
    """A subclass of a class of cursors whose queries are told of."""
    execute, executemany, executescript = base.execute, base.executemany, base.executescript
    fetchone, fetchmany, fetchall = base.fetchone, base.fetchmany, base.fetchall
    init = base.__init__

    class Cursor(base):  # type: ignore[misc]
        __slots__ = ("_sent",)
        _sent: str | None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._sent = None  # it may be fetched from before anything was sent
            init(self, *args, **kwargs)

        def execute(self, sql: str, *parameters: Any) -> Any:
            if profiled_account() is None:
                self._sent = None
                return execute(self, sql, *parameters)
            self._sent = sql
            started_ns = perf_counter_ns()
            try:
                execute(self, sql, *parameters)
            except BaseException:
                record_query(sql, started_ns, failed=True)
                raise
            rows = self.rowcount
            record_query(sql, started_ns, None if rows < 0 else rows)
            return self

        def executemany(self, sql: str, *parameters: Any) -> Any:
            started_ns = perf_counter_ns()
            self._sent = None
            times = times_of(*parameters)
            try:
                executemany(self, sql, *parameters)
            except BaseException:
                record_query(sql, started_ns, None, times, failed=True)
                raise
            rows = self.rowcount
            record_query(sql, started_ns, None if rows < 0 else rows, times)
            return self

        def executescript(self, sql: str) -> Any:
            started_ns = perf_counter_ns()
            self._sent = None
            try:
                executescript(self, sql)
            except BaseException:
                record_query(sql, started_ns, failed=True)
                raise
            record_query(sql, started_ns)
            return self

        def fetchone(self) -> Any:
            if self._sent is None:
                return fetchone(self)
            started_ns = perf_counter_ns()
            row = fetchone(self)
            record_query(self._sent, started_ns, 0 if row is None else 1, 0)
            return row

        def fetchmany(self, *size: Any, **named_size: Any) -> Any:
            if self._sent is None:
                return fetchmany(self, *size, **named_size)
            started_ns = perf_counter_ns()
            rows = fetchmany(self, *size, **named_size)
            record_query(self._sent, started_ns, len(rows), 0)
            return rows

        def fetchall(self) -> Any:
            if self._sent is None:
                return fetchall(self)
            started_ns = perf_counter_ns()
            rows = fetchall(self)
            record_query(self._sent, started_ns, len(rows), 0)
            return rows

    Cursor.__name__, Cursor.__qualname__ = base.__name__, base.__qualname__
    Cursor.__module__ = base.__module__
    return Cursor


_CURSOR = _profiled_class(sqlite3.Cursor)


def _profiled(factory: Any) -> Any:
    """What makes cursors whose queries are told of, if `factory` is a class of cursors."""
    if factory is sqlite3.Cursor:
        return _CURSOR
    if isinstance(factory, type) and issubclass(factory, sqlite3.Cursor):
        return _profiled_class(factory)
    return factory
