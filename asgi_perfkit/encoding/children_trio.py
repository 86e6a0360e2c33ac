"""The trio side of :mod:`asgi_perfkit.encoding.children`; imported only where trio runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import trio

__all__ = ["TrioChildren"]


class TrioChildren:
    """On trio."""

    _nursery: trio.Nursery

    def __init__(self) -> None:
        self._interruption = trio.CancelScope()

    async def attend(self, work: Awaitable[None]) -> None:
        failure = None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    with self._interruption:
                        await work
                except BaseException as error:
                    failure = error  # the nursery would make a group of it
                nursery.cancel_scope.cancel()
        finally:
            try:
                if failure is not None:
                    raise failure
            finally:
                del failure  # its traceback holds this frame

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._nursery.start_soon(work)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._nursery.start_soon(_call_later, seconds, callback)

    def interrupt(self) -> None:
        self._interruption.cancel()

    def event(self) -> trio.Event:
        return trio.Event()


async def _call_later(seconds: float, callback: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    callback()
