"""Endpoint names of the frameworks whose routers leave their marks in the scope, and of bare apps."""

from __future__ import annotations

import asyncio
import random
import string
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import litestar
import litestar.exceptions
import pytest
from fastapi import APIRouter, FastAPI, HTTPException
from fastapi import WebSocket as FastAPIWebSocket
from litestar import Litestar
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.httpsredirect import HTTPSRedirectMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from asgi_perfkit import PerformanceMiddleware, Registry
from asgi_perfkit.middleware.routes import route_template
from tests.metrics.driver import endpoint, raw_app, request, scanner_paths, statuses, visit

UNMATCHED = "<unmatched>"
UUID_ = "0e2a0b6c-5d6f-4b0e-9a51-0a1b2c3d4e5f"


def words(number: int) -> list[str]:
    """Words that are in no template."""
    dice = random.Random(7)
    return ["zz" + "".join(dice.choices(string.ascii_lowercase, k=8)) for _ in range(number)]


# ---- Starlette


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


async def gone(request: Request) -> Response:
    raise StarletteHTTPException(404)


def threaded(request: Request) -> Response:
    return PlainTextResponse("ok")


async def broken(request: Request) -> Response:
    raise LookupError


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.receive_text()
    await websocket.close()


async def dispatch(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


BASE_HTTP = Middleware(BaseHTTPMiddleware, dispatch=dispatch)
INNER = [
    Route("/", ok),
    Route("/items/{item_id:int}", ok, methods=["GET", "PUT"]),
    Route("/{name}", ok),
    Route("/gone/{name}", gone),
    WebSocketRoute("/ws/{room}", talk),
]
STARLETTE = Starlette(
    routes=[
        Route("/", ok),
        Route("/items/{item_id:int}", ok, methods=["GET", "PUT"]),
        Route("/threaded/{name}", threaded),
        Route("/number/{x:float}", ok),
        Route("/uuid/{x:uuid}", ok),
        Route("/files/{x:path}", ok),
        Route("/two/{x}-{y}", ok),
        Route("/slash/", ok),
        Route("/gone/{name}", gone),
        Route("/broken", broken),
        WebSocketRoute("/ws/{room}", talk),
        Mount("/plain", routes=INNER),
        Mount("/sub/{t}", routes=INNER),
        Mount("/a/{a}/b/{b}", routes=[Mount("/c/{c}", routes=INNER)]),
        Mount("/same/{x}/same/{y}", routes=INNER),
        Mount("/int/{n:int}", routes=INNER),
        Mount("/float/{n:float}", routes=INNER),
        Mount("/uuids/{n:uuid}", routes=INNER),
        Mount("/path/{p:path}/end", routes=INNER),
        Mount("/shadow/{name}", routes=INNER),
        Mount("/app/{t}", app=Starlette(routes=INNER)),
        Mount("/wrapped/{t}", routes=INNER, middleware=[BASE_HTTP, Middleware(GZipMiddleware)]),
        Mount("/deep/{t}", routes=[Mount("/raw/{u}", app=raw_app)]),
        Mount("/raw", app=raw_app),
        Mount("/rawp/{t}", app=GZipMiddleware(raw_app)),
        Host("{tenant}.example.org", app=Router(INNER)),
    ]
)


@pytest.mark.parametrize(
    ("line", "name", "status"),
    [
        ("GET /", "/", 200),
        ("GET /items/3", "/items/{item_id}", 200),
        ("HEAD /items/3", "/items/{item_id}", 200),
        ("POST /items/3", "/items/{item_id}", 405),
        ("GET /items/x", UNMATCHED, 404),
        ("GET /threaded/x", "/threaded/{name}", 200),
        ("GET /number/1.50", "/number/{x}", 200),
        (f"GET /uuid/{UUID_}", "/uuid/{x}", 200),
        ("GET /files/a/b/c", "/files/{x}", 200),
        ("GET /two/a-b", "/two/{x}-{y}", 200),
        ("GET /slash/", "/slash/", 200),
        ("GET /slash", UNMATCHED, 307),
        ("GET /gone/x", "/gone/{name}", 404),
        ("GET /broken", "/broken", 500),
        ("GET /nope", UNMATCHED, 404),
        ("WEBSOCKET /ws/1", "/ws/{room}", 101),
        ("WEBSOCKET /nope", UNMATCHED, 403),
        # behind a mount
        ("GET /plain/items/3", "/plain/items/{item_id}", 200),
        ("GET /plain/", "/plain/", 200),
        ("GET /plain", UNMATCHED, 307),
        ("GET /sub/1/items/3", "/sub/{t}/items/{item_id}", 200),
        ("PUT /sub/1/items/3", "/sub/{t}/items/{item_id}", 200),
        ("POST /sub/1/items/3", "/sub/{t}/items/{item_id}", 405),
        ("GET /sub/1/gone/3", "/sub/{t}/gone/{name}", 404),
        ("GET /sub/1/nope/nope", UNMATCHED, 404),
        ("GET /sub/1/", "/sub/{t}/", 200),
        ("GET /sub/items/items/3", "/sub/{t}/items/{item_id}", 200),
        ("GET /sub/x/x", "/sub/{t}/{name}", 200),
        ("WEBSOCKET /sub/1/ws/2", "/sub/{t}/ws/{room}", 101),
        ("GET /a/1/b/2/c/3/items/4", "/a/{a}/b/{b}/c/{c}/items/{item_id}", 200),
        ("GET /a/x/b/x/c/x/items/4", "/a/{a}/b/{b}/c/{c}/items/{item_id}", 200),
        ("GET /int/7/items/3", "/int/{n}/items/{item_id}", 200),
        ("GET /float/7.5/items/3", "/float/{n}/items/{item_id}", 200),
        (f"GET /uuids/{UUID_}/items/3", "/uuids/{n}/items/{item_id}", 200),
        ("GET /path/x/end/items/3", "/path/{p}/end/items/{item_id}", 200),
        ("GET /app/1/items/3", "/app/{t}/items/{item_id}", 200),
        ("GET /app/1/nope/nope", UNMATCHED, 404),
        ("GET /wrapped/1/items/3", "/wrapped/{t}/items/{item_id}", 200),
        ("GET /wrapped/1/nope/nope", UNMATCHED, 404),
        # an app behind a mount that has no routes
        ("GET /raw/x/y", "/raw/{path}", 200),
        ("GET /raw/", "/raw/{path}", 200),
        ("GET /raw/missing", UNMATCHED, 404),
        ("GET /rawp/1/x", "/rawp/{t}/{path}", 200),
        ("GET /deep/1/raw/2/x", "/deep/{t}/raw/{u}/{path}", 200),
    ],
)
def test_starlette(line: str, name: str, status: int) -> None:
    """Starlette's endpoints are its routes' templates, behind those of their mounts."""
    method = line.split(" ", 1)[0]
    assert visit(STARLETTE, line) == {f"{method} {name}": {str(status): 1}}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/sub/sub/items/3", "/sub/{t}/items/{item_id}"),
        ("/a/a/b/b/c/c/items/3", "/a/{a}/b/{b}/c/{c}/items/{item_id}"),
        ("/a/b/b/c/c/a/items/3", "/a/{a}/b/{b}/c/{c}/items/{item_id}"),
        ("/same/same/same/same/items/3", "/same/{x}/same/{y}/items/{item_id}"),
        ("/same/a/same/same/items/3", "/same/{x}/same/{y}/items/{item_id}"),
        ("/app/app/items/3", "/app/{t}/items/{item_id}"),
        ("/path/path/end/items/3", "/path/{p}/end/items/{item_id}"),
        ("/deep/raw/raw/deep/x", "/deep/{t}/raw/{u}/{path}"),
    ],
)
def test_a_value_that_is_like_a_part_of_the_template(line: str, name: str) -> None:
    """A parameter of a mount that has the same text as a fixed part is still found in its place."""
    assert endpoint(STARLETTE, f"GET {line}") == f"GET {name}"


