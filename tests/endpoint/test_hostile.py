"""Requests that are made to break something: each gets an answer that tells what is wrong, and soon."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

import hypothesis
import hypothesis.strategies as st
import msgspec
import orjson
import pydantic
import pytest

import asgi_perfkit as kit
from asgi_perfkit import Body, Depends, Form, Header, PerfKit, Query, current_resources, endpoint
from asgi_perfkit.endpoint import forms, refusal
from asgi_perfkit.resources import solver
from tests.conftest import ASYNCIO, Run
from tests.endpoint.driver import JSON, ask
from tests.endpoint.test_forms import BOUNDARY, MULTIPART, URLENCODED, fields, multipart
from tests.resources.driver import Log
from tests.support import checkpoint, forever, http_scope


@dataclass
class Data:
    number: float
    texts: list[str] = field(default_factory=list)


class Model(pydantic.BaseModel):
    number: float
    texts: list[str] = []


class Struct(msgspec.Struct):
    number: float
    texts: list[str] = []


@endpoint
async def of_data(body: Annotated[Data, Body(max_size=None)]) -> Any:
    return body.number


@endpoint
async def of_model(body: Annotated[Model, Body(max_size=None)]) -> Any:
    return body.number


@endpoint
async def of_struct(body: Annotated[Struct, Body(max_size=None)]) -> Any:
    return body.number


OF_EACH = [of_data, of_model, of_struct]


def asked(app: Any, *chunks: bytes, **items: Any) -> Any:
    return ASYNCIO["asyncio"](lambda: ask(app, *chunks, **items))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["number", "texts", "x"]), inner)
    ),
    max_leaves=8,
)
bodies = (
    st.binary(max_size=20)
    | values.map(msgspec.json.encode)
    | st.builds(
        lambda value, at, put: (body := msgspec.json.encode(value))[: at % (len(body) + 1)] + put,
        values,
        st.integers(0, 100),
        st.binary(max_size=3) | st.sampled_from([b"NaN", b"Infinity", b"1e999", b"]}"]),
    )
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(bodies)
def test_any_body_gets_an_answer(body: bytes) -> None:
    """400 is for what is no JSON, which two of the three are lenient about where they do not need it."""
    try:
        orjson.loads(body)
        is_json = True
    except orjson.JSONDecodeError:
        is_json = False
    for app in OF_EACH:
        answer = asked(app, body)
        if is_json or not body:
            assert answer.status in (200, 422)
        elif app is of_data:
            assert answer.status == 400
        assert answer.status in (200, 400) or answer.problems


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
@pytest.mark.parametrize("app", OF_EACH)
def test_what_is_no_number_in_json_is_none(run_asyncio: Run, app: Any, number: bytes) -> None:
    assert run_asyncio(lambda: ask(app, b'{"number":%s}' % number)).status == 400
    text = b'{"number":1,"texts":["%s"]}' % number
    assert run_asyncio(lambda: ask(app, text)).status == 200


@pytest.mark.parametrize("app", OF_EACH)
def test_what_is_missing_has_a_place_of_its_own(run_asyncio: Run, app: Any) -> None:
    ((_, place, _),) = run_asyncio(lambda: ask(app, b"{}")).problems
    assert place == "$.number"


@pytest.mark.parametrize("app", OF_EACH)
def test_very_much_that_does_not_fit_is_not_all_told(run_asyncio: Run, app: Any) -> None:
    """An answer is not many times as long as what it is about."""
    body = b'{"number":1,"texts":[%s]}' % b",".join([b"0"] * 1000)
    problems = run_asyncio(lambda: ask(app, body)).problems
    assert len(problems) == (1 if app is of_struct else 100)


def test_a_length_that_is_no_length_is_none(run_asyncio: Run) -> None:
    """The server may let it pass; Python refuses to read a number of so many digits."""
    for length in (b"9" * 5000, b"1_0", b"+1", b"", b"\xb2"):
        headers = (*JSON, (b"content-length", length))
        answer = run_asyncio(lambda headers=headers: ask(of_data, b'{"number":1}', headers=headers))
        assert answer.json() == 1.0


def test_a_boundary_that_is_too_long(run_asyncio: Run) -> None:
    headers = ((b"content-type", b"multipart/form-data; boundary=" + b"x" * 500),)
    assert run_asyncio(lambda: ask(fields, b"--x", headers=headers)).status == 400


def test_many_fields_are_not_taken_apart(run_asyncio: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "parse_pairs", None)
    assert run_asyncio(lambda: ask(fields, b"&" * 1000, headers=URLENCODED)).status == 413


def test_a_field_has_its_size_however_it_is_encoded(
    run_asyncio: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "_OTHER_BYTES", len("note="))

    @endpoint
    async def app(note: Annotated[str, Form(max_size=100)]) -> int:
        return len(note)

    body = b"note=" + b"%41" * 100
    assert run_asyncio(lambda: ask(app, body, headers=URLENCODED)).json() == 100
    assert run_asyncio(lambda: ask(app, body + b"&", headers=URLENCODED)).status == 413


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.binary(max_size=40), st.binary(max_size=30))
def test_any_head_and_urlencoded_form_gets_an_answer(raw: bytes, value: bytes) -> None:
    @endpoint
    async def app(
        name: Annotated[str | None, Form()] = None,
        query: Annotated[list[int], Query()] = [],  # noqa: B006
        x_thing: Annotated[str, Header()] = "",
    ) -> Any:
        return [name, query, x_thing]

    headers = (*URLENCODED, (b"x-thing", value), (b"X-Thing", value))
    answer = asked(app, b"name=" + raw, headers=headers, query_string=b"query=1&" + value)
    assert answer.status in (200, 400, 422)
    if answer.status == 200:
        assert answer.json()[2] == f"{value.decode('latin-1')}, {value.decode('latin-1')}"


GOOD = multipart(("name", b"tea"), ("n", b"1"), ("other", b"\r\n--\r\n", "f"), ("n", b"2"))


@hypothesis.settings(max_examples=80)
@hypothesis.given(
    st.integers(0, len(GOOD) - 1),
    st.sampled_from([b"", b"\r", b"\n", b"-", b'"', b";", b"\xff", BOUNDARY.encode()])
    | st.binary(max_size=3),
    st.integers(0, 3),
    st.lists(st.integers(0, len(GOOD)), max_size=4),
)
def test_where_a_form_is_split_makes_no_difference(
    at: int, put: bytes, cut: int, splits: list[int]
) -> None:
    """Nor if it is damaged somewhere: it gets the same answer."""
    body = GOOD[:at] + put + GOOD[at + cut :]
    whole = asked(fields, body, headers=MULTIPART)
    assert whole.status in (200, 400, 413, 422)
    bounds = [0, *sorted(splits), len(body)]
    chunks = [body[start:end] for start, end in pairwise(bounds)]
    split = asked(fields, *chunks, headers=MULTIPART)
    assert split.status == whole.status
    if whole.status in (200, 422):
        assert split.body == whole.body


async def refuse_slow(headers: Any) -> list[Any]:
    """What is answered to a body that is too large and never comes."""
    heard: list[Any] = []

    async def receive() -> Any:
        await forever()

    async def send(message: Any) -> None:
        await checkpoint()
        heard.append(message)

    @endpoint
    async def app(body: Annotated[bytes, Body(max_size=5)]) -> None:
        raise AssertionError("it is not called")

    await app(http_scope(method="POST", headers=headers), receive, send)
    return heard


def test_a_body_that_never_comes_is_not_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has its answer at once; the connection is given up in the end."""
    monkeypatch.setattr(refusal, "_DRAIN_SECONDS", 0.05)
    heard = run(refuse_slow, [(b"content-length", b"10")])
    assert heard[0]["status"] == 413
    assert [each.get("more_body") for each in heard] == [None, True, False]


