"""The middleware around a request: it changes nothing, holds nothing, and a failure of the kit's fails nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgi_perfkit import (
    ConfigurationError,
    PerformanceMiddleware,
    Registry,
    default_registry,
    get_performance_stats,
    measure,
    reset_performance_stats,
)
from asgi_perfkit.metrics import monitor
from asgi_perfkit.middleware import performance
from asgi_perfkit.steps import current_account
from tests.support import (
    BODY,
    LOGGER,
    START,
    App,
    Clock,
    Receive,
    Scope,
    Send,
    Server,
    Trouble,
    checkpoint,
    forever,
    http_scope,
    in_flight,
    no_collector,
    outcomes,
    saying,
    the_figures,
    together,
    troubles,
    websocket_scope,
)

Run = Callable[..., Any]


def serve(
    run: Run,
    registry: Registry,
    app: App,
    server: Server | None = None,
    scope: Scope | None = None,
    **options: Any,
) -> Server:
    """Run one request through a new middleware; the server, that has heard it."""
    server = Server() if server is None else server
    middleware = PerformanceMiddleware(app, registry=registry, **options)
    run(middleware, http_scope() if scope is None else scope, server.receive, server.send)
    return server


def failing(*messages: Any, error: BaseException) -> App:
    """An app that sends these messages and then raises."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await saying(*messages)(scope, receive, send)
        raise error

    return app


# Transparency


def test_the_scope_is_the_very_same(run: Run, registry: Registry) -> None:
    """The app gets the scope that the server made, and what it changes in it is seen outside."""
    scope = http_scope(state={"a": 1})
    seen = []

    async def app(given: Scope, receive: Receive, send: Send) -> None:
        seen.append(given)
        given["added"] = True
        given["path"] = "/rewritten"

    serve(run, registry, app, scope=scope)
    assert seen[0] is scope
    assert scope["added"] is True
    assert scope["path"] == "/rewritten"
    assert list(get_performance_stats(by="endpoint", registry=registry)) == ["GET /things"]


@pytest.mark.parametrize("kind", ["webtransport", "", None, 5])
def test_an_unknown_scope_passes_untouched(kind: object, run: Run, registry: Registry) -> None:
    """The app gets the very scope, `receive` and `send` for a protocol that the kit does not know."""
    given: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.extend([scope, receive, send])

    server = Server()
    arguments = [{"type": kind}, server.receive, server.send]
    run(PerformanceMiddleware(app, registry=registry), *arguments)
    assert all(one is other for one, other in zip(given, arguments, strict=True))
    assert get_performance_stats(registry=registry) == {}


