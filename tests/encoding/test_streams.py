"""Rows into chunks: when they leave, and how a stream ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_perfkit import EncodeError, Event
from asgi_perfkit.encoding import streams
from asgi_perfkit.encoding.events import EventFraming
from asgi_perfkit.encoding.framing import ArrayFraming, Framing, LineFraming
from asgi_perfkit.encoding.streams import RowStream
from tests.conftest import ASYNCIO, Run
from tests.support import LOGGER, Clock, Trouble, checkpoint, forever, together

CHUNK_BYTES = 16_384
ROW = {"id": 1, "name": "kettle", "price": 24.5}
COUNTED = sys.version_info >= (3, 11)  # cancellations of a task


@pytest.fixture(autouse=True, scope="module")
def clock() -> Iterator[Clock]:
    """Stands still: on a busy machine rows would leave for having taken long."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock()
        monkeypatch.setattr(streams, "perf_counter_ns", clock)
        yield clock


@pytest.fixture
def running_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "perf_counter_ns", time.perf_counter_ns)


class Reader:
    """Keeps what is written to it.

    :param before: awaited before a chunk is taken, with its number; it may raise.
    """

    def __init__(self, before: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.begun = False
        self.chunks: list[bytes] = []
        self.ended = False
        self.gone: anyio.Event | None = None
        self.watched = 0
        self._before = before
        self._writing = False

    async def write(self, chunk: bytes, more: bool) -> None:
        assert not self._writing, "two chunks at once"
        assert not self.ended, "a chunk behind the last"
        self._writing = self.begun = True
        try:
            if self._before is not None:
                await self._before(len(self.chunks))
            self.chunks.append(chunk)
            self.ended = not more
        finally:
            self._writing = False

    async def left(self) -> None:
        self.watched += 1
        if self.gone is None:
            self.gone = anyio.Event()
        await self.gone.wait()

    async def leave(self) -> None:
        """Leave, once somebody watches."""
        while self.gone is None:
            await checkpoint()
        self.gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


async def stream(rows: Any, reader: Reader, framing: Framing | None = None, **options: Any) -> None:
    await RowStream(rows, framing or LineFraming(), reader, **options).run()


async def slowly(*rows: Any) -> AsyncIterator[Any]:
    for row in rows:
        await checkpoint()
        yield row


async def fast(number: int) -> AsyncIterator[Any]:
    for _ in range(number):
        yield ROW


async def tasks_are_gone() -> None:
    """No child is left behind."""
    if asyncio._get_running_loop() is not None:
        assert asyncio.all_tasks() == {asyncio.current_task()}
    else:
        import trio

        assert trio.lowlevel.current_task().child_nurseries == []


# ---- chunks


@pytest.mark.parametrize("make", [fast, lambda number: [ROW] * number], ids=["async", "sync"])
def test_fast_rows_come_in_chunks_of_16_kib(run: Run, make: Callable[[int], Any]) -> None:
    reader = Reader()
    run(stream, make(2_000), reader)
    assert reader.rows == [ROW] * 2_000
    *full, last = map(len, reader.chunks)
    assert len(full) > 3
    assert all(CHUNK_BYTES <= size < CHUNK_BYTES + 100 for size in full)
    assert last < CHUNK_BYTES
    assert reader.ended


def test_few_rows_are_one_chunk_without_a_child(run: Run) -> None:
    reader = Reader()
    run(stream, fast(3), reader)
    assert reader.rows == [ROW] * 3
    assert len(reader.chunks) == 1
    assert reader.watched == 0


def test_a_row_leaves_while_the_producer_waits_for_the_next(run: Run) -> None:
    """And not when the next has come: here it comes only when the first has arrived."""

    async def main() -> None:
        arrived = [anyio.Event() for _ in range(3)]

        async def rows() -> AsyncIterator[int]:
            for number, event in enumerate(arrived):
                yield number
                await event.wait()

        async def arrive(number: int) -> None:
            if number < 3:
                arrived[number].set()

        reader = Reader(arrive)
        await stream(rows(), reader)
        assert reader.chunks == [b"0\n", b"1\n", b"2\n", b""]
        await tasks_are_gone()

    run(main)


def test_rows_that_come_together_leave_together(run: Run) -> None:
    async def rows() -> AsyncIterator[int]:
        for number in range(6):
            if number % 3 == 0:
                await checkpoint()
                await checkpoint()
            yield number

    reader = Reader()
    run(stream, rows(), reader)
    assert reader.chunks == [b"0\n1\n2\n", b"3\n4\n5\n"]


def test_nothing_is_written_while_the_first_row_is_waited_for(run: Run) -> None:
    reader = Reader()
    run(stream, slowly(1), reader)
    assert reader.chunks == [b"1\n"]


def test_an_eager_stream_begins_while_the_first_row_is_waited_for(run: Run) -> None:
    async def main() -> None:
        begun = anyio.Event()

        async def rows() -> AsyncIterator[int]:
            await begun.wait()
            yield 1

        async def begin(number: int) -> None:
            begun.set()

        reader = Reader(begin)
        await stream(rows(), reader, eager=True)
        assert reader.chunks == [b"", b"1\n"]

    run(main)


def test_what_comes_while_a_chunk_is_written_gathers_behind_it(run: Run) -> None:
    async def main() -> None:
        release = anyio.Event()

        async def rows() -> AsyncIterator[int]:
            for number in range(10):
                yield number
                await checkpoint()
                await checkpoint()
            release.set()
            await checkpoint()

        async def block(number: int) -> None:
            await release.wait()

        reader = Reader(block)
        await stream(rows(), reader)
        assert reader.chunks[0] == b"0\n"
        assert len(reader.chunks) <= 3
        assert reader.rows == list(range(10))

    run(main)


def test_what_has_gathered_leaves_while_the_producer_still_waits(run: Run) -> None:
    async def main() -> None:
        gathered, left = anyio.Event(), anyio.Event()

        async def rows() -> AsyncIterator[int]:
            yield 1
            await checkpoint()
            await checkpoint()
            yield 2
            gathered.set()
            await left.wait()

        async def block(number: int) -> None:
            if number == 0:
                await gathered.wait()
            else:
                left.set()

        reader = Reader(block)
        await stream(rows(), reader)
        assert reader.chunks == [b"1\n", b"2\n", b""]

    run(main)


def test_a_slow_reader_holds_the_producer_up(run: Run) -> None:
    """One chunk is on its way and one gathers, and no more is produced."""

    async def main() -> None:
        produced = 0
        release = anyio.Event()

        async def rows() -> AsyncIterator[str]:
            nonlocal produced
            for _ in range(200):
                produced += 1
                yield "x" * 1_000
                await checkpoint()

        async def block(number: int) -> None:
            await release.wait()

        async def look() -> None:
            before = -1
            while produced != before:
                before = produced
                for _ in range(20):
                    await checkpoint()
            assert 16 <= produced <= 40
            release.set()

        reader = Reader(block)
        await together(lambda: stream(rows(), reader), look)
        assert len(reader.rows) == produced == 200

    run(main)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_rows_that_take_long_on_the_loop_leave_each_by_itself(
    run: Run, clock: Clock, asynchronous: bool
) -> None:
    """A chunk that takes a millisecond is written and the loop has its turn, however small it is."""

    def rows() -> Iterator[int]:
        for number in range(4):
            yield number
            clock.advance(0.0006)

    async def async_rows() -> AsyncIterator[int]:
        for row in rows():
            yield row

    reader = Reader()
    run(stream, async_rows() if asynchronous else rows(), reader)
    assert reader.chunks == [b"0\n1\n2\n", b"3\n"]


def test_a_wait_does_not_count_as_time_on_the_loop(run: Run, clock: Clock) -> None:
    async def rows() -> AsyncIterator[int]:
        for number in range(6):
            if number == 3:
                await checkpoint()
                clock.advance(1)
                await checkpoint()
            yield number

    reader = Reader()
    run(stream, rows(), reader)
    assert reader.chunks == [b"0\n1\n2\n", b"3\n4\n5\n"]


def test_others_have_their_turn_after_each_chunk(run: Run) -> None:
    async def main() -> None:
        turns = 0
        over = False

        async def others() -> None:
            nonlocal turns
            while not over:
                turns += 1
                await checkpoint()

        async def streaming() -> None:
            nonlocal over
            await stream([ROW] * 10_000, reader)
            over = True

        reader = Reader()
        await together(others, streaming)
        assert turns >= len(reader.chunks) - 1 > 20

    run(main)


@pytest.mark.usefixtures("running_clock")
def test_a_stream_that_is_idle_says_that_it_is_alive(run: Run) -> None:

    async def main() -> None:
        enough = anyio.Event()

        async def events() -> AsyncIterator[int]:
            yield 1
            await enough.wait()
            yield 2

        async def count(number: int) -> None:
            if number == 3:
                enough.set()

        reader = Reader(count)
        await stream(events(), reader, EventFraming(), idle_seconds=0.001)
        await tasks_are_gone()
        first, *between, last = reader.chunks
        assert first == b"data: 1\n\n"
        assert last == b"data: 2\n\n"
        assert len(between) >= 3
        assert set(between) == {b":\n\n"}

    run(main)


def test_a_stream_is_idle_from_its_last_chunk_on(run: Run, clock: Clock) -> None:
    async def main() -> None:
        async def events() -> AsyncIterator[int]:
            clock.advance(60)
            yield 1
            await anyio.sleep(0.005)
            assert reader.chunks == [b"data: 1\n\n"]
            clock.advance(60)
            while len(reader.chunks) < 2:
                await checkpoint()
            assert reader.chunks[1] == b":\n\n"

        reader = Reader()
        await stream(events(), reader, EventFraming(), idle_seconds=0.001)
        loop: Any = asyncio._get_running_loop()
        if hasattr(loop, "_scheduled"):
            assert all(timer.cancelled() for timer in loop._scheduled)

    run(main)


@pytest.mark.usefixtures("running_clock")
def test_a_stream_is_not_idle_while_the_reader_is_behind(run: Run) -> None:
    async def main() -> None:
        async def block(number: int) -> None:
            if number == 0:
                await anyio.sleep(0.02)

        async def events() -> AsyncIterator[int]:
            yield 1
            await anyio.sleep(0.015)
            yield 2

        reader = Reader(block)
        await stream(events(), reader, EventFraming(), idle_seconds=0.002)
        assert reader.chunks[0] == b"data: 1\n\n"
        assert reader.body.replace(b":\n\n", b"") == b"data: 1\n\ndata: 2\n\n"
        assert b":\n\n" not in reader.chunks[1][:5]

    run(main)


def test_without_a_loop_there_is_no_stream() -> None:
    with pytest.raises(RuntimeError, match="No event loop runs in this thread"):
        stream([1], Reader()).send(None)  # type: ignore[attr-defined]


# ---- how it ends

var: ContextVar[str] = ContextVar("var", default="")


class Witness:
    """Rows that know how they were ended: in which task, and what the context variable was."""

    def __init__(self) -> None:
        self.task: Any = None
        self.ended_in: Any = None
        self.saw: str | None = None
        self.error: BaseException | None = None

    async def rows(self, rest: Callable[[], Awaitable[None]], first: int = 1) -> AsyncIterator[int]:
        self.task = current_task()
        var.set("of the producer")
        try:
            for number in range(first):
                yield number
            await rest()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended_in = current_task()
            self.saw = var.get()

    def assert_ended(self) -> None:
        assert self.ended_in is self.task is not None
        assert self.saw == "of the producer"


def current_task() -> Any:
    if asyncio._get_running_loop() is not None:
        return asyncio.current_task()
    import trio

    return trio.lowlevel.current_task()


def test_the_producer_runs_in_the_task_and_context_of_the_caller(run: Run) -> None:
    """As in any `async for`: what it sets is seen behind the stream."""

    async def main() -> None:
        witness = Witness()
        await stream(witness.rows(checkpoint), Reader())
        assert witness.task is current_task()
        witness.assert_ended()
        assert var.get() == "of the producer"

    run(main)


def test_the_reader_leaves_while_the_producer_waits(run: Run) -> None:
    async def main() -> None:
        witness, reader = Witness(), Reader()
        await together(lambda: stream(witness.rows(forever), reader), reader.leave)
        witness.assert_ended()
        assert reader.rows == [0]
        assert not reader.ended
        await tasks_are_gone()

    run(main)


def test_the_reader_leaves_while_a_chunk_is_written(run: Run) -> None:
    async def main() -> None:
        async def block(number: int) -> None:
            if number == 1:
                await reader.leave()
                await forever()

        witness, reader = Witness(), Reader(block)
        await stream(witness.rows(checkpoint, 10_000), reader)
        witness.assert_ended()
        assert isinstance(witness.error, GeneratorExit)
        assert len(reader.chunks) == 1
        await tasks_are_gone()

    run(main)


def test_the_reader_leaves_a_producer_that_never_waits(run: Run) -> None:
    async def main() -> None:
        closed = []

        def rows() -> Iterator[int]:
            try:
                yield from itertools.count()
            finally:
                closed.append(current_task())

        async def streaming() -> None:
            await stream(rows(), reader)
            assert closed == [current_task()]

        reader = Reader()
        await together(streaming, reader.leave)
        assert not reader.ended

    run(main)


def test_a_reader_that_leaves_behind_the_last_chunk_changes_nothing(run: Run) -> None:
    """As servers do, which tell of a disconnect behind a complete response."""

    async def main() -> None:
        async def say_at_once(number: int) -> None:
            await reader.leave()
            for _ in range(5):
                await checkpoint()

        reader = Reader(say_at_once)
        await stream([0], reader)
        assert reader.rows == [0]
        assert reader.ended
        await checkpoint()  # nobody has cancelled the task

    run(main)


def test_nobody_watches_a_reader_who_must_not_be_asked(run: Run) -> None:
    reader = Reader()
    run(stream, slowly(1, 2, 3), reader, None)
    assert reader.watched == 1
    reader = Reader()
    run(lambda: stream(slowly(1, 2, 3), reader, watch=False))
    assert reader.watched == 0
    assert reader.rows == [1, 2, 3]


def test_a_producer_that_minds_no_cancellation_ends_at_its_next_row(run_asyncio: Run) -> None:
    async def main() -> None:
        produced = []

        async def rows() -> AsyncIterator[int]:
            for number in itertools.count():
                with contextlib.suppress(asyncio.CancelledError):
                    await (forever() if number == 1 else checkpoint())
                produced.append(number)
                yield number

        reader = Reader()
        await together(lambda: stream(rows(), reader), reader.leave)
        assert produced == [0, 1]
        assert reader.rows == [0]

    run_asyncio(main)


def test_a_producer_that_minds_no_cancellation_ends_although_the_reader_stalls(
    run_asyncio: Run,
) -> None:
    async def main() -> None:
        async def rows() -> AsyncIterator[int]:
            yield 1
            with contextlib.suppress(asyncio.CancelledError):
                await forever()
            yield 2

        async def stall(number: int) -> None:
            await forever()

        reader = Reader(stall)
        await together(lambda: stream(rows(), reader), reader.leave)
        assert reader.chunks == []
        await tasks_are_gone()

    run_asyncio(main)


@pytest.mark.skipif(not COUNTED, reason="Python 3.10 does not count cancellations")
def test_leaving_is_no_cancellation_of_the_task(run_asyncio: Run) -> None:
    async def main() -> None:
        async def streaming() -> None:
            await stream(Witness().rows(forever), reader)
            task: Any = asyncio.current_task()
            assert task.cancelling() == 0
            async with asyncio.timeout(10):  # type: ignore[attr-defined,unused-ignore]
                await checkpoint()

        reader = Reader()
        await together(streaming, reader.leave)

    run_asyncio(main)


@pytest.mark.skipif(not COUNTED, reason="Python 3.10 does not count cancellations")
def test_a_cancellation_that_comes_as_the_reader_leaves_is_not_lost(run_asyncio: Run) -> None:
    async def main() -> None:
        reader = Reader()
        task = asyncio.ensure_future(stream(Witness().rows(forever), reader))
        await checkpoint()
        await reader.leave()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_asyncio(main)


class Tardy(Reader):
    """Takes its time to hear that nobody waits for it to leave any more, and then says that it has left."""

    def __init__(self, at_last: Callable[[], object]) -> None:
        super().__init__()
        self._at_last = at_last

    async def left(self) -> None:
        try:
            await super().left()
        except asyncio.CancelledError:
            await checkpoint()
            self._at_last()


def test_a_cancellation_while_the_children_end_is_not_lost(run_asyncio: Run) -> None:
    async def main() -> None:
        def cancel() -> None:
            task.cancel()

        task = asyncio.ensure_future(stream(slowly(1), Tardy(cancel)))
        with pytest.raises(asyncio.CancelledError):
            await task
        await tasks_are_gone()

    run_asyncio(main)


def test_a_producer_that_raises_generator_exit_is_not_taken_for_one_that_is_closed(
    run: Run,
) -> None:
    """There is somebody who waits for the children."""

    async def rows() -> AsyncIterator[int]:
        yield 1
        await checkpoint()
        raise GeneratorExit

    async def main() -> None:
        with pytest.raises(GeneratorExit):
            await stream(rows(), Reader())
        await tasks_are_gone()

    run(main)


def test_a_reader_that_leaves_behind_an_error_changes_nothing(run_asyncio: Run) -> None:
    fail(run_asyncio, failing(1), Tardy(lambda: None), Trouble)


@pytest.mark.parametrize("where", ["producer", "write", "behind a write"])
def test_a_cancellation_from_outside_ends_the_producer_and_goes_on(run: Run, where: str) -> None:
    async def main() -> None:
        reached = anyio.Event()

        async def block(number: int) -> None:
            if where != "producer":
                reached.set()
                await forever()

        async def rest() -> None:
            reached.set()
            await forever()

        async def filling() -> None:
            await checkpoint()
            await checkpoint()

        witness, reader = Witness(), Reader(block)
        rows = {
            "producer": lambda: witness.rows(rest),
            "write": lambda: witness.rows(forever, 10_000),
            "behind a write": lambda: both(witness.rows(filling), witness.rows(forever, 10_000)),
        }[where]()

        async with anyio.create_task_group() as group:
            group.start_soon(stream, rows, reader)
            await reached.wait()
            await checkpoint()
            group.cancel_scope.cancel()
        witness.assert_ended()
        assert not reader.ended
        await tasks_are_gone()

    run(main)


async def both(*parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async with contextlib.AsyncExitStack() as stack:
        for part in parts:
            await stack.enter_async_context(contextlib.aclosing(part))  # type: ignore[type-var]
            async for row in part:
                yield row


def test_a_producer_may_be_closed_and_wait_for_its_end(run_asyncio: Run) -> None:
    """On asyncio, where a cancellation is told once; on trio its cleanup would be shielded, as ever."""

    async def main() -> None:
        cleaned = []

        async def rows() -> AsyncIterator[int]:
            try:
                yield 1
                await forever()
            finally:
                await checkpoint()
                cleaned.append(current_task())

        async def streaming() -> None:
            await stream(rows(), reader)
            assert cleaned == [current_task()]

        reader = Reader()
        await together(streaming, reader.leave)

    run_asyncio(main)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(
            1,
            id="while the producer waits",
            marks=pytest.mark.skipif(
                sys.version_info < (3, 13), reason="Python leaves generators that wait as they are"
            ),
        ),
        pytest.param(10_000, id="while it does not"),
    ],
)
def test_a_stream_that_is_closed_closes_its_producer(run_asyncio: Run, first: int) -> None:
    """A loop that ends in the middle closes its coroutines, and nothing can be waited for."""

    async def main() -> None:
        witness, reader = Witness(), Reader()
        coro: Any = stream(witness.rows(forever, first), reader)
        coro.send(None)
        coro.close()
        assert isinstance(witness.error, GeneratorExit)
        for _ in range(3):
            await checkpoint()
        await tasks_are_gone()

    run_asyncio(main)


