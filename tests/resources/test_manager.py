"""ResourceManager: what it opens, in which order it closes, and what it makes of exceptions."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import pytest

from asgi_perfkit import (
    ConfigurationError,
    NoRequestError,
    RequestScopedCache,
    ResourceManager,
    ResourcesClosedError,
    app_resources,
    current_resources,
    run_in_threadpool,
)
from tests.resources.driver import Log
from tests.support import Trouble, checkpoint, together

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


def test_what_was_opened_last_is_closed_first(run: Any) -> None:
    """Asynchronous and blocking managers, callbacks of both kinds, in one order."""
    log = Log()

    async def said(word: str, *, more: str) -> None:
        await checkpoint()
        log.append(word + more)

    async def main() -> None:
        async with ResourceManager() as resources:
            assert await resources.enter(log.thing("a")) == "a"
            assert await resources.enter(log.blocking("b")) == "b"
            resources.push_async_callback(said, "call", more="back")
            resources.push_callback(
                lambda: log.append(str(threading.current_thread() is main_thread))
            )
            assert await resources.enter(log.thing("c")) == "c"
            log.append("body")

    main_thread = threading.current_thread()
    run(main)
    assert log == [
        "a opened",
        "b opened",
        "c opened",
        "body",
        "c closed",
        "False",
        "callback",
        "b closed",
        "a closed",
    ]


def test_an_exception_is_thrown_into_them_as_in_a_with(run: Any) -> None:
    """Each sees it, the same object comes out, and it has no more context than it had."""
    log = Log()
    trouble = Trouble()

    async def main() -> None:
        async with ResourceManager() as resources:
            await resources.enter(log.thing("a"))
            await resources.enter(log.blocking("b"))
            raise trouble

    with pytest.raises(Trouble) as caught:
        run(main)
    assert caught.value is trouble
    assert trouble.__context__ is None
    assert log[2:] == ["b sees Trouble", "b closed", "a sees Trouble", "a closed"]


@pytest.mark.parametrize("blocking", [False, True])
def test_a_manager_may_suppress_the_exception(run: Any, blocking: bool) -> None:
    """Those outside of it are closed as if there had been none."""
    log = Log()

    async def main() -> str:
        async with ResourceManager() as resources:
            await resources.enter(log.thing("a"))
            if blocking:
                await resources.enter(contextlib.suppress(Trouble))
            else:

                async def suppress() -> AsyncIterator[None]:
                    with contextlib.suppress(Trouble):
                        yield

                await resources.acquire("suppress", suppress)
            await resources.enter(log.thing("b"))
            raise Trouble
        return "after"

    assert run(main) == "after"
    assert log[2:] == ["b sees Trouble", "b closed", "a closed"]


def test_a_manager_may_suppress_what_a_closing_raises(run: Any) -> None:
    """And with it what that came of, as nested `with` statements have it; what fails behind it is raised."""
    log = Log()
    last = ValueError("last")

    async def main() -> None:
        resources = ResourceManager()
        await resources.enter(log.thing("a", fails=last))
        await resources.enter(contextlib.suppress(Trouble))
        await resources.enter(log.thing("b", fails=Trouble()))
        await resources.enter(log.thing("c", fails=KeyError()))
        with pytest.raises(ExceptionGroup) as caught:
            await resources.aclose()
        assert caught.value.exceptions == (last,)

    run(main)
    assert log[3:] == ["c closed", "b sees KeyError", "b closed", "a closed"]


def test_all_are_closed_even_if_some_fail(run: Any) -> None:
    """One group comes out of it, with each failure; those further out see the one before them."""
    log = Log()
    first, second = Trouble("first"), ValueError("second")

    async def main() -> None:
        resources = ResourceManager()
        await resources.enter(log.thing("a"))
        await resources.enter(log.thing("b", fails=second))
        await resources.enter(log.thing("c"))
        await resources.enter(log.thing("d", fails=first))
        with pytest.raises(ExceptionGroup) as caught:
            await resources.aclose()
        assert caught.value.exceptions == (first, second)
        assert second.__context__ is first
        await resources.aclose()

    run(main)
    assert log[4:] == [
        "d closed",
        "c sees Trouble",
        "c closed",
        "b sees Trouble",
        "b closed",
        "a sees ValueError",
        "a closed",
    ]


def test_a_failure_of_the_closing_keeps_the_first_exception_as_its_context(run: Any) -> None:
    log = Log()

    async def main() -> None:
        async with ResourceManager() as resources:
            await resources.enter(log.thing("a", fails=ValueError("closing")))
            raise Trouble("body")

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    (failure,) = caught.value.exceptions
    assert isinstance(failure, ValueError)
    assert isinstance(failure.__context__, Trouble)
    assert isinstance(caught.value.__context__, Trouble)


def test_what_is_no_exception_is_raised_itself(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A KeyboardInterrupt in a closing is not buried in a group; the others are closed, and what they raise logged."""
    log = Log()

    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        resources = ResourceManager()
        await resources.enter(log.thing("a", fails=ValueError("closing")))
        resources.push_async_callback(interrupted)
        with pytest.raises(KeyboardInterrupt):
            await resources.aclose()

    run(main)
    assert log[-1] == "a closed"
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info] == [
        ("closing",)
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_generators_that_do_not_behave(run: Any, fails: bool) -> None:
    """One that yields nothing, or again, is an error that names it."""

    async def nothing() -> AsyncIterator[int]:
        if fails is None:
            yield 1

    async def twice() -> AsyncIterator[int]:
        try:
            yield 1
        except Trouble:
            pass
        yield 2

    async def main() -> None:
        resources = ResourceManager()
        with pytest.raises(RuntimeError, match="nothing ended without a value"):
            await resources.acquire(1, nothing)
        assert await resources.acquire(2, twice) == 1
        with pytest.raises(ExceptionGroup) as caught:
            await resources.close(Trouble() if fails else None)
        (failure,) = caught.value.exceptions
        assert isinstance(failure, RuntimeError)
        assert "twice yields more than once" in str(failure) or "didn't stop" in str(failure)

    run(main)


class Client:
    """A context manager, and awaitable too, as database drivers have them."""

    def __await__(self) -> Any:
        raise AssertionError("it is entered instead")
        yield

    async def __aenter__(self) -> str:
        return "entered"

    async def __aexit__(self, *error: object) -> None:
        await checkpoint()


def test_acquire_takes_what_factories_make(run: Any) -> None:
    """Values, what is to be awaited, managers and generators of both kinds; None and False are values."""
    log = Log()

    async def awaited() -> int:
        await checkpoint()
        return 7

    async def client() -> Client:
        return Client()

    def generator() -> Iterator[str]:
        with log.blocking("g") as value:
            yield value

    async def async_generator() -> AsyncIterator[str]:
        async with log.thing("ag") as value:
            yield value

    async def main() -> None:
        async with ResourceManager() as resources:
            for name, factory, value in (
                ("value", lambda: 5, 5),
                ("none", lambda: None, None),
                ("false", lambda: False, False),
                ("awaited", awaited, 7),
                ("client", Client, "entered"),
                ("awaited client", client, "entered"),
                ("generator", generator, "g"),
                ("async generator", async_generator, "ag"),
                ("blocking", lambda: log.blocking("b"), "b"),
            ):
                assert await resources.acquire(name, factory) == value
                assert await resources.acquire(name, lambda: 1 / 0) == value

    run(main)
    log.balance()
    assert len(log) == 6


def test_acquire_makes_it_once_under_concurrency(run: Any) -> None:
    """Whoever asks while it is being made waits, and gets the very object."""
    log = Log()
    got: list[Any] = []

    async def main() -> None:
        async with ResourceManager() as resources:

            async def ask() -> None:
                got.append(await resources.acquire("a", lambda: log.thing("a")))

            await together(*[ask] * 5)

    run(main)
    assert got == ["a"] * 5
    assert log == ["a opened", "a closed"]


def test_acquire_shares_errors_and_does_not_keep_them(run: Any) -> None:
    trouble = Trouble()
    calls: list[int] = []
    caught: list[Any] = []

    async def fail() -> None:
        calls.append(1)
        await checkpoint()
        raise trouble

    async def main() -> None:
        async with ResourceManager() as resources:

            async def ask() -> None:
                try:
                    await resources.acquire("a", fail)
                except Trouble as error:
                    caught.append(error)

            await together(*[ask] * 3)
            assert await resources.acquire("a", lambda: 3) == 3

    run(main)
    assert calls == [1]
    assert caught == [trouble] * 3


def test_who_makes_it_and_is_cancelled_leaves_it_to_the_next(run_asyncio: Any) -> None:
    log = Log()

    async def main() -> None:
        async with ResourceManager() as resources:
            makers = [
                asyncio.ensure_future(resources.acquire("a", lambda: log.thing("a")))
                for _ in range(3)
            ]
            await asyncio.sleep(0)
            makers[0].cancel()
            results = await asyncio.gather(*makers, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert results[1:] == ["a", "a"]

    run_asyncio(main)
    assert log == ["a opened", "a closed"]


def test_after_the_end_nothing_is_opened(run: Any) -> None:
    """Each way to do so says that it is closed; what was being entered meanwhile is left at once."""
    log = Log()
    refused: list[Any] = []

    async def main() -> None:
        resources = ResourceManager()

        async def enter_slowly() -> None:
            try:
                await resources.enter(log.thing("late"))
            except ResourcesClosedError as error:
                refused.append(error)

        async def close() -> None:
            await resources.aclose()

        await together(enter_slowly, close) if asyncio._get_running_loop() else None
        if not asyncio._get_running_loop():
            entering = resources.enter(log.thing("late"))
            await resources.aclose()
            with pytest.raises(ResourcesClosedError) as caught:
                await entering
            refused.append(caught.value)
        for attempt in (
            lambda: resources.enter(log.thing("x")),
            lambda: resources.acquire("x", object),
            resources.__aenter__,
        ):
            with pytest.raises(ResourcesClosedError, match="closed"):
                await attempt()
        for push in (
            lambda: resources.push_async_callback(checkpoint),
            lambda: resources.push_callback(print),
            lambda: resources.enter_sync(log.blocking("x")),
        ):
            with pytest.raises(ResourcesClosedError):
                push()
        assert await resources.close(Trouble()) is False

    run(main)
    assert len(refused) == 1
    log.balance()


def test_a_closing_may_open_more(run: Any) -> None:
    """What is pushed while it closes is closed as well, next."""
    log = Log()

    async def main() -> None:
        resources = ResourceManager()

        async def more() -> None:
            resources.push_callback(log.append, "more")
            await resources.aclose()  # it is being closed already

        resources.push_callback(log.append, "last")
        resources.push_async_callback(more)
        await resources.aclose()

    run(main)
    assert log == ["more", "last"]


def test_current_resources_is_the_innermost_block(run: Any) -> None:
    """In child tasks and worker threads too; outside of any it is an error that says what is missing."""
    seen: list[Any] = []

    async def note() -> None:
        seen.append(current_resources())

    async def main() -> None:
        with pytest.raises(NoRequestError, match="ResourceMiddleware"):
            current_resources()
        with pytest.raises(NoRequestError, match="app_resources"):
            app_resources()
        async with ResourceManager() as outer:
            async with ResourceManager() as inner:
                assert current_resources() is inner
                await together(note)
                assert await run_in_threadpool(current_resources) is inner
            assert current_resources() is outer
            seen.remove(inner)
        with pytest.raises(NoRequestError):
            current_resources()

    run(main)
    assert seen == []


def test_a_worker_thread_opens_blocking_managers_itself(run: Any) -> None:
    """enter_sync() enters in the thread; the exit is in a thread, and sees the exception of the body."""
    log = Log()

    def work() -> None:
        resources = current_resources()
        assert resources.enter_sync(log.blocking("a")) == "a"
        resources.push_callback(log.append, "callback")

    async def main() -> None:
        async with ResourceManager() as resources:
            with pytest.raises(RuntimeError, match="await enter"):
                resources.enter_sync(log.blocking("x"))
            await run_in_threadpool(work)
            raise Trouble

    with pytest.raises(Trouble) as caught:
        run(main)
    assert log == ["a opened", "callback", "a sees Trouble", "a closed"]
    assert caught.value.__context__ is None


def test_a_manager_entered_in_a_thread_may_suppress(run: Any) -> None:
    async def main() -> str:
        async with ResourceManager() as resources:
            await run_in_threadpool(resources.enter_sync, contextlib.suppress(Trouble))
            raise Trouble
        return "after"

    assert run(main) == "after"


def test_task_groups_and_scopes_may_be_held(run: Any) -> None:
    """What must be left in the task and the order of its enter can be: nothing is put in between."""
    log = Log()

    async def hold() -> AsyncIterator[Any]:
        if asyncio._get_running_loop() is not None:
            import anyio

            async with anyio.create_task_group() as group:
                with anyio.move_on_after(60):
                    yield group
        else:
            import trio

            async with trio.open_nursery() as nursery:
                with trio.move_on_after(60):
                    yield nursery

    async def child() -> None:
        await checkpoint()
        log.append("child")

    async def main() -> None:
        async with ResourceManager() as resources:
            for name in "ab":
                group = await resources.acquire(name, hold)
                group.start_soon(child)

    run(main)
    assert log == ["child", "child"]


def test_a_thread_that_enters_when_it_is_too_late(run: Any) -> None:
    """The manager is closed meanwhile: what was entered is left at once."""
    log = Log()

    @contextmanager
    def closes(resources: ResourceManager) -> Iterator[None]:
        with log.blocking("late"):
            resources.closed = True
            yield

    async def main() -> None:
        resources = ResourceManager()
        with pytest.raises(ResourcesClosedError):
            await run_in_threadpool(resources.enter_sync, closes(resources))

    run(main)
    assert log == ["late opened", "late closed"]


def test_a_block_may_end_in_another_context(run: Any) -> None:
    """As fixtures of tests do it."""
    log = Log()

    async def main() -> None:
        resources = ResourceManager()
        await resources.enter(log.thing("a"))
        copy_context().run(resources.begin_block, None)
        await resources.__aexit__(None, None, None)
        with pytest.raises(NoRequestError):
            current_resources()

    run(main)
    log.balance()


def test_a_task_that_outlives_the_block_has_none(run_asyncio: Any) -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def late() -> None:
            await over.wait()
            with pytest.raises(NoRequestError):
                current_resources()

        async with ResourceManager():
            task = asyncio.ensure_future(late())
        over.set()
        await task

    run_asyncio(main)


def test_the_cache_is_the_managers(run: Any) -> None:
    async def main() -> None:
        async with ResourceManager() as resources:
            assert isinstance(resources.cache, RequestScopedCache)
            assert resources.cache is resources.cache
            resources.cache.set("a", None)
            assert "a" in resources.cache

    run(main)


@pytest.mark.parametrize(
    ("attempt", "match"),
    [
        (lambda resources: resources.enter(5), r"enter\(cm\) got 5"),
        (lambda resources: resources.enter_sync(5), r"enter_sync\(cm\) got 5"),
        (lambda resources: resources.push_async_callback(5), r"push_async_callback\(callback\)"),
        (lambda resources: resources.push_callback(5), r"push_callback\(callback\)"),
    ],
)
def test_what_cannot_be_used_is_refused(run: Any, attempt: Any, match: str) -> None:
    async def main() -> None:
        async with ResourceManager() as resources:

            async def use() -> None:
                await attempt(resources)

            with pytest.raises(ConfigurationError, match=match):
                await use()

    run(main)