@pytest.mark.parametrize(
    "line",
    [
        "/int/{}/items/3",
        "/float/{}/items/3",
        "/uuids/{}/items/3",
    ],
)
def test_other_spellings_of_a_value_make_few_names(line: str) -> None:
    """A number with leading zeros, a UUID without dashes: told as the parameter, or folded; never as they are."""
    spellings = [
        "7",
        "7.5",
        "007",
        "0" * 30 + "7",
        "07.50",
        "7.000",
        UUID_,
        UUID_.replace("-", ""),
        UUID_.upper(),
    ]
    labels = set(visit(STARLETTE, *(f"GET {line.format(value)}" for value in spellings)))
    kind = line.split("/")[1]
    assert labels - {f"GET {UNMATCHED}"} <= {
        f"GET /{kind}/{{n}}/items/{{item_id}}",
        f"GET /{kind}/{{id}}/items/{{item_id}}",
    }
    assert f"GET /{kind}/{{n}}/items/{{item_id}}" in labels


@pytest.mark.parametrize(
    "line",
    [
        "/sub/{}/items/3",
        "/path/{}/end/items/3",
        "/path/{}/{}/end/items/3",
        "/path/{}/{}/{}/{}/end/x",
        "/shadow/{}/{}",
        "/raw/{}/{}",
        "/rawp/{}/x",
        "/deep/{}/raw/{}/x",
        "/files/{}/{}",
        "/two/{}-{}",
    ],
)
def test_a_client_cannot_make_names_of_values(line: str) -> None:
    """Whatever words a client puts in the place of parameters, they make one endpoint and are not in its name."""
    lines = [f"GET {line.replace('{}', word)}" for word in words(50)]
    lines += [line.replace("zz", "zy", 1) for line in lines]
    labels = visit(STARLETTE, *lines)
    assert len(labels) == 1
    (label,) = labels
    assert "zz" not in label
    assert "zy" not in label


