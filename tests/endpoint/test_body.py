"""Bodies: of JSON into models, as bytes, as a stream; and each way in which one can be wrong."""

from __future__ import annotations

import enum
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import hypothesis
import hypothesis.strategies as st
import msgspec
import orjson
import pydantic
import pytest

from asgi_perfkit import Body, BodyStream, ClientDisconnectedError, PerfKit, endpoint
from tests.conftest import Run
from tests.endpoint.driver import JSON, ask


class Color(enum.Enum):
    RED = "red"
    TWO = 2


@dataclass
class Tag:
    name: str
    weight: float = 1.0


@dataclass
class ItemData:
    name: str
    price: float
    tags: list[Tag] = field(default_factory=list)


class TagModel(pydantic.BaseModel):
    name: str
    weight: float = 1.0


class ItemModel(pydantic.BaseModel):
    name: str
    price: float
    tags: list[TagModel] = []


class TagStruct(msgspec.Struct):
    name: str
    weight: float = 1.0


class ItemStruct(msgspec.Struct):
    name: str
    price: float
    tags: list[TagStruct] = []


MODELS = [ItemData, ItemModel, ItemStruct]
GOOD = b'{"name":"kettle","price":24,"tags":[{"name":"\xc3\xa9","weight":2}],"more":null}'


def app_of(annotation: Any, **options: Any) -> Any:
    async def func(body: Any) -> Any:
        return body

    func.__annotations__ = {"body": Annotated[annotation, Body(**options)], "return": Any}
    return endpoint(func)


@pytest.mark.parametrize("model", MODELS)
def test_a_model(run: Run, model: Any) -> None:
    """In one chunk or in several; what the model does not know is left out."""
    expected = {"name": "kettle", "price": 24.0, "tags": [{"name": "é", "weight": 2.0}]}
    assert run(lambda: ask(app_of(model), GOOD)).json() == expected
    chunks = [GOOD[:5], b"", GOOD[5:40], GOOD[40:]]
    assert run(lambda: ask(PerfKit(app_of(model)), *chunks)).json() == expected


@pytest.mark.parametrize("model", MODELS)
def test_what_does_not_fit_is_told_the_same_way(run: Run, model: Any) -> None:
    body = b'{"name":"kettle","price":1,"tags":[{"name":"a"},{"name":3}]}'
    for annotation, place in ((model, "$.tags[1].name"), (list[model], "$[0].tags[1].name")):
        sent = body if annotation is model else b"[%s]" % body
        ((part, found, reason),) = run(ask, app_of(annotation), sent).problems
        assert (part, found) == ("body", place)
        assert reason


@pytest.mark.parametrize("model", [ItemData, ItemModel])
def test_all_that_does_not_fit_is_told(run: Run, model: Any) -> None:
    problems = run(lambda: ask(app_of(model), b'{"price":"x","tags":[{},5]}')).problems
    assert [place for _, place, _ in problems] == [
        "$.name",
        "$.price",
        "$.tags[0].name",
        "$.tags[1]",
    ]


@pytest.mark.parametrize("annotation", [Any, dict, *MODELS, ItemModel | None])
@pytest.mark.parametrize(
    ("body", "position"), [(b'{"a":\n "\xc3\xa9", x}', (2, 7, 12)), (b"{", (1, 2, 1))]
)
def test_malformed_json_has_a_position(
    run_asyncio: Run, annotation: Any, body: bytes, position: tuple[int, int, int]
) -> None:
    answer = run_asyncio(lambda: ask(app_of(annotation), body))
    assert answer.status == 400
    found = answer.json()["position"]
    assert found["line"] == position[0]
    assert found["column"] >= 1
    assert set(found) == {"line", "column", "offset"}


@pytest.mark.parametrize("annotation", [Any, *MODELS])
def test_what_is_not_utf8_or_too_deep_is_malformed(run_asyncio: Run, annotation: Any) -> None:
    for body in (b'{"name":"\xff","price":1}', b"[" * 5000):
        assert run_asyncio(lambda body=body: ask(app_of(annotation), body)).status == 400


def test_a_recursive_model_that_is_too_deep_is_malformed(run_asyncio: Run) -> None:
    @dataclass
    class Node:
        inner: Any = None

    Node.__annotations__["inner"] = Node | None
    body = b'{"inner":' * 900 + b"{}" + b"}" * 900
    answer = run_asyncio(lambda: ask(app_of(Node), body))
    assert answer.status == 400
    assert "nested" in answer.json()["error"]
    assert run_asyncio(lambda: ask(app_of(Node), b'{"inner":{"inner":null}}')).status == 200