class Waiting:
    """Rows that are no generator."""

    def __aiter__(self) -> Waiting:
        return self

    async def __anext__(self) -> int:
        await forever()
        raise AssertionError("nobody is left")


@pytest.mark.parametrize(
    "make", [Waiting, lambda: Witness().rows(forever)], ids=["rows", "generator"]
)
def test_a_stream_that_is_closed_while_its_producer_waits_just_ends(
    run_asyncio: Run, make: Callable[[], Any]
) -> None:
    async def main() -> None:
        coro: Any = stream(make(), Reader())
        coro.send(None)
        coro.close()
        await checkpoint()
        await tasks_are_gone()

    run_asyncio(main)


# ---- what the producer does with its waits


def test_time_outs_of_the_producer_are_its_own(run: Run) -> None:
    """Also those that are open while a row is handed out."""

    async def main() -> None:
        async def rows() -> AsyncIterator[str]:
            yield "before"
            with anyio.move_on_after(0.001):
                await forever()
            yield "between"
            with anyio.CancelScope() as scope:
                yield "inside"
                scope.cancel()
                await checkpoint()
                yield "never"
            yield "after"

        reader = Reader()
        await stream(rows(), reader)
        assert reader.rows == ["before", "between", "inside", "after"]
        assert reader.ended

    run(main)


