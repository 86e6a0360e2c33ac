"""ResourceMiddleware: when the resources of a request, and those of the application, are closed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    ConfigurationError,
    Depends,
    NoRequestError,
    PerfKit,
    PerformanceMiddleware,
    Registry,
    ResourceManager,
    ResourceMiddleware,
    add_task,
    app_resources,
    current_resources,
    dependency_overrides,
    get_performance_stats,
    resolve,
    run_in_threadpool,
)
from tests.conftest import Run
from tests.middleware.serving import ask, detach, event, live, until
from tests.resources.driver import Log, cancel_everywhere
from tests.support import (
    BODY,
    START,
    App,
    Receive,
    Scope,
    Send,
    Server,
    Trouble,
    checkpoint,
    http_scope,
    outcomes,
    saying,
    together,
    websocket_scope,
)

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

# Each has the resources, in another place.
AROUND: dict[str, Callable[[App], App]] = {
    "alone": ResourceMiddleware,
    "in the stack": lambda app: PerfKit(app, performance={"registry": Registry()}),
    "inside of metrics": lambda app: PerformanceMiddleware(
        ResourceMiddleware(app), registry=Registry()
    ),
    "twice": lambda app: ResourceMiddleware(ResourceMiddleware(app)),
    "without metrics": lambda app: PerfKit(app, performance=False),
}


@pytest.fixture(params=AROUND.values(), ids=AROUND)
def around(request: pytest.FixtureRequest) -> Callable[[App], App]:
    return request.param


async def serve(app: App, **scope: Any) -> list[Any]:
    server = Server()
    await app(http_scope(**scope), server.receive, server.send)
    return server.heard


def test_closed_after_the_response_and_before_tasks(run: Any, around: Any) -> None:
    log = Log()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await current_resources().enter(log.thing("a"))
        with contextlib.suppress(NoRequestError):
            add_task(log.append, "task")
        await send(START)
        await send(BODY)
        log.append("answered")

    async def main() -> None:
        assert await serve(around(app)) == [START, BODY]

    run(main)
    assert log[:3] == ["a opened", "answered", "a closed"]
    assert log[3:] in ([], ["task"])


def test_from_wherever_the_code_of_a_request_runs(run: Any, around: Any) -> None:
    """In the handler, in child tasks and in worker threads they are the same, those of another request are others."""
    seen: list[Any] = []

    async def note() -> None:
        seen.append(current_resources())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await together(note, note)
        seen.append(await run_in_threadpool(current_resources))
        async with ResourceManager() as inner:
            assert current_resources() is inner
        await note()

    async def main() -> None:
        wrapped = around(app)
        await serve(wrapped)
        await serve(wrapped)
        with pytest.raises(NoRequestError):
            current_resources()

    run(main)
    assert len(seen) == 8
    assert len(set(map(id, seen))) == 2
    assert all(each.closed for each in seen)


def test_the_exception_of_the_app_is_thrown_in(run: Any, around: Any) -> None:
    """At the first step of the app, or later; the same object goes on to the server."""
    for waits in (False, True):
        log = Log()
        trouble = Trouble()

        async def app(
            scope: Scope, receive: Receive, send: Send, waits: bool = waits, log: Log = log,
            trouble: Trouble = trouble,
        ) -> None:  # fmt: skip
            if waits:
                await current_resources().enter(log.thing("a"))
            else:
                await current_resources().acquire("a", lambda: 1)
                current_resources().push_async_callback(note, log)
            raise trouble

        async def note(log: Log) -> None:
            log += ["a opened", "a sees Trouble", "a closed"]

        async def main(app: Any = app, trouble: Any = trouble) -> None:
            with pytest.raises(Trouble) as caught:
                await serve(around(app))
            assert caught.value is trouble
            assert trouble.__context__ is None

        run(main)
        assert log == ["a opened", "a sees Trouble", "a closed"]


def test_a_resource_may_suppress_the_exception(run: Any, around: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def suppress() -> AsyncIterator[None]:
            with contextlib.suppress(Trouble):
                yield

        await current_resources().acquire("suppress", suppress)
        await send(START)
        await send(BODY)
        raise Trouble

    async def main() -> None:
        assert await serve(around(app)) == [START, BODY]

    run(main)


def test_what_is_between_sees_the_exception_after_the_resources(run: Any) -> None:
    """Something between the exchange and the middleware that makes a response of an exception."""
    log = Log()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await current_resources().enter(log.thing("a"))
        raise Trouble

    inner = ResourceMiddleware(app)

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await inner(scope, receive, send)
        except Trouble:
            log.append("between")
            await send(START)
            await send(BODY)

    registry = Registry()

    async def main() -> None:
        assert await serve(PerformanceMiddleware(between, registry=registry)) == [START, BODY]

    run(main)
    assert log == ["a opened", "a sees Trouble", "a closed", "between"]
    assert outcomes(registry) == {"ok": 1}


def test_failures_of_the_closing_go_to_the_server(run: Any, around: Any) -> None:
    """In one group, behind the response, which stands."""
    log = Log()
    server = Server()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await current_resources().enter(log.thing("a", fails=ValueError()))
        await current_resources().enter(log.thing("b", fails=Trouble()))
        await send(START)
        await send(BODY)

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await around(app)(http_scope(), server.receive, server.send)
        assert [type(each) for each in caught.value.exceptions] == [Trouble, ValueError]

    run(main)
    assert server.heard == [START, BODY]
    assert log[-1] == "a closed"


def test_a_request_that_is_cancelled_anywhere_leaves_nothing_open(run: Any, around: Any) -> None:
    logs: list[Log] = []

    async def opened() -> AsyncIterator[str]:
        async with logs[-1].thing("dependency") as value:
            yield value

    async def handler(value: str = Depends(opened)) -> None:
        await current_resources().enter(logs[-1].thing("entered"))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await resolve(handler)
        await send(START)
        await send(BODY)

    async def main() -> int:
        wrapped = around(app)

        async def work(step: int) -> None:
            logs.append(Log())
            await serve(wrapped)

        return await cancel_everywhere(work)

    assert run(main) >= 7
    for log in logs:
        log.balance()
    assert len(logs[-1]) == 4


def test_a_websocket_has_them_until_its_end(run: Any, around: Any) -> None:
    log = Log()
    accept = {"type": "websocket.accept"}
    close = {"type": "websocket.close"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await current_resources().enter(log.thing("a"))
        await send(accept)
        await send(close)
        log.append("end")

    async def main() -> None:
        server = Server()
        await around(app)(websocket_scope(), server.receive, server.send)
        assert server.heard == [accept, close]

    run(main)
    assert log == ["a opened", "end", "a closed"]


def test_a_scope_that_is_not_known_passes_through(run: Any, around: Any) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    async def main() -> None:
        server = Server()
        arguments = {"type": "other"}, server.receive, server.send
        await around(app)(*arguments)
        assert seen == [arguments]

    run(main)


def test_dependencies_know_the_request(run: Any, around: Any) -> None:
    """The three arguments of the app, and what the router has found, by name; values that are given come first."""

    async def user(user_id: int, scope: Any) -> str:
        return f"{user_id} at {scope['path']}"

    async def handler(receive: Any, send: Any, user: str = Depends(user), page: int = 1) -> Any:
        return receive, send, user, page

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path_params"] = {"user_id": 7, "page": 2}
        for concurrent in (False, True):
            found = await resolve(handler, concurrent=concurrent)
            assert found == (receive, send, "7 at /things", 1)
            found = await resolve(handler, concurrent=concurrent, user_id=8, page=3)
            assert found[2:] == ("8 at /things", 3)

    async def without(scope: Scope, receive: Receive, send: Send) -> None:
        await resolve(handler)

    async def main() -> None:
        await serve(around(app))
        with pytest.raises(ConfigurationError, match="there is none here"):
            await serve(around(without))

    run(main)


def test_a_request_shares_what_it_resolves(run: Any) -> None:
    """A generator is entered once in a request, and closed with it; the time of each resolution is observed."""
    log = Log()
    registry = Registry()

    async def opened() -> AsyncIterator[str]:
        async with log.thing("a") as value:
            yield value

    async def handler(a: str = Depends(opened)) -> str:
        return a

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await resolve(handler) == "a"
        assert await resolve(handler) == "a"
        log.append("end")
        await send(START)
        await send(BODY)

    async def main() -> None:
        kit = PerfKit(app, performance={"registry": registry})
        await serve(kit)
        await serve(kit)

    run(main)
    assert log == ["a opened", "end", "a closed"] * 2
    assert get_performance_stats(registry=registry)["dependency_resolution_time"]["count"] == 4


def test_after_the_request_there_are_none(run: Any, around: Any) -> None:
    """A background task has no part in what is closed; what it resolves is for that call alone."""
    log = Log()

    async def opened() -> AsyncIterator[str]:
        async with log.thing("of the task") as value:
            yield value

    async def handler(a: str = Depends(opened)) -> None:
        log.append("works")

    async def task() -> None:
        with pytest.raises(NoRequestError):
            current_resources()
        await resolve(handler)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        current_resources()
        add_task(task)

    async def main() -> None:
        await serve(BackgroundTaskMiddleware(around(app)))

    run(main)
    assert log == ["of the task opened", "works", "of the task closed"]


class Lifespan:
    """A server that starts the app, sends it requests and shuts it down."""

    def __init__(self, app: App, requests: Callable[[], Any]) -> None:
        self.app = app
        self.requests = requests
        self.heard: list[Any] = []
        self.asked = 0

    async def receive(self) -> Any:
        await checkpoint()
        self.asked += 1
        if self.asked == 1:
            return {"type": "lifespan.startup"}
        await self.requests()
        return {"type": "lifespan.shutdown"}

    async def send(self, message: Any) -> None:
        self.heard.append(message)

    async def run(self) -> list[str]:
        await self.app({"type": "lifespan"}, self.receive, self.send)
        return [message["type"] for message in self.heard]


def test_the_resources_of_the_application(run: Any, around: Any) -> None:
    """One for all requests, also of dependencies; closed behind the app's own shutdown, before the server knows."""
    log = Log()

    async def pool() -> AsyncIterator[str]:
        async with log.thing("pool") as value:
            yield value

    async def handler(pool: str = Depends(pool, lifetime="app")) -> str:
        return pool

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await app_resources().enter(log.thing("startup"))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            log.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            log.append("complete")
            return
        assert await app_resources().acquire("x", lambda: log.thing("acquired")) == "acquired"
        for concurrent in (False, True):
            assert await resolve(handler, concurrent=concurrent) == "pool"

    async def main() -> None:
        wrapped = around(app)

        async def requests() -> None:
            await together(lambda: serve(wrapped), lambda: serve(wrapped))
            await serve(wrapped)
            with dependency_overrides({pool: lambda: "fake"}):

                async def fake(pool: str = Depends(pool, lifetime="app")) -> str:
                    return pool

                async def asks(scope: Any, receive: Any, send: Any) -> None:
                    assert await resolve(fake) == "fake"

                await serve(ResourceMiddleware(asks))

        assert await Lifespan(wrapped, requests).run() == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]

    run(main)
    assert log == [
        "startup opened",
        "acquired opened",
        "pool opened",
        "shutdown",
        "pool closed",
        "acquired closed",
        "startup closed",
        "complete",
    ]


