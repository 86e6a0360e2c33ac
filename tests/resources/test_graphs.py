"""Random graphs against a simple model: who is called how often, in which order, and what is cleaned up."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_perfkit import Depends, ResourceManager, resolve
from tests.support import Trouble, checkpoint


@dataclass
class Made:
    """A node of a graph: of which kind, what it depends on, and how."""

    kind: str
    sources: list[tuple[int, bool, bool]]  # the number, whether it is cached, whether concurrent
    waits: int
    fails: bool


@st.composite
def graphs(draw: st.DrawFn) -> list[Made]:
    """Nodes that depend on those before them; the last one is the function."""
    number = draw(st.integers(1, 8))
    nodes = []
    for place in range(number):
        sources = draw(
            st.lists(
                st.tuples(
                    st.integers(0, place - 1),
                    st.sampled_from([True, True, True, False]),
                    st.booleans(),
                ),
                max_size=4,
            )
            if place
            else st.just([])
        )
        nodes.append(
            Made(
                draw(st.sampled_from(["async", "async", "generator", "inline", "thread"])),
                sources,
                draw(st.integers(0, 2)),
                draw(st.sampled_from([False] * 9 + [True])),
            )
        )
    nodes[-1].kind, nodes[-1].fails = "async", False
    return nodes


class World:
    """The functions of a graph, and what they note."""

    def __init__(self, nodes: list[Made]) -> None:
        self.log: list[tuple[str, int]] = []
        self.functions: list[Callable[..., Any]] = []
        for number, node in enumerate(nodes):
            self.functions.append(self.function(number, node))

    def function(self, number: int, node: Made) -> Callable[..., Any]:
        log = self.log

        def begin(sources: dict[str, Any]) -> tuple[int, ...]:
            log.append(("call", number))
            for value, (source, _, _) in zip(sources.values(), node.sources, strict=True):
                assert value[0] == source, "it got what it depends on"
            return (number, *(value[0] for value in sources.values()))

        if node.kind == "async":

            async def made(**sources: Any) -> Any:
                value = begin(sources)
                for _ in range(node.waits):
                    await checkpoint()
                if node.fails:
                    raise Trouble(number)
                return value

        elif node.kind == "generator":

            async def made(**sources: Any) -> Any:  # type: ignore[misc]
                value = begin(sources)
                for _ in range(node.waits):
                    await checkpoint()
                if node.fails:
                    raise Trouble(number)
                log.append(("open", number))
                try:
                    yield value
                finally:
                    await checkpoint()
                    log.append(("close", number))

        else:

            def made(**sources: Any) -> Any:  # type: ignore[misc]
                value = begin(sources)
                if node.fails:
                    raise Trouble(number)
                return value

        made.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    f"p{place}",
                    inspect.Parameter.KEYWORD_ONLY,
                    default=self.depends(source, cached, concurrent),
                )
                for place, (source, cached, concurrent) in enumerate(node.sources)
            ]
        )
        made.kind = node.kind  # type: ignore[attr-defined]
        return made

    def depends(self, source: int, cached: bool, concurrent: bool) -> Any:
        function: Any = self.functions[source]
        return Depends(
            function,
            use_cache=cached,
            concurrent=concurrent,
            thread=False if function.kind == "inline" else None,
        )


class Model:
    """One call after the other, as nested functions with a cache would make them."""

    def __init__(self, nodes: list[Made]) -> None:
        self.nodes = nodes
        self.kept: set[int] = set()
        self.calls: list[int] = []

    def call(self, number: int) -> None:
        node = self.nodes[number]
        for source, cached, _ in node.sources:
            if not cached:
                self.call(source)
            elif source not in self.kept:
                self.call(source)
                self.kept.add(source)
        self.calls.append(number)
        if node.fails:
            raise Trouble(number)


async def check(nodes: list[Made], concurrent: bool, again: bool) -> None:
    world = World(nodes)
    model = Model(nodes)
    last = len(nodes) - 1
    in_order = not concurrent and not any(beside for node in nodes for _, _, beside in node.sources)
    failed = False
    async with ResourceManager():
        for _ in range(2 if again else 1):
            before = len(world.log)
            expected: int | None = None
            model.calls.clear()
            try:
                model.call(last)
            except Trouble as error:
                expected = error.args[0]
            try:
                value = await resolve(world.functions[last], concurrent=concurrent)
                assert value[0] == last
                assert expected is None
            except Trouble as error:
                failed = True
                assert expected is not None
                same = error.args[0] == expected
                assert same or not in_order
            calls = [number for deed, number in world.log[before:] if deed == "call"]
            if in_order:
                # A node whose consumers have their values needs none itself; that is all that may be spared.
                assert calls == model.calls
            elif not failed:
                assert sorted(calls) == sorted(model.calls)
            else:
                assert len(calls) <= len(model_of_all(nodes))
            if failed:
                break
            for place, number in enumerate(calls):
                for source, _, _ in nodes[number].sources:
                    assert source in calls[:place] or source in model.kept
        opened = [number for deed, number in world.log if deed == "open"]
        closed = [number for deed, number in world.log if deed == "close"]
        assert closed == (opened[::-1] if failed and not again else closed)
    opened = [number for deed, number in world.log if deed == "open"]
    closed = [number for deed, number in world.log if deed == "close"]
    assert sorted(opened) == sorted(closed)
    if not failed:
        assert closed == opened[::-1]


def model_of_all(nodes: list[Made]) -> list[int]:
    model = Model([Made(node.kind, node.sources, 0, False) for node in nodes])
    model.call(len(nodes) - 1)
    return model.calls


@settings(max_examples=400)
@given(graphs(), st.booleans(), st.booleans(), st.booleans())
def test_random_graphs(nodes: list[Made], concurrent: bool, again: bool, on_trio: bool) -> None:
    """Each cached node once, in an order that respects the graph; opened things closed in the reverse order."""
    if on_trio:
        trio.run(check, nodes, concurrent, again)
    else:
        asyncio.run(check(nodes, concurrent, again))
