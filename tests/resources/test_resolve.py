"""resolve(): what is called, how often, with what, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar, copy_context
from typing import Annotated, Any
from unittest.mock import AsyncMock
from weakref import WeakValueDictionary

import pytest

from asgi_perfkit import (
    ConfigurationError,
    Depends,
    ResourceManager,
    ResourcesClosedError,
    dependency_overrides,
    resolve,
    run_in_threadpool,
)
from asgi_perfkit.resources import solver
from tests.resources.driver import Log
from tests.support import Trouble, checkpoint, together

# Everything that can be called in each way must come to the same, concurrent or not, the first time or not.


async def plain() -> str:
    await checkpoint()
    return "plain"


def in_thread() -> str:
    assert threading.current_thread() is not threading.main_thread()
    return "thread"


def inline() -> str:
    assert threading.current_thread() is threading.main_thread()
    return "inline"


async def async_generator() -> AsyncIterator[str]:
    yield "async generator"


def generator() -> Iterator[str]:
    assert threading.current_thread() is not threading.main_thread()
    yield "generator"


def inline_generator() -> Iterator[str]:
    assert threading.current_thread() is threading.main_thread()
    yield "inline generator"


@contextlib.asynccontextmanager
async def decorated() -> AsyncIterator[str]:
    yield "decorated"


@contextlib.contextmanager
def blocking() -> Iterator[str]:
    yield "blocking"


class Service:
    def __init__(self, plain: Annotated[str, Depends(plain)]) -> None:
        self.text = f"service of {plain}"


class Callable:
    async def __call__(self) -> str:
        return "callable"

    def method(self, suffix: str = "!") -> str:
        return "method" + suffix


def built_in_free(service: Service = Depends(Service)) -> str:
    return service.text


KINDS = {
    "plain": (Depends(plain), "plain"),
    "thread": (Depends(in_thread), "thread"),
    "inline": (Depends(inline, thread=False), "inline"),
    "async generator": (Depends(async_generator), "async generator"),
    "generator": (Depends(generator), "generator"),
    "inline generator": (Depends(inline_generator, thread=False), "inline generator"),
    "decorated": (Depends(decorated), "decorated"),
    "blocking": (Depends(blocking), "blocking"),
    "of a class": (Depends(built_in_free), "service of plain"),
    "object": (Depends(Callable()), "callable"),
    "method": (Depends(Callable().method), "method!"),
    "partial": (Depends(functools.partial(Callable().method, "?")), "method?"),
    "concurrent": (Depends(plain, concurrent=True), "plain"),
    "measured": (Depends(plain, measure=True), "plain"),
    "uncached": (Depends(plain, use_cache=False), "plain"),
    "kept": (Depends(plain, ttl=60), "plain"),
    "kept, in a thread": (Depends(in_thread, ttl=60), "thread"),
    "kept, inline": (Depends(inline, ttl=60, thread=False), "inline"),
}


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize(("depends", "value"), KINDS.values(), ids=KINDS)
def test_each_kind_of_dependency(run: Any, depends: Any, value: str, concurrent: bool) -> None:
    """As a default and in Annotated; alone, first in a manager, and once more there."""

    async def handler(
        a: Annotated[str, depends], *, b: str = depends, c: int = 3
    ) -> tuple[str, str, int]:
        assert depends  # or the annotation could not mean it
        return a, b, c

    async def main() -> None:
        assert await resolve(handler, concurrent=concurrent) == (value, value, 3)
        async with ResourceManager():
            assert await resolve(handler, concurrent=concurrent) == (value, value, 3)
            assert await resolve(handler, concurrent=concurrent, c=4) == (value, value, 4)

    run(main)


@pytest.mark.parametrize("concurrent", [False, True])
def test_each_kind_of_function(run: Any, concurrent: bool) -> None:
    """The function itself may be of any kind, too; what it has yielded is cleaned up."""
    log = Log()

    async def an_async_generator(a: str = Depends(plain)) -> AsyncIterator[str]:
        async with log.thing("x"):
            yield a

    def a_generator(a: str = Depends(plain)) -> Iterator[str]:
        with log.blocking("y"):
            yield a

    async def main() -> None:
        solve = functools.partial(resolve, concurrent=concurrent)
        assert await solve(an_async_generator) == "plain"
        assert await solve(a_generator) == "plain"
        assert await solve(in_thread) == "thread"
        assert (await solve(Service)).text == "service of plain"
        assert await solve(Callable()) == "callable"
        assert await solve(Callable().method) == "method!"
        assert await solve(Callable().method, suffix=".") == "method."
        assert await solve(built_in_free) == "service of plain"
        assert isinstance(await solve(dict), dict)

    run(main)
    log.balance()
    assert len(log) == 4


def test_a_diamond_costs_each_node_once(run: Any) -> None:
    calls: list[str] = []

    async def bottom() -> str:
        calls.append("bottom")
        return "b"

    def layer(left: Any, right: Any, name: str) -> tuple[Any, Any]:
        async def first(a: str = Depends(left), b: str = Depends(right)) -> str:
            calls.append(f"{name}1")
            return "x"

        async def second(a: str = Depends(left), b: str = Depends(right)) -> str:
            calls.append(f"{name}2")
            return "x"

        return first, second

    left: Any = bottom
    right: Any = bottom
    for number in range(10):
        left, right = layer(left, right, str(number))

    async def handler(a: str = Depends(left), b: str = Depends(right)) -> None: ...

    for concurrent in (False, True):
        calls.clear()
        run(functools.partial(resolve, handler, concurrent=concurrent))
        assert len(calls) == 21
        assert len(set(calls)) == 21


def test_falsy_values_are_kept(run: Any) -> None:
    """None, False and 0 are values: a second call of the same request does not make them again."""
    calls: list[object] = []
    for value in (None, False, 0, ""):

        async def make(value: object = value) -> object:
            calls.append(value)
            return value

        async def handler(a: object = Depends(make), b: object = Depends(make)) -> object:
            assert a is b
            return a

        async def main(handler: Any = handler, value: object = value) -> None:
            async with ResourceManager():
                for _ in range(3):
                    assert await resolve(handler) is value

        run(main)
    assert calls == [None, False, 0, ""]


def test_values_by_name_and_what_is_made_of_them(run: Any) -> None:
    """They reach dependencies at any depth; what is made of other values is another value, 1 and True too."""
    calls: list[object] = []

    async def user(user_id: object) -> object:
        calls.append(user_id)
        return user_id

    async def name(user: object = Depends(user)) -> str:
        calls.append("name")
        return f"<{user}>"

    async def handler(name: str = Depends(name)) -> str:
        return name

    async def main() -> None:
        async with ResourceManager():
            for value in (1, 2, True, 1, [1]):
                for _ in range(2):
                    assert await resolve(handler, user_id=value) == f"<{value}>"
            shared = [1]
            assert await resolve(handler, user_id=shared) == "<[1]>"
            assert await resolve(handler, user_id=shared) == "<[1]>"

    run(main)
    assert calls == [1, "name", 2, "name", True, "name", [1], "name", [1], "name"]


class Request:
    pass


class SpecialRequest(Request):
    pass


def test_values_by_type(run: Any) -> None:
    """A parameter of another name gets the one value of its type; Python's own types do not count."""

    async def dependency(anything: Request, limit: int = 10) -> tuple[Request, int]:
        return anything, limit

    async def handler(
        it: Annotated[tuple[Request, int], Depends(dependency)],
    ) -> tuple[Request, int]:
        assert dependency
        return it

    async def main() -> None:
        for request in (Request(), SpecialRequest()):
            for _ in range(2):
                assert await resolve(handler, r=request, page=3) == (request, 10)
        with pytest.raises(ConfigurationError, match="r, s are all of its type"):
            await resolve(handler, r=Request(), s=SpecialRequest())
        with pytest.raises(ConfigurationError, match=r"^handler -> dependency\(anything\): nobody"):
            await resolve(handler, r=5)
        assert await resolve(handler, r=Request(), limit=3, anything=7) == (7, 3)

    run(main)


