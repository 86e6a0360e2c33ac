"""Hands a task to its engine: tries, waits, tries again, and in the end knows whether the engine has it."""

from __future__ import annotations

import contextlib
import random
from typing import Final

from asgi_perfkit.tasks.handoff import Handoff
from asgi_perfkit.tasks.item import Item, awaited, in_context, is_async
from asgi_perfkit.tasks.loop import Flag, Loop
from asgi_perfkit.threads.hop import new_call
from asgi_perfkit.threads.limiter import CALL, ThreadLimiter

__all__ = ["submit"]

_HURRIED_SECONDS: Final = 0.1  # between two tries, where somebody waits for the end of it


async def submit(
    item: Item, handoff: Handoff, *, loop: Loop, limiter: ThreadLimiter, hurry: Flag | None
) -> BaseException | None:
    """Hand `item` to its engine.

    :param limiter: for a `submit` that blocks and runs in a worker thread.
    :param hurry: set when nobody has time for long waits any more.
    :return: why the engine has not taken it; None if it has.
    :raises: only the cancellation of the running task by others.
    """
    # What to say of it if no try ends. A list, to be emptied here: the traceback of an error holds the frame that has
    # caught it.
    failures: list[BaseException] = [TimeoutError(f"no answer within {handoff.timeout:g} s")]
    try:
        tries = _try_often(item, handoff, loop, limiter, hurry, failures)
        await loop.attempt(tries, handoff.timeout)
        if not failures:
            handoff.is_down = False
            return None
        if not _is_final(failures[0]):
            handoff.is_down = True
        return failures[0]
    except BaseException as error:
        if loop.is_cancellation(error):
            raise
        return error
    finally:
        failures.clear()


async def _try_often(
    item: Item,
    handoff: Handoff,
    loop: Loop,
    limiter: ThreadLimiter,
    hurry: Flag | None,
    failures: list[BaseException],
) -> None:
    """Try until it succeeds, which leaves `failures` empty; the last one is in there after one that has failed."""
    longest = handoff.backoff
    for tries_left in reversed(range(handoff.tries)):
        try:
            await _try_once(item, handoff, loop, limiter)
            failures.clear()
            return
        except Exception as error:
            failures[:] = [error]
        if not tries_left or _is_final(failures[0]):
            return
        await _pause(loop, longest * random.uniform(0.5, 1), hurry)
        longest = min(2 * longest, handoff.timeout)
        if (
            not loop.begins_anew()
        ):  # hidden by the engine, or come in the very moment in which the pause was over
            return


def _is_final(error: BaseException) -> bool:
    """Whether another try is no use: it is the function or its arguments that cannot be submitted."""
    return isinstance(error, (TypeError, ValueError)) or isinstance(
        error.__cause__, (TypeError, ValueError)
    )


async def _pause(loop: Loop, seconds: float, hurry: Flag | None) -> None:
    # With a time-out of its own a flag may, up to Python 3.11, lose a cancellation that comes when it is set: as here.
    if hurry is not None and await loop.attempt(hurry.wait(), seconds):
        seconds = min(seconds, _HURRIED_SECONDS)
        hurry = None
    if hurry is None:
        await loop.attempt(loop.flag().wait(), seconds)


async def _try_once(item: Item, handoff: Handoff, loop: Loop, limiter: ThreadLimiter) -> None:
    # A copy, for a try that was left to itself in a thread is still in its own.
    context = item.context.copy()
    function = handoff.engine.submit
    arguments = (item.function, item.args, item.kwargs)
    if is_async(function):
        await in_context(context.run(function, *arguments), context)
        return
    call = new_call(context, CALL, function, arguments, limiter=limiter)
    over = loop.flag()

    async def run_apart() -> None:
        try:
            await call.run()
        except Exception as error:  # the system has no thread left
            call.error = error
        finally:
            over.set()

    # A thread cannot be stopped, and may be in a socket for as long as that likes: it is waited for by somebody who is
    # not needed, so that a shutdown need not wait for it.
    job = loop.start(run_apart)
    try:
        await over.wait()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the loop was closed under it
            job.cancel()  # or it would begin still, when there is a thread for it
        raise
    value = call.result(None)
    if hasattr(type(value), "__await__"):  # a lambda around a coroutine function, for one
        await in_context(awaited(value), context)
