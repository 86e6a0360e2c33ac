"""What one request has sent of one statement."""

from __future__ import annotations

from copy import copy

from asgi_perfkit.profiling.stacks import Line

__all__ = ["OVERFLOW", "REPEATED", "Sent"]

REPEATED = 5
"""A statement that is sent so often in one request could have been one query."""
OVERFLOW = "<overflow>"
"""The statement of all for which there was no room."""

_BY_RIGHT = (
    "BEGIN", "COMMIT", "END", "PRAGMA", "RELEASE", "ROLLBACK", "SAVEPOINT", "SET", "SHOW", "START", OVERFLOW.upper(),
)  # fmt: skip
"""What statements begin with that may be sent again and again: they ask for nothing."""
_NEVER_TOO_MANY = -(1 << 62)


class Sent:
    """The queries of one statement in one request.

    :ivar statement: normalised.
    :ivar count: how many queries were sent.
    :ivar executions: how often the statement was executed; more than `count` where one query has several sets of
        parameters.
    :ivar errors: how many queries have failed.
    :ivar rows: how many were returned or changed, as far as drivers tell; None if they do not.
    :ivar line: of the app, where it was sent first.
    :ivar run: how many queries have been sent all in all, while that may become too many.
    :ivar most: the highest :attr:`run` so far.
    :ivar repeated: how many of the queries are part of a run that has become too long.
    :ivar repeated_at: the line that has made it so long.
    :ivar is_more: whether this is what has come since it was told of before that the statement is repeated.
    """

    __slots__ = (
        "_told",
        "count",
        "errors",
        "executions",
        "is_more",
        "line",
        "most",
        "repeated",
        "repeated_at",
        "rows",
        "run",
        "slowest_ns",
        "statement",
        "time_ns",
    )

    def __init__(self, statement: str) -> None:
        self.statement = statement
        self.count = self.executions = self.errors = self.time_ns = self.slowest_ns = 0
        self.rows: int | None = None
        self.line: Line | None = None
        self.most = self.repeated = 0
        self.run = 0
        self.repeated_at: Line | None = None
        self.is_more = False
        self._told: Sent | None = None

    def add(self, duration_ns: int, rows: int | None, times: int, failed: bool) -> bool:
        """Add a query, or, if `times` is 0, more of one that was added before; whether it is the one too many."""
        self.time_ns += duration_ns
        if duration_ns > self.slowest_ns:
            self.slowest_ns = duration_ns
        if rows is not None:
            self.rows = rows + (self.rows or 0)
        if failed:
            self.errors += 1
        if not times:
            return False
        self.count += 1
        self.executions += times
        self.run = run = self.run + 1
        if run < REPEATED:
            return False
        if run == REPEATED and self.statement[:10].upper().startswith(_BY_RIGHT):
            self.run = _NEVER_TOO_MANY
            return False
        self.repeated += 1 if run > REPEATED else REPEATED
        if run > self.most:
            self.most = run
        return run == REPEATED

    def news(self) -> Sent:
        """What has come since this was called last, or all of it; it is counted as told then."""
        before, news = self._told, copy(self)
        self._told = copy(self)
        if before is not None:
            news.count -= before.count
            news.executions -= before.executions
            news.errors -= before.errors
            news.time_ns -= before.time_ns
            news.repeated -= before.repeated
            if news.rows is not None:
                news.rows -= before.rows or 0
            news.is_more = before.repeated > 0
        return news

    def begin_run(self) -> None:
        """From here on it is another turn of the same work."""
        if self.run > 0:
            self.run = 0