def test_starlette_by_host() -> None:
    """A host is no part of the name, whatever it is."""
    for host in (b"a.example.org", b"b.example.org"):
        lines = visit(STARLETTE, "GET /items/3", "GET /x/y/z", headers=[(b"host", host)])
        assert lines.keys() == {"GET /items/{item_id}", f"GET {UNMATCHED}"}


@pytest.mark.parametrize("root_path", ["", "/proxy", "/proxy/v7/zz"])
def test_the_root_path_of_the_server_is_no_part_of_a_name(root_path: str) -> None:
    """Where a proxy has put the app does not show."""
    lines = [f"GET {root_path}{path}" for path in ("/items/3", "/sub/1/items/3", "/raw/x", "/nope")]
    assert list(visit(STARLETTE, *lines, root_path=root_path)) == [
        "GET /items/{item_id}",
        "GET /sub/{t}/items/{item_id}",
        "GET /raw/{path}",
        f"GET {UNMATCHED}",
    ]


def test_static_files(tmp_path: Path) -> None:
    """All files of a directory are one endpoint, and those that are not there are unmatched."""
    (tmp_path / "a.css").write_text("a {}")
    (tmp_path / "b.css").write_text("b {}")
    app = Starlette(routes=[Mount("/static", app=StaticFiles(directory=tmp_path))])
    lines = ["GET /static/a.css", "GET /static/b.css", "GET /static/c.css", "POST /static/a.css"]
    assert visit(app, *lines) == {
        "GET /static/{path}": {"200": 2},
        f"GET {UNMATCHED}": {"404": 1},
        "POST /static/{path}": {"405": 1},
    }


