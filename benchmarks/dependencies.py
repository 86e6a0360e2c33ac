"""Dependencies: a chain, a diamond, ten that wait, beside hand-written code and six frameworks.

What is compared makes the same objects by the same functions. Each peer has one of its own scopes
for each call, as it has for a request; FastAPI and Litestar have no way around a request, so what
is counted is a route with the dependencies less the same route without, in the same round.

The microseconds are CPU time of the loop's thread. Where something is waited for, they are wall
time.
"""

from __future__ import annotations

import asyncio
import importlib.util
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from time import perf_counter_ns, thread_time_ns
from typing import Any

from asgi_perfkit import Depends, ResourceManager, resolve

from .contenders import receive, scope_for, send
from .harness import Row, Settings, Spread, Table, Target, interleave, pair

KIT = "resolve"
KIT_INSIDE = "resolve, resources open"
KIT_AGAIN = "resolve, once more in a request"
KIT_CONCURRENT = "resolve, concurrent=True"
HAND = "hand-written"
GATHER = "asyncio.gather"
LENGTH = 10

Call = Callable[[], Awaitable[object]]


def run(settings: Settings) -> Iterator[Table]:
    yield chain(settings)
    yield flat(settings)
    yield generators(settings)
    yield diamond(settings)
    yield waits(settings)
    yield data_flow(settings)


# ---- what is made


def kinds(number: int) -> list[type]:
    return [type(f"Kind{each}", (), {}) for each in range(number)]


def factory(kind: type, sources: list[Any], *, depends: Any = None) -> Any:
    """Return an async function that makes a `kind` of those it depends on.

    :param sources: their types; or, with a framework's own `depends`, their factories.
    """
    names = [f"a{number}" for number in range(len(sources))]
    marks = dict(zip(names, sources, strict=True))
    defaults = [name if depends is None else f"{name}=depends({name}_)" for name in names]
    source = f"async def make({', '.join(defaults)}):\n    return kind()\n"
    namespace: dict[str, Any] = {"depends": depends, "kind": kind}
    namespace |= {f"{name}_": each for name, each in marks.items()}
    exec(source, namespace)
    make = namespace["make"]
    make.__annotations__ = {"return": kind}
    if depends is None:
        make.__annotations__ |= marks
    make.__qualname__ = make.__name__ = f"make_{kind.__name__}"
    return make


def chain_of(types: list[type], depends: Any) -> Any:
    """Return the last of a chain of factories."""
    make = factory(types[0], [], depends=depends)
    for kind in types[1:]:
        make = factory(kind, [make], depends=depends)
    return make


def flat_of(types: list[type], depends: Any) -> Any:
    return factory(
        type("Flat", (), {}),
        [factory(kind, [], depends=depends) for kind in types],
        depends=depends,
    )


# ---- how it is measured


def figures(
    contenders: dict[str, Call], settings: Settings, *, calls: int
) -> dict[str, list[float]]:
    """Return microseconds of CPU for each call, by contender, one for each round."""
    with closing(asyncio.new_event_loop()) as loop:

        async def batch(call: Call) -> float:
            began = thread_time_ns()
            for _ in range(calls):
                await call()
            return (thread_time_ns() - began) / calls / 1000

        batches = {name: partial(measured, loop, batch, call) for name, call in contenders.items()}
        return interleave(batches, rounds=settings.pick(60, 3))


def measured(
    loop: asyncio.AbstractEventLoop, batch: Callable[[Call], Coroutine[Any, Any, float]], call: Call
) -> float:
    return loop.run_until_complete(batch(call))


def compared(
    title: str,
    found: dict[str, list[float]],
    targets: dict[str, Target],
    peers: list[str],
    notes: list[str],
    reference: str = HAND,
    unit: str = "us",
) -> Table:
    rows = [
        Row(
            name,
            Spread.of(values),
            Spread.of(pair(values, found[reference], operator.truediv)),
            targets.get(name),
        )
        for name, values in found.items()
    ]
    for name in peers:
        if name in found:
            least = 10.0 if name == "fastapi" else 1.0
            ratio = Spread.of(pair(found[name], found[KIT], operator.truediv))
            rows.append(Row(name, None, ratio, Target(">=", least, "ratio"), against=KIT))
    missing = [name for name in peers if name not in found]
    if missing:
        notes = [*notes, f"Not installed, so not compared: {', '.join(missing)}."]
    return Table(title, unit, rows, reference, notes)


