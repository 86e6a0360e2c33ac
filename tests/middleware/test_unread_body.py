"""A server that does not take the end of a response as long as the body of its request is not read, as hypercorn."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asgi_perfkit import PerformanceMiddleware, Registry, add_task
from tests.conftest import Run
from tests.middleware.serving import WRAPS, cancel_when, event, live
from tests.support import (
    BODY,
    DISCONNECT,
    REQUEST,
    START,
    App,
    Message,
    Receive,
    Scope,
    Send,
    Server,
    Trouble,
    checkpoint,
    forever,
    http_scope,
    saying,
    the_figures,
    together,
)

ROOM = 3
KIBIBYTE = 1024


def parts(count: int, size: int = 1) -> list[Message]:
    """A body of so many messages, and its end."""
    return [
        *(
            {"type": "http.request", "body": b"%c" % (97 + number % 26) * size, "more_body": True}
            for number in range(count)
        ),
        REQUEST,
    ]


def post(**items: Any) -> Scope:
    return http_scope(method="POST", **{"headers": [(b"content-length", b"9")], **items})


class Queueing:
    """The server's side of a request, with room for a few messages that the app has not received.

    The disconnect behind the response takes a place, too, and the `send` of the last message waits for it.

    :param body: what the client uploads; the upload stops when the response is complete.
    :ivar received: the messages that were taken out, by whomever.
    :ivar heard: the response.
    :ivar complete: whether its last message has come.
    :ivar asked: how often it was asked for a message.
    :ivar most: how many received at the same time: each of two would take what the other waits for.
    """

    def __init__(self, body: list[Message], room: int = ROOM) -> None:
        self._body = body
        self._room = room
        self._receives = self.most = self.asked = 0
        self.received: list[Message] = []
        self.heard: list[Message] = []
        self.complete = False

    def open(self) -> None:
        """Make the queue; on the loop."""
        if asyncio._get_running_loop() is not None:
            queue: asyncio.Queue[Message] = asyncio.Queue(self._room)
            self._put, self._get = queue.put, queue.get
        else:
            import trio

            sending, receiving = trio.open_memory_channel[Message](self._room)
            self._put, self._get = sending.send, receiving.receive

    async def upload(self) -> None:
        for message in self._body:
            await self._put(message)
            if self.complete:
                break

    async def receive(self) -> Message:
        self.asked += 1
        self._receives += 1
        self.most = max(self.most, self._receives)
        try:
            message = await self._get()
        finally:
            self._receives -= 1
        self.received.append(message)
        return message

    async def send(self, message: Message) -> None:
        self.heard.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.complete = True
            await self._put(DISCONNECT)


async def serve(app: App, server: Queueing, scope: Scope | None = None) -> None:
    """Have a request answered whose body comes as fast as there is room for it."""
    server.open()
    uploaded = event()

    async def upload() -> None:
        await server.upload()
        uploaded.set()

    async def answer() -> None:
        for _ in range(10):  # the queue is full meanwhile, or the body is in
            await checkpoint()
        await app(post() if scope is None else scope, server.receive, server.send)
        while not uploaded.is_set():  # what the server does with the rest of the connection
            await server._get()

    await together(upload, answer)


async def read_all(receive: Receive) -> list[Message]:
    """What an app is told until there is nothing more to wait for."""
    messages = []
    while True:
        messages.append(await receive())
        if messages[-1]["type"] != "http.request":
            return messages


async def in_the_first_step(send: Send) -> None:
    await saying(START, BODY)({}, _nothing, send)


async def in_a_later_step(send: Send) -> None:
    await checkpoint()
    await saying(START, BODY)({}, _nothing, send)


async def in_a_child_task(send: Send) -> None:
    await together(lambda: in_the_first_step(send))


async def _nothing() -> Message:
    raise AssertionError("unreachable")


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("answer", [in_the_first_step, in_a_later_step, in_a_child_task])
def test_a_body_that_is_not_read_holds_no_task(
    answer: Callable[[Send], Awaitable[None]], wrap: Callable[..., App], run: Run
) -> None:
    """The call of the app ends, and its tasks run, wherever in it the response is sent."""
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            add_task(log.append, "task")
            await answer(send)
            log.append("returned")

    wrapped = wrap(app)
    server = Queueing(parts(20))
    run(live, wrapped, lambda: serve(wrapped, server))
    assert log == ["returned", "task"]
    assert server.heard == [START, BODY]


@pytest.mark.parametrize("body", [parts(20), parts(2)], ids=["large", "small"])
def test_the_app_loses_nothing(body: list[Message], run: Run) -> None:
    """Behind its response it receives all that the server has said, the very objects, in order."""
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.append(await receive())
        await in_the_first_step(send)
        told.extend(await read_all(receive))

    server = Queueing(body)
    run(serve, WRAPS["alone"](app), server)
    assert told == server.received[: len(told)]
    assert all(map(is_same, told, server.received))
    assert told[-1] is DISCONNECT
    if len(body) < 4:
        assert told[:-1] == body
    else:
        assert len(told) >= ROOM


def is_same(one: object, other: object) -> bool:
    return one is other


def test_no_more_is_read_than_is_needed(run: Run) -> None:
    """Of a long upload but what makes room."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_the_first_step(send)
        nonlocal read
        read = len(server.received)

    read = 0
    server = Queueing(parts(1000))
    run(serve, WRAPS["alone"](app), server)
    assert 1 <= read <= ROOM + 2