def test_middleware_around_the_app_changes_no_name() -> None:
    """Middlewares between the kit and the router, Starlette's own or others, in tasks of their own or not."""
    app = Starlette(routes=[Mount("/sub/{t}", routes=INNER)], middleware=[BASE_HTTP])
    for wrapped in (app, GZipMiddleware(app), BaseHTTPMiddleware(app, dispatch=dispatch)):
        assert endpoint(wrapped, "GET /sub/1/items/3") == "GET /sub/{t}/items/{item_id}"


@pytest.mark.parametrize(
    "layer",
    [
        Middleware(CORSMiddleware, allow_origins=["*"]),
        Middleware(HTTPSRedirectMiddleware),
        Middleware(TrustedHostMiddleware, allowed_hosts=["another"]),
    ],
    ids=["cors", "https", "host"],
)
@pytest.mark.parametrize("framework", [Starlette, FastAPI])
def test_an_answer_before_the_router_is_unmatched(framework: Any, layer: Middleware) -> None:
    """What a layer of the framework answers by itself makes no names of paths."""
    headers = [
        (b"host", b"testserver"),
        (b"origin", b"http://elsewhere"),
        (b"access-control-request-method", b"GET"),
    ]
    app = framework(middleware=[layer])
    lines = [f"OPTIONS /{word}" for word in words(20)]
    assert set(visit(app, *lines, headers=headers)) == {"OPTIONS <unmatched>"}


def test_added_with_add_middleware() -> None:
    """The kit inside of Starlette's own middlewares finds the same names."""
    registry = Registry()
    app = Starlette(routes=[Route("/items/{item_id:int}", ok), Mount("/sub/{t}", routes=INNER)])
    app.add_middleware(PerformanceMiddleware, registry=registry)
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    for path in ("/items/3", "/sub/1/items/3", "/nope"):
        asyncio.run(request(app, "GET", path))
    assert list(statuses(registry)) == [
        "GET /items/{item_id}",
        "GET /sub/{t}/items/{item_id}",
        f"GET {UNMATCHED}",
    ]


# ---- FastAPI

items = APIRouter(prefix="/items")


@items.get("/")
async def all_items() -> int:
    return 1


@items.get("/{item_id}")
async def item(item_id: int) -> int:
    if item_id == 9:
        raise HTTPException(404)
    return item_id


@items.get("/threaded/{name}")
def threaded_item(name: str) -> int:
    return 1


@items.websocket("/{item_id}/ws")
async def item_ws(websocket: FastAPIWebSocket, item_id: int) -> None:
    await talk(websocket)


shop = APIRouter(prefix="/shop/{shop_id}")
shop.include_router(items)
tenant = APIRouter()
tenant.include_router(shop, prefix="/v/{version}")


async def plain(request: Request) -> PlainTextResponse:
    return PlainTextResponse("plain")


tenant.add_route("/plain/{name}", plain)  # a route of Starlette's in a router of FastAPI's
sub_app = FastAPI()
sub_app.include_router(shop)


@sub_app.websocket("/ws/{room}")
async def room_ws(websocket: FastAPIWebSocket, room: str) -> None:
    await talk(websocket)


def fastapi_app(**options: Any) -> FastAPI:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `root_path` as an argument is deprecated, and still used
        app = FastAPI(**options)
    app.include_router(items)
    app.include_router(shop)
    app.include_router(tenant, prefix="/t/{tenant}")
    app.websocket("/ws/{room}")(room_ws)
    app.mount("/sub", sub_app)
    app.mount("/subs/{sub}", sub_app)
    app.mount("/wrapped/{sub}", GZipMiddleware(sub_app))
    app.mount("/raw", raw_app)
    app.mount("/raws/{raw}", raw_app)
    return app


FASTAPI = fastapi_app()


