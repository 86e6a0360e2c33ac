"""ResponseEncoderMiddleware: whose encoder it is, what stands around it and between, what wrong arguments get."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    ConfigurationError,
    Encoder,
    PerfKit,
    PerformanceMiddleware,
    Registry,
    ResponseEncoderMiddleware,
    add_task,
    dumps,
    get_performance_stats,
    measure,
)
from asgi_perfkit.steps import Account, current_account
from tests.encoding.decoding import decompressed
from tests.support import (
    BODY,
    START,
    App,
    Message,
    Scope,
    Trouble,
    finish,
    http_scope,
    saying,
    the_figures,
    together,
    websocket_scope,
)


class Money:
    """What no encoder knows of itself."""


def encoding(text: str) -> dict[type, Callable[[Any], Any]]:
    return {Money: lambda money: text}


class Hearer:
    """A server that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Message] = []

    async def send(self, message: Message) -> None:
        self.heard.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.heard[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.heard[1:])


async def call(app: App, scope: Scope | None = None) -> Hearer:
    server = Hearer()
    await app(http_scope() if scope is None else scope, None, server.send)
    return server


async def telling_app(scope: Scope, receive: Any, send: Any) -> None:
    """Answer with the JSON of what only a custom encoder can encode."""
    await send(START)
    await send({**BODY, "body": dumps(Money())})


def closure(app: App) -> App:
    """A middleware as anybody writes it: with a `send` of its own."""

    async def middleware(scope: Scope, receive: Any, send: Any) -> None:
        async def pass_on(message: Message) -> None:
            await send(message)

        await app(scope, receive, pass_on)

    return middleware


# ---- whose encoder


def wrappers(encoder: Encoder) -> list[Callable[[App], App]]:
    """The ways to put the middleware around an app."""
    return [
        lambda app: ResponseEncoderMiddleware(app, encoder=encoder),
        lambda app: PerfKit(app, encoder={"encoder": encoder}),
        lambda app: PerfKit(
            app, performance=False, background=False, resources=False, encoder={"encoder": encoder}
        ),
        lambda app: BackgroundTaskMiddleware(ResponseEncoderMiddleware(app, encoder=encoder)),
        lambda app: ResponseEncoderMiddleware(PerformanceMiddleware(app), encoder=encoder),
        lambda app: PerfKit(app, encoder={"encoder": encoder, "compression": ("gzip",)}),
    ]


@pytest.mark.parametrize("number", range(len(wrappers(Encoder()))))
def test_the_app_has_the_encoder_that_was_given(run: Any, number: int) -> None:
    """Alone, in the stack, with or without anything around it or inside."""
    wrap = wrappers(Encoder(custom_encoders=encoding("mine")))[number]
    assert run(call, wrap(telling_app)).body == b'"mine"'


def test_custom_encoders_are_an_encoder(run: Any) -> None:
    app = ResponseEncoderMiddleware(telling_app, custom_encoders=encoding("short"))
    assert run(call, app).body == b'"short"'
    assert isinstance(app.encoder, Encoder)


def test_child_tasks_have_it_and_nobody_else(run: Any) -> None:
    """Two apps at once each have their own; where no request is, the default one is taken."""
    bodies = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        async def child() -> None:
            await telling_app(scope, receive, send)

        await together(child)

    async def main() -> None:
        async def one(text: str) -> None:
            wrapped = ResponseEncoderMiddleware(app, custom_encoders=encoding(text))
            bodies.append((await call(wrapped)).body)

        await together(lambda: one("a"), lambda: one("b"))
        with pytest.raises(TypeError):
            dumps(Money())

    run(main)
    assert sorted(bodies) == [b'"a"', b'"b"']


@pytest.mark.parametrize("between", [lambda app: app, closure])
def test_the_innermost_encoder_is_the_one(run: Any, between: Callable[[App], App]) -> None:
    """An app that is mounted in another brings its own."""
    inner = ResponseEncoderMiddleware(telling_app, custom_encoders=encoding("inner"))
    outer = ResponseEncoderMiddleware(between(inner), custom_encoders=encoding("outer"))
    assert run(call, outer).body == b'"inner"'


