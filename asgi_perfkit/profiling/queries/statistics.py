"""The queries of all requests, by endpoint and statement, within a bound."""

from __future__ import annotations

from collections.abc import Iterable
from sys import getsizeof
from threading import RLock
from typing import Any

from asgi_perfkit.profiling.queries.sent import OVERFLOW, Sent
from asgi_perfkit.profiling.stacks import Line

__all__ = ["QueryStatistics", "told_of"]

MAX_ENDPOINTS = 1_000
MAX_STATEMENTS = 200
"""Of one endpoint, so that one that makes up statements leaves room to all others."""
MAX_REPEATED = 50

# What they take beside their texts, with their numbers and their share of the tables.
_ENDPOINT_BYTES = 1_400  # with its overflow row
_STATEMENT_BYTES = 640
_REPEATED_BYTES = 560
_IN_FLIGHT_BYTES = 400


class QueryStatistics:
    """Keeps the figures of queries: the section `queries` of the profiles. May be used from any thread.

    What finds no room is counted for :data:`OVERFLOW`: the statement of that name of its endpoint, or the endpoint.

    :param max_bytes: that all of it may take; what requests in flight have sent, half as much beside it.
    :ivar lock: held while figures are changed or read; re-entrant, as both are, since a garbage collection may run code
        of the user that sends a query.
    :ivar sending: held while what one request has sent is changed.
    :ivar in_flight_bytes: that is taken by what requests in flight have sent.
    """

    def __init__(self, max_bytes: int) -> None:
        self.lock = RLock()
        self.sending = RLock()
        self._max_bytes = max_bytes
        self._bytes = 0
        self.in_flight_bytes = 0
        self._endpoints: dict[str, _Endpoint] = {}

    def add(self, endpoint: str, statements: Iterable[Sent]) -> None:
        """Count the `statements` of a request of `endpoint`."""
        with self.lock:
            found = self._endpoints.get(endpoint) or self._new_endpoint(endpoint)
            for sent in statements:
                text = sent.statement
                (found.statements.get(text) or self._new_statement(found, text)).add(sent)
                if sent.repeated:
                    self._add_repeated(found, sent)

    def statistics(self) -> dict[str, Any]:
        """By endpoint, what it has sent, the longest in sum first."""
        with self.lock:
            endpoints = list(self._endpoints.items())
        told = {}
        for name, endpoint in endpoints:
            with self.lock:  # not for long: a loop may wait for it
                told[name] = endpoint.told()
        return dict(sorted(told.items(), key=lambda each: each[1]["time"], reverse=True))

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            self._endpoints = {}
            self._bytes = 0

    def start_anew(self) -> None:
        """As in a process that was just forked: the locks may be held by threads that are not there."""
        self.lock = RLock()
        self.sending = RLock()
        self.in_flight_bytes = 0
        self.clear()

    def resize(self, max_bytes: int) -> None:
        """Take no more than `max_bytes` from now on: the statements that have taken the least time make room."""
        with self.lock:
            self._max_bytes = max_bytes
            if self._bytes <= max_bytes:
                return
            rows = [
                (row.time_ns, name, text)
                for name, endpoint in self._endpoints.items()
                for text, row in endpoint.statements.items()
                if text != OVERFLOW
            ]
            for _, name, text in sorted(rows):
                if self._bytes <= max_bytes:
                    return
                endpoint = self._endpoints[name]
                endpoint.statements[OVERFLOW].add(endpoint.statements.pop(text))
                self._bytes -= _STATEMENT_BYTES + getsizeof(text)
            if self._bytes > max_bytes:  # the bare endpoints are too much
                self.clear()

    def take_in_flight(self, text: str) -> int:
        """Make room for one more statement of a request in flight; how many bytes it takes, 0 if there is no room."""
        taken = _IN_FLIGHT_BYTES + getsizeof(text)
        if self.in_flight_bytes + taken > self._max_bytes // 2:
            return 0
        self.in_flight_bytes += taken
        return taken

    def give_back_in_flight(self, taken: int) -> None:
        """The request has ended."""
        self.in_flight_bytes = max(
            0, self.in_flight_bytes - taken
        )  # one may have begun before a fork

    def _new_endpoint(self, name: str) -> _Endpoint:
        taken = _ENDPOINT_BYTES + getsizeof(name)
        if name != OVERFLOW and (
            len(self._endpoints) >= MAX_ENDPOINTS or not self._has_room_for(taken)
        ):
            return self._endpoints.get(OVERFLOW) or self._new_endpoint(OVERFLOW)
        self._bytes += taken
        endpoint = self._endpoints[name] = _Endpoint()
        return endpoint

    def _new_statement(self, endpoint: _Endpoint, text: str) -> _Figures:
        taken = _STATEMENT_BYTES + getsizeof(text)
        if len(endpoint.statements) > MAX_STATEMENTS or not self._has_room_for(taken):
            return endpoint.statements[OVERFLOW]
        self._bytes += taken
        row = endpoint.statements[text] = _Figures()
        return row

    def _add_repeated(self, endpoint: _Endpoint, sent: Sent) -> None:
        key = sent.statement, sent.repeated_at
        row = endpoint.repeated.get(key)
        if row is None:
            taken = _REPEATED_BYTES + getsizeof(sent.statement)
            if len(endpoint.repeated) >= MAX_REPEATED or not self._has_room_for(taken):
                return
            self._bytes += taken
            row = endpoint.repeated[key] = _Repeated()
        row.add(sent)

    def _has_room_for(self, taken: int) -> bool:
        return self._bytes + taken <= self._max_bytes


