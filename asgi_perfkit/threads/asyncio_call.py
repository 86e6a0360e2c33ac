"""What all calls that are awaited on asyncio or uvloop have in common: how they are waited for."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable

from asgi_perfkit.steps.loop import anyio_shield
from asgi_perfkit.threads.call import Call

__all__ = ["AsyncioCall"]


class AsyncioCall(Call):
    """A call that is awaited on an asyncio loop: the one that runs when it begins."""

    __slots__ = ("_future", "loop")

    loop: asyncio.AbstractEventLoop
    _future: asyncio.Future[None]

    @abstractmethod
    def _leave_queue(self) -> bool:
        """Leave the queue; False if the call is in it no more."""

    def withdraw(self) -> bool:
        left = self._leave_queue()
        if left:
            self.over = True
        return left

    def run(self, *, leaves: bool = True) -> Awaitable[BaseException | None]:
        self.begin()
        return self.wait(leaves=leaves)

    async def wait(self, *, leaves: bool = True) -> BaseException | None:
        if self._future.done():
            if self.over:
                return None
            self._future = self.loop.create_future()
        try:
            await self._future
            return None
        except asyncio.CancelledError as error:
            if leaves and self.withdraw():
                raise
            cancelled = error
        except BaseException:  # the coroutine is closed: nobody will wait
            self.withdraw()
            raise
        try:
            with anyio_shield():
                while not self.over:
                    self._future = self.loop.create_future()
                    try:
                        await self._future
                    except (
                        asyncio.CancelledError
                    ):  # once more; it is raised once, when the call is over
                        pass
            return cancelled
        finally:
            del cancelled  # its traceback holds this frame

    async def wait_a_moment(self, seconds: float) -> BaseException | None:
        timer = self.loop.call_later(seconds, self._wake)
        try:
            return await self.wait()
        finally:
            timer.cancel()

    def finish(self) -> None:
        """Wake who waits for the call; runs on the loop."""
        self.over = True
        if not self._future.done():
            self._future.set_result(None)

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)
