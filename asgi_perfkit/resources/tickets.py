"""Values that are made once: who asks while one is being made waits for it.

Whoever makes a value puts its ticket in the value's place first, and the value there when it is made. That is all it
costs as long as nobody else asks, and so it is done for each dependency of each request.

Who asks for what it is making itself would wait for ever, and that is told. What is being made around the running code
is not noted beforehand, but found when somebody is about to wait: in the frames of the task, and in the context of
what has begun it, for some. A ticket that somebody waits for knows what its making waits for; a way from there back to
what is made here is a circle.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from contextvars import ContextVar, Token
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, TypeVar

from asgi_perfkit.exceptions import DependencyCycleError
from asgi_perfkit.resources.signatures import name_of
from asgi_perfkit.steps.loop import asyncio_loop
from asgi_perfkit.tasks.loop import Flag
from asgi_perfkit.tasks.running import running_loop

__all__ = ["ABSENT", "RESOLVE", "Making", "Ticket", "joined", "made_around", "makes"]

ABSENT: Final[Any] = object()
"""Stands where there is no value; None is one."""

RESOLVE: Final = "<asgi_perfkit.resolve>"
"""The name of the file that the code of plans would be in."""

Values = dict[Hashable, Any]
Function = TypeVar("Function", bound=Callable[..., Any])


class Ticket(list[Flag]):
    """Of somebody who makes values, one after the other or several at once: the flags of those who wait for one.

    :ivar failures: by key, what was raised instead, with its traceback and context; not set as a rule.
    :ivar name: of what somebody waits for.
    :ivar waits_for: what its making waits for, if somebody waits for something; the same ticket once for each.
    """

    __slots__ = ("failures", "name", "waits_for")

    name: str
    waits_for: list[Ticket]
    failures: dict[Hashable, tuple[BaseException, TracebackType | None, BaseException | None]]

    def wake(self) -> None:
        """Let all look whether what they wait for is there."""
        flags = list(self)
        self.clear()
        for flag in flags:
            flag.set()

    def fail(self, values: Values, key: Hashable, error: BaseException) -> None:
        """Tell those who wait for `key` of an `error`; if it is this ticket that stands there.

        A cancellation is not theirs: the next of them makes the value.
        """
        if values.get(key) is not self:
            return
        del values[key]
        if self:
            if isinstance(error, Exception):
                if not hasattr(self, "failures"):
                    self.failures = {}
                self.failures[key] = error, error.__traceback__, error.__context__
            self.wake()


class Making:
    """A value that is being made.

    :param label: what it is.
    :param show: makes of that what a user calls it.
    :ivar outer: within the making of what.
    """

    __slots__ = ("_label", "_show", "outer", "ticket")

    def __init__(self, ticket: Ticket, label: object, show: Callable[[Any], str]) -> None:
        self.ticket = ticket
        self._label = label
        self._show = show
        self.outer = made_around.get()

    @property
    def name(self) -> str:
        return self._show(self._label)

    def end(self, token: Token[Making | None]) -> None:
        """Note that it is over.

        :param token: of `made_around`.
        """
        with suppress(ValueError):  # closed by a garbage collection, in another context
            made_around.reset(token)


made_around: ContextVar[Making | None] = ContextVar("asgi_perfkit.resources.making", default=None)
"""What the running code is part of the making of, for those makings that note it: in the tasks that they start, too."""

_makers: set[CodeType] = set()


def makes(function: Function) -> Function:
    """A function whose frame makes a value while it has a local variable `making`."""
    _makers.add(function.__code__)
    return function


async def joined(values: Values, key: Hashable, name: str | None = None) -> Any:
    """The value of `key`, once it is made; ABSENT if the caller is to make it.

    :param name: what a user calls it; that of the function in `key` if None.
    :raises DependencyCycleError: it is being made by who asks.
    :raises: what was raised when it was made.
    """
    around = list(_makings())
    while type(ticket := values.get(key, ABSENT)) is Ticket:
        ticket.name = _name_of(key) if name is None else name
        _refuse_circle(ticket, around)
        flag = running_loop().flag()
        ticket.append(flag)
        for each, _ in around:
            if not hasattr(each, "waits_for"):
                each.waits_for = []
            each.waits_for.append(ticket)
        try:
            await flag.wait()
        finally:
            for each, _ in around:
                each.waits_for.remove(ticket)
            if flag in ticket:
                ticket.remove(flag)
        failures = getattr(ticket, "failures", None)
        if failures is not None and key in failures:
            error, traceback, context = failures[key]
            try:
                raise error.with_traceback(traceback)
            finally:
                error.__context__ = context
                del error, traceback, context, failures
    return ticket


def _refuse_circle(asked: Ticket, around: list[tuple[Ticket, str]]) -> None:
    came_from: dict[int, Ticket | None] = {id(asked): None}
    pending = [asked]
    while pending:
        ticket = pending.pop()
        for number, (each, name) in enumerate(around):
            if each is ticket:
                way = [name]
                step = came_from[id(ticket)]
                while step is not None:
                    way.insert(0, step.name)
                    step = came_from[id(step)]
                raise DependencyCycleError([name for _, name in around[number::-1]] + way)
        for next_one in getattr(ticket, "waits_for", ()):
            if id(next_one) not in came_from:
                came_from[id(next_one)] = ticket
                pending.append(next_one)


def _makings() -> Iterator[tuple[Ticket, str]]:
    """What is being made around the running code, the innermost first: by which ticket, and what it is called."""
    seen = set()
    root = _root_frame()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _makers:
            making = frame.f_locals.get("making")
            if making is not None:
                seen.add(id(making))
                yield making.ticket, making.name
        elif frame.f_code.co_filename == RESOLVE:
            yield from _made_by_plan(frame.f_locals, frame.f_globals)
        frame = None if frame is root else frame.f_back
    noted = made_around.get()
    while noted is not None:
        if id(noted) not in seen:
            yield noted.ticket, noted.name
        noted = noted.outer


def _root_frame() -> FrameType | None:
    """The outermost one of the task: what is beyond is not waited for. A task that starts eagerly stands on others."""
    if asyncio_loop() is not None:
        task = asyncio.current_task()
        coroutine: Any = None if task is None else task.get_coro()
    else:
        coroutine = sys.modules["trio"].lowlevel.current_task().coro
    frame: FrameType | None = getattr(coroutine, "cr_frame", None)
    return frame


def _made_by_plan(found: dict[str, Any], names: dict[str, Any]) -> Iterator[tuple[Ticket, str]]:
    """The same for the code of a plan: see `code.py`."""
    if "made" in found:  # the first plan of a request, which has no ticket before somebody asks
        manager, shared = found["manager"], found["shared"]
        if not shared and manager.spare is None:
            manager.spare = Ticket()
        elif shared and all(value is not shared[0] for value in manager.solved.values()):
            return  # the rest is made as in other plans
        for number, value in enumerate(found["made"]):
            if value is ABSENT:
                yield shared[0] if shared else manager.spare, names[f"n{number}"]
                break
    elif "ticket" in found:
        homes = found["solved"], found["app"].solved if "app" in found else {}
        if any(home.get(found["key"]) is found["ticket"] for home in homes):
            yield found["ticket"], _name_of(found["key"])


def _name_of(key: Any) -> str:
    """What a user calls that which a value is kept by: the function in the key."""
    while type(key) is tuple:  # with the values that it is made of, or behind the mark of overrides
        key = key[0] if callable(key[0]) or type(key[0]) is tuple else key[1]
    return name_of(key)
