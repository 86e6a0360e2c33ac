"""What has to be made for a function, in which order, and out of what: found once, before the first call.

The rules:

* What a parameter is made of: its :class:`Marker`; or else the value that is known by its name; or the one value that
  was given and is of its type (but not of one of Python's own: an `int` may be anything); or its default; or, if it
  has none, what the request knows by its name.
* Each function is one node of the plan, however many parameters depend on it, unless they ask for a call each.
* The nodes are in the order in which nested calls would make them: each behind those that it depends on, these in the
  order of its parameters. Cleaning up is the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, Final, cast

from asgi_perfkit.exceptions import ConfigurationError, DependencyCycleError, DependencyError
from asgi_perfkit.resources.markers import REQUIRED, Dependency, Parameter
from asgi_perfkit.resources.signatures import (
    ASYNC,
    GENERATORS,
    THREAD,
    Wanted,
    kind_of,
    name_of,
    parameters_of,
    undecorated,
)

__all__ = ["GIVEN", "KNOWN", "Input", "Known", "Node", "Plan", "identity", "make_plan"]

# Where a value comes from that is known.
GIVEN: Final = "given"  # to the resolution, by name
KNOWN: Final = "known"  # of the request

# By the identity of what is replaced.
Overrides = Mapping[Hashable, Callable[..., Any]]
_NONE: Overrides = {}
_MISSING: Final = (
    "nobody provides it: give it a default, Depends(...), or a value of that name to resolve()."
)


class Known:
    """A value that is there."""

    __slots__ = ("name", "source")

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self.name = name


class Input:
    """What a parameter gets.

    :ivar name: of the parameter; None if it is given by position.
    """

    __slots__ = ("name", "source")

    def __init__(self, name: str | None, source: Known | Node) -> None:
        self.name = name
        self.source = source


class Node:
    """One call that has to be made.

    :ivar key: what stands for the call where values are kept.
    :ivar call: the function.
    :ivar kind: how it is called.
    :ivar known: the values, as (source, name), that it or what it depends on is made of, if they may differ.
    :ivar replaced: whether it, or what it depends on, stands in the place of another.
    :ivar seen: of the calls that overrides replace, those that it depends on: whether each was replaced there. That is
        not so within what stands in its place.
    """

    __slots__ = (
        "call",
        "concurrent",
        "inputs",
        "key",
        "kind",
        "known",
        "lifetime",
        "measure",
        "name",
        "replaced",
        "seen",
        "ttl",
        "use_cache",
    )

    def __init__(self, call: Callable[..., Any], depends: Dependency) -> None:
        self.key = identity(call)
        self.call = undecorated(call)
        self.kind = kind_of(self.call, depends.thread)
        self.name = name_of(call)
        self.inputs: list[Input] = []
        self.known: dict[tuple[str, str], None] = {}
        self.replaced = False
        self.seen: dict[Hashable, bool] = {}
        self.use_cache = depends.use_cache
        self.ttl = depends.ttl
        self.lifetime = depends.lifetime
        self.concurrent = depends.concurrent and self.kind in (ASYNC, THREAD)
        self.measure = depends.measure

    def sources(self) -> list[Node]:
        """The nodes that it depends on, each once."""
        found = (each.source for each in self.inputs)
        return list(dict.fromkeys(each for each in found if isinstance(each, Node)))


class Plan:
    """What has to be made for a function.

    :ivar root: the function itself. It holds no reference to that: the plan is kept for as long as the function.
    :ivar nodes: the calls before it, in order.
    :ivar by_type: whether the types of the values that were given have decided something.
    """

    __slots__ = ("by_type", "nodes", "root")

    def __init__(self, root: Node, nodes: list[Node], *, by_type: bool) -> None:
        self.root = root
        self.nodes = nodes
        self.by_type = by_type


class _ByIdentity:
    """Stands in a key for what is not hashable."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other._value is self._value


def identity(value: Any) -> Hashable:
    """`value` for a key, where being equal is being the same for want of something better."""
    try:
        hash(value)
    except TypeError:
        return _ByIdentity(value)
    return cast("Hashable", value)


def make_plan(
    func: Callable[..., Any],
    *,
    given: Mapping[str, type] | None = None,
    known: Collection[str] = (),
    overrides: Overrides = _NONE,
    mark: Hashable = None,
    missing: str = _MISSING,
) -> Plan:
    """The plan for `func`.

    :param given: the types of the values that will be given, by name.
    :param known: the names of those that the request knows.
    :param overrides: what is called in the place of what.
    :param mark: goes into the keys of what that changes.
    :param missing: what to do about a parameter that gets no value.
    :raises DependencyError: a parameter gets no value, or one that does not live as long as what it is for.
    :raises DependencyCycleError: a function depends on itself.
    """
    planner = _Planner(given or {}, known, overrides, mark, missing)
    root = Node(func, Dependency(func))
    root.call = func
    root.kind = kind_of(func, None)
    planner.visit(root)
    # The function owns the plan, and not the other way round.
    root.call = root.key = None  # type: ignore[assignment]
    return Plan(root, planner.nodes, by_type=planner.by_type)


def _fits(kind: type, annotation: type) -> bool:
    try:
        return issubclass(kind, annotation)
    except TypeError:  # most protocols, typed dictionaries: they cannot tell
        return False


