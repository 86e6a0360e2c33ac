"""A cleanup that takes too long: it is cancelled, told of by its name, and holds up neither the others nor the end."""

from __future__ import annotations

import asyncio
import math
import pickle
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest

from asgi_perfkit import (
    CleanupTimeoutError,
    ConfigurationError,
    Depends,
    PerfKit,
    PerfKitError,
    Registry,
    ResourceManager,
    ResourceMiddleware,
    app_resources,
    current_resources,
    default_limiter,
    resolve,
)
from asgi_perfkit.resources.limits import checked_timeout
from tests.conftest import Run
from tests.middleware.serving import live
from tests.resources.driver import Log
from tests.support import Server, Trouble, checkpoint, forever, http_scope, outcomes

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

SECONDS = 0.04


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a blocking cleanup waits for; open at the end, so that its thread ends."""
    gate = threading.Event()
    yield gate
    gate.set()


async def _forever() -> None:
    await forever()


class Held:
    """A context manager whose exit does not end by itself."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *error: object) -> None:
        try:
            await forever()
        finally:
            self.log.append("Held cancelled")


@asynccontextmanager
async def transaction() -> AsyncIterator[None]:
    try:
        yield
    finally:
        await forever()


async def connection() -> AsyncIterator[str]:
    try:
        yield "connection"
    finally:
        await forever()


async def fails_to_close(work: Callable[[], Awaitable[object]]) -> Any:
    """What is raised by `work`, which leaves nothing behind."""
    with pytest.raises(ExceptionGroup) as caught:
        await work()
    await checkpoint()
    return caught


def late(caught: Any) -> list[str]:
    """The names of the resources that were not closed in time; there is no other failure."""
    for each in caught.value.exceptions:
        assert type(each) is CleanupTimeoutError
        assert each.seconds == SECONDS
    return [each.resource.rpartition(".")[2] for each in caught.value.exceptions]


def test_each_is_cancelled_and_the_others_are_closed(run: Run) -> None:
    """Of whatever kind it is, and with the time of its own; the task is not cancelled afterwards."""
    log = Log()

    async def main() -> None:
        async with ResourceManager(close_timeout=SECONDS) as resources:
            await resources.enter(log.thing("first"))
            await resources.enter(Held(log))
            await resources.enter(transaction())
            await resources.enter(log.thing("second"))
            await resolve(lambda c=Depends(connection): c)
            resources.push_async_callback(_forever)
            await resources.enter(log.thing("third"))

    assert late(run(fails_to_close, main)) == ["_forever", "connection", "transaction", "Held"]
    assert [each for each in log if "opened" not in each and "sees" not in each] == [
        "third closed",
        "second closed",
        "Held cancelled",
        "first closed",
    ]
    assert "second sees CleanupTimeoutError" in log


def test_those_in_threads_are_left_behind(run: Run, gate: threading.Event) -> None:
    """They cannot be cancelled; nobody waits for them, and their threads end when they do."""
    log = Log()

    @contextmanager
    def blocking() -> Iterator[None]:
        try:
            yield
        finally:
            gate.wait()
            log.append("blocking closed")

    def by_hand() -> None:
        gate.wait()

    async def work() -> None:
        async with ResourceManager(close_timeout=SECONDS) as resources:
            await resources.enter(log.thing("first"))
            await resources.enter(blocking())
            resources.push_callback(by_hand)
            await anyio.to_thread.run_sync(resources.enter_sync, blocking())

    async def main() -> Any:
        caught = await fails_to_close(work)
        assert [each for each in log if "sees" not in each] == ["first opened", "first closed"]
        assert all(each.in_thread for each in caught.value.exceptions)
        return caught

    # Nor does the end of the loop wait for them.
    assert late(run(main)) == ["blocking", "by_hand", "blocking"]
    assert default_limiter().statistics().exits
    gate.set()
    deadline = time.monotonic() + 10
    while default_limiter().statistics().exits and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not default_limiter().statistics().exits  # whatever has become of the loop


def test_a_slow_one_with_time_enough_is_let_alone(run: Run, gate: threading.Event) -> None:
    """Each has its own time: together they may take longer."""
    log: list[str] = []

    async def slow() -> None:
        await anyio.sleep(0.2)
        log.append("async")

    def slow_in_thread() -> None:
        gate.wait(0.2)
        log.append("thread")

    async def main() -> None:
        async with ResourceManager(close_timeout=0.4) as resources:
            resources.push_async_callback(slow)
            resources.push_async_callback(slow)
            resources.push_callback(slow_in_thread)

    run(main)
    assert log == ["thread", "async", "async"]


def test_one_that_goes_on_is_cancelled_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """And it is said whom the closing waits for, even if it never ends."""
    cancelled = []

    async def stubborn() -> None:
        for _ in range(3):
            try:
                await forever()
            except BaseException as error:
                if isinstance(error, Exception):
                    raise
                cancelled.append(1)

    on_trio = False

    async def main() -> None:
        nonlocal on_trio
        on_trio = asyncio._get_running_loop() is None
        async with ResourceManager(close_timeout=SECONDS) as resources:
            resources.push_async_callback(checkpoint)
            resources.push_async_callback(stubborn)

    assert late(run(fails_to_close, main)) == ["stubborn"]
    assert len(cancelled) == 3
    if not on_trio:  # there it sees its cancellation at each wait
        assert "stubborn has not ended 0.04 s after it was cancelled" in caplog.text


