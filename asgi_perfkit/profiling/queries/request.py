"""The queries of one request, while it runs and after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import Any, Protocol

from asgi_perfkit.profiling.queries.origin import origin
from asgi_perfkit.profiling.queries.sent import OVERFLOW, Sent
from asgi_perfkit.profiling.queries.statements import normalised
from asgi_perfkit.profiling.queries.statistics import QueryStatistics, told_of
from asgi_perfkit.steps import Account, Profile

__all__ = ["LateQueries", "RequestQueries", "first_query"]

_MAX_STATEMENTS = 100
_TOLD_EVERY_NS = 10_000_000_000
"""A request that lasts for longer is told of on the way, and a connection that lasts for days."""


class _Profiles(Protocol):
    queries: QueryStatistics

    def report(self, message: str, error: BaseException) -> None: ...


class _Profiler(Protocol):
    """What is needed of the :class:`Profiler` whose place the queries of a request take."""

    profiles: Any
    label: Callable[[Any, str | None], str]

    def ended(self, account: Any, endpoint: str | None, error: BaseException | None) -> None: ...


class RequestQueries:
    """Takes the queries of one request; its account's `profile` from the first one on. May be called from any thread.

    :param profiler: whose request it is; it is told of the end.
    :ivar count: how many there were so far.
    :ivar time_ns: how long they took together.
    """

    __slots__ = (
        "_bytes",
        "_connection",
        "_is_told",
        "_late",
        "_profiler",
        "_sent",
        "_settled",
        "_statistics",
        "_told_ns",
        "_turn",
        "count",
        "time_ns",
    )

    def __init__(self, profiler: _Profiler, account: Account) -> None:
        self.count = self.time_ns = self._bytes = 0
        self._connection: Any = account if hasattr(account, "messages_in") else None
        self._profiler = profiler
        self._statistics: QueryStatistics = profiler.profiles.queries
        self._sent: dict[str, Sent] = {}
        self._told_ns = perf_counter_ns()
        self._turn = 0
        self._settled = self._is_told = False
        self._late: LateQueries | None = None

    def query(
        self,
        account: Account,
        statement: Any,
        started_ns: int,
        rows: int | None,
        times: int,
        failed: bool,
    ) -> None:
        """Take a query; see :class:`asgi_perfkit.steps.Profile`."""
        ended_ns = perf_counter_ns()
        duration_ns = ended_ns - started_ns
        try:
            text = normalised(statement)
            with self._statistics.sending:
                late = self._late
                if late is None:
                    self.time_ns += duration_ns
                    if times:
                        self.count += 1
                    sent = self._sent.get(text) or self._new(text)
                    if self._connection is not None and self._connection.messages_in != self._turn:
                        self._begin_turn()
                    if sent.add(duration_ns, rows, times, failed):
                        sent.repeated_at = origin(sys._getframe(1))
            if late is not None:
                late.add(text, duration_ns, rows, times, failed)
            elif ended_ns - self._told_ns >= _TOLD_EVERY_NS:
                self._told_ns = ended_ns
                self._tell_on_the_way(account)
        except Exception as failure:
            self._profiler.profiles.report("A query could not be counted", failure)

    def settle(self, account: Account) -> None:
        """Note in `account` how many queries there were, and how long they took; once."""
        if not self._settled:
            self._settled = True
            account.observe("query_time", self.time_ns)
            account.observe("query_count", self.count)

    def ended(self, account: Account, endpoint: str | None, error: BaseException | None) -> None:
        """The request is over. What comes later is counted for its endpoint, and is no part of it."""
        self.settle(account)
        profiler = self._profiler
        profiler.ended(account, endpoint, error)
        profiles = profiler.profiles
        try:
            label = profiler.label(account, endpoint)
            with self._statistics.sending:
                self._statistics.give_back_in_flight(self._bytes)
                self._bytes = 0
                sent: Iterable[Sent] = self._sent.values()
                profiles.queries.add(
                    label, [each.news() for each in sent] if self._is_told else sent
                )
                self._late = account.profile = LateQueries(profiles, label)
        except Exception as failure:
            account.profile = None
            profiles.report("The queries of a request could not be counted", failure)
        self._sent = {}
        self._connection = None

    def figures(self) -> dict[str, Any]:
        """What was sent so far, in the form of an endpoint's figures in the statistics; until the request has ended."""
        with self._statistics.sending:
            return told_of(self._sent.values())

    def _new(self, text: str) -> Sent:
        taken = 0
        if len(self._sent) < _MAX_STATEMENTS:
            taken = self._statistics.take_in_flight(text)
            self._bytes += taken
        if not taken:
            text = OVERFLOW
            if text in self._sent:
                return self._sent[text]
        sent = self._sent[text] = Sent(text)
        if text is not OVERFLOW:
            sent.line = origin(sys._getframe(2))
        return sent

    def _begin_turn(self) -> None:
        """A message has come in on a connection: what is sent once for each of many is not sent again and again."""
        self._turn = self._connection.messages_in
        for sent in self._sent.values():
            sent.begin_run()

    def _tell_on_the_way(self, account: Account) -> None:
        label = self._profiler.label(account, None)
        with self._statistics.sending:
            if self._late is None:
                self._is_told = True
                self._profiler.profiles.queries.add(
                    label, [each.news() for each in self._sent.values()]
                )


def first_query(profiler: _Profiler, account: Account) -> Profile:
    """Who takes the queries of `account` from now on: there is a first one, and `profiler` has its place still.

    Two threads of a request may send their first at once.
    """
    with profiler.profiles.queries.sending:
        profile: Any = account.profile
        if profile is not profiler and profile is not None:
            return profile  # type: ignore[no-any-return]
        taker: Profile
        if account.closed:
            taker = LateQueries(profiler.profiles, profiler.label(account, None))
        else:
            taker = RequestQueries(profiler, account)
        account.profile = taker
        return taker


class LateQueries:
    """Takes the queries of what goes on after a request: they are counted for its endpoint.

    :param label: the endpoint's full name.
    """

    __slots__ = ("_label", "_profiles")

    def __init__(self, profiles: _Profiles, label: str) -> None:
        self._profiles = profiles
        self._label = label

    def query(
        self,
        account: Account,
        statement: Any,
        started_ns: int,
        rows: int | None,
        times: int,
        failed: bool,
    ) -> None:
        """Take a query; see :class:`asgi_perfkit.steps.Profile`."""
        duration_ns = perf_counter_ns() - started_ns
        try:
            self.add(normalised(statement), duration_ns, rows, times, failed)
        except Exception as failure:
            self._profiles.report("A query could not be counted", failure)

    def add(self, text: str, duration_ns: int, rows: int | None, times: int, failed: bool) -> None:
        """Take a query of a statement that is normalised."""
        sent = Sent(text)
        sent.add(duration_ns, rows, times, failed)
        if times:
            sent.line = origin(sys._getframe(1))
        self._profiles.queries.add(self._label, (sent,))

    def settle(self, account: Account) -> None:
        """The request is over; nothing is left to note."""

    def ended(self, account: Account, endpoint: str | None, error: BaseException | None) -> None:
        """As :meth:`settle`."""
