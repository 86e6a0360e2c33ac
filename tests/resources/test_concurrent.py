"""What is concurrent: by data flow, in tasks that are followed to their end, and generators in order in one task."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest

from asgi_perfkit import (
    Depends,
    PerformanceMiddleware,
    Registry,
    ResourceManager,
    get_performance_stats,
    resolve,
)
from tests.resources.driver import Log
from tests.support import (
    BODY,
    START,
    Server,
    Trouble,
    checkpoint,
    forever,
    http_scope,
    no_collector,
)


class Gate:
    """Lets nobody pass before somebody has opened it; on whichever loop."""

    def __init__(self) -> None:
        self.is_open = False

    async def wait(self) -> None:
        while not self.is_open:
            await checkpoint()

    def open(self) -> None:
        self.is_open = True


def task_now() -> object:
    if asyncio._get_running_loop() is not None:
        return asyncio.current_task()
    import trio

    return trio.lowlevel.current_task()


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_independent_runs_at_the_same_time(run: Any, whole: bool) -> None:
    """Two that wait for each other: one by one they would for ever. By dependency, or for the whole call."""
    here, there = Gate(), Gate()

    async def one() -> int:
        here.open()
        await there.wait()
        return 1

    async def two() -> int:
        there.open()
        await here.wait()
        return 2

    async def handler(
        a: int = Depends(one, concurrent=not whole), b: int = Depends(two, concurrent=not whole)
    ) -> tuple[int, int]:
        return a, b

    assert run(functools.partial(resolve, handler, concurrent=whole)) == (1, 2)


def test_functions_in_threads_run_at_the_same_time(run: Any) -> None:
    barrier = threading.Barrier(3)

    def make(number: int) -> Any:
        def wait() -> int:
            barrier.wait(10)
            return number

        return wait

    async def handler(
        a: int = Depends(make(0)), b: int = Depends(make(1)), c: int = Depends(make(2))
    ) -> tuple[int, ...]:
        return a, b, c

    assert run(functools.partial(resolve, handler, concurrent=True)) == (0, 1, 2)


def test_it_is_by_data_flow_and_not_by_levels(run: Any) -> None:
    """a beside b -> c: c begins when b is there, although a of the same level is not."""
    c_has_begun = Gate()

    async def a() -> str:
        await c_has_begun.wait()
        return "a"

    async def b() -> str:
        await checkpoint()
        return "b"

    class Wrapped:
        def __init__(self, b: str = Depends(b)) -> None:
            self.b = b

    async def c(b: Wrapped = Depends(Wrapped)) -> str:
        c_has_begun.open()
        return b.b + "c"

    class After:
        def __init__(self, a: str = Depends(a)) -> None:
            self.a = a

    async def handler(a: After = Depends(After), c: str = Depends(c)) -> str:
        return a.a + c

    assert run(functools.partial(resolve, handler, concurrent=True)) == "abc"


def test_context_variables_of_all_that_it_depends_on(run: Any) -> None:
    """Of what was made last, and of what that does not depend on; of a generator in another task, too."""
    var: ContextVar[str] = ContextVar("var", default="not set")
    entered: ContextVar[str] = ContextVar("entered", default="not set")
    through_is_there = Gate()

    async def sets() -> None:
        await checkpoint()
        var.set("set")

    async def through(_: None = Depends(sets)) -> None:
        through_is_there.open()

    async def opened() -> AsyncIterator[None]:
        entered.set("entered")
        yield

    async def late() -> None:
        await through_is_there.wait()
        await checkpoint()
        assert var.get() == "not set"

    async def sees(
        a: None = Depends(through), b: None = Depends(late), c: None = Depends(opened)
    ) -> tuple[str, str]:
        return var.get(), entered.get()

    async def handler(it: tuple[str, str] = Depends(sees)) -> tuple[str, str]:
        return it

    assert run(functools.partial(resolve, handler, concurrent=True)) == ("set", "entered")


def test_generators_are_entered_in_order_in_the_task_that_asked(run: Any) -> None:
    """And left in it, in the reverse order; while others are being made."""
    log: list[str] = []
    tasks: list[object] = []
    entered = Gate()

    def generator(name: str) -> Any:
        async def enter() -> AsyncIterator[str]:
            tasks.append(task_now())
            await checkpoint()
            log.append(name)
            if name == "b":
                entered.open()
            yield name
            tasks.append(task_now())
            log.append(f"-{name}")

        return enter

    async def beside() -> object:
        await entered.wait()
        return task_now()

    async def handler(
        x: object = Depends(beside),
        a: str = Depends(generator("a")),
        b: str = Depends(generator("b")),
    ) -> object:
        assert task_now() is not x
        return task_now()

    async def main() -> None:
        assert await resolve(handler, concurrent=True) is task_now()
        assert tasks == [task_now()] * 4

    run(main)
    assert log == ["a", "b", "-b", "-a"]


def test_generators_may_hold_task_groups(run: Any) -> None:
    """Two at once, and one that depends on what was made beside."""

    async def hold() -> AsyncIterator[Any]:
        if asyncio._get_running_loop() is not None:
            import anyio

            async with anyio.create_task_group() as group:
                yield group
        else:
            import trio

            async with trio.open_nursery() as nursery:
                yield nursery

    async def hold_too(beside: None = Depends(checkpoint)) -> AsyncIterator[Any]:
        async for group in hold():
            yield group

    async def handler(a: Any = Depends(hold), b: Any = Depends(hold_too)) -> None:
        a.start_soon(checkpoint)
        b.start_soon(checkpoint)

    run(functools.partial(resolve, handler, concurrent=True))


def test_the_first_error_ends_it(run: Any) -> None:
    """The others are cancelled and waited for, what is open is closed, and nothing runs any more."""
    log = Log()
    waiting = Gate()

    async def opened() -> AsyncIterator[None]:
        async with log.thing("opened"):
            yield

    async def waits(opened: None = Depends(opened)) -> None:
        log.append("waits opened")
        waiting.open()
        try:
            await forever()
        finally:
            log.append("waits closed")

    async def fails() -> None:
        await waiting.wait()
        raise Trouble

    async def never(waits: None = Depends(waits)) -> None:
        log.append("never")

    async def handler(a: None = Depends(never), b: None = Depends(fails)) -> None: ...

    async def main() -> None:
        async with ResourceManager():
            with pytest.raises(Trouble) as caught:
                await resolve(handler, concurrent=True)
            log.append("end")
            assert caught.value.__context__ is None
            if asyncio._get_running_loop() is not None:
                assert len(asyncio.all_tasks()) <= 2

    run(main)
    assert log == [
        "opened opened",
        "waits opened",
        "waits closed",
        "opened sees Trouble",
        "opened closed",
        "end",
    ]


def test_an_error_of_a_generator_ends_the_others(run: Any) -> None:
    log: list[str] = []
    waiting = Gate()

    async def waits() -> None:
        waiting.open()
        try:
            await forever()
        finally:
            log.append("cancelled")

    async def fails() -> AsyncIterator[None]:
        await waiting.wait()
        raise Trouble
        yield

    async def after(a: None = Depends(fails)) -> AsyncIterator[None]:
        log.append("after")
        yield

    async def handler(
        a: None = Depends(waits), b: None = Depends(fails), c: None = Depends(after)
    ) -> None: ...

    with pytest.raises(Trouble):
        run(functools.partial(resolve, handler, concurrent=True))
    assert log == ["cancelled"]


def test_a_task_that_takes_its_time_to_end_is_waited_for(run_asyncio: Any) -> None:
    """Also by who is cancelled once more meanwhile."""
    log: list[str] = []

    async def main() -> None:
        waiting, ending = asyncio.Event(), asyncio.Event()

        async def waits() -> None:
            waiting.set()
            try:
                await forever()
            finally:
                ending.set()
                for _ in range(5):
                    await asyncio.sleep(0)
                log.append("ended")

        async def handler(a: None = Depends(waits, concurrent=True)) -> None: ...

        task = asyncio.ensure_future(resolve(handler))
        await waiting.wait()
        task.cancel()
        await ending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["ended"]

    run_asyncio(main)


def test_a_coroutine_that_is_closed_leaves_its_tasks_cancelled(run_asyncio: Any) -> None:
    cancelled: list[int] = []

    async def waits() -> None:
        try:
            await forever()
        finally:
            cancelled.append(1)

    async def handler(a: None = Depends(waits, concurrent=True)) -> None: ...

    async def main() -> None:
        coroutine = resolve(handler)
        coroutine.send(None)
        await asyncio.sleep(0)
        coroutine.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run_asyncio(main)
    assert cancelled == [1]


def test_nothing_is_left_for_the_garbage_collection(run_asyncio: Any) -> None:
    """Of what was resolved, by reference counts alone; where it fails, too."""

    class Made:
        pass

    async def make() -> Made:
        return Made()

    async def make_of(source: Made = Depends(make)) -> Made:
        return Made()

    async def fails(source: Made = Depends(make_of)) -> None:
        raise Trouble

    async def handler(a: Made = Depends(make), b: Made = Depends(make_of)) -> Any:
        return weakref.ref(a), weakref.ref(b)

    async def failing(b: None = Depends(fails), c: Made = Depends(make_of)) -> None: ...

    async def main() -> None:
        for concurrent in (False, True):
            await resolve(handler, concurrent=concurrent)
            with no_collector():
                references = await resolve(handler, concurrent=concurrent)
                await asyncio.sleep(0)
                assert [reference() for reference in references] == [None, None]
                with contextlib.suppress(Trouble):
                    await resolve(failing, concurrent=concurrent)
                await asyncio.sleep(0)
                assert not any(type(each) is Made for each in gc.get_objects())

    run_asyncio(main)


def test_figures(run: Any) -> None:
    """The time of a resolution, without the function; and of a dependency that asks for it."""
    registry = Registry()

    async def timed() -> int:
        await checkpoint()
        return 1

    async def opened() -> AsyncIterator[int]:
        yield 1

    async def handler(
        a: int = Depends(timed, measure=True), b: int = Depends(opened, measure=True)
    ) -> int:
        return a

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for concurrent in (False, True):
            await resolve(handler, concurrent=concurrent)
            async with ResourceManager():
                await resolve(handler, concurrent=concurrent)
                await resolve(handler, concurrent=concurrent)
        await send(START)
        await send(BODY)

    async def main() -> None:
        server = Server()
        await PerformanceMiddleware(app, registry=registry)(
            http_scope(), server.receive, server.send
        )

    run(main)
    stats = get_performance_stats(registry=registry)
    assert stats["dependency_resolution_time"]["count"] == 6
    assert stats["depends timed"]["count"] == 4
    assert stats["depends opened"]["count"] == 4
    assert stats["dependency_resolution_time"]["max"] < 1