def test_the_result_of_the_app_is_dropped_as_a_server_does(run: Run, registry: Registry) -> None:
    """An ASGI app returns nothing; what one returns changes nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        await saying(START, BODY)(scope, receive, send)
        return "something"

    serve(run, registry, app)
    assert outcomes(registry) == {"ok": 1}


def test_an_app_of_two_callables(run: Run, registry: Registry) -> None:
    """An app in the style of ASGI 2, called with the scope first, is wrapped too."""

    def app(scope: Scope) -> Any:
        async def instance(receive: Receive, send: Send) -> None:
            await saying(START, BODY)(scope, receive, send)

        return instance

    server = serve(run, registry, app)  # type: ignore[arg-type]
    assert server.heard == [START, BODY]
    assert outcomes(registry) == {"ok": 1}


def test_without_a_loop(registry: Registry) -> None:
    """A coroutine that somebody steps by hand is measured as well."""

    async def send(message: Any) -> None:
        heard.append(message)

    heard: list[Any] = []
    coro = PerformanceMiddleware(saying(START, BODY), registry=registry)(
        http_scope(), forever, send
    )
    with pytest.raises(StopIteration):
        coro.send(None)
    assert heard == [START, BODY]
    assert outcomes(registry) == {"ok": 1}
    assert troubles(registry) == {}


def test_one_middleware_serves_many_loops(run: Run, registry: Registry, clock: Clock) -> None:
    """The same middleware on another loop, after the first or in another thread, follows children there as well."""

    async def child() -> None:
        clock.advance(1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await together(child)
        await saying(START, BODY)(scope, receive, send)

    middleware = PerformanceMiddleware(app, registry=registry)
    for _ in range(3):
        server = Server()
        run(middleware, http_scope(), server.receive, server.send)
    assert the_figures(registry)["loop_time"]["sum"] == 3
    assert the_figures(registry)["loop_time"]["count"] == 3


def test_the_default_registry(run: Run) -> None:
    """Without a registry of its own the middleware records in the default one."""
    reset_performance_stats()
    server = Server()
    run(PerformanceMiddleware(saying(START, BODY)), http_scope(), server.receive, server.send)
    assert outcomes(default_registry) == {"ok": 1}
    reset_performance_stats()
    assert get_performance_stats() == {}


# References


class Thing:
    """Something that can be seen to be freed."""


@pytest.mark.parametrize("ending", ["ok", "error", "cancelled"])
def test_nothing_is_left_of_a_request(ending: str, run: Run, registry: Registry) -> None:
    """No cycle keeps a request alive: its scope, its locals and its exchange go when it ends."""
    traces: list[weakref.ref[Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        local = Thing()
        traces.extend([weakref.ref(local), weakref.ref(scope["thing"]), weakref.ref(send.__self__)])  # type: ignore[attr-defined]
        await send(START)
        if ending == "error":
            raise Trouble
        if ending == "cancelled":
            raise asyncio.CancelledError
        await send(BODY)

    async def one(middleware: App) -> None:
        server = Server()
        try:
            await middleware(http_scope(thing=Thing()), server.receive, server.send)
        except (Trouble, asyncio.CancelledError):
            pass

    async def main() -> None:
        middleware = PerformanceMiddleware(app, registry=registry)
        await one(middleware)
        await checkpoint()
        assert [trace() for trace in traces] == [None, None, None]

    with no_collector():
        run(main)


def test_a_task_that_outlives_its_request_does_not_hold_the_scope(
    run_asyncio: Run, registry: Registry
) -> None:
    """A pool's keeper that the first request has started keeps nothing of that request's scope alive."""

    async def main() -> None:
        tasks: list[asyncio.Future[None]] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            tasks.append(asyncio.ensure_future(forever()))
            await saying(START, BODY)(scope, receive, send)

        async def one() -> weakref.ref[Thing]:
            server = Server()
            thing = Thing()
            middleware = PerformanceMiddleware(app, registry=registry)
            await middleware(http_scope(thing=thing), server.receive, server.send)
            return weakref.ref(thing)

        with no_collector():
            trace = await one()
            assert trace() is None
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    run_asyncio(main)


# Names


def test_the_resolver_names_the_endpoint(run: Run, registry: Registry) -> None:
    """`endpoint` gets the scope as the app has left it; None leaves the name to the kit."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["name"] = scope["headers"][0] if scope["headers"] else None

    def name(scope: Scope) -> str | None:
        return scope["name"]

    serve(run, registry, app, scope=http_scope("/users/17", headers=["/named"]), endpoint=name)
    serve(run, registry, app, scope=http_scope("/users/17"), endpoint=name)
    assert set(get_performance_stats(by="endpoint", registry=registry)) == {
        "GET /named",
        "GET /users/{id}",
    }
    assert troubles(registry) == {}


def raising(scope: Scope) -> str:
    raise Trouble("no name")


@pytest.mark.parametrize(
    "name", [raising, lambda scope: 5, lambda scope: b"/users"], ids=["raises", "int", "bytes"]
)
def test_a_resolver_that_fails_is_logged_once(
    name: Any, run: Run, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """A resolver that raises or returns no string costs the name alone: the folded path is used."""
    middleware = PerformanceMiddleware(saying(START, BODY), registry=registry, endpoint=name)
    for number in range(3):
        server = Server()
        run(middleware, http_scope(f"/users/{number}"), server.receive, server.send)
        assert server.heard == [START, BODY]
    assert list(get_performance_stats(by="endpoint", registry=registry)) == ["GET /users/{id}"]
    assert troubles(registry) == {"resolver_failures": 3}
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.ERROR)
    assert "endpoint" in record.getMessage()
    assert record.exc_info


