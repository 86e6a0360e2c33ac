"""The middlewares in the one right order."""

from __future__ import annotations

import inspect
from asyncio import _get_running_loop
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.middleware.background import BackgroundTaskMiddleware
from asgi_perfkit.middleware.encoder import ResponseEncoderMiddleware
from asgi_perfkit.middleware.performance import PerformanceMiddleware
from asgi_perfkit.middleware.profiling import ProfilingMiddleware
from asgi_perfkit.middleware.resources import ResourceMiddleware
from asgi_perfkit.steps import DONE
from asgi_perfkit.types import ASGIApp, Receive, Scope, Send, single_callable

__all__ = ["PerfKit"]

M = TypeVar("M")


class PerfKit:
    """The kit around an ASGI app: an ASGI app itself.

    With the defaults nothing that the app or its client sees changes.

    :param app: an ASGI app, single or double callable.
    :param performance: measure each request (:class:`PerformanceMiddleware`): True, False, or a dictionary of that
        middleware's options.
    :param background: run what :func:`add_task` queues after the response (:class:`BackgroundTaskMiddleware`):
        likewise.
    :param resources: close what a request has opened (:class:`ResourceMiddleware`): likewise.
    :param encoder: carry the app's encoder to what makes JSON in it, and compress (:class:`ResponseEncoderMiddleware`):
        likewise.
    :param profiling: say what happens inside of requests (:class:`ProfilingMiddleware`): likewise, but off unless asked
        for.
    :raises ConfigurationTypeError: `app` is not callable, or there is no such option; the nearest one is named.
    """

    def __init__(
        self,
        app: Any,
        *,
        performance: bool | Mapping[str, Any] = True,
        background: bool | Mapping[str, Any] = True,
        resources: bool | Mapping[str, Any] = True,
        encoder: bool | Mapping[str, Any] = True,
        profiling: bool | Mapping[str, Any] = False,
        **unknown: Any,
    ) -> None:
        for option in unknown:
            raise ConfigurationTypeError.unknown_option(
                "PerfKit",
                option,
                ["performance", "background", "resources", "encoder", "profiling"],
            )
        if not callable(app):
            raise ConfigurationTypeError("PerfKit(app)", app, "an ASGI application is a callable.")
        self.app: ASGIApp = single_callable(app)
        self._stack = self.app
        # From the inside out. What is compressed is so where the others count and time what is sent.
        encoding = _make(ResponseEncoderMiddleware, self._stack, "encoder", encoder)
        if encoding is not None and not encoding.idle:
            self._stack = encoding.serve
        resourceful = _make(ResourceMiddleware, self._stack, "resources", resources)
        if resourceful is not None:
            self._stack = resourceful.serve
        self._tasks = _make(BackgroundTaskMiddleware, self._stack, "background", background)
        if self._tasks is not None:
            self._stack = self._tasks.serve
        profiler = _make(ProfilingMiddleware, self._stack, "profiling", profiling)
        if profiler is not None:
            self._stack = profiler.serve
        metrics = _make(PerformanceMiddleware, self._stack, "performance", performance)
        if metrics is not None:
            self._stack = metrics.serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: BaseException | None = None
        try:
            rest = self._stack(scope, receive, send)
            if rest is not DONE:
                await rest
        except BaseException as raised:
            error = raised
            raise
        finally:
            if self._tasks is not None and _get_running_loop() is not self._tasks.supervisor.home:
                tasks = self._tasks.tasks_left(send, error)
                error = None  # it holds this frame
                if tasks is not None:
                    await tasks


def _make(
    middleware: Callable[..., M], app: ASGIApp, argument: str, wanted: bool | Mapping[str, Any]
) -> M | None:
    """Put `middleware` around `app` if it is wanted, with its options if there are any."""
    if not isinstance(wanted, (bool, Mapping)):
        raise ConfigurationTypeError(
            f"PerfKit({argument}=...)",
            wanted,
            "give True, False, or a dictionary of the middleware's options.",
        )
    if wanted is False:
        return None
    options = {} if wanted is True else dict(wanted)
    parameters = inspect.signature(middleware).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ConfigurationTypeError.unknown_option(f"PerfKit({argument}=...)", option, known)
    return middleware(app, **options)
