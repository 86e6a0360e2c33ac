"""A blocking context manager, entered and exited in worker threads."""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import Context, Token, copy_context
from types import TracebackType
from typing import Any, Generic, TypeVar

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.threads.call import Pin, current_pin, holding
from asgi_perfkit.threads.hop import check_choices, new_call, new_pin
from asgi_perfkit.threads.limiter import ENTER, EXIT, ThreadLimiter, default_limiter

__all__ = ["contextmanager_in_threadpool"]

T = TypeVar("T")

_UNSET: Any = object()


class contextmanager_in_threadpool(Generic[T]):  # noqa: N801  # used like a function, as contextlib's are
    """Use a blocking context manager with ``async with``; its enter and its exit run in worker threads.

    What holds for a ``with`` statement holds for it:

    * The exit runs exactly once if the enter has returned, whatever happens to the task: who is cancelled during the
      enter is told after the exit (which is given the cancellation), who is cancelled during the exit after that.
    * The manager may suppress the exception of the body, or raise another; :func:`sys.exc_info` in the exit is the
      exception of the body.
    * Enter and exit share one context, so :meth:`contextvars.ContextVar.reset` works. What the enter sets is visible
      in the body, what the body sets is visible in the exit, and what the enter has set is undone in the end.

    An exit never queues behind an enter: see :class:`ThreadLimiter`.

    :param cm: the manager.
    :param limiter: who decides when; :func:`default_limiter` if None.
    :param same_thread: run the exit in the thread of the enter, and in the body whatever is to run there, too
        (:mod:`sqlite3`, :class:`threading.RLock`): ``run_in_threadpool(..., same_thread=True)``, and likewise
        :func:`iterate_in_threadpool`. The thread does nothing else meanwhile, and takes no token: there is one for
        each manager that is open. The limiter's hooks are called before the enter and after the exit.
    :param thread_sensitive: run both where Django's synchronous code of this request runs; see
        :func:`run_in_threadpool`.
    :raises ConfigurationTypeError: `cm` is no context manager.
    """

    def __init__(
        self,
        cm: AbstractContextManager[T, Any],
        *,
        limiter: ThreadLimiter | None = None,
        same_thread: bool = False,
        thread_sensitive: bool = False,
    ) -> None:
        check_choices(
            "contextmanager_in_threadpool",
            limiter,
            same_thread=same_thread,
            thread_sensitive=thread_sensitive,
        )
        kind = type(cm)
        if not (hasattr(kind, "__enter__") and hasattr(kind, "__exit__")):
            remedy = "it needs __enter__ and __exit__."
            if hasattr(kind, "__aenter__"):
                remedy = "it is asynchronous and needs no thread; use it with `async with`."
            raise ConfigurationTypeError("contextmanager_in_threadpool(cm)", cm, remedy)
        self._cm = cm
        self._same_thread = same_thread
        self._limiter = limiter
        self._thread_sensitive = thread_sensitive
        self._pin: Pin | None = None
        self._is_open = False
        self._context: Context
        self._undo: list[Token[Any]]

    async def __aenter__(self) -> T:
        if self._is_open:
            raise RuntimeError(
                f"contextmanager_in_threadpool({self._cm!r}) is open already: make one for each `async with`."
            )
        if self._same_thread:
            self._pin = new_pin()
        self._is_open = True
        context = self._context = copy_context()
        entered = False
        try:
            enter = new_call(
                context,
                ENTER,
                _enter if self._pin is None else _enter_pinned,
                (self._cm,) if self._pin is None else (self._cm, self._hooks()),
                limiter=self._limiter,
                pin=self._pin,
                thread_sensitive=self._thread_sensitive,
            )
            cancelled = await enter.run()
            if enter.error is not None:
                enter.result(cancelled)
            if cancelled is not None:
                try:
                    await self._exit(cancelled)
                    raise cancelled
                finally:
                    del cancelled  # its traceback holds this frame
            entered = True
        finally:
            if not entered:
                self._close()
        self._undo = [holding.set(True), *_adopt(context)]
        if self._pin is not None:
            self._undo.append(current_pin.set(self._pin))
        value: T = enter.value
        return value

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        for var, value in copy_context().items():
            if self._context.get(var, _UNSET) is not value:
                self._context.run(var.set, value)
        try:
            return await self._exit(error)
        finally:
            self._close()
            for token in reversed(self._undo):
                _undo(token)
            del error

    async def _exit(self, error: BaseException | None) -> bool:
        """Exit the manager, whatever happens to the task; returns whether it suppresses `error`.

        :raises: what the exit raised, or else the cancellation that came meanwhile.
        """
        if self._pin is not None:
            self._pin.closed = True
        call = new_call(
            self._context,
            EXIT,
            _leave if self._pin is None else _leave_pinned,
            (self._cm, error) if self._pin is None else (self._cm, error, self._hooks()),
            limiter=self._limiter,
            pin=self._pin,
            thread_sensitive=self._thread_sensitive,
        )
        try:
            cancelled = await call.run(leaves=False)
            if error is not None and call.error is error:  # the exit has raised it again
                call.error, call.value = None, False
            suppressed: bool = call.result(cancelled)
            return suppressed
        finally:
            cancelled = error = None

    def _close(self) -> None:
        self._is_open = False
        if self._pin is not None:
            self._pin.release()

    def _hooks(self) -> ThreadLimiter:
        return self._limiter or default_limiter()


def _enter(cm: AbstractContextManager[T, Any]) -> T:
    return type(cm).__enter__(cm)


def _enter_pinned(cm: AbstractContextManager[T, Any], hooks: ThreadLimiter) -> T:
    if hooks.before is not None:
        hooks.before()
    try:
        return type(cm).__enter__(cm)
    except BaseException:
        if hooks.after is not None:
            hooks.after()
        raise


def _leave_pinned(
    cm: AbstractContextManager[Any, Any], error: BaseException | None, hooks: ThreadLimiter
) -> bool:
    try:
        return _leave(cm, error)
    finally:
        if hooks.after is not None:
            hooks.after()


def _leave(cm: AbstractContextManager[Any, Any], error: BaseException | None) -> bool:
    """Exit a manager as a ``with`` statement does; runs in the worker thread."""
    leave = type(cm).__exit__
    if error is None:
        return bool(leave(cm, None, None, None))
    traceback = error.__traceback__
    try:
        try:
            raise error
        except (
            BaseException
        ):  # in here it is the exception that is being handled, as it is in the exit of a `with`
            error.__traceback__ = traceback
            return bool(leave(cm, type(error), error, traceback))
    finally:
        del error, traceback  # the exception may hold this frame


def _adopt(context: Context) -> list[Token[Any]]:
    """Set what was set in `context`, and is not so here; returns how to undo it."""
    return [var.set(value) for var, value in context.items() if var.get(_UNSET) is not value]


def _undo(token: Token[Any]) -> None:
    try:
        token.var.reset(token)
    except ValueError:
        # The exit was awaited in another context than the enter: there is nothing to undo in this one.
        pass
