"""What kind of function something is, and what it wants to be called with."""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any, Final

from asgi_perfkit.resources.markers import REQUIRED, Marker, Parameter, Unresolved

__all__ = [
    "ASYNC",
    "ASYNC_GENERATOR",
    "GENERATORS",
    "INLINE",
    "INLINE_GENERATOR",
    "THREAD",
    "THREAD_GENERATOR",
    "Wanted",
    "kind_of",
    "name_of",
    "parameters_of",
    "undecorated",
]

# How something is called.
ASYNC: Final = 0
THREAD: Final = 1  # in a worker thread
INLINE: Final = 2  # on the loop
ASYNC_GENERATOR: Final = 3
THREAD_GENERATOR: Final = 4
INLINE_GENERATOR: Final = 5
GENERATORS: Final = frozenset((ASYNC_GENERATOR, THREAD_GENERATOR, INLINE_GENERATOR))


@dataclass(frozen=True)
class Wanted:
    """A parameter, and what is said of it.

    :ivar marker: None if it has none.
    :ivar positional: whether it can only be given by position; None: only by name.
    :ivar unknown: the names in its annotation that mean nothing when the program runs.
    """

    parameter: Parameter
    marker: Marker | None
    positional: bool | None
    unknown: tuple[str, ...]


@contextmanager
def _blocking() -> Iterator[None]:
    yield


@asynccontextmanager
async def _asynchronous() -> typing.AsyncIterator[None]:
    yield


# The code of what the decorators make of a function.
_HELPERS = {getattr(helper, "__code__", None) for helper in (_blocking, _asynchronous)}


def undecorated(call: Callable[..., Any]) -> Callable[..., Any]:
    """The generator that is below ``@contextmanager`` or ``@asynccontextmanager``; or `call` itself."""
    if isinstance(call, FunctionType) and call.__code__ in _HELPERS:
        inner: Callable[..., Any] = call.__wrapped__  # type: ignore[attr-defined]
        return inner
    return call


def kind_of(call: Callable[..., Any], thread: bool | None) -> int:
    """How `call` is called.

    :param thread: whether in a worker thread, if it is not asynchronous; None: unless it is a class.
    """
    call = _called(call)
    if isinstance(call, type):
        return THREAD if thread else INLINE
    function = _function_of(call)
    if inspect.isasyncgenfunction(function):
        return ASYNC_GENERATOR
    # Of itself only `unittest.mock.AsyncMock` says so.
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        return ASYNC
    in_thread = thread is None or thread
    if inspect.isgeneratorfunction(function):
        return THREAD_GENERATOR if in_thread else INLINE_GENERATOR
    return THREAD if in_thread else INLINE


def name_of(call: object) -> str:
    """What `call` is called in messages."""
    while isinstance(call, functools.partial):
        call = call.func
    name = getattr(call, "__qualname__", None) or type(call).__qualname__
    return str(name).rpartition("<locals>.")[2]


def parameters_of(call: Callable[..., Any]) -> list[Wanted]:
    """What `call` can be called with, but for ``*args`` and ``**kwargs``."""
    function_name = name_of(call)
    if not isinstance(call, functools.partial):
        call = _called(call)
    try:
        if sys.version_info >= (3, 14):
            from annotationlib import Format

            signature = inspect.signature(call, annotation_format=Format.FORWARDREF)
        else:
            signature = inspect.signature(call)
    except ValueError:  # built-in, and does not tell
        return []
    names: _Names | None = None
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = parameter.annotation
        unknown: list[str] = []
        if isinstance(annotation, typing.ForwardRef):  # that of a field of a named tuple
            annotation = annotation.__forward_arg__
        if isinstance(annotation, str):
            if names is None:
                names = _Names(_defining(call), getattr(call, "__module__", None))
            unknown = names.unknown = []
            annotation = eval(annotation, {}, names)
        while type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        marker = None
        if typing.get_origin(annotation) is typing.Annotated:
            for each in annotation.__metadata__:
                if isinstance(each, Marker):
                    marker = each
            annotation = annotation.__origin__
        default = parameter.default
        if isinstance(default, Marker):
            marker, default = default, REQUIRED
        positional = None
        if parameter.kind is not parameter.KEYWORD_ONLY:
            positional = parameter.kind is parameter.POSITIONAL_ONLY
        wanted = Parameter(
            function_name,
            parameter.name,
            REQUIRED if annotation is parameter.empty else annotation,
            REQUIRED if default is parameter.empty else default,
        )
        found.append(Wanted(wanted, marker, positional, tuple(unknown)))
    return found


def _called(call: Any) -> Any:
    """What is called when a ``functools.partial``, or a generic class with its parameters, is called."""
    while isinstance(call, functools.partial):
        call = call.func
    origin = typing.get_origin(call)
    return origin if isinstance(origin, type) else call


def _function_of(call: Any) -> Any:
    """The function that says what calling `call` comes to."""
    call = _called(call)
    if inspect.isroutine(call):
        return call
    return type(call).__call__


def _defining(call: Any) -> Any:
    """The function whose names the annotations of `call` mean."""
    function: Any = call
    if isinstance(call, type):
        constructors = (getattr(call, name) for name in ("__init__", "__new__"))
        function = next((each for each in constructors if isinstance(each, FunctionType)), call)
    else:
        function = _function_of(call)
    function = inspect.unwrap(function)
    if isinstance(function, MethodType):
        function = function.__func__
    return function


class _Names(dict[str, Any]):
    """The names that are known where a function is defined; others stand for themselves."""

    def __init__(self, function: Any, module: str | None) -> None:
        super().__init__()
        self.unknown: list[str] = []
        self._places: list[Mapping[str, Any]] = [
            getattr(function, "__globals__", {}),
            vars(sys.modules[module]) if module in sys.modules else {},
            vars(builtins),
        ]
        for each in getattr(function, "__type_params__", ()):
            self[each.__name__] = each
        code = getattr(function, "__code__", None)
        for name, cell in zip(
            code.co_freevars if code else (),
            getattr(function, "__closure__", None) or (),
            strict=True,
        ):
            try:
                self[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue

    def __missing__(self, name: str) -> Any:
        for place in self._places:
            if name in place:
                return place[name]
        if name.startswith(
            "__"
        ):  # not one of an annotation: tools look for marks of theirs in all frames
            raise KeyError(name)
        self.unknown.append(name)
        return Unresolved(name, (), {})
