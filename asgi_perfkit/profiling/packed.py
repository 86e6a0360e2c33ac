"""A tree of calls in little memory, as it is kept of requests that were profiled exactly."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

from asgi_perfkit.profiling.calls import CallTree, Place
from asgi_perfkit.profiling.recorder import MAX_NODES, CallNode
from asgi_perfkit.profiling.stacks import Line

__all__ = ["Figures", "PackedCalls"]


class Figures(NamedTuple):
    """What the calls of a function have come to.

    :ivar calls: how often it was called or, as a coroutine or generator, resumed.
    :ivar primitive_calls: those of them that the function has not made itself, directly or through others.
    :ivar own_ns: the time in the function itself.
    :ivar cumulative_ns: the time from its calls to their ends, counted once where it has called itself.
    """

    calls: int
    primitive_calls: int
    own_ns: int
    cumulative_ns: int

    def __add__(self, other: tuple[object, ...]) -> Figures:
        return Figures(*(mine + its for mine, its in zip(self, other, strict=True)))  # type: ignore[operator]


NOTHING = Figures(0, 0, 0, 0)


class PackedCalls:
    """A tree of calls: of each node the index of its parent, its function, its calls and its own time.

    A parent comes before its children; the index of one that is called by nobody is -1.

    :ivar functions: by the number that `numbers` has of a node. The line is that of the definition; what is not
        written in Python has no file and the line 0.
    :ivar cut: how many calls had no room. Their time is in the own time of who has called them.
    """

    __slots__ = (
        "_indexes",
        "_numbers",
        "calls",
        "cut",
        "functions",
        "numbers",
        "own_ns",
        "parents",
    )

    def __init__(self) -> None:
        self.functions: list[Line] = []
        self.parents = array("i")
        self.numbers = array("i")
        self.calls = array("q")
        self.own_ns = array("q")
        self.cut = 0
        # While calls are added: the number of each function, and the index of each node.
        self._numbers: dict[Line, int] = {}
        self._indexes: dict[tuple[int, int], int] = {}

    @classmethod
    def of(cls, root: CallNode, cut: int = 0) -> PackedCalls:
        """Pack what was recorded, without the frames that drive the request, and take the recorded tree apart."""
        packed = cls()
        packed.cut = cut
        pending = [(root, -1)]
        while pending:
            node, index = pending.pop()
            node.parent = None  # nothing is left to the garbage collector
            if not (node.drives or node.watches):
                index = packed._add(index, _line_of(node), node.calls, node.own_ns)
            for child in () if node.watches else node.children.values():
                if child.code is None and node.drives:
                    child.drives = True  # `send` of the coroutine
                pending.append((child, index))
            node.children = {}
        packed._pack()
        return packed

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def size(self) -> int:
        """About how many bytes it takes. The strings are those of the code."""
        return 400 + 24 * len(self.numbers) + 100 * len(self.functions)

    def merge(self, other: PackedCalls, max_nodes: int = MAX_NODES) -> None:
        """Add the calls of `other`."""
        self._numbers = {function: number for number, function in enumerate(self.functions)}
        self._indexes = {
            place: index for index, place in enumerate(zip(self.parents, self.numbers, strict=True))
        }
        self.cut += other.cut
        moved: list[int] = []
        for parent, number, calls, own_ns in zip(
            other.parents, other.numbers, other.calls, other.own_ns, strict=True
        ):
            above = parent if parent < 0 else moved[parent]
            function = other.functions[number]
            place = (above, self._numbers.get(function, -1))
            if len(self) < max_nodes or place in self._indexes:
                above = self._add(above, function, calls, own_ns)
            else:
                self.cut += calls
                if above >= 0:
                    self.own_ns[above] += own_ns
            moved.append(above)
        self._pack()

    def cumulative(self) -> list[int]:
        """Of each node, the time of its own and of all below it."""
        totals = list(self.own_ns)
        for index in range(len(totals) - 1, -1, -1):
            if self.parents[index] >= 0:
                totals[self.parents[index]] += totals[index]
        return totals

    def by_function(self) -> dict[Line, Figures]:
        """What the calls of each function have come to."""
        found: dict[Line, Figures] = {}
        for function, _caller, figures, _by_caller in self._edges():
            found[function] = found.get(function, NOTHING) + figures
        return found

    def by_caller(self) -> dict[Line, dict[Line | None, Figures]]:
        """The same of each function, apart for each that has called it; None stands for the request itself."""
        found: dict[Line, dict[Line | None, Figures]] = {}
        for function, caller, _figures, figures in self._edges():
            callers = found.setdefault(function, {})
            callers[caller] = callers.get(caller, NOTHING) + figures
        return found

    def rows(self) -> list[dict[str, Any]]:
        """For each function what a table of them shows, the one first that has taken the most time itself."""
        found = sorted(self.by_function().items(), key=lambda each: (-each[1].own_ns, each[0]))
        return [
            {
                "function": function.function,
                "file": function.file,
                "line": function.line,
                "calls": figures.calls,
                "primitive_calls": figures.primitive_calls,
                "self": figures.own_ns / 1e9,
                "total": figures.cumulative_ns / 1e9,
            }
            for function, figures in found
        ]

    def tree(self) -> CallTree:
        """The same as a tree that :mod:`asgi_perfkit.profiling.reports` writes."""
        root = CallTree()
        nodes: list[CallTree] = []
        for parent, number, calls, own_ns in zip(
            self.parents, self.numbers, self.calls, self.own_ns, strict=True
        ):
            function = self.functions[number]
            place = Place(function.function, function.file, function.line, function.line)
            node = CallTree(place)
            node.samples = calls
            node.seconds = own_ns / 1e9
            (root if parent < 0 else nodes[parent]).children[place] = node
            nodes.append(node)
        return root

    def _edges(self) -> Iterator[tuple[Line, Line | None, Figures, Figures]]:
        """For each node its function, which has called it, and its figures, as of that function and of these two."""
        totals = self.cumulative()
        children: list[list[int]] = [[] for _ in self.numbers]
        pending: list[int] = []
        for index, parent in enumerate(self.parents):
            (pending if parent < 0 else children[parent]).append(index)
        # How often the way down to a node has each function, and each with the same caller.
        running: dict[int | tuple[int, int], int] = {}
        while pending:
            index = pending.pop()
            node = ~index if index < 0 else index
            number, parent = self.numbers[node], self.parents[node]
            edge = (-1 if parent < 0 else self.numbers[parent], number)
            if index < 0:  # the way back up
                running[number] -= 1
                running[edge] -= 1
                continue
            yield (
                self.functions[number],
                None if parent < 0 else self.functions[edge[0]],
                self._figures(index, totals[index], not running.get(number)),
                self._figures(index, totals[index], not running.get(edge)),
            )
            running[number] = running.get(number, 0) + 1
            running[edge] = running.get(edge, 0) + 1
            pending.append(~index)
            pending += children[index]

    def _figures(self, index: int, total_ns: int, outermost: bool) -> Figures:
        calls = self.calls[index]
        return Figures(
            calls, calls if outermost else 0, self.own_ns[index], total_ns if outermost else 0
        )

    def _add(self, parent: int, function: Line, calls: int, own_ns: int) -> int:
        number = self._numbers.setdefault(function, len(self.functions))
        if number == len(self.functions):
            self.functions.append(function)
        index = self._indexes.setdefault((parent, number), len(self))
        if index == len(self):
            self.parents.append(parent)
            self.numbers.append(number)
            self.calls.append(calls)
            self.own_ns.append(own_ns)
        else:
            self.calls[index] += calls
            self.own_ns[index] += own_ns
        return index

    def _pack(self) -> None:
        self._numbers = {}
        self._indexes = {}


def _line_of(node: CallNode) -> Line:
    code = node.code
    if code is not None:
        return Line(
            code.co_filename, code.co_firstlineno, getattr(code, "co_qualname", code.co_name)
        )
    assert node.name is not None
    name, module = node.name
    owner, _, method = name.rpartition(".")
    if module is None and owner:  # as pstats shows them
        return Line("", 0, f"<method '{method}' of '{owner}' objects>")
    return Line(
        "~", 0, f"<built-in method {module}.{name}>" if module else f"<built-in method {name}>"
    )
