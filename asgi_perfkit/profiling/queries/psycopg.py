"""Connections of psycopg 3, sync and async: they make their cursors of a class that can be set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from time import perf_counter_ns
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.profiling.queries.record import profiled_account, record_query, times_of

__all__ = ["profile_psycopg"]


def profile_psycopg(connection: Any, is_async: bool) -> Any:
    """Have `connection` make cursors whose queries are told of; the same object."""
    make = _async_class if is_async else _sync_class
    for name in ("cursor_factory", "server_cursor_factory"):
        base = getattr(connection, name)
        if not isinstance(base, type):
            raise ConfigurationTypeError(
                f"profile_connection(connection): {name}", base, "give it a class of cursors."
            )
        if "_is_profiled" not in vars(base):
            setattr(connection, name, make(base))
    return connection


@lru_cache(64)
def _sync_class(base: Any) -> Any:
    execute, executemany, stream = base.execute, base.executemany, base.stream

    class Cursor(base):  # type: ignore[misc]
        __slots__ = ()
        _is_profiled = True

        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            if profiled_account() is None:
                return execute(self, query, *args, **kwargs)
            started_ns = perf_counter_ns()
            try:
                result = execute(self, query, *args, **kwargs)
            except BaseException:
                record_query(query, started_ns, failed=True)
                raise
            record_query(query, started_ns, _rows_of(self))
            return result

        def executemany(self, query: Any, params_seq: Any, **kwargs: Any) -> None:
            started_ns = perf_counter_ns()
            times = times_of(params_seq)
            try:
                executemany(self, query, params_seq, **kwargs)
            except BaseException:
                record_query(query, started_ns, None, times, failed=True)
                raise
            record_query(query, started_ns, _rows_of(self), times)

        def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            sent = _Stream(query)
            rows = stream(self, query, *args, **kwargs)
            try:
                while True:
                    sent.waits()
                    row = next(rows, _END)
                    if row is _END:
                        break
                    sent.has_row()
                    yield row
            except GeneratorExit:
                raise
            except BaseException:
                sent.failed = True
                raise
            finally:
                rows.close()
                sent.ends()

    return _named(Cursor, base)


@lru_cache(64)
def _async_class(base: Any) -> Any:
    execute, executemany, stream = base.execute, base.executemany, base.stream

    class Cursor(base):  # type: ignore[misc]
        __slots__ = ()
        _is_profiled = True

        async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            started_ns = perf_counter_ns()
            try:
                result = await execute(self, query, *args, **kwargs)
            except BaseException:
                record_query(query, started_ns, failed=True)
                raise
            record_query(query, started_ns, _rows_of(self))
            return result

        async def executemany(self, query: Any, params_seq: Any, **kwargs: Any) -> None:
            started_ns = perf_counter_ns()
            times = times_of(params_seq)
            try:
                await executemany(self, query, params_seq, **kwargs)
            except BaseException:
                record_query(query, started_ns, None, times, failed=True)
                raise
            record_query(query, started_ns, _rows_of(self), times)

        async def stream(self, query: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            sent = _Stream(query)
            rows = stream(self, query, *args, **kwargs)
            try:
                while True:
                    sent.waits()
                    row = await anext(rows, _END)
                    if row is _END:
                        break
                    sent.has_row()
                    yield row
            except GeneratorExit:
                raise
            except BaseException:
                sent.failed = True
                raise
            finally:
                await rows.aclose()
                sent.ends()

    return _named(Cursor, base)


class _Stream:
    """A query whose rows come one by one: the time is what was spent waiting for them."""

    __slots__ = ("_query", "_rows", "_spent_ns", "_started_ns", "failed")

    def __init__(self, query: Any) -> None:
        self._query = query
        self._rows = self._spent_ns = self._started_ns = 0
        self.failed = False

    def waits(self) -> None:
        self._started_ns = perf_counter_ns()

    def has_row(self) -> None:
        self._rows += 1
        self._stop()

    def ends(self) -> None:
        self._stop()
        record_query(self._query, perf_counter_ns() - self._spent_ns, self._rows, 1, self.failed)

    def _stop(self) -> None:
        if self._started_ns:
            self._spent_ns += perf_counter_ns() - self._started_ns
            self._started_ns = 0


_END: Any = object()


def _rows_of(cursor: Any) -> int | None:
    rows: int = cursor.rowcount
    return None if rows < 0 else rows


def _named(made: Any, base: Any) -> Any:
    made.__name__, made.__qualname__, made.__module__ = (
        base.__name__,
        base.__qualname__,
        base.__module__,
    )
    return made
