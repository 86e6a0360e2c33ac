"""Values that are made once: who asks while one is being made waits for it.

Whoever makes a value puts its ticket in the value's place first, and the value there when it is made. That is all it
costs as long as nobody else asks, and so it is done for each dependency of each request.
"""

from __future__ import annotations

from collections.abc import Hashable
from types import TracebackType
from typing import Any, Final

from asgi_perfkit.tasks.loop import Flag
from asgi_perfkit.tasks.running import running_loop

__all__ = ["ABSENT", "Ticket", "joined"]

ABSENT: Final[Any] = object()
"""Stands where there is no value; None is one."""

Values = dict[Hashable, Any]


class Ticket(list[Flag]):
    """Of somebody who makes values, one after the other or several at once: the flags of those who wait for one.

    :ivar failures: by key, what was raised instead, with its traceback and context; not set as a rule.
    """

    __slots__ = ("failures",)

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


async def joined(values: Values, key: Hashable) -> Any:
    """The value of `key`, once it is made; ABSENT if the caller is to make it.

    :raises: what was raised when it was made.
    """
    while type(ticket := values.get(key, ABSENT)) is Ticket:
        flag = running_loop().flag()
        ticket.append(flag)
        try:
            await flag.wait()
        finally:
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
