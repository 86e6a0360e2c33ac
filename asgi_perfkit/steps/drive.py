"""Drives a coroutine by hand, one step at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from time import perf_counter_ns
from types import CoroutineType, coroutine
from typing import Any, TypeVar

from asgi_perfkit.steps.account import Account

__all__ = ["drive"]

T = TypeVar("T")


@coroutine
def drive(work: Awaitable[T], account: Account, started_ns: int) -> Generator[Any, Any, T]:
    """Await `work`, charging each of its steps to `account`.

    It behaves as ``await work`` does: what the loop sends or throws in arrives inside, what `work` yields, returns
    or raises comes out, the same objects; closing it closes `work`.

    :param work: a coroutine, or any other awaitable.
    :param account: charged with every step. Its observers are told of each.
    :param started_ns: where the first step began (`time.perf_counter_ns`), so that what the caller did to make
        `work` counts.
    """
    if type(work) is not CoroutineType:
        work = _as_coroutine(work)
    send = resume = work.send
    # What the next step is resumed with: a value for `send`, an exception for `throw`.
    argument: Any = None
    observers = account.observers
    while True:
        account.stepping = True
        if observers:
            for observer in observers:
                observer.step_started(account)
            started_ns = perf_counter_ns()
        try:
            yielded = resume(argument)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            duration_ns = perf_counter_ns() - started_ns
            account.stepping = False
            account.loop_ns += duration_ns
            if duration_ns > account.longest_ns:
                account.longest_ns = duration_ns
            if observers:
                for observer in observers:
                    observer.step_ended(account, duration_ns)
            # An exception that was thrown in holds this frame through its traceback: do not hold it in turn.
            argument = None
        try:
            argument = yield yielded
            resume = send
        except BaseException as thrown:
            # Thrown in after this block has ended: inside it, `thrown` would be the exception being handled, and
            # show in the `__context__` of whatever the work raises. This frame is not where it comes from.
            argument = thrown.with_traceback(thrown.__traceback__ and thrown.__traceback__.tb_next)
            resume = work.throw
        if isinstance(argument, GeneratorExit) and resume is not send:
            try:
                started_ns = account.enter_step()
                try:
                    work.close()
                finally:
                    account.leave_step(started_ns)
                raise argument
            finally:
                argument = None
        # What is yielded is often a future that holds a result, perhaps a large one.
        del yielded
        observers = account.observers
        started_ns = perf_counter_ns()


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
