"""Every request is counted once, under the right name, with the right status and outcome."""

from __future__ import annotations

import pytest

from .client import Connection, WebSocket
from .figures import OWN, Figures, Meter
from .harness import Server

pytestmark = pytest.mark.anyio

TRAFFIC = [
    ("GET", "/items/1"),
    ("GET", "/items/2"),
    ("GET", "/items/2?colour=blue"),
    ("GET", "/items/9"),  # there is such a route, but no such item
    ("GET", "/items/"),
    ("GET", "/items"),  # most frameworks redirect to the other spelling
    ("GET", "/shop/1/items/2"),
    ("GET", "/shop/2/items/3"),
    ("GET", "/shop/2/items/9"),
    ("GET", "/shop/2/elsewhere"),  # there is such a mount, but no such route in it
    ("GET", "/wp-admin.php"),
    ("GET", "/.env"),
    ("PUT", "/items/1"),
    ("BREW", "/items/1"),
    ("HEAD", "/items/1"),
    ("GET", "/sync"),
    ("POST", "/after"),
]

#: By endpoint: how often which status was sent.
Statuses = dict[str, dict[str, int]]

ITEM, STOCK = "/items/{item_id}", "/shop/{shop_id}/items/{item_id}"
UNMATCHED = "<unmatched>"

ROUTED: Statuses = {
    f"GET {ITEM}": {"200": 3, "404": 1},
    "GET /items/": {"200": 1},
    f"GET {STOCK}": {"200": 2, "404": 1},
    f"GET {UNMATCHED}": {"307": 1, "404": 3},
    f"PUT {ITEM}": {"405": 1},
    f"OTHER {ITEM}": {"405": 1},
    f"HEAD {ITEM}": {"200": 1},
    "GET /sync": {"200": 1},
    "POST /after": {"200": 1},
}

EXPECTED: dict[str, Statuses] = {
    "starlette": ROUTED,
    # A GET route does not answer HEAD.
    "fastapi": ROUTED | {f"HEAD {ITEM}": {"405": 1}},
    "django": ROUTED | {f"GET {UNMATCHED}": {"301": 1, "404": 3}},
    # Quart's router does not say which route it was whose methods did not fit.
    "quart": {
        key: statuses
        for key, statuses in ROUTED.items()
        if key not in {f"PUT {ITEM}", f"OTHER {ITEM}"}
    }
    | {
        f"GET {UNMATCHED}": {"308": 1, "404": 3},
        f"PUT {UNMATCHED}": {"405": 1},
        f"OTHER {UNMATCHED}": {"405": 1},
    },
    # Litestar's neither; to it both spellings are the same route, and a GET route does not answer HEAD.
    "litestar": {
        f"GET {ITEM}": {"200": 3, "404": 1},
        "GET /items": {"200": 2},
        f"GET {STOCK}": {"200": 2, "404": 1},
        f"GET {UNMATCHED}": {"404": 3},
        f"PUT {UNMATCHED}": {"405": 1},
        f"OTHER {UNMATCHED}": {"405": 1},
        f"HEAD {UNMATCHED}": {"405": 1},
        "GET /sync": {"200": 1},
        "POST /after": {"200": 1},
    },
    # Without a router there is only the path to go by, folded; and a 404 to say that it leads nowhere.
    "raw": {
        "GET /items/{id}": {"200": 3},
        "GET /items/": {"200": 1},
        "GET /shop/{id}/items/{id}": {"200": 2},
        f"GET {UNMATCHED}": {"404": 6},
        "PUT /items/{id}": {"405": 1},
        "OTHER /items/{id}": {"405": 1},
        "HEAD /items/{id}": {"200": 1},
        "GET /sync": {"200": 1},
        "POST /after": {"200": 1},
    },
    "raw_named": {
        "GET item": {"200": 3, "404": 1},
        "GET items": {"200": 1},
        "GET stock": {"200": 2, "404": 1},
        "GET elsewhere": {"404": 4},
        "PUT item": {"405": 1},
        "OTHER item": {"405": 1},
        "HEAD item": {"200": 1},
        "GET sync": {"200": 1},
        "POST after": {"200": 1},
    },
}
EXPECTED["starlette_base_http"] = EXPECTED["starlette_add_middleware"] = EXPECTED["starlette"]
EXPECTED["fastapi_add_middleware"] = EXPECTED["fastapi"]
# Litestar calls its middleware once it has found a route: a request without one never comes to it.
EXPECTED["litestar_define_middleware"] = {
    key: statuses for key, statuses in EXPECTED["litestar"].items() if UNMATCHED not in key
}


def without_own(figures: Figures) -> Figures:
    own = {key.replace("/", "") for key in OWN} | set(OWN)
    return {key: endpoint for key, endpoint in figures.items() if key not in own}


async def test_every_request_is_counted_once(server: Server) -> None:
    """Paths that no route matches, and methods out of the ordinary, do not become endpoints either."""
    async with Meter(server) as meter, Connection(server.port) as connection:
        await meter.reset()
        for method, target in TRAFFIC:
            await connection.request(method, target)
        figures = without_own(await meter.read())

    expected = EXPECTED[server.application.name]
    assert {key: endpoint["statuses"] for key, endpoint in figures.items()} == expected
    for key, statuses in expected.items():
        count = sum(statuses.values())
        assert figures[key]["outcomes"] == {"ok": count}, key
        for metric in (
            "processing_time",
            "response_time",
            "total_time",
            "loop_time",
            "longest_step",
        ):
            assert figures[key][metric]["count"] == count, (key, metric)


async def test_a_failure_is_counted_as_the_framework_shows_it(server: Server) -> None:
    """An exception that comes out of the application is an `error`; one that the framework answers is its 500."""
    async with Meter(server) as meter:
        await meter.reset()
        for _ in range(2):
            async with Connection(server.port) as connection:
                assert (await connection.request("GET", "/error")).status == 500
        if server.application.raises:
            server.provoked += 2
        figures = without_own(await meter.read())

    (endpoint,) = figures.values()
    assert endpoint["outcomes"] == {"error" if server.application.raises else "ok": 2}
    assert endpoint["total_time"]["count"] == 2


async def test_a_websocket_is_counted_as_one_connection(server: Server) -> None:
    """Its messages are counted in both directions, and closing it is its proper end."""

    async def talk(words: list[str]) -> None:
        async with WebSocket(server.port, "/ws") as websocket:
            for word in words:
                await websocket.send_text(word)
                assert await websocket.receive_text() == word

    async with Meter(server) as meter:
        await meter.reset()
        if server.application.framework == "django":
            # Django has no websockets: it raises, and the server refuses the connection.
            with pytest.raises(ConnectionError):
                await talk(["one"])
            server.provoked += 1
        else:
            await talk(["one", "two", "three"])
            await talk(["four"])
        figures = without_own(await meter.read())

    ((key, endpoint),) = figures.items()
    assert key == ("WEBSOCKET echo" if server.application.name == "raw_named" else "WEBSOCKET /ws")
    if server.application.framework == "django":
        assert endpoint["outcomes"] == {"error": 1}
        return
    assert endpoint["outcomes"] == {"ok": 2}
    assert endpoint["websocket_time"]["count"] == 2
    for metric in ("websocket_messages_in", "websocket_messages_out"):
        assert (endpoint[metric]["min"], endpoint[metric]["sum"]) == (1, 4), metric