async def inside(function: Any) -> object:
    async with ResourceManager():
        return await resolve(function)


def less_routes(found: dict[str, list[float]]) -> dict[str, list[float]]:
    """Take the route without dependencies off from the one with them."""
    for name in ("fastapi", "litestar"):
        bare = found.pop(f"{name} without", None)
        if bare is not None:
            found[name] = pair(found[name], bare, operator.sub)
    return found


# ---- the tables


def chain(settings: Settings) -> Table:
    types = kinds(LENGTH)
    handler = factory(type("Answer", (), {}), [chain_of(types, Depends)], depends=Depends)
    bare = [factory(types[0], []), *(factory(kind, [object]) for kind in types[1:])]
    answer = factory(type("Answer", (), {}), [object])

    async def by_hand() -> object:
        async with AsyncExitStack():
            cache: dict[Any, Any] = {}
            value: Any = None
            for number, make in enumerate(bare):
                if make in cache:
                    value = cache[make]
                else:
                    value = cache[make] = await (make(value) if number else make())
            return await answer(value)

    contenders: dict[str, Call] = {
        HAND: by_hand,
        KIT: lambda: resolve(handler),
        KIT_INSIDE: lambda: inside(handler),
        **peer_contenders(types, chained=True),
    }
    found = less_routes(figures(contenders, settings, calls=100))
    return compared(
        f"A chain of {LENGTH} async dependencies that do not wait, kept and cleaned up",
        found,
        {KIT: Target("<=", 1.5, "ratio"), KIT_INSIDE: Target("<=", 1.5, "ratio")},
        list(PEERS),
        ["Hand-written: the calls, with a dictionary as a cache, within an AsyncExitStack."],
    )


def flat(settings: Settings) -> Table:
    types = kinds(LENGTH)
    handler = flat_of(types, Depends)
    bare = [factory(kind, []) for kind in types]
    answer = factory(type("Answer", (), {}), [object] * LENGTH)
    one, two, three, four, five, six, seven, eight, nine, ten = bare

    async def by_hand() -> object:
        return await answer(
            await one(),
            await two(),
            await three(),
            await four(),
            await five(),
            await six(),
            await seven(),
            await eight(),
            await nine(),
            await ten(),
        )

    async def in_one_request() -> None:
        async with ResourceManager():
            await resolve(handler)
            for _ in range(AGAIN):
                await resolve(handler)

    contenders: dict[str, Call] = {
        HAND: by_hand,
        KIT: lambda: resolve(handler),
        KIT_INSIDE: lambda: inside(handler),
        KIT_AGAIN: in_one_request,
        **peer_contenders(types, chained=False),
    }
    found = less_routes(figures(contenders, settings, calls=100))
    found[KIT_AGAIN] = [
        (together - first) / AGAIN
        for together, first in zip(found[KIT_AGAIN], found[KIT_INSIDE], strict=True)
    ]
    return compared(
        f"{LENGTH} async dependencies of one function that do not wait",
        found,
        {KIT: Target("<=", 2.5, "ratio")},
        list(PEERS),
        ["Hand-written: the calls, and nothing else."],
    )


AGAIN = 10


def generators(settings: Settings) -> Table:
    functions: list[Any] = []
    for number in range(LENGTH):
        if number:

            async def make(it: object = Depends(functions[-1])) -> AsyncIterator[object]:
                yield object()

        else:

            async def make() -> AsyncIterator[object]:  # type: ignore[misc]
                yield object()

        functions.append(make)

    async def handler(it: object = Depends(functions[-1])) -> object:
        return it

    managers: list[Any] = [asynccontextmanager(function) for function in functions]

    async def by_hand() -> object:
        async with AsyncExitStack() as stack:
            cache: dict[Any, Any] = {}
            value: Any = None
            for number, manager in enumerate(managers):
                cm = manager(value) if number else manager()
                value = cache[manager] = await stack.enter_async_context(cm)
            return await handler(value)

    contenders: dict[str, Call] = {HAND: by_hand, KIT: lambda: resolve(handler)}
    return compared(
        f"A chain of {LENGTH} async generators, entered and left",
        figures(contenders, settings, calls=30),
        {KIT: Target("<=", 1.5, "ratio")},
        [],
        ["Hand-written: asynccontextmanager, a dictionary and an AsyncExitStack."],
    )


