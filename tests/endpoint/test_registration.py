"""What is wrong with a function, or an argument, is told when the endpoint is made."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

import asgi_perfkit as kit
from asgi_perfkit import Body, Depends, Form, Header, Path, Query, UploadFile, endpoint
from tests.conftest import Run
from tests.endpoint.driver import ask


@dataclass
class Odd:
    value: complex


@dataclass
class Unreadable:
    value: NotThere  # type: ignore[name-defined]  # noqa: F821


def unreadable(a: Annotated[Unreadable, Body()]) -> None: ...


def two_bodies(a: Annotated[dict[str, Any], Body()], b: Annotated[list[Any], Body()]) -> None: ...


def body_and_form(a: Annotated[dict[str, Any], Body()], b: Annotated[str, Form()]) -> None: ...


def same_field(a: Annotated[str, Form()], b: Annotated[str, Form(alias="a")]) -> None: ...


def odd_query(a: Annotated[complex, Query()]) -> None: ...


def odd_header(a: Annotated[dict[str, str], Header()]) -> None: ...


def list_in_path(a: Annotated[list[int], Path()]) -> None: ...


def two_types(a: Annotated[int | str, Query()]) -> None: ...


def odd_body(a: Annotated[Odd, Body()]) -> None: ...


def odd_keys(a: Annotated[dict[int, str], Body()]) -> None: ...


def odd_stream(a: Annotated[AsyncIterator[str], Body()]) -> None: ...


def file_in_query(a: Annotated[UploadFile, Query()]) -> None: ...


def nobody(a: int) -> None: ...


def inner(token: str) -> None: ...


def nobody_below(a: Annotated[None, Depends(inner)]) -> None: ...


def kept(a: Annotated[str, Query()]) -> None: ...


def keeps(a: Annotated[None, Depends(kept, ttl=5)]) -> None: ...


def round_and_round(a: Any) -> None: ...


round_and_round.__defaults__ = (Depends(round_and_round),)


async def generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (two_bodies, r"two_bodies\(b\).*two_bodies\(a\) already"),
        (body_and_form, r"body_and_form\(b\).*body_and_form\(a\) already"),
        (same_field, r"same_field\(b\).*same_field\(a\)"),
        (odd_query, r"odd_query\(a: Query\(\)\) got <class 'complex'>: .*UUID"),
        (odd_header, r"odd_header\(a: Header\(\)\)"),
        (list_in_path, r"list_in_path\(a: Path\(\)\)"),
        (two_types, r"two_types\(a: Query\(\)\)"),
        (odd_body, r"odd_body\(a: Body\(\)\).*Odd\.value: <class 'complex'>"),
        (unreadable, r"unreadable\(a: Body\(\)\).*NotThere"),
        (odd_keys, r"odd_keys\(a: Body\(\)\).*keys of a dict are strings"),
        (odd_stream, r"odd_stream\(a: Body\(\)\).*AsyncIterator\[bytes\]"),
        (file_in_query, r"file_in_query\(a: Query\(\)\)"),
        (nobody, r"nobody\(a\): nobody provides it: mark it with Body\(\)"),
        (nobody_below, r"nobody_below -> inner\(token\): nobody provides it"),
        (round_and_round, r"round_and_round -> round_and_round"),
        (keeps, r"kept: .*leave out the ttl"),
        (generator, r"let a function return NDJSON"),
        (5, r"endpoint\(func\) got 5"),
    ],
)
def test_a_function_that_cannot_be_one(func: Any, message: str) -> None:
    with pytest.raises(kit.ConfigurationError, match=message):
        endpoint(func)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Query(alias=3),  # type: ignore[arg-type]
        lambda: Body(max_size=0),
        lambda: Body(max_size=True),
        lambda: Body(max_size="1"),  # type: ignore[arg-type]
        lambda: Body(content_types="text/plain"),
        lambda: Body(content_types=["*/*"]),
        lambda: Form(max_size=-1),
        lambda: Form(max_count=0),
        lambda: endpoint(methods="GET"),
        lambda: endpoint(methods=[]),
        lambda: endpoint(methods=[1]),  # type: ignore[list-item]
        lambda: endpoint(status=204),
        lambda: endpoint(status=True),
        lambda: endpoint(status="200"),  # type: ignore[call-overload]
    ],
)
def test_an_argument_that_cannot_be_used(make: Callable[[], Any]) -> None:
    with pytest.raises(kit.ConfigurationError):
        make()


MARKER = Query()


def alike(x: Annotated[int, MARKER], y: Annotated[str, MARKER]) -> None: ...


def unlike(x: Annotated[int, MARKER], y: Annotated[complex, MARKER] = 0) -> None: ...


def test_a_marker_may_stand_at_many_parameters() -> None:
    """As that of a type alias does; each has its own type."""
    endpoint(alike)
    with pytest.raises(kit.ConfigurationError, match=r"unlike\(y: .*complex"):
        endpoint(unlike)


def called_alike(alias: str) -> Any:
    async def func(x: Any) -> Any:
        return x

    func.__annotations__ = {"x": Annotated[str, Query(alias=alias)]}
    return endpoint(func)


def test_functions_may_have_the_same_name(run_asyncio: Run) -> None:
    for app, found in [(called_alike("a"), 1), (called_alike("b"), 2)]:
        assert run_asyncio(lambda app=app: ask(app, query_string=b"a=1&b=2")).json() == str(found)


@pytest.mark.parametrize(
    "error",
    [
        kit.InvalidRequestError([("query", "a", "it is missing")]),
        kit.MalformedBodyError("odd", (1, 2, 1)),
        kit.UnsupportedBodyError("text/plain", ["application/json"]),
        kit.BodyTooLargeError(5, "The form", "parts"),
        kit.ClientDisconnectedError(),
    ],
)
def test_errors_go_to_other_processes(error: Exception) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert str(found) == str(error)
    assert vars(found) == vars(error)
