"""Every error the kit raises itself.

An application's own exceptions are never wrapped: what an application raises reaches the server as the same object.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "CleanupError",
    "ConfigurationError",
    "ConfigurationTypeError",
    "ConfigurationValueError",
    "DependencyCycleError",
    "DependencyError",
    "EncodeError",
    "NoRequestError",
    "PerfKitError",
    "QueueFullError",
    "ResourcesClosedError",
]


class PerfKitError(Exception):
    """The base of all errors of the kit."""


class ConfigurationError(PerfKitError):
    """An argument cannot be used; the message names the subject, the value and the remedy.

    What is raised is always also a :class:`TypeError` or a :class:`ValueError`.

    :ivar subject: what was configured, as the caller wrote it (``"PerformanceMiddleware(max_series=...)"``).
    :ivar value: the value that was refused.
    """

    def __init__(self, subject: str, value: object, remedy: str) -> None:
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:197] + "..."
        super().__init__(f"{subject} got {shown}: {remedy}")
        self.subject = subject
        self.value = value
        self._remedy = remedy

    def __reduce__(self) -> tuple[type[ConfigurationError], tuple[str, object, str]]:
        return type(self), (self.subject, self.value, self._remedy)


class ConfigurationTypeError(ConfigurationError, TypeError):
    """A :class:`ConfigurationError` about a value of the wrong type, or an option that does not exist."""

    @classmethod
    def unknown_option(
        cls, subject: str, option: object, known: Iterable[str]
    ) -> ConfigurationTypeError:
        """Name the option that does not exist and the nearest one that does."""
        known = sorted(known)
        near = difflib.get_close_matches(str(option), known, n=1, cutoff=0.5)
        remedy = "there is no such option; "
        remedy += f"did you mean {near[0]!r}? " if near else ""
        remedy += f"The options are: {', '.join(known)}."
        return cls(f"{subject} option", option, remedy)


class ConfigurationValueError(ConfigurationError, ValueError):
    """A :class:`ConfigurationError` about a value outside what is allowed."""


class CleanupError(PerfKitError):
    """Resources failed to close. Raised where Python has no ExceptionGroup, nor the package `exceptiongroup` is there.

    :ivar exceptions: what they have raised.
    """

    def __init__(self, message: str, exceptions: Sequence[Exception]) -> None:
        shown = "; ".join(repr(each) for each in exceptions)
        super().__init__(f"{message}: {shown}")
        self._message = message
        self.exceptions = tuple(exceptions)

    def __reduce__(self) -> tuple[type[CleanupError], tuple[str, tuple[Exception, ...]]]:
        return type(self), (self._message, self.exceptions)


class DependencyError(ConfigurationTypeError):
    """A dependency cannot be resolved, whatever the request; found when the plan for a function is made.

    :ivar chain: the names of the functions that lead to it, from the outermost.
    :ivar parameter: the name of the parameter; None if it is none in particular.
    """

    def __init__(self, chain: Sequence[str], parameter: str | None, remedy: str) -> None:
        way = " -> ".join(chain)
        super().__init__(way if parameter is None else f"{way}({parameter})", None, remedy)
        self.args = (f"{self.subject}: {remedy}",)
        self.chain = tuple(chain)
        self.parameter = parameter

    def __reduce__(self) -> Any:
        return type(self), (self.chain, self.parameter, self._remedy)


class DependencyCycleError(DependencyError):
    """Dependencies depend on each other.

    :ivar chain: the names, from the first one back to itself.
    """

    def __init__(self, chain: Sequence[str]) -> None:
        super().__init__(chain, None, "these depend on each other; take one of the links out.")
        self.args = (f"Dependency cycle: {' -> '.join(chain)}. Break it by taking a link out.",)

    def __reduce__(self) -> Any:
        return type(self), (self.chain,)


class EncodeError(PerfKitError, TypeError):
    """A value has no JSON; nothing of the whole was encoded.

    :ivar path: where it is in what was to be encoded (``"$.items[3].price"``).
    :ivar type_name: the name of its class, with the module's if that is not ``builtins``.
    :ivar remedy: what is wrong with it, and what to do about that.
    """

    def __init__(self, path: str, type_name: str, remedy: str) -> None:
        super().__init__(f"{path} ({type_name}) cannot be encoded: {remedy}")
        self.path = path
        self.type_name = type_name
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[EncodeError], tuple[str, str, str]]:
        return type(self), (self.path, self.type_name, self.remedy)


class NoRequestError(PerfKitError, RuntimeError):
    """A function that belongs to a request was called outside of any.

    :ivar function: its name.
    :ivar middleware: the one that has to be around the app for it.
    """

    def __init__(self, function: str, middleware: str) -> None:
        super().__init__(
            f"{function}() was called outside of a request, or {middleware} is not around the app: "
            f"wrap the app in PerfKit or in {middleware}, and call it while a request is served."
        )
        self.function = function
        self.middleware = middleware

    def __reduce__(self) -> tuple[type[NoRequestError], tuple[str, str]]:
        return type(self), (self.function, self.middleware)


class QueueFullError(PerfKitError, RuntimeError):
    """A task was not queued, because too many wait already.

    :ivar pending: how many wait.
    :ivar max_pending: how many may.
    """

    def __init__(self, pending: int, max_pending: int) -> None:
        super().__init__(
            f"{pending} background tasks wait and {max_pending} may: this one was not queued. "
            "Answer 503 and let the client come again, raise max_pending, or run the work elsewhere."
        )
        self.pending = pending
        self.max_pending = max_pending

    def __reduce__(self) -> tuple[type[QueueFullError], tuple[int, int]]:
        return type(self), (self.pending, self.max_pending)


class ResourcesClosedError(PerfKitError, RuntimeError):
    """Resources were asked of a manager that is closed: those of a request that is over, as a rule."""

    def __init__(self) -> None:
        super().__init__(
            "These resources are closed, as those of a request are when it is over. In a task that outlives it, "
            "open what it needs with `async with ResourceManager()`."
        )
