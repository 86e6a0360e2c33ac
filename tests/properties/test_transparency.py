"""Whatever an app and a server say to each other, through the middleware they hear the same: the very objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_perfkit import (
    PerfKit,
    PerformanceMiddleware,
    Profiles,
    ProfilingMiddleware,
    Registry,
)
from tests.support import (
    App,
    Receive,
    Scope,
    Send,
    Trouble,
    checkpoint,
    http_scope,
    in_flight,
    outcomes,
    websocket_scope,
)

Run = Callable[..., Any]
Trace = list[tuple[Any, ...]]

# The fixtures `run...` are plain functions: there is nothing to set up anew for each example.
arbitrary = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])

# What is said

flags = st.sampled_from([True, False, None, 0, "yes"])
bodies = st.one_of(
    st.binary(max_size=8),
    st.none(),
    st.just(7),
    st.just("text"),
    st.builds(bytearray, st.just(b"ab")),
)
statuses = st.sampled_from([100, 200, 204, 404, 500, 999, 0, -1, 1000, "200", None, True, 2.5])
headers = st.one_of(
    st.just([]), st.just(()), st.just([(b"a", b"b")]), st.none(), st.just([("a", 1)]), st.just(5)
)


def message(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Messages of a kind, with any of these fields there or missing."""
    return st.fixed_dictionaries({"type": st.just(kind)}, optional=fields)


http_messages = st.one_of(
    message("http.response.start", status=statuses, headers=headers, trailers=flags),
    message("http.response.body", body=bodies, more_body=flags),
    message("http.response.trailers", headers=headers, more_trailers=flags),
    message(
        "http.response.pathsend", path=st.sampled_from(["/", "/nowhere", "", "\0", None, 10**6])
    ),
    message(
        "http.response.zerocopysend",
        file=st.sampled_from([0, 10**6, -1, None, "x"]),
        offset=st.sampled_from([0, 5, None, "x"]),
        count=st.sampled_from([0, 5, None, "x"]),
        more_body=flags,
    ),
    message("http.response.push", path=st.just("/style.css"), headers=headers),
    message("http.response.early_hint", links=st.just([b"</style.css>"])),
    message(
        "http.response.debug", info=st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    ),
    message("http.request", body=bodies, more_body=flags),
    message("http.disconnect"),
)
websocket_messages = st.one_of(
    message("websocket.connect"),
    message("websocket.accept", subprotocol=st.none(), headers=headers),
    message("websocket.receive", text=st.text(max_size=3), bytes=bodies),
    message("websocket.send", text=st.text(max_size=3), bytes=bodies),
    message(
        "websocket.disconnect",
        code=st.sampled_from([1000, 1005, 1006, None, "1006"]),
        reason=st.text(max_size=3),
    ),
    message("websocket.close", code=st.sampled_from([1000, 1006, None]), reason=st.none()),
    message("websocket.http.response.start", status=statuses, headers=headers),
    message("websocket.http.response.body", body=bodies, more_body=flags),
)
other_messages = st.one_of(
    message("lifespan.startup"),
    message("http.response.unheard_of", anything=st.just([])),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.builds(
        lambda kind: {"type": kind}, st.sampled_from([None, 5, (), [], b"http.response.start"])
    ),
    st.sampled_from([None, "http.response.start", b"", 5, (), ("type",), ["type"], object()]),
)
errors = st.sampled_from(
    [Trouble, OSError, ConnectionResetError, TimeoutError, RuntimeError, KeyError, TypeError]
).map(lambda kind: kind("made up"))

# What is done: by the app, one after another; by the server, for each call of its `receive` and `send`.


