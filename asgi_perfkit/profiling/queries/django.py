"""django_query_wrapper: the connections of Django."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from asgi_perfkit.profiling.queries.record import profiled_account, record_query, times_of
from asgi_perfkit.profiling.queries.statements import MySQL

__all__ = ["DjangoQueryWrapper", "django_query_wrapper"]


class DjangoQueryWrapper:
    """Counts the queries of Django's connections for the requests that send them.

    Django makes a connection for each thread, and :meth:`install` is a receiver of the signal that tells of it: in
    ``ready`` of an app's config, ``connection_created.connect(django_query_wrapper.install)``. The object itself is
    what `connection.execute_wrapper` takes.
    """

    def install(self, sender: object, connection: Any, **kwargs: object) -> None:
        """Put it around the queries of a connection that was just made."""
        if self not in connection.execute_wrappers:
            connection.execute_wrappers.append(
                self
            )  # the innermost: what others do around it is no query

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: str,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        if profiled_account() is None:
            return execute(sql, params, many, context)
        vendor = getattr(context.get("connection"), "vendor", "")
        statement = MySQL(sql) if vendor == "mysql" and isinstance(sql, str) else sql
        times = times_of(params) if many else 1
        started_ns = perf_counter_ns()
        try:
            result = execute(sql, params, many, context)
        except BaseException:
            record_query(statement, started_ns, None, times, failed=True)
            raise
        rows = getattr(context.get("cursor"), "rowcount", None)
        record_query(
            statement, started_ns, rows if isinstance(rows, int) and rows >= 0 else None, times
        )
        return result


django_query_wrapper = DjangoQueryWrapper()
"""The one there is."""
