"""Tasks of requests: when they start, which are discarded, who waits for them, and that nobody else notices."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import multiprocessing
import signal
import threading
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    BackgroundTasks,
    BatchedBackgroundTasks,
    ConfigurationError,
    NoRequestError,
    PerfKit,
    PerformanceMiddleware,
    QueueFullError,
    Registry,
    ResourceManager,
    TaskFailure,
    add_task,
    default_limiter,
    get_performance_stats,
    run_in_threadpool,
    task_options,
)
from tests.conftest import EVERY_LOOP
from tests.middleware.serving import (
    MODES,
    SHUTDOWN_COMPLETE,
    STARTUP,
    STARTUP_COMPLETE,
    WRAPS,
    Counted,
    Wrap,
    ask,
    cancel_when,
    counts,
    detach,
    event,
    handled_by,
    live,
    performance,
    replacing_send,
    serve,
    until,
)
from tests.properties.test_transparency import arbitrary, compare, http_plays, websocket_plays
from tests.support import (
    BODY,
    LOGGER,
    START,
    App,
    Clock,
    Message,
    Receive,
    Scope,
    Send,
    Server,
    Trouble,
    checkpoint,
    forever,
    http_scope,
    no_collector,
    saying,
    together,
    traced_bytes,
    websocket_scope,
)
from tests.threads.gates import Gate

Run = Callable[..., Any]

PATIENCE_SECONDS = 10


@pytest.fixture(params=MODES.values(), ids=MODES)
def deploy(request: pytest.FixtureRequest) -> Any:
    """`await deploy(app, client)`: with the lifespan protocol and without it; all tasks have run afterwards."""
    return request.param


# Every arrangement of middlewares on one loop; on the others the stack, and the one that has two of all.
SETTINGS = [("asyncio", name) for name in WRAPS] + [
    ("uvloop", "in the stack"),
    ("trio", "in the stack"),
    ("trio", "twice, send replaced between"),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`run(async_function, *args)`, and `wrap(app, **options)`: the middleware, alone and among others."""
    if {"run", "wrap"} <= set(metafunc.fixturenames):
        settings = [(EVERY_LOOP[loop], WRAPS[name]) for loop, name in SETTINGS]
        metafunc.parametrize(("run", "wrap"), settings, ids=map("-".join, SETTINGS))


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """What was there before is left out of the collections, of which many tests need one."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# ---- when they start


def test_tasks_start_when_the_app_has_returned(run: Run, deploy: Any, wrap: Wrap) -> None:
    """Not before: whether added before the response, while it is streamed or after it, and then in that order."""
    log: list[str] = []

    async def note(what: str) -> None:
        log.append(what)

    async def handler(receive: Receive, send: Send) -> None:
        add_task(note, "before")
        await send(START)
        add_task(note, "within")
        await send({**BODY, "more_body": True})
        await send(BODY)
        add_task(log.append, "behind")
        for _ in range(20):
            await checkpoint()
        log.append("returned")

    async def send(message: Message) -> None:
        await checkpoint()
        log.append(message["type"])

    app = wrap(handled_by(handler))
    run(deploy, app, lambda: app(http_scope(), Server().receive, send))
    sent = ["http.response.start", "http.response.body", "http.response.body"]
    assert log == [*sent, "returned", "before", "within", "behind"]


def test_the_request_does_not_wait_for_its_tasks(run: Run) -> None:
    """With a lifespan the call is over while the task is still running, and so is the next one's."""

    async def main() -> None:
        gate = event()
        log: list[str] = []

        async def task() -> None:
            log.append("begun")
            await gate.wait()
            log.append("done")

        async def handler(receive: Receive, send: Send) -> None:
            add_task(task)
            await saying(START, BODY)(http_scope(), receive, send)

        async def client() -> None:
            await ask(app)
            await ask(app)
            await until(lambda: len(log) == 2)
            assert log == ["begun", "begun"]
            gate.set()

        app = BackgroundTaskMiddleware(handled_by(handler))
        await live(app, client)
        assert log == ["begun", "begun", "done", "done"]

    run(main)


def test_without_a_lifespan_the_call_lasts_until_its_tasks_have_run(run: Run, wrap: Wrap) -> None:
    """Nobody else would wait for them at the end."""
    log: list[str] = []

    async def task() -> None:
        for _ in range(20):
            await checkpoint()
        log.append("task")

    async def handler(receive: Receive, send: Send) -> None:
        add_task(task)
        add_task(log.append, "thread")
        await saying(START, BODY)(http_scope(), receive, send)
        log.append("returned")

    async def main() -> None:
        await ask(wrap(handled_by(handler)))
        log.append("call over")

    run(main)
    assert log == ["returned", "task", "thread", "call over"]


def test_a_connections_tasks_run_at_its_end(run: Run, deploy: Any, wrap: Wrap) -> None:
    """A websocket's tasks wait until the app has returned."""
    log: list[str] = []

    async def handler(receive: Receive, send: Send) -> None:
        await receive()
        add_task(log.append, "first")
        await send({"type": "websocket.accept"})
        await receive()
        add_task(log.append, "second")
        await send({"type": "websocket.send", "text": "thanks"})
        await receive()
        for _ in range(20):
            await checkpoint()
        log.append("returned")

    said = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "please"},
        {"type": "websocket.disconnect", "code": 1000},
    ]
    app = wrap(handled_by(handler))
    run(deploy, app, lambda: ask(app, websocket_scope(), *said))
    assert log == ["returned", "first", "second"]


