"""What is entered in a child task, where many frameworks run their handlers, and left in the task that closes it."""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from types import coroutine
from typing import Any

import anyio
import pytest

from asgi_perfkit import (
    CleanupTimeoutError,
    DependencyCycleError,
    Depends,
    NoRequestError,
    ResourceManager,
    ResourceMiddleware,
    ResourcesClosedError,
    app_resources,
    contextmanager_in_threadpool,
    current_resources,
    resolve,
    run_in_threadpool,
)
from asgi_perfkit.steps import follow_children
from tests.conftest import Run
from tests.middleware.serving import detach, event, live
from tests.resources.driver import Log, cancel_everywhere
from tests.support import (
    BODY,
    START,
    Server,
    Trouble,
    checkpoint,
    forever,
    http_scope,
    no_collector,
    together,
)

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

Handler = Callable[[], Awaitable[object]]

user: ContextVar[str] = ContextVar("user", default="nobody")
depth: ContextVar[int] = ContextVar("depth", default=0)


async def in_a_block(handler: Handler, **options: Any) -> None:
    """Run it in a child task of the one that closes."""

    async def child() -> None:
        await handler()

    async with ResourceManager(**options):
        await together(child)


async def in_a_request(handler: Handler, **options: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def child() -> None:
            await handler()

        await together(child)
        await send(START)
        await send(BODY)

    server = Server()
    await ResourceMiddleware(app, **options)(http_scope(), server.receive, server.send)
    assert server.heard == [START, BODY]


@pytest.fixture(params=[in_a_block, in_a_request])
def apart(request: pytest.FixtureRequest) -> Callable[..., Awaitable[None]]:
    """`await apart(handler)` runs it in a child task of the one that closes what it opens."""
    return request.param


class Kinds:
    """Whatever logs a user in, and out again in its cleanup, if the context variable lets it.

    :ivar seen: by the cleanups.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def async_generator(self) -> AsyncIterator[str]:
        await checkpoint()
        token = user.set("ada")
        await checkpoint()
        try:
            yield "value"
        finally:
            await checkpoint()
            self.seen.append(user.get())
            user.reset(token)
            await checkpoint()

    def generator(self) -> Iterator[str]:
        token = user.set("ada")
        try:
            yield "value"
        finally:
            self.seen.append(user.get())
            user.reset(token)

    async def _depends(self, depends: Any, **options: Any) -> object:
        async def handler(value: str = depends) -> str:
            assert user.get() == "ada"
            return value

        return await resolve(handler, **options)

    async def depends_on_async(self) -> object:
        return await self._depends(Depends(self.async_generator))

    async def depends_concurrently(self) -> object:
        return await self._depends(Depends(self.async_generator), concurrent=True)

    async def depends_on_inline(self) -> object:
        return await self._depends(Depends(self.generator, thread=False))

    async def depends_inline_concurrently(self) -> object:
        return await self._depends(Depends(self.generator, thread=False), concurrent=True)

    async def depends_on_thread(self) -> object:
        return await self._depends(Depends(self.generator))

    async def resolves_it(self) -> object:
        return await resolve(self.async_generator)

    async def enters_async(self) -> object:
        return await current_resources().enter(asynccontextmanager(self.async_generator)())

    async def enters_blocking(self) -> object:
        return await current_resources().enter(contextmanager(self.generator)())

    async def acquires(self) -> object:
        return await current_resources().acquire("value", self.async_generator)

    async def enters_in_the_thread(self) -> object:
        def enter() -> str:
            value = current_resources().enter_sync(contextmanager(self.generator)())
            assert user.get() == "ada"
            return value

        value = await run_in_threadpool(enter)
        user.set("ada")  # a function in a thread sets nothing here
        return value


KINDS = [
    Kinds.depends_on_async,
    Kinds.depends_concurrently,
    Kinds.depends_on_inline,
    Kinds.depends_inline_concurrently,
    Kinds.depends_on_thread,
    Kinds.resolves_it,
    Kinds.enters_async,
    Kinds.enters_blocking,
    Kinds.acquires,
    Kinds.enters_in_the_thread,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("outer", ["nobody", "somebody"])
def test_a_cleanup_has_the_context_of_its_enter(
    run: Run, apart: Any, kind: Any, outer: str
) -> None:
    """It sees what the enter has set, and may reset it; the handler sees it, and the task that closes never does."""
    kinds = Kinds()

    async def handler() -> None:
        assert await kind(kinds) == "value"
        assert user.get() == "ada"

    async def main() -> None:
        if outer != "nobody":
            user.set(outer)
        await apart(handler)
        assert user.get() == outer

    run(main)
    assert kinds.seen == ["ada"]


def test_contexts_in_one_another(run: Run, apart: Any) -> None:
    """Each cleanup sees what its own enter has set, on top of what those before it have; the last comes first."""
    log = Log()

    @asynccontextmanager
    async def level(name: str) -> AsyncIterator[None]:
        token = depth.set(depth.get() + 1)
        log.append(f"{name} opened")
        if name == "b":  # opens one itself
            await current_resources().enter(level("inner"))
            assert depth.get() == 3
        yield
        log.append(f"{name} at {depth.get()}")
        await checkpoint()
        depth.reset(token)
        log.append(f"{name} closed")

    async def handler() -> None:
        for name in "abc":
            await current_resources().enter(level(name))
        assert depth.get() == 4

    run(apart, handler)
    order = [entry for entry in log if "at" in entry]
    assert order == ["c at 4", "b at 3", "inner at 3", "a at 1"]


@pytest.mark.parametrize("suppresses", [False, True])
@pytest.mark.parametrize("blocking", [False, True])
def test_an_exception_is_thrown_in_there(run: Run, suppresses: bool, blocking: bool) -> None:
    seen: list[object] = []
    trouble = Trouble()

    @asynccontextmanager
    async def thing() -> AsyncIterator[None]:
        token = user.set("ada")
        try:
            yield
        except Trouble as error:
            await checkpoint()
            seen.extend((error, user.get(), sys.exc_info()[1]))
            user.reset(token)
            if not suppresses:
                raise

    def generator() -> Iterator[None]:
        token = user.set("ada")
        try:
            yield
        except Trouble as error:
            seen.extend((error, user.get(), sys.exc_info()[1]))
            user.reset(token)
            if not suppresses:
                raise

    async def child() -> None:
        if blocking:
            await resolve(_needs(Depends(generator, thread=False)))
        else:
            await current_resources().enter(thing())

    async def main() -> None:
        async with ResourceManager():
            await together(child)
            raise trouble

    if suppresses:
        run(main)
    else:
        with pytest.raises(Trouble) as caught:
            run(main)
        assert caught.value is trouble
        assert trouble.__context__ is None
    assert seen == [trouble, "ada", trouble]


def _needs(depends: Any) -> Callable[..., Awaitable[None]]:
    async def handler(value: object = depends) -> None:
        pass

    return handler


def test_a_cancellation_anywhere_leaves_nothing_open(run: Run, apart: Any) -> None:
    """Whoever is cancelled, in the enter, in the handler or in the closing: each cleanup runs, in its own context."""
    logs: list[Log] = []
    ended: list[int] = []

    @asynccontextmanager
    async def level(log: Log, name: str) -> AsyncIterator[None]:
        token = depth.set(depth.get() + 1)
        try:
            async with log.thing(name):
                yield
        finally:
            await checkpoint()
            log.append(f"{name} at {depth.get()}")
            depth.reset(token)

    async def once(step: int) -> None:
        log = Log()
        logs.append(log)

        async def generator() -> AsyncIterator[None]:
            async with level(log, "b"):
                yield

        async def handler() -> None:
            await current_resources().enter(level(log, "a"))
            await resolve(_needs(Depends(generator)))
            await checkpoint()

        await apart(handler)
        ended.append(step)

    async def main() -> None:
        assert await cancel_everywhere(once) > 8

    run(main)
    assert ended
    for log in logs:
        log.balance()
        at = [entry for entry in log if " at " in entry]
        assert at in ([], ["a at 1"], ["b at 2", "a at 1"]), log


def test_a_cancellation_arrives_in_the_enter(run: Run, apart: Any) -> None:
    """It is thrown in where the enter waits, for nothing in particular too; and nothing is kept to be closed."""
    log = Log()

    @asynccontextmanager
    async def thing(scope: anyio.CancelScope) -> AsyncIterator[None]:
        token = user.set("ada")
        scope.cancel()
        try:
            for _ in range(9):
                await checkpoint()
            yield
        finally:
            log.append(f"{user.get()} told of {sys.exc_info()[0] is not None}")
            user.reset(token)

    async def handler() -> None:
        with anyio.CancelScope() as scope:
            await current_resources().enter(thing(scope))
        assert scope.cancelled_caught
        assert user.get() == "nobody"

    run(apart, handler)
    assert log == ["ada told of True"]


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_to_run_in_one_thread(run: Run, apart: Any, inside: bool) -> None:
    """The cleanup's own calls run in the thread that a manager keeps, wherever that was entered."""
    threads: list[threading.Thread] = []

    def note() -> None:
        threads.append(threading.current_thread())

    @contextmanager
    def connection() -> Iterator[None]:
        note()
        yield
        note()

    async def generator() -> AsyncIterator[None]:
        if not inside:
            await current_resources().enter(
                contextmanager_in_threadpool(connection(), same_thread=True)
            )
            yield
            await run_in_threadpool(note, same_thread=True)
            return
        async with contextmanager_in_threadpool(connection(), same_thread=True):
            yield
            await run_in_threadpool(note, same_thread=True)

    async def handler() -> None:
        await resolve(_needs(Depends(generator)))
        await run_in_threadpool(note, same_thread=True)

    run(apart, handler)
    assert len(threads) == 4
    assert len(set(threads)) == 1


def test_a_failed_resolution_undoes_what_it_has_set(run: Run, apart: Any) -> None:
    kinds = Kinds()

    async def fails() -> None:
        assert user.get() == "ada"
        raise Trouble

    async def page(
        first: None = Depends(kinds.async_generator), second: None = Depends(fails)
    ) -> None:
        pass

    async def handler() -> None:
        user.set("somebody")
        with pytest.raises(Trouble):
            await resolve(page)
        assert kinds.seen == ["ada"]
        assert user.get() == "somebody"

    run(apart, handler)


def test_where_the_closing_takes_place_the_cleanup_sees_all(run: Run) -> None:
    """What is entered in the task that closes is in no context of its own: what the body sets is seen, too."""
    kinds = Kinds()

    async def nested() -> None:
        assert await kinds.depends_on_async() == "value"
        user.set("bob")

    async def main() -> None:
        async with ResourceManager() as outer:
            await nested()
            async with ResourceManager() as inner:
                assert await outer.enter(asynccontextmanager(kinds.async_generator)()) == "value"
                assert current_resources() is inner
                user.set("eve")
            assert current_resources() is outer
        assert user.get() == "nobody"
        with pytest.raises(NoRequestError):
            current_resources()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await nested()
        await send(START)
        await send(BODY)

    async def request() -> None:
        server = Server()
        await ResourceMiddleware(app)(http_scope(), server.receive, server.send)

    run(main)
    assert kinds.seen == ["eve", "bob"]
    run(request)
    assert kinds.seen[2:] == ["bob"]


def test_time_outs_work_there(run: Run, apart: Any) -> None:
    """Those inside of a cleanup are its own business, and what comes from outside is put off."""
    log = Log()

    @asynccontextmanager
    async def thing() -> AsyncIterator[None]:
        yield
        if asyncio._get_running_loop() is None:
            import trio

            with trio.move_on_after(0.01):
                await forever()
            log.append("given up")
            return
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(forever(), 0.01)
        if sys.version_info >= (3, 11):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await forever()
        log.append("given up")

    async def handler() -> None:
        await current_resources().enter(thing())

    run(apart, handler)
    assert log == ["given up"]


@pytest.mark.parametrize("blocking", [False, True])
def test_a_cleanup_that_takes_too_long(run: Run, apart: Any, blocking: bool) -> None:
    """Its time is limited as any other's: it is told of by its name, and left behind if it is in a thread."""
    gate = threading.Event()

    async def slow() -> AsyncIterator[None]:
        yield
        await forever()

    @contextmanager
    def slow_in_a_thread() -> Iterator[None]:
        yield
        gate.wait()

    async def handler() -> None:
        if blocking:
            await current_resources().enter(slow_in_a_thread())
        else:
            await resolve(_needs(Depends(slow)))

    try:
        with pytest.raises(ExceptionGroup) as caught:
            run(lambda: apart(handler, close_timeout=0.04))
    finally:
        gate.set()
    (failure,) = caught.value.exceptions
    assert isinstance(failure, CleanupTimeoutError)
    assert failure.in_thread is blocking
    assert failure.resource.endswith("slow_in_a_thread" if blocking else "slow")


def test_a_generator_that_yields_nothing_or_twice(run: Run, apart: Any) -> None:
    async def nothing() -> AsyncIterator[None]:
        if False:
            yield

    def nothing_either() -> Iterator[None]:
        yield from ()

    async def twice() -> AsyncIterator[None]:
        yield
        yield

    async def handler() -> None:
        for depends in (Depends(nothing), Depends(nothing_either, thread=False)):
            with pytest.raises(RuntimeError, match="ended without a value"):
                await resolve(_needs(depends))
        with pytest.raises(RuntimeError, match="ended without a value"):
            await resolve(nothing)
        await resolve(_needs(Depends(twice)))

    with pytest.raises(ExceptionGroup) as caught:
        run(apart, handler)
    assert "yields more than once" in str(caught.value.exceptions[0])


def test_a_circle_is_found_through_it(run: Run, apart: Any) -> None:
    async def page() -> None:
        await resolve(_needs(Depends(around)))

    async def around() -> AsyncIterator[None]:
        await page()
        yield

    async def handler() -> None:
        with pytest.raises(DependencyCycleError):
            await page()

    run(apart, handler)


def test_what_is_entered_when_it_is_too_late(run: Run) -> None:
    """It is left at once, in its own context, and the variable is as it was."""
    kinds = Kinds()
    log = Log()

    async def main() -> None:
        opened, over, done = event(), event(), event()

        async def late() -> None:
            resources = current_resources()

            @asynccontextmanager
            async def thing() -> AsyncIterator[None]:
                opened.set()
                await over.wait()
                async with asynccontextmanager(kinds.async_generator)():
                    yield

            with pytest.raises(ResourcesClosedError):
                await resources.enter(thing())
            log.append(user.get())
            done.set()

        async with ResourceManager():
            task = detach(late)
            await opened.wait()
        over.set()
        await done.wait()
        del task

    run(main)
    assert kinds.seen == ["ada"]
    assert log == ["nobody"]


def test_what_lives_as_long_as_the_application(run: Run) -> None:
    """It is entered in a request, and left in the task of the lifespan."""
    kinds = Kinds()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        depends = Depends(kinds.async_generator, lifetime="app")
        assert await kinds._depends(depends) == "value"
        await app_resources().enter(asynccontextmanager(kinds.async_generator)())
        await send(START)
        await send(BODY)

    async def main() -> None:
        wrapped = ResourceMiddleware(app)

        async def client() -> None:
            server = Server()
            await wrapped(http_scope(), server.receive, server.send)
            assert server.heard == [START, BODY]
            assert kinds.seen == []

        heard = await live(wrapped, client)
        assert heard[-1]["type"] == "lifespan.shutdown.complete"

    run(main)
    assert kinds.seen == ["ada", "ada"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has no eager tasks")
@pytest.mark.parametrize("stacked", [False, True])
def test_a_child_task_that_starts_at_once(apart: Any, stacked: bool) -> None:
    """It runs within a step of its parent, and in another context all the same."""
    kinds = Kinds()

    async def handler() -> None:
        assert await kinds.depends_on_inline() == "value"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        if stacked:
            follow_children()
        await apart(handler)

    asyncio.run(main())
    assert kinds.seen == ["ada"]


def test_a_closing_that_is_closed_in_the_middle() -> None:
    """As one whose task is gone: the cleanup that waits is told of it, in its own context."""
    log = Log()

    class Thing:
        async def __aenter__(self) -> None:
            self.token = user.set("ada")

        async def __aexit__(self, *what: object) -> None:
            try:
                await pause()
            finally:
                log.append(f"told as {user.get()}")
                user.reset(self.token)
                log.append("closed")

    async def block() -> None:
        async with ResourceManager() as resources:
            with pytest.raises(StopIteration):
                copy_context().run(resources.enter(Thing()).send, None)

    work = block()
    work.send(None)
    work.close()
    assert log == ["told as ada", "closed"]


@coroutine
def pause() -> Any:
    yield


def test_nothing_is_left_for_the_garbage_collection(run_asyncio: Run) -> None:
    references: list[weakref.ref[Any]] = []

    class Thing:
        pass

    async def generator() -> AsyncIterator[Thing]:
        thing = Thing()
        references.append(weakref.ref(thing))
        user.set("ada")
        yield thing

    async def main() -> None:
        async def handler() -> None:
            await resolve(_needs(Depends(generator)))

        await in_a_request(handler)
        await asyncio.sleep(0)
        assert [reference() for reference in references] == [None]

    with no_collector():
        run_asyncio(main)