async def mute(scope: Scope, receive: Receive, send: Send) -> None:
    """Does not speak lifespan."""
    assert scope["type"] == "http"
    await app_resources().acquire("a", scope["make"])


@pytest.mark.parametrize("fails", [False, True])
def test_an_app_that_does_not_speak_lifespan(run: Any, around: Any, fails: bool) -> None:
    """Its resources are closed all the same; that they fail to is told to the server."""
    log = Log()

    async def main() -> None:
        wrapped = around(mute)
        failure = Trouble("at the end") if fails else None
        lifespan = Lifespan(
            wrapped, lambda: serve(wrapped, make=lambda: log.thing("a", fails=failure))
        )
        types = await lifespan.run()
        assert types[0] == "lifespan.startup.complete"
        assert types[1] == f"lifespan.shutdown.{'failed' if fails else 'complete'}"

    run(main)
    assert log == ["a opened", "a closed"]


def test_a_startup_that_fails_closes_what_it_has_opened(run: Any, around: Any) -> None:
    log = Log()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await app_resources().enter(log.thing("a"))
        raise Trouble

    async def main() -> None:
        with pytest.raises(Trouble):
            await Lifespan(around(app), checkpoint).run()

    run(main)
    assert log == ["a opened", "a sees Trouble", "a closed"]


