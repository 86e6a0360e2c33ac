"""PerfKit: the middlewares in their order, and what wrong arguments get."""

from __future__ import annotations

import asyncio
import inspect
import sys
import tracemalloc
from contextvars import Context
from typing import Any

import pytest
from asgiref.compatibility import is_double_callable

from asgi_perfkit import (
    ConfigurationError,
    PerfKit,
    Registry,
    get_performance_stats,
    reset_performance_stats,
)
from tests.metrics.driver import connect, ok_app, request, statuses
from tests.support import traced_bytes


def http_scope(**more: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/items/3", "headers": [], **more}


async def recording_app(scope: Any, receive: Any, send: Any) -> None:
    scope["seen"] = scope, receive, send
    await ok_app(scope, receive, send)


def test_with_its_defaults_it_measures(run: Any) -> None:
    """Wrapped and nothing else: requests and connections are in the default registry."""
    reset_performance_stats()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await ok_app(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def main() -> None:
        kit = PerfKit(app)
        assert (await request(kit, "GET", "/items/3"))["headers"] == ()
        assert await connect(kit, "/ws") == [{"type": "websocket.close"}]

    run(main)
    assert get_performance_stats(by="endpoint").keys() == {"GET /items/{id}", "WEBSOCKET /ws"}
    reset_performance_stats()


def test_a_dictionary_holds_the_options_of_the_middleware(run: Any) -> None:
    """The middleware gets the options that it would get alone; the dictionary may change or be used again."""
    registry = Registry()
    options = {
        "registry": registry,
        "endpoint": lambda scope: "/named",
        "memory": None,
        "max_series": 5,
        "server_timing": True,
    }
    before = dict(options)
    kit = PerfKit(ok_app, performance=options)
    assert options == before
    options.clear()
    message = run(request, kit, "GET", "/")
    assert [name for name, _ in message["headers"]] == [b"server-timing"]
    assert statuses(registry) == {"GET /named": {"200": 1}}
    assert "memory_delta" not in get_performance_stats(registry=registry)


def test_an_empty_dictionary_is_the_defaults(run: Any) -> None:
    """No options are not the same as False."""
    reset_performance_stats()
    run(request, PerfKit(ok_app, performance={}), "GET", "/")
    assert get_performance_stats()["outcomes"] == {"ok": 1}
    reset_performance_stats()


def test_without_performance_everything_passes_through(run: Any) -> None:
    """With all parts off, the app is called with the very objects, and nothing is counted."""
    reset_performance_stats()
    scope = http_scope()

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    kit = PerfKit(recording_app, performance=False, background=False, resources=False)
    run(kit, scope, receive, send)
    assert scope["seen"][0] is scope
    assert scope["seen"][1:] == (receive, send)
    assert get_performance_stats() == {}


@pytest.mark.parametrize("performance", [True, False, {"memory": None}])
def test_a_double_callable_app(run: Any, performance: Any) -> None:
    """An app of ASGI 2, a class or a function that returns the coroutine function, works as any other."""

    class ClassApp:
        def __init__(self, scope: Any) -> None:
            self.scope = scope

        async def __call__(self, receive: Any, send: Any) -> None:
            await ok_app(self.scope, receive, send)

    def function_app(scope: Any) -> Any:
        async def instance(receive: Any, send: Any) -> None:
            await ok_app(scope, receive, send)

        return instance

    for app in (ClassApp, function_app):
        message = run(request, PerfKit(app, performance=performance), "GET", "/items/3")
        assert message["status"] == 200
    reset_performance_stats()


def test_an_object_with_call_is_an_app(run: Any) -> None:
    """An instance whose `__call__` is a coroutine function, as the frameworks' apps are."""

    class App:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await ok_app(scope, receive, send)

    assert run(request, PerfKit(App()), "GET", "/")["status"] == 200
    reset_performance_stats()


@pytest.mark.parametrize("performance", [True, False])
def test_it_is_known_as_an_app_of_asgi_3(performance: bool) -> None:
    """Servers and frameworks look whether `__call__` is a coroutine function: uvicorn, hypercorn, asgiref."""
    kit = PerfKit(ok_app, performance=performance)
    assert inspect.iscoroutinefunction(kit.__call__)
    assert not is_double_callable(kit)
    assert list(inspect.signature(kit).parameters) == ["scope", "receive", "send"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames of Python 3.10 are twice as large")
def test_a_request_that_waits_keeps_little() -> None:
    """While the app waits, the kit keeps no more than a kilobyte for a request."""

    async def keep(app: Any) -> float:
        gate = asyncio.Event()
        scopes = [http_scope(gate=gate) for _ in range(200)]
        before = traced_bytes()
        tasks = [asyncio.ensure_future(app(scope, None, None)) for scope in scopes]
        await asyncio.sleep(0)
        after = traced_bytes()
        gate.set()
        await asyncio.gather(*tasks)
        return (after - before) / len(scopes)

    def kept(app: Any) -> float:
        # What the process makes beside it comes once. The context is empty, as a server's is: a variable that is set
        # takes 64 bytes more where its hash and that of another one, which are addresses, begin alike.
        return min(Context().run(asyncio.run, keep(app)) for _ in range(4))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await scope["gate"].wait()

    kit = PerfKit(app, performance={"registry": Registry()})
    trace = sys.gettrace()
    sys.settrace(
        None
    )  # who traces, to measure coverage for one, has objects made for frames that have none otherwise
    tracemalloc.start(1)
    try:
        assert kept(kit) - kept(app) <= 1024
    finally:
        tracemalloc.stop()
        sys.settrace(trace)


def test_the_app_can_be_reached() -> None:
    """`app` is what was wrapped."""
    assert PerfKit(ok_app).app is ok_app


def test_kits_around_one_app_are_apart(run: Any) -> None:
    """Two kits around one app record each in its own registry."""
    one, other = Registry(), Registry()
    kits = [PerfKit(ok_app, performance={"registry": registry}) for registry in (one, other)]

    async def main() -> None:
        await request(kits[0], "GET", "/one")
        await request(kits[1], "GET", "/other")

    run(main)
    assert (statuses(one).keys(), statuses(other).keys()) == ({"GET /one"}, {"GET /other"})


@pytest.mark.parametrize("app", [None, "module:app", 5, object()])
@pytest.mark.parametrize("performance", [True, False])
def test_an_app_is_a_callable(app: Any, performance: bool) -> None:
    """Anything else is refused, with what it was, whatever the parts."""
    with pytest.raises(TypeError, match="callable") as caught:
        PerfKit(app, performance=performance)
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.subject == "PerfKit(app)"
    assert caught.value.value is app


@pytest.mark.parametrize("option", ["performence", "performances", "perf"])
def test_an_unknown_option_names_the_nearest(option: str) -> None:
    """A slip of the pen gets the option that was meant."""
    with pytest.raises(TypeError, match=f"{option}.*did you mean 'performance'") as caught:
        PerfKit(ok_app, **{option: True})
    assert isinstance(caught.value, ConfigurationError)


def test_an_unknown_option_like_no_other_names_all() -> None:
    """What is near to nothing gets the list."""
    with pytest.raises(TypeError, match=r"The options are: .*performance"):
        PerfKit(ok_app, colour="blue")


@pytest.mark.parametrize(
    ("option", "near"),
    [("max_serie", "max_series"), ("endpoints", "endpoint"), ("servertiming", "server_timing")],
)
def test_an_unknown_option_of_a_part_names_the_nearest(option: str, near: str) -> None:
    """In a dictionary of options too; the message says in which."""
    with pytest.raises(TypeError, match=f"{option}.*did you mean '{near}'") as caught:
        PerfKit(ok_app, performance={option: 1})
    assert isinstance(caught.value, ConfigurationError)
    assert "performance" in caught.value.subject


@pytest.mark.parametrize("option", ["app", "self"])
def test_the_app_is_no_option_of_a_part(option: str) -> None:
    """What the kit gives the middleware itself cannot be given again."""
    with pytest.raises(ConfigurationError, match="no such option"):
        PerfKit(ok_app, performance={option: ok_app})


def test_an_option_is_named_by_a_string() -> None:
    """A key that is no string is no option."""
    with pytest.raises(ConfigurationError, match="no such option"):
        PerfKit(ok_app, performance={1: 2})


@pytest.mark.parametrize("value", [None, 0, 1, "yes", ["memory"], Registry()])
def test_a_part_is_true_false_or_a_dictionary(value: Any) -> None:
    """What is merely true or false in some way is refused, with what is allowed."""
    with pytest.raises(TypeError, match="True, False, or a dictionary") as caught:
        PerfKit(ok_app, performance=value)
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.value is value


@pytest.mark.parametrize(
    ("option", "value", "builtin"),
    [
        ("max_series", -5, ValueError),
        ("max_series", 0, ValueError),
        ("max_series", "many", TypeError),
        ("max_series", True, TypeError),
        ("max_series", 1.5, TypeError),
        ("memory", "tracemalloc", ValueError),
        ("registry", {}, TypeError),
        ("endpoint", "/items", TypeError),
        ("server_timing", "yes", TypeError),
        ("server_timing", None, TypeError),
    ],
)
def test_a_wrong_value_fails_at_construction(
    option: str, value: Any, builtin: type[Exception]
) -> None:
    """A value that cannot be used is refused when the kit is made; the message names option and value."""
    with pytest.raises(builtin, match=option) as caught:
        PerfKit(ok_app, performance={option: value})
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.value is value
    assert repr(value) in str(caught.value)


def test_arguments_but_the_app_go_by_their_names() -> None:
    """A registry in the second place is no mistake that goes unseen."""
    with pytest.raises(TypeError):
        PerfKit(ok_app, Registry())  # type: ignore[misc]


def test_an_exception_comes_out_as_it_is(run: Any) -> None:
    """What the app raises reaches the server, the same object."""
    error = LookupError()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    for performance in (True, False):
        with pytest.raises(LookupError) as caught:
            run(request, PerfKit(app, performance=performance), "GET", "/")
        assert caught.value is error
    reset_performance_stats()
