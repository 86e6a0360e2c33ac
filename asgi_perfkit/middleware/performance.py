"""Times every request and connection, and keeps the figures by endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import Any

from asgiref.compatibility import guarantee_single_callable

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.metrics.endpoints import fold_path
from asgi_perfkit.metrics.monitor import rss_reader
from asgi_perfkit.metrics.registry import Registry, Series, default_registry
from asgi_perfkit.middleware.exchange import Exchange, HTTPExchange, WebSocketExchange, exchange_of
from asgi_perfkit.middleware.lifespan import run_lifespan
from asgi_perfkit.middleware.routes import route_template
from asgi_perfkit.middleware.server_timing import add_server_timing
from asgi_perfkit.steps import current_account, drive, follow_children, on_event_loop
from asgi_perfkit.types import ASGIApp, Receive, Scope, Send

__all__ = ["PerformanceMiddleware"]


class PerformanceMiddleware:
    """Measure each request and connection of `app`; read the figures with :func:`get_performance_stats`.

    Nothing that the app or its client sees changes, but for a Server-Timing header where that is asked for. Works as
    the outermost layer, as any other, and more than once around one app.

    :param app: an ASGI app, single or double callable.
    :param registry: where to record; the default registry if None.
    :param endpoint: names the endpoint of a finished request: takes its scope, as the app has left it, and returns
        the name, or None for the name the kit finds itself. If it raises, or returns anything else, that is logged
        once and the folded path is used.
    :param memory: ``"rss"`` to read the process's resident memory when a request begins and ends; None not to.
    :param max_series: no endpoint gets a row of its own any more once the registry has so many.
    :param server_timing: whether to send what is known when the response begins in a Server-Timing header: True,
        False, or a function of the scope that says so for each request.
    :raises ConfigurationTypeError: an argument of the wrong type.
    :raises ConfigurationValueError: an argument outside of what is allowed.
    """

    def __init__(
        self,
        app: Any,
        *,
        registry: Registry | None = None,
        endpoint: Callable[[Scope], str | None] | None = None,
        memory: str | None = "rss",
        max_series: int = 1000,
        server_timing: bool | Callable[[Scope], bool] = False,
    ) -> None:
        name = type(self).__name__
        if not callable(app):
            raise ConfigurationTypeError(f"{name}(app)", app, "an ASGI application is a callable.")
        if registry is not None and not isinstance(registry, Registry):
            raise ConfigurationTypeError(f"{name}(registry=...)", registry, "give a Registry, or None for the default.")
        if endpoint is not None and not callable(endpoint):
            raise ConfigurationTypeError(f"{name}(endpoint=...)", endpoint, "give a function of the scope, or None.")
        if memory not in ("rss", None):
            raise ConfigurationValueError(f"{name}(memory=...)", memory, 'give "rss", or None to leave it out.')
        if not isinstance(max_series, int) or isinstance(max_series, bool):
            raise ConfigurationTypeError(f"{name}(max_series=...)", max_series, "give a whole number.")
        if max_series < 1:
            raise ConfigurationValueError(f"{name}(max_series=...)", max_series, "give 1 or more.")
        if not isinstance(server_timing, bool) and not callable(server_timing):
            raise ConfigurationTypeError(
                f"{name}(server_timing=...)", server_timing, "give True, False or a function of the scope."
            )
        self.app: ASGIApp = guarantee_single_callable(app)
        self._registry = default_registry if registry is None else registry
        self._endpoint = endpoint
        self._memory = memory
        self._max_series = max_series
        self._server_timing = server_timing
        self._read_memory: Callable[[], int] | None = None
        self._process_id = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            exchange_class: type[Exchange] = HTTPExchange
        elif kind == "websocket":
            exchange_class = WebSocketExchange
        elif kind == "lifespan":
            await run_lifespan(self.app, scope, receive, send)
            return
        else:
            await self.app(scope, receive, send)
            return

        registry = self._registry
        memory = 0
        try:
            if self._loop is None or asyncio._get_running_loop() is not self._loop:
                self._meet_loop()
            if self._read_memory is not None:
                memory = self._read_memory()
        except Exception as failure:
            registry.report("kit_failures", "A request could not be measured in full", failure)

        outer = exchange_of(send)
        if outer is None:
            exchange = exchange_class(scope, receive, send)
        elif outer in registry.open:  # a middleware further out records this request here
            await self.app(scope, receive, send)
            return
        else:
            exchange = outer
        if self._server_timing is not False and kind == "http":
            self._ask_for_server_timing(exchange, scope)
        registry.open.add(exchange)
        error: BaseException | None = None
        try:
            if outer is None:
                token = current_account.set(exchange)
                await drive(self.app(scope, exchange.receive, exchange.send), exchange, exchange.started_ns)
            else:
                await self.app(scope, receive, send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            registry.open.discard(exchange)
            if outer is None:
                exchange.closed = True
            try:
                series = self._record(exchange, error, memory)
                if outer is None:
                    exchange.close(partial(registry.observe, series))
            except Exception as failure:
                exchange.close(None)
                registry.report("kit_failures", "A request could not be recorded", failure)
            error = None  # it holds this frame
            if outer is None:
                with contextlib.suppress(ValueError):
                    # A coroutine that is closed elsewhere, by the garbage collector for one, ends in another context
                    # than it began in; there is nothing to restore there.
                    current_account.reset(token)

    def _meet_loop(self) -> None:
        """Prepare for requests on the running loop: each middleware, once for each loop."""
        if on_event_loop():
            follow_children()
            self._registry.monitor.watch()
        if self._memory is not None and self._process_id != os.getpid():
            self._process_id = os.getpid()
            self._read_memory = rss_reader()
        self._loop = asyncio._get_running_loop()

    def _ask_for_server_timing(self, exchange: Exchange, scope: Scope) -> None:
        try:
            wanted = self._server_timing if isinstance(self._server_timing, bool) else self._server_timing(scope)
        except Exception as failure:
            self._registry.report("server_timing_failures", "server_timing raised for a request", failure)
            return
        if wanted and isinstance(exchange, HTTPExchange):
            exchange.decorate_start = add_server_timing

    def _record(self, exchange: Exchange, error: BaseException | None, memory: int) -> Series:
        total_ns = perf_counter_ns() - exchange.started_ns
        values = [("loop_time", exchange.loop_ns), ("longest_step", exchange.longest_ns)]
        if exchange.send_ns is not None:
            values.append(("send_time", exchange.send_ns))
        if isinstance(exchange, HTTPExchange):
            method = exchange.scope.get("method", "")
            values.append(("total_time", total_ns))
            if exchange.processing_ns is not None:
                values.append(("processing_time", exchange.processing_ns))
                # What an app says in reply to HEAD stays with the server (RFC 9110, section 9.3.2).
                values.append(("response_size", 0 if method == "HEAD" else exchange.response_bytes))
            if exchange.response_ns is not None:
                values.append(("response_time", exchange.response_ns))
            if exchange.receive_ns is not None:
                values.append(("receive_time", exchange.receive_ns))
                values.append(("request_size", exchange.request_bytes))
            if self._read_memory is not None:
                values.append(("memory_delta", self._read_memory() - memory))
        else:
            assert isinstance(exchange, WebSocketExchange)
            method = "WEBSOCKET"
            values.append(("websocket_time", total_ns))
            values.append(("websocket_messages_in", exchange.messages_in))
            values.append(("websocket_messages_out", exchange.messages_out))
        if exchange.observations:
            values.extend(exchange.take_observations() if exchange.closed else exchange.observations)
        if exchange.malformed:
            self._registry.count("malformed_messages", exchange.malformed)
        return self._registry.record(
            method,
            self._endpoint_of(exchange),
            values,
            outcome=exchange.outcome(error),
            status=exchange.status,
            max_series=self._max_series,
        )

    def _endpoint_of(self, exchange: Exchange) -> str:
        scope = exchange.scope
        if self._endpoint is not None:
            try:
                name = self._endpoint(scope)
                if isinstance(name, str):
                    return name
                if name is not None:
                    raise TypeError(f"endpoint returned {name!r}; it returns a string, or None.")
            except Exception as failure:
                self._registry.report("resolver_failures", "endpoint could not name a request", failure)
                return fold_path(exchange.path)
        if exchange.endpoint is not None:
            return exchange.endpoint
        try:
            return route_template(scope, exchange.path, exchange.status)
        except Exception as failure:
            self._registry.report("resolver_failures", "The route of a request could not be read", failure)
            return fold_path(exchange.path)