def deeds(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What an app does, mostly sending `messages`."""
    sending = st.tuples(st.just("send"), messages)
    others = st.one_of(
        st.tuples(st.just("receive")),
        st.tuples(st.just("pause")),
        st.tuples(
            st.just("mutate"),
            st.sampled_from(["path", "type", "method", "route", "new"]),
            st.just(object()),
        ),
        st.tuples(st.just("forget"), st.sampled_from(["path", "type", "method", "headers"])),
        st.tuples(st.just("raise"), errors),
    )
    return st.lists(st.one_of(sending, sending, sending, others), max_size=10)


def scripts(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What the app does, what the server says, how it reacts, and whether the app goes on after an exception."""
    answers = st.lists(st.one_of(messages, messages, errors), max_size=6)
    reactions = st.lists(st.one_of(st.none(), st.none(), st.none(), errors), max_size=6)
    return st.tuples(deeds(messages), answers, reactions, st.booleans())


http = st.one_of(http_messages, http_messages, http_messages, websocket_messages, other_messages)
websocket = st.one_of(websocket_messages, websocket_messages, http_messages, other_messages)
anything = st.one_of(http_messages, websocket_messages, other_messages)

http_plays = st.tuples(
    st.builds(http_scope, method=st.sampled_from(["GET", "HEAD", "BREW", ""])), scripts(http)
)
websocket_plays = st.tuples(st.builds(websocket_scope), scripts(websocket))
other_plays = st.tuples(
    st.builds(http_scope, type=st.sampled_from(["webtransport", "", None])), scripts(anything)
)
plays = st.one_of(http_plays, http_plays, websocket_plays, websocket_plays, other_plays)


class Play:
    """One run of what hypothesis has made up: what the app and the server see of each other."""

    def __init__(
        self, deeds: list[tuple[Any, ...]], answers: list[Any], reactions: list[Any], careful: bool
    ) -> None:
        self.trace: Trace = []
        self._deeds = deeds
        self._answers = answers
        self._reactions = reactions
        self._careful = careful
        self._received = self._sent = 0

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.trace.append(("called", scope))
        for deed, *what in self._deeds:
            try:
                if deed == "send":
                    self.trace.append(("sent", await send(what[0])))
                elif deed == "receive":
                    self.trace.append(("received", await receive()))
                elif deed == "mutate":
                    scope[what[0]] = what[1]
                elif deed == "forget":
                    scope.pop(what[0], None)
                elif deed == "pause":
                    await checkpoint()
                else:
                    raise what[0]
            except Exception as error:
                self.trace.append(("failed", error, error.__context__, error.__cause__))
                if not self._careful:
                    raise

    async def receive(self) -> Any:
        await checkpoint()
        number, self._received = self._received, self._received + 1
        self.trace.append(("asked", number))
        answer = (
            self._answers[number] if number < len(self._answers) else {"type": "http.disconnect"}
        )
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def send(self, message: Any) -> None:
        number, self._sent = self._sent, self._sent + 1
        self.trace.append(("told", message))
        await checkpoint()
        reaction = self._reactions[number] if number < len(self._reactions) else None
        if reaction is not None:
            raise reaction

    def run(self, run: Run, wrap: Callable[[App], App], scope: Scope) -> Trace:
        """Run the app, wrapped; everything that was seen on both sides, and how it ended."""

        async def main() -> None:
            try:
                result = await wrap(self.app)(scope, self.receive, self.send)
            except Exception as error:
                self.trace.append(("raised", error, error.__context__, error.__cause__))
            else:
                self.trace.append(("returned", result))

        run(main)
        self.trace.append(("left behind", *scope.items()))
        return self.trace


def same(one: object, other: object) -> bool:
    """Whether two events are of the same objects; the receiver's default answer and numbers need only be equal."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return (
        one is other
        or (isinstance(one, (str, int)) and one == other)
        or one == other == {"type": "http.disconnect"}
    )


def compare(
    run: Run, wrap: Callable[[App], App], scope: Scope, script: tuple[Any, Any, Any, bool]
) -> None:
    """Play the same natively and wrapped, with the same objects, and compare all that was seen."""
    untouched = dict(scope)
    natively = Play(*script).run(run, lambda app: app, scope)
    seen_scope = natively[0][1]
    assert seen_scope is scope
    # The exceptions are used again: what they have picked up must not look as if it came of the second run.
    for _, *things in natively:
        for thing in things:
            if isinstance(thing, BaseException):
                thing.__traceback__ = thing.__context__ = None
    scope.clear()
    scope.update(untouched)
    wrapped = Play(*script).run(run, wrap, scope)
    assert len(wrapped) == len(natively)
    for one, other in zip(wrapped, natively, strict=True):
        assert same(one, other), (one, other)


@arbitrary
@given(play=plays)
def test_nothing_that_is_said_changes(run: Run, play: tuple[Scope, Any]) -> None:
    """Messages of every kind, right or wrong, arrive as the very objects, in order; so do exceptions and the scope."""
    scope, script = play
    registry = Registry()
    kind = scope["type"]
    compare(run, lambda app: PerformanceMiddleware(app, registry=registry), scope, script)
    assert in_flight(registry) == 0
    recorded = sum(outcomes(registry).values())
    assert recorded == (kind in {"http", "websocket"})


@arbitrary
@given(play=plays)
def test_nothing_that_is_said_changes_through_several_layers(
    run_trio: Run, play: tuple[Scope, Any]
) -> None:
    """The same holds for the whole kit around an app that has a middleware, and another registry, of its own."""
    scope, script = play
    registry = Registry()
    compare(
        run_trio,
        lambda app: PerfKit(
            PerformanceMiddleware(
                PerformanceMiddleware(app, registry=registry), registry=Registry()
            ),
            profiling={"profiles": Profiles()},
        ),
        scope,
        script,
    )
    assert in_flight(registry) == 0


@arbitrary
@given(play=plays)
def test_nothing_that_is_said_changes_under_a_profiler(
    run_asyncio: Run, play: tuple[Scope, Any]
) -> None:
    """One that stands alone, and profiles each request exactly, too."""
    profiles = Profiles()
    compare(run_asyncio, lambda app: ProfilingMiddleware(app, profiles=profiles, exact=1), *play)
    assert profiles.failures == 0


@arbitrary
@given(play=http_plays)
def test_server_timing_touches_nothing_but_the_start(
    run_asyncio: Run, play: tuple[Scope, Any]
) -> None:
    """With `server_timing` only start messages differ, by that header; the app's own are left as they are."""
    scope, script = play
    said = [deed[1] for deed in script[0] if deed[0] == "send"]
    before = [dict(message) if isinstance(message, dict) else message for message in said]
    registry = Registry()
    played = Play(*script)
    played.run(
        run_asyncio,
        lambda app: PerformanceMiddleware(app, registry=registry, server_timing=True),
        scope,
    )
    assert said == before
    told = [event[1] for event in played.trace if event[0] == "told"]
    for heard, sent in zip(told, said, strict=False):
        if heard is sent:
            continue
        assert sent["type"] == heard["type"] == "http.response.start"
        assert {**heard, "headers": None} == {**sent, "headers": None}
        added = [
            header for header in heard["headers"] if header not in list(sent.get("headers", ()))
        ]
        assert [name for name, _ in added] == [b"server-timing"]


@arbitrary
@given(script=scripts(anything))
def test_a_lifespan_that_has_begun_to_speak_changes_nothing(run: Run, script: Any) -> None:
    """An app that has received or sent anything is on its own, whatever comes of it."""
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    doing, *rest = script
    compare(run, PerformanceMiddleware, scope, ([("receive",), *doing], *rest))


def test_the_comparison_can_fail(run: Run) -> None:
    """A middleware that copies a message, drops one or makes another exception is found out."""
    start = {"type": "http.response.start", "status": 200}
    script = ([("send", start), ("raise", Trouble("made up"))], [], [], False)

    def copying(app: App) -> App:
        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, lambda message: send({**message}))

        return layer

    def dropping(app: App) -> App:
        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            async def drop(message: Any) -> None:
                pass

            await app(scope, receive, drop)

        return layer

    def translating(app: App) -> App:
        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except Trouble as error:
                raise Trouble from error

        return layer

    def copying_scope(app: App) -> App:
        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            await app(dict(scope), receive, send)

        return layer

    for wrong in copying, dropping, translating, copying_scope:
        with pytest.raises(AssertionError):
            compare(run, wrong, http_scope(), script)
    compare(run, lambda app: app, http_scope(), script)