@pytest.mark.parametrize(
    ("line", "name", "status"),
    [
        ("GET /items/3", "/items/{item_id}", 200),
        ("GET /items/9", "/items/{item_id}", 404),
        ("GET /items/x", "/items/{item_id}", 422),
        ("PUT /items/3", "/items/{item_id}", 405),
        ("GET /items/", "/items/", 200),
        ("GET /items", UNMATCHED, 307),
        ("GET /items/threaded/x", "/items/threaded/{name}", 200),
        ("GET /nope", UNMATCHED, 404),
        ("WEBSOCKET /ws/1", "/ws/{room}", 101),
        ("WEBSOCKET /nope", UNMATCHED, 403),
        ("GET /docs", "/docs", 200),
        ("GET /openapi.json", "/openapi.json", 200),
        # included routers, with parameters in their prefixes
        ("GET /shop/1/items/3", "/shop/{shop_id}/items/{item_id}", 200),
        ("GET /shop/items/items/3", "/shop/{shop_id}/items/{item_id}", 200),
        ("GET /shop/1/items/x", "/shop/{shop_id}/items/{item_id}", 422),
        ("PUT /shop/1/items/3", "/shop/{shop_id}/items/{item_id}", 405),
        (
            "GET /t/1/v/2/shop/3/items/4",
            "/t/{tenant}/v/{version}/shop/{shop_id}/items/{item_id}",
            200,
        ),
        (
            "GET /t/v/v/t/shop/v/items/4",
            "/t/{tenant}/v/{version}/shop/{shop_id}/items/{item_id}",
            200,
        ),
        ("GET /t/1/plain/x", "/t/{tenant}/plain/{name}", 200),
        ("PUT /t/1/plain/x", "/t/{tenant}/plain/{name}", 405),
        ("WEBSOCKET /items/1/ws", "/items/{item_id}/ws", 101),
        ("WEBSOCKET /shop/1/items/2/ws", "/shop/{shop_id}/items/{item_id}/ws", 101),
        # mounted apps
        ("GET /sub/shop/1/items/3", "/sub/shop/{shop_id}/items/{item_id}", 200),
        ("PUT /sub/shop/1/items/3", "/sub/shop/{shop_id}/items/{item_id}", 405),
        ("GET /sub/nope", UNMATCHED, 404),
        ("GET /subs/1/shop/2/items/3", "/subs/{sub}/shop/{shop_id}/items/{item_id}", 200),
        ("GET /subs/1/nope", UNMATCHED, 404),
        ("WEBSOCKET /subs/1/ws/2", "/subs/{sub}/ws/{room}", 101),
        ("GET /wrapped/1/shop/2/items/3", "/wrapped/{sub}/shop/{shop_id}/items/{item_id}", 200),
        ("GET /raw/x/y", "/raw/{path}", 200),
        ("GET /raw/missing", UNMATCHED, 404),
        ("GET /raws/1/x", "/raws/{raw}/{path}", 200),
    ],
)
def test_fastapi(line: str, name: str, status: int) -> None:
    """FastAPI's endpoints are its routes' templates, with the prefixes they were included with."""
    method = line.split(" ", 1)[0]
    assert visit(FASTAPI, line) == {f"{method} {name}": {str(status): 1}}


@pytest.mark.parametrize("in_path", [True, False])
def test_fastapi_with_a_root_path_of_its_own(in_path: bool) -> None:
    """FastAPI(root_path=...) does not show in names, whether the proxy strips it from the path or not."""
    app = fastapi_app(root_path="/api/v7")
    prefix = "/api/v7" if in_path else ""
    lines = [f"GET {prefix}{path}" for path in ("/items/3", "/shop/1/items/3", "/nope")]
    assert list(visit(app, *lines)) == [
        "GET /items/{item_id}",
        "GET /shop/{shop_id}/items/{item_id}",
        f"GET {UNMATCHED}",
    ]
    line = "GET /api/v7/subs/1/shop/2/items/3"
    assert endpoint(app, line) == "GET /subs/{sub}/shop/{shop_id}/items/{item_id}"
    assert endpoint(app, line, root_path="/api/v7") == endpoint(app, line)