def test_tasks_of_all_kinds_run_in_the_order_of_adding(run: Run, deploy: Any) -> None:
    """Functions, methods, partials and lists, on the loop and in threads, one after the other."""
    log: list[object] = []

    async def slowly(what: object) -> None:
        await checkpoint()
        log.append(what)

    async def handler(receive: Receive, send: Send) -> None:
        ordered, batched = BackgroundTasks(), BatchedBackgroundTasks(2)
        ordered.add_task(slowly, 3)
        ordered.add_task(log.append, 4)
        for number in (5, 6, 7):
            batched.add_task(slowly, number)
        add_task(slowly, 1)
        add_task(log.append, 2)
        add_task(ordered)
        add_task(batched)
        add_task(task_options(slowly, timeout=PATIENCE_SECONDS), what=8)
        await saying(START, BODY)(http_scope(), receive, send)

    app = BackgroundTaskMiddleware(handled_by(handler))
    run(deploy, app, lambda: ask(app))
    log[4:6] = sorted(log[4:6], key=repr)  # which run at the same time
    assert log == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_task_may_add_tasks(run: Run, deploy: Any, wrap: Wrap) -> None:
    """They run behind those of its request, and what they add runs, too, from the loop as from a thread."""
    log: list[int] = []

    async def on_the_loop(generation: int) -> None:
        log.append(generation)
        if generation < 4:
            add_task(in_a_thread, generation + 1)

    def in_a_thread(generation: int) -> None:
        log.append(generation)
        add_task(on_the_loop, generation + 1)

    async def handler(receive: Receive, send: Send) -> None:
        add_task(on_the_loop, 0)
        await saying(START, BODY)(http_scope(), receive, send)

    app = wrap(handled_by(handler))
    run(deploy, app, lambda: ask(app))
    assert log == [0, 1, 2, 3, 4]


# ---- which run


