"""From the request to the response: the call, the answer, the order of things, and how they end."""

import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import pytest

import asgi_perfkit as kit
from asgi_perfkit import (
    JSON,
    NDJSON,
    Body,
    Depends,
    Header,
    PerfKit,
    Query,
    Registry,
    current_resources,
    dependency_overrides,
    endpoint,
)
from tests.conftest import Run
from tests.endpoint.driver import ask
from tests.support import Trouble, checkpoint, http_scope, outcomes, websocket_scope


@pytest.fixture(params=[False, True], ids=["bare", "in PerfKit"])
def around(request: pytest.FixtureRequest) -> Any:
    """What is around the endpoint."""
    return PerfKit if request.param else lambda app: app


def test_what_a_function_returns_is_the_json_that_is_answered(run: Run, around: Any) -> None:
    @endpoint(status=201)
    async def app() -> dict[str, int]:
        return {"number": 7}

    answer = run(ask, around(app))
    assert answer.status == 201
    assert answer.body == b'{"number":7}'
    assert answer.headers == {b"content-type": b"application/json", b"content-length": b"12"}


def test_a_plain_function_runs_in_a_thread(run: Run, around: Any) -> None:
    @endpoint
    def app(*, a: Annotated[int, Query()]) -> Any:
        return [threading.current_thread() is threading.main_thread(), a]

    assert run(lambda: ask(around(app), query_string=b"a=3")).json() == [False, 3]


def test_what_is_an_app_answers_itself(run: Run, around: Any) -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1
        yield 2

    @endpoint
    async def app() -> NDJSON:
        return NDJSON(rows())

    assert run(ask, around(app)).body == b"1\n2\n"
    assert run(ask, around(endpoint(lambda: JSON([1], 202)))).status == 202


def test_none_is_null_unless_nothing_else_is_ever_returned(run: Run) -> None:
    async def nothing() -> None:
        pass

    async def maybe() -> dict[str, int] | None:
        return None

    answer = run(ask, endpoint(nothing))
    assert (answer.status, answer.body, answer.headers) == (204, b"", {})
    answer = run(ask, endpoint(maybe))
    assert (answer.status, answer.body) == (200, b"null")


def test_head_has_the_headers_and_no_body(run: Run) -> None:
    @endpoint(methods=["get"])
    async def app() -> list[int]:
        return [1, 2]

    answer = run(lambda: ask(app, method="HEAD"))
    assert (answer.body, answer.headers[b"content-length"]) == (b"", b"5")


def test_another_method_is_not_allowed(run: Run) -> None:
    @endpoint(methods=["get", "PATCH"])
    async def app() -> None:
        raise AssertionError("it is not called")

    answer = run(lambda: ask(app, method="DELETE"))
    assert (answer.status, answer.headers[b"allow"]) == (405, b"GET, HEAD, PATCH")


def test_the_arguments_of_an_asgi_app_are_known_by_name(run: Run, around: Any) -> None:
    @endpoint
    async def app(scope: Any, receive: Any, send: Any) -> Any:
        message = await receive()
        return [scope["path"], message["body"].decode(), callable(send)]

    assert run(lambda: ask(around(app), b"tea")).json() == ["/things", "tea", True]


def test_dependencies_have_parameters_of_the_request_too(run: Run, around: Any) -> None:
    async def user(token: Annotated[str, Header()]) -> str:
        return token.upper()

    @endpoint
    async def app(
        user: Annotated[str, Depends(user)],
        body: Annotated[Any, Body()],
        page: Annotated[int, Query()] = 1,
    ) -> Any:
        return [user, body, page]

    headers = ((b"token", b"ann"), (b"content-type", b"application/json"))
    assert run(lambda: ask(around(app), b"5", headers=headers)).json() == ["ANN", 5, 1]
    assert run(lambda: ask(around(app), b"5")).problems == [("header", "token", "it is missing")]


def test_what_an_override_wants_is_read_instead(run: Run) -> None:
    async def user(token: Annotated[str, Header()]) -> str:
        raise AssertionError("it is not called")

    async def other(name: Annotated[str, Query()]) -> str:
        return name

    @endpoint
    async def app(user: Annotated[str, Depends(user)]) -> str:
        return user

    async def main() -> Any:
        with dependency_overrides({user: other}):
            return await ask(app, query_string=b"name=Bob")

    assert run(main).json() == "Bob"


def test_resources_are_open_until_the_response_is_out(run: Run, around: Any) -> None:
    """Also those that the body of a streamed response needs; and not before the request is read."""
    events: list[str] = []

    async def database() -> AsyncIterator[str]:
        events.append("open")
        yield "database"
        events.append("close")

    @endpoint
    async def app(db: Annotated[str, Depends(database)], body: Annotated[Any, Body()]) -> NDJSON:
        async def rows() -> AsyncIterator[str]:
            events.append("row")
            yield db

        return NDJSON(rows())

    assert run(lambda: ask(around(app), b"{")).status == 400
    assert events == []
    assert run(lambda: ask(around(app), b"{}")).body == b'"database"\n'
    assert events == ["open", "row", "close"]


