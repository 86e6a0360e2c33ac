"""Endpoint names that are not left in the scope: Django's and Quart's, by their hooks, and folded paths."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import django
import pytest
import quart
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import Http404, HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path, re_path
from django.views.decorators.http import require_GET

from asgi_perfkit.metrics.endpoints import django_endpoint, fold_path, quart_endpoint, template_of
from asgi_perfkit.steps import Account, current_account
from tests.metrics.driver import endpoint, request, scanner_paths, visit

UNMATCHED = "<unmatched>"
UUID = "0e2a0b6c-5d6f-4b0e-9a51-0a1b2c3d4e5f"
HOOK = "asgi_perfkit.metrics.endpoints.django_endpoint"


# ---- folded paths


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "/"),
        ("", ""),
        ("/users", "/users"),
        ("/users/", "/users/"),
        ("//users", "//users"),
        ("/users/1", "/users/{id}"),
        ("/users/8137/orders/b51f7c9e", "/users/{id}/orders/{id}"),
        (f"/files/{UUID}", "/files/{id}"),
        ("/v1/oauth2/token", "/v1/oauth2/token"),
        ("/v12/a1b2/a1b2c3", "/v12/a1b2/{id}"),
        ("/user-names/first_name/x.json/~me", "/user-names/first_name/x.json/~me"),
        ("/größe/日本", "/größe/日本"),
        ("/²/٣/1", "/{id}/{id}/{id}"),
        ("/a b/a%20b/a:b/a@b/a,b", "/{id}/{id}/{id}/{id}/{id}"),
        ("/a\x00b/\x1b[31m/\n", "/{id}/{id}/{id}"),
        ("/" + "a" * 32 + "/" + "a" * 33, "/" + "a" * 32 + "/{id}"),
        ("/a/b/c/d/e/f/g/h", "/a/b/c/d/e/f/g/h"),
        ("/a/b/c/d/e/f/g/h/", "/a/b/c/d/e/f/g/h/{path}"),
        ("/a/b/c/d/e/f/g/h/i/j/k", "/a/b/c/d/e/f/g/h/{path}"),
        ("/a/" + "x" * 100_000, "/a/{id}"),
        ("/" * 100_000, "/" * 9 + "{path}"),
    ],
)
def test_fold_path(path: str, name: str) -> None:
    """Words stand for themselves, what looks like data is folded, what is too deep is cut."""
    assert fold_path(path) == name


# ---- templates of Django's and Quart's rules


@pytest.mark.parametrize(
    ("rule", "template"),
    [
        ("", "/"),
        ("/", "/"),
        ("items/", "/items/"),
        ("items/<item_id>", "/items/{item_id}"),
        ("/items/<int:item_id>", "/items/{item_id}"),
        ("/x/<string(length=2):code>/<any(a, b):kind>", "/x/{code}/{kind}"),
        (r"^items/(?P<item_id>[0-9]{4})/$", "/items/{item_id}/"),
        (r"^items/(?P<name>[\w-]+)\.html$", "/items/{name}.html"),
        (r"^a/(?P<x>(?:b|c)+)/end\Z", "/a/{x}/end"),
        (r"^a/(?P<x>\(\d+\))/end$", "/a/{x}/end"),
        (r"^a/(\d+)/(?:b|c)/end$", "/a/{}/{}/end"),
        (r"shop/<int:shop_id>/^items/(?P<item_id>\d+)$", "/shop/{shop_id}/items/{item_id}"),
    ],
)
def test_rules_take_the_form_of_the_other_frameworks(rule: str, template: str) -> None:
    """Converters and groups become names in braces; anchors and escapes go."""
    assert template_of(rule) == template


@pytest.mark.parametrize(
    "rule",
    [
        r"^a/(?P<x>(?:b(?:c|d))+)/end$",
        r"^a/(?P<x>((b)c)|(d))/end$",
        r"^a/(?P<x>[()]+)/end$",
        r"^a/(?P<x>[)]+)/end$",
    ],
)
def test_rules_with_groups_in_groups(rule: str) -> None:
    """However deep a group is, and whatever its character classes hold, it becomes the name in braces."""
    assert template_of(rule) == "/a/{x}/end"


# ---- Django


async def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
    return HttpResponse("ok")


def sync_view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
    return HttpResponse("ok")


def gone(request: HttpRequest, name: str) -> HttpResponse:
    raise Http404


async def broken(request: HttpRequest) -> HttpResponse:
    raise LookupError


class Urls:
    """What a module urls.py holds."""

    urlpatterns = [  # noqa: RUF012
        path("", view),
        path("items/<int:item_id>/", view),
        path("sync/<slug:name>", sync_view),
        path("files/<path:name>", view),
        path("uuid/<uuid:x>", view),
        path("get", require_GET(sync_view)),
        path("gone/<name>", gone),
        path("broken", broken),
        re_path(r"^year/(?P<year>[0-9]{4})/(?P<slug>[\w-]+)\.html$", view),
        re_path(r"^unnamed/(\d+)/(?:a|b)$", view),
        path(
            "shop/<int:shop_id>/",
            include(
                [
                    path("items/<int:item_id>", view),
                    re_path(r"^old/(?P<item_id>\d+)$", sync_view),
                    path("deep/<d>/", include([path("", sync_view)])),
                ]
            ),
        ),
    ]


def sync_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def middleware(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = get_response(request)
        return response

    return middleware


def async_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def middleware(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await get_response(request)
        return response

    return middleware


def refusing_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda request: HttpResponse(status=403)


def raising_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def middleware(request: HttpRequest) -> HttpResponse:
        get_response(request)
        raise LookupError

    return middleware


async_middleware.async_capable = True  # type: ignore[attr-defined]
async_middleware.sync_capable = False  # type: ignore[attr-defined]

CHAINS = {
    "alone": [HOOK],
    "sync": [HOOK, "chain.sync_middleware"],
    "async": [HOOK, "chain.async_middleware"],
    "sync outside": ["chain.sync_middleware", HOOK],
    "async outside": ["chain.async_middleware", HOOK],
    "mixed": [HOOK, "chain.sync_middleware", "chain.async_middleware", "chain.sync_middleware"],
    "own": [HOOK, "django.middleware.common.CommonMiddleware"],
}


@pytest.fixture(scope="module")
def _django() -> Iterator[None]:
    """Django, set up without a project, and quiet about the 404s."""
    if not settings.configured:
        settings.configure(LOGGING_CONFIG=None, SECRET_KEY="secret", USE_TZ=True)
        django.setup()
    chain = ModuleType("chain")
    vars(chain).update(globals())
    logger = logging.getLogger("django.request")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "chain", chain)
        yield
    logger.setLevel(level)


@pytest.fixture
def make_django(_django: None) -> Iterator[Callable[..., Any]]:
    """`make_django(*middleware)`: the ASGI app of the project above."""
    overrides = []

    def make(*middleware: str) -> Any:
        override = override_settings(
            MIDDLEWARE=middleware, ROOT_URLCONF=Urls, ALLOWED_HOSTS=["testserver"], DEBUG=False
        )
        override.enable()
        overrides.append(override)
        return ASGIHandler()

    yield make
    for override in reversed(overrides):
        override.disable()


@pytest.mark.parametrize(
    ("line", "name", "status"),
    [
        ("GET /", "/", 200),
        ("GET /items/3/", "/items/{item_id}/", 200),
        ("GET /items/3", UNMATCHED, 404),
        ("GET /items/x/", UNMATCHED, 404),
        ("GET /sync/x", "/sync/{name}", 200),
        ("GET /files/a/b/c", "/files/{name}", 200),
        (f"GET /uuid/{UUID}", "/uuid/{x}", 200),
        ("GET /get", "/get", 200),
        ("POST /get", "/get", 405),
        ("GET /gone/x", "/gone/{name}", 404),
        ("GET /broken", "/broken", 500),
        ("GET /year/2020/x-y.html", "/year/{year}/{slug}.html", 200),
        ("GET /unnamed/3/a", "/unnamed/{}/{}", 200),
        ("GET /shop/1/items/3", "/shop/{shop_id}/items/{item_id}", 200),
        ("GET /shop/1/old/3", "/shop/{shop_id}/old/{item_id}", 200),
        ("GET /shop/1/deep/x/", "/shop/{shop_id}/deep/{d}/", 200),
        ("GET /nope", UNMATCHED, 404),
    ],
)
def test_django(make_django: Any, line: str, name: str, status: int) -> None:
    """Django's endpoints are the routes of urls.py, the includes' prefixes before them."""
    method = line.split(" ", 1)[0]
    assert visit(make_django(HOOK), line) == {f"{method} {name}": {str(status): 1}}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_django_in_any_chain_of_middlewares(make_django: Any, chain: list[str]) -> None:
    """The hook works in sync and async chains, in any place, for sync and async views."""
    lines = ["GET /items/3/", "GET /sync/x", "GET /shop/1/items/3", "GET /broken", "GET /nope"]
    assert list(visit(make_django(*chain), *lines)) == [
        "GET /items/{item_id}/",
        "GET /sync/{name}",
        "GET /shop/{shop_id}/items/{item_id}",
        "GET /broken",
        f"GET {UNMATCHED}",
    ]


def test_django_where_a_middleware_answers(make_django: Any) -> None:
    """A redirect to the other spelling, or a refusal before the router, is unmatched."""
    app = make_django(HOOK, "django.middleware.common.CommonMiddleware")
    assert visit(app, "GET /items/3") == {f"GET {UNMATCHED}": {"301": 1}}
    app = make_django(HOOK, "chain.refusing_middleware")
    assert visit(app, "GET /items/3/") == {f"GET {UNMATCHED}": {"403": 1}}


def test_django_where_a_middleware_raises(make_django: Any) -> None:
    """A request that fails behind its view still has that view's name."""
    app = make_django("chain.raising_middleware", HOOK)
    assert visit(app, "GET /items/3/") == {"GET /items/{item_id}/": {"500": 1}}


