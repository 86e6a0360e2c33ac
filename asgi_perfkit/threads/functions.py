"""A blocking function in a worker thread."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import copy_context
from types import FunctionType
from typing import Any, TypeVar

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.threads.hop import check_choices, new_call, open_pin
from asgi_perfkit.threads.limiter import CALL, ThreadLimiter

__all__ = ["run_in_threadpool"]

T = TypeVar("T")


async def run_in_threadpool(
    func: Callable[..., T],
    /,
    *args: Any,
    limiter: ThreadLimiter | None = None,
    same_thread: bool = False,
    thread_sensitive: bool = False,
    **kwargs: Any,
) -> T:
    """Call a blocking `func` in a worker thread, and wait for what it returns.

    It runs in a copy of the caller's context. Once it has begun it is never left alone: who is cancelled meanwhile
    learns of it when `func` has returned, whose value is lost then; the token stays taken until that. What `func`
    raises is raised also then. Who is cancelled while waiting for a token leaves at once, and `func` is not called.
    (On trio, as always there, a cancellation shows at the next checkpoint after the value.)

    :param args: for `func`, as `kwargs` are; use :func:`functools.partial` for a parameter of `func` with the name
        of one below.
    :param limiter: who decides when; :func:`default_limiter` if None.
    :param same_thread: call it in the thread of the :func:`contextmanager_in_threadpool` with ``same_thread=True``
        whose body this is; of the innermost one.
    :param thread_sensitive: call it where Django's synchronous code of this request runs (asgiref's
        ``thread_sensitive=True``), one at a time, with no limiter. asyncio only.
    :raises ConfigurationTypeError: `func` is not callable, or is a coroutine function.
    :raises TypeError: `func` returned an awaitable.
    :raises RuntimeError: no event loop runs; the system has no thread left; there is no such manager.
    """
    if limiter is not None or same_thread or thread_sensitive:
        check_choices(
            "run_in_threadpool",
            limiter,
            same_thread=same_thread,
            thread_sensitive=thread_sensitive,
        )
    if not callable(func):
        raise ConfigurationTypeError(
            "run_in_threadpool(func)", func, "give a function, and its arguments behind it."
        )
    if _is_coroutine_function(func):
        raise ConfigurationTypeError(
            "run_in_threadpool(func)", func, "a coroutine function needs no thread; await it."
        )
    call = new_call(
        copy_context(),
        CALL,
        func,
        args,
        kwargs,
        limiter=limiter,
        pin=open_pin() if same_thread else None,
        thread_sensitive=thread_sensitive,
    )
    value: T = call.result(await call.run())
    if value is not None and hasattr(type(value), "__await__"):
        _refuse_awaitable(value, func)
    return value


def _is_coroutine_function(func: Callable[..., Any]) -> bool:
    # As a rule it is a plain function that nobody has marked: a quarter of what `inspect` takes for that.
    if type(func) is FunctionType and not func.__dict__:
        return bool(func.__code__.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(func)


def _refuse_awaitable(value: object, func: object) -> None:
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that it was never awaited
    raise TypeError(
        f"run_in_threadpool(func) got {func!r}, which returned an awaitable: "
        "call it without a thread, and await what it returns."
    )
