"""What is to be left, last in first out, as nested ``with`` statements would leave it."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from importlib import import_module
from types import AsyncGeneratorType, GeneratorType, TracebackType
from typing import Any

from asgi_perfkit.exceptions import CleanupError
from asgi_perfkit.threads.functions import run_in_threadpool
from asgi_perfkit.threads.hop import new_call
from asgi_perfkit.threads.limiter import EXIT

__all__ = ["AsyncCallback", "Callback", "Exit", "ThreadExit", "leave_all"]

logger = logging.getLogger("asgi_perfkit")

Leave = Callable[
    [type[BaseException] | None, BaseException | None, TracebackType | None], Awaitable[Any]
]
# A generator stands for itself: that spares an object for each.
Exit = AsyncGenerator[Any, Any] | Generator[Any, Any, Any] | Leave


async def leave_all(exits: list[Exit], depth: int, error: BaseException | None) -> bool:
    """Leave what stands above `depth`, each with the exception that those behind it have left, `error` at first.

    :return: whether `error` was suppressed.
    :raises ExceptionGroup: of what was raised by some, when all are left; or, if there was one, what is no
        :class:`Exception`, itself (the others are logged then).
    """
    pending = error
    failures: list[BaseException] = []
    while len(exits) > depth:
        try:
            if await _leave(exits.pop(), pending):
                pending = None
                failures.clear()  # what came of those before was suppressed with it
        except GeneratorExit:  # this coroutine is being closed, and may not await any more
            raise
        except BaseException as failure:
            if failure is not pending:
                if failure.__context__ is None:
                    failure.__context__ = pending
                failures.append(failure)
                pending = failure
    try:
        if failures:
            _raise(failures, error)
        return pending is None and error is not None
    finally:
        del pending, failures, error  # their tracebacks hold this frame


def _raise(failures: list[BaseException], error: BaseException | None) -> None:
    fatal = error if error is not None and not isinstance(error, Exception) else None
    for failure in failures:
        if fatal is None and not isinstance(failure, Exception):
            fatal = failure
    if fatal is None:
        group = _group([failure for failure in failures if isinstance(failure, Exception)])
        group.__context__ = error
        raise group
    for failure in failures:
        if failure is not fatal:
            logger.error("A resource failed to close.", exc_info=failure)
    if fatal is not error:
        raise fatal


def _group(failures: list[Exception]) -> Exception:
    number = len(failures)
    message = "a resource failed to close" if number == 1 else f"{number} resources failed to close"
    kind: Any = CleanupError
    if sys.version_info >= (3, 11):
        kind = ExceptionGroup  # noqa: F821  which is built in there
    else:
        # What trio and anyio raise there.
        with suppress(ImportError):
            kind = import_module("exceptiongroup").ExceptionGroup
    group: Exception = kind(message, failures)
    return group


async def _leave(leave: Exit, error: BaseException | None) -> bool:
    kind = type(leave)
    generator: Any = leave
    if error is not None:
        if kind is AsyncGeneratorType:
            leave = _adopt_async(generator).__aexit__
        elif kind is GeneratorType:
            return bool(_adopt(generator).__exit__(type(error), error, error.__traceback__))
        return bool(await leave(type(error), error, error.__traceback__))  # type: ignore[operator]
    if kind is AsyncGeneratorType:
        try:
            await generator.__anext__()
        except StopAsyncIteration:
            return False
        await generator.aclose()
        raise _not_stopped(generator)
    if kind is GeneratorType:
        try:
            next(generator)
        except StopIteration:
            return False
        generator.close()
        raise _not_stopped(generator)
    return bool(await leave(None, None, None))  # type: ignore[operator]


def _not_stopped(generator: Any) -> RuntimeError:
    return RuntimeError(
        f"{generator.__qualname__} yields more than once: a dependency yields its value, and then cleans up."
    )


# contextlib's own manager around a generator that has begun: it knows what an exception that is thrown in comes to.
_adopt_async = asynccontextmanager(lambda generator: generator)
_adopt = contextmanager(lambda generator: generator)


class AsyncCallback:
    """An async function to be called."""

    __slots__ = ("_args", "_function", "_kwargs")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs

    async def __call__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        await self._function(*self._args, **self._kwargs)
        return False


class Callback(AsyncCallback):
    """A blocking function, to be called in a worker thread."""

    __slots__ = ()

    async def __call__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        await run_in_threadpool(self._function, *self._args, **self._kwargs)
        return False


class ThreadExit:
    """The exit of a blocking context manager that was entered in a worker thread, in the context of its enter."""

    __slots__ = ("_cm", "_context")

    def __init__(self, cm: Any) -> None:
        self._cm = cm
        self._context = copy_context()

    async def __call__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        call = new_call(self._context, EXIT, _exit, (self._cm, error), limiter=None)
        try:
            cancelled = await call.run(leaves=False)
            suppressed: bool = call.result(cancelled)
            return suppressed
        finally:
            cancelled = error = None


def _exit(cm: Any, error: BaseException | None) -> bool:
    # In the stack's `with`, the exception is being handled when `cm` is exited, as in one of its own.
    with ExitStack() as stack:
        stack.push(cm)
        if error is not None:
            raise error
    return error is not None