def test_a_scope_that_can_not_be_read_is_logged_once(
    run: Run, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """What an app leaves behind in the scope may be anything: a name that can not be found is a folded path."""

    class Weird:
        @property
        def path_format(self) -> str:
            raise Trouble

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = Weird()
        await saying(START, BODY)(scope, receive, send)

    for _ in range(2):
        serve(run, registry, app, scope=http_scope("/users/3"))
    assert list(get_performance_stats(by="endpoint", registry=registry)) == ["GET /users/{id}"]
    assert troubles(registry) == {"resolver_failures": 2}
    assert len(caplog.records) == 1


def test_something_else_may_name_the_endpoint(run: Run, registry: Registry) -> None:
    """A framework's own hook names the endpoint of the current request; the resolver has the last word."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        account = current_account.get()
        assert account is not None
        account.endpoint = "/hooked/{id}"

    serve(run, registry, app)
    serve(run, registry, app, endpoint=lambda scope: "/resolved")
    assert set(get_performance_stats(by="endpoint", registry=registry)) == {
        "GET /hooked/{id}",
        "GET /resolved",
    }


# Timings of one's own


def test_a_connection_that_measures_for_days_keeps_little(run: Run, registry: Registry) -> None:
    """What a long connection measures does not pile up until it ends, and each timing is counted once."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        account = current_account.get()
        assert account is not None
        most = 0
        for _ in range(2000):
            with measure("message"):
                pass
            most = max(most, len(account.observations))
        assert most < 1000

    serve(run, registry, app, scope=websocket_scope())
    assert the_figures(registry)["message"]["count"] == 2000
    assert outcomes(registry) == {"incomplete": 1}


def test_what_a_server_starts_behind_the_response_is_not_the_requests(
    run_asyncio: Run, registry: Registry, clock: Clock
) -> None:
    """A task that the server makes when it has the last message is not a child of the request, however that ends."""
    seen: list[tuple[object, object]] = []

    async def next_request() -> None:
        clock.advance(100)

    class Pipelining(Server):
        async def send(self, message: Any) -> None:
            if message is BODY:
                task = asyncio.ensure_future(next_request())
                seen.append((current_account.get(), task))
                await task
            await super().send(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        account = current_account.get()
        await send(START)
        clock.advance(1)
        try:
            await send(BODY)
        finally:
            assert current_account.get() is account
        clock.advance(2)
        with measure("cleanup"):
            pass

    serve(run_asyncio, registry, app, Pipelining())
    assert seen[0][0] is None
    assert the_figures(registry)["loop_time"]["sum"] == 3
    assert "cleanup" in the_figures(registry)
    with pytest.raises(OSError, match="gone"):
        serve(run_asyncio, registry, app, Pipelining(hears=[None, OSError("gone")]))


# Server-Timing


def test_a_server_timing_function_that_raises_is_logged_once(
    run: Run, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """A request whose `server_timing` raises has no such header, and is answered."""
    middleware = PerformanceMiddleware(
        saying(START, BODY), registry=registry, server_timing=raising
    )  # type: ignore[arg-type]
    for _ in range(2):
        server = Server()
        run(middleware, http_scope(), server.receive, server.send)
        assert server.heard[0] is START
    assert troubles(registry) == {"server_timing_failures": 2}
    assert len(caplog.records) == 1
    assert outcomes(registry) == {"ok": 2}


def test_server_timing_is_not_for_websockets(run: Run, registry: Registry) -> None:
    """Asking for the header leaves a connection alone."""
    accept = {"type": "websocket.accept"}
    server = serve(run, registry, saying(accept), scope=websocket_scope(), server_timing=True)
    assert len(server.heard) == 1
    assert server.heard[0] is accept


# Memory


def test_memory_is_read_at_both_ends(
    run: Run, registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`memory_delta` is what the second reading has more than the first; it may be negative."""
    readings = iter([1000, 5096, 7000, 3000])
    monkeypatch.setattr(monitor, "rss_reader", lambda: lambda: next(readings))
    middleware = PerformanceMiddleware(saying(START, BODY), registry=registry)
    for expected in (4096, -4000):
        server = Server()
        registry.reset()
        run(middleware, http_scope(), server.receive, server.send)
        assert the_figures(registry)["memory_delta"]["sum"] == expected
        clock.advance(1)


def test_memory_is_sampled(run: Run, registry: Registry, clock: Clock) -> None:
    """A request that begins within a millisecond of the last that memory was read for goes without."""

    async def main() -> None:
        middleware = PerformanceMiddleware(saying(START, BODY), registry=registry)
        for pause in (0.0005, 0.0005, 0.0005, 0.0005, 0.002):
            server = Server()
            await middleware(http_scope(), server.receive, server.send)
            clock.advance(pause)

    run(main)
    assert the_figures(registry)["total_time"]["count"] == 5
    assert the_figures(registry)["memory_delta"]["count"] == 3


def test_memory_is_left_out(run: Run, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory=None nothing is read."""
    monkeypatch.setattr(monitor, "rss_reader", lambda: pytest.fail("it is read"))
    serve(run, registry, saying(START, BODY), memory=None)
    assert "memory_delta" not in the_figures(registry)
    assert troubles(registry) == {}


@pytest.mark.parametrize(
    "readings", [0, 1, 2, None], ids=["first", "second", "third", "none to be had"]
)
def test_memory_that_can_not_be_read_is_logged_once(
    readings: int | None,
    run: Run,
    registry: Registry,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the memory can not be read any more it is left out, and all else goes on."""
    left = iter(range(readings or 0))

    def read() -> int:
        for number in left:
            return number
        raise OSError("no /proc")

    def reader() -> Callable[[], int]:
        if readings is None:
            raise OSError("no /proc")
        return read

    monkeypatch.setattr(monitor, "rss_reader", reader)
    middleware = PerformanceMiddleware(saying(START, BODY), registry=registry)

    async def main() -> None:
        for _ in range(3):
            server = Server()
            await middleware(http_scope(), server.receive, server.send)
            assert server.heard == [START, BODY]
            clock.advance(1)

    run(main)
    assert outcomes(registry) == {"ok": 3}
    assert the_figures(registry).get("memory_delta", {}).get("count", 0) == (readings or 0) // 2
    assert troubles(registry) == {"kit_failures": 1}
    assert len(caplog.records) == 1


# Failures of the kit's own


@pytest.mark.parametrize("error", [None, Trouble()], ids=["ok", "error"])
def test_a_request_that_can_not_be_recorded_is_served(
    error: Exception | None,
    run: Run,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the recording fails the request does not: it is logged once and counted, and nothing stays open."""

    def broken(*args: Any, **options: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(registry, "record", broken)
    for _ in range(2):
        server = Server()
        app = saying(START, BODY) if error is None else failing(START, BODY, error=error)
        if error is None:
            serve(run, registry, app, server)
        else:
            with pytest.raises(Trouble) as caught:
                serve(run, registry, app, server)
            assert caught.value is error
            assert error.__context__ is None
        assert server.heard == [START, BODY]
    assert troubles(registry) == {"kit_failures": 2}
    assert in_flight(registry) == 0
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_loop_that_can_not_be_followed_is_served(
    run: Run, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where child tasks can not be followed requests are served and recorded without."""

    def broken() -> None:
        raise RuntimeError("no factory here")

    monkeypatch.setattr(performance, "follow_children", broken)
    server = serve(run, registry, saying(START, BODY))
    assert server.heard == [START, BODY]
    assert outcomes(registry) == {"ok": 1}
    assert troubles(registry) == {"kit_failures": 1}
    assert len(caplog.records) == 1


def test_a_scope_that_is_not_as_it_should_be(run: Run, registry: Registry) -> None:
    """A request without method, path or headers is served."""
    serve(run, registry, saying(START, BODY), scope={"type": "http"})
    serve(
        run, registry, saying(START, BODY), scope={"type": "http", "method": "BREW", "path": "/pot"}
    )
    assert outcomes(registry) == {"ok": 2}
    assert "OTHER /pot" in get_performance_stats(by="endpoint", registry=registry)


def test_a_scope_that_the_app_empties(run: Run, registry: Registry) -> None:
    """The app may do to its scope what it likes."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope.clear()
        await saying(START, BODY)(scope, receive, send)

    serve(run, registry, app)
    assert outcomes(registry) == {"ok": 1}
    assert in_flight(registry) == 0


# Wrong arguments


@pytest.mark.parametrize(
    ("app", "options", "kind", "words"),
    [
        (None, {}, TypeError, ["(app)", "None", "callable"]),
        ("module:app", {}, TypeError, ["(app)", "'module:app'", "callable"]),
        (saying(), {"registry": {}}, TypeError, ["registry", "{}", "Registry"]),
        (saying(), {"endpoint": "/users"}, TypeError, ["endpoint", "'/users'", "function"]),
        (saying(), {"memory": "vms"}, ValueError, ["memory", "'vms'", '"rss"']),
        (saying(), {"memory": True}, ValueError, ["memory", "True", '"rss"']),
        (saying(), {"max_series": "many"}, TypeError, ["max_series", "'many'", "whole number"]),
        (saying(), {"max_series": 1.5}, TypeError, ["max_series", "1.5", "whole number"]),
        (saying(), {"max_series": True}, TypeError, ["max_series", "True", "whole number"]),
        (saying(), {"max_series": 0}, ValueError, ["max_series", "0", "1 or more"]),
        (saying(), {"max_series": -5}, ValueError, ["max_series", "-5", "1 or more"]),
        (saying(), {"server_timing": None}, TypeError, ["server_timing", "None", "function"]),
        (saying(), {"server_timing": 1}, TypeError, ["server_timing", "1", "function"]),
    ],
)
def test_a_wrong_argument_fails_at_construction(
    app: Any, options: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    """The message names the subject, the value and the remedy."""
    with pytest.raises(ConfigurationError) as caught:
        PerformanceMiddleware(app, **options)
    assert isinstance(caught.value, kind)
    message = str(caught.value)
    assert message.startswith("PerformanceMiddleware(")
    assert all(word in message for word in words)
    subject, _, rest = message.partition(" got ")
    value, _, remedy = rest.partition(": ")
    assert words[0].strip("()") in subject
    assert words[1] == value
    assert words[2] in remedy


def test_an_unknown_option_fails_at_construction() -> None:
    """There is no option that is silently ignored."""
    with pytest.raises(TypeError, match="memroy"):
        PerformanceMiddleware(saying(), memroy="rss")  # type: ignore[call-arg]


# Forks

FORKING = """
import asyncio, os, threading
from asgi_perfkit import *

registry = Registry()
scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}

async def receive(): ...
async def send(message): ...

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
    await asyncio.sleep(0)
    fork = scope.get("fork")
    if fork:
        fork()

middleware = PerformanceMiddleware(app, registry=registry)

def in_flight():
    return get_runtime_stats(registry=registry)["requests"]["in_flight"]

def served():
    return get_performance_stats(registry=registry)["outcomes"]["ok"]

def fork():
    # Another thread is in the midst of recording: in the child it does not go on, and releases nothing.
    held, released = threading.Event(), threading.Event()
    def hold():
        with registry.lock:
            held.set()
            released.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert in_flight_of(registry) == 1
    child = os.fork()
    if child == 0:
        try:
            assert in_flight() == 0, "the parent's request is not the child's"
            threading.Thread(target=serve_in_child).start()
            done.wait(10)
            assert in_flight() == 0
            assert served() == 1, "the parent's figures are told by the parent"
            os._exit(7)
        except BaseException:
            import traceback; traceback.print_exc()
            os._exit(1)
    released.set()
    thread.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status
    assert in_flight() == 1

def in_flight_of(registry):
    return len(registry.open)

done = threading.Event()

def serve_in_child():
    asyncio.run(middleware(dict(scope), receive, send))
    done.set()

asyncio.run(middleware({**scope, "fork": fork}, receive, send))
assert in_flight() == 0
assert served() == 1
print("forked")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_fork_in_the_midst_of_a_request(tmp_path: Path) -> None:
    """A forked child has no request in flight, waits for no lock of the parent's, and records its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        cwd=tmp_path,  # or else the source tree would be imported
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "forked"), done.stderr


def test_memory_is_the_childs_own_after_a_fork(
    run: Run, registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was forked makes its own reader: that of its parent reads the parent's memory."""
    made = []

    def reader() -> Callable[[], int]:
        made.append(None)
        return lambda: 0

    monkeypatch.setattr(monitor, "rss_reader", reader)
    middleware = PerformanceMiddleware(saying(START, BODY), registry=registry)
    for pid in (1, 1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(monitor.os, "getpid", lambda pid=pid: pid)
            server = Server()
            run(middleware, http_scope(), server.receive, server.send)
            clock.advance(1)
    assert len(made) == 2
    assert the_figures(registry)["memory_delta"]["count"] == 3