@pytest.mark.parametrize(
    ("content_type", "options", "status"),
    [
        (b"application/json", {}, 200),
        (b"Application/JSON; charset=utf-8", {}, 200),
        (b"application/problem+json", {}, 200),
        (b"text/plain", {}, 415),
        (b"application/x-json", {}, 415),
        (b"", {}, 415),
        (None, {}, 415),
        (b"text/plain", {"content_types": ["text/*"]}, 200),
        (None, {"content_types": ["*"]}, 200),
    ],
)
def test_content_types(
    run_asyncio: Run, content_type: bytes | None, options: Any, status: int
) -> None:
    app = app_of(Any, **options)
    headers = () if content_type is None else ((b"content-type", content_type),)
    for _ in range(2):  # the second time it is known
        assert run_asyncio(lambda: ask(app, b"[1]", headers=headers)).status == status


def test_an_empty_body_is_the_default_if_there_is_one(run_asyncio: Run) -> None:
    @endpoint
    async def app(body: Annotated[ItemModel | None, Body()] = None) -> Any:
        return body

    assert run_asyncio(ask, app).body == b"null"
    assert run_asyncio(ask, app_of(ItemModel)).problems == [("body", "$", "it is missing")]


class TestLimit:
    def test_the_length_that_is_announced(self, run: Run) -> None:
        """Nothing is read before the answer; then all of it, so that the connection can be used."""
        headers = (*JSON, (b"content-length", b"1048577"))
        chunks = [bytes(65_536)] * 16 + [b"x"]
        for around in (lambda app: app, PerfKit):
            app = around(app_of(Any))
            answer = run(lambda app=app: ask(app, *chunks, headers=headers))
            assert answer.status == 413
            assert "1048576 bytes" in answer.json()["error"]
            assert answer.received == 17
            assert [message.get("more_body") for message in answer.messages] == [None, True, False]

    def test_the_length_that_comes(self, run: Run) -> None:
        headers = (*JSON, (b"transfer-encoding", b"chunked"))
        app = app_of(bytes, max_size=10)
        assert run(lambda: ask(app, b"12345", b"67890", headers=headers)).status == 200
        assert run(lambda: ask(app, b"12345", b"678901", b"2", headers=headers)).status == 413
        assert run(lambda: ask(app, b"12345678901")).status == 413

    def test_no_more_than_so_much_is_thrown_away(self, run_asyncio: Run) -> None:
        """Who announces a gigabyte is cut off by the server; who sends without end, after 16 MiB."""
        app = app_of(Any)
        headers = (*JSON, (b"content-length", b"%d" % (1 << 30)))
        answer = run_asyncio(lambda: ask(app, b"x", b"x", b"x", headers=headers))
        assert answer.status == 413
        assert answer.received < 3
        headers = (*JSON, (b"transfer-encoding", b"chunked"))
        answer = run_asyncio(lambda: ask(app, *[bytes(1 << 20)] * 30, headers=headers))
        assert answer.status == 413
        assert answer.received < 22

    def test_who_leaves_meanwhile_has_had_the_answer(self, run: Run) -> None:
        headers = (*JSON, (b"content-length", b"2000000"))
        answer = run(lambda: ask(app_of(Any), b"x", headers=headers, hangs_up=True))
        assert (answer.status, answer.messages[-1]["more_body"]) == (413, False)

    def test_none(self, run_asyncio: Run) -> None:
        app = app_of(bytes, max_size=None)

        async def size(app: Any) -> int:
            return len((await ask(app, bytes(1 << 20), b"x")).json())

        assert run_asyncio(size, app) > 1 << 20


class TestStream:
    def test_chunks_as_they_come(self, run: Run) -> None:
        @endpoint
        async def app(body: Annotated[AsyncIterator[bytes], Body()]) -> Any:
            assert isinstance(body, BodyStream)
            found = [(chunk.decode(), body.size) async for chunk in body]
            return [body.length, found]

        headers = ((b"content-length", b"5"),)
        answer = run(lambda: ask(app, b"ab", b"", b"cde", headers=headers))
        assert answer.json() == [5, [["ab", 2], ["cde", 5]]]

    def test_it_is_over_when_the_client_has_left(self, run: Run) -> None:
        """Whoever reads on all the same gets nothing."""
        seen: list[object] = []

        @endpoint
        async def app(body: Annotated[AsyncIterator[bytes], Body()]) -> Any:
            try:
                async for chunk in body:
                    seen.append(chunk)  # noqa: PERF401  # what was there before the error counts
            except ClientDisconnectedError:
                seen.append([chunk async for chunk in body])
                raise

        assert run(lambda: ask(app, b"ab", hangs_up=True)).messages == []
        assert seen == [b"ab", []]

    def test_more_than_there_may_be(self, run: Run) -> None:
        """It is raised where the function reads, and answered when it comes out of that."""
        seen = []

        @endpoint
        async def app(body: Annotated[BodyStream, Body(max_size=4)]) -> None:
            try:
                async for chunk in body:
                    seen.append(chunk)  # noqa: PERF401  # what was there before the error counts
            finally:
                seen.append(b"end")

        assert run(lambda: ask(app, b"ab", b"cde")).status == 413
        assert seen == [b"ab", b"end"]
        assert run(lambda: ask(app, headers=((b"content-length", b"5"),))).status == 413
        assert seen == [b"ab", b"end"]


