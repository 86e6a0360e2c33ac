"""Functions whose values are kept for a time."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Concatenate, NoReturn, ParamSpec, Protocol, TypeVar, cast, overload

from asgi_perfkit.caching.shared import SharedCache
from asgi_perfkit.caching.store import MISSING, CacheStatistics, checked_size, checked_ttl_ns
from asgi_perfkit.exceptions import ConfigurationTypeError

__all__ = ["CachedFunction", "cached"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")

_BY_NAME = object()


class CachedFunction(Protocol[P, R_co]):
    """A function, the same to callers, whose values are kept.

    As a method it is bound like any other function. The cache is of the function, for all instances: it is reached
    through the class.
    """

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The function itself: calling it neither asks nor fills the cache."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The value for these arguments, kept or made."""

    def cache_info(self) -> CacheStatistics:
        """Hits, misses, evictions and size, now."""

    def cache_clear(self) -> None:
        """Forget all values. Calls that run now give theirs to those who wait for it, and it is not kept."""

    def cache_invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the value for these arguments, as :meth:`cache_clear` does; whether there was one."""

    @overload
    def __get__(self, instance: None, owner: Any, /) -> CachedFunction[P, R_co]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], R], instance: S, owner: Any = ..., /
    ) -> Callable[Q, R]: ...


def cached(
    ttl: float | None, *, max_size: int = 1000, key: Callable[..., Hashable] | None = None
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
    """Keep what a function returns, by its arguments, for `ttl` seconds.

    While a call runs, those who ask for the same value wait for it: tasks for one of their event loop, threads for one
    in another thread. What it raises is raised to all of them, and not kept. A task that is cancelled leaves the call
    to the others; when the last one is, the call is cancelled too, and that one waits for its end. An async function
    runs in a task of its own, in a copy of the context of who asked first: its time is charged to that request.

    All get the very object that the function has returned. The arguments are the key, as :func:`functools.lru_cache`
    has it: ``f(1)``, ``f(x=1)`` and ``f("1")`` are three keys, ``f(1)``, ``f(1.0)`` and ``f(True)`` one; the order of
    named arguments does not matter. They are kept as long as the value, `self` in a method too.

    :param ttl: how long a value is good (seconds, monotonic), from when the function has returned; None for ever.
    :param max_size: how many values are kept; the least recently used one makes room.
    :param key: takes the same arguments and returns the key, which must be hashable.
    :raises ConfigurationTypeError: an argument is of the wrong type; what is decorated is not callable, or is a
        generator function, which gives its values once, or a staticmethod or classmethod, which go around this.
    :raises ConfigurationValueError: `ttl` or `max_size` is not above 0.
    """
    if callable(ttl):
        raise ConfigurationTypeError(
            "cached(ttl)", ttl, "write @cached(60), with how many seconds."
        )
    checked_ttl_ns("cached", ttl)
    checked_size("cached", max_size)
    _check_key(key)

    def decorate(func: Callable[P, R]) -> CachedFunction[P, R]:
        _check_function(func)
        name = getattr(func, "__qualname__", None) or repr(func)
        cache = SharedCache(name, max_size, ttl)
        wrap = _wrap_async if _is_async(func) else _wrap_sync
        wrapper: Any = functools.update_wrapper(wrap(func, cache, key), func)

        def cache_invalidate(*args: Any, **kwargs: Any) -> bool:
            found = _key(args, kwargs) if key is None else key(*args, **kwargs)
            try:
                return cache.delete(found)
            except TypeError:
                _refuse_unhashable(name, found)

        wrapper.cache_info = cache.statistics
        wrapper.cache_clear = cache.clear
        wrapper.cache_invalidate = cache_invalidate
        return cast("CachedFunction[P, R]", wrapper)

    return decorate


def _wrap_async(
    func: Callable[..., Any], cache: SharedCache, key: Callable[..., Hashable] | None
) -> Callable[..., Coroutine[Any, Any, Any]]:
    find = cache.find

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if key is not None:
            found = key(*args, **kwargs)
        else:
            found = _key(args, kwargs) if kwargs else args
        try:
            value = find(found)
        except TypeError:
            _refuse_unhashable(cache.name, found)
        if value is not MISSING:
            return value
        return await cache.afetch(found, functools.partial(func, *args, **kwargs))

    return wrapper


def _wrap_sync(
    func: Callable[..., Any], cache: SharedCache, key: Callable[..., Hashable] | None
) -> Callable[..., Any]:
    find = cache.find

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if key is not None:
            found = key(*args, **kwargs)
        else:
            found = _key(args, kwargs) if kwargs else args
        try:
            value = find(found)
        except TypeError:
            _refuse_unhashable(cache.name, found)
        if value is not MISSING:
            return value
        return cache.fetch(found, functools.partial(func, *args, **kwargs))

    return wrapper


def _key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
    return (*args, _BY_NAME, *sorted(kwargs.items())) if kwargs else args


def _is_async(func: Callable[..., Any]) -> bool:
    # Of an object that is called like a function, it is its class's `__call__` that says so.
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)


def _check_key(key: object) -> None:
    if key is not None and (not callable(key) or _is_async(key)):
        raise ConfigurationTypeError(
            "cached(key=...)", key, "give a plain function of the same arguments."
        )


def _check_function(func: object) -> None:
    if isinstance(func, (staticmethod, classmethod)):
        kind = type(func).__name__
        remedy = f"put @{kind} above @cached(...), not below."
    elif not callable(func):
        remedy = "decorate a function, sync or async."
    elif inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        remedy = "a generator gives its values once only; return a list."
    else:
        return
    raise ConfigurationTypeError("cached(...)", func, remedy)


def _refuse_unhashable(name: str, key: Hashable) -> NoReturn:
    """Say what is wrong with `key`, within the handling of the TypeError about it.

    :raises TypeError: in any case.
    """
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(
            f"{name} was called with what cannot be a key ({error}): "
            "give cached(..., key=...) a function that makes a hashable key of the arguments."
        ) from None
    raise  # noqa: PLE0704 - that of the caller, from comparing keys
