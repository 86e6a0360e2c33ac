"""The samples' price lists: what a request opens for them is closed, and what all of them need is asked for once."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from . import test_mail
from .client import Connection
from .figures import Meter
from .harness import Application, Deployment, Server, serve
from .test_mail import MailServer, tasks_when
from .test_threads import (
    ONE_OF_EACH,
    PRICES,
    SALES,
    SAMPLES,
    ask,
    at_once,
    await_no_connection,
    only_endpoint,
)

pytestmark = pytest.mark.anyio

mail_server = test_mail.mail_server

CLIENTS = 20
RATES = {"DKK": 7.46, "NOK": 11.6, "USD": 1.09}

ON_EACH = pytest.mark.parametrize("server", SAMPLES, indirect=True, ids=str)
ON_ONE_OF_EACH = pytest.mark.parametrize("server", ONE_OF_EACH, indirect=True, ids=str)

# A handler in the request's own task on asyncio and on trio, and one in a task of its own.
MAILING = [
    Deployment(Application("starlette"), "asyncio"),
    Deployment(Application("litestar"), "trio"),
    Deployment(Application("quart"), "uvloop"),
]


def prices_of(price_list: dict[str, Any]) -> dict[int, float]:
    return {item["id"]: item["price"] for item in price_list["items"]}


def in_currency(currency: str) -> dict[int, float]:
    return {item_id: round(price * RATES[currency], 2) for item_id, price in PRICES.items()}


def count_sold(price_list: dict[str, Any]) -> int:
    return sum(item["sold"] for item in price_list["items"])


@ON_EACH
async def test_who_asks_at_once_has_the_same_answer_of_the_bank(server: Server) -> None:
    """The bank puts its time on it, so it was asked once; what each request had open is closed behind it."""
    async with Meter(server) as meter:
        await meter.reset()
        responses = await at_once(server, *[("GET", "/prices/USD")] * CLIENTS)
        assert Counter(response.status for response in responses) == {200: CLIENTS}
        endpoint = await only_endpoint(meter)
        await await_no_connection(server, meter)
        alone = (await ask(server, "GET", "/prices/USD")).json()
    found = [response.json() for response in responses]
    for each in found:
        assert (each["currency"], prices_of(each)) == ("USD", in_currency("USD"))
        assert count_sold(each) >= SALES
        assert 1 <= each["customers"] <= CLIENTS
    assert alone["customers"] == 1
    (quoted,) = {each["quoted"] for each in [*found, alone]}
    age = datetime.now(timezone.utc) - datetime.fromisoformat(quoted.replace("Z", "+00:00"))
    assert timedelta() < age < timedelta(minutes=5)
    assert endpoint["outcomes"] == {"ok": CLIENTS}
    assert endpoint["dependency_resolution_time"]["count"] == CLIENTS


@ON_ONE_OF_EACH
async def test_a_price_list_is_of_one_moment(server: Server) -> None:
    """The sales of the items add up to the number of the last one, whoever sells meanwhile; those of an offer, too."""
    lists = [("GET", "/prices/NOK")] * 9 + [("POST", "/offers/NOK")]
    responses = await at_once(
        server, *(each for request in lists for each in (request, ("POST", "/sales/1")))
    )
    assert [response.status for response in responses[::2]] == [200] * 9 + [202]
    found = [response.json() for response in responses[::2]]
    for each in found:
        assert count_sold(each) == each["last_sale"]
        assert prices_of(each) == in_currency("NOK")
    sales = [response.json()["sale"] for response in responses[1::2]]
    async with Connection(server.port) as connection:
        await tasks_when(connection, pending=0, running=0)
        after = (await connection.request("GET", "/prices/NOK")).json()["last_sale"]
    assert max(each["last_sale"] for each in found) <= after == max(sales)


@ON_ONE_OF_EACH
async def test_a_currency_that_the_bank_does_not_know_opens_nothing(server: Server) -> None:
    async with Meter(server) as meter:
        await meter.reset()
        assert (await ask(server, "GET", "/prices/XAU")).status == 404
        endpoint = await only_endpoint(meter)
    assert "dependency_resolution_time" not in endpoint
    assert server.count_connections() == 0


@pytest.mark.parametrize("deployment", MAILING, ids=str)
async def test_an_offer_is_mailed_when_the_book_is_closed(
    deployment: Deployment, mail_server: MailServer
) -> None:
    """The client has its answer, and the database nobody who reads it, when the mail sets out: it is held there."""
    await mail_server.open()
    with serve(deployment) as server:
        async with Connection(server.port) as connection:
            response = await connection.request("POST", "/offers/DKK")
            _, mail = await mail_server.next_mail()
            assert server.count_connections() == 0
            other = (await connection.request("GET", "/prices/DKK")).json()
            assert other == response.json()
            tasks = await tasks_when(connection)
            assert tasks == {"running": 1}
            assert mail_server.holds_a_mail()
            mail_server.gate.set()
            assert await mail_server.next_parting()
            assert await tasks_when(connection, running=0) == {"done": 1}
            assert (await connection.request("POST", "/offers/XAU")).status == 404
            assert await tasks_when(connection) == {"done": 1}
    assert (response.status, other["customers"]) == (202, 1)
    assert prices_of(response.json()) == in_currency("DKK")
    assert mail["Subject"] == "Offer in DKK"
    assert mail.get_content().splitlines() == [
        f"{item['name']}: {item['price']:.2f}" for item in response.json()["items"]
    ]