def test_uncached_dependencies_are_made_for_each_parameter(run: Any) -> None:
    """But not for a value that is there already."""
    calls: list[int] = []

    async def count() -> int:
        calls.append(1)
        return len(calls)

    async def kept(number: int = Depends(count, use_cache=False)) -> int:
        return number

    async def handler(
        a: int = Depends(count, use_cache=False),
        b: int = Depends(count, use_cache=False),
        c: int = Depends(kept),
        d: int = Depends(count),
    ) -> tuple[int, ...]:
        return a, b, c, d

    async def main() -> None:
        async with ResourceManager():
            assert await resolve(handler) == (1, 2, 3, 4)
            assert await resolve(handler) == (5, 6, 3, 4)
            *both, kept_value, value = await resolve(handler, concurrent=True)
            assert sorted(both) == [7, 8]
            assert (kept_value, value) == (3, 4)

    run(main)


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_resolutions_of_a_request_share_calls(run: Any, fails: bool, concurrent: bool) -> None:
    """Whichever begins first, and wherever that one is: a dependency is called once, and fails once."""
    for start in range(6):
        calls: list[str] = []
        outcomes: list[object] = []

        async def slow(calls: list[str] = calls) -> str:
            calls.append("slow")
            for _ in range(4):
                await checkpoint()
            if fails:
                raise Trouble
            return "s"

        async def opened(slow: str = Depends(slow), calls: Any = calls) -> AsyncIterator[str]:
            calls.append("opened")
            yield "o"

        async def other(slow: str = Depends(slow), calls: Any = calls) -> str:
            calls.append("other")
            await checkpoint()
            return "x"

        async def one(a: str = Depends(opened), b: str = Depends(other)) -> str:
            return a + b

        async def two(b: str = Depends(other), a: str = Depends(opened)) -> str:
            return b + a

        async def main(
            start: int = start, one: Any = one, two: Any = two, outcomes: Any = outcomes
        ) -> None:
            async with ResourceManager():

                async def ask(function: Any, wait: int) -> None:
                    for _ in range(wait):
                        await checkpoint()
                    try:
                        outcomes.append(await resolve(function, concurrent=concurrent))
                    except Trouble as error:
                        outcomes.append(error)

                await together(
                    functools.partial(ask, one, 0),
                    functools.partial(ask, two, start),
                    functools.partial(ask, one, start),
                )

        run(main)
        if not fails:
            assert sorted(calls) == ["opened", "other", "slow"]
            assert sorted(map(str, outcomes)) == ["ox", "ox", "xo"]
        else:
            assert len(outcomes) == 3
            assert set(map(type, outcomes)) == {Trouble}
            assert set(calls) == {"slow"}
            assert calls.count("slow") == len(set(map(id, outcomes)))
            if start < 3:
                assert len(calls) == 1


