"""What has called what, and how long that took: for one endpoint, for all of them within a bound.

Stacks have their beginnings in common, so those of all endpoints are kept as one tree of places, and for each endpoint
how long was spent where in it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from threading import RLock
from typing import Any, NamedTuple, TypeGuard

__all__ = ["OVERFLOW", "CallTree", "CallsByEndpoint", "Place", "rows"]

TOP = 20  # functions that the statistics tell for each endpoint
MAX_DEPTH = 128  # places of a stack that are kept: those at both of its ends
MAX_PENDING = 1000  # owners whose endpoint is not known yet

# What each takes at most, in bytes, with its part of the dictionary that it is in.
NODE_BYTES = 400
WEIGHT_BYTES = 300
ENDPOINT_BYTES = 600
_ROOM = NODE_BYTES * MAX_DEPTH  # for one more stack, in any case


class Place(NamedTuple):
    """Where code runs.

    :ivar function: its name, qualified where Python has that.
    :ivar first_line: where the function begins.
    """

    function: str
    file: str
    first_line: int
    line: int


OVERFLOW = Place("<overflow>", "", 0, 0)
"""Stands for all that there was no room for."""
DEEPER = Place("<deeper>", "", 0, 0)
"""Stands for the middle of a stack that is too deep."""


class CallTree:
    """One place in a tree of calls, and what was called there.

    :param place: None for the root.
    :ivar samples: how often it was seen to be the innermost place; where calls are counted, how often it was called.
    :ivar seconds: spent in it, without what it has called.
    :ivar children: the places that were called there.
    """

    __slots__ = ("children", "place", "samples", "seconds")

    def __init__(self, place: Place | None = None) -> None:
        self.place = place
        self.samples = 0
        self.seconds = 0.0
        self.children: dict[Place, CallTree] = {}

    def add(self, stack: Iterable[Place], seconds: float, samples: int = 1) -> None:
        """Add what was spent in the innermost place of a stack, whose outermost comes first."""
        node = self
        for place in stack:
            child = node.children.get(place)
            if child is None:
                child = node.children[place] = CallTree(place)
            node = child
        node.samples += samples
        node.seconds += seconds

    def merge(self, other: CallTree) -> None:
        """Add all of another tree to this one."""
        for stack, node in other.stacks():
            self.add(stack, node.seconds, node.samples)

    def stacks(self) -> Iterator[tuple[tuple[Place, ...], CallTree]]:
        """Each place in which something was spent, below the places that lead to it, the outermost first."""
        pending: list[tuple[tuple[Place, ...], CallTree]] = [((), self)]
        while pending:
            stack, node = pending.pop()
            if node.samples or node.seconds:
                yield stack, node
            children = reversed(node.children.items())
            pending.extend(((*stack, place), child) for place, child in children)

    def total(self) -> tuple[int, float]:
        """The samples and seconds of it all."""
        samples, seconds = 0, 0.0
        for _, node in self.stacks():
            samples += node.samples
            seconds += node.seconds
        return samples, seconds


def rows(stacks: Iterable[tuple[Sequence[Place], int, float]]) -> list[dict[str, Any]]:
    """What was spent in each function, the most first.

    :param stacks: the outermost place first, with the samples and seconds of the innermost.
    :return: for each its name, its file, its line in which most was spent, and the seconds: in the function itself,
        and with what it has called.
    """
    found: dict[tuple[str, str, int], _Row] = {}
    for stack, _, seconds in stacks:
        seen = set()
        for place in reversed(stack):
            function = place[:3]
            if function not in seen:  # one that calls itself is not counted twice
                seen.add(function)
                row = found.get(function)
                if row is None:
                    row = found[function] = _Row()
                row.total += seconds
                own = 0.0
                if len(seen) == 1:
                    row.own += seconds
                    own = seconds
                line = row.lines.setdefault(place.line, [0.0, 0.0])
                line[0] += own
                line[1] += seconds
    ordered = sorted(found.items(), key=lambda item: (-item[1].own, -item[1].total, item[0]))
    return [
        {
            "function": function,
            "file": file,
            "line": max(row.lines, key=row.lines.__getitem__),
            "self": row.own,
            "total": row.total,
        }
        for (function, file, _), row in ordered
    ]


class _Row:
    __slots__ = ("lines", "own", "total")

    def __init__(self) -> None:
        self.own = self.total = 0.0
        self.lines: dict[int, list[float]] = {}


class _Node:
    """A place in the tree of all endpoints."""

    __slots__ = ("children", "parent", "place")

    def __init__(self, place: Place, parent: _Node | None) -> None:
        self.place = place
        self.parent = parent
        self.children: dict[Place, _Node] | None = None

    def stack(self) -> list[Place]:
        places = []
        node: _Node | None = self
        while node is not None and node.parent is not None:
            places.append(node.place)
            node = node.parent
        places.reverse()
        return places

    def let_go(self) -> None:
        """Let go of all below, which has no cycles then: nobody waits for a garbage collection to free it."""
        pending = [self]
        while pending:
            node = pending.pop()
            children, node.children = node.children, None
            if children is not None:
                pending.extend(children.values())


_Weights = dict[_Node, list[float]]  # samples, seconds


class CallsByEndpoint:
    """What was spent where, by endpoint: a section of the profiles. All methods may be called from any thread.

    The name of an endpoint may be known only at the end of a request: until then what it has spent is kept by its
    owner. Where the bound is reached, what has the least seconds is made one, :data:`OVERFLOW`, of its endpoint.

    :param max_bytes: that it may take.
    :param endpoint: the only one that is kept; None for all.
    :ivar pending: what is kept by owner. Others look up keys, and change nothing.
    :ivar overflowed: how many samples were made one with others.
    """

    def __init__(self, max_bytes: int, endpoint: str | None = None) -> None:
        self._max_bytes = max_bytes
        self._only = endpoint
        self._lock = RLock()
        self._root = _Node(OVERFLOW, None)
        self._frozen = False
        self.clear()

    def clear(self) -> None:
        """Forget it all."""
        with self._lock:
            self._root.let_go()
            self._overflow = _Node(OVERFLOW, self._root)
            self._endpoints: dict[str, _Weights] = {}
            self.pending: dict[Hashable, tuple[Callable[[], str | None], _Weights]] = {}
            self._ended: deque[tuple[Hashable, str | None]] = deque()
            self._bytes = self._bytes_at_best = 0
            self.overflowed = 0

    def resize(self, max_bytes: int) -> None:
        """Keep no more than so many bytes."""
        with self._lock:
            self._max_bytes = max_bytes
            if self._bytes > max_bytes:
                self._shrink(max_bytes)

    def freeze(self) -> None:
        """Add nothing from now on; what is pending has the name that is known by now."""
        with self._lock:
            self._frozen = True
            self._settle_ended()
            for owner, (label, _) in list(self.pending.items()):
                self._settle(owner, label())

    def start_anew(self) -> None:
        """Forget it all, and who was about to add to it: in a forked child nobody releases a lock of the parent's."""
        self._lock = RLock()
        self.clear()

    def keeps(self, endpoint: str | None) -> TypeGuard[str]:
        """Whether what is of an `endpoint` is kept; of None nothing is."""
        return endpoint is not None and (self._only is None or endpoint == self._only)

    def add(
        self, endpoint: str | None, stack: Iterable[Place], seconds: float, samples: int = 1
    ) -> None:
        """Add what was spent in the innermost place of a stack, whose outermost comes first."""
        if not self.keeps(endpoint):
            return
        with self._lock:
            if not self._frozen:
                self._add(self._weights_of(endpoint), stack, seconds, samples)

    def add_pending(
        self,
        owner: Hashable,
        label: Callable[[], str | None],
        stack: Iterable[Place],
        seconds: float,
    ) -> None:
        """Add a sample of an `owner` whose endpoint is known for sure when it has :meth:`ended`.

        :param label: names the endpoint as far as it is known by now; None if, by now, the owner's samples are not to
            be kept.
        """
        with self._lock:
            self._settle_ended()
            if self._frozen:
                return
            entry = self.pending.get(owner)
            if entry is None:
                if len(self.pending) >= MAX_PENDING or self._is_full(ENDPOINT_BYTES):
                    self.add(label(), stack, seconds)
                    return
                entry = self.pending[owner] = label, {}
                self._bytes += ENDPOINT_BYTES
            self._add(entry[1], stack, seconds, 1)

    def ended(self, owner: Hashable, endpoint: str | None) -> None:
        """Give what is kept of an `owner` to its endpoint, or to nobody. Takes no lock: that is done later."""
        self._ended.append((owner, endpoint))

    def settle(self) -> None:
        """Let go of the owners that have ended."""
        if self._ended:
            with self._lock:
                self._settle_ended()

    def withdraw(self, owner: Hashable, endpoint: str | None) -> None:
        """Give what is kept of an `owner` to an `endpoint`, or to nobody, unless it has :meth:`ended`."""
        with self._lock:
            self._settle_ended()
            self._settle(owner, endpoint)

    def tree_of(self, owner: Hashable) -> CallTree | None:
        """What has been kept of an `owner` so far; None if that is nothing."""
        with self._lock:
            entry = self.pending.get(owner)
            return None if entry is None else _tree(_copied(entry[1]))

    def trees(self) -> list[tuple[str, CallTree]]:
        """All that was kept, by endpoint, the one with the most seconds first."""
        found = [(endpoint, _tree(weights)) for endpoint, weights in self._so_far().items()]
        return sorted(found, key=lambda item: -item[1].total()[1])

    def statistics(self) -> dict[str, Any]:
        """For each endpoint its samples, its seconds, and the functions that have taken the most of these."""
        return {
            endpoint: {
                "samples": sum(samples for _, samples, _ in weights),
                "seconds": sum(seconds for _, _, seconds in weights),
                "top": rows(weights)[:TOP],
            }
            for endpoint, weights in self._so_far().items()
        }

    def _so_far(self) -> Mapping[str, list[tuple[Sequence[Place], int, float]]]:
        """A copy of it all, of those that are in flight too, under the names that they have by now."""
        with self._lock:
            self._settle_ended()
            found = {endpoint: _copied(kept) for endpoint, kept in self._endpoints.items()}
            pending = [(label, _copied(kept)) for label, kept in self.pending.values()]
        for label, weights in pending:
            endpoint = label()
            if self.keeps(endpoint):
                found.setdefault(endpoint, []).extend(weights)
        return {
            endpoint: [(node.stack(), samples, seconds) for node, samples, seconds in weights]
            for endpoint, weights in found.items()
        }

    def _is_full(self, cost: int) -> bool:
        return self._bytes + cost > self._max_bytes

    def _weights_of(self, endpoint: str) -> _Weights:
        weights = self._endpoints.get(endpoint)
        if weights is None:
            cost = ENDPOINT_BYTES + sys.getsizeof(endpoint)
            if self._is_full(cost) and endpoint != OVERFLOW.function:
                return self._weights_of(OVERFLOW.function)
            self._bytes += cost
            weights = self._endpoints[endpoint] = {}
        return weights

    def _add(
        self, weights: _Weights, stack: Iterable[Place], seconds: float, samples: float
    ) -> None:
        self._put(weights, self._node_of(_cut(stack)), seconds, samples)
        if self._is_full(_ROOM) and self._bytes - self._bytes_at_best > self._max_bytes // 8:
            self._shrink(self._max_bytes // 2)

    def _put(self, weights: _Weights, node: _Node | None, seconds: float, samples: float) -> None:
        """Add to a node; to the one for all others if that is None, or there is no room."""
        if node is None or (node not in weights and self._is_full(WEIGHT_BYTES)):
            self.overflowed += round(samples)
            node = self._overflow
        self._weigh(weights, node, seconds, samples)

    def _weigh(self, weights: _Weights, node: _Node, seconds: float, samples: float) -> None:
        weight = weights.get(node)
        if weight is None:
            weights[node] = [samples, seconds]
            self._bytes += WEIGHT_BYTES
        else:
            weight[0] += samples
            weight[1] += seconds

    def _node_of(self, stack: Iterable[Place]) -> _Node | None:
        """The node of a stack; None if there is no room for it."""
        node = self._root
        for place in stack:
            children = node.children
            child = None if children is None else children.get(place)
            if child is None:
                if self._is_full(NODE_BYTES):
                    return None
                child = _Node(place, node)
                if children is None:
                    children = node.children = {}
                children[place] = child
                self._bytes += NODE_BYTES
            node = child
        return node

    def _settle_ended(self) -> None:
        while self._ended:
            self._settle(*self._ended.popleft())

    def _settle(self, owner: Hashable, endpoint: str | None) -> None:
        settled = self.pending.pop(owner, None)
        if settled is not None:
            self._bytes -= ENDPOINT_BYTES + WEIGHT_BYTES * len(settled[1])
            if self.keeps(endpoint):
                weights = self._weights_of(endpoint)
                for node, (samples, seconds) in settled[1].items():
                    self._weigh(weights, node, seconds, samples)

    def _shrink(self, max_bytes: int) -> None:
        """Keep what has the most seconds in `max_bytes`, and of the rest only how much it was."""
        everyone = [*self._endpoints.values(), *(weights for _, weights in self.pending.values())]
        kept = [
            (seconds, samples, node, weights)
            for weights in everyone
            for node, (samples, seconds) in weights.items()
        ]
        kept.sort(key=lambda each: each[0], reverse=True)
        for weights in everyone:
            weights.clear()
        self._root.let_go()
        self._bytes = ENDPOINT_BYTES * len(everyone) + sum(map(sys.getsizeof, self._endpoints))
        allowed, self._max_bytes = self._max_bytes, max_bytes
        try:
            for seconds, samples, node, weights in kept:
                if node is self._overflow:
                    self._weigh(weights, node, seconds, samples)
                else:
                    self._put(weights, self._node_of(node.stack()), seconds, samples)
        finally:
            self._max_bytes = allowed
            self._bytes_at_best = self._bytes


def _cut(stack: Iterable[Place]) -> Iterable[Place]:
    if not isinstance(stack, list):
        stack = list(stack)
    if len(stack) <= MAX_DEPTH:
        return stack
    half = MAX_DEPTH // 2
    return [*stack[:half], DEEPER, *stack[1 - half :]]


def _copied(weights: _Weights) -> list[tuple[_Node, int, float]]:
    return [(node, round(samples), seconds) for node, (samples, seconds) in list(weights.items())]


def _tree(weights: Iterable[tuple[Any, int, float]]) -> CallTree:
    tree = CallTree()
    for where, samples, seconds in weights:
        tree.add(where.stack() if isinstance(where, _Node) else where, seconds, samples)
    return tree
