"""The resources of the request that runs here, and those of the application."""

from __future__ import annotations

from contextvars import ContextVar

from asgi_perfkit.exceptions import NoRequestError
from asgi_perfkit.resources.manager import ResourceManager, entered, innermost
from asgi_perfkit.steps import Account, current_account

__all__ = ["app_manager", "app_resources", "current_resources", "has_resources"]


def current_resources() -> ResourceManager:
    """The resources of the current request, or of the innermost ``async with ResourceManager()``.

    From handlers, dependencies, child tasks and worker threads of the request. They are closed when the app has
    returned and the response is with the server, before background tasks start; those of a websocket when the
    connection has ended.

    :raises NoRequestError: there is no request, or it is over, or no `ResourceMiddleware` is around the app.
    """
    manager = innermost(current_account.get())
    if manager is None:
        raise NoRequestError("current_resources", "ResourceMiddleware")
    return manager


def app_resources() -> ResourceManager:
    """The resources of the application: the same in all its requests, in its startup and its shutdown.

    They are closed at the shutdown, when the background tasks have run and the app has done its own shutdown. Where
    the server runs the app without a lifespan nobody tells of the shutdown, and they stay open.

    :raises NoRequestError: no `ResourceMiddleware` is around here.
    """
    manager = app_manager(innermost(current_account.get()))
    if manager is None:
        raise NoRequestError("app_resources", "ResourceMiddleware")
    return manager


def app_manager(manager: ResourceManager | None) -> ResourceManager | None:
    """That of the application's lifetime, for who has the `manager` of now; None if there is none."""
    if manager is not None and manager.request is not None:
        return manager.request.app()
    return lifetime.get()


def has_resources(account: Account | None) -> bool:
    """Whether :func:`current_resources` gives any here; makes none.

    :param account: the current one.
    """
    while account is not None:
        if account.resources is not None:
            return True
        account = account.parent
    manager = entered.get()
    return manager is not None and not manager.closed


lifetime: ContextVar[ResourceManager | None] = ContextVar(
    "asgi_perfkit.resources.lifetime", default=None
)
"""The resources of the application whose lifespan runs here."""
