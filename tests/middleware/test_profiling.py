"""ProfilingMiddleware: whose request is profiled, under which name, and what wrong arguments get."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    ConfigurationError,
    PerfKit,
    PerformanceMiddleware,
    Profiles,
    ProfilingMiddleware,
    Registry,
    ResourceMiddleware,
    get_profile_stats,
    reset_profile_stats,
)
from asgi_perfkit.steps import current_account
from tests.conftest import Run
from tests.support import (
    BODY,
    LOGGER,
    START,
    App,
    Receive,
    Scope,
    Send,
    Server,
    Trouble,
    checkpoint,
    http_scope,
    saying,
    together,
    websocket_scope,
)

SLOW = {"slow_threshold": 1e-9, "stall_threshold": None}

# Each profiles every request as a slow one, in another place.
AROUND: dict[str, Callable[[App, Profiles], App]] = {
    "alone": lambda app, profiles: ProfilingMiddleware(app, profiles=profiles, **SLOW),
    "in the stack": lambda app, profiles: PerfKit(
        app, performance={"registry": Registry()}, profiling={"profiles": profiles, **SLOW}
    ),
    "in the stack, without metrics": lambda app, profiles: PerfKit(
        app, performance=False, profiling={"profiles": profiles, **SLOW}
    ),
    "inside of metrics": lambda app, profiles: PerformanceMiddleware(
        ProfilingMiddleware(app, profiles=profiles, **SLOW), registry=Registry()
    ),
    "around metrics": lambda app, profiles: ProfilingMiddleware(
        PerformanceMiddleware(app, registry=Registry()), profiles=profiles, **SLOW
    ),
    "inside of others": lambda app, profiles: ResourceMiddleware(
        BackgroundTaskMiddleware(ProfilingMiddleware(app, profiles=profiles, **SLOW))
    ),
    "twice": lambda app, profiles: ProfilingMiddleware(
        ProfilingMiddleware(app, profiles=profiles, **SLOW), profiles=profiles, **SLOW
    ),
}


@pytest.fixture(params=AROUND.values(), ids=AROUND)
def around(request: pytest.FixtureRequest) -> Callable[[App, Profiles], App]:
    return request.param


async def serve(app: App, scope: Scope) -> list[Any]:
    server = Server()
    await app(scope, server.receive, server.send)
    return server.heard


def slow(profiles: Profiles) -> list[dict[str, Any]]:
    return get_profile_stats(profiles=profiles)["slow"]


def test_every_request_is_profiled_once(run: Run, around: Any) -> None:
    """Wherever the middleware stands, and under the name that the metrics have for its endpoint."""
    profiles = Profiles()

    async def main() -> None:
        app = around(saying(START, BODY), profiles)
        assert await serve(app, http_scope("/items/17")) == [START, BODY]
        assert await serve(app, http_scope("/other", method="POST")) == [START, BODY]

    run(main)
    assert sorted(record["endpoint"] for record in slow(profiles)) == [
        "GET /items/{id}",
        "POST /other",
    ]
    assert {record["outcome"] for record in slow(profiles)} == {"ok"}
    assert profiles.failures == 0


@pytest.mark.parametrize("waits", [False, True])
def test_what_the_app_raises_goes_on(run: Run, around: Any, waits: bool) -> None:
    """The same object reaches the server; the request is profiled as one that has failed."""
    profiles, trouble = Profiles(), Trouble()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if waits:
            await checkpoint()
        raise trouble

    async def main() -> None:
        with pytest.raises(Trouble) as caught:
            await serve(around(app, profiles), http_scope())
        assert caught.value is trouble

    run(main)
    assert [record["outcome"] for record in slow(profiles)] == ["error"]


def test_an_app_that_raises_when_it_is_called(run: Run, around: Any) -> None:
    """Before there is anything to await."""
    profiles, trouble = Profiles(), Trouble()

    def app(scope: Scope, receive: Receive, send: Send) -> Any:
        raise trouble

    async def main() -> None:
        with pytest.raises(Trouble) as caught:
            await serve(around(app, profiles), http_scope())
        assert caught.value is trouble

    run(main)
    assert [record["outcome"] for record in slow(profiles)] == ["error"]


def test_child_tasks_have_the_profile_of_their_request(run: Run, around: Any) -> None:
    """That of no other, and none once the request is over."""
    seen: list[Any] = []

    async def note() -> None:
        account = current_account.get()
        assert account is not None
        while account.profile is None and account.parent is not None:
            account = account.parent
        seen.append(account.profile)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await together(note, note)
        await saying(START, BODY)(scope, receive, send)

    async def main() -> None:
        await serve(around(app, Profiles()), http_scope())
        assert current_account.get() is None

    run(main)
    assert len(seen) == 2
    assert None not in seen


@pytest.mark.parametrize("kind", ["lifespan", "unheard of"])
def test_what_is_no_request_passes(run: Run, around: Any, kind: str) -> None:
    """A lifespan, and a kind of scope that is not known."""
    profiles = Profiles()
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})

    async def main() -> None:
        server = Server({"type": "lifespan.startup"})
        scope = {"type": kind}
        await around(app, profiles)(scope, server.receive, server.send)
        assert seen == [scope]
        assert server.heard == [{"type": "lifespan.startup.complete"}]

    run(main)
    assert slow(profiles) == []


def test_connections_are_named_as_such(run: Run) -> None:
    """And are not kept as slow requests: they are long by their nature."""
    profiles = Profiles()
    labels: list[str] = []

    async def main() -> None:
        app = ProfilingMiddleware(saying({"type": "websocket.close"}), profiles=profiles, **SLOW)
        label = app._profiler.label
        app._profiler.label = lambda *arguments: labels.append(label(*arguments)) or labels[-1]
        await serve(app, websocket_scope("/live/7"))

    run(main)
    assert slow(profiles) == []
    assert set(labels) <= {"WEBSOCKET /live/{id}"}


def test_the_users_own_names(run: Run) -> None:
    """`endpoint` names them where no metrics do; a name that cannot be told costs that alone."""
    profiles = Profiles()

    def name(scope: Scope) -> str | None:
        if scope["path"] == "/raises":
            raise Trouble
        return {"/named": "/mine"}.get(scope["path"])

    async def main() -> None:
        app = ProfilingMiddleware(saying(START, BODY), profiles=profiles, endpoint=name, **SLOW)
        for path in "/named", "/other/5", "/raises":
            await serve(app, http_scope(path))

    run(main)
    assert sorted(record["endpoint"] for record in slow(profiles)) == [
        "GET /mine", "GET /other/{id}", "GET /raises",
    ]  # fmt: skip
    assert profiles.failures == 1


def test_a_profiler_that_fails_harms_no_request(
    run: Run, around: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the kit does wrong itself is logged once and counted."""
    profiles = Profiles()
    monkeypatch.setattr(profiles.slow, "statistics", list)

    def fail(*arguments: Any, **options: Any) -> None:
        raise Trouble

    monkeypatch.setattr(type(profiles.slow), "add", fail)

    async def main() -> None:
        app = around(saying(START, BODY), profiles)
        for _ in range(3):
            assert await serve(app, http_scope()) == [START, BODY]

    run(main)
    assert profiles.failures == 3
    assert [record.levelno for record in caplog.records if record.name == LOGGER] == [logging.ERROR]