def test_a_dependency_may_resolve_others(run: Any) -> None:
    """What it makes in that way is there for the first resolution, too, which goes on with it."""
    calls: list[str] = []

    async def shared() -> str:
        calls.append("shared")
        return "s"

    async def inner(shared: str = Depends(shared)) -> str:
        return shared

    async def nesting() -> str:
        result: str = await resolve(inner)
        return result

    async def opened(shared: str = Depends(shared)) -> AsyncIterator[str]:
        calls.append("opened")
        yield shared
        calls.append("closed")

    async def handler(
        a: str = Depends(nesting), b: str = Depends(shared), c: str = Depends(opened)
    ) -> str:
        return a + b + c

    assert run(resolve, handler) == "sss"
    assert calls == ["shared", "opened", "closed"]


@pytest.mark.parametrize("concurrent", [False, True])
def test_what_a_failed_resolution_has_opened_is_closed_at_once(run: Any, concurrent: bool) -> None:
    """With the exception thrown in; later calls of the request make it anew, and what was there before stays."""
    log = Log()

    async def before() -> AsyncIterator[str]:
        async with log.thing("before"):
            yield "b"

    async def opened() -> AsyncIterator[str]:
        async with log.thing("opened", fails=None):
            yield "o"

    async def fails(opened: str = Depends(opened)) -> str:
        raise Trouble

    async def handler(before: str = Depends(before), fails: str = Depends(fails)) -> None: ...

    async def first(before: str = Depends(before)) -> None: ...

    async def last(opened: str = Depends(opened), before: str = Depends(before)) -> None: ...

    async def main() -> None:
        async with ResourceManager():
            await resolve(first)
            with pytest.raises(Trouble):
                await resolve(handler, concurrent=concurrent)
            log.append("failed")
            await resolve(last, concurrent=concurrent)
            log.append("end")

    run(main)
    assert log == [
        "before opened",
        "opened opened",
        "opened sees Trouble",
        "opened closed",
        "failed",
        "opened opened",
        "end",
        "opened closed",
        "before closed",
    ]