@dataclass
class Everything:
    text: str
    number: int
    ratio: float
    flag: bool
    nothing: None
    at: datetime
    day: date
    id: UUID
    price: Decimal
    color: Color
    kind: Literal["a", 1]
    scores: dict[str, list[int]]
    either: int | str
    inner: Everything | None = None
    plain: dict[str, Any] = field(default_factory=dict)
    made: int = field(init=False, default=0)


WHOLE: dict[str, Any] = {
    "text": "t",
    "number": 1,
    "ratio": 2,
    "flag": True,
    "nothing": None,
    "at": "2026-01-31T12:00:00Z",
    "day": "2026-01-31",
    "id": "12345678-1234-5678-1234-567812345678",
    "price": "1.10",
    "color": "red",
    "kind": 1,
    "scores": {"a": [1, 2]},
    "either": "x",
    "inner": None,
    "plain": {"a": [None]},
}


def decoded(annotation: Any, value: Any) -> Any:
    from asgi_perfkit.endpoint.models import decoder_of

    return decoder_of(annotation)(orjson.dumps(value))


def test_a_dataclass_of_everything() -> None:
    found = decoded(Everything, {**WHOLE, "inner": WHOLE, "made": 5})
    assert found == Everything(
        "t",
        1,
        2.0,
        True,
        None,
        datetime(2026, 1, 31, 12, tzinfo=timezone.utc),
        date(2026, 1, 31),
        UUID("12345678-1234-5678-1234-567812345678"),
        Decimal("1.10"),
        Color.RED,
        1,
        {"a": [1, 2]},
        "x",
        found.inner,
        {"a": [None]},
    )
    assert type(found.ratio) is float
    assert isinstance(found.inner, Everything)


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("text", 1, ""),
        ("number", True, ""),
        ("number", 1.0, ""),
        ("ratio", "1", ""),
        ("ratio", False, ""),
        ("flag", 1, ""),
        ("nothing", 0, ""),
        ("at", "2026-01-31", ""),
        ("at", 5, ""),
        ("day", "2026-01-32", ""),
        ("id", "{12345678-1234-5678-1234-567812345678}", ""),
        ("price", "NaN", ""),
        ("price", True, ""),
        ("color", "green", ""),
        ("color", [], ""),
        ("kind", True, ""),
        ("kind", {}, ""),
        ("scores", [], ""),
        ("scores", {"a": [1, "2", None]}, ".a[1]"),
        ("either", 1.5, ""),
        ("inner", 5, ""),
        ("inner", {**WHOLE, "text": None}, ".text"),
        ("plain", [], ""),
    ],
)
def test_what_a_dataclass_refuses(run_asyncio: Run, name: str, value: Any, place: str) -> None:
    answer = run_asyncio(lambda: ask(app_of(Everything), orjson.dumps({**WHOLE, name: value})))
    assert answer.problems[0][1] == f"$.{name}{place}"


@pytest.mark.parametrize(
    ("annotation", "value", "fits"),
    [
        (None, None, True),
        (Annotated[int, "a note"], 1, True),
        (Annotated[int, "a note"], "1", False),
        (float, 10**400, False),
        (list, [1], True),
        (list, {}, False),
        (dict[str, Any], {"a": 1}, True),
        (Color | None, 2, True),
        (dict[str, ItemModel], {"a": {"name": "x", "price": 1}}, True),
        (dict[str, ItemStruct], {"a": {"name": "x", "price": 1}}, True),
        (dict[str, ItemStruct], {"a": 5}, False),
    ],
)
def test_what_is_no_class_of_its_own(
    run_asyncio: Run, annotation: Any, value: Any, fits: bool
) -> None:
    body = json.dumps(value).encode()
    assert run_asyncio(ask, app_of(annotation), body).status in ((200,) if fits else (400, 422))


@dataclass
class Both:
    item: ItemModel


def test_a_dataclass_of_models_is_left_to_their_library(run_asyncio: Run) -> None:
    body = b'{"item":{"name":"x","price":"1.5"}}'
    assert run_asyncio(ask, app_of(Both), body).json()["item"]["price"] == 1.5


def test_head_is_refused_without_a_body(run_asyncio: Run) -> None:
    answer = run_asyncio(lambda: ask(app_of(Any), method="HEAD"))
    assert (answer.status, answer.body) == (422, b"")


def test_a_dataclass_may_refuse_by_itself(run_asyncio: Run) -> None:
    @dataclass
    class Range:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high")

    answer = run_asyncio(lambda: ask(app_of(Range), b'{"low":2,"high":1}'))
    assert answer.problems == [("body", "$", "low is above high")]


@hypothesis.given(
    st.builds(
        ItemData,
        st.text(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.builds(Tag, st.text(), st.integers(-(2**53), 2**53).map(float))),
    )
)
def test_a_dataclass_comes_back(item: ItemData) -> None:
    assert decoded(ItemData, item) == item
    assert decoded(list[ItemData] | None, [item]) == [item]
