"""What is to be left: the kinds of exits that there are, and how those in threads are waited for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import ExitStack
from contextvars import Context, ContextVar, copy_context
from functools import partial
from threading import Thread, current_thread
from types import MethodType, TracebackType
from typing import Any

from asgi_perfkit.exceptions import CleanupTimeoutError
from asgi_perfkit.resources.apart import Apart
from asgi_perfkit.resources.signatures import name_of
from asgi_perfkit.steps.loop import asyncio_loop
from asgi_perfkit.threads.call import Call
from asgi_perfkit.threads.hop import new_call, new_pin
from asgi_perfkit.threads.limiter import EXIT, default_limiter
from asgi_perfkit.threads.managers import contextmanager_in_threadpool
from asgi_perfkit.threads.pool import Worker

__all__ = [
    "AsyncCallback",
    "Callback",
    "Exit",
    "ThreadExit",
    "ThreadManager",
    "limits_itself",
    "name_of_exit",
    "seconds_in_force",
]

Leave = Callable[
    [type[BaseException] | None, BaseException | None, TracebackType | None], Awaitable[Any]
]
# A generator stands for itself: that spares an object for each.
Exit = AsyncGenerator[Any, Any] | Generator[Any, Any, Any] | Leave | Apart

seconds_in_force: ContextVar[float | None] = ContextVar(
    "asgi_perfkit.resources.seconds", default=None
)
"""How long each cleanup of the closing that the running code belongs to may take."""


class AsyncCallback:
    """An async function to be called."""

    __slots__ = ("_args", "_function", "_kwargs")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs

    @property
    def name(self) -> str:
        return _named(self._function)

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
        call, cancelled = await _run(self, copy_context(), self._call)
        call.result(cancelled)
        return False

    def _call(self) -> None:
        self._function(*self._args, **self._kwargs)


class ThreadExit:
    """The exit of a blocking context manager that was entered in a worker thread, in the context of its enter."""

    __slots__ = ("_cm", "_context")

    def __init__(self, cm: Any, context: Context) -> None:
        self._cm = cm
        self._context = context

    @property
    def name(self) -> str:
        return _named(self._cm)

    async def __call__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return await _exit_in_thread(self, error)


class ThreadManager(contextmanager_in_threadpool[Any]):
    """A blocking context manager, whose exit is waited for as long as a cleanup may take."""

    @property
    def name(self) -> str:
        return _named(self._cm)

    async def _exit(self, error: BaseException | None) -> bool:
        return await _exit_in_thread(self, error)


async def _exit_in_thread(leave: ThreadExit | ThreadManager, error: BaseException | None) -> bool:
    try:
        call, cancelled = await _run(leave, leave._context, partial(_exit, leave._cm, error))
        if error is not None and call.error is error:  # the exit has raised it again
            call.error, call.value = None, False
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


async def _run(
    leave: Callback | ThreadExit | ThreadManager, context: Context, function: Callable[[], object]
) -> tuple[Call, BaseException | None]:
    """Have `function` called in a worker thread, and wait for that; also returns the cancellation that came meanwhile.

    :raises CleanupTimeoutError: it takes longer than a cleanup may. The thread goes on.
    """
    seconds = seconds_in_force.get()
    if seconds is None:
        call = new_call(context, EXIT, function, (), limiter=None)
        return call, await call.run(leaves=False)
    work = _Work(function)
    # On trio, the thread that a pin keeps is one that the end of the run does not wait for.
    pin = None if asyncio_loop() is not None else new_pin()
    call = new_call(context, EXIT, work.run, (pin is not None,), limiter=None, pin=pin)
    call.begin()
    cancelled = await call.wait_a_moment(seconds)
    if not call.over:
        work.leave_behind()
        raise CleanupTimeoutError(leave.name, seconds, in_thread=True)
    if pin is not None:
        pin.release()
    return call, cancelled


class _Work:
    """A function that runs in a worker thread, which nobody may wait for."""

    __slots__ = ("_function", "_is_over", "_worker")

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._is_over = False
        self._worker: Thread | None = None

    def run(self, is_pinned: bool) -> object:
        """Call the function; in the thread."""
        worker = self._worker = current_thread()
        limiter = default_limiter()
        try:
            # For a thread that is pinned nobody else calls the limiter's hooks.
            if is_pinned and limiter.before is not None:
                limiter.before()
            return self._function()
        finally:
            if is_pinned and limiter.after is not None:
                limiter.after()
            self._is_over = True
            if isinstance(worker, Worker):
                worker.kept = False

    def leave_behind(self) -> None:
        """Let the end of the loop not wait for the thread."""
        worker = self._worker
        if isinstance(worker, Worker):
            worker.kept = True
            if self._is_over:  # just now
                worker.kept = False


def limits_itself(leave: Any) -> bool:
    """Whether it is in a thread, which cannot be cancelled, and waited for no longer than a cleanup may take."""
    kind = type(leave)
    if kind is Apart:
        return limits_itself(leave.exit)
    if kind is MethodType:
        return type(leave.__self__) is ThreadManager
    return kind is ThreadExit or kind is Callback


def name_of_exit(leave: Any) -> str:
    """What a user knows it by."""
    if type(leave) is Apart:
        leave = leave.exit
    if type(leave) is MethodType:
        leave = leave.__self__
    if isinstance(leave, (AsyncCallback, ThreadExit, ThreadManager)):
        return leave.name
    return _named(leave)


def _named(thing: Any) -> str:
    return name_of(getattr(thing, "gen", thing))  # of contextlib's managers around generators