def diamond(settings: Settings) -> Table:
    left = right = factory(object, [], depends=Depends)
    for _ in range(LENGTH):
        left, right = (factory(object, [left, right], depends=Depends) for _ in range(2))
    handler = factory(object, [left, right], depends=Depends)
    straight = chain_of(kinds(2 * LENGTH + 1), Depends)
    contenders: dict[str, Call] = {
        "a chain of as many": lambda: resolve(straight),
        KIT: lambda: resolve(handler),
    }
    return compared(
        f"A diamond of {LENGTH} levels, two dependencies each, which depend on both of the next",
        figures(contenders, settings, calls=100),
        {KIT: Target("<=", 1.5, "ratio")},
        [],
        [f"{2 * LENGTH + 1} calls; as a tree it would be {2 ** (LENGTH + 1) - 1}."],
        reference="a chain of as many",
    )


def wall(contenders: dict[str, Call], settings: Settings) -> dict[str, list[float]]:
    """Return milliseconds for each call, by contender, one for each round."""
    with closing(asyncio.new_event_loop()) as loop:

        async def batch(call: Call) -> float:
            began = perf_counter_ns()
            for _ in range(WAITING_CALLS):
                await call()
            return (perf_counter_ns() - began) / WAITING_CALLS / 1e6

        batches = {name: partial(measured, loop, batch, call) for name, call in contenders.items()}
        return interleave(batches, rounds=settings.pick(20, 3))


WAITING_CALLS = 5


def waiting(seconds: float, source: Any = None) -> Any:
    if source is None:

        async def wait() -> None:
            await asyncio.sleep(seconds)

        return wait

    async def wait_then(it: None = Depends(source)) -> None:
        await asyncio.sleep(seconds)

    return wait_then


def waits(settings: Settings) -> Table:
    functions = [waiting(0.001) for _ in range(LENGTH)]
    handler = factory(object, functions, depends=Depends)

    async def gathered() -> None:
        await asyncio.gather(*(function() for function in functions))

    contenders: dict[str, Call] = {
        GATHER: gathered,
        KIT_CONCURRENT: lambda: resolve(handler, concurrent=True),
        KIT: lambda: resolve(handler),
    }
    return compared(
        f"{LENGTH} dependencies that wait for 1 ms each",
        wall(contenders, settings),
        {KIT_CONCURRENT: Target("<=", 1.15, "ratio")},
        [],
        [],
        reference=GATHER,
        unit="ms",
    )


def data_flow(settings: Settings) -> Table:
    handler = factory(object, [waiting(0.020), waiting(0.020, waiting(0.001))], depends=Depends)

    async def longest() -> None:
        await asyncio.sleep(0.021)

    contenders: dict[str, Call] = {
        "21 ms": longest,
        KIT_CONCURRENT: lambda: resolve(handler, concurrent=True),
    }
    return compared(
        "One of 20 ms beside one of 1 ms that another of 20 ms depends on",
        wall(contenders, settings),
        {KIT_CONCURRENT: Target("<=", 1.15, "ratio")},
        [],
        ["By levels it would be 40 ms."],
        reference="21 ms",
        unit="ms",
    )


# ---- the peers, as their documentation has it


def peer_contenders(types: list[type], *, chained: bool) -> dict[str, Call]:
    found: dict[str, Call] = {}
    for name, make in PEERS.items():
        if importlib.util.find_spec(name.replace("-", "_")) is not None:
            found |= make(types, chained)
    return found


def typed_factories(types: list[type], chained: bool) -> tuple[list[Any], type]:
    """Return factories that name what they need by its type, and the type to ask for."""
    if chained:
        sources: list[list[Any]] = [[], *([kind] for kind in types[:-1])]
        return [factory(*each) for each in zip(types, sources, strict=True)], types[-1]
    last = type("Flat", (), {})
    return [*(factory(kind, []) for kind in types), factory(last, list(types))], last


