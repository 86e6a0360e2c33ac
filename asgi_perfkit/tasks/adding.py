"""Queueing work from wherever a request's code runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_perfkit.exceptions import NoRequestError
from asgi_perfkit.steps import current_account

__all__ = ["add_task"]


def add_task(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Queue work for after the current request's response.

    From a handler, a dependency, a child task or a worker thread of the request, also while the response is being
    streamed, and from a task itself. The work starts when the app has returned, the response is with the server, and
    what belongs to the request is closed; for a websocket, when the connection has ended.

    :param func: an async function, which runs on the loop; any other, which runs in a worker thread; or a
        :class:`BackgroundTasks` or :class:`BatchedBackgroundTasks`.
    :param args: its arguments, as `kwargs` are. It runs in a copy of the context of now.
    :raises NoRequestError: there is no request, or no `BackgroundTaskMiddleware` around the app.
    :raises ConfigurationTypeError: `func` is not callable: a coroutine, for one, that is the result of a call.
    :raises QueueFullError: too many tasks wait already.
    """
    account = current_account.get()
    while account is not None:
        if account.tasks is not None:
            account.tasks.add(account, func, args, kwargs)
            return
        account = account.parent
    raise NoRequestError("add_task", "BackgroundTaskMiddleware")
