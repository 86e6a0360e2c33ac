"""Calls that run where Django's own synchronous code of the request runs.

Which thread that is, asgiref knows: that of the request's `ThreadSensitiveContext`, the one that is blocked in
`async_to_sync()` further out, or the one for all of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from asgiref.sync import sync_to_async

from asgi_perfkit.threads.asyncio_call import AsyncioCall

__all__ = ["SensitiveCall"]


class SensitiveCall(AsyncioCall):
    """A call in asgiref's thread for the running code. It queues there, takes no token and knows no hooks."""

    __slots__ = ("_chance", "_task")

    def begin(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._future = self.loop.create_future()
        self._chance = deque([True])  # whoever takes it out, the thread or who withdraws, decides
        # In a task of its own: asgiref gives up a call whose caller is cancelled, and it runs on all the same.
        self._task = self.loop.create_task(self._queue())

    async def _queue(self) -> None:
        try:
            await sync_to_async(self._execute_if_wanted, thread_sensitive=True)()
        except BaseException as error:
            # There is no thread: the context has ended, or would wait for itself, or this task was cancelled.
            if self._take_chance():
                self.error = error
                self.finish()

    def _execute_if_wanted(self) -> None:
        if self._take_chance():
            self.execute()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self.loop.call_soon_threadsafe(self.finish)

    def _leave_queue(self) -> bool:
        return self._take_chance()

    def _take_chance(self) -> bool:
        try:
            return self._chance.pop()
        except IndexError:
            return False