@pytest.mark.parametrize("is_async", [False, True])
def test_the_django_hook_passes_on_what_is_raised(is_async: bool) -> None:
    """In either form the hook names the endpoint and lets the very exception through."""
    error = LookupError()
    account = Account()

    class FakeRequest:
        class resolver_match:  # noqa: N801
            route = "items/<item_id>"

    async def raise_async(request: Any) -> None:
        raise error

    def raise_sync(request: Any) -> None:
        raise error

    async def main() -> None:
        if is_async:
            await django_endpoint(raise_async)(FakeRequest())
        else:
            django_endpoint(raise_sync)(FakeRequest())

    token = current_account.set(account)
    try:
        with pytest.raises(LookupError) as caught:
            asyncio.run(main())
    finally:
        current_account.reset(token)
    assert caught.value is error
    assert account.endpoint == "/items/{item_id}"


def test_django_without_the_hook(make_django: Any) -> None:
    """Without the hook, the folded path is used."""
    lines = ["GET /items/3/", "GET /sync/word", "GET /nope"]
    assert list(visit(make_django(), *lines)) == [
        "GET /items/{id}/",
        "GET /sync/word",
        f"GET {UNMATCHED}",
    ]


def test_django_without_the_kit(make_django: Any) -> None:
    """The hook does nothing where nobody watches."""
    app = make_django(HOOK)
    assert asyncio.run(request(app, "GET", "/items/3/"))["status"] == 200
    assert asyncio.run(request(app, "GET", "/sync/x"))["status"] == 200


