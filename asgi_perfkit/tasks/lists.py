"""Tasks that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.tasks.item import Item

__all__ = ["BackgroundTasks", "BatchedBackgroundTasks", "TaskList"]


class TaskList:
    """Tasks that are run together."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def add_task(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Add a function, sync or async, with its arguments; it runs in a copy of the context that it is added in.

        :raises ConfigurationTypeError: `func` is not callable.
        """
        self._items.append(Item(func, args, kwargs))

    async def run(self) -> None:
        """Run the tasks that are there, each once. One that fails is logged with its traceback, and the next one runs.

        Sync functions run in worker threads, under the default limiter.
        """
        from asgi_perfkit.tasks.supervisor import run_alone

        await run_alone(self)

    def take(self) -> Iterator[list[Item]]:
        """Take the tasks out, in the groups that run at the same time."""
        raise NotImplementedError


class BackgroundTasks(TaskList):
    """Tasks that run one after the other, in the order they were added."""

    def take(self) -> Iterator[list[Item]]:
        items, self._items = self._items, []
        for item in items:
            yield [item]


class BatchedBackgroundTasks(TaskList):
    """Tasks that run in batches, each batch at the same time, one batch after the other.

    :param batch_size: how many tasks are a batch.
    :raises ConfigurationTypeError: it is no whole number.
    :raises ConfigurationValueError: it is less than 1.
    """

    def __init__(self, batch_size: int = 100) -> None:
        super().__init__()
        if type(batch_size) is not int:
            raise ConfigurationTypeError(
                "BatchedBackgroundTasks(batch_size=...)", batch_size, "give a whole number."
            )
        if batch_size < 1:
            raise ConfigurationValueError(
                "BatchedBackgroundTasks(batch_size=...)", batch_size, "give 1 or more."
            )
        self._batch_size = batch_size

    def take(self) -> Iterator[list[Item]]:
        items, self._items = self._items, []
        for first in range(0, len(items), self._batch_size):
            yield items[first : first + self._batch_size]
