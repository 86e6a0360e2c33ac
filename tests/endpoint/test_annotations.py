"""Annotations that are strings, which are read anew for each plan."""

from __future__ import annotations

from typing import Annotated, Any

from asgi_perfkit import Body, Depends, Form, Header, PerfKit, Query, endpoint
from tests.conftest import Run
from tests.endpoint.driver import ask


async def user(
    token: Annotated[str, Header()],
    ids: Annotated[list[int], Query()] = [0],  # noqa: B006
) -> Any:
    return [token, ids]


@endpoint
async def with_body(
    user: Annotated[Any, Depends(user)], body: Annotated[dict[str, int], Body(content_types=["*"])]
) -> Any:
    return [user, body]


@endpoint
async def with_form(
    user: Annotated[Any, Depends(user)], name: Annotated[str, Form(max_size=5)]
) -> Any:
    return [user, name]


def test_parameters_beside_dependencies(run: Run) -> None:
    headers = [(b"token", b"ann")]
    for app in (with_body, PerfKit(with_body)):
        answer = run(lambda app=app: ask(app, b'{"a":1}', headers=headers, query_string=b"ids=3"))
        assert answer.json() == [["ann", [3]], {"a": 1}]
    headers.append((b"content-type", b"application/x-www-form-urlencoded"))
    answer = run(lambda: ask(with_form, b"name=tea", headers=headers))
    assert answer.json() == [["ann", [0]], "tea"]


async def first(number: Annotated[int, Query()]) -> int:
    return number


def second(number: Annotated[int, Query()]) -> int:
    return number * 2


@endpoint
async def at_once(
    one: Annotated[int, Depends(first, concurrent=True)],
    two: Annotated[int, Depends(second, concurrent=True)],
) -> Any:
    return [one, two]


def test_parameters_of_dependencies_that_are_made_at_once(run: Run) -> None:
    for app in (at_once, PerfKit(at_once)):
        assert run(lambda app=app: ask(app, query_string=b"number=4")).json() == [4, 8]
