"""What is entered in one task and left in another: both in one context, which is that of neither.

A context variable can be reset only in the very :class:`contextvars.Context` in which it was set, and before Python
3.12 nothing gives that of an asyncio task away. So what is entered in another task than the one that will close it is
run in a context of its own from the beginning. What the enter sets is set in the task that asked, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import suppress
from contextvars import Context, ContextVar, Token, copy_context
from functools import partial
from types import coroutine
from typing import Any

__all__ = ["EAGER", "Apart", "adopt", "starts_tasks_at_once"]

_UNSET: Any = object()

EAGER: Any = getattr(getattr(asyncio, "eager_task_factory", None), "__code__", None)
"""The code of asyncio's eager task factories; None before Python 3.12."""


class Apart:
    """An exit in a context of its own, in which it is entered as well.

    For the generator of a dependency it stands in the generator's place: what advances that advances this.

    :param exit: how it is left.
    """

    __slots__ = ("_context", "_undo", "exit")

    def __init__(self, exit: Any) -> None:  # noqa: A002  # it is what it is
        self.exit = exit
        self._context = copy_context()
        self._undo: list[Token[Any]] = []

    async def enter(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Await what `function` returns, in the context, and set here what that has set."""
        value = await _driven(self._context, _awaited(function, *args))
        self._undo = adopt(self._context)
        return value

    def __anext__(self) -> Awaitable[Any]:
        return self.enter(self.exit.__anext__)

    def __next__(self) -> Any:
        value = self._context.run(next, self.exit)
        self._undo = adopt(self._context)
        return value

    async def leave(
        self, work: Coroutine[Any, Any, bool], carried: Iterable[ContextVar[Any]]
    ) -> bool:
        """Await `work`, in the context. Where that is in the context of who entered it, what was set there is undone.

        :param carried: variables that have the values which they have here.
        """
        for var in carried:
            self._context.run(var.set, var.get())
        try:
            suppressed: bool = await _driven(self._context, work)
            return suppressed
        finally:
            undo, self._undo = self._undo, []
            for token in reversed(undo):
                with suppress(ValueError):  # it was set in another context, as a rule
                    token.var.reset(token)


def adopt(context: Context) -> list[Token[Any]]:
    """Set here what was set in `context`; returns how to undo it."""
    return [var.set(value) for var, value in context.items() if var.get(_UNSET) is not value]


def starts_tasks_at_once() -> bool:
    """Whether a child task may run within a step of the one that has started it, which no coroutine shows."""
    loop = asyncio._get_running_loop()
    return loop is not None and getattr(loop.get_task_factory(), "__code__", None) is EAGER


async def _awaited(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return await function(*args)


@coroutine
def _driven(context: Context, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await `work`, each step of it in `context`."""
    step: Callable[[], Any] = partial(work.send, None)
    while True:
        try:
            waits_for = context.run(step)
        except StopIteration as stop:
            return stop.value
        finally:
            del step  # it may hold an exception whose traceback holds this frame
        try:
            sent = yield waits_for
        except GeneratorExit:
            context.run(work.close)
            raise
        except BaseException as error:
            step = partial(work.throw, error)
        else:
            step = partial(work.send, sent)
