"""Rows into chunks of bytes, as many in each as come without a wait.

Rows gather in a buffer until one of three things happens:

* there are 16 KiB: the chunk is written;
* it has taken a millisecond, and nobody else could run: the chunk is written;
* the producer waits for something: what there is goes out at once, by a child task, while the producer's wait goes on
  undisturbed. What comes while that child is writing gathers behind it.

So a fast producer is sent in few large chunks, a row of a slow one leaves as it comes, and there is no timer in either.
At most one chunk is being written and one gathers: a reader that is slow holds the producer up.

That the producer waits shows where it suspends: the coroutine that iterates over it is stepped by :class:`_Stepped`,
which passes on whatever it yields and whatever the loop sends or throws in. It is ``await``, in the same task and the
same context, so whatever the producer does with these (time-outs, cancel scopes, context variables) works as it does
in any ``async for``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
)
from time import perf_counter_ns
from typing import Any, Final, Protocol

from asgi_perfkit.encoding.children import Children, Event, new_children
from asgi_perfkit.encoding.encoder import current_encoder
from asgi_perfkit.encoding.framing import Framing
from asgi_perfkit.steps.account import current_account
from asgi_perfkit.threads.hop import checkpoint

__all__ = ["Reader", "Rows", "RowStream", "is_rows"]

# What servers and clients buffer, too; per row, nothing is gained with more.
_CHUNK_BYTES: Final = 16_384
_LINE_BREAK: Final = 0x0A  # an integer is looked for ten times as fast as bytes are
# Beside a millisecond of work the few dozen microseconds of a chunk and of a turn of the loop are next to nothing.
_TURN_NS: Final = 1_000_000

_log = logging.getLogger("asgi_perfkit")

Rows = Iterable[Any] | AsyncIterable[Any]


class Reader(Protocol):
    """Who a stream is written to."""

    begun: bool
    """Whether anything was written."""

    async def write(self, chunk: bytes, more: bool) -> None:
        """Write a chunk, which may be empty; return when there is room for the next.

        :param more: whether this is not the last one.
        """

    async def left(self) -> None:
        """Wait until the reader has left; called once, and cancelled as a rule."""


def is_rows(rows: object) -> bool:
    """Whether one can iterate over `rows` with ``async for``, or with ``for``."""
    return hasattr(type(rows), "__aiter__") or hasattr(type(rows), "__iter__")


class RowStream:
    """One stream.

    :param rows: an asynchronous iterable, or any other, which is iterated over on the loop. Generators are closed.
    :param watch: whether to notice that the reader leaves while nothing is written.
    :param eager: whether the reader is to learn that there is a stream before there is a row.
    :param idle_seconds: after how long without a chunk to say that the stream is alive; None for never.
    :param error_row: makes a last row of the error that has ended a stream which the reader has seen begin.
    """

    __slots__ = (
        "_buffer",
        "_busy",
        "_children",
        "_deadline_ns",
        "_eager",
        "_encode",
        "_encoding_ns",
        "_ending",
        "_error_row",
        "_failure",
        "_framing",
        "_idle",
        "_idle_seconds",
        "_reader",
        "_rows",
        "_stopped",
        "_watched",
        "_written_ns",
    )

    def __init__(
        self,
        rows: Rows,
        framing: Framing,
        reader: Reader,
        *,
        watch: bool = True,
        eager: bool = False,
        idle_seconds: float | None = None,
        error_row: Callable[[Exception], Any] | None = None,
    ) -> None:
        self._rows = rows
        self._framing = framing
        self._reader = reader
        self._eager = eager
        self._idle_seconds = idle_seconds
        self._error_row = error_row
        self._buffer = bytearray()
        self._busy = False  # whether something is being written
        self._idle: Event | None = None  # set when it is not any more, if somebody waits for that
        self._watched = not watch  # whether somebody waits for the reader to leave
        self._stopped = False  # whether nothing is to be written any more
        self._ending = False  # whether the last chunk is on its way
        self._failure: Exception | None = None  # of the reader
        self._deadline_ns = self._written_ns = perf_counter_ns()
        self._encoding_ns = 0
        self._children: Children

    async def run(self) -> None:
        """Write all rows; return early if the reader leaves. Generators are closed in either case.

        The time that the rows' encoding takes is noted as ``serialization_time``.

        :raises: what the producer or the reader raises; what is not the reader's fault is logged. The last chunk is
            not written then.
        """
        self._children = new_children()
        self._encode = self._framing.encode_with(current_encoder())
        account = current_account.get()
        try:
            await self._children.attend(_Stepped(self._run(), self))
        finally:
            if account is not None:
                account.observe("serialization_time", self._encoding_ns)
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        try:
            await self._write_all()
        except Exception as error:
            if error is not self._failure and self._reader.begun:
                await self._break_off(error)
            raise
        finally:
            self._stopped = True  # for a child that has not begun

    async def _write_all(self) -> None:
        rows = self._rows
        iterator = aiter(rows) if hasattr(type(rows), "__aiter__") else _each(rows)  # type: ignore[arg-type]
        encoding_ns = 0
        try:
            encode = self._encode
            end = self._framing.end
            buffer = self._buffer
            async for row in iterator:
                began_ns = perf_counter_ns()
                line = encode(row)
                now_ns = perf_counter_ns()
                encoding_ns += now_ns - began_ns
                buffer += self._framing.flatten(line) if _LINE_BREAK in line else line
                buffer += end
                if len(buffer) >= _CHUNK_BYTES or now_ns >= self._deadline_ns:
                    await self._write()
                    if self._stopped:
                        return  # and the producer has not minded
                    await checkpoint()
        finally:
            self._encoding_ns = encoding_ns
            # One that is running is only met where this coroutine is being closed, before Python 3.13.
            if isinstance(iterator, AsyncGenerator) and not getattr(iterator, "ag_running", False):
                await _close(iterator)
        if not self._stopped:
            await self._write(more=False)

    async def _write(self, *, more: bool = True) -> None:
        """Write what there is, where the producer does not wait."""
        if self._busy and not self._stopped:
            self._idle = self._children.event()
            await self._idle.wait()  # with all that there was
        if self._stopped:
            return
        self._ending = not more
        if self._buffer or not more:
            await self._write_chunk(more)

    async def _write_chunk(self, more: bool) -> None:
        rows = bytes(self._buffer)
        self._buffer.clear()
        self._eager = False
        if not more:
            rows = self._framing.dress_last(rows)
        elif rows:
            rows = self._framing.dress(rows)
        self._busy = True
        try:
            await self._reader.write(rows, more)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._busy = False
            self._written_ns = perf_counter_ns()

    async def _break_off(self, error: Exception) -> None:
        """Say what can be said of an `error` that ends the stream in the middle."""
        _log.error("A stream was broken off by %r.", error, exc_info=error)
        if self._error_row is not None and not self._stopped:
            try:
                self._buffer += self._encode(self._error_row(error)) + self._framing.end
            except Exception:
                _log.exception(
                    "A stream has no last row that tells of its error: making it has failed."
                )
        with contextlib.suppress(Exception):  # the reader's failure is none beside this one
            await self._write()

    # ---- while the work waits

    def resumed(self) -> None:
        """The loop has come back to the work."""
        self._deadline_ns = 0 if self._stopped else perf_counter_ns() + _TURN_NS

    def suspended(self) -> None:
        """The work waits for something."""
        if not self._watched:
            self._watched = True
            self._children.start(self._watch)
            if self._idle_seconds is not None:
                self._children.call_later(self._idle_seconds, self._show_life)
        if not self._busy and (self._buffer or self._eager):
            self._start_flush()

    def _start_flush(self) -> None:
        self._busy = True
        self._children.start(self._flush)

    async def _flush(self) -> None:
        try:
            while (self._buffer or self._eager) and not self._stopped:
                await self._write_chunk(more=True)
        except Exception:
            self._stop()
        finally:
            self._busy = False
            if self._idle is not None:
                self._idle.set()

    async def _watch(self) -> None:
        try:
            await self._reader.left()
        except Exception as error:
            if not self._ending:
                self._failure = error
        if not self._ending:
            self._stop()

    def _stop(self) -> None:
        self._stopped = True
        self._children.interrupt()

    def _show_life(self) -> None:
        assert self._idle_seconds is not None
        left_seconds = self._idle_seconds - (perf_counter_ns() - self._written_ns) / 1e9
        if left_seconds <= 0:
            if not self._busy:
                self._buffer += self._framing.idle
                self._start_flush()
            left_seconds = self._idle_seconds
        self._children.call_later(left_seconds, self._show_life)


class _Stepped:
    """A coroutine that is awaited, and that a stream is told of: when it waits, and when it does not any more."""

    __slots__ = ("_coro", "_stream", "closed")

    def __init__(self, coro: Coroutine[Any, Any, None], stream: RowStream) -> None:
        self.closed = False
        self._coro = coro
        self._stream = stream

    def __await__(self) -> Generator[Any, Any, None]:
        return self  # type: ignore[return-value]  # an iterator with `send`, `throw` and `close` is what it takes

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        self._stream.resumed()
        yielded = self._coro.send(value)
        self._stream.suspended()
        return yielded

    def throw(self, *exception: Any) -> Any:
        self._stream.resumed()
        try:
            yielded = self._coro.throw(*exception)
        finally:
            del exception  # it holds this frame
        self._stream.suspended()
        return yielded

    def close(self) -> None:
        self.closed = True
        self._coro.close()


async def _close(rows: AsyncGenerator[Any, None]) -> None:
    """Close a generator; of what a task group around its `yield` makes of that, raise what is more than the closing."""
    try:
        await rows.aclose()
    except BaseException as error:
        group: Any = error
        if not isinstance(getattr(group, "exceptions", None), tuple):
            raise
        rest = group.split(GeneratorExit)[1]
        if rest is not None:
            raise rest from None


async def _each(rows: Iterable[Any]) -> AsyncGenerator[Any, None]:
    iterator = iter(rows)
    try:
        for row in iterator:
            yield row
    finally:
        if isinstance(iterator, Generator):
            iterator.close()
