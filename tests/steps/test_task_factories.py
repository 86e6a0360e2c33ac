"""The kit's task factory gets along with any other: plain, wrapping, eager."""

from __future__ import annotations

import asyncio
import functools
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio
import pytest

from asgi_perfkit.steps import current_account, follow_children
from tests.steps.charging import charge, charged
from tests.support import Clock, Trouble, ask, checkpoint

Run = Callable[..., Any]


class MarkedTask(asyncio.Task):  # type: ignore[type-arg]
    """A task class of the user's."""


def marked(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """A task factory of the user's."""
    return MarkedTask(coro, loop=loop, **options)


def test_a_factory_that_is_set_goes_on_making_the_tasks(run_asyncio: Run, clock: Clock) -> None:
    """The user's factory makes the tasks, inside of the work and outside, and those inside are charged."""

    async def child() -> None:
        clock.advance(1)
        await checkpoint()
        clock.advance(1)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(marked)

        async def work() -> None:
            coro = child()
            task = asyncio.create_task(coro, name="marked")
            assert type(task) is MarkedTask
            assert task.get_name() == "marked"
            assert task.get_coro() is coro
            await task

        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 2e9
        outside = asyncio.create_task(child())
        assert type(outside) is MarkedTask
        await outside
        assert account.loop_ns == 2e9

    run_asyncio(main)


def test_a_factory_that_wraps_the_kits_is_followed_once(run_asyncio: Run, clock: Clock) -> None:
    """A factory that is set on top of the kit's, and calls it, does not have its tasks charged twice."""

    async def child() -> None:
        clock.advance(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        follow_children()
        kits = loop.get_task_factory()
        assert kits is not None
        made = []

        def wrapping(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
            made.append(coro)
            return kits(loop, coro, **options)

        loop.set_task_factory(wrapping)

        async def work() -> None:
            coro = child()
            task = asyncio.ensure_future(coro)
            assert task.get_coro() is coro
            await task

        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 1e9
        assert made

    run_asyncio(main)


def test_following_twice_is_as_once(run_asyncio: Run) -> None:
    """Asking again to follow the children of a loop leaves its factory alone."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        follow_children()
        factory = loop.get_task_factory()
        follow_children()
        assert loop.get_task_factory() is factory

    run_asyncio(main)


def test_a_task_without_room_shows_the_attributes_of_the_coroutine(clock: Clock) -> None:
    """Where a factory's tasks take no attribute, what they say of their coroutine is right all the same."""

    class Narrow(asyncio.Task):  # type: ignore[type-arg]
        def __setattr__(self, name: str, value: object) -> None:
            if name == "get_coro":
                raise AttributeError(name)
            super().__setattr__(name, value)

    async def child() -> None:
        clock.advance(1)
        await checkpoint()

    async def work() -> None:
        coro = child()
        task = asyncio.ensure_future(coro)
        shown: Any = task.get_coro()
        assert shown.cr_code is coro.cr_code
        assert shown.__qualname__ == coro.__qualname__
        assert asyncio.iscoroutine(shown)
        with pytest.raises(AttributeError):
            _ = shown.nothing_of_the_kind
        await task

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(functools.partial(make, Narrow))
        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 1e9

    asyncio.run(main())


def make(
    kind: Callable[..., Any], loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
) -> Any:
    return kind(coro, loop=loop, **options)


def test_a_factory_may_step_await_and_close_what_it_is_given(clock: Clock) -> None:
    """What a factory gets is a coroutine in every respect: it can be wrapped in another, thrown into and closed."""
    error = Trouble()
    seen: list[object] = []

    async def child() -> None:
        clock.advance(1)
        try:
            await ask("question")
        except Trouble:
            clock.advance(1)
            await checkpoint()

    async def closed() -> None:
        try:
            await ask("question")
        finally:
            seen.append("closed")

    def stepping(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
        async def wrapper() -> None:
            await coro

        if coro.__name__ == "closed":
            assert coro.send(None) == "question"
            coro.close()
            return asyncio.Task(checkpoint(), loop=loop, **options)
        if coro.__name__ == "child":
            assert coro.send(None) == "question"
            coro.throw(error)
        return asyncio.Task(wrapper(), loop=loop, **options)

    async def work() -> None:
        await asyncio.get_running_loop().create_task(closed())
        asyncio.get_running_loop().call_soon(start)
        await (await started)

    def start() -> None:
        started.set_result(asyncio.get_running_loop().create_task(child()))

    async def main() -> None:
        nonlocal started
        started = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().set_task_factory(stepping)
        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 2e9

    started: asyncio.Future[Any]
    asyncio.run(main())
    assert seen == ["closed"]


def eager(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """`asyncio.eager_task_factory`; that of 3.13.0 does not take the options that uvloop 0.23 gives it."""
    return asyncio.Task(coro, loop=loop, **{**options, "eager_start": True})


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="asyncio refuses generators as tasks since Python 3.12"
)
def test_a_child_may_be_a_generator(run_asyncio: Run, clock: Clock) -> None:
    """A generator-based coroutine is followed as any other."""

    async def work() -> None:
        task = asyncio.ensure_future(generator(clock))  # type: ignore[arg-type]
        assert await task == "done"

    assert charged(run_asyncio, clock, work) == 2


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="asyncio refuses generators as tasks since Python 3.12"
)
def test_a_factory_may_await_a_generator(clock: Clock) -> None:
    """A factory that wraps what it is given in a coroutine can do so with a generator-based one."""

    async def main() -> None:
        async def wrapper(coro: Any) -> Any:
            return await coro

        def wrapping(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
            return asyncio.Task(wrapper(coro), loop=loop, **options)

        asyncio.get_running_loop().set_task_factory(wrapping)

        async def work() -> None:
            assert await asyncio.ensure_future(generator(clock)) == "done"  # type: ignore[arg-type]

        await charge(work())

    asyncio.run(main())


@types.coroutine
def generator(clock: Clock) -> Generator[Any, Any, str]:
    clock.advance(1)
    yield from asyncio.sleep(0).__await__()
    clock.advance(1)
    return "done"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
def test_the_eager_factory_of_asyncio_is_followed(clock: Clock) -> None:
    """`asyncio.eager_task_factory` goes on making the tasks, and they are charged once."""

    async def child() -> str:
        clock.advance(1)
        if current_account.get() is None:
            return "done"
        await checkpoint()
        clock.advance(1)
        return "done"

    async def work() -> None:
        assert await asyncio.create_task(child()) == "done"

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 2e9
        assert asyncio.create_task(child()).done()

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
@pytest.mark.parametrize("task_class", [asyncio.Task, MarkedTask])
def test_libraries_recognise_the_eager_factory(
    task_class: type[asyncio.Task[Any]], clock: Clock
) -> None:
    """anyio knows it by its code, and starts the tasks of a task group otherwise there; they are followed, too."""
    tasks = []

    async def child() -> None:
        tasks.append(asyncio.current_task())
        await checkpoint()
        clock.advance(1)

    async def work() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            await asyncio.create_task(child())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.create_eager_task_factory(task_class))
        for _ in range(2):
            follow_children()  # a second time is nothing
        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 2e9

    asyncio.run(main())
    assert [type(task) for task in tasks] == [task_class] * 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
def test_eager_children_are_charged_once(run_asyncio: Run, clock: Clock) -> None:
    """The first step of an eager child is part of its parent's step; the further ones are charged by themselves."""
    order = []

    async def child() -> None:
        order.append("child")
        clock.advance(1)
        await checkpoint()
        clock.advance(10)

    async def at_once() -> str:
        clock.advance(100)
        return "at once"

    async def work() -> None:
        coro = child()
        task = asyncio.create_task(coro, name="eager")
        order.append("parent")
        assert task.get_coro() is coro
        assert task.get_name() == "eager"
        finished = asyncio.create_task(at_once())
        assert finished.done()
        assert await finished == "at once"
        clock.advance(1000)
        await task

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(eager)
        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 1111e9
        assert account.longest_ns == 1101e9

    run_asyncio(main)
    assert order == ["child", "parent"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
def test_eager_grandchildren_are_charged_once(run_asyncio: Run, clock: Clock) -> None:
    """An eager child's first step is part of that step of another child in which it is started."""

    async def grandchild() -> None:
        clock.advance(1)

    async def child() -> None:
        await checkpoint()
        clock.advance(10)
        await asyncio.create_task(grandchild())

    async def work() -> None:
        await asyncio.create_task(child())

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(eager)
        account = await charge(work(), started_ns=clock())
        assert account.loop_ns == 11e9

    run_asyncio(main)


async def starting_from_a_callback(child: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    started = loop.create_future()
    loop.call_soon(lambda: started.set_result(asyncio.ensure_future(child())))
    await (await started)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
def test_eager_children_that_a_callback_starts_are_charged(run_asyncio: Run, clock: Clock) -> None:
    """An eager child that begins outside of any step of its work pays for its first step itself."""

    async def child() -> None:
        clock.advance(1)
        await checkpoint()
        clock.advance(10)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(eager)
        account = await charge(starting_from_a_callback(child), started_ns=clock())
        assert account.loop_ns == 11e9

    run_asyncio(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
@pytest.mark.xfail(
    strict=True, reason="get_coro is set when the first step of an eager task is over"
)
def test_an_eager_child_answers_with_the_very_coroutine_from_the_start(run_asyncio: Run) -> None:
    """Inside of its first step, too, a task knows its coroutine."""
    seen: list[object] = []

    async def child() -> None:
        task = asyncio.current_task()
        assert task is not None
        seen.append(task.get_coro())
        await checkpoint()

    async def work() -> None:
        coro = child()
        task = asyncio.create_task(coro)
        await task
        assert seen == [coro]

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(eager)
        await charge(work())

    run_asyncio(main)
