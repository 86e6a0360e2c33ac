"""What :class:`pstats.Stats` loads: a marshalled dictionary, as cProfile writes it.

It holds functions, each with its callers, and knows no endpoints: these stand as the callers of what was outermost.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable
from typing import TypeAlias

from asgi_perfkit.profiling.calls import CallTree

__all__ = ["pstats"]

Function: TypeAlias = tuple[str, int, str]  # file, first line, name


def pstats(trees: Iterable[tuple[str, CallTree]]) -> bytes:
    """All trees in one; the number of calls is that of the samples in which a function was seen."""
    functions: dict[Function, list[float]] = {}
    callers: dict[Function, dict[Function, list[float]]] = {}
    for name, tree in trees:
        endpoint = ("~", 0, name)
        for stack, node in tree.stacks():
            way: list[Function] = [
                endpoint,
                *((place.file or "~", place.first_line, place.function) for place in stack),
            ]
            innermost = len(way) - 1
            counted: set[Function] = set()  # one that calls itself has its time once
            edges: set[tuple[Function, Function]] = set()
            for index, function in enumerate(way):
                own = node.seconds if index == innermost else 0.0
                once = function not in counted
                counted.add(function)
                _add(functions.setdefault(function, [0, 0.0, 0.0]), node, own, once)
                if index:
                    edge = way[index - 1], function
                    known = callers.setdefault(function, {}).setdefault(edge[0], [0, 0.0, 0.0])
                    _add(known, node, own, edge not in edges)
                    edges.add(edge)
    return marshal.dumps(
        {
            function: (
                *_figures(figures),
                {by: _figures(known) for by, known in callers.get(function, {}).items()},
            )
            for function, figures in functions.items()
        }
    )


def _add(figures: list[float], node: CallTree, own: float, once: bool) -> None:
    figures[1] += own
    if once:
        figures[0] += node.samples
        figures[2] += node.seconds


def _figures(figures: list[float]) -> tuple[int, int, float, float]:
    """As pstats has them: calls that are not recursive, calls, own time, time with what was called."""
    times = int(figures[0])
    return times, times, figures[1], figures[2]
