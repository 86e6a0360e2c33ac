"""The trio side of :mod:`asgi_perfkit.caching.flights`; imported only where trio runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from contextvars import copy_context
from typing import Any

import trio

from asgi_perfkit.caching.flights import AsyncFlight, Owner

__all__ = ["TrioFlight"]


class TrioFlight(AsyncFlight):
    """A call in a system task of trio's: it belongs to no nursery of those who wait."""

    __slots__ = ("_cancel_scope", "_event")

    place: trio.lowlevel.TrioToken

    def __init__(self, owner: Owner, place: Any, key: Hashable) -> None:
        super().__init__(owner, place, key)
        self._cancel_scope = trio.CancelScope()
        self._event = trio.Event()

    def _start(self, call: Callable[[], Awaitable[Any]]) -> None:
        trio.lowlevel.spawn_system_task(
            self._run, call, name=self.owner.name, context=copy_context()
        )

    async def _run(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            with self._cancel_scope:
                self.succeed(await call())
        except BaseException as error:  # what a system task raises ends the whole run
            self.fail(error, error.__traceback__ and error.__traceback__.tb_next)
        self.over = True  # also if it was cancelled
        self._event.set()

    def _cancel(self) -> None:
        self._cancel_scope.cancel()

    async def _landing(self) -> None:
        await self._event.wait()

    async def _ended(self) -> None:
        with trio.CancelScope(shield=True):
            await self._event.wait()

    def _call_soon(self, callback: Callable[[], object]) -> None:
        """Do nothing: trio closes a coroutine only when the run has crashed, and the call with it."""
