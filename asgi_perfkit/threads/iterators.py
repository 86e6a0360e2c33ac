"""A blocking iterator, advanced in worker threads."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextvars import copy_context
from time import perf_counter_ns
from typing import Any, Final, Generic, TypeVar

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.threads.call import Pin, reraise
from asgi_perfkit.threads.hop import check_choices, checkpoint, new_call, new_pin, pin_around
from asgi_perfkit.threads.limiter import CALL, EXIT, ThreadLimiter, default_limiter

__all__ = ["iterate_in_threadpool"]

T = TypeVar("T")

# A hop to a thread costs some 50 µs, so 64 items in one make it less than 1 µs an item. More gains little and would
# read further ahead.
_MAX_AHEAD: Final = 64
# One visit to the thread fetches no further item after this long: an iterator that needs as long for one is not
# read ahead at all.
_VISIT_NS: Final = 500_000
# After this long what has been fetched is handed out although the thread has not come back.
_PATIENCE_SECONDS: Final = 0.001
# Handing out what has been fetched gives the loop a turn after this long, should the consumer not do so.
_TURN_NS: Final = 500_000


def iterate_in_threadpool(
    iterable: Iterable[T],
    *,
    limiter: ThreadLimiter | None = None,
    same_thread: bool = False,
    thread_sensitive: bool = False,
) -> AsyncGenerator[T, None]:
    """Iterate over a blocking `iterable` with ``async for``; it is advanced in worker threads.

    While items come fast several are fetched at a time, at most 64 more than were asked for; what has been fetched is
    handed out within a millisecond or so, although the next item may take long. All steps share one copy of the
    caller's context. An error of the iterator is raised behind the items before it. A generator is closed in a
    worker thread (its ``finally`` runs) as soon as the iteration ends, in whichever way: by ``aclose()``, by a
    cancellation, which waits for the step that runs; after a ``break``, when the asynchronous generator that this
    returns is dropped, which :func:`contextlib.aclosing` makes certain.

    :param limiter: who decides when; :func:`default_limiter` if None. A token is held while items are fetched, not
        between.
    :param same_thread: take all steps in one thread: that of the :func:`contextmanager_in_threadpool` with
        ``same_thread=True`` whose body this is, or else in one that does nothing else until the end, without a token.
        The limiter's hooks are called before the first step and after the last, and not around each visit.
    :param thread_sensitive: take them where Django's synchronous code of this request runs; see
        :func:`run_in_threadpool`.
    :raises ConfigurationTypeError: `iterable` has no ``__iter__``.
    """
    check_choices(
        "iterate_in_threadpool", limiter, same_thread=same_thread, thread_sensitive=thread_sensitive
    )
    if not hasattr(type(iterable), "__iter__"):
        remedy = "it needs __iter__."
        if hasattr(type(iterable), "__aiter__"):
            remedy = "it is asynchronous and needs no thread; use it with `async for`."
        raise ConfigurationTypeError("iterate_in_threadpool(iterable)", iterable, remedy)
    return _iterate(iterable, limiter, same_thread, thread_sensitive)


async def _iterate(
    iterable: Iterable[T], limiter: ThreadLimiter | None, same_thread: bool, thread_sensitive: bool
) -> AsyncGenerator[T, None]:
    context = copy_context()
    pin = pin_around() if same_thread else None
    own = same_thread and pin is None
    if own:
        pin = new_pin()
    source = _Source(iterable, pin, (limiter or default_limiter()) if own else None)
    items = source.items
    # Should the task be forgotten, a garbage collection closes the asynchronous generator, which closes the iterator in
    # its thread. It would take the iterator along, in whatever thread it runs in, were that not held here.
    _open.add(source)
    visit = None
    ahead = 1
    try:
        while not source.ended:
            visit = new_call(
                context,
                CALL,
                source.fetch,
                (ahead,),
                limiter=limiter,
                pin=pin,
                thread_sensitive=thread_sensitive,
            )
            source.hurried = False
            visit.begin()
            patient = ahead > 1
            while True:
                waiting = visit.wait_a_moment(_PATIENCE_SECONDS) if patient else visit.wait()
                try:
                    visit.result(await waiting)
                except BaseException:
                    if visit.over:
                        source.raise_error()  # as of any call that was cancelled meanwhile
                    raise
                if not visit.over:
                    source.hurried = True
                    patient = False
                turn_ns = perf_counter_ns() + _TURN_NS
                while items:
                    yield items.popleft()
                    if items and perf_counter_ns() >= turn_ns:
                        await checkpoint()
                        turn_ns = perf_counter_ns() + _TURN_NS
                if visit.over:
                    break
            # Twice as many, as long as they come so fast that time is not what ends the visit.
            ahead = min(2 * ahead, _MAX_AHEAD) if source.fetched == ahead else source.fetched or 1
        source.raise_error()
    finally:
        cancelled = None
        try:
            if visit is not None and not visit.over and not visit.withdraw():
                cancelled = await visit.wait(leaves=False)
            if source.is_open:
                close = new_call(
                    context,
                    EXIT,
                    source.close,
                    (),
                    limiter=limiter,
                    pin=pin,
                    thread_sensitive=thread_sensitive,
                )
                again = await close.run(leaves=False)
                close.result(cancelled or again)
            elif cancelled is not None:
                raise cancelled
        finally:
            cancelled = again = None  # their tracebacks hold this frame
            _open.discard(source)
            if pin is not None and own:
                pin.release()


class _Source(Generic[T]):
    """The iterator. `fetch` and `close` run in worker threads, one at a time.

    :param pin: of its thread, held here for as long as the iterator is open.
    :param hooks: called before the first step and after the last; None if others see to that.
    :ivar items: fetched, and not yet handed out.
    :ivar fetched: how many items the last visit has brought.
    :ivar hurried: whether the visit is to end with the item that is being fetched.
    :ivar ended: whether there is nothing more to fetch.
    """

    def __init__(self, iterable: Iterable[T], pin: Pin | None, hooks: ThreadLimiter | None) -> None:
        self.items: deque[T] = deque()
        self.fetched = 0
        self.hurried = False
        self.ended = False
        self._iterable: Iterable[T] | None = iterable
        self._iterator: Iterator[T] | None = None
        self._error: BaseException | None = None
        self._hooks = hooks
        self._pin = pin

    def fetch(self, limit: int) -> None:
        """Fetch up to `limit` items, as far as they come fast."""
        deadline_ns = perf_counter_ns() + _VISIT_NS
        items = self.items
        self.fetched = 0
        if self._iterator is None and self._hooks is not None and self._hooks.before is not None:
            self._hooks.before()
        try:
            if self._iterator is None:
                assert self._iterable is not None
                self._iterator, self._iterable = iter(self._iterable), None
            iterator = self._iterator
            while True:
                try:
                    item = next(iterator)
                except StopIteration:
                    self._end()
                    break
                items.append(item)
                self.fetched += 1
                if self.fetched >= limit or self.hurried or perf_counter_ns() >= deadline_ns:
                    break
        except BaseException as error:
            # Without this frame, for which the error would be a cycle.
            self._error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
            if not self.ended:
                self._end()

    def _end(self) -> None:
        self.ended = True
        if self._hooks is not None and self._hooks.after is not None:
            self._hooks.after()

    def raise_error(self) -> None:
        """Raise what the iterator has raised, if anything."""
        error, self._error = self._error, None
        try:
            if error is not None:
                reraise(error)
        finally:
            del error

    @property
    def is_open(self) -> bool:
        """Whether there is a generator that waits for its end, or a hook."""
        if self.ended or self._iterator is None:
            return False
        return self._hooks is not None or isinstance(self._iterator, Generator)

    def close(self) -> None:
        """Close the generator: its ``finally`` runs."""
        try:
            if isinstance(self._iterator, Generator):
                self._iterator.close()
        finally:
            self._end()


_open: set[_Source[Any]] = set()