def test_a_websocket_has_it_too(run: Any) -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": dumps(Money())})

    wrapped = ResponseEncoderMiddleware(
        app, custom_encoders=encoding("mine"), compression=("gzip",)
    )
    assert run(call, wrapped, websocket_scope()).heard == [
        {"type": "websocket.accept"},
        {"type": "websocket.send", "bytes": b'"mine"'},
    ]


def test_a_background_task_has_it_too(run: Any) -> None:
    """Also where the exchange is the middleware's own, which is over by then."""
    told = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        add_task(lambda: told.append(dumps(Money())))
        await telling_app(scope, receive, send)

    for wrapped in (
        PerfKit(app, encoder={"custom_encoders": encoding("mine")}),
        ResponseEncoderMiddleware(BackgroundTaskMiddleware(app), custom_encoders=encoding("mine")),
    ):
        run(call, wrapped)
    assert told == [b'"mine"'] * 2


# ---- the exchange


def test_with_its_defaults_it_is_not_there(run: Any) -> None:
    """The app has the server's own objects, and no exchange is opened."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send, current_account.get()))

    async def send(message: Message) -> None: ...

    async def receive() -> Any: ...

    scope = http_scope(headers=[(b"accept-encoding", b"gzip")])
    off: list[Any] = [
        ResponseEncoderMiddleware(app),
        ResponseEncoderMiddleware(app, compression=False, minimum_size=0),
        PerfKit(app, performance=False, background=False, resources=False),
        PerfKit(app, performance=False, background=False, resources=False, encoder=False),
    ]
    for each in off:
        run(each, scope, receive, send)
    assert seen == [(scope, receive, send, None)] * len(off)


def test_the_default_kit_does_not_compress(run: Any) -> None:
    """A client sees no difference."""
    last = {**BODY, "body": b"x" * 10_000}
    scope = http_scope(headers=[(b"accept-encoding", b"gzip, br, zstd")])
    assert run(call, PerfKit(saying(START, last)), scope).heard == [START, last]


def test_an_open_exchange_is_used(run: Any) -> None:
    """No second one is opened where the kit's `send` comes in."""
    accounts = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        accounts.append(current_account.get())
        await telling_app(scope, receive, send)

    async def inspecting(scope: Scope, receive: Any, send: Any) -> None:
        accounts.append(current_account.get())
        await ResponseEncoderMiddleware(app, custom_encoders=encoding("a"))(scope, receive, send)

    run(call, PerformanceMiddleware(inspecting, registry=Registry()))
    assert accounts[0] is accounts[1] is not None


def test_the_exchange_of_a_request_that_is_over_is_not_used(run: Any) -> None:
    """A `send` may outlive its request, in a task that goes on: the app still has its encoder."""
    sends = []

    async def keeping(scope: Scope, receive: Any, send: Any) -> None:
        sends.append(send)

    async def main() -> bytes:
        server = Hearer()
        await PerformanceMiddleware(keeping, registry=Registry())(http_scope(), None, server.send)
        app = ResponseEncoderMiddleware(telling_app, custom_encoders=encoding("late"))
        await app(http_scope(), None, sends[0])
        return server.body

    assert run(main) == b'"late"'


def test_its_own_exchange_is_closed(run: Any) -> None:
    """Afterwards nothing is current, however the app ends; the exception is the same object."""
    trouble = Trouble()

    async def failing(scope: Scope, receive: Any, send: Any) -> None:
        raise trouble

    def failing_at_once(scope: Scope, receive: Any, send: Any) -> Any:
        raise trouble

    async def main() -> None:
        for app in (failing, failing_at_once):
            with pytest.raises(Trouble) as caught:
                await call(ResponseEncoderMiddleware(app, encoder=Encoder()))
            assert caught.value is trouble
            assert current_account.get() is None
        await call(ResponseEncoderMiddleware(telling_app, custom_encoders=encoding("a")))
        assert current_account.get() is None

    run(main)