class _Planner:
    def __init__(
        self,
        given: Mapping[str, type],
        known: Collection[str],
        overrides: Overrides,
        mark: Hashable,
        missing: str,
    ) -> None:
        self._given = given
        self._known = known
        self._overrides = overrides
        self._replacements = set(map(identity, overrides.values()))
        self._mark = mark
        self._remedy = missing
        self.by_type = False
        self.nodes: list[Node] = []
        self._found: dict[Hashable, list[Node]] = {}
        # From the function to where the search is; and how much was replaced before each.
        self._way: list[tuple[Node, int]] = []
        self._replaced: list[Hashable] = []  # on that way

    def visit(self, node: Node) -> None:
        """Find the inputs of a `node`."""
        place = len(self._replaced)
        # Within what stands in its place a call is another one than without.
        places = [(each.key, replaced) for each, replaced in self._way]
        if (node.key, place) in places:
            names = [*self._names(), node.name]
            raise DependencyCycleError(names[places.index((node.key, place)) :])
        self._way.append((node, place))
        in_order = True  # no parameter was left out so far
        for wanted in self._parameters(node):
            if wanted.positional and not in_order:  # it is left out together with one before it
                if wanted.marker is None:
                    continue
                remedy = (
                    "it can be given by position only, and a parameter before it has no value: "
                    "give that one a value, too, or take the `/` out."
                )
                raise DependencyError(self._names(), wanted.parameter.name, remedy)
            source = self._source(wanted)
            if source is None:
                if wanted.parameter.default is REQUIRED:
                    raise self._missing(wanted)
                in_order = False
                continue
            if isinstance(source, Node):
                self._check_lifetime(node, source, wanted.parameter)
                node.known.update(source.known)
                node.replaced = node.replaced or source.replaced
            else:
                self._check_known(node, source, wanted.parameter)
                node.known[source.source, source.name] = None
            by_position = wanted.positional or (wanted.positional is False and in_order)
            node.inputs.append(Input(None if by_position else wanted.parameter.name, source))
        self._way.pop()

    def _parameters(self, node: Node) -> list[Wanted]:
        try:
            return parameters_of(node.call)
        except ConfigurationError:
            raise
        except Exception as error:
            remedy = f"its annotations cannot be read ({type(error).__name__}: {error})."
            raise DependencyError(self._names(), None, remedy) from error

    def _source(self, wanted: Wanted) -> Known | Node | None:
        parameter = wanted.parameter
        if wanted.marker is not None:
            return self._node(wanted.marker.dependency(parameter))
        name = parameter.name
        if name in self._given:
            return Known(GIVEN, name)
        annotation = parameter.annotation
        if (
            self._given
            and isinstance(annotation, type)
            and annotation.__module__ not in ("builtins", "typing")
        ):
            self.by_type = True
            fitting = [each for each, kind in self._given.items() if _fits(kind, annotation)]
            if len(fitting) > 1:
                remedy = (
                    f"the values {', '.join(fitting)} are all of its type; give one by its name."
                )
                raise DependencyError(self._names(), name, remedy)
            if fitting:
                return Known(GIVEN, fitting[0])
        if parameter.default is REQUIRED and name in self._known:
            return Known(KNOWN, name)
        return None

    def _node(self, depends: Dependency) -> Node:
        call = identity(depends.call)
        is_overridden = call in self._overrides
        is_replaced = is_overridden and call not in self._replaced
        if is_replaced:
            self._replaced.append(call)
        node = self._found_or_new(self._overrides[call] if is_replaced else depends.call, depends)
        if is_replaced:
            self._replaced.pop()
        seen = self._way[-1][0].seen
        seen.update(node.seen)
        if is_overridden:
            seen[call] = is_replaced
        return node

    def _found_or_new(self, call: Callable[..., Any], depends: Dependency) -> Node:
        node = Node(call, depends)
        slot = node.key, node.ttl, node.lifetime
        if node.use_cache:
            for found in self._found.get(slot, ()):
                if all(was == (each not in self._replaced) for each, was in found.seen.items()):
                    found.concurrent = found.concurrent or node.concurrent
                    found.measure = found.measure or node.measure
                    return found
        if node.kind in GENERATORS and node.ttl is not None:
            remedy = "a generator cleans up with its request: it can have no ttl."
            raise DependencyError([*self._names(), node.name], None, remedy)
        node.replaced = node.key in self._replacements
        self.visit(node)
        if node.replaced:  # what is kept for others is not for this one, nor the other way round
            themselves = frozenset(each for each, was in node.seen.items() if not was)
            node.key = self._mark, node.key, themselves
        self.nodes.append(node)
        if node.use_cache:
            self._found.setdefault(slot, []).append(node)
        return node

    def _check_lifetime(self, node: Node, source: Node, parameter: Parameter) -> None:
        if node.lifetime == "app" and source.lifetime != "app":
            remedy = (
                f"{node.name} lives as long as the application and {source.name} as long as a request: "
                f'give {source.name} lifetime="app", too, or {node.name} lifetime="request".'
            )
            raise DependencyError(self._names(), parameter.name, remedy)

    def _check_known(self, node: Node, known: Known, parameter: Parameter) -> None:
        keeper = next((each for each, _ in self._way if each.lifetime == "app"), None)
        if keeper is not None:
            remedy = (
                f"{keeper.name} lives as long as the application, and {known.name} is of a request."
            )
            raise DependencyError(self._names(), parameter.name, remedy)

    def _missing(self, wanted: Wanted) -> DependencyError:
        if wanted.unknown:
            remedy = (
                f"its annotation has names that are not known where the function is defined "
                f"({', '.join(wanted.unknown)}): define what marks the parameter in the module."
            )
        else:
            remedy = self._remedy
        return DependencyError(self._names(), wanted.parameter.name, remedy)

    def _names(self) -> list[str]:
        return [each.name for each, _ in self._way]