def test_what_it_raises_in_its_end_is_the_cause(run: Run) -> None:
    async def fails() -> None:
        try:
            await forever()
        finally:
            raise Trouble

    async def main() -> Any:
        resources = ResourceManager(close_timeout=SECONDS)
        resources.push_async_callback(fails)
        return await fails_to_close(resources.aclose)

    caught = run(main)
    assert len(late(caught)) == 1
    assert type(caught.value.exceptions[0].__cause__) is Trouble


def test_who_is_cancelled_meanwhile_learns_of_it_behind_it(
    run_asyncio: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The shield holds beside the limit; what was late is logged then."""
    log = Log()

    async def main() -> None:
        closing = asyncio.Event()

        async def hangs() -> None:
            closing.set()
            await forever()

        async def work() -> None:
            async with ResourceManager(close_timeout=SECONDS) as resources:
                await resources.enter(log.thing("first"))
                resources.push_async_callback(hangs)

        task = asyncio.ensure_future(work())
        await closing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if sys.version_info >= (3, 11):
            assert task.cancelling() == 1

    run_asyncio(main)
    assert log == ["first opened", "first sees CleanupTimeoutError", "first closed"]
    assert "hangs was not closed" in caplog.text


def test_a_scope_around_is_put_off_beside_the_limit(run_trio: Run) -> None:
    """It cancels nothing of what is closed behind the one that was late."""
    import trio

    log = Log()

    async def main() -> None:
        scope = trio.CancelScope()

        async def work() -> None:
            async with ResourceManager(close_timeout=SECONDS) as resources:
                await resources.enter(log.thing("first"))
                await resources.enter(trio.open_nursery())
                resources.push_async_callback(_forever)
                scope.cancel()

        with scope:
            await fails_to_close(work)
        assert scope.cancelled_caught

    run_trio(main)
    assert log[-1] == "first closed"


def test_a_closing_within_one_has_its_limit(run: Run) -> None:
    """A resource that closes others by a manager of its own cannot make it wait for ever."""
    log = Log()

    async def inner() -> None:
        async with ResourceManager() as resources:
            await resources.enter(log.thing("inner"))
            resources.push_async_callback(_forever)

    async def main() -> None:
        async with ResourceManager(close_timeout=SECONDS) as resources:
            await resources.enter(log.thing("outer"))
            resources.push_async_callback(inner)

    (failure,) = run(fails_to_close, main).value.exceptions
    while not isinstance(failure, CleanupTimeoutError):
        (failure,) = failure.exceptions
    assert [each for each in log if "closed" in each] == ["inner closed", "outer closed"]


def test_when_a_dependency_fails_what_is_closed_then_has_a_limit(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(c: str = Depends(connection)) -> None:
        raise Trouble

    async def main() -> None:
        async with ResourceManager(close_timeout=SECONDS):
            with pytest.raises(Trouble):
                await resolve(lambda b=Depends(broken): b)
            await checkpoint()  # the block goes on

    run(main)
    assert "connection was not closed after 0.04 s (close_timeout): it was cancelled" in caplog.text


def test_a_request_ends_and_its_outcome_is_an_error(run: Run) -> None:
    registry = Registry()
    server = Server()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_resources().push_async_callback(_forever)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def main() -> None:
        kit = PerfKit(app, resources={"close_timeout": SECONDS}, performance={"registry": registry})
        await kit(http_scope(), server.receive, server.send)

    with pytest.raises(ExceptionGroup) as caught:
        run(main)
    assert late(caught) == ["_forever"]
    assert len(server.heard) == 2
    assert outcomes(registry) == {"error": 1}


def test_the_shutdown_comes_to_its_end(run: Run) -> None:
    """As a failed one, which names what has held it up."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        app_resources().push_async_callback(_forever)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    heard = run(live, ResourceMiddleware(app, close_timeout=SECONDS), checkpoint)
    assert heard[-1]["type"] == "lifespan.shutdown.failed"
    assert "_forever was not closed" in heard[-1]["message"]


@pytest.mark.parametrize("seconds", [0, -1, math.nan, "1", True])
def test_what_is_no_limit_is_refused(seconds: Any) -> None:
    for make in (
        lambda: ResourceManager(close_timeout=seconds),
        lambda: ResourceMiddleware(forever, close_timeout=seconds),
    ):
        with pytest.raises(ConfigurationError, match=r"\(close_timeout=\.\.\.\) got"):
            make()


def test_no_limit() -> None:
    assert checked_timeout("X", None) is checked_timeout("X", math.inf) is None


def test_the_error_is_a_time_out_and_can_be_pickled() -> None:
    error = CleanupTimeoutError("pool", 30.0, in_thread=True)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, PerfKitError)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.in_thread) == (str(error), True)
    assert str(error) == "pool was not closed after 30 s (close_timeout): it goes on in its thread."
