"""One call in a worker thread: what is called, in which context, and what came of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, ContextVar
from time import perf_counter_ns
from typing import Any, Final, NoReturn

from asgi_perfkit.steps import current_account
from asgi_perfkit.threads.limiter import CALL, ENTER, INNER_CALL, INNER_ENTER, Hook

__all__ = ["NO_THREAD", "Call", "Pin", "current_pin", "holding", "reraise"]

holding: ContextVar[bool] = ContextVar("asgi_perfkit.threads.holding", default=False)
"""Whether the running code is inside of a manager, and so may hold what others wait for."""


class Pin(ABC):
    """Keeps one worker thread for the calls that must all run in the same.

    :param loop: the one that it is for.
    :ivar closed: whether the last of them has been made, or is about to be.
    """

    __slots__ = ("closed", "loop")

    def __init__(self, loop: object) -> None:
        self.loop = loop
        self.closed = False

    @abstractmethod
    def release(self) -> None:
        """Give the thread back, once no call runs in it; more than once does nothing."""


NO_THREAD: Final = (
    "same_thread=True is for the body of contextmanager_in_threadpool(..., same_thread=True), "
    "and there is none around here on this event loop, or it has been exited."
)

current_pin: ContextVar[Pin | None] = ContextVar("asgi_perfkit.threads.pin", default=None)
"""Of the innermost manager with ``same_thread=True`` that the running code is inside of."""


class Call(ABC):
    """A call in a worker thread. How it gets there, each kind of event loop has its own way for.

    :param context: the context to run in. Calls that share one follow each other.
    :param limiter: where it takes a token; None if it needs none.
    :param kind: of token; see :mod:`asgi_perfkit.threads.limiter`.
    :param pin: for a call that needs the same thread as others.
    :param function: what to call.
    :ivar over: whether nothing more will come of it.
    :ivar value: what `function` returned.
    :ivar error: what it raised.
    """

    __slots__ = (
        "_account",
        "_args",
        "_asked_ns",
        "_context",
        "_function",
        "_kwargs",
        "error",
        "kind",
        "limiter",
        "over",
        "pin",
        "value",
    )

    def __init__(
        self,
        context: Context,
        limiter: Any,
        kind: int,
        pin: Any,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._account = account = current_account.get()
        self._asked_ns = 0 if account is None else perf_counter_ns()
        self._context = context
        self._function = function
        self._args = args
        self._kwargs = kwargs
        # Whose type is that of the subclass: a call of trio's has a pin of trio's.
        self.limiter = limiter
        self.pin = pin
        if kind <= ENTER and holding.get():
            kind = INNER_CALL if kind == CALL else INNER_ENTER
        self.kind = kind
        self.over = False
        self.value: Any = None
        self.error: BaseException | None = None

    @abstractmethod
    def run(self, *, leaves: bool = True) -> Awaitable[BaseException | None]:
        """Run the call to its end, whatever happens to the task meanwhile.

        :param leaves: whether a task that is cancelled while it waits for a token gives up, and the call does not
            take place.
        :return: the cancellation that came while it ran and is still to be raised, if there was one.
        :raises: the cancellation, if the call did not take place.
        """

    @abstractmethod
    def begin(self) -> None:
        """Have the call made; :meth:`run` is this and :meth:`wait`."""

    @abstractmethod
    async def wait(self, *, leaves: bool = True) -> BaseException | None:
        """Wait until the call that was begun is over; see :meth:`run`."""

    @abstractmethod
    async def wait_a_moment(self, seconds: float) -> BaseException | None:
        """Wait until the call that was begun is over, or for so many seconds; see :meth:`run`."""

    @abstractmethod
    def withdraw(self) -> bool:
        """Do not make the call after all; False if it is too late for that."""

    def execute(self) -> None:
        """Make the call; runs in the worker thread."""
        account = self._account
        started_ns = 0 if account is None else perf_counter_ns()
        limiter = self.limiter
        try:
            if (
                limiter is None
                or self.pin
                is not None  # whoever holds it has them called at its beginning and its end
                or (limiter.before is None and limiter.after is None)
            ):
                self.value = self._context.run(self._function, *self._args, **self._kwargs)
            else:
                self.value = self._context.run(self._between, limiter.before, limiter.after)
        except BaseException as error:
            # Without this frame, which is not where it comes from.
            self.error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        if account is not None:
            ended_ns = perf_counter_ns()
            account.observe("thread_wait_time", started_ns - self._asked_ns)
            account.observe("thread_time", ended_ns - started_ns)

    def _between(self, before: Hook | None, after: Hook | None) -> Any:
        if before is not None:
            before()
        try:
            return self._function(*self._args, **self._kwargs)
        finally:
            if after is not None:
                after()

    def result(self, cancelled: BaseException | None) -> Any:
        """What the call returned.

        :raises: what it raised, or else `cancelled`.
        """
        error, self.error = self.error, None
        try:
            if error is not None:
                if cancelled is not None and error.__context__ is None:
                    error.__context__ = cancelled
                reraise(error)
            if cancelled is not None:
                raise cancelled
        finally:
            del error, cancelled
        return self.value


def reraise(error: BaseException) -> NoReturn:
    """Raise an `error` that was raised in a thread, with what it has as its context there.

    Raising it here puts what is being handled here in that place. Where the function would have been called without a
    thread, that would have come behind it.
    """
    context = error.__context__
    try:
        raise error
    except BaseException:
        handled = error.__context__
        if context is not None and handled is not context:
            error.__context__ = context
            _append_context(error, handled)
        raise
    finally:
        del error, context  # the exceptions may hold this frame


def _append_context(error: BaseException, handled: BaseException | None) -> None:
    """Put `handled` at the end of the chain of contexts of `error`, unless that would close a circle."""
    chain = {id(error)}
    last = error
    while (context := last.__context__) is not None and id(context) not in chain:
        chain.add(id(context))
        last = context
    behind = handled
    while behind is not None:
        if id(behind) in chain:
            return
        chain.add(id(behind))
        behind = behind.__context__
    last.__context__ = handled
