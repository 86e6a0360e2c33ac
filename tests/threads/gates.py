"""Holds functions in their worker threads, and cancels tasks in every form there is, with no sleep in either."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
import trio

from asgi_perfkit import run_in_threadpool
from tests.support import checkpoint

PATIENCE_SECONDS = 10.0  # after which a test that hangs fails, rather than be ended from outside
TURNS = 20  # of the loop, in which what must not happen would happen

Function = Callable[[], Awaitable[Any]]


async def turns() -> None:
    for _ in range(TURNS):
        await checkpoint()


def here() -> threading.Thread:
    return threading.current_thread()


class Signal:
    """Is set once, in any thread, and waited for on any loop or in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._wakers: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        with self._lock:
            self._event.set()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    async def wait(self) -> None:
        """Wait on the running loop."""
        event: Any
        if asyncio._get_running_loop() is not None:
            event = asyncio.Event()
            wake = partial(asyncio.get_running_loop().call_soon_threadsafe, event.set)
        else:
            event = trio.Event()
            wake = partial(trio.lowlevel.current_trio_token().run_sync_soon, event.set)
        with self._lock:
            if self._event.is_set():
                return
            self._wakers.append(wake)
        await event.wait()

    def block(self) -> None:
        """Wait in a thread that may be blocked."""
        assert self._event.wait(PATIENCE_SECONDS), "nobody has set the signal"


class Gate:
    """Stands in a function's way; `with Gate() as gate` opens it in the end, also when the test has failed.

    :ivar inside: how many stand before it, or have gone through and not yet left.
    :ivar most: how many these were at most.
    :ivar passed: how many have left.
    :ivar threads: in which threads, in the order they came.
    """

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.passed = 0
        self.threads: list[threading.Thread] = []
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self._counts: dict[int, Signal] = {}

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def __call__(self, value: Any = None) -> Any:
        """Stand before it, as a function in a thread; then return `value`, or raise it if it is an exception."""
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.threads.append(threading.current_thread())
            signal = self._reached(len(self.threads))
        signal.set()
        opened = self._opened.wait(PATIENCE_SECONDS)
        with self._lock:
            self.inside -= 1
            self.passed += 1
        assert opened, "nobody has opened the gate"
        if isinstance(value, BaseException):
            raise value
        return value

    def open(self) -> None:
        self._opened.set()

    async def reached(self, count: int = 1) -> None:
        """Wait until so many have come to it, all in all."""
        with self._lock:
            signal = self._reached(count)
        await signal.wait()

    def _reached(self, count: int) -> Signal:
        signal = self._counts.setdefault(count, Signal())
        if len(self.threads) >= count:
            signal.set()
        return signal


class Task:
    """Runs an async function beside the test, on any loop, so that it can be cancelled.

    :ivar value: what it has returned.
    :ivar error: what it has raised, as it is seen inside of what cancels it.
    """

    def __init__(self, function: Function) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.ended = Signal()
        self._function = function
        self._start()

    def cancel(self) -> None:
        raise NotImplementedError

    async def join(self) -> Task:
        """Wait until the function has ended, in whichever way."""
        await self.ended.wait()
        return self

    async def result(self) -> Any:
        """What it returned, or raised."""
        await self.join()
        if self.error is not None:
            raise self.error
        return self.value

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() and self.error is None:  # before it has begun
            self.error = asyncio.CancelledError()
        self.ended.set()

    async def _run(self) -> None:
        try:
            await self._cancellable()
        except BaseException as error:
            if error is not self.error and not isinstance(error, asyncio.TimeoutError):
                raise

    async def _cancellable(self) -> None:
        await self._record()

    async def _record(self) -> None:
        try:
            self.value = await self._function()
        except BaseException as error:
            self.error = error
            raise


class NativeTask(Task):
    """Is cancelled by its own :meth:`asyncio.Task.cancel`."""

    def cancel(self) -> None:
        self._task.cancel()


class WaitForTask(NativeTask):
    """The same, with :func:`asyncio.wait_for` in between."""

    async def _cancellable(self) -> None:
        recording = asyncio.ensure_future(self._record())
        recording.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await asyncio.wait_for(recording, 1000)
        finally:
            while (
                not recording.done()
            ):  # up to Python 3.11, a second cancellation makes `wait_for` leave
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([recording])


class TimeoutTask(Task):
    """Is cancelled by :func:`asyncio.timeout`."""

    _timeout: asyncio.Timeout | None = None
    _when: float | None = None

    async def _cancellable(self) -> None:
        async with asyncio.timeout(self._when) as self._timeout:
            await self._record()

    def cancel(self) -> None:
        self._when = -1.0  # long ago
        if self._timeout is not None and not self.ended.is_set():
            with contextlib.suppress(RuntimeError):  # it has expired by now
                self._timeout.reschedule(self._when)


class AnyioTask(Task):
    """Is cancelled by a scope of anyio's."""

    def _start(self) -> None:
        self._scope = anyio.CancelScope()
        super()._start()

    async def _cancellable(self) -> None:
        with self._scope:
            await self._record()

    def cancel(self) -> None:
        self._scope.cancel()


class TrioTask(Task):
    """Is cancelled by a scope of trio's."""

    def _start(self) -> None:
        self._scope = self._new_scope()
        trio.lowlevel.spawn_system_task(self._run, context=copy_context())

    def _new_scope(self) -> Any:
        return trio.CancelScope()

    async def _run(self) -> None:
        try:
            await super()._run()
        finally:
            self.ended.set()

    async def _cancellable(self) -> None:
        with self._scope:
            await self._record()

    def cancel(self) -> None:
        self._scope.cancel()


class AnyioOnTrioTask(TrioTask):
    """Is cancelled by a scope of anyio's, on trio."""

    def _new_scope(self) -> Any:
        return anyio.CancelScope()


ON_ASYNCIO: dict[str, type[Task]] = {
    "native": NativeTask,
    "wait_for": WaitForTask,
    "anyio": AnyioTask,
}
if sys.version_info >= (3, 11):
    ON_ASYNCIO["timeout"] = TimeoutTask
ON_TRIO: dict[str, type[Task]] = {"trio": TrioTask, "anyio": AnyioOnTrioTask}


def spawn(function: Function) -> Task:
    """Run an async function beside the test, on whichever loop is running; it can be cancelled, too."""
    if asyncio._get_running_loop() is not None:
        return NativeTask(function)
    return TrioTask(function)


async def is_free(thread: threading.Thread) -> bool:
    """Whether `thread` is there for calls: more and more at once, until one of them has it."""
    for count in range(1, 40):
        with Gate() as gate:
            tasks = [spawn(lambda gate=gate: run_in_threadpool(gate)) for _ in range(count)]
            await gate.reached(count)
        for task in tasks:
            await task.result()
        if thread in gate.threads:
            return True
    return False