def test_a_function_has_resources_of_its_request(run: Run, around: Any) -> None:
    closed = []

    @endpoint
    async def app() -> int:
        async def close() -> None:
            closed.append(1)

        current_resources().push_async_callback(close)
        return len(closed)

    assert run(ask, around(app)).json() == 0
    assert closed == [1]


@pytest.mark.parametrize("error", [Trouble("it failed"), kit.EncodeError("$", "x", "y")])
def test_an_exception_of_the_function_reaches_the_server(
    run: Run, around: Any, error: Exception
) -> None:
    seen = []

    async def database() -> AsyncIterator[None]:
        try:
            yield
        except Exception as raised:
            seen.append(raised)
            raise

    @endpoint
    async def app(db: Annotated[None, Depends(database)]) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run(ask, around(app))
    assert caught.value is error
    assert seen == [error]


def test_a_refusal_of_the_function_is_answered_and_undoes_what_is_open(
    run: Run, around: Any
) -> None:
    """A transaction sees the exception, though the server does not."""
    seen = []

    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        except Exception as raised:
            seen.append(raised)
            raise

    @endpoint
    async def app(db: Annotated[None, Depends(transaction)]) -> None:
        raise kit.InvalidRequestError([("query", "a", "it is smaller than b")])

    assert run(ask, around(app)).problems == [("query", "a", "it is smaller than b")]
    assert [type(each) for each in seen] == [kit.InvalidRequestError]


def test_a_refusal_behind_the_answer_is_the_servers(run: Run) -> None:
    @endpoint
    async def app() -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            raise kit.MalformedBodyError("of another service")

        return answer

    with pytest.raises(kit.MalformedBodyError, match="of another service"):
        run(ask, app)


def test_who_hangs_up_in_the_upload_is_not_answered(run: Run) -> None:
    registry = Registry()
    closed = []

    async def database() -> AsyncIterator[None]:
        try:
            yield
        finally:
            closed.append(1)

    @endpoint
    async def app(
        db: Annotated[None, Depends(database)], body: Annotated[AsyncIterator[bytes], Body()]
    ) -> list[int]:
        return [len(chunk) async for chunk in body]

    @endpoint
    async def whole(body: Annotated[Any, Body()]) -> None:
        raise AssertionError("it is not called")

    options = {"performance": {"registry": registry}}
    for each in (app, whole):
        answer = run(lambda each=each: ask(PerfKit(each, **options), b"[1,", hangs_up=True))
        assert answer.messages == []
        assert run(lambda each=each: ask(each, b"[1,", hangs_up=True)).messages == []
    assert outcomes(registry) == {"disconnected": 2}
    assert closed == [1, 1]


def test_an_endpoint_is_the_app_of_a_server(run: Run) -> None:
    """It has nothing to start or to stop, and closes websockets; what it does not know, it says."""
    app = endpoint(lambda: None)
    says = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    heard = []

    async def receive() -> Any:
        return says.pop(0)

    async def send(message: Any) -> None:
        heard.append(message["type"])

    async def main() -> None:
        await app({"type": "lifespan"}, receive, send)
        await app(websocket_scope(), receive, send)
        with pytest.raises(kit.ConfigurationError, match="http requests and nothing else"):
            await app(http_scope(type="telnet"), receive, send)

    run(main)
    assert heard == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


def test_in_a_route_of_starlette(run_asyncio: Run) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount, Route

    @endpoint
    async def item(shop: Annotated[str, kit.Path()], item_id: Annotated[int, kit.Path()]) -> Any:
        return [shop, item_id]

    app = Starlette(routes=[Mount("/{shop}", routes=[Route("/items/{item_id:int}", item)])])
    answer = run_asyncio(lambda: ask(PerfKit(app), path="/tea/items/5", raw_path=b"/tea/items/5"))
    assert answer.json() == ["tea", 5]
    assert item.__name__ == "item"
    assert repr(item) == "<endpoint item>"


def test_a_body_that_nobody_wants_does_not_keep_the_response(run: Run) -> None:
    """As with hypercorn, whose `send` of the end waits until there is room for the rest of the body."""

    async def main() -> list[str]:
        heard = []
        room = anyio.Event()
        left = 12

        async def receive() -> Any:
            nonlocal left
            await checkpoint()
            left -= 1
            if left == 2:
                room.set()
            return {"type": "http.request", "body": b"x", "more_body": left > 0}

        async def send(message: Any) -> None:
            if message.get("more_body") is False:
                await room.wait()
            heard.append(message["type"])

        headers = [(b"content-length", b"12")]
        await endpoint(lambda: 5)(http_scope(method="POST", headers=headers), receive, send)
        return heard

    assert run(main) == ["http.response.start", "http.response.body"]
