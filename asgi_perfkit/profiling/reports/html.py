"""A flame graph for a browser: one file that needs nothing else, and no network.

Without JavaScript it shows the functions as a table for each endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

from asgi_perfkit.profiling.calls import CallTree, Place, rows
from asgi_perfkit.profiling.stacks import is_app_code

__all__ = ["html"]

_TOP = 50  # functions in the table of each endpoint


def html(trees: Iterable[tuple[str, CallTree]]) -> bytes:
    """All trees in one page, in which one of them is chosen."""
    functions = _Functions()
    endpoints = []
    tables = []
    for index, (name, tree) in enumerate(trees):
        samples, seconds = tree.total()
        graph = _graph(tree, functions)
        endpoints.append({"name": name, "samples": samples, "seconds": seconds, **graph})
        tables.append(_table(index, name, tree, samples, seconds))
    data = {"functions": functions.rows(), "endpoints": endpoints}
    page = files(__package__).joinpath("page.html").read_text("utf-8")
    before, rest = page.split("<!--tables-->")
    between, after = rest.split("{}", 1)
    parts = [before, *tables, between, _for_script(data), after]
    return "".join(parts).encode("utf-8", "replace")


class _Functions:
    """Functions by number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, int], int] = {}

    def number(self, place: Place) -> int:
        return self._numbers.setdefault(place[:3], len(self._numbers))

    def rows(self) -> list[list[Any]]:
        return [
            [function, file, line, int(bool(file) and is_app_code(file))]
            for function, file, line in self._numbers
        ]


def _graph(tree: CallTree, functions: _Functions) -> dict[str, list[Any]]:
    """The tree with the lines of a function joined, as lists: of each node, a parent before its children.

    Not nested: a tree may be deeper than what reads JSON likes.
    """
    parents, numbers, own, seen = [-1], [-1], [0.0], [0]
    lines: list[dict[int, float]] = [{}]
    at: dict[tuple[int, int], int] = {}
    pending = [(tree, 0)]
    while pending:
        node, index = pending.pop()
        own[index] += node.seconds
        seen[index] += node.samples
        for place, child in node.children.items():
            key = index, functions.number(place)
            found = at.get(key)
            if found is None:
                found = at[key] = len(parents)
                parents.append(index)
                numbers.append(key[1])
                own.append(0.0)
                seen.append(0)
                lines.append({})
            if child.seconds:
                known = lines[found]
                known[place.line] = known.get(place.line, 0.0) + child.seconds
            pending.append((child, found))
    return {
        "parent": parents,
        "function": numbers,
        "self": [round(seconds, 6) for seconds in own],
        "seen": seen,
        "lines": [[[line, round(known[line], 6)] for line in known] for known in lines],
    }


def _table(index: int, name: str, tree: CallTree, samples: int, seconds: float) -> str:
    found = rows((stack, node.samples, node.seconds) for stack, node in tree.stacks())
    body = "".join(
        f"<tr><td>{_milliseconds(row['self'])}<td>{_milliseconds(row['total'])}"
        f"<td><code>{_text(row['function'])}</code>"
        f"<td class=file>{_text(row['file'])}{':' + str(row['line']) if row['file'] else ''}\n"
        for row in found[:_TOP]
    )
    rest = f"<p>{len(found) - _TOP:,} more functions.</p>" if len(found) > _TOP else ""
    return (
        f'<section class=table data-endpoint="{index}"><h2>{_text(name)}</h2>'
        f"<p>{_milliseconds(seconds)} ms, seen {samples:,} times</p>"
        f"<table><thead><tr><th scope=col>self, ms<th scope=col>total, ms<th scope=col>function"
        f"<th scope=col>file:line</thead><tbody>\n{body}</tbody></table>{rest}</section>\n"
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}"


def _text(text: object) -> str:
    return escape(str(text))


def _for_script(data: object) -> str:
    """JSON in which nothing can end the element that it stands in; all of it is ASCII."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
