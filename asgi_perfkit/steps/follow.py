"""Charges the tasks that a piece of work starts to the account of that work.

A task starts with a copy of the context of whoever starts it, so the account is found in the new task's context. On
asyncio and uvloop a task factory looks there; on trio an instrument does. Tasks started outside of any work are made
exactly as they would be without the kit.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

from asgi_perfkit.steps.account import Account, current_account

__all__ = ["follow_children"]


def follow_children() -> None:
    """Follow the child tasks of all accounts on the running loop, from now on.

    Calling it again on the same loop changes nothing. A task factory that is already set goes on making the tasks.

    :raises RuntimeError: no loop is running, neither asyncio's nor trio's.
    """
    loop = asyncio._get_running_loop()
    if loop is not None:
        set_before: Any = loop.get_task_factory()
        if isinstance(getattr(set_before, "__self__", None), FollowingTaskFactory):
            return
        construct = _constructor_of(set_before)
        if construct is None:
            loop.set_task_factory(FollowingTaskFactory(set_before).make_task)
        elif not isinstance(construct, _FollowingConstructor):
            loop.set_task_factory(_create_eager_task_factory(_FollowingConstructor(construct)))
        return
    if "trio" not in sys.modules:
        raise RuntimeError(
            "follow_children() needs a running asyncio or trio loop; call it from a coroutine."
        )
    from asgi_perfkit.steps.follow_trio import follow_children_on_trio

    follow_children_on_trio()


class FollowingTaskFactory:
    """Makes the tasks of asyncio and uvloop; each step of a child is charged to its parent's account.

    :param set_before: the factory that was set before; it makes the tasks still. None stands for the loop's own way.
    """

    __slots__ = ("_set_before",)

    def __init__(self, set_before: Callable[..., asyncio.Future[Any]] | None) -> None:
        self._set_before = set_before

    def make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Future[Any]:
        """What the loop calls, for every task."""
        followed = _followed(coro, options)
        if followed is not None:
            return _showing(self._make(loop, followed, **options), coro)
        return self._make(loop, coro, **options)

    def _make(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Future[Any]:
        if self._set_before is not None:
            return self._set_before(loop, coro, **options)
        task = _Task(coro, loop=loop, **options) if options else _Task(coro, loop=loop)
        # In debug mode: where the task was made, which is not here.
        frames = getattr(task, "_source_traceback", None)
        while frames and frames[-1].filename == __file__:
            del frames[-1]
        return task


class _FollowingConstructor:
    """Makes the tasks of asyncio's own eager task factory, as :class:`FollowingTaskFactory` does for others.

    :param construct: what makes them otherwise.
    """

    __slots__ = ("_construct",)

    def __init__(self, construct: Callable[..., asyncio.Future[Any]]) -> None:
        self._construct = construct

    def __call__(
        self, coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **options: Any
    ) -> asyncio.Future[Any]:
        followed = _followed(coro, options)
        if followed is not None:
            return _showing(self._construct(followed, **options), coro)
        return self._construct(coro, **options)


# anyio knows asyncio's eager factory by its code, and starts its own tasks otherwise there. So in its place there has
# to be another such factory, and not one that calls it.
_create_eager_task_factory: Any = getattr(asyncio, "create_eager_task_factory", None)  # 3.12
_eager_code = getattr(getattr(asyncio, "eager_task_factory", None), "__code__", None)


def _constructor_of(factory: Any) -> Callable[..., asyncio.Future[Any]] | None:
    """What makes the tasks of asyncio's eager task factory; None if `factory` is not such a one."""
    if _eager_code is None or getattr(factory, "__code__", None) is not _eager_code:
        return None
    construct: Callable[..., asyncio.Future[Any]] = factory.__closure__[0].cell_contents
    return construct


def _followed(coro: Any, options: dict[str, Any]) -> FollowedCoroutine | None:
    """The stand-in for `coro`, if its steps are to be charged to somebody."""
    context: Context | None = options.get("context") if options else None
    account = current_account.get() if context is None else context.get(current_account)
    if account is None or account.closed or not asyncio.iscoroutine(coro):
        return None  # what is no coroutine is for the task to refuse
    followed = coro
    for charged in account.lineage():
        followed = FollowedCoroutine(followed, charged)
    return followed  # type: ignore[return-value]  # the account itself is open


def _showing(task: asyncio.Future[Any], coro: Any) -> asyncio.Future[Any]:
    """Let `task` show `coro` in place of its stand-in.

    Who asks a task for its coroutine (anyio does, to see whether it has started) gets the very one. A task class
    without room for the attribute answers with the stand-in, which shows the coroutine's own attributes.
    """
    with contextlib.suppress(AttributeError):
        task.get_coro = lambda: coro  # type: ignore[attr-defined]  # a future has none
    return task


if sys.version_info[:2] == (3, 13):

    class _Task(asyncio.Task[Any]):
        """The loop of the first releases of 3.13 names a nameless task "None" where a task factory is set."""

        __module__ = asyncio.Task.__module__
        __qualname__ = asyncio.Task.__qualname__

        def set_name(self, value: object, /) -> None:
            if value is not None:
                super().set_name(value)

    _Task.__name__ = asyncio.Task.__name__  # as it shows in a task's repr
else:
    _Task = asyncio.Task


class FollowedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are charged to an account until that account is closed.

    It shows every attribute of the coroutine that it stands for, so that tracebacks, ``repr`` and
    ``Task.get_stack()`` show the code of the user.
    """

    __slots__ = ("_account", "_coro")

    def __init__(
        self, coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any], account: Account
    ) -> None:
        self._coro = coro
        self._account: Account | None = account

    def send(self, value: Any) -> Any:
        account = self._charged_account()
        if account is None:
            return self._coro.send(value)
        started_ns = account.enter_step()
        try:
            return self._coro.send(value)
        finally:
            account.leave_step(started_ns)

    def throw(self, *exception: Any) -> Any:
        account = self._charged_account()
        started_ns = 0 if account is None else account.enter_step()
        try:
            return self._coro.throw(*exception)
        finally:
            del exception  # it holds this frame
            if account is not None:
                account.leave_step(started_ns)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # an iterator with `send`, `throw` and `close` is what it takes

    def __iter__(self) -> FollowedCoroutine:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)

    def _charged_account(self) -> Account | None:
        account = self._account
        if account is None or account.stepping:
            return None
        if account.closed:
            self._account = (
                None  # a task may live for as long as the process: let go of the request
            )
            return None
        return account