def test_who_waits_to_be_asked_for_the_body_is_not(run: Run) -> None:
    """`Expect: 100-continue`: with another answer than 100 it may keep its body."""
    headers = [(b"content-length", b"10"), (b"expect", b"100-Continue")]
    heard = run(refuse_slow, headers)
    assert [each.get("more_body") for each in heard] == [None, False]


def test_a_refusal_closes_what_was_opened_for_the_function_alone(run: Run) -> None:
    """Not what others have opened in the same request, who go on behind it."""
    log = Log()

    async def mine() -> Any:
        async with log.thing("mine"):
            yield

    @endpoint
    async def inner(mine: Annotated[None, Depends(mine)]) -> None:
        await current_resources().acquire("acquired", lambda: log.thing("acquired"))
        raise kit.InvalidRequestError([("query", "x", "no")])

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                log.append("answered")
            await send(message)

        resources = current_resources()
        await resources.enter(log.thing("outer"))
        await resources.acquire("before", lambda: log.thing("before"))
        await inner(scope, receive, send_on)
        assert await resources.acquire("before", forever) == "before"
        await resources.acquire("acquired", lambda: log.thing("again"))
        log.append("goes on")

    assert run(lambda: ask(PerfKit(outer))).status == 422
    assert [each for each in log if "sees" not in each] == [
        "outer opened",
        "before opened",
        "mine opened",
        "acquired opened",
        "acquired closed",
        "mine closed",
        "answered",
        "again opened",
        "goes on",
        "again closed",
        "before closed",
        "outer closed",
    ]
    assert [each for each in log if "sees" in each] == [
        "acquired sees InvalidRequestError",
        "mine sees InvalidRequestError",
    ]


def test_an_endpoint_is_planned_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is made, and not at its first request."""
    plans = []
    make_plan = solver.make_plan

    def count(*args: Any, **kwargs: Any) -> Any:
        plans.append(args)
        return make_plan(*args, **kwargs)

    monkeypatch.setattr(solver, "make_plan", count)

    async def user(token: Annotated[str, Header()] = "") -> str:
        return token

    @endpoint
    async def app(user: Annotated[str, Depends(user)]) -> str:
        return user

    for around in (PerfKit, lambda app: app):
        assert run(lambda around=around: ask(around(app))).json() == ""
    assert len(plans) == 1
