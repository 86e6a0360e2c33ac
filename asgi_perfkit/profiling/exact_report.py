"""What was profiled exactly, as a report that is read and saved."""

from __future__ import annotations

import marshal
import os
from collections.abc import Iterable
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.profiling.packed import Figures, PackedCalls
from asgi_perfkit.profiling.profiles import Profiles, default_profiles
from asgi_perfkit.profiling.reports import save, write
from asgi_perfkit.profiling.stacks import Line

__all__ = ["ExactReport", "exact_profile"]


class ExactReport:
    """The calls of requests that were profiled exactly, as they were when the report was made.

    :param endpoints: all calls of each endpoint.
    :param latest: the calls of each of the latest requests, the oldest first; empty for a report of all endpoints.
    """

    def __init__(self, endpoints: dict[str, PackedCalls], latest: list[PackedCalls]) -> None:
        self._endpoints = endpoints
        self._latest = latest

    def __repr__(self) -> str:
        return f"<ExactReport: {', '.join(self._endpoints) or 'nothing'}>"

    @property
    def endpoints(self) -> list[str]:
        """Those that there is something of."""
        return list(self._endpoints)

    def top(self, n: int = 10, *, endpoint: str | None = None) -> list[dict[str, Any]]:
        """The functions in which the most time was spent themselves.

        :param n: how many of them.
        :param endpoint: that of which; None for all together.
        :return: for each ``function``, ``file``, ``line`` (that of its definition), ``calls``, ``primitive_calls``
            (those that did not come from itself), and the seconds: ``self``, and ``total``, with what it has called.
        """
        merged = PackedCalls()
        for name, calls in self._endpoints.items():
            if endpoint is None or name == endpoint:
                merged.merge(calls)
        return merged.rows()[:n]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, in the form of its suffix.

        ``.pstats`` is for :mod:`pstats` and what reads its files, with all requests in one; ``.speedscope.json`` for
        https://www.speedscope.app, ``.collapsed`` for flamegraph.pl and its kin and ``.html`` for a browser have each
        endpoint for itself or, of one endpoint, the latest requests too. A file that is there already is replaced when
        the new one is complete.

        :raises ConfigurationTypeError: `path` is none.
        :raises ConfigurationValueError: there is no form of this suffix.
        :raises OSError: the file cannot be written.
        """
        if isinstance(path, (str, bytes, os.PathLike)):
            name = os.fsdecode(path)
            if name.lower().endswith(".pstats"):
                write(name, _pstats(self._endpoints.values()))
                return
        trees = [(name, calls.tree()) for name, calls in self._endpoints.items()]
        for number, calls in enumerate(self._latest, 1):
            trees.append((f"{trees[0][0]}, request {number} of the latest", calls.tree()))
        save(path, trees)


def exact_profile(endpoint: str | None = None, *, profiles: Profiles | None = None) -> ExactReport:
    """What was profiled exactly so far, by ``ProfilingMiddleware(exact=...)``.

    :param endpoint: the name of one (``"GET /items/{item_id}"``), which has its latest requests in the report, too;
        None for all.
    :param profiles: where the middleware keeps it, if not in the default ones.
    :raises ConfigurationTypeError: an argument of the wrong type.
    """
    if endpoint is not None and not isinstance(endpoint, str):
        raise ConfigurationTypeError(
            "exact_profile(endpoint)", endpoint, "give the name of an endpoint, or None for all."
        )
    if profiles is not None and not isinstance(profiles, Profiles):
        raise ConfigurationTypeError(
            "exact_profile(profiles=...)", profiles, "give Profiles, or None for the default ones."
        )
    exact = (default_profiles if profiles is None else profiles).exact
    calls = exact.calls(endpoint)
    return ExactReport(calls, [] if endpoint is None else exact.latest(endpoint))


def _pstats(all_calls: Iterable[PackedCalls]) -> bytes:
    """What :class:`pstats.Stats` loads, as :mod:`cProfile` writes it."""
    merged = PackedCalls()
    for calls in all_calls:
        merged.merge(calls)
    callers = merged.by_caller()
    return marshal.dumps(
        {
            _function(function): (
                figures.primitive_calls,
                figures.calls,
                figures.own_ns / 1e9,
                figures.cumulative_ns / 1e9,
                {
                    _function(caller): _from_caller(known)
                    for caller, known in callers[function].items()
                    if caller is not None
                },
            )
            for function, figures in merged.by_function().items()
        }
    )


def _function(line: Line) -> tuple[str, int, str]:
    return line.file or "~", line.line, line.function


def _from_caller(figures: Figures) -> tuple[int, int, float, float]:
    return (  # not in the order of the function's own
        figures.calls,
        figures.primitive_calls,
        figures.own_ns / 1e9,
        figures.cumulative_ns / 1e9,
    )
