"""Where a task runs if not here: an engine that is shared by many processes, and how it is asked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError

__all__ = ["Engine", "Handoff", "as_handoff"]


class Engine(Protocol):
    """Runs functions somewhere else.

    It may have a method `knows(func)`, too, that tells whether it can run the function (without one it can run any),
    and a method `name(func)` that gives the name to report it by.
    """

    def submit(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /
    ) -> Any:
        """Have `func` called somewhere else; an async function, or one that blocks and runs in a worker thread.

        :raises TypeError: with these arguments it never can be; nor does another try help after a :class:`ValueError`.
        :raises Exception: it could not be submitted now.
        """


class Handoff:
    """How tasks are handed to an engine, and what becomes of those that it does not take.

    A submission that fails is tried again after a while that doubles each time, less a random part of up to a half. It
    may have arrived even so: a task that is handed off must bear to run twice.

    :param engine: an object with a method ``submit(func, args, kwargs)``: a :class:`CeleryEngine`, a
        :class:`TaskiqEngine`, or one of your own.
    :param retries: how many times a submission is tried again.
    :param backoff: seconds before the first of these, at most. During a shutdown it is a tenth of a second, at most.
    :param timeout: seconds for all tries together. A submission in a thread that takes longer is left to itself.
    :param fallback: what becomes of a task that could not be handed off: ``"run"`` runs it here; ``"report"`` counts
        it as `lost` and tells `on_error`. Where it runs here it is not held up for long: while the engine is down the
        next ones are tried once, until one gets through.
    :raises ConfigurationTypeError: an argument of the wrong type; an engine without such a `submit`.
    :raises ConfigurationValueError: an argument outside of what is allowed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        retries: int = 4,
        backoff: float = 0.5,
        timeout: float = 30.0,
        fallback: Literal["run", "report"] = "run",
    ) -> None:
        _check_engine("Handoff(engine)", engine)
        if type(retries) is not int:
            raise ConfigurationTypeError("Handoff(retries=...)", retries, "give a whole number.")
        if retries < 0:
            raise ConfigurationValueError("Handoff(retries=...)", retries, "give 0 or more.")
        for option, seconds in (("backoff", backoff), ("timeout", timeout)):
            if type(seconds) not in (int, float):
                raise ConfigurationTypeError(f"Handoff({option}=...)", seconds, "give seconds.")
            if not math.isfinite(seconds) or seconds < 0:
                raise ConfigurationValueError(
                    f"Handoff({option}=...)",
                    seconds,
                    "give a number of seconds that is not below 0.",
                )
        if timeout == 0:
            raise ConfigurationValueError(
                "Handoff(timeout=...)", timeout, "give more than 0 seconds."
            )
        if fallback not in ("run", "report"):
            raise ConfigurationValueError(
                "Handoff(fallback=...)",
                fallback,
                'give "run" to run the task here, or "report" to tell on_error of it.',
            )
        self.engine = engine
        self.retries = retries
        self.backoff = backoff
        self.timeout = timeout
        self.fallback = fallback
        self.is_down = False  # whether the last submission that was given up had found nobody

    def __repr__(self) -> str:
        return (
            f"Handoff({self.engine!r}, retries={self.retries}, backoff={self.backoff}, "
            f"timeout={self.timeout}, fallback={self.fallback!r})"
        )

    @property
    def tries(self) -> int:
        """How many times the next submission is tried."""
        return 1 if self.is_down and self.fallback == "run" else self.retries + 1

    @property
    def engine_name(self) -> str:
        """What logs call the engine."""
        return type(self.engine).__qualname__

    def knows(self, function: Callable[..., Any]) -> bool:
        """Whether the engine can run `function`, as far as it can tell."""
        knows = getattr(self.engine, "knows", None)
        return knows is None or bool(knows(function))

    def name(self, function: Callable[..., Any]) -> str | None:
        """What the engine calls `function`; None if it has no name of its own for it."""
        name = getattr(self.engine, "name", None)
        try:
            return None if name is None else str(name(function))
        except Exception:  # it is wanted for reports, which must not fail
            return None

    def check(self, subject: str, function: Callable[..., Any]) -> None:
        """Refuse a function that the engine does not know.

        :raises ConfigurationValueError: so it is.
        """
        if not self.knows(function):
            raise ConfigurationValueError(
                subject,
                function,
                f"{self.engine_name} does not know it; register it there, and give what that returns.",
            )


def as_handoff(subject: str, value: Engine | Handoff) -> Handoff:
    """An engine with the default options, if it comes without any.

    :raises ConfigurationTypeError: `value` is neither.
    """
    if isinstance(value, Handoff):
        return value
    _check_engine(subject, value)
    return Handoff(value)


def _check_engine(subject: str, engine: object) -> None:
    submit = getattr(engine, "submit", None)
    if not callable(submit) or isinstance(engine, type):
        raise ConfigurationTypeError(
            subject,
            engine,
            "an engine is an object with a method submit(func, args, kwargs); for Celery give "
            "CeleryEngine(app), for Taskiq TaskiqEngine(broker).",
        )
    try:
        signature = inspect.signature(submit)
    except (TypeError, ValueError):  # of a function that is not Python's, for one
        return
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    try:
        signature.bind(None, (), {})
        # Executors take the arguments themselves, behind the function; `*args` alone may be a decorator's.
        fits = inspect.Parameter.VAR_POSITIONAL not in kinds[1:]
    except TypeError:
        fits = False
    if not fits:
        raise ConfigurationTypeError(
            subject,
            engine,
            f"its submit{signature} is another one; an engine's is submit(func, args, kwargs), "
            "with a tuple and a dict.",
        )