def test_without_a_lifespan_they_work_and_it_is_said(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[int] = []

    async def main() -> None:
        wrapped = ResourceMiddleware(mute)
        for _ in range(2):
            await serve(wrapped, make=lambda: made.append(1))

    run(main)
    assert made == [1]
    assert caplog.text.count("without a lifespan") == 1


def test_a_request_that_uses_none_makes_none(run_asyncio: Any) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(receive.__self__)  # type: ignore[attr-defined]

    async def main() -> None:
        middleware = ResourceMiddleware(app)
        if "trio" in sys.modules:
            assert asyncio._get_running_loop() is not None
        await serve(middleware)
        assert seen[0].resources is middleware
        assert seen[0].afterwards is None

    run_asyncio(main)


def test_an_app_that_raises_before_it_returns_its_coroutine(run: Any) -> None:
    """A double callable, or a plain function that fails: the account is closed."""

    def app(scope: Scope, receive: Receive, send: Send) -> Any:
        raise Trouble

    async def main() -> None:
        middleware = ResourceMiddleware(app)
        with pytest.raises(Trouble):
            await serve(middleware)
        with pytest.raises(NoRequestError):
            current_resources()

    run(main)


def test_what_is_no_app_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"ResourceMiddleware\(app\) got 5"):
        ResourceMiddleware(5)


