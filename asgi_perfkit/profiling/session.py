"""Profiles on demand: what runs while a block lasts."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import perf_counter
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.profiling.calls import CallsByEndpoint, rows
from asgi_perfkit.profiling.feed import Feed
from asgi_perfkit.profiling.profiles import Profiles, default_profiles
from asgi_perfkit.profiling.reports import save
from asgi_perfkit.profiling.sampler import MAX_HZ, MIN_HZ, Sampler

__all__ = ["ProfileReport", "profile"]

MAX_BYTES = 16 * 1024 * 1024


_MAX_SECONDS = 1e6  # eleven days


class ProfileReport:
    """What was seen to run, so far; it may be read while the samples are still taken, and from any thread."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._calls = feed.calls

    def __repr__(self) -> str:
        return f"<ProfileReport: {self.samples} samples, {self.seconds:.3f} s>"

    @property
    def duration(self) -> float:
        """For how many seconds it was looked at."""
        ended = self._feed.ended
        return (perf_counter() if ended is None else ended) - self._feed.began

    @property
    def requests(self) -> int:
        """How many requests have ended, of those that it is about."""
        return self._feed.taken

    @property
    def samples(self) -> int:
        """How many times something was seen to run."""
        return sum(tree.total()[0] for _, tree in self._calls.trees())

    @property
    def seconds(self) -> float:
        """For how many seconds something ran, those of all threads together."""
        return sum(tree.total()[1] for _, tree in self._calls.trees())

    @property
    def endpoints(self) -> dict[str, Any]:
        """By endpoint, the one with the most seconds first: ``samples``, ``seconds``, and ``top``, as :meth:`top`."""
        found = self._calls.statistics()
        return dict(sorted(found.items(), key=lambda item: -item[1]["seconds"]))

    def top(self, n: int = 10, *, endpoint: str | None = None) -> list[dict[str, Any]]:
        """The functions in which the most time was spent themselves.

        :param n: how many of them.
        :param endpoint: that of which; None for all together.
        :return: for each ``function``, ``file``, ``line`` (that in which it has spent the most), and the seconds:
            ``self``, and ``total``, with what it has called.
        """
        return rows(
            (stack, node.samples, node.seconds)
            for label, tree in self._calls.trees()
            if endpoint is None or label == endpoint
            for stack, node in tree.stacks()
        )[:n]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, in the form of its suffix.

        ``.speedscope.json`` is for https://www.speedscope.app, ``.collapsed`` (stacks with microseconds) for
        flamegraph.pl and its kin, ``.pstats`` for :mod:`pstats`, ``.html`` for a browser. A file that is there already
        is replaced when the new one is complete.

        :raises ConfigurationValueError: the suffix is none of these.
        :raises OSError: the file cannot be written.
        """
        save(path, self._calls.trees())

    async def complete(self) -> None:
        """Wait until no more samples are taken: the `requests` have ended, or the `seconds` or the block are over.

        :raises RuntimeError: neither of the two was given: within the block this would wait forever.
        """
        if self._feed.ended is None and not self._feed.is_bounded:
            raise RuntimeError(
                "ProfileReport.complete() would wait forever: give profile(seconds=...) or profile(requests=...)."
            )
        await self._feed.wait()


def profile(
    *,
    seconds: float | None = None,
    endpoint: str | None = None,
    hz: float = 100,
    slower_than: float | None = None,
    requests: int | None = None,
    profiles: Profiles | None = None,
) -> AbstractAsyncContextManager[ProfileReport]:
    """Sample what runs, from the beginning of an ``async with`` block to its end.

    :param seconds: after which no more samples are taken, if the block lasts for longer; None for all of it.
    :param endpoint: the only one to keep, as the metrics name it (``"GET /items/{item_id}"``); None for all.
    :param hz: how many times a second to look, 1 to 1,000.
    :param slower_than: seconds: keep only requests whose clients have waited for so long or longer, by the measure of
        the slow requests, and nothing that belongs to no request. One in flight at the end is kept if it has lasted for
        so long by then. None for all.
    :param requests: after how many requests that have ended, of those to keep, no more samples are taken; what is in
        flight then is left out. None for no such end.
    :param profiles: those of the middleware, if they are not the default ones.
    :return: the context manager; what it gives is a :class:`ProfileReport`.
    :raises ConfigurationTypeError: an argument of the wrong type.
    :raises ConfigurationValueError: an argument outside of what is allowed.
    """
    _check_seconds("seconds", seconds, "None for as long as the block lasts")
    if endpoint is not None:
        remedy = 'give the name of one ("GET /items/{item_id}"), or None for all.'
        if not isinstance(endpoint, str):
            raise ConfigurationTypeError("profile(endpoint=...)", endpoint, remedy)
        if not endpoint:
            raise ConfigurationValueError("profile(endpoint=...)", endpoint, remedy)
    remedy = f"give a number from {MIN_HZ} to {MAX_HZ:,}."
    _check_number("hz", hz, remedy)
    if not MIN_HZ <= hz <= MAX_HZ:
        raise ConfigurationValueError("profile(hz=...)", hz, remedy)
    _check_seconds("slower_than", slower_than, "None for all requests")
    _check_requests(requests)
    if profiles is not None and not isinstance(profiles, Profiles):
        raise ConfigurationTypeError(
            "profile(profiles=...)", profiles, "give Profiles, or None for the default ones."
        )
    sampler = (default_profiles if profiles is None else profiles).sampler
    return _profiling(
        sampler,
        lambda: sampler.feed(
            CallsByEndpoint(MAX_BYTES, endpoint),
            hz,
            seconds,
            slower_than=slower_than or 0.0,
            requests=requests,
        ),
    )


@asynccontextmanager
async def _profiling(sampler: Sampler, start: Callable[[], Feed]) -> AsyncIterator[ProfileReport]:
    sampler.meet_loop()
    feed = start()
    try:
        yield ProfileReport(feed)
    finally:
        feed.finish()


def _check_seconds(name: str, value: object, otherwise: str) -> None:
    if value is None:
        return
    _check_number(name, value, f"give seconds, or {otherwise}.")
    if not 0 < value <= _MAX_SECONDS:  # type: ignore[operator]  # it is a number
        raise ConfigurationValueError(
            f"profile({name}=...)", value, f"give more than 0 seconds, or {otherwise}."
        )


def _check_requests(value: object) -> None:
    if value is None:
        return
    remedy = "give a whole number, 1 or more, or None for as long as the block lasts."
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationTypeError("profile(requests=...)", value, remedy)
    if value < 1:
        raise ConfigurationValueError("profile(requests=...)", value, remedy)


def _check_number(name: str, value: object, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationTypeError(f"profile({name}=...)", value, remedy)
