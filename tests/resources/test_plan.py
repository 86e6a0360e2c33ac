"""What is wrong with a function is said before anything is called: with the way to it, and what to do."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import sys
import threading
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    NamedTuple,
    Protocol,
    TypedDict,
    TypeVar,
)

import pytest

from asgi_perfkit import (
    ConfigurationError,
    DependencyCycleError,
    DependencyError,
    Depends,
    ResourceManager,
    app_resources,
    resolve,
)

if TYPE_CHECKING:
    from somewhere import Elsewhere


async def first(it: Annotated[int, Depends(lambda: 1)]) -> int:
    return it


async def unknown_type(
    a: Annotated[Elsewhere, Depends(first)],
    b: Annotated[Elsewhere.Inner[int] | None, Depends(first)],
    c: Elsewhere | None = None,
) -> tuple[int, int]:
    return a, b  # type: ignore[return-value]


def test_annotations_are_strings_and_name_what_is_not_there(run: Any) -> None:
    """Types that exist for a type checker only, in a module with `from __future__ import annotations`."""
    assert run(resolve, unknown_type) == (1, 1)


def test_names_of_an_enclosing_function_are_found(run: Any) -> None:
    """If the function uses them, that is: nobody else knows them."""

    async def inner() -> int:
        return 5

    async def handler(a: Annotated[int, Depends(inner)]) -> int:
        assert inner is not None
        return a

    assert run(resolve, handler) == 5

    async def not_used() -> int:
        return 5

    async def broken(a: Annotated[int, Depends(not_used)]) -> int:
        return a

    with pytest.raises(ConfigurationError, match=r"not_used.*no such name"):
        run(resolve, broken)

    marker = Depends(not_used)

    async def broken_too(a: Annotated[int, marker]) -> int:
        return a

    with pytest.raises(DependencyError, match=r"broken_too\(a\): its annotation has names.*marker"):
        run(resolve, broken_too)


async def a(it: Annotated[int, Depends(b)]) -> int:
    return it


async def b(it: Annotated[int, Depends(c)]) -> int:
    return it


async def c(it: Annotated[int, Depends(a)]) -> int:
    return it


async def into_cycle(x: Annotated[int, Depends(first)], it: Annotated[int, Depends(a)]) -> int:
    return it


def test_a_cycle_is_named(run: Any) -> None:
    with pytest.raises(DependencyCycleError, match="a -> b -> c -> a") as caught:
        run(resolve, into_cycle)
    assert caught.value.chain == ("a", "b", "c", "a")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.chain, str(copy)) == (caught.value.chain, str(caught.value))


async def itself(it: Annotated[int, Depends(itself)]) -> int:
    return it


def test_a_function_that_depends_on_itself(run: Any) -> None:
    with pytest.raises(DependencyCycleError, match="itself -> itself"):
        run(resolve, itself)


async def needs(what: int) -> int:
    return what


async def needs_more(it: Annotated[int, Depends(needs)]) -> int:
    return it


def test_a_value_that_nobody_provides(run: Any) -> None:
    with pytest.raises(DependencyError, match=r"needs_more -> needs\(what\): nobody") as caught:
        run(resolve, needs_more)
    assert caught.value.chain == ("needs_more", "needs")
    assert caught.value.parameter == "what"
    assert isinstance(caught.value, TypeError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.chain, copy.parameter, str(copy)) == (
        caught.value.chain,
        caught.value.parameter,
        str(caught.value),
    )
    assert run(functools.partial(resolve, needs_more, what=3)) == 3


async def settings() -> int:
    return 1


async def pool(settings: Annotated[int, Depends(settings)]) -> int:
    return settings


async def pool_of_values(what: int) -> int:
    return what


@pytest.mark.parametrize(
    ("depends", "match"),
    [
        (Depends(pool, lifetime="app"), r"pool\(settings\): pool lives as long as the application"),
        (Depends(pool_of_values, lifetime="app"), r"pool_of_values\(what\).*what is of a request"),
    ],
)
def test_what_lives_longer_than_what_it_depends_on(run: Any, depends: Any, match: str) -> None:
    async def handler(it: int = depends) -> int:
        return it

    with pytest.raises(DependencyError, match=match):
        run(functools.partial(resolve, handler, what=3))


def test_a_generator_has_no_ttl(run: Any) -> None:
    async def generator() -> Any:
        yield 1

    async def handler(it: int = Depends(generator, ttl=60)) -> int:
        return it

    with pytest.raises(DependencyError, match="it can have no ttl"):
        run(resolve, handler)


def broken_annotation(a: 1 / 0) -> None: ...  # type: ignore[valid-type]


def test_annotations_that_cannot_be_read(run: Any) -> None:
    with pytest.raises(DependencyError, match="ZeroDivisionError"):
        run(resolve, broken_annotation)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"call": 5}, r"Depends\(call\) got 5"),
        ({"use_cache": 1}, r"Depends\(use_cache"),
        ({"concurrent": None}, r"Depends\(concurrent"),
        ({"measure": "x"}, r"Depends\(measure"),
        ({"thread": 1}, r"Depends\(thread"),
        ({"ttl": 0}, r"Depends\(ttl"),
        ({"ttl": "1"}, r"Depends\(ttl"),
        ({"lifetime": "session"}, r"Depends\(lifetime"),
        ({"use_cache": False, "ttl": 1}, "keep the value"),
        ({"use_cache": False, "lifetime": "app"}, "keep the value"),
        ({"ttl": 1, "lifetime": "app"}, "the value stays"),
    ],
)
def test_options_that_cannot_be(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Depends(**{"call": first, **arguments})


def test_depends_shows_what_it_is() -> None:
    assert repr(Depends(first)) == "Depends(first)"
    assert "functools.partial" in repr(Depends(functools.partial(first)))


def test_parameters_by_position_and_by_name(run: Any) -> None:
    """Positional-only ones are given so, and left out together with those behind them."""

    def handler(
        a: int = Depends(lambda: 1),
        b: int = 2,
        /,
        c: int = Depends(lambda: 3),
        *args: int,
        d: int = Depends(lambda: 4),
        **more: int,
    ) -> tuple[int, ...]:
        return a, b, c, d

    def ends(a: int = 1, b: int = 2, /) -> tuple[int, int]:
        return a, b

    def gap(a: int = Depends(lambda: 1), b: int = 2, c: int = Depends(lambda: 3)) -> Any:
        return a, b, c

    assert run(functools.partial(resolve, handler, b=7)) == (1, 7, 3, 4)
    assert run(functools.partial(resolve, ends, b=7)) == (1, 2)
    assert run(resolve, gap) == (1, 2, 3)


def test_without_an_application_there_are_no_resources_of_it(run: Any) -> None:
    async def handler(it: int = Depends(settings, lifetime="app")) -> int:
        return it

    async def main() -> None:
        for concurrent in (False, True):
            with pytest.raises(RuntimeError, match="app_resources"):
                await resolve(handler, concurrent=concurrent)
        async with ResourceManager():
            with pytest.raises(RuntimeError):
                app_resources()

    run(main)


def test_classes_and_their_constructors(run: Any) -> None:
    """Inherited, of a dataclass, by __new__, or none at all."""

    class Base:
        def __init__(self, it: Annotated[int, Depends(first)]) -> None:
            self.it = it

    class Derived(Base):
        pass

    @dataclasses.dataclass
    class Data:
        it: Annotated[int, Depends(first)]

    class Tuple(NamedTuple):
        it: Annotated[int, Depends(first)]

    class Empty:
        pass

    for kind in (Base, Derived, Data, Tuple):
        assert run(resolve, kind).it == 1
    assert isinstance(run(resolve, Empty), Empty)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no such statements")
def test_type_statements_and_type_parameters(run: Any) -> None:
    namespace: dict[str, Any] = {"Annotated": Annotated, "Depends": Depends, "first": first}
    exec(
        "type It = Annotated[int, Depends(first)]\n"
        "async def handler[T](it: It, other: 'list[T] | None' = None): return it",
        namespace,
    )
    assert run(resolve, namespace["handler"]) == 1


def test_a_name_that_gets_its_value_later(run: Any) -> None:
    """A closure whose variable is not assigned when the plan is made."""

    def make() -> Any:
        async def handler(it: Annotated[int, Depends(first)], other: Later | None = None) -> int:
            assert Later
            return it

        found = run(resolve, handler) if early else handler
        Later = int  # noqa: N806
        return found

    early = False
    assert run(resolve, make()) == 1
    early = True
    with pytest.raises(NameError):
        make()


def test_a_dependency_that_cannot_be_given() -> None:
    """By position only, behind one that has no value: else the function would get the marker itself."""

    def handler(a: int = 1, b: int = Depends(lambda: 2), /) -> int:
        return a + b

    with pytest.raises(DependencyError, match=r"^handler\(b\): it can be given by position only"):
        resolve(handler)


class Named(Protocol):
    name: str


class Fields(TypedDict):
    name: str


def test_types_that_cannot_tell_what_is_of_them(run: Any) -> None:
    """Values are given to these by name only."""

    def handler(a: Named | None = None, b: Named = "b", c: Fields = "c", **_: Any) -> Any:  # type: ignore[assignment]
        return a, b, c

    def one(a: Named, b: Fields) -> Any:
        return a, b

    assert run(functools.partial(resolve, handler, x=Named)) == (None, "b", "c")
    assert run(functools.partial(resolve, one, a=1, b=2)) == (1, 2)


T = TypeVar("T")


class Box(Generic[T]):
    def __init__(self, it: int = Depends(lambda: 3)) -> None:
        self.it = it
        self.thread = threading.current_thread()


box_of_four = functools.partial(Box, it=4)


def test_what_stands_for_a_class_is_called_as_the_class_is(run: Any) -> None:
    """A generic class with its parameters, and a partial: on the loop, with its own dependencies."""

    async def handler(
        a: Box[int] = Depends(Box[int]), b: Box[Any] = Depends(box_of_four)
    ) -> list[int]:
        assert a.thread is b.thread is threading.current_thread()
        return [a.it, b.it]

    assert run(resolve, handler) == [3, 4]


def test_tools_find_no_marks_of_theirs_where_annotations_are_read(run: Any) -> None:
    """pytest looks for `__tracebackhide__` among the names of every frame of a traceback."""

    async def broken(a: 1 / 0 = 1) -> None:  # type: ignore[valid-type]
        raise AssertionError

    with pytest.raises(DependencyError, match="ZeroDivisionError") as caught:
        run(resolve, broken)
    error = caught.value.__cause__
    assert error is not None
    traceback = error.__traceback__
    while traceback is not None:
        with pytest.raises(KeyError):
            traceback.tb_frame.f_locals["__tracebackhide__"]
        traceback = traceback.tb_next