def told_of(statements: Iterable[Sent]) -> dict[str, Any]:
    """What one request has sent, as :meth:`QueryStatistics.statistics` tells of all requests of an endpoint."""
    alone = QueryStatistics(1 << 62)
    alone.add("", statements)
    figures: dict[str, Any] = alone.statistics()[""]
    return figures


class _Figures:
    """The figures of a statement.

    :ivar rows: those that were told of; None if none ever were.
    :ivar line: where it was sent last.
    """

    __slots__ = ("count", "errors", "executions", "line", "rows", "slowest_ns", "time_ns")

    def __init__(self) -> None:
        self.count = self.executions = self.errors = self.time_ns = self.slowest_ns = 0
        self.rows: int | None = None
        self.line: Line | None = None

    def add(self, more: _Figures | Sent) -> None:
        self.count += more.count
        self.executions += more.executions
        self.errors += more.errors
        self.time_ns += more.time_ns
        if more.slowest_ns > self.slowest_ns:
            self.slowest_ns = more.slowest_ns
        if more.rows is not None:
            self.rows = more.rows + (self.rows or 0)
        if more.line is not None:
            self.line = more.line

    def told(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "executions": self.executions,
            "errors": self.errors,
            "time": self.time_ns / 1e9,
            "slowest": self.slowest_ns / 1e9,
            "rows": self.rows,
        }


class _Endpoint:
    """The statements of an endpoint, and which of them were sent again and again, and where."""

    __slots__ = ("repeated", "statements")

    def __init__(self) -> None:
        self.statements: dict[str, _Figures] = {OVERFLOW: _Figures()}
        self.repeated: dict[tuple[str, Line | None], _Repeated] = {}

    def told(self) -> dict[str, Any]:
        statements = sorted(
            ((text, row) for text, row in self.statements.items() if row.count or row.time_ns),
            key=lambda each: each[1].time_ns,
            reverse=True,
        )
        repeated = sorted(self.repeated.items(), key=lambda each: each[1].count, reverse=True)
        together = _Figures()
        for row in self.statements.values():
            together.add(row)
        return {
            **together.told(),
            "statements": [
                {"statement": text, **row.told(), **_place(row.line)} for text, row in statements
            ],
            "n_plus_one": [
                {"statement": text, **row.told(), **_place(line)} for (text, line), row in repeated
            ],
        }


class _Repeated:
    """A statement that requests have sent again and again.

    :ivar count: how often all of them together.
    :ivar requests: how many did.
    :ivar most: how often one did at most.
    """

    __slots__ = ("count", "most", "requests")

    def __init__(self) -> None:
        self.count = self.requests = self.most = 0

    def add(self, sent: Sent) -> None:
        self.count += sent.repeated
        self.requests += not sent.is_more
        if sent.most > self.most:
            self.most = sent.most

    def told(self) -> dict[str, Any]:
        return {"count": self.count, "requests": self.requests, "most": self.most}


def _place(line: Line | None) -> dict[str, Any]:
    if line is None:
        return {"file": None, "line": None, "function": None}
    return {"file": line.file, "line": line.line, "function": line.function}
