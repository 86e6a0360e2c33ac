"""What became of a task that did not end well: how it is told of."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from asgi_perfkit.tasks.handoff import Handoff
from asgi_perfkit.tasks.item import Item

__all__ = [
    "OnError",
    "Reason",
    "TaskFailure",
    "log_failure",
    "log_fallback",
    "log_on_error_failure",
]

logger = logging.getLogger("asgi_perfkit")

Reason = Literal["failed", "timed_out", "cancelled", "discarded", "lost"]


@dataclass(frozen=True)
class TaskFailure:
    """A task that did not end well, for `on_error`.

    :ivar name: module and name of its function, or what its engine calls it.
    :ivar reason: `failed`: it raised; `timed_out`: it took longer than its time-out; `cancelled`: it could not finish,
        or not even start, before the shutdown; `discarded`: the request that added it raised; `lost`: it could not be
        handed to its engine, and was not to run here. One that was being handed off when it was cancelled, or whose
        engine has not answered, may run there all the same.
    :ivar error: what it raised, or what handing it off did; None if that is not the reason.
    :ivar function: the function itself, with `args` and `kwargs`: whoever keeps these can run it again.
    """

    name: str
    reason: Reason
    error: BaseException | None
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


OnError = Callable[[TaskFailure], object]


F = TypeVar("F", bound=Callable[..., None])


def _never_raising(log: F) -> F:
    """Whatever a filter or a handler of the log raises, the tasks go on, and are accounted for."""

    @functools.wraps(log)
    def log_if_possible(*args: Any) -> None:
        with suppress(Exception):
            log(*args)

    return cast(F, log_if_possible)


@_never_raising
def log_failure(item: Item, reason: Reason, error: BaseException | None) -> None:
    """Log what has become of `item`, in a line, and for what it has raised itself with the traceback."""
    if reason == "failed":
        logger.error("The background task %s failed.", item.describe(), exc_info=error)
    elif reason == "timed_out":
        logger.error(
            "The background task %s was given up after %g s.", item.describe(), item.timeout
        )
    elif reason == "cancelled":
        logger.error(
            "The background task %s could not finish before the shutdown.", item.describe()
        )
    elif reason == "lost":
        assert isinstance(item.handoff, Handoff)
        assert error is not None
        logger.error(
            "The background task %s could not be handed to %s, and is lost: %s",
            item.describe(),
            item.handoff.engine_name,
            _root_of(error),
        )
    else:
        logger.warning("The background task %s was discarded: its request failed.", item.describe())


@_never_raising
def log_fallback(item: Item, handoff: Handoff, error: BaseException) -> None:
    """Log that `item` runs here, because of an `error` of its engine."""
    logger.warning(
        "The background task %s could not be handed to %s, and runs here: %s",
        item.describe(),
        handoff.engine_name,
        _root_of(error),
    )


@_never_raising
def log_on_error_failure(item: Item, failure: BaseException) -> None:
    """Log what `on_error` has raised when it was told of `item`."""
    logger.error("on_error failed for %s.", item.describe(), exc_info=failure)


def _root_of(error: BaseException) -> str:
    """What an engine's error comes from, in a line: of a connection that fails there are many, with long tracebacks."""
    seen = {id(error)}
    while (cause := error.__cause__) is not None and id(cause) not in seen:
        error = cause
        seen.add(id(error))
    return "".join(traceback.format_exception_only(error)).strip()
