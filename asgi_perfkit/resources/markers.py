"""What a parameter says of where its value comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from asgi_perfkit.caching.store import checked_ttl_ns
from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError

__all__ = ["REQUIRED", "Dependency", "Depends", "Marker", "Parameter", "Unresolved"]

REQUIRED: Final[Any] = object()
"""The default of a parameter that has none."""


class Unresolved(type):
    """Stands for a name in an annotation that does not exist when the program runs (`TYPE_CHECKING`)."""

    def __getitem__(cls, item: object) -> Unresolved:
        return cls

    def __getattr__(cls, name: str) -> Unresolved:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


@dataclass(frozen=True)
class Parameter:
    """A parameter that has a :class:`Marker`.

    :ivar function: the name of the function that it is a parameter of.
    :ivar name: its own.
    :ivar annotation: its type, without the marker; REQUIRED if it has none.
    :ivar default: the value that it has if there is no other; REQUIRED if it has none.
    """

    function: str
    name: str
    annotation: Any
    default: Any


class Marker(ABC):
    """Stands in ``Annotated[...]`` or as the default of a parameter, and says where its value comes from."""

    __slots__ = ()

    @abstractmethod
    def dependency(self, parameter: Parameter) -> Dependency:
        """What the value of `parameter` depends on; asked once for each plan.

        :raises ConfigurationError: the marker is not for such a parameter.
        """


class Dependency(Marker):
    """What :func:`Depends` makes; see there."""

    __slots__ = ("call", "concurrent", "lifetime", "measure", "thread", "ttl", "use_cache")

    def __init__(
        self,
        call: Callable[..., Any],
        *,
        use_cache: bool = True,
        ttl: float | None = None,
        concurrent: bool = False,
        thread: bool | None = None,
        lifetime: Literal["request", "app"] = "request",
        measure: bool = False,
    ) -> None:
        if isinstance(call, Unresolved):
            raise ConfigurationTypeError(
                "Depends(call)",
                call.__name__,
                "there is no such name where the function is defined; in annotations that are strings, "
                "use names of its module.",
            )
        if not callable(call):
            raise ConfigurationTypeError(
                "Depends(call)",
                call,
                "give what makes the value: a function, a generator, a class.",
            )
        for option, given in (
            ("use_cache", use_cache),
            ("concurrent", concurrent),
            ("measure", measure),
        ):
            if not isinstance(given, bool):
                raise ConfigurationTypeError(f"Depends({option}=...)", given, "True or False.")
        if thread is not None and not isinstance(thread, bool):
            raise ConfigurationTypeError("Depends(thread=...)", thread, "True, False or None.")
        checked_ttl_ns("Depends", ttl)
        if lifetime not in ("request", "app"):
            raise ConfigurationValueError(
                "Depends(lifetime=...)", lifetime, 'give "request" or "app".'
            )
        if not use_cache and (ttl is not None or lifetime == "app"):
            raise ConfigurationValueError(
                "Depends(use_cache=...)",
                use_cache,
                "ttl and lifetime keep the value: leave it out.",
            )
        if ttl is not None and lifetime == "app":
            raise ConfigurationValueError(
                "Depends(ttl=...)",
                ttl,
                'with lifetime="app" the value stays: leave one of them out.',
            )
        self.call = call
        self.use_cache = use_cache
        self.ttl = ttl
        self.concurrent = concurrent
        self.thread = thread
        self.lifetime = lifetime
        self.measure = measure

    def dependency(self, parameter: Parameter) -> Dependency:
        return self

    def __repr__(self) -> str:
        return f"Depends({getattr(self.call, '__qualname__', None) or repr(self.call)})"


def Depends(  # noqa: N802  it is read as a name in annotations
    call: Callable[..., Any],
    *,
    use_cache: bool = True,
    ttl: float | None = None,
    concurrent: bool = False,
    thread: bool | None = None,
    lifetime: Literal["request", "app"] = "request",
    measure: bool = False,
) -> Any:
    """The value of a parameter is what `call` returns: as its default, or ``Annotated[T, Depends(call)]``.

    `call` has dependencies of its own in the same way, and gets the values that are known, by name or by type. It is an
    async function; a generator or async generator that yields the value once and then cleans up; any other function,
    which is called in a worker thread; a class; or an object that can be called.

    :param call: what makes the value.
    :param use_cache: make it once in a request, for the same values of the parameters. False calls it anew for each
        parameter that depends on it.
    :param ttl: keep it for all requests for so many seconds (monotonic); not for generators.
    :param concurrent: make it at the same time as others that it does not depend on, in a task of its own. Not for
        generators, which are entered in order in the request's task.
    :param thread: whether to call what is not asynchronous in a worker thread; None: not if it is a class.
    :param lifetime: ``"app"``: make it once for the application, and clean it up at the shutdown.
    :param measure: time the call, without its own dependencies; the time appears in the statistics as
        `"depends <name>"`.
    :raises ConfigurationError: an argument is of the wrong type, or goes against another.
    """
    # A function, and of any type, so that type checkers let it be the default of whatever the parameter is.
    return Dependency(
        call,
        use_cache=use_cache,
        ttl=ttl,
        concurrent=concurrent,
        thread=thread,
        lifetime=lifetime,
        measure=measure,
    )