def test_a_body_that_is_too_large_to_keep_breaks_off(run: Run) -> None:
    """A server that lets `send` wait for all of the body gets rid of it; the app gets the beginning of it at most."""
    told: list[Message] = []
    body = parts(40, 64 * KIBIBYTE)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_the_first_step(send)
        told.extend(await read_all(receive))

    class Patient(Queueing):
        """Takes the end of the response when the body is in."""

        async def send(self, message: Message) -> None:
            self.heard.append(message)
            if message is BODY:
                while REQUEST not in self.received:
                    await checkpoint()
                await self._put(DISCONNECT)

    server = Patient(body)
    run(serve, WRAPS["alone"](app), server)
    assert told[-1] is DISCONNECT
    kept = told[:-1]
    assert kept == body[: len(kept)]
    assert 640 * KIBIBYTE <= sum(len(message["body"]) for message in kept) <= 1024 * KIBIBYTE


def test_what_is_left_of_such_a_body_is_not_taken_for_it(run: Run) -> None:
    """There would be a hole in it: behind what was kept comes the disconnect."""
    told: list[Message] = []
    body = parts(40, 64 * KIBIBYTE)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_the_first_step(send)
        told.extend(await read_all(receive))

    class Patient(Queueing):
        async def send(self, message: Message) -> None:
            if message is BODY:
                while len(self.received) < 30:
                    await checkpoint()

        async def upload(self) -> None:
            await super().upload()
            await self._put(DISCONNECT)

    server = Patient(body)
    run(serve, WRAPS["alone"](app), server)
    assert told[-1] is DISCONNECT
    assert told[:-1] == body[: len(told) - 1]
    assert len(told) <= 17


def test_an_app_that_listens_reads_by_itself(run: Run) -> None:
    """A child task that waits for the disconnect while the response is streamed gets all; nobody else reads."""
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            told.extend(await read_all(receive))

        await together(listen, lambda: in_a_later_step(send))

    server = Queueing(parts(20))
    run(serve, WRAPS["alone"](app), server)
    assert told == server.received[: len(told)]
    assert told[-1] is DISCONNECT
    assert server.most == 1


def test_an_app_that_waits_for_the_client_reads_by_itself(run: Run) -> None:
    """What comes while its last message waits is for the app, and when that is the disconnect, nothing more is read."""
    told: list[Message] = []

    class Slow(Queueing):
        async def send(self, message: Message) -> None:
            for _ in range(5):
                await checkpoint()
            if message is BODY:
                await self._put(DISCONNECT)
                for _ in range(5):
                    await checkpoint()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            told.append(await receive())

        await together(listen, lambda: in_a_later_step(send))

    async def main() -> None:
        server.open()
        await WRAPS["alone"](app)(post(), server.receive, server.send)

    server = Slow([])
    run(main)
    assert told == [DISCONNECT]
    assert server.asked == 1


def test_an_app_that_stops_to_listen_is_read_for(run: Run) -> None:
    """It has taken one message while its last one waits, and no more."""
    told: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def take_one() -> None:
            told.append(await receive())

        await together(take_one, lambda: in_the_first_step(send))
        told.extend(await read_all(receive))

    server = Queueing(parts(20))
    run(serve, WRAPS["alone"](app), server)
    assert told == server.received[: len(told)]
    assert told[-1] is DISCONNECT


def test_an_app_that_asks_while_it_is_read_for(run: Run) -> None:
    """It gets the next message, and the one who read for it makes way, also for one who gives up at once."""
    told: list[Message] = []
    body = parts(4)

    class Slow(Queueing):
        """Whose `send` waits for the client, who uploads when the test says so."""

        async def upload(self) -> None:
            await self._put(body[0])
            for message in body[1:]:
                await asked.wait()
                await self._put(message)

        async def send(self, message: Message) -> None:
            if message is BODY:
                waiting.set()
                await taken.wait()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def give_up() -> None:
            await receive()
            raise AssertionError("unreachable")

        async def ask_twice() -> None:
            await waiting.wait()
            while not server.received:
                await checkpoint()
            told.append(await receive())
            await cancel_soon(give_up)
            asked.set()
            told.append(await receive())
            taken.set()

        await together(ask_twice, lambda: in_a_later_step(send))
        while len(told) < len(body):
            told.append(await receive())
        assert server.most == 1

    async def main() -> None:
        nonlocal asked, waiting, taken
        asked, waiting, taken = event(), event(), event()
        await serve(WRAPS["alone"](app), server)

    asked = waiting = taken = Any
    server = Slow(body)
    run(main)
    assert told == body