def test_what_others_may_use_stays_open(run_asyncio: Any) -> None:
    """A resolution that fails closes nothing that another one of the request may have got."""
    log = Log()

    async def opened() -> AsyncIterator[str]:
        async with log.thing("opened"):
            yield "o"

    async def main() -> None:
        failing, using = asyncio.Event(), asyncio.Event()

        async def fails(opened: str = Depends(opened)) -> None:
            failing.set()
            await using.wait()
            raise Trouble

        async def uses(opened: str = Depends(opened)) -> str:
            return opened

        async def handler(a: None = Depends(fails)) -> None: ...

        async with ResourceManager():
            task = asyncio.ensure_future(resolve(handler))
            await failing.wait()
            assert await resolve(uses) == "o"
            using.set()
            with pytest.raises(Trouble):
                await task
            log.append("end")

    run_asyncio(main)
    assert log == ["opened opened", "end", "opened closed"]


def test_what_an_earlier_one_may_use_stays_open(run_asyncio: Any) -> None:
    """The same for one that began before, and uses it when the resolution that has opened it fails."""
    log = Log()

    async def opened() -> AsyncIterator[str]:
        async with log.thing("opened"):
            yield "o"

    async def main() -> None:
        begun, may_go_on, using, may_end = (asyncio.Event() for _ in range(4))

        async def slow() -> None:
            begun.set()
            await may_go_on.wait()

        async def uses(slow: None = Depends(slow), opened: str = Depends(opened)) -> None:
            using.set()
            await may_end.wait()
            log.append("used")

        async def fails(opened: str = Depends(opened)) -> None:
            may_go_on.set()
            await using.wait()
            raise Trouble

        async def handler(a: None = Depends(fails)) -> None: ...

        async with ResourceManager():
            task = asyncio.ensure_future(resolve(uses))
            await begun.wait()
            with pytest.raises(Trouble):
                await resolve(handler)
            may_end.set()
            await task

    run_asyncio(main)
    assert log == ["opened opened", "used", "opened closed"]


