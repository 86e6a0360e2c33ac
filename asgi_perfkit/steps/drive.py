"""Drives a coroutine by hand, one step at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from types import CoroutineType
from typing import Any, Protocol

from asgi_perfkit.steps.account import Account

__all__ = ["DONE", "DrivenAccount", "Owner"]


class Owner(Protocol):
    """Who has the work of an account done."""

    def work_ended(self, account: Any, error: BaseException | None) -> None:
        """The work has returned or has raised `error`; neither has come out yet. Called once, behind the last step."""


class DrivenAccount(Account):
    """An account that drives its own work, with each step charged; what comes `afterwards` is the last part of it.

    :meth:`begin` runs the first step, which is the only one of work that never waits; for the others await what it
    returns. The two together are ``await work``: what the loop sends or throws in arrives inside, what the work
    yields or raises comes out, the same objects; closing closes the work.

    It is the account that is awaited, and not a coroutine beside it: work that waits keeps a quarter of a kilobyte
    less, and work that never does makes none.

    :ivar owner: told of the end of the work.
    :ivar started_ns: where the first step begins, so that what the caller did to make the work counts.
    :ivar first: what the work has yielded in its first step, until that is handed on; what it has returned in it.
    """

    __slots__ = ("_work", "first", "owner", "started_ns")

    def __init__(self, owner: Owner, started_ns: int) -> None:
        super().__init__()
        self.owner = owner
        self.started_ns = started_ns
        self.first: Any = None

    def begin(self, work: Awaitable[Any]) -> Awaitable[Any]:
        """Take on `work`, a coroutine or any other awaitable, and run its first step.

        :return: what to await at once, in the same task: this account, or :data:`DONE` if nothing is left.
        """
        if type(work) is not CoroutineType:
            work = _as_coroutine(work)
        self._work: Coroutine[Any, Any, Any] = work
        started_ns = self.enter_step() if self.observers else self.started_ns
        self.stepping = True
        over = True
        ended: BaseException | None = None
        try:
            self.first = work.send(None)
            over = False
        except StopIteration as stop:
            self.first = stop.value
        except BaseException as error:
            if self.afterwards is None:
                self.leave_step(started_ns)
                self.owner.work_ended(self, error)
                raise
            ended = error
        if over:
            if self.afterwards is None:
                self.leave_step(started_ns)
                self.owner.work_ended(self, None)
                return DONE
            try:
                self.first = self._go_on(started_ns, ended)
            except StopIteration:
                return DONE
            finally:
                del ended  # its traceback holds this frame
        else:
            self.leave_step(started_ns)
        self.stepping = None  # that is: `first` is to be handed on
        return self

    def works_here(self) -> bool:
        """Whether the running code is in the task that drives the work, and not in a child task."""
        work: Any = self._work  # a coroutine of the language's own, all of which have it
        running: bool = work.cr_running
        return running

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]  # an iterator with `send`, `throw` and `close` is what it takes

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        if self.stepping is None:
            self.stepping = False
            first, self.first = self.first, None
            return first
        return self._step(self._work.send, value)

    def throw(self, *exception: Any) -> Any:
        try:
            return self._step(self._work.throw, *exception)
        finally:
            del exception  # it holds this frame

    def close(self) -> None:
        afterwards, self.afterwards = self.afterwards, None
        self._step(self._work.close)
        if afterwards is not None:  # it does what needs no waiting
            with suppress(StopIteration, GeneratorExit):
                rest = afterwards(GeneratorExit())
                rest.send(None)
                rest.close()
        self.owner.work_ended(self, GeneratorExit())

    def _step(self, resume: Callable[..., Any], *arguments: Any) -> Any:
        started_ns = self.enter_step()
        try:
            yielded = resume(*arguments)
        except BaseException as error:
            del arguments  # an exception that was thrown in holds this frame
            if self.afterwards is None:
                self.leave_step(started_ns)
                self.owner.work_ended(self, None if type(error) is StopIteration else error)
                raise
            ended = None if type(error) is StopIteration else error
        else:
            self.leave_step(started_ns)
            return yielded
        try:  # no exception is being handled here, as none would be if the work went on itself
            return self._go_on(started_ns, ended)
        finally:
            del ended

    def _go_on(self, started_ns: int, error: BaseException | None) -> Any:
        """Within a step in which the work has returned or raised `error`, begin what comes :attr:`afterwards`."""
        afterwards, self.afterwards = self.afterwards, None
        assert afterwards is not None
        self._work = afterwards(error)
        try:
            yielded = self._work.send(None)
        except BaseException as raised:
            self.leave_step(started_ns)
            self.owner.work_ended(self, None if type(raised) is StopIteration else raised)
            raise
        finally:
            del error  # its traceback may hold this frame
        self.leave_step(started_ns)
        return yielded


class _Done:
    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


DONE: Awaitable[None] = _Done()
"""Nothing is left to await. It may be awaited all the same."""


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
