"""Times every request and connection, and keeps the figures by endpoint."""

from __future__ import annotations

import weakref
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from time import perf_counter_ns
from typing import Any, Literal

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.metrics.histogram import Snapshot
from asgi_perfkit.metrics.registry import Registry, Series, default_registry
from asgi_perfkit.middleware.exchange import (
    Exchange,
    HTTPExchange,
    WebSocketExchange,
    exchange_of,
)
from asgi_perfkit.middleware.lifespan import run_lifespan
from asgi_perfkit.middleware.routes import EndpointNames
from asgi_perfkit.middleware.server_timing import add_server_timing
from asgi_perfkit.steps import DONE, Account, current_account, follow_children, on_event_loop
from asgi_perfkit.types import ASGIApp, Receive, Scope, Send, single_callable

__all__ = ["PerformanceMiddleware"]

_MEMORY_INTERVAL_NS = 1_000_000
_NEVER = 1 << 63


class PerformanceMiddleware:
    """Measure each request and connection of `app`; read the figures with :func:`get_performance_stats`.

    Nothing that the app or its client sees changes, but for a Server-Timing header where that is asked for. Works as
    the outermost layer, as any other, and more than once around one app.

    :param app: an ASGI app, single or double callable.
    :param registry: where to record; the default registry if None.
    :param endpoint: names the endpoint of a finished request: takes its scope, as the app has left it, and returns
        the name, or None for the name the kit finds itself. If it raises, or returns anything else, that is logged
        once and the folded path is used.
    :param memory: ``"rss"`` to read the process's resident memory when a request begins and when it ends, for one
        that begins a millisecond or more after the last that it was read for; None not to.
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
        memory: Literal["rss"] | None = "rss",
        max_series: int = 1000,
        server_timing: bool | Callable[[Scope], bool] = False,
    ) -> None:
        _check(app, registry, memory, max_series, server_timing)
        self.app: ASGIApp = single_callable(app)
        self._registry = default_registry if registry is None else registry
        self._names = EndpointNames(
            f"{PerformanceMiddleware.__name__}(endpoint=...)",
            endpoint,
            partial(self._registry.report, "resolver_failures"),
        )
        self._memory = memory
        self._max_series = max_series
        self._server_timing = server_timing
        self._loop: Callable[[], object] = _no_loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rest = self.serve(scope, receive, send)
        if rest is not DONE:
            await rest

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """What calling the middleware awaits, to be awaited at once and in the same task.

        Whoever calls it from a coroutine of his own, as :class:`PerfKit` does, spares that of `__call__`.
        """
        kind = scope["type"]
        if kind == "http":
            exchange_class: type[Exchange] = HTTPExchange
        elif kind == "websocket":
            exchange_class = WebSocketExchange
        elif kind == "lifespan":
            return run_lifespan(self.app, scope, receive, send)
        else:
            return self.app(scope, receive, send)

        if _get_running_loop() is not self._loop():  # nor is it ever on trio
            self._meet_loop()
        registry = self._registry
        outer = exchange_of(send)
        if outer is not None and not outer.closed:  # nor the `send` of a request that is over
            if outer in registry.open:  # a middleware further out records this request here
                return self.app(scope, receive, send)
            return self._record_too(outer, scope, receive, send)
        around = current_account.get()
        if around is not None and self._records(around, scope):
            return self.app(scope, receive, send)
        exchange = exchange_class(self, around, scope, receive, send)
        if self._server_timing is not False:
            self._ask_for_server_timing(exchange, scope)
        if self._memory is not None and exchange.started_ns >= registry.monitor.memory_due_ns:
            exchange.memory = self._memory_in_turn(exchange)
        registry.open.add(exchange)
        current_account.set(exchange)
        try:
            work = self.app(scope, exchange.receive_message, exchange.send_message)
        except BaseException as error:
            self.work_ended(exchange, error)
            raise
        return exchange.begin(work)

    def work_ended(self, account: Exchange, error: BaseException | None) -> None:
        """Record an exchange that this middleware has opened."""
        account.closed = True
        series = self._record(account, error, account.memory)
        # Unless it ends in another context than it began in, as a coroutine does that a garbage collection closes.
        if current_account.get() is account:
            current_account.set(account.parent)
        account.end_before_tasks(error, series)

    async def _record_too(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Run the app, and record in this registry an exchange that a middleware further out has opened."""
        if self._server_timing is not False:
            self._ask_for_server_timing(exchange, scope)
        memory = None
        registry = self._registry
        if self._memory is not None and exchange.started_ns >= registry.monitor.memory_due_ns:
            memory = self._memory_in_turn(exchange)
        registry.open.add(exchange)
        error: BaseException | None = None
        try:
            await self.app(scope, receive, send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            series = self._record(exchange, error, memory)
            error = None  # it holds this frame
            if not isinstance(exchange.owner, PerformanceMiddleware) and exchange.late is None:
                # Who has opened the exchange records nothing: what is observed later goes here.
                exchange.take_observations()
                exchange.late = series

    def _records(self, account: Account, scope: Scope) -> bool:
        """Whether this request is recorded in the same registry by a middleware further out.

        Between the two something has put a `send` of its own in place, or the exchange would have been found by that.
        A scope is copied on the way at times, but not the list of its headers.
        """
        return any(
            around in self._registry.open
            and isinstance(around, Exchange)
            and around.scope.get("headers") is scope.get("headers") is not None
            for around in account.lineage()
        )

    def _meet_loop(self) -> None:
        """Prepare for requests on the running loop: each middleware, once for each loop."""
        try:
            if on_event_loop():
                follow_children()
                self._registry.monitor.watch()
            loop = _get_running_loop()
            self._loop = _no_loop if loop is None else weakref.ref(loop)
        except Exception as failure:
            self._registry.report(
                "kit_failures", "Requests on this loop are not measured in full", failure
            )

    def _memory_in_turn(self, exchange: Exchange) -> int | None:
        """The resident memory, which is read for this request."""
        self._registry.monitor.memory_due_ns = exchange.started_ns + _MEMORY_INTERVAL_NS
        return self._resident_memory()

    def _resident_memory(self) -> int | None:
        try:
            return self._registry.monitor.resident_memory()
        except Exception as failure:
            self._registry.monitor.memory_due_ns = _NEVER
            self._registry.report(
                "kit_failures", "The resident memory cannot be read any more", failure
            )
            return None

    def _memory_since(self, memory: int) -> int | None:
        now = self._resident_memory()
        return None if now is None else now - memory

    def _ask_for_server_timing(self, exchange: Exchange, scope: Scope) -> None:
        wanted = self._server_timing
        try:
            if not isinstance(wanted, bool):
                wanted = wanted(scope)
        except Exception as failure:
            self._registry.report(
                "server_timing_failures", "server_timing raised for a request", failure
            )
            return
        if wanted and isinstance(exchange, HTTPExchange):
            exchange.decorate_start = add_server_timing

    def _record(
        self, exchange: Exchange, error: BaseException | None, memory: int | None
    ) -> Series | None:
        """Put the figures of an exchange into the registry; returns the row, None if that failed."""
        registry = self._registry
        registry.open.discard(exchange)
        try:
            total_ns = perf_counter_ns() - exchange.started_ns
            memory_delta = None if memory is None else self._memory_since(memory)
            endpoint = self._names.name(exchange)
            profile = exchange.profile
            if profile is not None:
                if exchange.closed:
                    profile.ended(exchange, endpoint, error)
                else:
                    profile.settle(exchange)
            observations: Iterable[tuple[str, int]] = ()
            condensed: Mapping[str, Snapshot] | None = exchange.condensed
            if exchange.observations or condensed:
                if exchange.closed:
                    observations = exchange.take_observations()
                else:  # who has not opened the exchange leaves them for who has
                    observations, condensed = exchange.observations_so_far()
            if exchange.malformed:
                registry.count("malformed_messages", exchange.malformed)
            return registry.record(
                exchange.method,
                endpoint,
                exchange.metrics,
                exchange.figures(total_ns, memory_delta),
                observations,
                condensed,
                exchange.outcome(error),
                exchange.status,
                self._max_series,
            )
        except Exception as failure:
            registry.report("kit_failures", "A request could not be recorded", failure)
            return None


def _no_loop() -> object:
    return _no_loop  # which no loop is


def _check(
    app: object,
    registry: object,
    memory: object,
    max_series: object,
    server_timing: object,
) -> None:
    """Refuse arguments that cannot be used."""
    name = PerformanceMiddleware.__name__
    if not callable(app):
        raise ConfigurationTypeError(f"{name}(app)", app, "an ASGI application is a callable.")
    if registry is not None and not isinstance(registry, Registry):
        raise ConfigurationTypeError(
            f"{name}(registry=...)", registry, "give a Registry, or None for the default."
        )
    if memory is not None and memory != "rss":
        raise ConfigurationValueError(
            f"{name}(memory=...)", memory, 'give "rss", or None to leave it out.'
        )
    if not isinstance(max_series, int) or isinstance(max_series, bool):
        raise ConfigurationTypeError(f"{name}(max_series=...)", max_series, "give a whole number.")
    if max_series < 1:
        raise ConfigurationValueError(f"{name}(max_series=...)", max_series, "give 1 or more.")
    if not isinstance(server_timing, bool) and not callable(server_timing):
        raise ConfigurationTypeError(
            f"{name}(server_timing=...)",
            server_timing,
            "give True, False or a function of the scope.",
        )
