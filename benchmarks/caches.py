"""Caches: a value that is there, one that is not, and what fifty who ask at once cost, beside async_lru and others.

Each contender caches the same function, with a time to live where it has one, and each is asked by
the same loop of awaits in its own event loop, which runs from the first batch to the last. Time is
CPU time of that thread. The last tables are no times: they count how often the function was called.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from time import thread_time_ns
from typing import Any

import aiocache
import async_lru
import asyncache
import cachetools
import cashews

from asgi_perfkit import RequestScopedCache, cached

from .harness import Row, Settings, Spread, Table, Target, interleave, pair

KIT = "cached"
PLAIN = "not cached"
ASYNC_LRU = "async_lru"
CASHEWS = "cashews"
AIOCACHE = "aiocache"
ASYNCACHE = "asyncache"
CACHETOOLS = "cachetools"
LRU_CACHE = "functools.lru_cache"
KIT_REQUEST = "RequestScopedCache.get"
KIT_REQUEST_MAKE = "RequestScopedCache.get_or_create"
DICT = "dict.get"

TTL_SECONDS = 3600
MAX_SIZE = 1000
CONCURRENCY = 50

Function = Callable[..., Awaitable[Any]]


def run(settings: Settings) -> Iterator[Table]:
    loop = asyncio.new_event_loop()
    try:
        yield hits(loop, settings)
        yield misses(loop, settings)
        yield plain_hits(settings)
        yield request_hits(settings)
        yield from counts(loop)
    finally:
        left = asyncio.all_tasks(loop)  # those that throw out what has expired
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))
        loop.close()


def decorators() -> dict[str, Callable[[Function], Function]]:
    """Each with an empty cache, set up as its documentation says for one that is in memory and has a time to live."""
    memory = cashews.Cache()
    memory.setup("mem://", size=MAX_SIZE)
    return {
        KIT: cached(TTL_SECONDS, max_size=MAX_SIZE),
        ASYNC_LRU: async_lru.alru_cache(maxsize=MAX_SIZE, ttl=TTL_SECONDS),
        CASHEWS: memory(ttl=TTL_SECONDS, key="{key}", lock=True),
        AIOCACHE: aiocache.cached(
            ttl=TTL_SECONDS, key_builder=lambda func, *args, **kwargs: str(args[0])
        ),
        ASYNCACHE: asyncache.cached(cachetools.TTLCache(MAX_SIZE, TTL_SECONDS)),
    }


async def load(key: int) -> str:
    return str(key)


def hits(loop: asyncio.AbstractEventLoop, settings: Settings) -> Table:
    """Return what it costs to get a value that is there."""
    calls = settings.pick(2000, 100)

    async def ask(func: Function) -> None:
        for _ in range(calls):
            await func(1)

    functions = {PLAIN: load, **{name: each(load) for name, each in decorators().items()}}
    figures, rounds = timed(
        {name: functools.partial(ask, func) for name, func in functions.items()},
        loop,
        calls,
        settings,
    )
    return table(
        "A value that is there, awaited", figures, ASYNC_LRU, {KIT: Target("<=", 1.0)}, rounds
    )


def misses(loop: asyncio.AbstractEventLoop, settings: Settings) -> Table:
    """Return what it costs to make a value and to keep it, with the eviction of another one."""
    calls = settings.pick(500, 50)
    keys = iter(range(10**9))

    async def ask(func: Function) -> None:
        for _ in range(calls):
            await func(next(keys))

    functions = {PLAIN: load, **{name: each(load) for name, each in decorators().items()}}
    figures, rounds = timed(
        {name: functools.partial(ask, func) for name, func in functions.items()},
        loop,
        calls,
        settings,
    )
    return table("A value that is not there, awaited", figures, ASYNC_LRU, {}, rounds)


def plain_hits(settings: Settings) -> Table:
    """Return what a value that is there costs a plain function."""

    def make(key: int) -> str:
        return str(key)

    functions = {
        KIT: cached(TTL_SECONDS, max_size=MAX_SIZE)(make),
        CACHETOOLS: cachetools.cached(
            cachetools.TTLCache(MAX_SIZE, TTL_SECONDS), lock=threading.RLock()
        )(make),
        LRU_CACHE: functools.lru_cache(MAX_SIZE)(make),
    }
    figures, rounds = called({name: (func, (1,)) for name, func in functions.items()}, settings)
    return table(
        "A value that is there, of a plain function",
        figures,
        CACHETOOLS,
        {KIT: Target("<=", 1.0)},
        rounds,
    )


def request_hits(settings: Settings) -> Table:
    """Return what the cache of a request costs when the value is there."""
    cache = RequestScopedCache()
    cache.set("key", "value")
    values = {"key": "value"}
    figures, rounds = called(
        {
            KIT_REQUEST: (cache.get, ("key",)),
            KIT_REQUEST_MAKE: (cache.get_or_create, ("key", str)),
            DICT: (values.get, ("key",)),
        },
        settings,
    )
    return table("A value that is there, in the cache of a request", figures, DICT, {}, rounds)


def timed(
    asks: dict[str, Callable[[], Coroutine[Any, Any, None]]],
    loop: asyncio.AbstractEventLoop,
    calls: int,
    settings: Settings,
) -> tuple[dict[str, list[float]], str]:
    """Return microseconds for each call, by contender and round, and how many there were."""

    async def batch(ask: Callable[[], Coroutine[Any, Any, None]]) -> float:
        began = thread_time_ns()
        await ask()
        return (thread_time_ns() - began) / calls / 1000

    rounds = settings.pick(30, 3)
    figures = interleave(
        {
            name: functools.partial(run_on, loop, functools.partial(batch, ask))
            for name, ask in asks.items()
        },
        rounds=rounds,
    )
    return figures, f"{rounds} rounds of {calls} calls."


def run_on(
    loop: asyncio.AbstractEventLoop, function: Callable[[], Coroutine[Any, Any, float]]
) -> float:
    return loop.run_until_complete(function())


def called(
    functions: dict[str, tuple[Callable[..., object], tuple[Any, ...]]], settings: Settings
) -> tuple[dict[str, list[float]], str]:
    """Do the same with plain functions and their arguments."""
    calls = settings.pick(5000, 200)

    def batch(func: Callable[..., object], args: tuple[Any, ...]) -> float:
        began = thread_time_ns()
        for _ in range(calls):
            func(*args)
        return (thread_time_ns() - began) / calls / 1000

    rounds = settings.pick(30, 3)
    figures = interleave(
        {name: functools.partial(batch, *each) for name, each in functions.items()}, rounds=rounds
    )
    return figures, f"{rounds} rounds of {calls} calls."


def table(
    title: str,
    figures: dict[str, list[float]],
    reference: str,
    targets: dict[str, Target],
    note: str,
) -> Table:
    rows = [
        Row(
            name,
            Spread.of(samples),
            Spread.of(pair(samples, figures[reference], lambda one, other: one / other)),
            targets.get(name),
        )
        for name, samples in figures.items()
    ]
    return Table(title, "us", rows, reference, notes=[note])


# How often the function is called.


def counts(loop: asyncio.AbstractEventLoop) -> Iterator[Table]:
    cases = {
        f"Calls for {CONCURRENCY} who ask for the same value at once": cold,
        "Calls for 5 who ask at once for what fails": failing,
        "Calls for 3 who ask one after the other for what is None": nothing,
        "Of 5 who wait for a value, how many of the other 4 get it when the first is cancelled": (
            left_alone
        ),
    }
    for title, case in cases.items():
        expected = Target(">=", 4) if case is left_alone else Target("<=", 1)
        rows = [
            Row(
                name,
                Spread.of([loop.run_until_complete(case(decorate))]),
                target=expected if name == KIT else None,
            )
            for name, decorate in decorators().items()
        ]
        yield Table(title, "count", rows)


async def cold(decorate: Callable[[Function], Function]) -> int:
    calls = 0

    async def slow(key: int) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.005)
        return key

    func = decorate(slow)
    await asyncio.gather(*(func(1) for _ in range(CONCURRENCY)))
    return calls


async def failing(decorate: Callable[[Function], Function]) -> int:
    calls = 0

    async def fail(key: int) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.005)
        raise ValueError(key)

    func = decorate(fail)
    await asyncio.gather(*(func(1) for _ in range(5)), return_exceptions=True)
    return calls


async def nothing(decorate: Callable[[Function], Function]) -> int:
    calls = 0

    async def empty(key: int) -> None:
        nonlocal calls
        calls += 1

    func = decorate(empty)
    for _ in range(3):
        await func(1)
    return calls


async def left_alone(decorate: Callable[[Function], Function]) -> int:
    async def slow(key: int) -> int:
        await asyncio.sleep(0.01)
        return key

    func = decorate(slow)
    tasks = [asyncio.ensure_future(func(1)) for _ in range(5)]
    await asyncio.sleep(0.002)
    tasks[0].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes[1:].count(1)
