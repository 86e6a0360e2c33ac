"""Profiles requests: what runs inside of them, what they ask of the database, what freezes the loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from random import randrange
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.middleware.exchange import Exchange, HTTPExchange, WebSocketExchange, exchange_of
from asgi_perfkit.middleware.lifespan import run_lifespan
from asgi_perfkit.middleware.routes import EndpointNames
from asgi_perfkit.profiling.profiler import Profiler
from asgi_perfkit.profiling.profiles import DEFAULT_MAX_MEMORY, Profiles, default_profiles
from asgi_perfkit.profiling.sampler import MAX_HZ, MIN_HZ
from asgi_perfkit.steps import DONE, current_account
from asgi_perfkit.types import ASGIApp, Receive, Scope, Send, single_callable

__all__ = ["ProfilingMiddleware"]

_MAX_SECONDS = 1e6  # eleven days
_MIN_MEMORY = 1024 * 1024


class ProfilingMiddleware:
    """Profile the requests of `app`; read what was found with :func:`get_profile_stats`.

    Nothing that the app or its client sees changes. What costs more than a few microseconds a request is off until it
    is asked for.

    :param app: an ASGI app, single or double callable.
    :param profiles: where what is found is kept; the default ones if None.
    :param endpoint: names the endpoint of a request, where no :class:`PerformanceMiddleware` further out does: takes
        its scope, and returns the name, or None for the name that the kit finds itself.
    :param sample_hz: how many times a second to look at what runs, for as long as the process lives, up to 1,000. 0
        looks on demand alone, within :func:`profile`.
    :param exact: the requests of which every call is recorded: one in so many, or those that a function of the scope
        picks (:func:`exact_by_header`); None for none.
    :param queries: whether to count what the profiled connections and engines send to their databases.
    :param stall_threshold: seconds for which a step may keep the loop before it is reported as a stall; None for no
        watch.
    :param slow_threshold: seconds from which on a request is kept as a slow one; None to keep none.
    :param max_memory: bytes that the profiles may take; 1 MiB or more.
    :raises ConfigurationTypeError: an argument of the wrong type.
    :raises ConfigurationValueError: an argument outside of what is allowed.
    """

    def __init__(
        self,
        app: Any,
        *,
        profiles: Profiles | None = None,
        endpoint: Callable[[Scope], str | None] | None = None,
        sample_hz: float = 0,
        exact: int | Callable[[Scope], object] | None = None,
        queries: bool = True,
        stall_threshold: float | None = 0.1,
        slow_threshold: float | None = 1.0,
        max_memory: int = DEFAULT_MAX_MEMORY,
    ) -> None:
        _check(
            app, profiles, sample_hz, exact, queries, stall_threshold, slow_threshold, max_memory
        )
        self.app: ASGIApp = single_callable(app)
        profiles = default_profiles if profiles is None else profiles
        self._names = EndpointNames(_option("endpoint"), endpoint, profiles.report)
        profiles.resize(max_memory)
        self._profiler = Profiler(
            profiles,
            label=self._label,
            facts=_facts,
            stall_threshold=stall_threshold,
            slow_threshold=slow_threshold,
            sample_hz=sample_hz,
            queries=queries,
        )
        self._exact = exact
        # Where one in so many is recorded: how many of them are still to come, and which it is.
        self._turn = self._chosen = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rest = self.serve(scope, receive, send)
        if rest is not DONE:
            await rest

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """What calling the middleware awaits, to be awaited at once and in the same task."""
        exchange = exchange_of(send)
        if exchange is not None and not exchange.closed:
            if exchange.profile is None:  # or a middleware of this kind further out profiles it
                self._begin(exchange, scope)
            return self.app(scope, receive, send)
        kind = scope["type"]
        if kind == "http":
            exchange = HTTPExchange(self, current_account.get(), scope, receive, send)
        elif kind == "websocket":
            exchange = WebSocketExchange(self, current_account.get(), scope, receive, send)
        elif kind == "lifespan":
            return run_lifespan(self.app, scope, receive, send)
        else:
            return self.app(scope, receive, send)
        self._begin(exchange, scope)
        current_account.set(exchange)
        try:
            work = self.app(scope, exchange.receive_message, exchange.send_message)
        except BaseException as error:
            self.work_ended(exchange, error)
            raise
        return exchange.begin(work)

    def work_ended(self, account: Exchange, error: BaseException | None) -> None:
        """End an exchange that this middleware has opened."""
        account.conclude(error)

    def _begin(self, exchange: Exchange, scope: Scope) -> None:
        self._profiler.begin(exchange)
        if self._exact is not None and self._is_chosen(scope):
            self._profiler.begin_exact(exchange)

    def _is_chosen(self, scope: Scope) -> bool:
        exact = self._exact
        if isinstance(exact, int):
            # One of each so many, at random: of endpoints that take turns each has its chance.
            if not self._turn:
                self._turn = exact
                self._chosen = randrange(exact)
            self._turn -= 1
            return self._turn == self._chosen
        assert exact is not None
        try:
            return bool(exact(scope))
        except Exception as failure:
            self._profiler.profiles.report("exact raised for a request", failure)
            return False

    def _label(self, exchange: Exchange, endpoint: str | None = None) -> str:
        """As the metrics have it: ``"GET /items/{item_id}"``."""
        return f"{exchange.method} {self._names.name(exchange) if endpoint is None else endpoint}"


def _facts(exchange: Exchange, error: BaseException | None) -> dict[str, Any]:
    """What is kept of a slow request: no more of what the client has sent than the path."""
    facts: dict[str, Any] = {
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "outcome": exchange.outcome(error),
    }
    for name, duration_ns in (
        ("processing_time", exchange.processing_ns),
        ("response_time", exchange.response_ns),
        ("receive_time", exchange.receive_ns),
        ("send_time", exchange.send_ns),
        ("loop_time", exchange.loop_ns),
        ("longest_step", exchange.longest_ns),
    ):
        if duration_ns is not None:
            facts[name] = duration_ns / 1e9
    facts["request_size"] = exchange.request_bytes
    facts["response_size"] = exchange.response_bytes
    for name, value in exchange.scope.get("headers", ()):
        if name.lower() == b"traceparent":  # https://www.w3.org/TR/trace-context/
            facts["traceparent"] = value
    return facts


def _option(name: str) -> str:
    return f"{ProfilingMiddleware.__name__}({name}=...)"


def _check(
    app: object,
    profiles: object,
    sample_hz: object,
    exact: object,
    queries: object,
    stall_threshold: object,
    slow_threshold: object,
    max_memory: object,
) -> None:
    """Refuse arguments that cannot be used."""
    if not callable(app):
        raise ConfigurationTypeError(
            f"{ProfilingMiddleware.__name__}(app)", app, "an ASGI application is a callable."
        )
    if profiles is not None and not isinstance(profiles, Profiles):
        raise ConfigurationTypeError(
            _option("profiles"), profiles, "give Profiles, or None for the default ones."
        )
    if not _is_number(sample_hz):
        raise ConfigurationTypeError(_option("sample_hz"), sample_hz, "give a number.")
    if sample_hz != 0 and not MIN_HZ <= sample_hz <= MAX_HZ:  # type: ignore[operator]  # it is a number
        raise ConfigurationValueError(
            _option("sample_hz"),
            sample_hz,
            f"give 0 (on demand alone), or {MIN_HZ} to {MAX_HZ:,}.",
        )
    if isinstance(exact, bool) or not (exact is None or isinstance(exact, int) or callable(exact)):
        raise ConfigurationTypeError(
            _option("exact"),
            exact,
            "give a whole number N for one request in N, a function of the scope, or None.",
        )
    if iscoroutinefunction(exact):
        raise ConfigurationTypeError(
            _option("exact"), exact, "give a function that answers at once, not an async one."
        )
    if isinstance(exact, int) and exact < 1:
        raise ConfigurationValueError(_option("exact"), exact, "give 1 or more, or None.")
    if not isinstance(queries, bool):
        raise ConfigurationTypeError(_option("queries"), queries, "give True or False.")
    for name, seconds in (("stall_threshold", stall_threshold), ("slow_threshold", slow_threshold)):
        if seconds is None:
            continue
        if not _is_number(seconds):
            raise ConfigurationTypeError(_option(name), seconds, "give seconds, or None.")
        if not 0 < seconds <= _MAX_SECONDS:  # type: ignore[operator]  # as above
            raise ConfigurationValueError(
                _option(name), seconds, "give more than 0 seconds, or None to switch it off."
            )
    if not isinstance(max_memory, int) or isinstance(max_memory, bool):
        raise ConfigurationTypeError(
            _option("max_memory"), max_memory, "give a whole number of bytes."
        )
    if max_memory < _MIN_MEMORY:
        raise ConfigurationValueError(
            _option("max_memory"), max_memory, f"give {_MIN_MEMORY:,} bytes or more."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
