"""Closes what a request has opened, when it is over."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from threading import RLock
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.middleware.exchange import Exchange, HTTPExchange, WebSocketExchange, exchange_of
from asgi_perfkit.middleware.lifespan import run_lifespan
from asgi_perfkit.resources.current import lifetime
from asgi_perfkit.resources.limits import checked_timeout
from asgi_perfkit.resources.manager import ResourceManager
from asgi_perfkit.steps import current_account
from asgi_perfkit.steps.loop import on_trio
from asgi_perfkit.types import ASGIApp, Message, Receive, Scope, Send, single_callable

__all__ = ["ResourceMiddleware"]

logger = logging.getLogger("asgi_perfkit")

_SHUT_DOWN = ("lifespan.shutdown.complete", "lifespan.shutdown.failed")


class ResourceMiddleware:
    """Give each request and connection of `app` resources of its own: :func:`current_resources`.

    They are closed when the app has returned, the response is complete and before background tasks start. An exception
    of the app is thrown into them, as into nested ``with`` statements. What they raise at their end goes on to the
    server, in an :class:`ExceptionGroup`; the response stands.

    A request that asks for none costs nothing; on trio, a cancel scope.

    Those of the application, :func:`app_resources`, are closed at the shutdown, after the app's own.

    :param app: an ASGI app, single or double callable.
    :param close_timeout: how long each resource may take to close, those of the application too (seconds, monotonic);
        None for any time. Then it is cancelled, as :class:`ResourceManager` has it, and the request, or the shutdown,
        ends as one in which it has failed to close. A server cannot stop before all is closed.
    :raises ConfigurationTypeError: `app` is not callable, or `close_timeout` no number.
    :raises ConfigurationValueError: `close_timeout` is not above 0.
    """

    def __init__(self, app: Any, *, close_timeout: float | None = 30.0) -> None:
        if not callable(app):
            raise ConfigurationTypeError(
                f"{type(self).__name__}(app)", app, "an ASGI application is a callable."
            )
        self._close_timeout = checked_timeout(type(self).__name__, close_timeout)
        self.app: ASGIApp = single_callable(app)
        self._app_resources: ResourceManager | None = None
        self._opening = RLock()  # the first use may be in two threads at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outer = exchange_of(send)
        closes = outer is not None and not outer.closed and outer.resources is None
        work = self.serve(scope, receive, send)
        if outer is None or not closes:
            await work
            return
        # The exchange of a middleware further out: what stands between that and this is not to see an exception of the
        # app before the resources have seen it.
        ended: BaseException | None = None
        try:
            await work
        except BaseException as error:
            if outer.afterwards is None:
                raise
            ended = error
        afterwards, outer.afterwards = outer.afterwards, None
        try:
            if afterwards is not None:
                await afterwards(ended)
        finally:
            del ended  # its traceback holds this frame

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """What calling the middleware awaits, to be awaited at once and in the same task."""
        exchange = exchange_of(send)
        if exchange is not None and not exchange.closed:
            if exchange.resources is not None:  # those of a middleware of this kind further out
                return self.app(scope, receive, send)
            exchange.resources = self
            work = self.app(scope, receive, send)
            if "trio" in sys.modules:
                self._put_region_around(exchange)
            return work
        kind = scope["type"]
        if kind == "http":
            exchange = HTTPExchange(self, current_account.get(), scope, receive, send)
        elif kind == "websocket":
            exchange = WebSocketExchange(self, current_account.get(), scope, receive, send)
        elif kind == "lifespan":
            return self._live(scope, receive, send)
        else:
            return self.app(scope, receive, send)
        exchange.resources = self
        current_account.set(exchange)
        try:
            work = self.app(scope, exchange.receive_message, exchange.send_message)
        except BaseException as error:
            self.work_ended(exchange, error)
            raise
        if "trio" in sys.modules:
            self._put_region_around(exchange)
        return exchange.begin(work)

    def work_ended(self, account: Exchange, error: BaseException | None) -> None:
        """End an exchange that this middleware has opened."""
        account.conclude(error)

    def open(self, account: Exchange) -> ResourceManager:
        """The resources of a request, at their first use."""
        with self._opening:
            manager = account.resources
            if type(manager) is not ResourceManager:
                manager = ResourceManager()
                manager.close_timeout = self._close_timeout
                manager.request = _Request(self, account)
                manager.home = account
                account.afterwards = manager.finish
                account.resources = manager
            return manager

    def _put_region_around(self, exchange: Exchange) -> None:
        """On trio, open the resources at once: what shields their closing has to be around all that they hold."""
        if on_trio():
            self.open(exchange).enter_region()

    def app_manager(self) -> ResourceManager:
        """The resources of the application."""
        manager = self._app_resources
        if manager is None or manager.closed:
            with self._opening:
                manager = self._app_resources
                if manager is None or manager.closed:
                    logger.warning(
                        "The application's resources are used without a lifespan: nobody will close them."
                    )
                    manager = self._app_resources = ResourceManager(
                        close_timeout=self._close_timeout
                    )
        return manager

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        outer = lifetime.get()
        if outer is not None and not outer.closed:  # those of a middleware of this kind further out
            self._app_resources = outer
            await self.app(scope, receive, send)
            return
        async with ResourceManager(close_timeout=self._close_timeout) as manager:
            self._app_resources = manager
            token = lifetime.set(manager)

            async def tell(message: Message) -> None:
                # The server may end this task as soon as it knows that the shutdown is complete.
                if message.get("type") in _SHUT_DOWN:
                    try:
                        await manager.aclose()
                    except Exception as failure:
                        logger.error(
                            "Resources of the application failed to close.", exc_info=failure
                        )
                        message = {"type": "lifespan.shutdown.failed", "message": _told(failure)}
                await send(message)

            try:
                await run_lifespan(self.app, scope, receive, tell)
            finally:
                with suppress(ValueError):  # closed by a garbage collection, in another context
                    lifetime.reset(token)


def _told(failure: Exception) -> str:
    failures = getattr(failure, "exceptions", (failure,))
    return "; ".join(f"{type(each).__name__}: {each}" for each in failures)


class _Request:
    """What a request knows."""

    __slots__ = ("_exchange", "_middleware")

    def __init__(self, middleware: ResourceMiddleware, exchange: Exchange) -> None:
        self._middleware = middleware
        self._exchange = exchange

    def known(self) -> Mapping[str, Any]:
        """The three arguments of an ASGI app, and what the router has found in the path by now."""
        exchange = self._exchange
        found = exchange.scope.get("path_params")
        return {
            **(found if isinstance(found, Mapping) else {}),
            "scope": exchange.scope,
            "receive": exchange.receive_message,
            "send": exchange.send_message,
        }

    def app(self) -> ResourceManager:
        return self._middleware.app_manager()
