"""Profiles the requests of one middleware."""

from __future__ import annotations

import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter_ns
from typing import Any

from asgi_perfkit.profiling.feed import Feed
from asgi_perfkit.profiling.profiles import Profiles
from asgi_perfkit.profiling.queries.request import LateQueries, first_query
from asgi_perfkit.profiling.slow import duration_of, samples_of, spans_of
from asgi_perfkit.profiling.watchdog import watchdog
from asgi_perfkit.steps import Account, DrivenAccount, follow_children
from asgi_perfkit.steps.loop import trio_token

__all__ = ["Profiler"]


class Profiler:
    """Profiles the requests of one middleware: the `profile` of each account that has nothing of its own to keep yet.

    :param profiles: where what is found is kept.
    :param label: makes the full name of an endpoint (``"GET /items/{item_id}"``) of its request and its name, or, where
        that is None, of the request as far as it has come; from any thread.
    :param facts: what is known about a request that has returned or raised an error.
    :ivar open: the requests in flight. Only the loop's own thread changes it.
    :ivar stall_ns: from which duration on a step is a stall; 0 if nobody watches.
    """

    def __init__(
        self,
        profiles: Profiles,
        *,
        label: Callable[[Any, str | None], str],
        facts: Callable[[Any, BaseException | None], Mapping[str, Any]],
        stall_threshold: float | None,
        slow_threshold: float | None,
        sample_hz: float,
        queries: bool,
    ) -> None:
        self.profiles = profiles
        self.label = label
        self.facts = facts
        self.open: set[Account] = set()
        self.stall_ns = 0 if stall_threshold is None else max(1, round(stall_threshold * 1e9))
        self.slow_ns = 1 << 63 if slow_threshold is None else round(slow_threshold * 1e9)
        self._queries = queries
        self._sample_hz = sample_hz
        self._feed: Feed | None = None
        self._exact: dict[Account, Any] = {}
        self._loop: Callable[[], object] = _no_loop
        self._trio: Callable[[], object] = _no_loop
        profiles.profilers.add(self)

    def begin(self, account: DrivenAccount) -> None:
        """Profile the work of `account`, which begins now; on its event loop."""
        if _get_running_loop() is not self._loop():  # nor is it ever on trio
            self._meet_loop()
        account.profile = self
        self.open.add(account)
        window = self.profiles.allocations.window
        if window is not None:
            window.observe(account, partial(self.label, account, None), begins=True)

    def query(
        self,
        account: Account,
        statement: Any,
        started_ns: int,
        rows: int | None,
        times: int,
        failed: bool,
    ) -> None:
        if self._queries:
            first_query(self, account).query(account, statement, started_ns, rows, times, failed)

    def begin_exact(self, account: DrivenAccount) -> None:
        """Record every call of this request, too, from here on."""
        calls = self._exact[account] = self.profiles.exact.request()
        account.observers += (calls,)
        if (
            account.stepping
        ):  # not by `join`: the frames that are around are none of what is recorded
            calls.start()

    def settle(self, account: DrivenAccount) -> None:
        pass

    def ended(
        self, account: DrivenAccount, endpoint: str | None, error: BaseException | None
    ) -> None:
        self.open.discard(account)
        try:
            label = self.label(account, endpoint)
            now_ns = perf_counter_ns()
            self.profiles.growth.count(label, now_ns)
            if self._exact or self.profiles.allocations.window is not None:
                self._keep(account, label)
            if self._queries and account.profile is self:
                account.profile = LateQueries(self.profiles, label)
            total_ns = now_ns - account.started_ns
            if total_ns >= self.slow_ns:  # before its samples are no longer its own
                self._ended_late(account, label, error, total_ns)
            sampler = self.profiles.sampler
            if sampler.feeds:
                sampler.ended(self, account, label, error)
        except Exception as failure:
            self.profiles.report("A request could not be profiled", failure)

    def has_lasted(self, account: Any, seconds: float, error: BaseException | None = None) -> bool:
        """Whether the client of a request has waited for so many seconds by now, as for slow ones; from any thread.

        :param error: what the request has raised, if it is over.
        """
        total = (perf_counter_ns() - account.started_ns) / 1e9
        return total >= seconds and duration_of(self.facts(account, error), total) >= seconds

    def _keep(self, account: DrivenAccount, label: str) -> None:
        """Keep what was recorded of a request that was chosen for it."""
        try:
            calls = self._exact.pop(account, None)
            if calls is not None:
                self.profiles.exact.add(label, calls)
            window = self.profiles.allocations.window
            if window is not None:
                window.ended(account, label)
        except Exception as failure:
            self.profiles.report("An exact profile or allocations could not be kept", failure)

    def _ended_late(
        self, account: Any, label: str, error: BaseException | None, total_ns: int
    ) -> None:
        """Keep what is known of a request that took long, if that kept its client waiting."""
        try:
            facts = self.facts(account, error)
            duration = duration_of(facts, total_ns / 1e9)
            if duration * 1e9 < self.slow_ns:
                return
            figures = getattr(account.profile, "figures", None)
            tree = self.profiles.cpu.tree_of(account)
            self.profiles.slow.add(
                label,
                duration,
                facts,
                total=total_ns / 1e9,
                spans=spans_of(*account.observations_so_far()),
                queries=None if figures is None else figures(),
                samples=() if tree is None else samples_of(tree),
            )
        except Exception as failure:
            self.profiles.report("A slow request could not be kept", failure)

    def _meet_loop(self) -> None:
        """Prepare for requests on the running loop: once for each."""
        try:
            loop: Any = _get_running_loop()
            token = trio_token() if loop is None else None
            if token is not None and token is self._trio():
                return
            if loop is not None or token is not None:
                follow_children()
                self.profiles.growth.watch()
                if self.stall_ns:
                    watchdog.watch(self)
                self._meet_sampler()
            self._loop = _no_loop if loop is None else weakref.ref(loop)
            self._trio = _no_loop if token is None else weakref.ref(token)
        except Exception as failure:
            self.profiles.report("Requests on this loop are not profiled in full", failure)

    def _meet_sampler(self) -> None:
        sampler = self.profiles.sampler
        sampler.meet_loop(self)
        if self._sample_hz and (self._feed is None or self._feed not in sampler.feeds):
            self._feed = sampler.feed(self.profiles.cpu, self._sample_hz)
            weakref.finalize(self, self._feed.stop).atexit = False


def _no_loop() -> object:
    return _no_loop  # which no loop is
