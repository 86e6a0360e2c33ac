"""The asyncio and uvloop side of :mod:`asgi_perfkit.caching.flights`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from asgi_perfkit.caching.flights import AsyncFlight, Owner
from asgi_perfkit.steps.loop import anyio_shield

__all__ = ["AsyncioFlight"]


class AsyncioFlight(AsyncFlight):
    """A call in a task of asyncio's, or of uvloop's."""

    __slots__ = ("_futures", "_task")

    place: asyncio.AbstractEventLoop
    _task: asyncio.Task[None]

    def __init__(self, owner: Owner, place: Any, key: Hashable) -> None:
        super().__init__(owner, place, key)
        # One for each who waits: cancelling a task cancels the future that it awaits.
        self._futures: dict[asyncio.Future[None], None] = {}

    def _start(self, call: Callable[[], Awaitable[Any]]) -> None:
        task = self._task = self.place.create_task(self._run(call))
        # The task is pending when its loop is closed only if all who wait for it are, too; they are told of.
        with contextlib.suppress(AttributeError):  # made by a factory of the user's
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        if not self.over:  # it was not started eagerly
            task.add_done_callback(self._never_began)

    async def _run(self, call: Callable[[], Awaitable[Any]]) -> None:
        # It wakes who waits, rather than a callback of the task: that would take one more turn of the loop.
        try:
            self.succeed(await call())
        except GeneratorExit:  # its loop has been closed: there is nobody to wake
            self.owner.forsake(self)
            raise
        except BaseException as error:
            self.fail(error, error.__traceback__ and error.__traceback__.tb_next)
        finally:
            if self.over:
                self._wake()

    def _never_began(self, _: object) -> None:
        """Cancelled before its first step, a task runs none of its code."""
        if not self.over:
            self.fail(asyncio.CancelledError(), None)
            self._wake()

    def _wake(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def _cancel(self) -> None:
        self._task.cancel()

    async def _landing(self) -> None:
        future = self.place.create_future()
        self._futures[future] = None
        try:
            await future
        finally:
            del self._futures[future]

    async def _ended(self) -> None:
        with anyio_shield():
            while not self.over:
                try:
                    await self._landing()
                except asyncio.CancelledError:
                    self._cancel()  # once more; it is for the call, as if it had been awaited itself

    def _call_soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.place.call_soon_threadsafe(callback)