def test_a_scanner_makes_no_names_of_django(make_django: Any) -> None:
    """Two thousand paths that nobody planned come to a few endpoints, all of them templates."""
    prefixes = ["/items", "/files", "/shop/1", "/shop/1/deep", "/sync"]
    lines = (f"GET {path}" for path in scanner_paths(*prefixes))
    labels = visit(make_django(HOOK), *lines)
    assert sum(sum(row.values()) for row in labels.values()) == 2_000
    assert len(labels) <= 12


# ---- Quart


def make_quart() -> quart.Quart:
    app = quart.Quart("shop")
    quart_endpoint(app)
    app.logger.disabled = True

    async def ok(**values: Any) -> str:
        return "ok"

    async def gone(name: str) -> None:
        quart.abort(404)

    async def broken() -> None:
        raise LookupError

    def threaded(**values: Any) -> str:
        return "ok"

    async def talk(**values: Any) -> None:
        await quart.websocket.accept()
        await quart.websocket.receive()

    app.add_url_rule("/", "root", ok)
    app.add_url_rule("/items/<int:item_id>", "item", ok)
    app.add_url_rule("/threaded/<name>", "threaded", threaded)
    app.add_url_rule("/files/<float:x>/<path:name>", "files", ok)
    app.add_url_rule("/codes/<any(a, b):kind>/<string(length=2):code>", "codes", ok)
    app.add_url_rule("/slash/", "slash", ok)
    app.add_url_rule("/gone/<name>", "gone", gone)
    app.add_url_rule("/broken", "broken", broken)
    app.add_websocket("/ws/<room>", "ws", talk)
    shop = quart.Blueprint("shop", __name__, url_prefix="/shop/<int:shop_id>")
    shop.add_url_rule("/items/<item_id>", "item", ok)
    shop.add_websocket("/ws/<room>", "ws", talk)
    deep = quart.Blueprint("deep", __name__, url_prefix="/deep/<d>")
    deep.add_url_rule("/", "root", ok)
    shop.register_blueprint(deep)
    app.register_blueprint(shop)
    return app


