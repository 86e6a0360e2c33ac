"""Who asks for what it is making itself gets an error that names the way, and does not wait for ever."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest

from asgi_perfkit import (
    DependencyCycleError,
    Depends,
    ResourceManager,
    current_resources,
    resolve,
)
from tests.conftest import Run
from tests.support import Trouble, checkpoint, together


async def acquire(name: str, factory: Callable[[], Any]) -> Any:
    await checkpoint()
    return await current_resources().acquire(name, factory)


async def way_of(work: Callable[[], Awaitable[object]]) -> tuple[str, ...]:
    """The chain of the error that `work` comes to, within resources of its own."""
    async with ResourceManager():
        with pytest.raises(DependencyCycleError) as caught:
            await work()
    return caught.value.chain


async def solo(c: str = Depends(lambda: "c")) -> str:
    return await resolve(solo_user)


async def solo_user(solo: str = Depends(solo)) -> str:
    return solo


async def before() -> str:
    return "before"


async def behind(before: str = Depends(before), solo: str = Depends(solo)) -> str:
    return solo


def test_a_dependency_that_resolves_itself(run: Run) -> None:
    """In the first resolution of a request, and in another one."""

    async def later() -> None:
        await resolve(before)
        await resolve(behind)

    for work in (lambda: resolve(solo_user), lambda: resolve(behind), later):
        assert run(way_of, work) == ("solo", "solo")


def test_a_factory_that_acquires_itself(run: Run) -> None:
    async def pool() -> Any:
        return await acquire("pool", pool)

    assert run(way_of, lambda: acquire("pool", pool)) == ("'pool'", "'pool'")


def test_the_way_is_named(run: Run) -> None:
    """Through resources and dependencies of all kinds."""

    async def first() -> Any:
        return await resolve(user)

    async def session() -> AsyncIterator[Any]:
        yield await acquire("second", lambda: acquire("first", first))

    async def user(session: Any = Depends(session)) -> Any:
        return session

    session_user = user
    chain = ("'first'", "session", "'second'", "'first'")
    assert run(way_of, lambda: acquire("first", first)) == chain
    chain = ("session", "'second'", "'first'", "session")
    assert run(way_of, lambda: resolve(session_user)) == chain

    async def concurrently() -> None:
        await resolve(before)
        await resolve(session_user, concurrent=True)

    assert run(way_of, concurrently) == chain


def test_in_a_task_of_the_factory(run: Run) -> None:
    async def pool() -> None:
        await together(lambda: acquire("pool", pool))

    async def main() -> None:
        async with ResourceManager():
            with pytest.raises((DependencyCycleError, Exception)) as caught:
                await acquire("pool", pool)
        error: BaseException = caught.value
        while not isinstance(error, DependencyCycleError):
            (error,) = error.exceptions  # type: ignore[attr-defined]
        assert error.chain == ("'pool'", "'pool'")

    run(main)


def test_in_a_concurrent_dependency(run: Run) -> None:
    """Which is made in a task of its own."""

    async def pool() -> Any:
        return await resolve(user)

    async def connection() -> Any:
        return await acquire("pool", pool)

    async def user(c: Any = Depends(connection, concurrent=True), b: Any = Depends(before)) -> Any:
        return c

    chain = ("'pool'", "connection", "'pool'")
    assert run(way_of, lambda: acquire("pool", pool)) == chain


def test_two_tasks_that_wait_for_each_other(run: Run) -> None:
    """The one that closes the circle gets the error, and the other one what comes of it."""

    async def main() -> None:
        making = [anyio.Event(), anyio.Event()]
        errors: list[DependencyCycleError] = []

        async def make(number: int) -> Any:
            making[number].set()
            await making[1 - number].wait()
            return await acquire(str(1 - number), lambda: make(1 - number))

        async def ask(number: int) -> None:
            with pytest.raises(DependencyCycleError) as caught:
                await acquire(str(number), lambda: make(number))
            errors.append(caught.value)

        async with ResourceManager():
            await together(lambda: ask(0), lambda: ask(1))
        assert errors[0] is errors[1]
        assert errors[0].chain in (("'0'", "'1'", "'0'"), ("'1'", "'0'", "'1'"))

    run(main)


def test_two_resolutions_that_wait_for_each_other(run: Run) -> None:
    async def main() -> None:
        making = [anyio.Event(), anyio.Event()]

        async def left() -> Any:
            making[0].set()
            await making[1].wait()
            return await resolve(need_right)

        async def right() -> Any:
            making[1].set()
            await making[0].wait()
            return await resolve(need_left)

        async def need_left(left: Any = Depends(left)) -> None: ...
        async def need_right(right: Any = Depends(right)) -> None: ...

        async def ask(user: Any) -> None:
            with pytest.raises(DependencyCycleError) as caught:
                await resolve(user)
            assert set(caught.value.chain) == {"left", "right"}

        async with ResourceManager():
            await together(lambda: ask(need_left), lambda: ask(need_right))

    run(main)


def test_a_resolution_and_a_resource_that_wait_for_each_other(run: Run) -> None:
    """The first resolution of a request has told nobody what it makes when it begins to wait."""

    async def main() -> None:
        asked, waits = anyio.Event(), anyio.Event()

        async def pool() -> Any:
            asked.set()
            await waits.wait()
            for _ in range(3):
                await checkpoint()
            return await resolve(user)

        async def connection() -> Any:
            await asked.wait()
            waits.set()
            return await current_resources().acquire("pool", pool)

        async def user(connection: Any = Depends(connection)) -> None: ...

        async def ask(work: Any) -> None:
            with pytest.raises(DependencyCycleError) as caught:
                await work()
            assert caught.value.chain == ("'pool'", "connection", "'pool'")

        async with ResourceManager():
            await together(
                lambda: ask(lambda: acquire("pool", pool)), lambda: ask(lambda: resolve(user))
            )

    run(main)


def test_who_only_waits_is_no_circle(run: Run) -> None:
    """Several who ask for one thing, and things that are made of the same one, in whichever task."""

    async def main() -> None:
        async def base() -> str:
            await checkpoint()
            await checkpoint()
            return "base"

        async def top() -> Any:
            return await acquire("base", base)

        async def dependency(b: str = Depends(before)) -> Any:
            return await acquire("top", top)

        async def user(d: Any = Depends(dependency)) -> Any:
            return d

        async def ask() -> None:
            assert await resolve(user) == "base"
            assert await acquire("other", top) == "base"

        async with ResourceManager():
            await together(ask, lambda: acquire("base", base), ask, ask)

    run(main)


def test_a_dependency_that_is_made_once_more_is_no_circle(run: Run) -> None:
    """What has been made before is not being made, and what has failed can be asked for again."""

    async def main() -> None:
        tries = []

        async def fails_once() -> str:
            tries.append(1)
            if len(tries) == 1:
                raise Trouble
            return await resolve(before)

        async def main_one(b: str = Depends(before)) -> Any:
            with pytest.raises(Trouble):
                await acquire("x", fails_once)
            return await acquire("x", fails_once)

        async with ResourceManager():
            assert await resolve(main_one) == "before"

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory is new in 3.12")
def test_a_task_that_begins_eagerly_stands_on_its_own() -> None:
    """Its frames are on those of who has started it, which does not wait for it."""
    started: list[Any] = []

    async def slow(b: str = Depends(before)) -> str:
        started.append(asyncio.create_task(later()))
        await checkpoint()
        return "slow"

    async def user(slow: str = Depends(slow)) -> str:
        return slow

    async def later() -> str:
        return await resolve(user)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with ResourceManager():
            assert await resolve(user) == "slow"
            assert await started[0] == "slow"

    asyncio.run(main())
