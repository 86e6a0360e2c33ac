"""What kind of call the running event loop takes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.steps.loop import asyncio_loop, on_trio
from asgi_perfkit.threads.call import NO_THREAD, Call, Pin, current_pin
from asgi_perfkit.threads.limiter import ThreadLimiter, default_limiter
from asgi_perfkit.threads.pool import PooledCall, WorkerPin

__all__ = ["check_choices", "checkpoint", "new_call", "new_pin", "open_pin", "pin_around"]

_NO_ARGUMENTS: Mapping[str, Any] = {}


def new_call(
    context: Context,
    kind: int,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] = _NO_ARGUMENTS,
    *,
    limiter: ThreadLimiter | None,
    pin: Any = None,
    thread_sensitive: bool = False,
) -> Call:
    """A call for the loop that runs.

    :param limiter: None for the default one.
    :param pin: of :func:`new_pin`; for a call that needs the same thread as others.
    :raises RuntimeError: no event loop runs, or not one that has the thread.
    """
    loop = asyncio_loop()
    if thread_sensitive:
        if loop is None:
            raise RuntimeError(
                "thread_sensitive=True needs a running asyncio loop: asgiref has no threads for trio."
            )
        from asgi_perfkit.threads.sensitive import SensitiveCall

        return SensitiveCall(context, None, kind, None, function, args, kwargs)
    limiter = default_limiter() if limiter is None else limiter
    if loop is not None:
        return PooledCall(context, limiter, kind, pin, function, args, kwargs)
    _need_trio()
    from asgi_perfkit.threads.trio_calls import TrioCall

    return TrioCall(context, limiter, kind, pin, function, args, kwargs)


def new_pin() -> Pin:
    """Keeps one thread for calls on the loop that runs.

    :raises RuntimeError: no event loop runs.
    """
    loop = _loop_here()
    if isinstance(loop, asyncio.AbstractEventLoop):
        return WorkerPin(loop)
    from asgi_perfkit.threads.trio_calls import TrioPin

    return TrioPin(loop)


def open_pin() -> Pin:
    """That of the manager whose body this is.

    :raises RuntimeError: there is none.
    """
    pin = pin_around()
    if pin is None:
        raise RuntimeError(NO_THREAD)
    return pin


def pin_around() -> Pin | None:
    """The same; None if there is none."""
    pin = current_pin.get()
    # A function in a thread may run a loop of its own, in the context of who has called it.
    if pin is None or pin.closed or pin.loop is not _loop_here():
        return None
    return pin


def _loop_here() -> object:
    loop = asyncio_loop()
    if loop is not None:
        return loop
    _need_trio()
    return sys.modules["trio"].lowlevel.current_trio_token()


async def checkpoint() -> None:
    """Let the loop have its turn."""
    if asyncio_loop() is not None:
        await asyncio.sleep(0)
    else:
        await sys.modules["trio"].lowlevel.checkpoint()


def _need_trio() -> None:
    if not on_trio():
        raise RuntimeError(
            "No event loop runs in this thread: worker threads are used from coroutines, "
            "under asyncio, uvloop or trio. Without a loop, call the function itself."
        )


def check_choices(
    subject: str, limiter: object, *, thread_sensitive: bool, same_thread: bool = False
) -> None:
    """Refuse what is no limiter, and what excludes each other.

    :param subject: the public function.
    :raises ConfigurationTypeError: so it is.
    """
    if limiter is not None and not isinstance(limiter, ThreadLimiter):
        raise ConfigurationTypeError(
            f"{subject}(limiter=...)", limiter, "give a ThreadLimiter, or None for the default one."
        )
    if thread_sensitive and (limiter is not None or same_thread):
        raise ConfigurationTypeError(
            f"{subject}(thread_sensitive=...)",
            thread_sensitive,
            "it means asgiref's own thread, which has no limiter and is the same each time; "
            "leave `limiter` and `same_thread` out.",
        )