def test_fastapi_under_middleware() -> None:
    """Middlewares added to the app change no name."""
    app = fastapi_app()
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_middleware(GZipMiddleware)
    lines = ["GET /shop/1/items/3", "GET /subs/1/shop/2/items/3", "GET /nope"]
    assert list(visit(app, *lines)) == [
        "GET /shop/{shop_id}/items/{item_id}",
        "GET /subs/{sub}/shop/{shop_id}/items/{item_id}",
        f"GET {UNMATCHED}",
    ]


# ---- Litestar


@litestar.get("/", sync_to_thread=False)
def root() -> int:
    return 1


@litestar.get(["/items/{item_id:int}", "/files/{name:path}", "/uuid/{x:uuid}"])
async def litestar_item() -> int:
    return 1


@litestar.get("/gone/{x:str}")
async def litestar_gone() -> int:
    raise litestar.exceptions.NotFoundException


@litestar.get("/broken")
async def litestar_broken() -> int:
    raise LookupError


@litestar.asgi("/raw", is_mount=True, copy_scope=True)
async def litestar_raw(scope: Any, receive: Any, send: Any) -> None:
    await raw_app(scope, receive, send)


@litestar.asgi("/asgi", copy_scope=True)
async def litestar_asgi(scope: Any, receive: Any, send: Any) -> None:
    await raw_app(scope, receive, send)


@litestar.websocket("/ws/{room:str}")
async def litestar_ws(socket: litestar.WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await socket.receive_text()
    await socket.close()


DEEP = litestar.Router("/deep/{d:str}", route_handlers=[litestar_item, root])
SHOP = litestar.Router("/shop/{shop_id:int}", route_handlers=[litestar_item, DEEP])
LITESTAR = Litestar(
    [
        root,
        litestar_item,
        litestar_gone,
        litestar_broken,
        litestar_raw,
        litestar_asgi,
        litestar_ws,
        SHOP,
    ],
    openapi_config=None,
    logging_config=None,
)


@pytest.mark.parametrize(
    ("line", "name", "status"),
    [
        ("GET /", "/", 200),
        ("GET /items/3", "/items/{item_id}", 200),
        ("GET /items/3/", "/items/{item_id}", 200),
        ("GET /items/x", UNMATCHED, 404),
        ("PUT /items/3", UNMATCHED, 405),  # Litestar does not say which route it was
        ("OPTIONS /items/3", "/items/{item_id}", 204),
        ("GET /files/a/b/c", "/files/{name}", 200),
        (f"GET /uuid/{UUID_}", "/uuid/{x}", 200),
        ("GET /gone/x", "/gone/{x}", 404),
        ("GET /broken", "/broken", 500),
        ("GET /nope", UNMATCHED, 404),
        ("GET /raw/x/y", "/raw/{path}", 200),
        ("GET /raw", "/raw/{path}", 200),
        ("GET /raw/missing", UNMATCHED, 404),
        ("GET /asgi", "/asgi", 200),
        ("GET /shop/1/items/3", "/shop/{shop_id}/items/{item_id}", 200),
        ("GET /shop/1/deep/deep/items/3", "/shop/{shop_id}/deep/{d}/items/{item_id}", 200),
        ("GET /shop/1/deep/x", "/shop/{shop_id}/deep/{d}", 200),
        ("GET /shop/1/nope", UNMATCHED, 404),
        ("WEBSOCKET /ws/1", "/ws/{room}", 101),
        ("WEBSOCKET /nope", UNMATCHED, 403),
    ],
)
def test_litestar(line: str, name: str, status: int) -> None:
    """Litestar's endpoints are its routes' templates, without the types of their parameters."""
    method = line.split(" ", 1)[0]
    assert visit(LITESTAR, line) == {f"{method} {name}": {str(status): 1}}


def test_litestar_with_a_path_of_its_own() -> None:
    """The path that a whole app is put under is part of the template."""
    app = Litestar([litestar_item], path="/base/{b:str}", openapi_config=None, logging_config=None)
    assert endpoint(app, "GET /base/x/items/3") == "GET /base/{b}/items/{item_id}"


# ---- bare apps


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("GET /", "/"),
        ("GET /users", "/users"),
        ("GET /users/8137/orders/b51f7c9e", "/users/{id}/orders/{id}"),
        ("GET /missing/8137", UNMATCHED),
        ("DELETE /v1/items/8137/", "/v1/items/{id}/"),
        ("BREW /users", "/users"),
    ],
)
def test_a_bare_app_is_named_by_folded_paths(line: str, name: str) -> None:
    """Without a router, the path with its data folded; what the app does not know is unmatched."""
    assert (
        endpoint(raw_app, line)
        == f"{line.split(' ', maxsplit=1)[0].replace('BREW', 'OTHER')} {name}"
    )


