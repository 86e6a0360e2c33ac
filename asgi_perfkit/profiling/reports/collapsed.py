"""Collapsed stacks, one a line: for flamegraph.pl, inferno, and what else reads them.

``endpoint;outermost;...;innermost microseconds``. A semicolon ends a frame, and the last space the stack.
"""

from __future__ import annotations

from collections.abc import Iterable

from asgi_perfkit.profiling.calls import CallTree, Place

__all__ = ["collapsed"]


def collapsed(trees: Iterable[tuple[str, CallTree]]) -> bytes:
    """All trees in one file, each below its name."""
    lines = []
    for name, tree in trees:
        for stack, node in tree.stacks():
            microseconds = round(node.seconds * 1e6)
            if microseconds > 0:
                frames = ";".join(map(_escaped, (name, *map(_shown, stack))))
                lines.append(f"{frames} {microseconds}\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


def _shown(place: Place) -> str:
    return f"{place.function}@{place.file}:{place.line}" if place.file else place.function


def _escaped(text: str) -> str:
    # Whatever else may end a line or separate words for one of the readers is in here, too.
    return (
        "".join(
            "," if each == ";" else "_" if each.isspace() or not each.isprintable() else each
            for each in text
        )
        or "_"
    )
