"""What the tests of resources share: things that note when they are opened and closed, and a task that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tests.support import checkpoint


class Log(list[str]):
    """What has happened, in order."""

    @asynccontextmanager
    async def thing(self, name: str, *, fails: Exception | None = None) -> AsyncIterator[str]:
        """Something that waits when it is opened, and when it is closed."""
        await checkpoint()
        self.append(f"{name} opened")
        try:
            yield name
        except BaseException as error:
            self.append(f"{name} sees {type(error).__name__}")
            raise
        finally:
            await checkpoint()
            await checkpoint()
            self.append(f"{name} closed")
            if fails is not None:
                raise fails

    @contextmanager
    def blocking(self, name: str) -> Iterator[str]:
        self.append(f"{name} opened")
        try:
            yield name
        except BaseException as error:
            self.append(f"{name} sees {type(error).__name__}")
            raise
        finally:
            self.append(f"{name} closed")

    def balance(self) -> None:
        """Assert that everything was closed that was opened, each once, in the reverse order."""
        opened: list[str] = []
        for entry in self:
            name, _, deed = entry.partition(" ")
            if deed == "opened":
                opened.append(name)
            elif deed == "closed":
                assert opened.pop() == name, self
        assert opened == [], self


async def cancelled_at(step: int, function: Callable[[], Awaitable[Any]]) -> bool:
    """Run `function` and cancel it when it has suspended so many times; whether it had not ended by then.

    On asyncio the cancellation is that of the task, on trio that of a scope; what it raises besides goes on.
    """
    if asyncio._get_running_loop() is not None:
        task = asyncio.ensure_future(function())
        for _ in range(step):
            await asyncio.sleep(0)
        reached = not task.done()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert reached
        return reached
    import trio

    reached = False
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await function()
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        for _ in range(step):
            await trio.lowlevel.checkpoint()
        if not nursery.cancel_scope.cancel_called:
            reached = True
            nursery.cancel_scope.cancel()
    return reached


async def cancel_everywhere(function: Callable[[int], Awaitable[Any]], most: int = 60) -> int:
    """Run `function` again and again and cancel it at each of its suspensions; at how many that was."""
    for step in range(most):
        if not await cancelled_at(step, lambda step=step: function(step)):  # type: ignore[misc]
            return step
    raise AssertionError("it does not end")
