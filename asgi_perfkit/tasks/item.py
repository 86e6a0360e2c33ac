"""One task: a function with its arguments, in the context it was added in."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextvars import Context, copy_context
from time import perf_counter_ns
from types import CoroutineType, FunctionType, coroutine
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.steps import Account, current_account
from asgi_perfkit.tasks.handoff import Engine, Handoff, as_handoff
from asgi_perfkit.threads.hop import new_call
from asgi_perfkit.threads.limiter import CALL, ThreadLimiter

__all__ = ["Item", "TaskList", "task_options"]


class task_options:  # noqa: N801  # used like a function
    """A function as a task, with options of its own: ``add_task(task_options(send_mail, timeout=10), user)``.

    :param func: the function, or any other callable; calling this calls it. If it has options already, these hold as
        well, as far as there are no others here.
    :param timeout: seconds after which the task is given up, counted from its start, not from when it was added. An
        async function is cancelled. A thread cannot be: its function is reported as timed out then, and waited for.
        It holds for a run here, and not for one elsewhere.
    :param handoff: an engine, or a :class:`Handoff` with options for one, to run the task there instead of here. True
        for that of the app (``BackgroundTaskMiddleware(handoff=...)``); None for that, too, if there is one and it
        knows the function; False to run it here.
    :raises ConfigurationTypeError: `func` is no function that a task can be made of, `timeout` is no number, or
        `handoff` no engine.
    :raises ConfigurationValueError: `timeout` is not above 0, or the engine does not know `func`.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        timeout: float | None = None,
        handoff: Engine | Handoff | bool | None = None,
    ) -> None:
        options = options_of(func)
        if options is not None:  # they hold where there are none here
            timeout = options.timeout if timeout is None else timeout
            handoff = options.handoff if handoff is None else handoff
            func = without_options(func)
        check_callable("task_options(func)", func)
        check_runs("task_options(func)", func)
        if timeout is not None:
            if type(timeout) not in (int, float):
                raise ConfigurationTypeError(
                    "task_options(timeout=...)", timeout, "give seconds, or None for no limit."
                )
            if not timeout > 0:
                raise ConfigurationValueError(
                    "task_options(timeout=...)", timeout, "give more than 0 seconds, or None."
                )
        if handoff is not None and not isinstance(handoff, bool):
            handoff = as_handoff("task_options(handoff=...)", handoff)
            handoff.check("task_options(func)", func)
        self.func: Callable[..., Any] = func
        self.timeout: float | None = timeout
        self.handoff: Handoff | bool | None = handoff
        functools.update_wrapper(self, func, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"task_options({self.func!r}, timeout={self.timeout!r}, handoff={self.handoff!r})"


class Item:
    """A task that waits for its turn, or has it.

    :ivar function: what is called.
    :ivar has_finished: whether its function, in a thread, has returned, though the task was cancelled meanwhile.
    :ivar error: what it has raised in that case.
    :ivar is_async: whether calling it gives a coroutine.
    :ivar context: the copy of the context it was added in, in which it runs.
    :ivar account: of the piece of work that added it, or what stands in for that when it has ended; None if it is not
        measured.
    :ivar added_ns: when it was added, on the monotonic clock.
    :ivar handoff: how it is handed to an engine; nothing, or False, to run it here. Until :meth:`direct` was called, as
        `task_options` has it.
    :ivar timeout: how many seconds it may take; None for as long as it likes.
    """

    __slots__ = (
        "account",
        "added_ns",
        "args",
        "context",
        "error",
        "function",
        "handoff",
        "has_finished",
        "is_async",
        "kwargs",
        "timeout",
    )

    def __init__(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.timeout: float | None = None
        self.handoff: Handoff | bool | None = None
        if type(function) is not FunctionType:  # most are such
            options = options_of(function)
            if options is not None:
                self.timeout = options.timeout
                self.handoff = options.handoff
                if function is not options and isinstance(self.handoff, Handoff):
                    self.handoff.check("add_task(func)", without_options(function))
                function = without_options(function)
            check_callable("add_task(func)", function)
        self.function = function
        self.is_async = is_async(function)
        if not self.is_async:
            check_runs("add_task(func)", function)
        self.has_finished = False
        self.error: BaseException | None = None
        self.args = args
        self.kwargs = kwargs
        self.context: Context = copy_context()
        self.account: Account | None = current_account.get()
        self.added_ns = perf_counter_ns()

    @property
    def name(self) -> str:
        """The function's module and name, or what its engine calls it."""
        name = self.handoff.name(self.function) if isinstance(self.handoff, Handoff) else None
        return name or name_of(self.function)

    def direct(self, default: Handoff | None) -> None:
        """Decide whether it is handed to an engine, and to which.

        :param default: the app's.
        :raises ConfigurationValueError: it must be handed to that, and there is none, or that does not know the
            function.
        """
        if self.handoff is True:
            if default is None:
                raise ConfigurationValueError(
                    "task_options(handoff=...)",
                    True,
                    "the app has no engine: give it one with BackgroundTaskMiddleware(handoff=...), or name it here.",
                )
            default.check("task_options(func)", self.function)
            self.handoff = default
        elif self.handoff is None and default is not None and default.knows(self.function):
            self.handoff = default

    def let_go(self) -> None:
        """Hold nothing of the piece of work that has added it, if that has ended."""
        account = self.account
        if account is not None:
            lasting = account.outlasting()
            if lasting is not account:
                self.account = lasting
                self.context.run(current_account.set, lasting)

    def describe(self) -> str:
        """The call with the types of its arguments; their values may be secrets."""
        arguments = [type(argument).__qualname__ for argument in self.args]
        arguments += [f"{name}={type(value).__qualname__}" for name, value in self.kwargs.items()]
        return f"{self.name}({', '.join(arguments)})"

    def begin(self) -> Awaitable[None] | None:
        """Run an async function as far as it goes without waiting.

        :return: what is left of it; None if it is done.
        :raises: what it raises.
        """
        run = self.context.run
        if self.kwargs:
            work = run(self.function, *self.args, **self.kwargs)
        else:
            work = run(self.function, *self.args)
        if type(work) is not CoroutineType:
            return in_context(work, self.context)
        try:
            yielded = run(work.send, None)
        except StopIteration:
            return None
        return _rest_in_context(work, self.context, yielded)

    def start(self, limiter: ThreadLimiter | None) -> Awaitable[None]:
        """Run the task: an async function here, any other in a worker thread.

        :raises: what calling an async function raises, before it is a coroutine.
        """
        if self.is_async:
            context = self.context
            return in_context(context.run(self.function, *self.args, **self.kwargs), context)
        return self._call_in_thread(limiter)

    async def _call_in_thread(self, limiter: ThreadLimiter | None) -> None:
        call = new_call(self.context, CALL, self.function, self.args, self.kwargs, limiter=limiter)
        cancelled = await call.run()
        if cancelled is not None:
            self.has_finished = call.error is None
            self.error = call.error
            try:
                raise cancelled
            finally:
                del cancelled  # its traceback holds this frame
        value = call.result(None)
        if hasattr(type(value), "__await__"):  # a lambda around a coroutine function, for one
            await in_context(awaited(value), self.context)


Forward = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], None]