@pytest.mark.parametrize("scope", [http_scope(), websocket_scope()], ids=["http", "websocket"])
def test_an_app_that_raises_discards_its_tasks(
    scope: Scope, run: Run, deploy: Any, wrap: Wrap, caplog: pytest.LogCaptureFixture
) -> None:
    """They are counted, logged and told of, and the exception comes out, the same object."""
    counted = Counted()
    caplog.set_level("WARNING", LOGGER)
    failures: list[TaskFailure] = []
    ran: list[str] = []
    error = Trouble("out of stock")

    async def handler(receive: Receive, send: Send) -> None:
        add_task(ran.append, "first secret")
        tasks = BackgroundTasks()
        tasks.add_task(ran.append, "second secret")
        add_task(tasks)
        if scope["type"] == "http":
            await saying(START, BODY)(http_scope(), receive, send)
        raise error

    async def client() -> None:
        with pytest.raises(Trouble) as caught:
            await ask(app, dict(scope))
        assert caught.value is error

    app = counted.keep(wrap(handled_by(handler), on_error=failures.append))
    run(deploy, app, client)
    assert ran == []
    assert counted.since() == {"discarded": 2}
    assert [(failure.reason, failure.args, failure.error) for failure in failures] == [
        ("discarded", ("first secret",), None),
        ("discarded", ("second secret",), None),
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "list.append(str) was discarded" in caplog.text
    assert "secret" not in caplog.text


def test_with_run_on_error_they_run(run: Run, deploy: Any, wrap: Wrap) -> None:
    """Then an app that raises keeps its tasks, and its exception comes out all the same."""
    ran: list[str] = []
    error = Trouble()

    async def handler(receive: Receive, send: Send) -> None:
        add_task(ran.append, "kept")
        raise error

    async def client() -> None:
        with pytest.raises(Trouble) as caught:
            await ask(app)
        assert caught.value is error

    app = wrap(handled_by(handler), run_on_error=True)
    run(deploy, app, client)
    assert ran == ["kept"]


def test_a_response_made_of_an_exception_keeps_them(run: Run, deploy: Any, wrap: Wrap) -> None:
    """What a framework handles inside of the middleware is a response like any other."""
    ran: list[str] = []

    async def handler(receive: Receive, send: Send) -> None:
        try:
            add_task(ran.append, "kept")
            raise Trouble
        except Trouble:
            await saying({**START, "status": 404}, BODY)(http_scope(), receive, send)

    app = wrap(handled_by(handler))
    run(deploy, app, lambda: ask(app))
    assert ran == ["kept"]


def test_the_outermost_decides(run: Run, deploy: Any) -> None:
    """Of two around one app it is the outer one that knows whether the request has failed, and when it is over."""
    log: list[str] = []

    async def handler(receive: Receive, send: Send) -> None:
        add_task(log.append, "kept")
        raise Trouble

    inner = BackgroundTaskMiddleware(handled_by(handler))

    async def handling(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # as with a mounted app, which gets none
            return
        try:
            await inner(scope, receive, send)
        except Trouble:
            for _ in range(20):
                await checkpoint()
            log.append("handled")
            await saying({**START, "status": 500}, BODY)(scope, receive, send)

    app = BackgroundTaskMiddleware(handling)
    run(deploy, app, lambda: ask(app))
    assert log == ["handled", "kept"]


@pytest.mark.parametrize("said", [[], [START], [START, {**BODY, "more_body": True}]])
def test_an_incomplete_response_keeps_them(said: list[Message], run: Run, deploy: Any) -> None:
    """An app that returns without an exception has done its work, whatever the server thinks of the response."""
    ran: list[str] = []

    async def handler(receive: Receive, send: Send) -> None:
        add_task(ran.append, "kept")
        await saying(*said)(http_scope(), receive, send)

    app = BackgroundTaskMiddleware(handled_by(handler))
    run(deploy, app, lambda: ask(app))
    assert ran == ["kept"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ([], False),
        ([START], False),
        ([START, {**BODY, "more_body": True}], False),
        ([START, BODY], True),
    ],
    ids=["before", "started", "streaming", "complete"],
)
def test_a_cancelled_request_keeps_them_if_its_response_is_complete(
    said: list[Message], kept: bool, run: Run, wrap: Wrap
) -> None:
    """A server that cancels the app behind its response takes nothing back; before that, there was none."""
    counted = Counted()
    ran: list[str] = []
    failures: list[TaskFailure] = []

    async def main() -> None:
        waiting = event()

        async def handler(receive: Receive, send: Send) -> None:
            add_task(ran.append, "kept")
            await saying(*said)(http_scope(), receive, send)
            waiting.set()
            await forever()

        app = counted.keep(wrap(handled_by(handler), on_error=failures.append))
        await live(app, lambda: cancel_when(waiting, lambda: ask(app)))  # type: ignore[arg-type,return-value]

    run(main)
    assert ran == ["kept"] * kept
    assert counted.since() == ({"done": 1} if kept else {"discarded": 1})
    assert [failure.reason for failure in failures] == ["discarded"] * (not kept)


def test_without_a_lifespan_cancelling_the_call_cancels_the_tasks(
    run: Run, wrap: Wrap, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that runs is cancelled and waited for, the others do not begin, and all are reported by name."""
    counted = Counted()
    log: list[str] = []
    failures: list[TaskFailure] = []

    async def main() -> None:
        waiting = event()

        async def first() -> None:
            try:
                waiting.set()
                await forever()
            finally:
                log.append("first cleaned up")

        async def handler(receive: Receive, send: Send) -> None:
            add_task(first)
            add_task(log.append, "second")
            await saying(START, BODY)(http_scope(), receive, send)

        app = counted.keep(wrap(handled_by(handler), on_error=failures.append))
        await cancel_when(waiting, lambda: ask(app))  # type: ignore[arg-type,return-value]
        log.append("call over")

    run(main)
    assert log == ["first cleaned up", "call over"]
    assert [failure.reason for failure in failures] == ["cancelled", "cancelled"]
    assert counted.since() == {"cancelled": 2}
    assert "first() could not finish" in caplog.text
    assert "list.append(str) could not finish" in caplog.text


def test_a_call_that_is_closed_reports_its_tasks() -> None:
    """A coroutine that is closed, as by the garbage collector, can wait for nothing any more."""
    failures: list[TaskFailure] = []

    async def handler(receive: Receive, send: Send) -> None:
        add_task(print, "never")
        await saying(START, BODY)(http_scope(), receive, send)
        await Suspended()

    async def send(message: Message) -> None:
        pass

    app = BackgroundTaskMiddleware(handled_by(handler), on_error=failures.append)
    call: Any = app(http_scope(), Server().receive, send)
    call.send(None)
    call.close()
    assert [failure.reason for failure in failures] == ["cancelled"]


class Suspended:
    """Never goes on."""

    def __await__(self) -> Any:
        yield


def test_a_task_that_raises_harms_nobody(
    run: Run, deploy: Any, wrap: Wrap, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback, counted and told of; the next one runs and the request is a good one."""
    counted = Counted()
    failures: list[TaskFailure] = []
    ran: list[str] = []
    errors = [Trouble("on the loop"), SystemExit(3), Trouble("in a thread")]

    async def on_the_loop(error: BaseException) -> None:
        raise error

    def in_a_thread(error: BaseException) -> None:
        raise error

    def tell(failure: TaskFailure) -> None:
        failures.append(failure)
        raise RuntimeError("on_error is no better")

    async def handler(receive: Receive, send: Send) -> None:
        add_task(on_the_loop, errors[0])
        add_task(on_the_loop, errors[1])
        add_task(in_a_thread, error=errors[2])
        add_task(ran.append, "last")
        await saying(START, BODY)(http_scope(), receive, send)

    app = counted.keep(wrap(handled_by(handler), on_error=tell))
    run(deploy, app, lambda: ask(app))
    assert ran == ["last"]
    assert [failure.error for failure in failures] == errors
    assert {failure.reason for failure in failures} == {"failed"}
    assert counted.since() == {"failed": 3, "done": 1}
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == 6
    assert sum(message.startswith("on_error failed") for message in logged) == 3
    assert "Trouble: on the loop" in caplog.text
    assert "in_a_thread(error=Trouble) failed" in caplog.text


# ---- from where


def test_outside_of_a_request_there_is_nowhere_to_add_to() -> None:
    """The error names what is missing."""
    with pytest.raises(NoRequestError, match=r"add_task\(\).*BackgroundTaskMiddleware"):
        add_task(print)


def test_without_the_middleware_there_is_nowhere_to_add_to(run: Run) -> None:
    """A request that is only measured has no tasks."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(NoRequestError, match="BackgroundTaskMiddleware"):
            add_task(print)
        await saying(START, BODY)(scope, receive, send)

    run(ask, performance(app))
    run(ask, PerfKit(app, background=False))


def test_after_the_request_its_context_is_over(run: Run, wrap: Wrap) -> None:
    """Whoever called the app is not in a request any more."""

    async def main() -> None:
        await ask(wrap(saying(START, BODY)))
        with pytest.raises(NoRequestError):
            add_task(print)

    run(main)


def test_tasks_are_added_from_child_tasks_and_threads(run: Run, deploy: Any, wrap: Wrap) -> None:
    """Wherever code of the request runs."""
    ran: list[str] = []

    async def child() -> None:
        await checkpoint()
        add_task(ran.append, "child task")

    async def handler(receive: Receive, send: Send) -> None:
        await together(child, child)
        await run_in_threadpool(add_task, ran.append, "worker thread")
        if asyncio._get_running_loop() is not None:
            await asyncio.to_thread(add_task, ran.append, "asyncio's thread")
        else:
            import trio

            await trio.to_thread.run_sync(add_task, ran.append, "trio's thread")
        await saying(START, BODY)(http_scope(), receive, send)

    app = wrap(handled_by(handler))
    run(deploy, app, lambda: ask(app))
    assert len(ran) == 4
    assert ran[:3] == ["child task", "child task", "worker thread"]


def test_a_thread_that_is_not_of_the_request_has_none() -> None:
    """A thread begins with an empty context."""
    raised: list[BaseException] = []

    async def handler(receive: Receive, send: Send) -> None:
        def work() -> None:
            try:
                add_task(print)
            except NoRequestError as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    asyncio.run(ask(BackgroundTaskMiddleware(handled_by(handler))))  # type: ignore[arg-type]
    assert len(raised) == 1


@pytest.mark.parametrize("earlier", [0, 1])
@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
def test_what_outlives_its_request_still_adds(
    thread: bool, earlier: int, run: Run, wrap: Wrap
) -> None:
    """A child task that adds when its request has long been answered has its task run, whether or not others were."""
    counted = Counted()
    ran: list[str] = []

    async def main() -> None:
        gate, added = event(), event()

        async def late() -> None:
            await gate.wait()
            if thread:
                await run_in_threadpool(add_task, ran.append, "late")
            else:
                add_task(ran.append, "late")
            added.set()

        async def handler(receive: Receive, send: Send) -> None:
            for _ in range(earlier):
                add_task(ran.append, "early")
            detached.append(detach(late))
            await saying(START, BODY)(http_scope(), receive, send)

        async def client() -> None:
            await ask(app)
            await until(lambda: len(ran) == earlier)
            gate.set()
            await added.wait()

        detached: list[object] = []  # asyncio does not hold its tasks
        app = counted.keep(wrap(handled_by(handler)))
        await live(app, client)

    run(main)
    assert ran == ["early"] * earlier + ["late"]
    assert counted.since() == {"done": earlier + 1}


def test_a_late_task_that_nobody_can_run_is_reported(run: Run) -> None:
    """Without a lifespan the request was all that would have waited for it."""
    ran: list[str] = []
    failures: list[TaskFailure] = []

    async def main() -> None:
        gate, added = event(), event()

        async def late() -> None:
            await gate.wait()
            add_task(ran.append, "late")
            added.set()

        async def handler(receive: Receive, send: Send) -> None:
            detached.append(detach(late))
            await saying(START, BODY)(http_scope(), receive, send)

        detached: list[object] = []
        await ask(BackgroundTaskMiddleware(handled_by(handler), on_error=failures.append))
        gate.set()
        await added.wait()

    run(main)
    assert ran == []
    assert [failure.reason for failure in failures] == ["cancelled"]


def test_a_task_runs_in_the_context_it_was_added_in(run: Run, deploy: Any) -> None:
    """It sees the variables as they were then, on the loop and in a thread, and changes nobody else's."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    seen: list[str] = []

    async def on_the_loop() -> None:
        seen.append(user.get())
        user.set("changed")

    def in_a_thread() -> None:
        seen.append(user.get())
        user.set("changed")

    async def handler(receive: Receive, send: Send) -> None:
        for name in ("ada", "grace"):
            user.set(name)
            add_task(on_the_loop)
            add_task(in_a_thread)
        user.set("nobody")
        await saying(START, BODY)(http_scope(), receive, send)
        assert user.get() == "nobody"

    app = BackgroundTaskMiddleware(handled_by(handler))
    run(deploy, app, lambda: ask(app))
    assert seen == ["ada", "ada", "grace", "grace"]


# ---- what nobody notices


def queueing(app: App) -> App:
    """Adds a task of each kind before the app, and leaves it alone."""

    async def nothing() -> None:
        await checkpoint()

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        add_task(nothing)
        add_task(str)
        await app(scope, receive, send)

    return layer


TRANSPARENT = ["alone", "in the stack", "outside of performance", "twice"]


@pytest.mark.parametrize("layers", [WRAPS[name] for name in TRANSPARENT], ids=TRANSPARENT)
@settings(arbitrary, max_examples=40)
@given(play=http_plays | websocket_plays)
def test_nothing_that_is_said_changes(run: Run, layers: Wrap, play: tuple[Scope, Any]) -> None:
    """Messages, right or wrong, arrive as the very objects, in order; so do exceptions and the scope."""
    scope, script = play
    compare(run, layers, dict(scope), script)
    compare(run, lambda app: layers(queueing(app)), dict(scope), script)


def test_context_variables_are_as_they_were(run: Run, deploy: Any, wrap: Wrap) -> None:
    """After the call each variable has the value of before, whether the app returned, raised, or queued tasks."""

    async def handler(receive: Receive, send: Send) -> None:
        add_task(str)
        await saying(START, BODY)(http_scope(), receive, send)
        raise Trouble

    async def client() -> None:
        before = values()
        with pytest.raises(Trouble):
            await ask(app)
        assert values() == before
        await ask(quiet)
        assert values() == before

    def values() -> dict[str, object]:
        # A context does not forget that a variable was set once, to None again.
        return {
            variable.name: value
            for variable, value in contextvars.copy_context().items()
            if value is not None
        }

    app = wrap(handled_by(handler))
    quiet = wrap(saying(START, BODY))
    run(deploy, app, client)


def test_a_request_without_tasks_leaves_nothing(run: Run, wrap: Wrap) -> None:
    """What the request held is free at once, and no task was counted."""
    counted = Counted()

    async def main() -> None:
        with no_collector():
            await ask(app, http_scope(held=held()))
            assert reference() is None

    reference: Callable[[], object] = lambda: "not yet"  # noqa: E731

    def held() -> object:
        nonlocal reference
        thing = Trouble()
        reference = weakref.ref(thing)
        return thing

    app = counted.keep(wrap(saying(START, BODY)))
    run(main)
    assert counted.since() == {}


def test_a_task_that_waits_holds_nothing_of_its_request(run: Run, wrap: Wrap) -> None:
    """Neither connection nor scope, and less than a kilobyte of the kit's own."""
    # Multiples of the 64 requests that a registry puts aside before it counts them.
    blocks = [range(first, first + 256) for first in range(0, 1024, 256)]

    class WatchedScope(dict[str, Any]):
        __hash__ = object.__hash__

    async def main() -> None:
        gate = event()
        alive: weakref.WeakSet[Any] = weakref.WeakSet()
        ran: list[int] = []

        async def note(number: int) -> None:
            ran.append(number)

        async def handler(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                return
            add_task(note, scope["number"]) if "number" in scope else add_task(gate.wait)
            await send(START)
            await send(BODY)

        app = wrap(handler, max_concurrency=1)

        async def connect(number: int) -> None:
            server, scope = Server(), WatchedScope(http_scope(), number=number)
            alive.add(server)
            alive.add(scope)
            await app(scope, server.receive, server.send)

        async def client() -> None:
            await ask(app)
            taken = []
            tracemalloc.start(1)
            try:
                for block in blocks:
                    before = traced_bytes()
                    for number in block:
                        await together(partial(connect, number))
                    taken.append((traced_bytes() - before) / len(block))
            finally:
                tracemalloc.stop()
            assert not ran
            assert not alive
            assert 100 < min(taken) < 1000  # what else the process makes meanwhile comes once
            gate.set()

        await live(app, client)
        assert ran == list(range(1024))

    run(main)


def test_nor_does_one_that_was_added_otherwise(run: Run) -> None:
    """From a child task, a thread, in a block, in a list, while it ends and after that, and by another task."""

    async def main() -> None:
        gate, over, added = event(), event(), event()
        servers: list[weakref.ref[Any]] = []
        ran: list[str] = []
        kept: list[BackgroundTasks | BatchedBackgroundTasks] = []
        detached: list[object] = []  # asyncio does not hold its tasks

        async def late() -> None:
            await over.wait()
            add_task(note, "late")
            added.set()

        async def adder() -> None:
            add_task(note, "by a task")

        async def note(name: str) -> None:
            ran.append(name)

        async def fill() -> None:
            add_task(note, "child")

        async def handler(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                return
            if scope["path"] == "/gate":
                add_task(gate.wait)
            else:
                add_task(adder)
                detached.append(detach(late))
                await together(fill)
                await run_in_threadpool(add_task, note, "thread")
                async with ResourceManager():
                    add_task(note, "block")
                for tasks in (BackgroundTasks(), BatchedBackgroundTasks(2)):
                    tasks.add_task(note, "list")
                    add_task(tasks)
                    tasks.add_task(note, "behind")
                    kept.append(tasks)
            await send(START)
            await send(BODY)

        def name(scope: Scope) -> None:  # which is asked for when the app has returned
            if scope["path"] != "/gate":
                add_task(note, "end")

        app = PerfKit(handler, performance={"endpoint": name}, background={"max_concurrency": 1})

        def gone() -> bool:
            gc.collect()
            return not ran and [server() for server in servers] == [None]

        async def connect() -> None:
            server = Server()
            servers.append(weakref.ref(server))
            await app(http_scope(), server.receive, server.send)

        async def client() -> None:
            await ask(app, {**http_scope(), "path": "/gate"})
            await together(connect)
            over.set()
            await added.wait()
            detached.clear()
            await until(gone)  # a thread may hold what it has called for a moment
            gate.set()

        await live(app, client)
        lists = ["list", "behind"] * 2
        assert ran == ["child", "thread", "block", *lists, "end", "late", "by a task"]

    run(main)


@pytest.mark.parametrize("first", ["task", "list"])
def test_nor_does_one_that_waits_for_another_of_its_request(first: str, run: Run) -> None:
    """Nor that other one, which waits itself."""

    async def main() -> None:
        gate = event()
        servers: list[weakref.ref[Any]] = []
        ran: list[str] = []

        async def handler(receive: Receive, send: Send) -> None:
            if first == "list":
                tasks = BackgroundTasks()
                tasks.add_task(gate.wait)
                add_task(tasks)
            else:
                add_task(gate.wait)
            add_task(ran.append, "behind")
            await saying(START, BODY)(http_scope(), receive, send)

        app = PerfKit(handled_by(handler))

        def gone() -> bool:
            gc.collect()
            return [server() for server in servers] == [None]

        async def connect() -> None:
            server = Server()
            servers.append(weakref.ref(server))
            await app(http_scope(), server.receive, server.send)

        async def client() -> None:
            await together(connect)
            await until(gone)
            assert not ran
            gate.set()

        await live(app, client)
        assert ran == ["behind"]

    run(main)


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_added_while_a_request_ends_is_a_task_of_it(
    run: Run, deploy: Any, fails: bool
) -> None:
    """It runs or is discarded as those before, though the app has returned."""
    counted = Counted()

    async def note() -> None:
        pass

    def name(scope: Scope) -> None:  # which is asked for when the app has returned
        add_task(note)

    async def handler(receive: Receive, send: Send) -> None:
        if fails:
            raise Trouble
        await saying(START, BODY)(http_scope(), receive, send)

    async def client() -> None:
        with pytest.raises(Trouble) if fails else nullcontext():
            await ask(app)

    app = counted.keep(PerfKit(handled_by(handler), performance={"endpoint": name}))
    run(deploy, app, client)
    assert counted.since() == {"discarded" if fails else "done": 1}


def test_a_task_that_has_run_leaves_nothing(run: Run, deploy: Any, wrap: Wrap) -> None:
    """Its arguments are free as soon as it is done, while the app lives on."""
    counted = Counted()
    references: list[weakref.ref[Trouble]] = []

    async def on_the_loop(thing: Trouble) -> None:
        await checkpoint()

    def in_a_thread(thing: Trouble) -> None:
        pass

    def add() -> None:
        for function in (on_the_loop, in_a_thread):
            thing = Trouble()
            references.append(weakref.ref(thing))
            add_task(function, thing)

    async def handler(receive: Receive, send: Send) -> None:
        add()
        await saying(START, BODY)(http_scope(), receive, send)

    async def client() -> None:
        with no_collector():
            await ask(app)
            await until(lambda: counted.since() == {"done": 2})
            await until(lambda: not any(reference() for reference in references))

    app = counted.keep(wrap(handled_by(handler)))
    run(deploy, app, client)


# ---- the end


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_the_app_shuts_down_behind_the_tasks(kind: str, run: Run, wrap: Wrap) -> None:
    """What the app closes at its shutdown is open as long as a task runs that may use it."""
    log: list[str] = []

    async def main() -> None:
        gate, begun = event(), event()
        closed = threading.Event()

        async def on_the_loop() -> None:
            begun.set()
            await gate.wait()
            log.append("task")

        def in_a_thread() -> None:
            log.append("begun")
            assert closed.wait(PATIENCE_SECONDS)
            log.append("task")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await receive()
                await send(STARTUP_COMPLETE)
                await receive()
                log.append("pool closed")
                await send(SHUTDOWN_COMPLETE)
            else:
                add_task(on_the_loop if kind == "loop" else in_a_thread)
                await saying(START, BODY)(scope, receive, send)

        async def client() -> None:
            await ask(wrapped)
            if kind == "loop":
                await begun.wait()
                opened.append(detach(open_late))
            else:
                await until(lambda: "begun" in log)
                opened.append(detach(open_late))

        async def open_late() -> None:
            for _ in range(50):  # the shutdown has come meanwhile
                await checkpoint()
            assert "pool closed" not in log
            gate.set()
            closed.set()

        opened: list[object] = []
        wrapped = wrap(app)
        assert await live(wrapped, client) == [STARTUP_COMPLETE, SHUTDOWN_COMPLETE]

    run(main)
    assert log[-2:] == ["task", "pool closed"]


async def refuses(scope: Scope) -> None:
    raise ValueError("Django can only handle ASGI/HTTP connections, not lifespan.")


async def ignores(scope: Scope) -> None:
    pass


@pytest.mark.parametrize("attitude", [refuses, ignores])
def test_an_app_without_lifespan_is_drained_all_the_same(
    attitude: Callable[[Scope], Awaitable[None]], run: Run, wrap: Wrap
) -> None:
    """The server is told that the shutdown is complete when the tasks are done."""
    log: list[str] = []

    async def main() -> None:
        async def task() -> None:
            for _ in range(50):
                await checkpoint()
            log.append("task")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await attitude(scope)
            else:
                add_task(task)
                await saying(START, BODY)(scope, receive, send)

        async def client() -> None:
            await ask(wrapped)
            log.append("answered")

        wrapped = wrap(app)
        told = await live(wrapped, client)
        assert told == [STARTUP_COMPLETE, SHUTDOWN_COMPLETE]
        assert log == ["answered", "task"]

    run(main)


def test_a_shutdown_gives_up_what_takes_too_long(
    run: Run, wrap: Wrap, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs is cancelled and waited for, what waits does not begin, and all are reported by name and types."""
    counted = Counted()
    log: list[str] = []
    failures: list[TaskFailure] = []

    async def main() -> None:
        begun = event()

        async def endless(user: str) -> None:
            try:
                begun.set()
                await forever()
            finally:
                log.append("cleaned up")

        async def handler(receive: Receive, send: Send) -> None:
            add_task(endless, "ada")
            tasks = BackgroundTasks()
            tasks.add_task(log.append, "second")
            add_task(tasks)
            add_task(log.append, object="third")
            await saying(START, BODY)(http_scope(), receive, send)

        async def client() -> None:
            await ask(app)
            await ask(app)
            await begun.wait()

        app = counted.keep(
            wrap(handled_by(handler), drain_timeout=0, max_concurrency=1, on_error=failures.append)
        )
        assert await live(app, client) == [STARTUP_COMPLETE, SHUTDOWN_COMPLETE]

    run(main)
    assert log == ["cleaned up"]
    assert counted.since() == {"cancelled": 6}
    assert {failure.reason for failure in failures} == {"cancelled"}
    assert sorted(failure.args + tuple(failure.kwargs.values()) for failure in failures) == [
        ("ada",),
        ("ada",),
        ("second",),
        ("second",),
        ("third",),
        ("third",),
    ]
    assert "endless(str) could not finish" in caplog.text
    assert "list.append(object=str) could not finish" in caplog.text


def test_a_task_that_does_not_heed_its_cancellation_is_the_last(run_asyncio: Run) -> None:
    """The shutdown waits for it, but what comes behind it in its queue does not begin."""
    counted = Counted()
    ran: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()

        async def stubborn() -> None:
            begun.set()
            try:
                await forever()
            except asyncio.CancelledError:
                await checkpoint()
            ran.append("stubborn")

        async def handler(receive: Receive, send: Send) -> None:
            add_task(stubborn)
            add_task(ran.append, "next")
            await saying(START, BODY)(http_scope(), receive, send)

        async def client() -> None:
            await ask(app)
            await begun.wait()

        app = counted.keep(BackgroundTaskMiddleware(handled_by(handler), drain_timeout=0))
        await live(app, client)

    run_asyncio(main)
    assert ran == ["stubborn"]
    assert counted.since()["cancelled"] >= 1
    assert sum(counted.since().values()) == 2


def test_a_thread_that_is_given_up_is_waited_for(run: Run) -> None:
    """It has finished when the shutdown is complete, which is told of as done; the next one does not begin."""
    counted = Counted()
    log: list[str] = []
    failures: list[TaskFailure] = []
    given_up = threading.Event()

    async def main() -> None:
        def slow() -> None:
            log.append("begun")
            assert given_up.wait(PATIENCE_SECONDS)
            log.append("finished")

        async def handler(receive: Receive, send: Send) -> None:
            add_task(slow)
            add_task(log.append, "next")
            await saying(START, BODY)(http_scope(), receive, send)

        async def client() -> None:
            await ask(app)
            await ask(app)
            await until(lambda: log == ["begun"])

        def tell(failure: TaskFailure) -> None:
            failures.append(failure)
            given_up.set()  # the second request's, which never began, are the first to be told of

        app = counted.keep(
            BackgroundTaskMiddleware(
                handled_by(handler), drain_timeout=0, max_concurrency=1, on_error=tell
            )
        )
        await live(app, client)
        assert log == ["begun", "finished"]

    run(main)
    assert counted.since() == {"done": 1, "cancelled": 3}
    assert len(failures) == 3


def test_a_nursery_in_a_task_that_is_given_up(run_trio: Run) -> None:
    """Its group of cancellations is one cancellation, and no failure."""
    import trio

    failures: list[TaskFailure] = []

    async def main() -> None:
        begun = trio.Event()

        async def task() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)
                begun.set()

        async def handler(receive: Receive, send: Send) -> None:
            add_task(task)
            await saying(START, BODY)(http_scope(), receive, send)

        async def client() -> None:
            await ask(app)
            await begun.wait()

        app = BackgroundTaskMiddleware(
            handled_by(handler), drain_timeout=0, on_error=failures.append
        )
        await live(app, client)

    run_trio(main)
    assert [failure.reason for failure in failures] == ["cancelled"]


def test_requests_behind_the_shutdown_wait_for_their_own_tasks(run: Run, wrap: Wrap) -> None:
    """One that is still served when the drain is over keeps what it has added."""
    log: list[str] = []

    async def handler(receive: Receive, send: Send) -> None:
        add_task(log.append, "task")
        await saying(START, BODY)(http_scope(), receive, send)

    async def nothing() -> None:
        pass

    async def main() -> None:
        app = wrap(handled_by(handler))
        await live(app, nothing)
        await ask(app)
        log.append("call over")

    run(main)
    assert log == ["task", "call over"]


def test_an_app_may_live_twice(run: Run, wrap: Wrap) -> None:
    """After a shutdown it can be started again, on another loop too."""
    ran: list[str] = []

    async def handler(receive: Receive, send: Send) -> None:
        add_task(ran.append, "task")
        await saying(START, BODY)(http_scope(), receive, send)

    app = wrap(handled_by(handler))
    for _ in range(2):
        run(live, app, partial(ask, app))
    assert ran == ["task", "task"]


@pytest.mark.parametrize("goes_on", [False, True], ids=["raises", "returns"])
def test_a_lifespan_that_ends_early_leaves_tasks_to_the_requests(
    goes_on: bool, run: Run, wrap: Wrap
) -> None:
    """The tasks that run are not stopped, those of later requests are waited for by these; the error comes out."""
    error = Trouble("the pool has gone")
    log: list[str] = []

    async def main() -> None:
        started, crash, begun, gate, over = event(), event(), event(), event(), event()

        async def first() -> None:
            begun.set()
            await gate.wait()
            log.append("first")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await receive()
                await send(STARTUP_COMPLETE)
                started.set()
                await crash.wait()
                if not goes_on:
                    raise error
            else:
                add_task(*((first,) if scope["path"] == "/first" else (log.append, "second")))
                await saying(START, BODY)(scope, receive, send)

        async def lifespan() -> None:
            server = Server(STARTUP)
            try:
                await wrapped({"type": "lifespan", "state": {}}, server.receive, server.send)
            except Trouble as raised:
                log.append("crashed" if raised is error else "another error")
            else:
                log.append("left")
            over.set()

        async def client() -> None:
            await started.wait()
            await ask(wrapped, http_scope("/first"))
            await begun.wait()
            crash.set()
            await over.wait()
            await ask(wrapped)
            log.append("answered")
            gate.set()
            await until(lambda: "first" in log)

        wrapped = wrap(app)
        await together(lifespan, client)

    run(main)
    assert log == ["left" if goes_on else "crashed", "second", "answered", "first"]


def test_a_startup_in_the_main_process_leaves_its_signals_alone() -> None:
    """Only a worker process, which has nobody who handles them, gets a handler."""

    async def nothing() -> None:
        pass

    assert multiprocessing.parent_process() is None
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        asyncio.run(live(BackgroundTaskMiddleware(saying()), nothing))  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- bounds


@pytest.mark.parametrize("concurrency", [1, 2])
def test_so_many_requests_tasks_run_at_once(concurrency: int, run: Run) -> None:
    """Those of `max_concurrency` requests, and not one more; the next begin when others are done."""
    counted = Counted()

    async def main() -> None:
        gate = event()
        running = peak = done = 0

        async def task() -> None:
            nonlocal running, peak, done
            running += 1
            peak = max(peak, running)
            await gate.wait()
            running -= 1
            done += 1

        async def handler(receive: Receive, send: Send) -> None:
            add_task(task)
            await saying(START, BODY)(http_scope(), receive, send)

        async def client() -> None:
            for _ in range(5):
                await ask(app)
            await until(lambda: running == concurrency)
            for _ in range(20):
                await checkpoint()
            assert counted.since() == {"running": concurrency, "pending": 5 - concurrency}
            gate.set()

        app = counted.keep(
            BackgroundTaskMiddleware(handled_by(handler), max_concurrency=concurrency)
        )
        await live(app, client)
        assert (peak, done) == (concurrency, 5)

    run(main)


def test_a_full_queue_refuses_and_keeps_the_rest(run: Run, deploy: Any, wrap: Wrap) -> None:
    """Who adds one too many is told the numbers; those that were accepted run."""
    ran: list[int] = []
    raised: list[QueueFullError] = []

    async def handler(receive: Receive, send: Send) -> None:
        for number in range(5):
            try:
                add_task(ran.append, number)
            except QueueFullError as error:
                raised.append(error)
        await saying(START, BODY)(http_scope(), receive, send)

    app = wrap(handled_by(handler), max_pending=3)
    run(deploy, app, lambda: ask(app))
    assert ran == [0, 1, 2]
    assert len(raised) == 2
    assert "3" in str(raised[0])


def test_threads_of_tasks_have_their_hooks(run: Run, deploy: Any, wrap: Wrap) -> None:
    """`task_hooks` are called around each task that runs in a thread, in that thread."""
    log: list[tuple[str, int]] = []

    def note(what: str) -> None:
        log.append((what, threading.get_ident()))

    async def handler(receive: Receive, send: Send) -> None:
        add_task(note, "task")
        await saying(START, BODY)(http_scope(), receive, send)

    app = wrap(handled_by(handler), task_hooks=(lambda: note("before"), lambda: note("after")))
    run(deploy, app, lambda: ask(app))
    assert [what for what, _ in log] == ["before", "task", "after"]
    assert len({thread for _, thread in log}) == 1
    assert log[0][1] != threading.get_ident()


def test_tasks_have_threads_of_their_own(run: Run, deploy: Any, wrap: Wrap) -> None:
    """So many as requests have; when tasks have taken them all, a request still finds one for its own calls."""
    inside: list[int] = []
    number = default_limiter().total_tokens

    async def handler(receive: Receive, send: Send) -> None:
        tasks = BatchedBackgroundTasks()
        for _ in range(number + 1):
            tasks.add_task(gate)
        add_task(tasks)
        await saying(START, BODY)(http_scope(), receive, send)

    async def visit() -> None:
        async def look() -> None:
            await gate.reached(number)
            inside.append(await run_in_threadpool(lambda: gate.inside))
            gate.open()

        await together(lambda: ask(app), look)

    with Gate() as gate:
        app = wrap(handled_by(handler))
        run(deploy, app, visit)
    assert inside == [number]
    assert gate.passed == number + 1


# ---- figures


LAYERS: dict[str, Callable[[App, Registry], App]] = {
    "in the stack": lambda app, registry: PerfKit(app, performance={"registry": registry}),
    "outside": lambda app, registry: BackgroundTaskMiddleware(
        PerformanceMiddleware(app, registry=registry)
    ),
    "inside": lambda app, registry: PerformanceMiddleware(
        BackgroundTaskMiddleware(app), registry=registry
    ),
    "send replaced between": lambda app, registry: BackgroundTaskMiddleware(
        replacing_send(PerformanceMiddleware(app, registry=registry))
    ),
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
def test_times_are_in_the_row_of_the_endpoint(
    thread: bool,
    layers: Callable[[App, Registry], App],
    run: Run,
    deploy: Any,
    registry: Registry,
    clock: Clock,
) -> None:
    """How long each task took and waited; none of it is the response's time."""

    async def on_the_loop(seconds: float) -> None:
        await checkpoint()
        clock.advance(seconds)

    def in_a_thread(seconds: float) -> None:
        clock.advance(seconds)

    async def handler(receive: Receive, send: Send) -> None:
        add_task(in_a_thread if thread else on_the_loop, 4)
        clock.advance(1)
        add_task(in_a_thread if thread else on_the_loop, 16)
        await saying(START, BODY)(http_scope(), receive, send)

    app = layers(handled_by(handler), registry)
    run(deploy, app, lambda: ask(app))
    figures = get_performance_stats(by="endpoint", registry=registry)["GET /things"]
    time, wait = figures["background_time"], figures["background_wait_time"]
    assert (time["count"], time["sum"], time["max"]) == (2, 20, 16)
    assert (wait["count"], wait["min"], wait["max"]) == (2, 1, 4)
    assert figures["response_time"]["sum"] == 1
    # A call that has to wait for the tasks itself, inside of what is measured, takes as long as they do.
    waits = deploy is serve and layers is LAYERS["inside"]
    assert figures["total_time"]["sum"] == (21 if waits else 1)
    assert figures["outcomes"] == {"ok": 1}


def test_the_runtime_stats_follow_a_task(run: Run) -> None:
    """Pending while its request is served, running, and then what became of it."""
    counted = Counted()

    async def main() -> None:
        gate, begun = event(), event()
        stages: list[dict[str, int]] = []

        async def task() -> None:
            begun.set()
            await gate.wait()

        async def handler(receive: Receive, send: Send) -> None:
            add_task(task)
            add_task(task_options(forever, timeout=0.001))
            add_task(int, "no number")
            stages.append(counted.since())
            await saying(START, BODY)(http_scope(), receive, send)

        async def client() -> None:
            await ask(app)
            await begun.wait()
            stages.append(counted.since())
            gate.set()

        app = counted.keep(BackgroundTaskMiddleware(handled_by(handler)))
        await live(app, client)
        assert stages == [{"pending": 3}, {"pending": 2, "running": 1}]
        assert counted.since() == {"done": 1, "timed_out": 1, "failed": 1}

    run(main)
    assert {"pending", "running", "done", "failed", "timed_out", "cancelled", "discarded"} <= set(
        counts()
    )


# ---- wrong arguments


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("max_concurrency", "100", TypeError),
        ("max_concurrency", True, TypeError),
        ("max_concurrency", 0, ValueError),
        ("max_pending", 1.5, TypeError),
        ("max_pending", -1, ValueError),
        ("drain_timeout", "soon", TypeError),
        ("drain_timeout", False, TypeError),
        ("drain_timeout", -0.1, ValueError),
        ("drain_timeout", float("nan"), ValueError),
        ("run_on_error", 1, TypeError),
        ("on_error", "log", TypeError),
        ("on_error", checkpoint, TypeError),
        ("task_hooks", print, TypeError),
        ("task_hooks", (print,), TypeError),
        ("task_hooks", (print, "after"), TypeError),
        ("task_hooks", (None, checkpoint), TypeError),
    ],
)
def test_a_wrong_option_is_refused(option: str, value: object, kind: type[Exception]) -> None:
    """When the middleware is made, by name, alone and in the stack."""
    with pytest.raises(kind, match=option) as caught:
        BackgroundTaskMiddleware(saying(), **{option: value})  # type: ignore[arg-type]
    assert isinstance(caught.value, ConfigurationError)
    assert repr(value)[:20] in str(caught.value)
    with pytest.raises(kind, match=option):
        PerfKit(saying(), background={option: value})


def test_an_app_that_cannot_be_called_is_refused() -> None:
    """As everywhere in the kit."""
    with pytest.raises(TypeError, match=r"BackgroundTaskMiddleware\(app\) got 'app'"):
        BackgroundTaskMiddleware("app")


def test_an_option_that_does_not_exist_is_refused() -> None:
    """The stack names the nearest one."""
    with pytest.raises(TypeError, match="did you mean 'max_pending'"):
        PerfKit(saying(), background={"max_pendin": 3})


@pytest.mark.parametrize("work", [None, "send_mail", 7])
def test_what_cannot_be_called_is_no_task(work: Any, run: Run) -> None:
    """It is refused at the call, and nothing is queued."""

    async def handler(receive: Receive, send: Send) -> None:
        with pytest.raises(TypeError, match=r"add_task\(func\)"):
            add_task(work)

    counted = Counted()
    run(ask, BackgroundTaskMiddleware(handled_by(handler)))
    assert counted.since() == {}


def test_a_coroutine_is_no_task(run: Run) -> None:
    """Whoever has called the function already is told how to do without; the coroutine is closed."""

    async def handler(receive: Receive, send: Send) -> None:
        with pytest.raises(TypeError, match="called already"):
            add_task(checkpoint())  # type: ignore[arg-type]

    run(ask, BackgroundTaskMiddleware(handled_by(handler)))
