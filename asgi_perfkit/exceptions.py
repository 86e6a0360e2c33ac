"""Every error the kit raises itself.

An application's own exceptions are never wrapped: what an application raises reaches the server as the same object.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

__all__ = [
    "AlreadyProfilingError",
    "BodyTooLargeError",
    "CleanupError",
    "CleanupTimeoutError",
    "ClientDisconnectedError",
    "ConfigurationError",
    "ConfigurationTypeError",
    "ConfigurationValueError",
    "DependencyCycleError",
    "DependencyError",
    "EncodeError",
    "InvalidRequestError",
    "MalformedBodyError",
    "NoRequestError",
    "PerfKitError",
    "Problem",
    "QueueFullError",
    "RequestError",
    "ResourcesClosedError",
    "UnsupportedBodyError",
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


class CleanupTimeoutError(PerfKitError, TimeoutError):
    """A resource was not closed in the time that it has for that (`close_timeout`).

    :ivar resource: its name: that of its function, or of its class.
    :ivar seconds: how long it may take.
    :ivar in_thread: whether it is being closed in a worker thread, and so was left to that; otherwise it was cancelled.
    """

    def __init__(self, resource: str, seconds: float, *, in_thread: bool = False) -> None:
        fate = "it goes on in its thread" if in_thread else "it was cancelled"
        super().__init__(f"{resource} was not closed after {seconds:g} s (close_timeout): {fate}.")
        self.resource = resource
        self.seconds = seconds
        self.in_thread = in_thread

    def __reduce__(self) -> Any:
        return partial(type(self), in_thread=self.in_thread), (self.resource, self.seconds)


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


class AlreadyProfilingError(PerfKitError, RuntimeError):
    """What can be done once at a time is being done already, by the kit or by somebody else, who is left alone.

    :ivar what: that which is being done.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")
        self.what = what
        self._remedy = remedy

    def __reduce__(self) -> tuple[type[AlreadyProfilingError], tuple[str, str]]:
        return type(self), (self.what, self._remedy)


class Problem(NamedTuple):
    """What does not fit in a request, and where that is.

    :ivar part: of the request: ``"body"``, ``"form"``, ``"query"``, ``"path"`` or ``"header"``.
    :ivar place: in that part: the name of the parameter; in a body of JSON, the path to it (``"$.items[3].price"``).
    :ivar reason: what is wrong.
    """

    part: str
    place: str
    reason: str


class RequestError(PerfKitError):
    """What a client has sent cannot be used. An :func:`endpoint` answers with its status and what it says.

    :ivar status: of that response.
    """

    status: ClassVar[int] = 400

    def answer(self) -> dict[str, Any]:
        """What the client is told, as JSON."""
        return {"error": str(self)}


class InvalidRequestError(RequestError):
    """A request does not fit what is wanted of it; raised in a function or a dependency, it is answered likewise.

    :ivar problems: all that were found.
    """

    status = 422

    def __init__(self, problems: Iterable[tuple[str, str, str]]) -> None:
        self.problems = [Problem(*each) for each in problems]
        shown = "; ".join(f"{part} {place}: {reason}" for part, place, reason in self.problems)
        super().__init__(f"The request does not fit: {shown}")

    def __reduce__(self) -> Any:
        return type(self), (self.problems,)

    def answer(self) -> dict[str, Any]:
        return {
            "error": "The request does not fit.",
            "problems": [
                {"in": part, "place": place, "reason": reason}
                for part, place, reason in self.problems
            ],
        }


class MalformedBodyError(RequestError):
    """A body is not of the form that its content type says.

    :ivar position: where it breaks, if that is known: the line and the column, from 1, and the offset, from 0, all in
        characters.
    """

    def __init__(self, reason: str, position: tuple[int, int, int] | None = None) -> None:
        where = "" if position is None else f" at line {position[0]}, column {position[1]}"
        super().__init__(f"The body is malformed: {reason}{where}.")
        self._reason = reason
        self.position = position

    def __reduce__(self) -> Any:
        return type(self), (self._reason, self.position)

    def answer(self) -> dict[str, Any]:
        found = super().answer()
        if self.position is not None:
            found["position"] = dict(zip(("line", "column", "offset"), self.position, strict=True))
        return found


class UnsupportedBodyError(RequestError):
    """A body is of a content type that the endpoint does not take.

    :ivar content_type: as the client has sent it; empty if it has sent none.
    :ivar accepted: what would do.
    """

    status = 415

    def __init__(self, content_type: str, accepted: Sequence[str]) -> None:
        super().__init__(
            f"The body's content type is {content_type or 'missing'}; it can be {' or '.join(accepted)}."
        )
        self.content_type = content_type
        self.accepted = tuple(accepted)

    def __reduce__(self) -> Any:
        return type(self), (self.content_type, self.accepted)


class BodyTooLargeError(RequestError):
    """A body, or a part of it, is larger than it may be; the rest of it was not read.

    :ivar max_size: how large it may be, in bytes, parts or files.
    """

    status = 413

    def __init__(self, max_size: int, what: str = "The body", unit: str = "bytes") -> None:
        super().__init__(f"{what} has more than {max_size} {unit}, which is the limit.")
        self.max_size = max_size
        self._rest = what, unit

    def __reduce__(self) -> Any:
        return type(self), (self.max_size, *self._rest)


class ClientDisconnectedError(PerfKitError):
    """The client has left while its request was being read: there is nobody to answer."""

    def __init__(self) -> None:
        super().__init__("The client has left before all of the request's body had come.")

    def __reduce__(self) -> Any:
        return type(self), ()
