"""Profiles chosen requests exactly: every call in their steps, counted and timed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asgi_perfkit.profiling.packed import PackedCalls
from asgi_perfkit.profiling.recorder import MAX_NODES, CallRecorder
from asgi_perfkit.profiling.shelf import Shelf
from asgi_perfkit.steps import Account

__all__ = ["ExactProfiles", "RequestCalls"]

KEPT = 5
"""How many of the latest requests of an endpoint are kept, each for itself."""

TOP = 20
"""How many functions of an endpoint are told: those that have taken the most time of their own."""

logger = logging.getLogger("asgi_perfkit")


class RequestCalls:
    """Observes the steps of one request, and records every call in them.

    Who has it join in the midst of a step calls :meth:`start`: the end of the step stops it.

    :param unavailable: told once of what prevents it.
    :ivar complete: whether no call is missing so far.
    """

    __slots__ = ("_recorder", "_unavailable", "complete")

    def __init__(self, unavailable: Callable[[str], None], max_nodes: int = MAX_NODES) -> None:
        self._recorder = CallRecorder(max_nodes)
        self._unavailable = unavailable
        self.complete = True

    def start(self) -> None:
        """Record from now on; :meth:`stop` has to follow, in the same thread."""
        if self.complete:
            self._met(self._recorder.start())

    def stop(self) -> None:
        """End what :meth:`start` has begun. Without one, nothing happens."""
        self._recorder.stop()
        if self._recorder.lost:
            self._met("another profiler was active within the request")

    def start_step(self) -> None:
        """As :meth:`start`, where what drives the request calls it."""
        if self.complete:
            self._met(self._recorder.start(()))

    def step_started(self, account: Account) -> None:
        self.start_step()

    def step_ended(self, account: Account, duration_ns: int) -> None:
        self.stop()

    def end(self) -> PackedCalls | None:
        """Record no more; returns what was recorded, None if that is not all."""
        recorder = self._recorder
        recorder.close()
        calls = PackedCalls.of(recorder.root, recorder.cut)
        return calls if self.complete and not recorder.lost else None

    def _met(self, obstacle: str | None) -> None:
        if obstacle is not None and self.complete:
            self.complete = False
            self._unavailable(obstacle)


class _Endpoint:
    """What is kept of one endpoint.

    :ivar merged: all of its requests.
    :ivar latest: the latest of them.
    """

    __slots__ = ("latest", "merged", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.merged = PackedCalls()
        self.latest: deque[PackedCalls] = deque(maxlen=KEPT)

    @property
    def size(self) -> int:
        return 500 + self.merged.size + sum(calls.size for calls in self.latest)

    def shrink(self) -> bool:
        if self.latest:
            self.latest.popleft()
        return bool(self.latest)

    def add(self, calls: PackedCalls) -> None:
        self.requests += 1
        self.merged.merge(calls)
        self.latest.append(calls)


class ExactProfiles:
    """Keeps the exact profiles by endpoint: one of all requests, and those of the latest. For any thread.

    :param max_bytes: what they may take.
    :ivar unavailable: what prevented it the last time, another profiler as a rule; None if nothing has.
    :ivar unavailable_requests: how many requests were not profiled for such a reason.
    """

    def __init__(self, max_bytes: int) -> None:
        self._shelf = Shelf(_Endpoint, max_bytes)
        self.unavailable: str | None = None
        self.unavailable_requests = 0
        self._told = False

    def request(self) -> RequestCalls:
        """What records a request that begins: one of its observers."""
        return RequestCalls(self._not_available)

    def add(self, endpoint: str, request: RequestCalls) -> None:
        """Keep what was recorded of a request of `endpoint`, which is over."""
        calls = request.end()
        if calls is not None:
            self._shelf.change(endpoint, lambda kept: kept.add(calls))

    def calls(self, endpoint: str | None = None) -> dict[str, PackedCalls]:
        """The calls of all requests of an endpoint, or of each endpoint."""
        return self._shelf.read(lambda kept: _copy(kept.merged), endpoint)

    def latest(self, endpoint: str) -> list[PackedCalls]:
        """The calls of each of the latest requests of an endpoint, the oldest first."""
        return self._shelf.read(lambda kept: list(kept.latest), endpoint).get(endpoint, [])

    def statistics(self) -> dict[str, Any]:
        copies = self._shelf.read(
            lambda kept: (kept.requests, len(kept.latest), _copy(kept.merged))
        )
        return {
            "unavailable": self.unavailable,
            "unavailable_requests": self.unavailable_requests,
            "dropped_endpoints": self._shelf.dropped,
            "endpoints": {
                name: {"requests": requests, "kept": latest, **_summary(merged)}
                for name, (requests, latest, merged) in copies.items()
            },
        }

    def clear(self) -> None:
        self._shelf.clear()
        self.unavailable = None
        self.unavailable_requests = 0

    def start_anew(self) -> None:
        """In a forked child: forget what the parent tells."""
        self.clear()

    def resize(self, max_bytes: int) -> None:
        self._shelf.resize(max_bytes)

    def _not_available(self, why: str) -> None:
        self.unavailable = why
        self.unavailable_requests += 1
        if not self._told:
            self._told = True
            with suppress(Exception):  # of a filter or handler of the app's
                logger.warning(
                    "A request was not profiled exactly: %s. (logged once; further requests are counted)",
                    why,
                )


def _copy(calls: PackedCalls) -> PackedCalls:
    copy = PackedCalls()
    copy.merge(calls)
    return copy


def _summary(calls: PackedCalls) -> dict[str, Any]:
    return {
        "calls": sum(calls.calls),
        "cut_calls": calls.cut,
        "seconds": sum(calls.own_ns) / 1e9,
        "top": calls.rows()[:TOP],
    }