def test_a_call_that_is_closed_leaves_the_context_to_others() -> None:
    """A coroutine that is closed by a garbage collection ends in any context."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send(START)

    async def never(message: Message) -> None:
        class Wait:
            def __await__(self) -> Any:
                yield

        await Wait()

    middleware = ResponseEncoderMiddleware(app, encoder=Encoder())
    coroutine = middleware(http_scope(), None, never)
    coroutine.send(None)
    account = current_account.get()
    assert account is not None
    other = Account()
    current_account.set(other)
    coroutine.close()
    assert account.closed
    assert current_account.get() is other
    current_account.set(None)


@pytest.mark.parametrize("times", [1, 700])  # so many are counted before the end
def test_what_is_measured_inside_belongs_to_the_request_around(run: Any, times: int) -> None:
    """Where something between has put up its own `send`: the request is recorded further out."""
    registry = Registry()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        for _ in range(times):
            with measure("part"):
                pass
        await telling_app(scope, receive, send)

    inner = ResponseEncoderMiddleware(app, custom_encoders=encoding("a"))
    run(call, PerformanceMiddleware(closure(inner), registry=registry))
    figures = the_figures(registry)
    assert figures["part"]["count"] == times
    assert figures["serialization_time"]["count"] == 1


def test_so_does_what_comes_late(run: Any) -> None:
    """What a task has to tell when its request is over."""
    registry = Registry()
    accounts = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        accounts.append(current_account.get())
        await telling_app(scope, receive, send)

    inner = ResponseEncoderMiddleware(app, custom_encoders=encoding("a"))
    run(call, PerformanceMiddleware(closure(inner), registry=registry))
    (account,) = accounts
    assert account is not None
    account.observe("part", 1_000)
    account.observe_many("part", [2_000, 3_000])
    assert the_figures(registry)["part"]["sum"] == pytest.approx(6e-6)


def test_what_a_middleware_inside_records_is_recorded_once(run: Any) -> None:
    """It has the exchange of the encoder's, and what is observed in it."""
    registry = Registry()
    inner = PerformanceMiddleware(telling_app, registry=registry)
    run(call, ResponseEncoderMiddleware(inner, custom_encoders=encoding("a")))
    figures = the_figures(registry)
    assert figures["serialization_time"]["count"] == figures["total_time"]["count"] == 1


def test_it_needs_no_loop() -> None:
    """Who drives the coroutine himself may."""
    app = ResponseEncoderMiddleware(
        saying(START, BODY), encoder=Encoder(), compression=("gzip",), minimum_size=1
    )
    server = Hearer()
    scope = http_scope(headers=[(b"accept-encoding", b"gzip, identity;q=0")])
    finish(app(scope, None, server.send))
    assert decompressed("gzip", server.body) == b"done"


# ---- what stands between

ROWS = [{"id": number, "price": Decimal("24.50"), "money": Money()} for number in range(50)]


async def rows(request: Request) -> Response:
    return Response(dumps(ROWS), media_type="application/json")


async def streamed(request: Request) -> Response:
    async def parts() -> Any:
        for row in ROWS:
            yield dumps(row) + b"\n"

    return StreamingResponse(parts(), media_type="application/x-ndjson")