def test_the_stack_can_do_without(run: Any) -> None:
    """Switched off, there are none; there are no options."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(NoRequestError):
            current_resources()
        scope["seen"] = True

    async def main() -> None:
        scope = http_scope()
        server = Server()
        await PerfKit(app, resources=False)(scope, server.receive, server.send)
        assert scope["seen"]

    run(main)
    with pytest.raises(ConfigurationError, match=r"PerfKit\(resources=...\) option"):
        PerfKit(app, resources={"max_size": 5})


def test_a_block_that_outlives_the_request_is_that_of_its_tasks(run: Run) -> None:
    """A task that was added in a block of a child task finds that, and one that was added outside finds nothing."""
    found: dict[str, object] = {}

    async def find(name: str) -> None:
        try:
            found[name] = current_resources()
        except NoRequestError as error:
            found[name] = type(error)

    async def main() -> None:
        entered, leaving = event(), event()
        detached: list[object] = []  # asyncio does not hold its tasks
        blocks: list[ResourceManager] = []

        async def child() -> None:
            async with ResourceManager() as block:
                blocks.append(block)
                add_task(find, "inside")
                entered.set()
                await leaving.wait()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                current_resources()
                add_task(find, "outside")
                detached.append(detach(child))
                await entered.wait()
                await saying(START, BODY)(scope, receive, send)

        async def client() -> None:
            await ask(kit)
            await until(lambda: len(found) == 2)
            assert found == {"inside": blocks[0], "outside": NoRequestError}
            leaving.set()

        kit = PerfKit(app)
        await live(kit, client)

    run(main)