def test_one_who_gives_up_at_once_leaves_the_reading_to_others(run: Run) -> None:
    """An app may look for a disconnect without waiting; its last message still gets through."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def look() -> None:
            await receive()

        async def look_again() -> None:
            await reading.wait()
            await cancel_soon(look, turns=0)
            gone.set()

        await together(look_again, lambda: in_the_first_step(send))

    class Patient(Queueing):
        """Waits until it is read from, and then for all of the body."""

        async def receive(self) -> Message:
            reading.set()
            return await super().receive()

        async def upload(self) -> None:
            await gone.wait()
            await super().upload()

        async def send(self, message: Message) -> None:
            if message is BODY:
                while REQUEST not in self.received:
                    await checkpoint()

    async def main() -> None:
        nonlocal gone, reading
        gone, reading = event(), event()
        await serve(WRAPS["alone"](app), server)

    gone = reading = Any
    server = Patient(parts(3))
    run(main)
    assert server.received == parts(3)


async def cancel_soon(function: Callable[[], Awaitable[None]], turns: int = 5) -> None:
    """Begin it, let it wait for some turns, then cancel it."""
    if asyncio._get_running_loop() is not None:
        task = asyncio.ensure_future(function())
        for _ in range(1 + turns):
            await checkpoint()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    else:
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(function)
            for _ in range(1 + turns):
                await checkpoint()
            nursery.cancel_scope.cancel()


def test_others_have_their_turn(run: Run) -> None:
    """Though the server is never at a loss for a message."""

    class Endless(Unread):
        async def receive(self) -> Message:
            self.said += 1
            return parts(1)[0]

    server = Endless()
    run(WRAPS["alone"](saying(START, BODY)), post(), server.receive, server.send)
    assert 1 <= server.said <= 20


# ---- what is left alone


class Unread(Server):
    """Nobody asks it for anything; its `send` waits for some turns."""

    async def receive(self) -> Message:
        self.said += 1
        return REQUEST

    async def send(self, message: Message) -> None:
        self.heard.append(message)
        for _ in range(5):
            await checkpoint()


@pytest.mark.parametrize(
    ("scope", "reads"),
    [
        (http_scope(), False),
        (http_scope(headers=[(b"host", b"there"), (b"content-length", b"0")]), False),
        (http_scope(headers=[(b"host", b"there"), (b"content-length", b"1")]), True),
        (http_scope(headers=[(b"transfer-encoding", b"chunked")]), True),
        (http_scope(http_version="1.0", method="POST"), False),
        (http_scope(http_version="2"), False),
        (http_scope(http_version="2", method="POST"), True),
        (http_scope(http_version="2", headers=[(b"content-length", b"1")]), True),
        (http_scope(headers=None), False),
        (http_scope(headers=[b"odd"]), False),
    ],
)
@pytest.mark.parametrize("answer", [in_the_first_step, in_a_later_step])
def test_only_what_may_have_a_body_is_read(
    answer: Callable[[Send], Awaitable[None]], scope: Scope, reads: bool, run_asyncio: Run
) -> None:
    """For any other no task is started."""
    tasks: list[int] = []

    class Watching(Unread):
        async def send(self, message: Message) -> None:
            await super().send(message)
            tasks.append(len(asyncio.all_tasks()))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)

    async def main() -> None:
        await WRAPS["alone"](app)(dict(scope), server.receive, server.send)

    server = Watching()
    run_asyncio(main)
    assert server.said == reads
    assert set(tasks) == {1}  # that of the test: who has read is gone


def test_hypercorns_trio_worker_is_left_alone_with_http_2(run_trio: Run) -> None:
    """It would not outlive the rest of the body of a request that is answered."""
    server = Unread()
    app = WRAPS["alone"](saying(START, BODY))
    run_trio(app, post(http_version="2"), server.receive, server.send)
    assert server.said == 0
    run_trio(app, post(), server.receive, server.send)
    assert server.said == 1


def test_a_body_that_was_read_is_left_alone(run: Run) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await in_a_later_step(send)

    server = Unread()
    run(WRAPS["alone"](app), post(), server.receive, server.send)
    assert server.said == 1


def test_a_send_that_does_not_wait_reads_nothing(run: Run) -> None:
    """Nor does one that is not the last."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await checkpoint()
        await send(START)
        await send({**BODY, "more_body": True})
        await checkpoint()
        await send(BODY)
        await checkpoint()

    class Quick(Unread):
        async def send(self, message: Message) -> None:
            if message is not BODY:
                await super().send(message)

    server = Quick()
    run(WRAPS["alone"](app), post(), server.receive, server.send)
    assert server.said == 0


