"""A function that runs until it is told to go on, and those who ask for its value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support import checkpoint, forever
from tests.threads.gates import Signal, Task


class Slow:
    """A cached function that runs until it is told to go on.

    :ivar calls: how many were begun.
    :ivar endings: how each has ended.
    """

    def __init__(self, outcome: object = "value") -> None:
        self.outcome = outcome
        self.calls = 0
        self.endings: list[str] = []
        self.began = Signal()
        self.go = Signal()
        self.cleaning: Signal | None = None

    async def run(self, key: object = None) -> object:
        self.calls += 1
        self.began.set()
        try:
            await self.go.wait()
        except BaseException as error:
            self.endings.append(type(error).__name__)
            if self.cleaning is not None:
                self.cleaning.set()
                await forever()
            raise
        self.endings.append("returned")
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


async def asking(count: int, ask: Callable[[], Any], spawn: Callable[..., Task]) -> list[Task]:
    """So many tasks, all of which wait for the call."""
    tasks = [spawn(ask) for _ in range(count)]
    for _ in range(3):
        await checkpoint()
    return tasks