# ---- nobody makes names


@pytest.mark.parametrize(
    ("app", "prefixes", "bound"),
    [
        (
            STARLETTE,
            ["/sub/1", "/a/x/b/y/c/z", "/path/x", "/shadow/x", "/raw", "/int/7", "/files"],
            40,
        ),
        (FASTAPI, ["/items", "/shop/1/items", "/subs/1", "/raw", "/t/1/v/2/shop"], 20),
        (LITESTAR, ["/items", "/shop/1/deep", "/files", "/raw", "/gone"], 16),
    ],
    ids=["starlette", "fastapi", "litestar"],
)
def test_a_scanner_makes_no_names(app: Any, prefixes: list[str], bound: int) -> None:
    """Two thousand paths that nobody planned come to a few endpoints, all of them templates."""
    labels = visit(app, *(f"GET {path}" for path in scanner_paths(*prefixes)))
    assert sum(sum(row.values()) for row in labels.values()) == 2_000
    assert len(labels) <= bound


def test_a_scanner_makes_no_names_of_a_bare_app() -> None:
    """Paths that a bare app does not know are one endpoint."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await raw_app({**scope, "path": "missing"}, receive, send)

    assert visit(app, *(f"GET {path}" for path in scanner_paths())) == {
        f"GET {UNMATCHED}": {"404": 2_000}
    }


# ---- marks that are not as expected


@pytest.mark.parametrize(
    ("marks", "status", "name"),
    [
        ({}, 200, "/a/{id}"),
        ({}, 404, UNMATCHED),
        ({}, None, "/a/{id}"),
        ({"router": object()}, 200, UNMATCHED),
        ({"route": object()}, 200, UNMATCHED),
        ({"route": SimpleNamespace(path_format=None)}, 200, UNMATCHED),
        ({"route": SimpleNamespace(path_format="/x/{y}")}, 404, "/x/{y}"),
        ({"route": SimpleNamespace(path_format="/x"), "app_root_path": ""}, 200, "/x"),
        ({"route": SimpleNamespace(path_format="/x"), "fastapi": {}}, 200, "/x"),
        ({"litestar_app": object(), "path_template": "/x/{y}"}, 200, "/x/{y}"),
        ({"litestar_app": object()}, 405, UNMATCHED),
        ({"litestar_app": object(), "path_template": ""}, 200, UNMATCHED),
        (
            {
                "litestar_app": object(),
                "path_template": "",
                "route_handler": SimpleNamespace(paths={"/raw", "/raw/x"}),
            },
            200,
            "/raw/{path}",
        ),
    ],
)
def test_marks_that_are_incomplete(marks: dict[str, Any], status: int | None, name: str) -> None:
    """What another version, or another framework, leaves in the scope is taken for what it says and no more."""
    scope = {"type": "http", "method": "GET", "path": "/changed", **marks}
    assert route_template(scope, "/a/1234", status) == name
