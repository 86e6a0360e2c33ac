"""Celery and Taskiq as engines. Neither is imported: they come with the objects that are given here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError

__all__ = ["CeleryEngine", "TaskiqEngine"]


class CeleryEngine:
    """Hands tasks to the workers of a Celery app.

    What it takes are that app's own tasks (what ``@app.task`` has made of a function) and, for those that only the
    workers have, signatures (``app.signature("mail.send")``).

    :param app: the Celery app.
    :raises ConfigurationTypeError: it is none.
    """

    def __init__(self, app: Any) -> None:
        if isinstance(app, type) or not callable(getattr(app, "send_task", None)):
            raise ConfigurationTypeError("CeleryEngine(app)", app, "give the Celery app.")
        self._app = app

    def __repr__(self) -> str:
        return f"CeleryEngine({self._app!r})"

    def knows(self, func: Callable[..., Any]) -> bool:
        """Whether it is a task, or a signature, of the app."""
        return hasattr(func, "apply_async") and bool(getattr(func, "app", None) == self._app)

    def name(self, func: Any) -> str:
        """What Celery calls it; what it has made of a function has a module of its own."""
        return str(func.name)

    def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Publish a message; in a thread, for it blocks.

        :raises ValueError: an argument cannot be serialized.
        :raises Exception: what Celery raises, when there is no broker for one.
        """
        try:
            # One try that fails at once, for it is Celery that is not to wait here. With `retry=False` it would be
            # kombu that tries to connect, for 6 s.
            func.apply_async(args, kwargs, retry=True, retry_policy={"max_retries": 0})
        except Exception as error:
            if isinstance(error, importlib.import_module("kombu.exceptions").SerializationError):
                raise ValueError(str(error)) from error
            raise


class TaskiqEngine:
    """Hands tasks to the workers of a Taskiq broker; on asyncio, as Taskiq is.

    What it takes are the broker's own tasks (what ``@broker.task`` has made of a function) and shared ones. The app
    starts the broker, and shuts it down, in its lifespan.

    :param broker: the Taskiq broker.
    :raises ConfigurationTypeError: it is none.
    """

    def __init__(self, broker: Any) -> None:
        if isinstance(broker, type) or not (
            callable(getattr(broker, "kick", None)) and callable(getattr(broker, "find_task", None))
        ):
            raise ConfigurationTypeError("TaskiqEngine(broker)", broker, "give the Taskiq broker.")
        self._broker = broker

    def __repr__(self) -> str:
        return f"TaskiqEngine({self._broker!r})"

    def knows(self, func: Callable[..., Any]) -> bool:
        """Whether it is a task of the broker, or one that all brokers share."""
        name = getattr(func, "task_name", None)
        return name is not None and self._broker.find_task(name) is func

    def name(self, func: Any) -> str:
        """What Taskiq calls it; it changes the name of the function itself."""
        return str(func.task_name)

    async def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Send a message.

        :raises Exception: what Taskiq raises, when there is nobody to take it for one.
        """
        await func.kicker().with_broker(self._broker).kiq(*args, **kwargs)
