"""Tasks that belong together."""

from __future__ import annotations

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.tasks.item import TaskList
from asgi_perfkit.tasks.supervisor import run_alone

__all__ = ["BackgroundTasks", "BatchedBackgroundTasks"]


class _RunnableList(TaskList):
    async def run(self) -> None:
        """Run the tasks that are there, each once. One that fails is logged with its traceback, and the next one runs.

        Sync functions run in worker threads, under the default limiter.
        """
        await run_alone(self)


class BackgroundTasks(_RunnableList):
    """Tasks that run one after the other, in the order they were added."""

    def __init__(self) -> None:
        super().__init__(batch_size=1)


class BatchedBackgroundTasks(_RunnableList):
    """Tasks that run in batches, each batch at the same time, one batch after the other.

    :param batch_size: how many tasks are a batch.
    :raises ConfigurationTypeError: it is no whole number.
    :raises ConfigurationValueError: it is less than 1.
    """

    def __init__(self, batch_size: int = 100) -> None:
        if type(batch_size) is not int:
            raise ConfigurationTypeError(
                "BatchedBackgroundTasks(batch_size=...)", batch_size, "give a whole number."
            )
        if batch_size < 1:
            raise ConfigurationValueError(
                "BatchedBackgroundTasks(batch_size=...)", batch_size, "give 1 or more."
            )
        super().__init__(batch_size)
