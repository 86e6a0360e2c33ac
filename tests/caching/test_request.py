"""The cache of one request: its methods, from tasks and from threads."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import pytest

from asgi_perfkit import RequestScopedCache
from asgi_perfkit.exceptions import ConfigurationError
from tests.conftest import Run
from tests.support import Trouble, checkpoint, together


def test_what_is_least_recently_used_makes_room() -> None:
    cache = RequestScopedCache(2)
    cache.set("a", 1)
    cache.set("b", 2)
    assert cache.get("a") == 1
    cache.set("c", 3)
    assert "b" not in cache
    assert (cache.get("a"), cache.get("c")) == (1, 3)
    assert cache.statistics().evictions == 1


@pytest.mark.parametrize("value", [None, False, 0, "", ()])
def test_every_value_is_a_value(value: object) -> None:
    cache = RequestScopedCache()
    assert cache.get_or_create("key", lambda: value) is value
    assert "key" in cache
    assert cache.get("key", "default") is value
    assert cache.get_or_create("key", lambda: "another") is value


@pytest.mark.parametrize("value", [None, False, 0, "", ()])
def test_every_value_is_a_value_to_tasks(run: Run, value: object) -> None:
    async def main() -> None:
        async def make() -> object:
            calls.append(1)
            return value

        cache = RequestScopedCache()
        calls: list[int] = []
        for _ in range(3):
            assert await cache.aget_or_create("key", make) is value
        assert len(calls) == 1

    run(main)


def test_a_default_is_given_for_what_is_missing() -> None:
    cache = RequestScopedCache()
    assert cache.get("key") is None
    assert cache.get("key", 1) == 1
    assert not cache.delete("key")
    assert cache.statistics().misses == 2


def test_tasks_share_one_call(run: Run) -> None:
    async def main() -> None:
        async def make() -> object:
            made.append(object())
            await checkpoint()
            return made[0]

        async def ask() -> None:
            got.append(await cache.aget_or_create("key", make))

        cache = RequestScopedCache()
        made: list[object] = []
        got: list[object] = []
        await together(*[ask] * 50)
        assert got == made * 50
        figures = cache.statistics()
        assert (figures.misses, figures.hits) == (1, 49)

    run(main)


@pytest.mark.parametrize("what", ["set", "delete", "clear"])
def test_what_is_stored_meanwhile_stays(run: Run, what: str) -> None:
    """A value that was begun before the change is given to those who wait for it, and not kept."""

    async def main() -> None:
        cache = RequestScopedCache()

        async def make() -> str:
            await checkpoint()
            if what == "set":
                cache.set("key", "newer")
            elif what == "delete":
                assert not cache.delete("key")
            else:
                cache.clear()
            await checkpoint()
            return "older"

        assert await cache.aget_or_create("key", make) == "older"
        assert cache.get("key") == ("newer" if what == "set" else None)

    run(main)


def test_a_change_of_one_key_leaves_the_calls_for_others(run: Run) -> None:
    async def main() -> None:
        cache = RequestScopedCache()

        async def make() -> str:
            cache.set("other", 1)
            return "value"

        assert await cache.aget_or_create("key", make) == "value"
        assert cache.get("key") == "value"

    run(main)


def test_what_a_factory_raises_is_not_kept() -> None:
    def fail() -> None:
        raise Trouble

    cache = RequestScopedCache()
    with pytest.raises(Trouble) as caught:
        cache.get_or_create("key", fail)
    assert caught.traceback[-1].name == "fail"
    assert cache.get_or_create("key", lambda: 1) == 1


def test_a_coroutine_is_no_value() -> None:
    async def make() -> None: ...

    cache = RequestScopedCache()
    with pytest.raises(TypeError, match=r"RequestScopedCache got an awaitable .* async function"):
        cache.get_or_create("key", make)
    assert "key" not in cache


def test_neither_is_a_future() -> None:
    loop = asyncio.new_event_loop()
    with pytest.raises(TypeError, match="got an awaitable"):
        RequestScopedCache().get_or_create("key", loop.create_future)
    loop.close()


def test_without_a_loop_nothing_is_awaited() -> None:
    with pytest.raises(RuntimeError, match="where no event loop runs"):
        RequestScopedCache().aget_or_create("key", checkpoint).send(None)


@pytest.mark.parametrize("max_size", [0, -1, 1.5, "10", None, True])
def test_a_wrong_size_is_refused(max_size: object) -> None:
    with pytest.raises(ConfigurationError, match=r"RequestScopedCache\(max_size=\.\.\.\) got"):
        RequestScopedCache(max_size)  # type: ignore[arg-type]


def test_an_unhashable_key_is_refused() -> None:
    cache = RequestScopedCache()
    for ask in (cache.get, cache.delete, cache.__contains__, lambda key: cache.set(key, 1)):
        with pytest.raises(TypeError, match="unhashable"):
            ask([])
    assert len(cache) == 0


def test_eviction_costs_the_same_however_much_was_evicted() -> None:
    """A plain dict walks over the places of all that was taken out at its front; an ordered one knows its first."""
    assert isinstance(RequestScopedCache()._values, OrderedDict)


class Dropped:
    """Uses a cache when it is let go of."""

    def __init__(self, cache: RequestScopedCache, seen: list[object]) -> None:
        self._cache = cache
        self._seen = seen

    def __del__(self) -> None:
        self._seen.append(self._cache.get("a"))
        self._cache.set("b", "of the dropped one")


@pytest.mark.parametrize("way", ["replace", "delete", "clear", "evict"])
def test_what_is_let_go_of_may_use_the_cache(way: str) -> None:
    cache = RequestScopedCache(2)
    seen: list[object] = []
    cache.set("x", Dropped(cache, seen))
    cache.set("a", 1)
    {
        "replace": lambda: cache.set("x", None),
        "delete": lambda: cache.delete("x"),
        "clear": cache.clear,
        "evict": lambda: cache.set("c", 3),
    }[way]()
    assert seen == [None if way == "clear" else 1]
    assert cache.get("b") == "of the dropped one"
    assert len(cache) <= 2