class TaskList:
    """Tasks that are run together.

    :ivar batch_size: how many run at the same time.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._items: list[Item] = []
        self._forward: Forward | None = None

    def __len__(self) -> int:
        return len(self._items)

    def add_task(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Add a function, sync or async, with its arguments; it runs in a copy of the context that it is added in.

        What is added after the list was given to :func:`add_task` is added to the same request, behind it.

        :raises ConfigurationTypeError: `func` is not callable.
        """
        if self._forward is not None:
            self._forward(func, args, kwargs)
        else:
            self._items.append(Item(func, args, kwargs))

    def direct(self, default: Handoff | None) -> None:
        """Decide for each task whether it is handed to an engine; see :meth:`Item.direct`."""
        for item in self._items:
            item.direct(default)

    def take(self, forward: Forward | None = None) -> Iterator[list[Item]]:
        """Take the tasks out, in the groups that run at the same time.

        :param forward: is given the function, arguments and keyword arguments of what is added from now on.
        """
        items, self._items = self._items, []
        self._forward = forward
        for first in range(0, len(items), self.batch_size):
            yield items[first : first + self.batch_size]


def options_of(function: object) -> task_options | None:
    """The options of a function, or of that of a partial; None if it has none."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if isinstance(function, task_options) else None


def without_options(function: Any) -> Callable[..., Any]:
    """A function that has options, or the partial of one, as it would be without."""
    if isinstance(function, functools.partial):
        return functools.partial(
            without_options(function.func), *function.args, **function.keywords
        )
    inner: Callable[..., Any] = function.func
    return inner


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True  # most are such, and `inspect` takes five times as long
    if inspect.iscoroutinefunction(function):
        return True
    if isinstance(function, functools.partial):
        return is_async(function.func)
    if inspect.isroutine(function) or inspect.isclass(function):
        return False
    return inspect.iscoroutinefunction(type(function).__call__)


def name_of(function: object) -> str:
    """The module and the name of a function, a method, a partial or another callable."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        named = function if hasattr(function, "__qualname__") else type(function)
        name: str = named.__qualname__
        module = getattr(named, "__module__", None)
    except Exception:  # of a proxy, for one, that has nothing behind it where this is asked
        return type(function).__qualname__
    return name if module is None else f"{module}.{name}"


def check_callable(subject: str, function: object) -> None:
    """Refuse what no task can be made of.

    :raises ConfigurationTypeError: so it is.
    """
    if callable(function):
        return
    remedy = "give a function, and its arguments behind it."
    if inspect.iscoroutine(function):
        function.close()  # or Python warns that it was never awaited
        remedy = "that function has been called already; give it and its arguments: (send, user) for send(user)."
    raise ConfigurationTypeError(subject, function, remedy)


def check_runs(subject: str, function: object) -> None:
    """Refuse a generator function, of which a call runs nothing.

    :raises ConfigurationTypeError: so it is.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationTypeError(
            subject,
            function,
            "calling a generator function runs nothing; give one that does the work.",
        )


async def awaited(awaitable: Awaitable[object]) -> None:
    """As a coroutine."""
    await awaitable


@coroutine
def in_context(work: Any, context: Context) -> Generator[Any, Any, None]:
    """Await the coroutine `work`, taking each of its steps in `context`."""
    try:
        yielded = context.run(work.send, None)
    except StopIteration:
        return
    yield from _rest_in_context(work, context, yielded)


@coroutine
def _rest_in_context(work: Any, context: Context, yielded: Any) -> Generator[Any, Any, None]:
    """Await `work`, whose first step has `yielded` something already."""
    run = context.run
    while True:
        try:
            argument = yield yielded
            resume = work.send
        except GeneratorExit:
            run(work.close)
            raise
        except BaseException as thrown:
            # This frame is not where it comes from; and thrown in after this block, so that it is not its own context.
            argument = thrown.with_traceback(thrown.__traceback__ and thrown.__traceback__.tb_next)
            resume = work.throw
        try:
            yielded = run(resume, argument)
        except StopIteration:
            return
        finally:
            argument = None