@pytest.mark.skipif(not COUNTED, reason="asyncio.timeout() is not in Python 3.10")
def test_asyncios_time_out_in_a_producer(run_asyncio: Run) -> None:
    async def main() -> None:
        async def rows() -> AsyncIterator[str]:
            yield "before"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):  # type: ignore[attr-defined,unused-ignore]
                    await forever()
            yield "after"

        reader = Reader()
        await stream(rows(), reader)
        assert reader.rows == ["before", "after"]

    run_asyncio(main)


def test_several_streams_may_wait_for_the_same_future(run_asyncio: Run) -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def rows() -> AsyncIterator[Any]:
            yield "before"
            yield await future

        async def resolve(number: int) -> None:
            await checkpoint()
            if not future.done():
                future.set_result("after")

        readers = [Reader(resolve) for _ in range(3)]
        await asyncio.gather(*(stream(rows(), reader) for reader in readers))
        assert [reader.rows for reader in readers] == [["before", "after"]] * 3

    run_asyncio(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks begin later before Python 3.12")
def test_children_may_begin_at_once() -> None:
    async def main() -> None:
        factory: Any = asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
        asyncio.get_running_loop().set_task_factory(factory)
        reader = Reader()
        await stream(slowly(1, 2, 3), reader, eager=True)
        assert reader.chunks == [b"", b"1\n", b"2\n", b"3\n"]
        witness, reader = Witness(), Reader()
        await together(lambda: stream(witness.rows(forever), reader), reader.leave)
        witness.assert_ended()
        assert reader.rows == [0]

        async def refuse(number: int) -> None:
            raise Trouble

        witness = Witness()
        with pytest.raises(Trouble):
            await stream(witness.rows(forever), Reader(refuse))
        witness.assert_ended()

    ASYNCIO["asyncio"](main)


def test_a_producer_may_have_a_task_group(run: Run) -> None:
    async def main() -> None:
        async def rows() -> AsyncIterator[int]:
            send, receive = anyio.create_memory_object_stream[int](0)

            async def produce() -> None:
                async with send:
                    for number in range(5):
                        await send.send(number)

            async with receive, anyio.create_task_group() as group:
                group.start_soon(produce)
                async for number in receive:
                    yield number

        reader = Reader()
        await stream(rows(), reader)
        assert reader.rows == list(range(5))

    run(main)


# ---- failures


async def failing(*rows: Any, pause: bool = True) -> AsyncIterator[Any]:
    for row in rows:
        yield row
    if pause:
        for _ in range(5):
            await checkpoint()
    raise Trouble("no more rows")


def fail(run: Run, rows: Any, reader: Reader, expected: type[Exception], **options: Any) -> None:
    async def main() -> None:
        with pytest.raises(expected):
            await stream(rows, reader, **options)
        await tasks_are_gone()

    run(main)


@pytest.mark.parametrize("pause", [True, False])
def test_an_error_before_the_first_row_is_for_the_app(
    run: Run, caplog: pytest.LogCaptureFixture, pause: bool
) -> None:
    reader = Reader()
    fail(run, failing(pause=pause), reader, Trouble, error_row=repr)
    assert not reader.begun
    assert caplog.records == []


def test_an_error_behind_rows_that_have_not_left_is_for_the_app(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader()
    fail(run, failing(1, 2, pause=False), reader, Trouble, error_row=repr)
    assert not reader.begun
    assert caplog.records == []


def test_an_error_while_the_first_chunk_is_about_to_leave(run: Run) -> None:
    """It is the app's, whole, or the stream's: never both. Who is faster is for trio to choose, at random."""

    async def main() -> None:
        seen = []

        async def rows() -> AsyncIterator[int]:
            yield 1
            await checkpoint()
            seen.append(reader.begun)
            raise Trouble

        for _ in range(20):
            reader = Reader()
            with pytest.raises(Trouble):
                await stream(rows(), reader)
            assert reader.begun == seen[-1]

    run(main)


def test_an_error_in_the_middle_leaves_the_stream_without_an_end(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader()
    fail(run, failing(1, 2), reader, Trouble)
    assert reader.rows == [1, 2]
    assert not reader.ended
    (record,) = caplog.records
    assert record.name == LOGGER
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], Trouble)


def test_an_error_has_a_last_row_if_one_is_made(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1
        for _ in range(5):
            await checkpoint()
        yield 2
        raise Trouble("no more rows")

    reader = Reader()
    fail(run, rows(), reader, Trouble, error_row=lambda error: {"error": str(error)})
    assert reader.rows == [1, 2, {"error": "no more rows"}]
    assert not reader.ended
    assert len(caplog.records) == 1


@pytest.mark.parametrize("made", [lambda error: 1 / 0, lambda error: object()])
def test_an_error_whose_row_cannot_be_made_is_raised_all_the_same(
    run: Run, caplog: pytest.LogCaptureFixture, made: Callable[[Exception], Any]
) -> None:
    reader = Reader()
    fail(run, failing(1), reader, Trouble, error_row=made)
    assert reader.rows == [1]
    assert len(caplog.records) == 2


def test_a_reader_that_fails_behind_the_producer_hides_nothing(run: Run) -> None:
    async def fail_again(number: int) -> None:
        if number:
            raise OSError

    async def rows() -> AsyncIterator[int]:
        yield 1
        for _ in range(5):
            await checkpoint()
        yield 2
        raise Trouble

    fail(run, rows(), Reader(fail_again), Trouble)


def test_a_row_without_json_breaks_the_stream_off(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    closed = []

    async def rows() -> AsyncIterator[Any]:
        try:
            yield 1
            for _ in range(5):
                await checkpoint()
            yield object()
        finally:
            closed.append(True)

    reader = Reader()
    fail(run, rows(), reader, EncodeError)
    assert reader.rows == [1]
    assert not reader.ended
    assert closed
    assert len(caplog.records) == 1


def test_a_task_group_around_a_row_hides_no_error(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def rows(*these: Any) -> AsyncIterator[Any]:
        async with anyio.create_task_group() as group:
            group.start_soon(forever)
            for row in these:
                yield row
                for _ in range(5):
                    await checkpoint()

    async def refuse(number: int) -> None:
        raise OSError

    first, second = Reader(), Reader()
    fail(run, rows(object()), first, EncodeError)
    assert not first.begun
    fail(run, rows(1, object()), second, EncodeError)
    assert second.rows == [1]
    assert len(caplog.records) == 1
    fail(run, rows("x" * CHUNK_BYTES), Reader(refuse), OSError)


def test_what_a_task_group_around_a_row_has_besides_is_raised(run: Run) -> None:
    """Which is the producer's error, and hides the one that was the reason for closing it, as any `finally` may."""

    async def break_down() -> None:
        try:
            await forever()
        finally:
            raise Trouble

    async def rows() -> AsyncIterator[Any]:
        async with anyio.create_task_group() as group:
            group.start_soon(break_down)
            await checkpoint()
            yield object()

    async def main() -> None:
        with pytest.raises(Exception, match=r"TaskGroup|nursery") as caught:
            await stream(rows(), Reader())
        (error,) = caught.value.exceptions  # type: ignore[attr-defined]  # built in from Python 3.11 on
        assert isinstance(error, Trouble)
        await tasks_are_gone()

    run(main)


def test_a_reader_that_leaves_while_a_task_group_is_around_the_row(run: Run) -> None:
    async def rows() -> AsyncIterator[Any]:
        async with anyio.create_task_group() as group:
            group.start_soon(forever)
            while True:
                yield ROW

    async def stall(number: int) -> None:
        await forever()

    async def main() -> None:
        reader = Reader(stall)
        await together(lambda: stream(rows(), reader), reader.leave)
        await tasks_are_gone()

    run(main)


@pytest.mark.parametrize("first", [1, 10_000], ids=["by a child", "by the task"])
def test_the_readers_error_ends_the_producer_and_is_raised(
    run: Run, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    """The same object, from a child too; it is not logged, for it is not the producer's."""

    async def main() -> None:
        error = OSError("the client has left")

        async def refuse(number: int) -> None:
            raise error

        witness, reader = Witness(), Reader(refuse)
        with pytest.raises(OSError, match="left") as caught:
            await stream(witness.rows(forever, first), reader)
        assert caught.value is error
        witness.assert_ended()
        await tasks_are_gone()

    run(main)
    assert caplog.records == []


def test_a_reader_that_fails_to_say_when_it_leaves_ends_the_stream(run: Run) -> None:
    class Failing(Reader):
        async def left(self) -> None:
            raise Trouble

    fail(run, Witness().rows(forever), Failing(), Trouble)


def test_an_error_of_the_producer_s_end_is_logged_and_raised(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
            await forever()
        finally:
            raise Trouble("at the end")

    async def main() -> None:
        reader = Reader()

        async def streaming() -> None:
            with pytest.raises(Trouble):
                await stream(rows(), reader, error_row=repr)

        await together(streaming, reader.leave)
        assert reader.rows == [1]

    run(main)
    assert len(caplog.records) == 1


# ---- framing

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
paces = st.lists(st.integers(0, 2), max_size=8)


async def paced(rows: Iterable[Any], waits: list[int]) -> AsyncIterator[Any]:
    for row, times in itertools.zip_longest(rows, waits, fillvalue=0):
        for _ in range(times or 0):
            await checkpoint()
        yield row


def sent(rows: list[Any], waits: list[int], framing: Framing, **options: Any) -> Reader:
    reader = Reader()
    waits = waits[: len(rows)]
    ASYNCIO["asyncio"](lambda: stream(paced(rows, waits), reader, framing, **options))
    assert reader.ended
    return reader


@given(st.lists(json_values, max_size=8), paces)
def test_lines_are_rows(rows: list[Any], waits: list[int]) -> None:
    body = sent(rows, waits, LineFraming()).body.decode()
    assert body.count("\n") == len(rows)
    assert [json.loads(line) for line in body.split("\n")[:-1]] == rows


@given(st.lists(json_values, max_size=8), paces)
def test_an_array_is_its_rows(rows: list[Any], waits: list[int]) -> None:
    reader = sent(rows, waits, ArrayFraming())
    assert json.loads(reader.body) == rows
    # What has arrived lacks the closing bracket and nothing else.
    seen = b""
    for chunk in reader.chunks[:-1]:
        seen += chunk
        arrived = json.loads(seen + b"]")
        assert arrived == rows[: len(arrived)]


@pytest.mark.parametrize("framing", [LineFraming, ArrayFraming])
def test_json_that_was_laid_out_is_put_on_one_line(framing: type[Framing]) -> None:
    import orjson

    pretty = orjson.Fragment(b'{\n  "a": 1\r\n}')
    body = sent([pretty, 2], [], framing()).body
    assert len(body.rstrip(b"\n").split(b"\n")) == 2
    found = (
        json.loads(body)
        if framing is ArrayFraming
        else [json.loads(line) for line in body.split(b"\n")[:-1]]
    )
    assert found == [{"a": 1}, 2]


def read_events(body: bytes) -> list[tuple[str, str, str]]:
    """(type, data, last event id) of each event, by the algorithm of the standard, section 9.2.6."""
    events = []
    data, kind, last_id = "", "", ""
    text = body.decode("utf-8")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines.pop() == ""
    for line in lines:
        if not line:
            if data:
                events.append((kind or "message", data[:-1], last_id))
            data, kind = "", ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data += value + "\n"
        elif name == "event":
            kind = value
        elif name == "id":
            if "\0" not in value:
                last_id = value
        elif name == "retry":
            assert value.isascii()
            assert value.isdigit()
        else:
            assert name == ""
    return events


texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r: \0\ufeff\u2028"))
lines = texts.map(lambda text: text.replace("\n", "").replace("\r", ""))
ids = st.none() | lines.map(lambda text: text.replace("\0", ""))
events = st.builds(
    Event,
    texts,
    event=st.none() | lines,
    id=ids,
    retry=st.none() | st.integers(0, 10**9),
    comment=st.none() | texts,
)


@given(st.lists(events | json_values, max_size=8), paces)
def test_events_are_read_back(rows: list[Any], waits: list[int]) -> None:
    expected = []
    last_id = ""
    for row in rows:
        if isinstance(row, Event):
            last_id = last_id if row.id is None else str(row.id)
            data = row.data.replace("\r\n", "\n").replace("\r", "\n")
            expected.append((row.event or "message", data, last_id))
        else:
            expected.append(("message", json.dumps(row), last_id))
    found = read_events(sent(rows, waits, EventFraming(), eager=True).body)
    assert len(found) == len(expected)
    for row, left, right in zip(rows, found, expected, strict=True):
        if isinstance(row, Event):
            assert left == right
        else:
            assert (left[0], json.loads(left[1]), left[2]) == (right[0], row, right[2])


@pytest.mark.parametrize(
    ("event", "lines"),
    [
        (Event("a\nb\r\nc\rd"), ["data: a", "data: b", "data: c", "data: d"]),
        (Event("a\u2028b\x0bc"), ["data: a\u2028b\x0bc"]),
        (Event(""), ["data: "]),
        (Event(" a"), ["data:  a"]),
        (Event({"a": 1}), ['data: {"a":1}']),
        (Event(0), ["data: 0"]),
        (Event(comment="hello\nthere"), [": hello", ": there"]),
        (Event(retry=0), ["retry: 0"]),
        (Event(id=7), ["id: 7"]),
        (Event(id=""), ["id: "]),
        (
            Event("x", "tick", "1", 5, "c"),
            [": c", "event: tick", "id: 1", "retry: 5", "data: x"],
        ),
        ("text", ['data: "text"']),
        (None, ["data: null"]),
        ({"data": 1}, ['data: {"data":1}']),
    ],
)
def test_the_lines_of_an_event(event: Any, lines: list[str]) -> None:
    assert sent([event], [], EventFraming()).body.decode() == "\n".join([*lines, "", ""])


def test_data_that_was_laid_out_is_put_on_one_line() -> None:
    import orjson

    pretty = orjson.Fragment(b'{\n"a":\r1}')
    for event in (pretty, Event(pretty)):
        assert sent([event], [], EventFraming()).body == b'data: { "a": 1}\n\n'


@pytest.mark.parametrize("field", ["data", "event", "id", "comment"])
def test_an_event_that_is_no_utf_8_breaks_the_stream_off(field: str) -> None:
    """JSON has an escape for it; the lines of an event have none."""
    event = Event(**{"data": "", field: "a\ud800"})
    with pytest.raises(EncodeError, match="lone surrogate"):
        sent([event], [], EventFraming())
    assert sent(["\ud800"], [], EventFraming()).body == b'data: "\\ud800"\n\n'


@pytest.mark.parametrize(
    ("fields", "kind", "told"),
    [
        ({}, TypeError, "nothing to send"),
        ({"event": "x"}, ValueError, "data=''"),
        ({"data": 1, "event": "a\nb"}, ValueError, "line break"),
        ({"data": 1, "event": "a\rb"}, ValueError, "line break"),
        ({"data": 1, "event": b"a"}, TypeError, "string"),
        ({"data": 1, "id": "a\nb"}, ValueError, "line break"),
        ({"data": 1, "id": "a\0b"}, ValueError, "NUL"),
        ({"data": 1, "id": 1.5}, TypeError, "string"),
        ({"data": 1, "id": True}, TypeError, "string"),
        ({"data": 1, "retry": -1}, ValueError, "negative"),
        ({"data": 1, "retry": 1.5}, TypeError, "milliseconds"),
        ({"data": 1, "retry": True}, TypeError, "milliseconds"),
        ({"data": 1, "comment": 1}, TypeError, "string"),
    ],
)
def test_an_event_that_cannot_be_sent_is_refused(
    fields: dict[str, Any], kind: type[Exception], told: str
) -> None:
    from asgi_perfkit import ConfigurationError

    with pytest.raises(kind, match=told) as caught:
        Event(**fields)
    assert isinstance(caught.value, ConfigurationError)