class Base(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-base"] = "1"
        return response


BETWEEN = {
    "BaseHTTPMiddleware": [Middleware(Base)],
    "CORS": [Middleware(CORSMiddleware, allow_origins=["https://a.example"])],
    "GZip": [Middleware(GZipMiddleware)],
    "all": [
        Middleware(Base),
        Middleware(GZipMiddleware),
        Middleware(CORSMiddleware, allow_origins=["https://a.example"]),
        Middleware(Base),
    ],
}
OPTIONS: dict[str, Any] = {
    "custom_encoders": {Money: lambda money: "m", Decimal: float},
    "compression": ("gzip",),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("outside", [True, False], ids=["around them", "inside of them"])
@pytest.mark.parametrize("path", ["/rows", "/streamed"])
def test_with_starlettes_middlewares(
    run: Any, between: list[Middleware], outside: bool, path: str
) -> None:
    """Around them or inside: the app's encoder is known, and the body is compressed once."""
    registry = Registry()
    routes = [Route("/rows", rows), Route("/streamed", streamed)]
    app: Any
    if outside:
        app = Starlette(routes=routes, middleware=between)
        app = PerfKit(app, performance={"registry": registry}, encoder=OPTIONS)
    else:
        inner = Middleware(ResponseEncoderMiddleware, **OPTIONS)
        app = Starlette(routes=routes, middleware=[*between, inner])
        app = PerfKit(app, performance={"registry": registry})
    headers = [
        (b"host", b"testserver"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"origin", b"https://a.example"),
    ]
    server = run(call, app, http_scope(path, headers=headers))
    assert server.headers[b"content-encoding"] == b"gzip"
    vary = b", ".join(value for name, value in server.heard[0]["headers"] if name == b"vary")
    assert vary.lower().count(b"accept-encoding") == 1
    lines = [dumps_by_hand(number) for number in range(50)]
    expected = b"[" + b",".join(lines) + b"]" if path == "/rows" else b"\n".join([*lines, b""])
    assert decompressed("gzip", server.body) == expected
    if b"content-length" in server.headers:
        assert int(server.headers[b"content-length"]) == len(server.body)
    figures = the_figures(registry)
    assert figures["response_size"]["sum"] == len(server.body)
    assert figures["serialization_time"]["count"] == (1 if path == "/rows" else 50)
    by_starlette = outside and any(each.cls is GZipMiddleware for each in between)
    assert ("compression_ratio" in figures) is not by_starlette


def dumps_by_hand(number: int) -> bytes:
    return b'{"id":%d,"price":24.5,"money":"m"}' % number


def test_a_mounted_app_has_its_own_settings(run: Any) -> None:
    """One part of an app may be compressed, and another not."""
    part = ResponseEncoderMiddleware(Starlette(routes=[Route("/rows", rows)]), **OPTIONS)
    app = Starlette(routes=[Mount("/part", part), Route("/rows", rows)])
    scope = http_scope("/part/rows", headers=[(b"accept-encoding", b"gzip")])
    server = run(call, PerfKit(app), scope)
    assert decompressed("gzip", server.body).startswith(b'[{"id":0')


# ---- arguments


@pytest.mark.parametrize(
    ("options", "builtin", "subject"),
    [
        ({"encoder": dumps}, TypeError, "encoder"),
        ({"encoder": {}}, TypeError, "encoder"),
        ({"encoder": Encoder(), "custom_encoders": {}}, TypeError, "custom_encoders"),
        ({"compression": "gzip"}, TypeError, "compression"),
        ({"compression": 9}, TypeError, "compression"),
        ({"compression": ["gzip", "lzma"]}, ValueError, "compression"),
        ({"minimum_size": -1}, ValueError, "minimum_size"),
        ({"minimum_size": 0.5}, TypeError, "minimum_size"),
        ({"minimum_size": True}, TypeError, "minimum_size"),
        ({"minimum_size": None}, TypeError, "minimum_size"),
    ],
)
def test_a_wrong_argument_fails_at_construction(
    options: dict[str, Any], builtin: type[Exception], subject: str
) -> None:
    """The message names the argument, of the middleware and of the kit."""
    for make in (
        lambda: ResponseEncoderMiddleware(telling_app, **options),
        lambda: PerfKit(telling_app, encoder=options),
    ):
        with pytest.raises(builtin) as caught:
            make()
        assert isinstance(caught.value, ConfigurationError)
        assert caught.value.subject == f"ResponseEncoderMiddleware({subject}=...)"


@pytest.mark.parametrize("app", [None, "module:app", 5])
def test_an_app_is_a_callable(app: Any) -> None:
    with pytest.raises(TypeError, match="callable") as caught:
        ResponseEncoderMiddleware(app)
    assert isinstance(caught.value, ConfigurationError)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'compression'"):
        PerfKit(telling_app, encoder={"compress": True})
    with pytest.raises(TypeError, match="did you mean 'encoder'"):
        PerfKit(telling_app, encode=True)


def test_a_double_callable_app(run: Any) -> None:
    def app(scope: Scope) -> Any:
        async def instance(receive: Any, send: Any) -> None:
            await telling_app(scope, receive, send)

        return instance

    wrapped = ResponseEncoderMiddleware(app, custom_encoders=encoding("two"))
    assert run(call, wrapped).body == b'"two"'


def test_the_figures_are_the_kits_own() -> None:
    """Nobody else may use the names."""
    for name in ("compression_time", "compression_ratio"):
        with pytest.raises(ConfigurationError, match="metric of that name"):
            measure(name)
    assert "compression_time" not in get_performance_stats(registry=Registry())
