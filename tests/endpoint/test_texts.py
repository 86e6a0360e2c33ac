"""Parameters of the query, the path and the headers."""

from __future__ import annotations

import enum
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import urlencode
from uuid import UUID

import hypothesis
import hypothesis.strategies as st
import pytest

from asgi_perfkit import Body, ConfigurationError, Header, Path, Query, endpoint
from asgi_perfkit.endpoint.intake import parse_pairs
from asgi_perfkit.endpoint.texts import from_text
from tests.conftest import Run
from tests.endpoint.driver import ask


class Color(enum.Enum):
    RED = "red"
    TWO = 2


GOOD = [
    (str, "a b", "a b"),
    (Any, "", ""),
    (int, "-12", -12),
    (float, "1.5e3", 1500.0),
    (bool, "Yes", True),
    (bool, "0", False),
    (Decimal, "1.10", Decimal("1.10")),
    (datetime, "2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=timezone.utc)),
    (datetime, "2026-01-31 12:00", datetime(2026, 1, 31, 12)),  # noqa: DTZ001  # it names no zone
    (date, "2026-01-31", date(2026, 1, 31)),
    (UUID, "12345678123456781234567812345678", UUID("12345678123456781234567812345678")),
    (Color, "red", Color.RED),
    (Color, "2", Color.TWO),
    (Literal["a", 1, True], "1", 1),
    (Literal["a", 1, True], "true", True),
]
BAD = [
    (int, ["", "1_000", "1.0", " 1", "٣", "9" * 5000]),
    (float, ["", "nan", "inf", "1e999", "1_0", "0x1", "."]),
    (bool, ["", "2", "y"]),
    (Decimal, ["", "NaN", "Infinity", "1_0", "1e9999999999999999999"]),
    (datetime, ["", "2026-01-31", "2026-13-31T12:00:00", "12:00:00"]),
    (date, ["", "2026-01-31T12:00:00", "20260131", "2026-01-32"]),
    (UUID, ["", "{12345678-1234-5678-1234-567812345678}", "x" * 32]),
    (Color, ["", "RED", "green"]),
    (Literal["a"], ["", "b"]),
]


@pytest.mark.parametrize(("annotation", "text", "value"), GOOD)
def test_what_a_text_stands_for(annotation: Any, text: str, value: Any) -> None:
    convert = from_text(annotation)
    assert convert is not None
    found = convert(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("annotation", "texts"), BAD)
def test_what_a_text_does_not_stand_for(annotation: Any, texts: list[str]) -> None:
    convert = from_text(annotation)
    assert convert is not None
    for text in texts:
        with pytest.raises(ValueError, match="it has to be"):
            convert(text)


@endpoint
async def search(
    q: Annotated[str, Query()],
    tags: Annotated[list[int], Query(alias="tag")] = [],  # noqa: B006  # it is never changed
    limit: Annotated[int | None, Query()] = None,
) -> Any:
    return [q, tags, limit]


def test_a_query(run: Run) -> None:
    """Of a name that is repeated, the last counts, and a list has all."""
    query = b"q=a&tag=1&limit=3&q=%C3%A9+%2B&tag=2&&other"
    assert run(lambda: ask(search, query_string=query)).json() == ["é +", [1, 2], 3]
    assert run(lambda: ask(search, query_string="q=é".encode())).json() == ["é", [], None]


def test_a_body_is_not_read_if_the_head_does_not_fit(run: Run) -> None:
    @endpoint
    async def app(q: Annotated[str, Query()], body: Annotated[Any, Body()]) -> None:
        raise AssertionError("it is not called")

    answer = run(lambda: ask(app, b"{"))
    assert answer.problems == [("query", "q", "it is missing")]
    assert answer.received == 0


def test_all_that_does_not_fit_in_the_head_is_told_at_once(run: Run) -> None:
    answer = run(lambda: ask(search, query_string=b"tag=1&tag=x&limit=y"))
    assert answer.problems == [
        ("query", "q", "it is missing"),
        ("query", "tag", "it has to be a whole number"),
        ("query", "limit", "it has to be a whole number"),
    ]


@pytest.mark.parametrize("query", [b"q=%FF", b"%FF=q", b"q=\xff"])
def test_a_query_that_is_not_utf8(run_asyncio: Run, query: bytes) -> None:
    assert run_asyncio(lambda: ask(search, query_string=query)).problems == [
        ("query", "", "it is not UTF-8")
    ]


@hypothesis.given(st.lists(st.tuples(st.text(), st.text()), max_size=8))
def test_pairs_come_back(pairs: list[tuple[str, str]]) -> None:
    expected: dict[str, list[str]] = {}
    for name, value in pairs:
        expected.setdefault(name, []).append(value)
    assert parse_pairs(urlencode(pairs).encode()) == expected


def test_headers(run: Run) -> None:
    """Several lines are one value, as the RFC has it; a list has each."""

    @endpoint
    async def app(
        user_agent: Annotated[str, Header()],
        accept: Annotated[str | None, Header()] = None,
        hosts: Annotated[list[str], Header(alias="X-Host")] = [],  # noqa: B006
    ) -> Any:
        return [user_agent, accept, hosts]

    headers = [(b"User-Agent", b"me\xe9"), (b"accept", b"a"), (b"accept", b"b")]
    assert run(lambda: ask(app, headers=headers)).json() == ["meé", "a, b", []]
    headers += [(b"x-host", b"1"), (b"x-host", b"2")]
    assert run(lambda: ask(app, headers=headers)).json()[2] == ["1", "2"]
    assert run(ask, app).problems == [("header", "user-agent", "it is missing")]


@endpoint
async def page_of(
    item: Annotated[int, Path(alias="item_id")], page: Annotated[str, Path()] = "first"
) -> Any:
    return [item, page]


class TestPath:
    @pytest.mark.parametrize(
        ("found", "expected"),
        [({"item_id": "5"}, [5, "first"]), ({"item_id": 5, "page": 2}, [5, "2"])],
    )
    def test_what_the_router_has_found(self, run: Run, found: Any, expected: Any) -> None:
        assert run(lambda: ask(page_of, path_params=found)).json() == expected

    def test_what_does_not_fit(self, run: Run) -> None:
        answer = run(lambda: ask(page_of, path_params={"item_id": "x"}))
        assert answer.problems == [("path", "item_id", "it has to be a whole number")]

    @pytest.mark.parametrize("items", [{}, {"path_params": {"id": 1}}])
    def test_a_route_without_it_is_a_mistake_of_the_app(self, run: Run, items: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"page_of\(item\).*\{item_id\}"):
            run(lambda: ask(page_of, **items))