def test_the_default_profiles(run: Run) -> None:
    """Those that are read and reset where no others are named."""
    reset_profile_stats()
    run(serve, PerfKit(saying(START, BODY), profiling=SLOW), http_scope("/default"))
    assert [record["endpoint"] for record in get_profile_stats()["slow"]] == ["GET /default"]
    reset_profile_stats()
    assert get_profile_stats()["slow"] == []


def test_the_statistics_have_these_parts() -> None:
    """Before there is anything to tell, too."""
    stats = get_profile_stats(profiles=Profiles())
    assert stats["queries"] == {}
    assert stats["stalls"] == []
    assert stats["slow"] == []
    assert stats["cpu"] == {}
    assert isinstance(stats["allocations"], dict)


@pytest.mark.parametrize(
    ("option", "value", "builtin"),
    [
        ("profiles", {}, TypeError),
        ("endpoint", "/items", TypeError),
        ("sample_hz", "100", TypeError),
        ("sample_hz", True, TypeError),
        ("sample_hz", -1, ValueError),
        ("sample_hz", 1001, ValueError),
        ("sample_hz", 1e-10, ValueError),
        ("sample_hz", float("nan"), ValueError),
        ("exact", 0, ValueError),
        ("exact", True, TypeError),
        ("exact", 0.5, TypeError),
        ("exact", "x-profile", TypeError),
        ("exact", serve, TypeError),
        ("queries", 1, TypeError),
        ("queries", None, TypeError),
        ("stall_threshold", 0, ValueError),
        ("stall_threshold", -0.1, ValueError),
        ("stall_threshold", float("inf"), ValueError),
        ("stall_threshold", "0.1", TypeError),
        ("stall_threshold", 10**40, ValueError),
        ("slow_threshold", 0, ValueError),
        ("slow_threshold", float("nan"), ValueError),
        ("slow_threshold", False, TypeError),
        ("max_memory", 1000, ValueError),
        ("max_memory", 1e7, TypeError),
        ("max_memory", True, TypeError),
    ],
)
def test_a_wrong_value_fails_at_construction(
    option: str, value: Any, builtin: type[Exception]
) -> None:
    """In the stack and alone; the message names option and value."""
    for make in (
        lambda: ProfilingMiddleware(saying(), **{option: value}),
        lambda: PerfKit(saying(), profiling={option: value}),
    ):
        with pytest.raises(builtin, match=option) as caught:
            make()
        assert isinstance(caught.value, ConfigurationError)
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("app", [None, "module:app", 5])
def test_an_app_is_a_callable(app: Any) -> None:
    with pytest.raises(TypeError, match="callable") as caught:
        ProfilingMiddleware(app)
    assert isinstance(caught.value, ConfigurationError)


def test_the_requests_that_are_profiled_exactly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each so many, not always the same of them; of a function, those that it picks."""
    begun: list[str] = []

    async def main(exact: Any, requests: int) -> None:
        app = ProfilingMiddleware(saying(START, BODY), profiles=Profiles(), exact=exact)
        monkeypatch.setattr(
            app._profiler, "begin_exact", lambda exchange: begun.append(exchange.path)
        )
        for number in range(requests):
            await serve(app, http_scope(f"/{number}"))

    run(main, 4, 200)
    chosen = [divmod(int(path[1:]), 4) for path in begun]
    assert [block for block, _ in chosen] == list(range(50))
    assert {place for _, place in chosen} == {0, 1, 2, 3}  # but once in a million times
    begun.clear()
    run(main, lambda scope: scope["path"] == "/2", 9)
    assert begun == ["/2"]


def test_a_function_that_cannot_pick_picks_none(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    profiles = Profiles()

    def pick(scope: Scope) -> bool:
        raise Trouble

    async def main() -> None:
        app = ProfilingMiddleware(saying(START, BODY), profiles=profiles, exact=pick)
        for _ in range(2):
            assert await serve(app, http_scope()) == [START, BODY]

    run(main)
    assert profiles.failures == 2
    assert len(caplog.records) == 1
