"""Calls functions with what they depend on."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock
from types import MethodType
from typing import Any, TypeVar, overload
from weakref import WeakValueDictionary

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.resources.code import Caches, Solver, compile_plan, shared_caches
from asgi_perfkit.resources.manager import ResourceManager, innermost
from asgi_perfkit.resources.plan import Overrides, Plan, identity, make_plan
from asgi_perfkit.resources.together import continuation, is_concurrent, join_plan
from asgi_perfkit.steps import current_account

__all__ = ["dependency_overrides", "has_overrides", "prepared", "resolve"]

T = TypeVar("T")

_MAX_FUNCTIONS = 10_000
_MAX_VARIANTS = 64


@overload
def resolve(
    func: Callable[..., Coroutine[Any, Any, T]], /, *, concurrent: bool = False, **values: Any
) -> Coroutine[Any, Any, T]: ...
@overload
def resolve(
    func: Callable[..., AsyncIterator[T] | Iterator[T]],
    /,
    *,
    concurrent: bool = False,
    **values: Any,
) -> Coroutine[Any, Any, T]: ...
@overload
def resolve(
    func: Callable[..., T], /, *, concurrent: bool = False, **values: Any
) -> Coroutine[Any, Any, T]: ...
def resolve(
    func: Callable[..., Any], /, *, concurrent: bool = False, **values: Any
) -> Coroutine[Any, Any, Any]:
    """Call `func` with what its parameters depend on (:func:`Depends`); to be awaited.

    In a request, or within ``async with ResourceManager()``, the values of dependencies are made once for it, and those
    that clean up do so at its end. Elsewhere both is for this call alone.

    Where a dependency fails, those that this call has opened are closed at once, unless another call of the request
    may be using them.

    :param func: an async function; a generator, whose value is returned and which cleans up as a dependency does; any
        other function, which is called in a worker thread; or a class.
    :param concurrent: make what does not depend on each other at the same time: async functions, and functions in
        threads. Generators are entered in order in this task.
    :param values: for parameters of that name, or of that type, of `func` and all that it depends on.
    :return: what `func` returns.
    :raises DependencyError: a parameter gets no value, or one that does not live as long as what it is for.
    :raises DependencyCycleError: a function depends on itself.
    :raises ConfigurationTypeError: `func` is not callable.
    """
    functions = _functions if not _in_force else _functions_here()
    account = current_account.get()
    manager = innermost(account)
    solver = None
    if not values and not concurrent:
        solver = functions.simple.get(id(func))
    if solver is None:
        solver = functions.solver(func, values, manager, concurrent=concurrent)
    if manager is None:
        return _alone(solver, account, func, values)
    return solver(manager, account, func, values)


async def _alone(solver: Solver, account: Any, func: Any, values: Any) -> Any:
    manager = ResourceManager()
    manager.begin_block(account)
    try:
        made = await solver(manager, account, func, values)
    except BaseException as error:
        if not await manager.__aexit__(type(error), error, error.__traceback__):
            raise
        return None
    if not manager.end_empty_block():
        await manager.__aexit__(None, None, None)
    return made


Variants = dict[Any, Solver]


class _Functions:
    """The plans that there are, by function.

    :param overrides: what is called in the place of what.
    Everything is kept by the identity of the function, and does not outlive that. Of each function there is what solves
    it, by the names of the values that are given; where their types matter, by these too.

    :param outer: those that were in force before these, if any were.
    :ivar simple: those that solve functions without any values.
    :ivar over: whether these are in force no more.
    """

    def __init__(
        self, overrides: Overrides, caches: Caches, outer: _Functions | None = None
    ) -> None:
        self.outer = outer
        self.over = False
        self.simple: dict[int, Solver] = {}
        self._plans: dict[int, Variants] = {}
        self.overrides = overrides
        self._caches = caches
        self._mark = object()
        self._references: dict[int, Any] = {}
        self._methods: dict[int, Variants] = {}
        self._lock = RLock()

    def solver(
        self,
        func: Callable[..., Any],
        values: Mapping[str, Any],
        manager: ResourceManager | None,
        *,
        concurrent: bool,
    ) -> Solver:
        """What solves a function with these values.

        :raises ConfigurationTypeError: it is none.
        """
        variants = self._variants(func)
        names = tuple(values)
        solver = None if concurrent else variants.get(names)
        if solver is not None:
            return solver
        types = tuple(map(type, values.values()))
        variant = names, types, concurrent
        solver = variants.get(variant)
        if solver is not None:
            return solver
        known: Collection[str] = ()
        if manager is not None and manager.request is not None:
            known = manager.request.known()
        plan = make_plan(
            func,
            given=dict(zip(names, types, strict=True)),
            known=known,
            overrides=self.overrides,
            mark=self._mark,
        )
        return self._compiled(func, plan, variants, names, types, concurrent=concurrent)

    def prepare(self, func: Callable[..., Any], given: Mapping[str, type], missing: str) -> Plan:
        """The plan of a function for values of these types, which is carried out when it is resolved with such."""
        plan = make_plan(
            func, given=given, overrides=self.overrides, mark=self._mark, missing=missing
        )
        self._compiled(
            func,
            plan,
            self._variants(func),
            tuple(given),
            tuple(given.values()),
            concurrent=False,
        )
        return plan

    def _compiled(
        self,
        func: Callable[..., Any],
        plan: Plan,
        variants: Variants,
        names: tuple[str, ...],
        types: tuple[type, ...],
        *,
        concurrent: bool,
    ) -> Solver:
        variant = names, types, concurrent
        if concurrent or is_concurrent(plan):
            solver = join_plan(plan, self._caches, all_of_it=concurrent)
        else:
            solver = compile_plan(plan, self._caches, continuation(plan, self._caches))
        if len(variants) >= _MAX_VARIANTS:
            variants.clear()
        variants[variant] = solver
        if not concurrent and not plan.by_type:
            variants[names] = solver
            if not names and type(func) is not MethodType:
                self.simple[id(func)] = solver
        return solver

    def _variants(self, func: Callable[..., Any]) -> Variants:
        plans, function = self._plans, func
        if type(func) is MethodType:  # a new object each time
            plans, function = self._methods, func.__func__
        found = plans.get(id(function))
        if found is None:
            if not callable(func):
                raise ConfigurationTypeError("resolve(func)", func, "give a function.")
            with self._lock:
                found = plans.setdefault(id(function), {})
                self._keep(function)
        return found

    def _keep(self, function: Any) -> None:
        place = id(function)
        if place in self._references:
            return
        # More functions than any program has are lambdas, made for each request and kept alive by their own plans.
        while len(self._references) >= _MAX_FUNCTIONS:
            self._forget(next(iter(self._references)))
        try:
            self._references[place] = weakref.ref(function, lambda _: self._forget(place))
        except TypeError:  # it cannot be referred to weakly
            self._references[place] = function

    def _forget(self, place: int) -> None:
        self.simple.pop(place, None)
        self._plans.pop(place, None)
        self._methods.pop(place, None)
        self._references.pop(place, None)


_functions = _Functions({}, shared_caches)
_in_force: list[object] = []  # the overrides of all threads and tasks
_here: ContextVar[_Functions | None] = ContextVar("asgi_perfkit.resources.overrides", default=None)


def _functions_here() -> _Functions:
    here = _here.get()
    while here is not None and here.over:  # left in another context than they were entered in
        here = here.outer
    return _functions if here is None else here


def prepared(func: Callable[..., Any], given: Mapping[str, type], missing: str) -> Plan:
    """The plan for `func`, as it is carried out when it is resolved with values of these types; made here and now.

    :param given: the types, by the values' names in the order in which :func:`resolve` will be given them.
    :param missing: what to do about a parameter that gets no value.
    :raises DependencyError: as :func:`resolve`.
    """
    return _functions_here().prepare(func, given, missing)


def has_overrides() -> bool:
    """Whether something is called here in the place of something else."""
    return bool(_in_force) and bool(_functions_here().overrides)


@contextmanager
def dependency_overrides(
    overrides: Mapping[Callable[..., Any], Callable[..., Any]],
) -> Iterator[None]:
    """Call other functions in the place of dependencies; for tests.

    In the block, and in the tasks and threads that are started in it, ``Depends(a)`` means ``Depends(b)`` if
    `overrides` has ``{a: b}``. `b` has dependencies of its own; where it depends on `a`, that is `a` itself. What
    comes of what is replaced neither takes values that are kept for others nor leaves any.

    Overrides of an outer block stay in force. Outside of any such block they cost nothing. Where the block is left,
    they are in force no more, whichever task does so.

    :raises ConfigurationTypeError: it is no mapping, or of what cannot be called.
    """
    if not isinstance(overrides, Mapping):
        raise ConfigurationTypeError(
            "dependency_overrides(overrides)",
            overrides,
            "give a mapping, such as {get_db: fake_db}.",
        )
    outer = _functions_here()
    merged = dict(outer.overrides)
    given: Mapping[Any, Any] = overrides
    for call, replacement in given.items():
        if not callable(call) or not callable(replacement):
            raise ConfigurationTypeError(
                "dependency_overrides(overrides)",
                (call, replacement),
                "both are functions: what is depended on, and what is called in its place.",
            )
        merged[identity(call)] = replacement
    caches: Caches = WeakValueDictionary()
    functions = _Functions(merged, caches, outer)
    token = _here.set(functions)
    _in_force.append(token)
    try:
        yield
    finally:
        functions.over = True
        _in_force.remove(token)
        try:
            _here.reset(token)
        except ValueError:  # in another context, as with some fixtures of asynchronous tests
            pass