def test_a_send_that_has_failed_reads_nothing_any_more(run: Run) -> None:
    """Though its message was the last."""

    class Failing(Unread):
        async def send(self, message: Message) -> None:
            raise Trouble

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(Trouble):
            await send(BODY)
        await checkpoint()
        await receive()
        await checkpoint()

    class Quick(Failing):
        async def receive(self) -> Message:
            self.said += 1
            return {**REQUEST, "more_body": True}

    server = Quick()
    run(WRAPS["alone"](app), post(), server.receive, server.send)
    assert server.said == 1


def test_who_only_measures_reads_nothing(run: Run, registry: Registry) -> None:
    """It changes nothing of what happens, for better or for worse."""
    server = Unread()
    app = PerformanceMiddleware(saying(START, BODY), registry=registry)
    run(app, post(), server.receive, server.send)
    assert server.said == 0


# ---- what others see


@pytest.mark.parametrize("reads", [True, False])
def test_the_figures_are_those_of_the_app(reads: bool, run: Run, registry: Registry) -> None:
    """What was read for it counts when it gets it, and not before."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_the_first_step(send)
        if reads:
            await receive()

    layers = PerformanceMiddleware(WRAPS["alone"](app), registry=registry)
    run(serve, layers, Queueing(parts(20, 7)))
    figures = the_figures(registry)
    if reads:
        assert figures["request_size"]["sum"] == 7
        assert figures["receive_time"]["count"] == 1
    else:
        assert "request_size" not in figures
        assert "receive_time" not in figures
    assert figures["outcomes"] == {"ok": 1}


def test_an_error_of_the_server_is_the_apps(run: Run) -> None:
    """The response is sent all the same; who asks for the body then gets the error, the same object."""
    error = Trouble()
    caught: list[BaseException] = []

    class Failing(Unread):
        async def receive(self) -> Message:
            raise error

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_the_first_step(send)
        try:
            await receive()
        except Trouble as raised:
            caught.append(raised)

    server = Failing()
    run(WRAPS["alone"](app), post(), server.receive, server.send)
    assert caught == [error]
    assert server.heard == [START, BODY]


@pytest.mark.parametrize("message", [None, {}, {"type": "http.request", "body": 3}, "odd"])
def test_what_makes_no_sense_is_the_apps(message: Any, run: Run) -> None:
    """It is handed over as it came."""

    class Odd(Unread):
        async def receive(self) -> Message:
            return message

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await in_the_first_step(send)
        assert await receive() is message

    server = Odd()
    run(WRAPS["alone"](app), post(), server.receive, server.send)


def test_it_is_read_in_the_context_of_the_request(run: Run) -> None:
    """As what is around the kit finds it, though not as a part of the request that is measured."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    class Asking(Unread):
        async def receive(self) -> Message:
            seen.append(user.get())
            return await super().receive()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        user.set("ada")
        await in_the_first_step(send)

    server = Asking()
    run(WRAPS["alone"](app), post(), server.receive, server.send)
    assert seen == ["ada"]


def test_a_request_that_is_cancelled_reads_no_more(run: Run) -> None:
    """Who reads for it goes with it."""
    left: list[str] = []

    async def main() -> None:
        reading = event()

        class Silent(Unread):
            async def receive(self) -> Message:
                try:
                    reading.set()
                    await forever()
                finally:
                    left.append("left")
                raise AssertionError("unreachable")

            async def send(self, message: Message) -> None:
                await forever()

        server = Silent()
        app = WRAPS["alone"](saying(BODY))
        await cancel_when(reading, lambda: app(post(), server.receive, server.send))  # type: ignore[arg-type,return-value]
        while not left:
            await checkpoint()

    run(main)
    assert left == ["left"]


def test_an_app_that_is_driven_by_hand() -> None:
    """Without a loop nothing is read, and nothing fails."""

    class Suspended:
        def __await__(self) -> Any:
            yield

    class Waiting(Unread):
        async def send(self, message: Message) -> None:
            await Suspended()

    server = Waiting()
    call: Any = WRAPS["alone"](saying(BODY))(post(), server.receive, server.send)
    call.send(None)
    with pytest.raises(StopIteration):
        call.send(None)
    assert server.said == 0
