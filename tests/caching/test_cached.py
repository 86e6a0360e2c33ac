"""What `cached` does to a function: values, keys, expiry, errors of use."""

from __future__ import annotations

import functools
import inspect
import pickle
import weakref
from typing import Any

import pytest

from asgi_perfkit import ConfigurationError, cached
from asgi_perfkit.caching.store import CacheStatistics
from tests.conftest import Run
from tests.support import Clock, Trouble, checkpoint, finish, no_collector


class Recorder:
    """An async function, or a plain one, that keeps its arguments and returns them."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return args, kwargs

    async def awaited(self, *args: Any, **kwargs: Any) -> Any:
        await checkpoint()
        return self.plain(*args, **kwargs)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


both = pytest.mark.parametrize("kind", ["plain", "awaited"])


@both
def test_a_value_is_made_once_for_each_key(run: Run, recorder: Recorder, kind: str) -> None:
    async def main() -> None:
        func = cached(60)(getattr(recorder, kind))
        for _ in range(3):
            assert await settled(func(1)) == ((1,), {})
            assert await settled(func("1")) == (("1",), {})
            assert await settled(func(x=1)) == ((), {"x": 1})
        assert len(recorder.calls) == 3
        assert func.cache_info() == CacheStatistics(6, 3, 0, 3, 1000)

    run(main)


def test_the_order_of_named_arguments_does_not_matter(recorder: Recorder) -> None:
    func = cached(60)(recorder.plain)
    uncomparable = object()
    assert func(0, a=1, b=uncomparable) == func(0, b=uncomparable, a=1)
    assert len(recorder.calls) == 1


def test_names_are_not_mistaken_for_arguments(recorder: Recorder) -> None:
    func = cached(60)(recorder.plain)
    func(("a", 1))
    func(a=1)
    func("a", 1)
    assert len(recorder.calls) == 3


def test_numbers_that_are_equal_are_one_key(recorder: Recorder) -> None:
    func = cached(60)(recorder.plain)
    assert func(1) is func(1.0) is func(True)


@both
def test_a_value_expires(run: Run, clock: Clock, recorder: Recorder, kind: str) -> None:
    """It is good for `ttl` seconds from when it was stored, and using it does not prolong that."""

    async def main() -> None:
        func = cached(10)(getattr(recorder, kind))
        first = await settled(func())
        clock.advance(9.999)
        assert await settled(func()) is first
        clock.advance(0.001)
        assert await settled(func()) is not first
        assert len(recorder.calls) == 2

    run(main)


def test_the_time_of_a_value_begins_when_it_is_made(clock: Clock) -> None:
    @cached(10)
    def slow() -> object:
        clock.advance(30)
        return object()

    value = slow()
    clock.advance(9)
    assert slow() is value


@pytest.mark.parametrize("ttl", [None, float("inf"), 1e300, 10**400])
def test_without_a_ttl_nothing_expires(clock: Clock, recorder: Recorder, ttl: Any) -> None:
    func = cached(ttl)(recorder.plain)
    value = func()
    clock.advance(1e9)
    assert func() is value


def test_what_is_too_old_goes_when_something_new_comes(clock: Clock) -> None:
    """It neither keeps its memory nor the place of what is still good."""

    class Value: ...

    @cached(10, max_size=2)
    def make(key: int) -> Value:
        return Value()

    good = weakref.ref(make(1))
    clock.advance(6)
    old, good = good, weakref.ref(make(2))
    make(1)  # the most recently used one
    clock.advance(6)
    make(3)
    assert old() is None
    assert good() is make(2)
    assert make.cache_info().evictions == 0


def test_there_are_no_more_values_than_may_be(recorder: Recorder) -> None:
    func = cached(60, max_size=2)(recorder.plain)
    func(1)
    func(2)
    func(1)
    func(3)
    assert func.cache_info() == CacheStatistics(1, 3, 1, 2, 2)
    func(1)
    assert len(recorder.calls) == 3
    func(2)
    assert len(recorder.calls) == 4


@both
def test_invalidating_and_clearing(run: Run, recorder: Recorder, kind: str) -> None:
    async def main() -> None:
        func = cached(60)(getattr(recorder, kind))
        for key in (1, 2):
            await settled(func(key, x=key))
        assert func.cache_invalidate(1, x=1)
        assert not func.cache_invalidate(1, x=1)
        await settled(func(2, x=2))
        assert len(recorder.calls) == 2
        await settled(func(1, x=1))
        assert len(recorder.calls) == 3
        func.cache_clear()
        assert func.cache_info().size == 0
        await settled(func(2, x=2))
        assert len(recorder.calls) == 4

    run(main)


@both
def test_a_key_of_ones_own(run: Run, recorder: Recorder, kind: str) -> None:
    async def main() -> None:
        func = cached(60, key=lambda items, **_: tuple(items))(getattr(recorder, kind))
        first = await settled(func([1, 2], trace="a"))
        assert await settled(func([1, 2], trace="b")) is first
        assert await settled(func([1])) is not first
        assert func.cache_invalidate([1, 2])
        assert func.cache_info().size == 1

    run(main)


@both
def test_unhashable_arguments_are_refused(run: Run, recorder: Recorder, kind: str) -> None:
    async def main() -> None:
        func = cached(60)(getattr(recorder, kind))
        remedy = rf"{kind} was called .*unhashable type: 'list'.*cached\(\.\.\., key=\.\.\.\)"
        with pytest.raises(TypeError, match=remedy) as caught:
            await settled(func([]))
        assert caught.value.__suppress_context__
        with pytest.raises(TypeError, match=remedy):
            func.cache_invalidate(x=[])
        assert recorder.calls == []

    run(main)


class Incomparable:
    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise TypeError("these do not compare")


def test_an_error_of_the_keys_own_is_raised_as_it_is(recorder: Recorder) -> None:
    func = cached(60)(recorder.plain)
    key = Incomparable()
    func(key)
    func(key)
    with pytest.raises(TypeError, match="these do not compare"):
        func(Incomparable())
    with pytest.raises(TypeError, match="these do not compare"):
        func.cache_invalidate(Incomparable())


def test_errors_are_not_kept(run: Run) -> None:
    async def main() -> None:
        @cached(60)
        async def fail() -> str:
            calls.append(1)
            await checkpoint()
            if len(calls) < 3:
                raise Trouble
            return "well"

        calls: list[int] = []
        for _ in range(2):
            with pytest.raises(Trouble) as caught:
                await fail()
            assert caught.traceback[-1].name == "fail"
            assert [each.name for each in caught.traceback].count("_run") == 0
        assert await fail() == "well"
        assert await fail() == "well"
        assert len(calls) == 3

    run(main)


@both
def test_a_failure_leaves_nothing_to_the_collector(run: Run, kind: str) -> None:
    async def main() -> None:
        class Local: ...

        async def fail(local: Local) -> None:
            await checkpoint()
            raise Trouble

        def fail_at_once(local: Local) -> None:
            raise Trouble

        func = cached(60)(fail if kind == "awaited" else fail_at_once)
        local = Local()
        gone = weakref.ref(local)
        with no_collector():
            try:
                await settled(func(local))
            except Trouble:
                pass
            del local
            await checkpoint()  # the call's task ends
            assert gone() is None

    run(main)


# ---- methods


class Shop:
    def __init__(self) -> None:
        self.calls = 0

    @cached(60)
    async def price(self, item: str) -> tuple[Shop, str]:
        """What it costs."""
        self.calls += 1
        return self, item

    @cached(60, key=lambda self, item: item)
    def name(self, item: str) -> str:
        self.calls += 1
        return item

    @staticmethod
    @cached(60)
    def tax(rate: int) -> object:
        return object()

    @classmethod
    @cached(60)
    def branch(cls, city: str) -> tuple[type, object]:
        return cls, object()


class Kiosk(Shop): ...


@pytest.fixture(autouse=True)
def _empty() -> None:
    for func in (Shop.price, Shop.name, Shop.tax):
        func.cache_clear()


def test_methods_have_a_value_for_each_instance(run: Run) -> None:
    async def main() -> None:
        one, other = Shop(), Shop()
        for _ in range(2):
            assert await one.price("tea") == (one, "tea")
            assert await other.price("tea") == (other, "tea")
        assert (one.calls, other.calls) == (1, 1)
        assert Shop.price.cache_invalidate(one, "tea")
        assert await other.price("tea") == (other, "tea")
        assert (one.calls, other.calls) == (1, 1)

    run(main)


def test_the_cache_keeps_the_instance_unless_the_key_is_without_it(run: Run) -> None:
    async def main() -> None:
        shop = Shop()
        await shop.price("tea")
        shop.name("tea")
        gone = weakref.ref(shop)
        with no_collector():
            del shop
            assert gone() is not None
            Shop.price.cache_clear()
            await checkpoint()  # the call's task ends
            assert gone() is None
        another = Shop()
        assert another.name("tea") == "tea"
        assert another.calls == 0

    run(main)


def test_static_methods_and_class_methods() -> None:
    assert Shop.tax(7) is Shop().tax(7)
    assert Shop.branch("Oslo") is Shop().branch("Oslo")
    assert Kiosk.branch("Oslo")[0] is Kiosk


# ---- what is a function, and what it shows


def test_it_looks_like_the_function() -> None:
    assert Shop.price.__name__ == "price"
    assert Shop.price.__qualname__ == "Shop.price"
    assert Shop.price.__doc__ == "What it costs."
    assert inspect.iscoroutinefunction(Shop.price)
    assert inspect.iscoroutinefunction(Shop().price)
    assert not inspect.iscoroutinefunction(Shop.name)
    assert list(inspect.signature(Shop.price).parameters) == ["self", "item"]
    assert list(inspect.signature(Shop().price).parameters) == ["item"]
    assert pickle.loads(pickle.dumps(Shop.price)) is Shop.price


def test_the_function_itself_goes_around_the_cache() -> None:
    shop = Shop()
    for _ in range(2):
        assert finish(Shop.price.__wrapped__(shop, "tea")) == (shop, "tea")
    assert shop.calls == 2
    assert Shop.price.cache_info().size == 0


class AsyncCallable:
    async def __call__(self) -> object:
        return object()


def test_callables_of_all_kinds(run: Run, recorder: Recorder) -> None:
    async def main() -> None:
        for func in (AsyncCallable(), functools.partial(recorder.awaited, 1)):
            wrapped = cached(60)(func)
            assert inspect.iscoroutinefunction(wrapped)
            assert await wrapped() is await wrapped()
        plain = cached(60)(functools.partial(recorder.plain, 2))
        assert plain(x=3) == ((2,), {"x": 3})
        assert cached(60)(Shop)() is not cached(60)(Shop)()

    run(main)


def test_a_plain_function_that_returns_a_coroutine_is_refused(recorder: Recorder) -> None:
    def load() -> Any:
        return recorder.awaited()

    func = cached(60)(load)
    with pytest.raises(TypeError, match="load got an awaitable from a plain function"):
        func()
    assert func.cache_info().size == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), r"cached\(ttl=\.\.\.\) got \(\): give seconds"),
        (("60",), r"cached\(ttl=\.\.\.\) got '60': give seconds"),
        ((True,), r"cached\(ttl=\.\.\.\) got True: give seconds"),
        ((0,), r"cached\(ttl=\.\.\.\) got 0: values must be good for some time"),
        ((-1.5,), r"cached\(ttl=\.\.\.\) got -1.5: values must"),
        ((float("nan"),), r"cached\(ttl=\.\.\.\) got nan: values must"),
        ((len,), r"cached\(ttl\) got .*: write @cached\(60\)"),
    ],
)
def test_a_wrong_ttl_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        cached(*arguments)


@pytest.mark.parametrize("max_size", [0, 2.0, None])
def test_a_wrong_size_is_refused(max_size: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"cached\(max_size=\.\.\.\) got"):
        cached(60, max_size=max_size)


@pytest.mark.parametrize("key", ["name", checkpoint, AsyncCallable()])
def test_a_wrong_key_function_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"cached\(key=\.\.\.\) got .*plain function"):
        cached(60, key=key)


def generator() -> Any:
    yield 1


async def async_generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("func", "remedy"),
    [
        (generator, "return a list"),
        (async_generator, "return a list"),
        (staticmethod(len), "put @staticmethod above"),
        (classmethod(len), "put @classmethod above"),
        (property(len), "decorate a function"),
        (None, "decorate a function"),
    ],
)
def test_what_cannot_be_cached_is_refused(func: Any, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        cached(60)(func)