def test_errors_of_that_closing_are_logged(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The first error is what counts."""
    log = Log()

    async def opened() -> AsyncIterator[str]:
        async with log.thing("opened", fails=ValueError("closing")):
            yield "o"

    async def fails(opened: str = Depends(opened)) -> str:
        raise Trouble

    async def handler(fails: str = Depends(fails)) -> None: ...

    with pytest.raises(Trouble):
        run(resolve, handler)
    assert "failed to close after a dependency had failed" in caplog.text


def test_context_variables_set_by_dependencies_are_seen(run: Any) -> None:
    """By those that depend on them, by the function, and after it; concurrent or not, in a generator or not."""
    var: ContextVar[str] = ContextVar("var", default="")
    other: ContextVar[str] = ContextVar("other", default="")

    async def sets() -> None:
        await checkpoint()
        var.set("a")

    async def adds(_: None = Depends(sets)) -> None:
        await checkpoint()
        var.set(var.get() + "b")

    async def opened(_: None = Depends(adds)) -> AsyncIterator[None]:
        other.set(var.get() + "c")
        yield

    async def sees(_: None = Depends(opened)) -> str:
        return other.get() + "d"

    async def handler(sees: str = Depends(sees)) -> tuple[str, str, str]:
        return var.get(), other.get(), sees

    async def main() -> None:
        for concurrent in (False, True):
            assert await resolve(handler, concurrent=concurrent) == ("ab", "abc", "abcd")
            assert (var.get(), other.get()) == ("ab", "abc")
            var.set("")
            other.set("")

    run(main)


def test_ttl_keeps_values_across_requests(run: Any) -> None:
    """By function and values; what it depends on is not made for a value that is there."""
    calls: list[object] = []

    async def session() -> AsyncIterator[str]:
        calls.append("session")
        yield "s"

    async def rates(currency: str, session: str = Depends(session)) -> str:
        calls.append(currency)
        return currency + session

    async def handler(rates: str = Depends(rates, ttl=60)) -> str:
        return rates

    async def main() -> None:
        for concurrent in (False, True):
            for currency in ("eur", "usd"):
                assert await resolve(handler, concurrent=concurrent, currency=currency) == (
                    currency + "s"
                )
        with pytest.raises(TypeError, match="cannot be a key"):
            await resolve(handler, currency=[])

    run(main)
    assert calls == ["session", "eur", "session", "usd", "session", "session"]


def test_overrides(run: Any) -> None:
    """In the block and what it starts; nested ones add up; the replacement may depend on what it replaces."""

    async def a() -> str:
        return "a"

    async def b(a: str = Depends(a)) -> str:
        return f"b{a}"

    async def handler(b: str = Depends(b, ttl=60), a: str = Depends(a)) -> str:
        return b + a

    async def around(inner: str = Depends(a)) -> str:
        return f"<{inner}>"

    def fake() -> str:
        return "fake"

    async def kept(a: str = Depends(a)) -> str:
        return a

    async def keeping(kept: str = Depends(kept)) -> str:
        return kept

    async def main() -> None:
        async with ResourceManager():
            assert await resolve(keeping) == "a"
            with dependency_overrides({a: fake}):
                assert await resolve(keeping) == "fake"
            assert await resolve(keeping) == "a"
            assert await resolve(handler) == "baa"
            with dependency_overrides({a: around}):
                assert await resolve(handler) == "b<a><a>"
                assert await run_in_threadpool(lambda: None) is None
                with dependency_overrides({b: fake}):
                    assert await resolve(handler, concurrent=True) == "fake<a>"
                assert await resolve(handler) == "b<a><a>"
            assert await resolve(handler) == "baa"
        assert await resolve(handler) == "baa"

    run(main)


def test_overrides_are_of_their_context(run_asyncio: Any) -> None:
    """Another task is not touched by them."""

    async def a() -> str:
        return "a"

    async def handler(a: str = Depends(a)) -> str:
        return a

    async def main() -> None:
        inside, done = asyncio.Event(), asyncio.Event()

        async def overriding() -> str:
            with dependency_overrides({a: lambda: "b"}):
                inside.set()
                await done.wait()
                result: str = await resolve(handler)
                return result

        task = asyncio.ensure_future(overriding())
        await inside.wait()
        assert await resolve(handler) == "a"
        done.set()
        assert await task == "b"

    run_asyncio(main)


def test_overrides_that_are_left_elsewhere_are_in_force_nowhere(run: Any) -> None:
    """In another context, as the fixture of an asynchronous test may be."""

    async def a() -> str:
        return "a"

    async def handler(a: str = Depends(a)) -> str:
        return a

    async def main() -> None:
        outer = dependency_overrides({a: lambda: "outer"})
        outer.__enter__()
        inner = dependency_overrides({a: lambda: "inner"})
        inner.__enter__()
        assert await resolve(handler) == "inner"
        copy_context().run(inner.__exit__, None, None, None)
        assert await resolve(handler) == "outer"
        copy_context().run(outer.__exit__, None, None, None)
        with dependency_overrides({print: len}):
            assert await resolve(handler) == "a"

    run(main)


@pytest.mark.parametrize("flipped", [False, True])
def test_what_overrides_mean_does_not_hang_on_the_order(run: Any, flipped: bool) -> None:
    """A replacement that comes to what it replaces by a way round: within it, that is the original."""
    calls = []

    async def a() -> str:
        return "a"

    async def c(a: str = Depends(a)) -> str:
        calls.append("c")
        return f"c({a})"

    async def b(c: str = Depends(c)) -> str:
        calls.append("b")
        return f"b({c})"

    async def first(a: str = Depends(a), c: str = Depends(c), b: str = Depends(b)) -> list[str]:
        return [a, b, c]

    async def second(b: str = Depends(b), c: str = Depends(c), a: str = Depends(a)) -> list[str]:
        return [a, b, c]

    async def main() -> None:
        handler = second if flipped else first
        async with ResourceManager():
            with dependency_overrides({a: b}):
                for concurrent in (False, True):
                    found = await resolve(handler, concurrent=concurrent)
                    # Outside of the replacement all that is made of `a` is made of that.
                    assert found == ["b(c(a))", "b(c(b(c(a))))", "c(b(c(a)))"]
                assert sorted(calls) == ["b", "b", "c", "c"]
            assert await resolve(handler) == ["a", "b(c(a))", "c(a)"]

    run(main)


def test_a_replacement_is_made_once_however_it_is_asked_for(run: Any) -> None:
    calls = []

    async def a() -> str:
        return "a"

    async def fake() -> str:
        calls.append(1)
        return "fake"

    async def handler(
        fake: str = Depends(fake), a: str = Depends(a), again: str = Depends(fake)
    ) -> list[str]:
        return [fake, a, again]

    async def main() -> None:
        with dependency_overrides({a: fake}):
            assert await resolve(handler) == ["fake"] * 3

    run(main)
    assert calls == [1]


@pytest.mark.parametrize("overrides", [5, {5: print}, {print: 5}])
def test_overrides_that_are_none_are_refused(overrides: Any) -> None:
    with pytest.raises(ConfigurationError, match="dependency_overrides"):
        dependency_overrides(overrides).__enter__()


def test_plans_do_not_outlive_their_functions() -> None:
    """Lambdas, closures, methods and objects: nothing of them is left."""

    async def dependency() -> int:
        return 1

    async def main() -> list[weakref.ref[Any]]:
        references = []
        for _ in range(3):
            function: Any = lambda x=Depends(dependency): x  # noqa: E731

            async def closure(x: int = Depends(dependency), function: Any = function) -> int:
                return x

            assert await resolve(function) == 1
            assert await resolve(closure, concurrent=True) == 1
            instance = Callable()
            assert await resolve(instance) == "callable"
            assert await resolve(instance.method) == "method!"
            references += [weakref.ref(each) for each in (function, closure, instance)]
        return references

    references = asyncio.run(main())
    gc.collect()
    assert [reference() for reference in references] == [None] * 9


def test_blocking_generators_on_the_loop(run: Any) -> None:
    """They see the exception, may suppress it, and must yield once."""

    def suppresses() -> Iterator[int]:
        with contextlib.suppress(Trouble):
            yield 1

    def twice() -> Iterator[int]:
        yield 1
        yield 2

    def never() -> Iterator[int]:
        yield from ()

    async def handler(a: int = Depends(suppresses, thread=False)) -> None:
        raise Trouble

    async def main() -> None:
        for concurrent in (False, True):
            assert await resolve(handler, concurrent=concurrent) is None

            async def wrong(a: int = Depends(never, thread=False)) -> None: ...

            with pytest.raises(RuntimeError, match="never ended without a value"):
                await resolve(wrong, concurrent=concurrent)

            async def wrong_too(a: int = Depends(twice, thread=False)) -> None: ...

            with pytest.raises(Exception, match="a resource failed to close"):
                await resolve(wrong_too, concurrent=concurrent)

    run(main)


def test_a_generator_that_is_entered_when_it_is_too_late(run_asyncio: Any) -> None:
    """The manager is closed while a dependency is being entered: it is left at once."""
    log = Log()

    async def main() -> None:
        entering, closed = asyncio.Event(), asyncio.Event()

        async def late() -> AsyncIterator[None]:
            entering.set()
            await closed.wait()
            async with log.thing("late"):
                yield

        async def handler(a: None = Depends(late)) -> None: ...

        for concurrent in (False, True):
            entering.clear()
            closed.clear()
            async with ResourceManager():
                task = asyncio.ensure_future(resolve(handler, concurrent=concurrent))
                await entering.wait()
            closed.set()
            with pytest.raises(ResourcesClosedError):
                await task

    run_asyncio(main)
    assert log == ["late opened", "late closed"] * 2


def test_many_functions_and_many_kinds_of_values(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of them has an end."""
    functions = solver._Functions({}, WeakValueDictionary())
    monkeypatch.setattr(solver, "_functions", functions)
    monkeypatch.setattr(solver, "_MAX_FUNCTIONS", 5)
    monkeypatch.setattr(solver, "_MAX_VARIANTS", 5)

    async def takes(**values: int) -> None: ...

    async def main() -> None:
        kept = []
        for number in range(9):

            async def function(number: int = number) -> int:
                return number

            kept.append(function)
            assert await resolve(function) == number
            await resolve(takes, **{f"x{number}": number})
        assert [await resolve(function) for function in kept] == list(range(9))

    run(main)
    assert len(functions.simple) <= 5
    assert len(functions._references) <= 5
    assert all(len(variants) <= 6 for variants in functions._plans.values())


def test_what_cannot_be_called_is_refused(run: Any) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match=r"resolve\(func\) got 5"):
            await resolve(5)  # type: ignore[call-overload]

    run(main)


