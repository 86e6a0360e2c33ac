"""Leaves what was entered, last in first out, as nested ``with`` statements would leave it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib import import_module
from types import AsyncGeneratorType, GeneratorType, coroutine
from typing import Any

from asgi_perfkit.exceptions import CleanupError
from asgi_perfkit.resources.apart import Apart
from asgi_perfkit.resources.exits import Exit, limits_itself, seconds_in_force
from asgi_perfkit.resources.limits import Limit
from asgi_perfkit.resources.shield import guard_around

__all__ = ["leave_all"]

logger = logging.getLogger("asgi_perfkit")

# What a closing sets for all that it leaves.
_OF_THE_CLOSING = guard_around, seconds_in_force


async def leave_all(
    exits: list[Exit], depth: int, error: BaseException | None, limit: Limit | None = None
) -> bool:
    """Leave what stands above `depth`, each with the exception that those behind it have left, `error` at first.

    :param limit: of the time that each may take.
    :return: whether `error` was suppressed.
    :raises ExceptionGroup: of what was raised by some, when all are left; or, if there was one, what is no
        :class:`Exception`, itself (the others are logged then).
    """
    pending = error
    failures: list[BaseException] = []
    while len(exits) > depth:
        leave = exits.pop()
        try:
            if await (
                _leave(leave, pending)
                if limit is None or limits_itself(leave)
                else _leave_in_time(leave, pending, limit)
            ):
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


@coroutine
def _leave_in_time(
    leave: Exit, error: BaseException | None, limit: Limit
) -> Generator[Any, Any, bool]:
    work = _leave(leave, error)
    try:
        waits_for = work.send(None)
    except StopIteration as stop:  # it never waits, and so it cannot take too long
        return bool(stop.value)
    watch = limit.watch()
    watch.begin(leave)
    try:
        suppressed = yield from _go_on(work, waits_for)
    except (GeneratorExit, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as failure:
        if watch.times:
            raise watch.error() from failure
        raise
    else:
        if watch.times:
            raise watch.error()
        return suppressed
    finally:
        watch.end()
        del error  # its traceback holds this frame


def _go_on(work: Coroutine[Any, Any, bool], waits_for: Any) -> Generator[Any, Any, bool]:
    """Await `work`, which has begun, and `waits_for` what it has yielded."""
    while True:
        try:
            sent = yield waits_for
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:
            step = partial(work.throw, error)
        else:
            step = partial(work.send, sent)
        try:
            waits_for = step()
        except StopIteration as stop:
            return bool(stop.value)
        finally:
            del step  # it may hold an exception whose traceback holds this frame


async def _leave(leave: Exit, error: BaseException | None) -> bool:
    kind = type(leave)
    thing: Any = leave
    if error is not None:
        if kind is AsyncGeneratorType:
            thing = _adopt_async(thing).__aexit__
        elif kind is GeneratorType:
            return bool(_adopt(thing).__exit__(type(error), error, error.__traceback__))
        elif kind is Apart:
            return bool(await thing.leave(_leave(thing.exit, error), _OF_THE_CLOSING))
        return bool(await thing(type(error), error, error.__traceback__))
    if kind is AsyncGeneratorType:
        try:
            await thing.__anext__()
        except StopAsyncIteration:
            return False
        await thing.aclose()
        raise _not_stopped(thing)
    if kind is GeneratorType:
        try:
            next(thing)
        except StopIteration:
            return False
        thing.close()
        raise _not_stopped(thing)
    if kind is Apart:
        return bool(await thing.leave(_leave(thing.exit, None), _OF_THE_CLOSING))
    return bool(await thing(None, None, None))


def _not_stopped(generator: Any) -> RuntimeError:
    return RuntimeError(
        f"{generator.__qualname__} yields more than once: a dependency yields its value, and then cleans up."
    )


# contextlib's own manager around a generator that has begun: it knows what an exception that is thrown in comes to.
_adopt_async = asynccontextmanager(lambda generator: generator)
_adopt = contextmanager(lambda generator: generator)
