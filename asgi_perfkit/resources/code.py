"""Makes of a plan the function that carries it out.

A loop over the nodes would cost more than the calls that it makes: what it decides for each node is decided once, by
writing down what is left. The functions themselves and all that is particular to them are in the namespace of the
code, so plans of one shape share it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from contextlib import contextmanager
from functools import lru_cache, partial
from time import perf_counter_ns
from types import CodeType
from typing import Any
from weakref import WeakValueDictionary

from asgi_perfkit.caching.shared import SharedCache
from asgi_perfkit.caching.store import MISSING
from asgi_perfkit.resources.apart import Apart
from asgi_perfkit.resources.manager import not_yielded
from asgi_perfkit.resources.plan import GIVEN, Known, Node, Plan
from asgi_perfkit.resources.running import (
    METRIC,
    Attempt,
    begin,
    broken,
    called,
    failed,
    key_of,
    known_value,
    need_app,
    ttl_key_of,
)
from asgi_perfkit.resources.signatures import (
    ASYNC,
    ASYNC_GENERATOR,
    GENERATORS,
    INLINE,
    THREAD,
    THREAD_GENERATOR,
)
from asgi_perfkit.resources.tickets import ABSENT, RESOLVE, Ticket, joined
from asgi_perfkit.threads.functions import run_in_threadpool

__all__ = [
    "Caches",
    "Names",
    "Solver",
    "compile_plan",
    "namespace_of",
    "run_code",
    "shared_caches",
]

# Of the manager, the account, the function that is resolved, and the values that were given.
Solver = Callable[[Any, Any, Any, Any], Coroutine[Any, Any, Any]]
Caches = WeakValueDictionary[tuple[int, float, Hashable], SharedCache]

_TTL_VALUES = 1000
_INDENT = "    "

shared_caches: Caches = WeakValueDictionary()
"""The values that are kept beyond requests, by function and ttl. The plans keep the caches, and the functions, too."""


def compile_plan(plan: Plan, caches: Caches, go_on: Callable[..., Any]) -> Solver:
    """The function that carries out a `plan`, one call after the other.

    :param caches: where those of other plans are found, for what stands in the place of something.
    :param go_on: carries out the rest of the plan when it is not the only one any more.
    """
    namespace = namespace_of(plan, caches)
    namespace["go_on"] = go_on
    solver: Solver = run_code(_Writer(plan).write(), namespace, "solve")
    if plan.nodes and all(
        node.use_cache and node.ttl is None and node.lifetime == "request" for node in plan.nodes
    ):
        solver = run_code(_FirstWriter(plan).write(), namespace, "solve_first")
    return solver


def namespace_of(plan: Plan, caches: Caches) -> dict[str, Any]:
    """What the code of a plan refers to: for each node, by its number, the function (`c`), its key (`k`), its name
    (`n`), the manager that a generator is made into (`m`), and the cache of its values (`t`).
    """
    namespace = dict(_HELPERS)
    for number, node in enumerate(plan.nodes):
        namespace[f"c{number}"] = node.call
        namespace[f"k{number}"] = node.key
        namespace[f"n{number}"] = node.name
        if node.kind == THREAD_GENERATOR:
            namespace[f"m{number}"] = contextmanager(node.call)
        if node.ttl is not None:
            namespace[f"t{number}"] = cache_of(node, caches if node.replaced else shared_caches)
    return namespace


def cache_of(node: Node, caches: Caches) -> SharedCache:
    """The cache of the values of a `node` that has a ttl."""
    assert node.ttl is not None
    slot = id(node.call), node.ttl, node.key if node.replaced else None
    cache = caches.get(slot)
    if cache is None:
        cache = caches[slot] = SharedCache(f"Depends({node.name})", _TTL_VALUES, node.ttl)
    return cache


def run_code(source: str, namespace: dict[str, Any], name: str) -> Any:
    """Run the `source` of a function, in a `namespace`; returns the function of that `name`."""
    exec(_code_of(source), namespace)
    return namespace[name]


@lru_cache(256)
def _code_of(source: str) -> CodeType:
    return compile(source, RESOLVE, "exec")


_HELPERS: dict[str, Any] = {
    "ABSENT": ABSENT,
    "Apart": Apart,
    "Attempt": Attempt,
    "METRIC": METRIC,
    "MISSING": MISSING,
    "Ticket": Ticket,
    "begin": begin,
    "broken": broken,
    "called": called,
    "contextmanager": contextmanager,
    "clock": perf_counter_ns,
    "failed": failed,
    "joined": joined,
    "key_of": key_of,
    "known_value": known_value,
    "need_app": need_app,
    "not_yielded": not_yielded,
    "partial": partial,
    "run_in_threadpool": run_in_threadpool,
    "ttl_key_of": ttl_key_of,
}


class Names:
    """How the code of a plan calls things."""

    def __init__(self, plan: Plan, value: str) -> None:
        self.numbers = {node: number for number, node in enumerate(plan.nodes)}
        self._value = value

    def value(self, source: Node | Known) -> str:
        if isinstance(source, Node):
            return self._value.format(self.numbers[source])
        return self._known(source.source, source.name)

    def _known(self, source: str, name: str) -> str:
        return f"values[{name!r}]" if source == GIVEN else f"known_value(manager, {name!r})"

    def arguments(self, node: Node) -> str:
        return ", ".join(
            self.value(each.source)
            if each.name is None
            else f"{each.name}={self.value(each.source)}"
            for each in node.inputs
        )

    def key(self, node: Node) -> str:
        """The key of its value: it takes the values into account that it is made of."""
        number = self.numbers[node]
        if not node.known:
            return f"k{number}"
        values = ", ".join(self._known(*each) for each in node.known)
        return f"{'key_of' if node.ttl is None else 'ttl_key_of'}(k{number}, {values})"

    def deferred(self, node: Node) -> str:
        """An expression for a function without arguments that makes the value when it is called and awaited."""
        number = self.numbers[node]
        if node.kind == THREAD:
            return f"partial(run_in_threadpool, {self.in_thread(node, f'c{number}')})"
        before = {ASYNC: "", INLINE: "called, "}[node.kind]
        arguments = self.arguments(node)
        return f"partial({before}c{number}{', ' if arguments else ''}{arguments})"

    def in_thread(self, node: Node, function: str) -> str:
        """What `run_in_threadpool` is called with, so that it calls the `function` of a node."""
        arguments = self.arguments(node)
        if any(each.name is not None for each in node.inputs):  # it has options of its own
            return f"partial({function}, {arguments})"
        return f"{function}{', ' if arguments else ''}{arguments}"


class _Writer:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._names = Names(plan, "v{}")
        self._lines: list[str] = []
        self._depth = 1
        # What is needed by one branch only is made in that branch, and in each of several. Not without end.
        self._branches_left = 4 * len(plan.nodes)
        self._opens = any(
            node.kind in GENERATORS and node.lifetime == "request" for node in plan.nodes
        )
        self._keeps = any(node.use_cache and node.ttl is None for node in plan.nodes)
        self._has_app = any(node.lifetime == "app" for node in plan.nodes)

    def write(self) -> str:
        """The code for a plan that is not the first one."""
        root = self._plan.root
        self._lines = ["async def solve(manager, account, func, values):"]
        if self._plan.nodes:
            self._preamble()
            self._line("try:")
            self._depth += 1
            done: set[Node] = set()
            for node in root.sources():
                self._node(node, done)
            self._depth -= 1
            self._failure()
            self._line("if account is not None:")
            self._line("    account.observe(METRIC, clock() - started)")
        self._root(root)
        return "\n".join(self._lines) + "\n"

    def _line(self, text: str) -> None:
        self._lines.append(_INDENT * self._depth + text)

    def _preamble(self) -> None:
        self._line("begin(manager)")
        self._line("if account is not None:")
        self._line("    started = clock()")
        if self._keeps:
            self._line("key = None")
            self._line("ticket = Ticket()")
            self._line("solved = manager.solved")
            self._line("get = solved.get")
        if self._opens:
            self._line("exits = manager.exits")
            self._line("attempt = Attempt(manager)")
        if self._has_app:
            self._line("app = need_app(manager)")

    def _failure(self) -> None:
        self._line("except BaseException as error:")
        if self._keeps:
            self._line(
                f"    failed(manager, {'app' if self._has_app else 'None'}, ticket, key, error)"
            )
        if self._opens:
            self._line("    await attempt.fail(error)")
        self._line("    raise")
        if self._opens:
            self._line("finally:")
            self._line("    manager.active -= 1")

    def _node(self, node: Node, done: set[Node]) -> None:
        """Write down how a `node` gets its value, and those before it that are not `done`."""
        if node in done:
            return
        lazy = node.ttl is not None or node.lifetime == "app"
        lazy = lazy or any(not each.use_cache for each in node.sources())
        lazy = lazy and self._branches_left > 0
        if not lazy:
            for source in node.sources():
                self._node(source, done)
        done.add(node)
        if node.ttl is not None:
            self._timed(node, lazy, done)
        elif node.use_cache:
            self._kept(node, lazy, done)
        else:
            if lazy:
                for source in node.sources():
                    self._node(source, done)
            self._make(node)

    def _branch(self, node: Node, lazy: bool, done: set[Node]) -> None:
        if lazy:
            self._branches_left -= 1
            done = set(done)
            for source in node.sources():
                self._node(source, done)

    def _kept(self, node: Node, lazy: bool, done: set[Node]) -> None:
        number = self._names.numbers[node]
        key = self._names.key(node)
        if node.known:
            self._line(f"key{number} = {key}")
            key = f"key{number}"
        home, get = (
            ("app.solved", "app.solved.get") if node.lifetime == "app" else ("solved", "get")
        )
        value = f"v{number}"
        self._line(f"{value} = {get}({key}, ABSENT)")
        self._line(
            f"if {value} is ABSENT or type({value}) is Ticket and "
            f"({value} := await joined({home}, {key})) is ABSENT:"
        )
        self._depth += 1
        self._branch(node, lazy, done)
        self._line(f"key = {key}")
        self._line(f"{home}[key] = ticket")
        self._make(node)
        self._line(f"{home}[{key}] = {value}")
        self._line("if ticket:")
        self._line("    ticket.wake()")
        self._depth -= 1

    def _timed(self, node: Node, lazy: bool, done: set[Node]) -> None:
        number = self._names.numbers[node]
        self._line(f"key{number} = {self._names.key(node)}")
        self._line(f"v{number} = t{number}.find(key{number})")
        self._line(f"if v{number} is MISSING:")
        self._depth += 1
        self._branch(node, lazy, done)
        self._measured(
            node, f"v{number} = await t{number}.afetch(key{number}, {self._names.deferred(node)})"
        )
        self._depth -= 1

    def _make(self, node: Node) -> None:
        number = self._names.numbers[node]
        arguments = self._names.arguments(node)
        if node.kind == ASYNC:
            self._measured(node, f"v{number} = await c{number}({arguments})")
        elif node.kind == THREAD:
            call = self._names.in_thread(node, f"c{number}")
            self._measured(node, f"v{number} = await run_in_threadpool({call})")
        elif node.kind == INLINE:
            self._measured(node, f"v{number} = c{number}({arguments})")
        else:
            keeper = "app" if node.lifetime == "app" else "manager"
            if node.kind == THREAD_GENERATOR:
                self._measured(node, f"v{number} = await {keeper}.enter(m{number}({arguments}))")
            else:
                self._generator(node, keeper)
            if keeper == "manager":
                self._line("attempt.opened += 1")

    def _generator(self, node: Node, keeper: str) -> None:
        number = self._names.numbers[node]
        self._line(f"g = c{number}({self._names.arguments(node)})")
        self._line(f"if {'attempt.apart' if keeper == 'manager' else 'app.is_apart()'}:")
        self._line("    g = Apart(g)")
        self._line("try:")
        self._depth += 1
        if node.kind == ASYNC_GENERATOR:
            self._measured(node, f"v{number} = await g.__anext__()")
        else:
            self._measured(node, f"v{number} = next(g)")
        self._depth -= 1
        self._line("except (StopAsyncIteration, StopIteration):")
        self._line(f"    raise not_yielded(n{number}) from None")
        self._line(f"if {keeper}.closed:")
        self._line(f"    await {keeper}.keep(g)")
        self._line(f"{'exits' if keeper == 'manager' else 'app.exits'}.append(g)")

    def _measured(self, node: Node, statement: str) -> None:
        if node.measure:
            self._line("if account is not None:")
            self._line("    asked = clock()")
        self._line(statement)
        if node.measure:
            self._line("if account is not None:")
            self._line(f"    account.observe({'depends ' + node.name!r}, clock() - asked)")

    def _root(self, root: Node) -> None:
        arguments = self._names.arguments(root)
        if root.kind == ASYNC:
            self._line(f"return await func({arguments})")
        elif root.kind == THREAD:
            self._line(f"return await run_in_threadpool({self._names.in_thread(root, 'func')})")
        elif root.kind == INLINE:
            self._line(f"return func({arguments})")
        elif root.kind == THREAD_GENERATOR:
            self._line(f"return await manager.enter(contextmanager(func)({arguments}))")
        else:
            self._line(f"return await manager.open_made(func({arguments}))")


class _FirstWriter(_Writer):
    """The same for the first plan of a request, which is the only one as a rule.

    The values go into a list, and nowhere else, and nobody is told of them, until another resolution begins: that
    makes up for what is missing, and this one goes on as it does.
    """

    def write(self) -> str:
        root, nodes = self._plan.root, self._plan.nodes
        keys = ", ".join(map(self._names.key, nodes))
        self._lines = [
            "def make_keys(manager, values):",
            f"    return [{keys}]",
            "async def solve_first(manager, account, func, values):",
            "    if manager.begun:",
            "        return await solve(manager, account, func, values)",
            "    manager.begun = 1",
            "    if account is not None:",
            "        started = clock()",
            f"    made = [ABSENT] * {len(nodes)}",
            "    shared = []",
            "    ledger = manager.ledger = (make_keys, made, values, shared)",
        ]
        if self._opens:
            self._line("exits = manager.exits")
            self._line("attempt = Attempt(manager)")
        self._line("try:")
        self._depth += 1
        self._line("while True:")
        self._depth += 1
        for number, node in enumerate(nodes):
            if number:
                self._line("if shared:")
                self._line("    break")
            self._make(node)
            self._line(f"made[{number}] = v{number}")
        self._line("break")
        self._depth -= 1
        self._line("if shared:")
        attempt = "attempt" if self._opens else "None"
        self._line(f"    await go_on(manager, account, ledger, {attempt})")
        names = ", ".join(f"v{number}" for number in range(len(nodes)))
        self._line(f"    [{names}] = made")
        self._depth -= 1
        self._line("except BaseException as error:")
        self._line("    broken(manager, ledger, error)")
        if self._opens:
            self._line("    await attempt.fail(error)")
        self._line("    raise")
        if self._opens:
            self._line("finally:")
            self._line("    manager.active -= 1")
        self._line("if account is not None:")
        self._line("    account.observe(METRIC, clock() - started)")
        self._root(root)
        return "\n".join(self._lines) + "\n"