def test_functions_that_cannot_be_referred_to_weakly(run: Any) -> None:
    class Slotted:
        __slots__ = ()

        async def __call__(self, a: str = Depends(plain)) -> str:
            return a

    assert run(resolve, Slotted()) == "plain"


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize("ttl", [None, 60])
def test_parameters_named_like_options_of_ours(
    run: Any, concurrent: bool, ttl: float | None
) -> None:
    """What a function is called with is its own, whatever it is called by."""

    def dependency(
        *, limiter: str = Depends(plain), thread_sensitive: int = 0, call: str = Depends(plain)
    ) -> tuple[str, int, str]:
        return limiter, thread_sensitive, call

    def handler(
        *,
        a: Any = Depends(dependency, ttl=ttl),
        limiter: Any = Depends(dependency, ttl=ttl, thread=False),
    ) -> Any:
        return a, limiter

    async def main() -> None:
        expected = ("plain", 7, "plain")
        got = await resolve(handler, thread_sensitive=7, concurrent=concurrent)
        assert got == (expected, expected)

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="inspect.signature() of these fails")
def test_a_mock_in_the_place_of_an_async_function(run: Any) -> None:
    async def handler(it: Annotated[str, Depends(plain)]) -> str:
        return it

    async def main() -> None:
        with dependency_overrides({plain: AsyncMock(return_value="mock")}):
            assert await resolve(handler) == "mock"

    run(main)
