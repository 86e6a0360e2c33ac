"""Timings of one's own: ``with measure("name")``."""

from __future__ import annotations

from time import perf_counter_ns
from types import TracebackType

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.metrics.catalogue import METRICS
from asgi_perfkit.metrics.registry import default_registry
from asgi_perfkit.steps import current_account

__all__ = ["measure"]

_RESERVED = {*METRICS, "outcomes", "statuses", "processing"}
_MAX_NAME_LENGTH = 100


class measure:  # noqa: N801  # used like a function, as contextlib's are
    """Time a part of the current request: a context manager, for ``with`` and for ``async with``.

    The time from entry to exit appears in the statistics under `name`, for the request's endpoint; in a child task
    or a worker thread of the request as well, and when the block raises. Outside of any request it is counted for
    ``"<outside>"`` in the default registry. Each endpoint has room for eight names, further ones share
    ``"<overflow>"``: a name is a constant, not made of data.

    One object times one block at a time; it may be used again afterwards.

    :param name: 1 to 100 characters, and not the name of a metric of the kit.
    :raises ConfigurationTypeError: `name` is no string.
    :raises ConfigurationValueError: `name` is empty, too long, or taken by the kit.
    """

    __slots__ = ("_name", "_started_ns")

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise ConfigurationTypeError("measure(name)", name, "a name is a string.")
        if not 0 < len(name) <= _MAX_NAME_LENGTH:
            raise ConfigurationValueError("measure(name)", name, "a name has 1 to 100 characters.")
        if name in _RESERVED:
            raise ConfigurationValueError(
                "measure(name)", name, "the kit has a metric of that name; choose another."
            )
        self._name = name
        self._started_ns = 0

    def __enter__(self) -> None:
        self._started_ns = perf_counter_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        duration_ns = perf_counter_ns() - self._started_ns
        account = current_account.get()
        if account is None:
            default_registry.observe_outside(self._name, duration_ns)
        else:
            account.observe(self._name, duration_ns)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)