def with_dishka(types: list[type], chained: bool) -> dict[str, Call]:
    from dishka import Provider, Scope, make_async_container

    factories, last = typed_factories(types, chained)
    provider = Provider(scope=Scope.REQUEST)
    for each in factories:
        provider.provide(each)
    container = make_async_container(provider)

    async def call() -> object:
        async with container() as request:
            return await request.get(last)

    return {"dishka": call}


def with_wireup(types: list[type], chained: bool) -> dict[str, Call]:
    import wireup

    factories, last = typed_factories(types, chained)
    injectables = [wireup.injectable(lifetime="scoped")(each) for each in factories]
    container = wireup.create_async_container(injectables=injectables)

    async def call() -> object:
        async with container.enter_scope() as scoped:
            return await scoped.get(last)

    return {"wireup": call}


def with_svcs(types: list[type], chained: bool) -> dict[str, Call]:
    import svcs

    registry = svcs.Registry()
    factories, last = typed_factories(types, chained)
    for make in factories:
        needs = [kind for name, kind in make.__annotations__.items() if name != "return"]
        if needs:

            async def build(
                svcs_container: svcs.Container, make: Any = make, needs: Any = tuple(needs)
            ) -> object:
                got = await svcs_container.aget(*needs)
                return await (make(*got) if len(needs) > 1 else make(got))

            registry.register_factory(make.__annotations__["return"], build)
        else:
            registry.register_factory(make.__annotations__["return"], make)

    async def call() -> object:
        async with svcs.Container(registry) as container:
            return await container.aget(last)

    return {"svcs": call}


def with_fast_depends(types: list[type], chained: bool) -> dict[str, Call]:
    from fast_depends import Depends as FastDepends
    from fast_depends import inject

    made = chain_of(types, FastDepends) if chained else flat_of(types, FastDepends)
    return {"fast-depends": inject(made)}


def with_fastapi(types: list[type], chained: bool) -> dict[str, Call]:
    import fastapi

    app = fastapi.FastAPI()
    made = chain_of(types, fastapi.Depends) if chained else flat_of(types, fastapi.Depends)

    @app.get("/with")
    async def with_them(it: Any = fastapi.Depends(made)) -> fastapi.Response:  # noqa: B008
        return fastapi.Response(b"")

    @app.get("/without")
    async def without() -> fastapi.Response:
        return fastapi.Response(b"")

    return routes("fastapi", app)


def with_litestar(types: list[type], chained: bool) -> dict[str, Call]:
    from litestar import Litestar, get
    from litestar.di import Provide

    dependencies: dict[str, Any] = {}
    for number, kind in enumerate(types):
        source = f"a{number - 1}: Any" if chained and number else ""
        namespace: dict[str, Any] = {"__name__": __name__, "kind": kind}
        exec(f"async def make({source}) -> Any:\n    return kind()\n", namespace)
        dependencies[f"a{number}"] = Provide(namespace["make"])
    wanted = [f"a{len(types) - 1}"] if chained else list(dependencies)
    namespace = {"__name__": __name__}
    parameters = ", ".join(f"{name}: Any" for name in wanted)
    exec(f"async def with_them({parameters}) -> None: ...", namespace)

    async def without() -> None: ...

    app = Litestar(
        [
            get("/with", dependencies=dependencies, status_code=204)(namespace["with_them"]),
            get("/without", status_code=204)(without),
        ],
        openapi_config=None,
    )
    return routes("litestar", app)


def routes(name: str, app: Any) -> dict[str, Call]:
    return {
        name: lambda: app(scope_for("/with"), receive, send),
        f"{name} without": lambda: app(scope_for("/without"), receive, send),
    }


PEERS: dict[str, Callable[[list[type], bool], dict[str, Call]]] = {
    "dishka": with_dishka,
    "wireup": with_wireup,
    "svcs": with_svcs,
    "fast-depends": with_fast_depends,
    "fastapi": with_fastapi,
    "litestar": with_litestar,
}