@pytest.mark.parametrize(
    ("line", "name", "status"),
    [
        ("GET /", "/", 200),
        ("GET /items/3", "/items/{item_id}", 200),
        ("HEAD /items/3", "/items/{item_id}", 200),
        ("GET /items/x", UNMATCHED, 404),
        ("POST /items/3", UNMATCHED, 405),  # Quart does not say which rule it was
        ("GET /threaded/x", "/threaded/{name}", 200),
        ("GET /files/1.5/a/b", "/files/{x}/{name}", 200),
        ("GET /codes/a/xy", "/codes/{kind}/{code}", 200),
        ("GET /slash/", "/slash/", 200),
        ("GET /slash", UNMATCHED, 308),
        ("GET /gone/x", "/gone/{name}", 404),
        ("GET /broken", "/broken", 500),
        ("GET /nope", UNMATCHED, 404),
        ("GET /shop/1/items/3", "/shop/{shop_id}/items/{item_id}", 200),
        ("GET /shop/1/deep/x/", "/shop/{shop_id}/deep/{d}/", 200),
        ("WEBSOCKET /ws/1", "/ws/{room}", 101),
        ("WEBSOCKET /shop/1/ws/2", "/shop/{shop_id}/ws/{room}", 101),
        ("WEBSOCKET /nope", UNMATCHED, 403),
    ],
)
def test_quart(line: str, name: str, status: int) -> None:
    """Quart's endpoints are its rules, the blueprints' prefixes before them."""
    method = line.split(" ", 1)[0]
    assert visit(make_quart(), line) == {f"{method} {name}": {str(status): 1}}


def test_quart_where_another_function_answers_first() -> None:
    """A function of the app that answers before the view is called leaves the view's name."""
    app = make_quart()

    @app.before_request
    async def refuse() -> tuple[str, int]:
        return "no", 403

    assert visit(app, "GET /items/3") == {"GET /items/{item_id}": {"403": 1}}


def test_quart_without_the_kit() -> None:
    """The hook does nothing where nobody watches."""
    assert asyncio.run(request(make_quart(), "GET", "/items/3"))["status"] == 200


def test_quart_without_the_hook() -> None:
    """Without the hook, the folded path is used."""
    app = quart.Quart("shop")

    @app.get("/items/<item_id>")
    async def item(item_id: str) -> str:
        return item_id

    assert endpoint(app, "GET /items/3") == "GET /items/{id}"


def test_a_scanner_makes_no_names_of_quart() -> None:
    """Two thousand paths that nobody planned come to a few endpoints, all of them templates."""
    prefixes = ["/items", "/files/1.5", "/shop/1", "/shop/1/items", "/gone"]
    lines = (f"GET {path}" for path in scanner_paths(*prefixes))
    labels = visit(make_quart(), *lines)
    assert sum(sum(row.values()) for row in labels.values()) == 2_000
    assert len(labels) <= 12
