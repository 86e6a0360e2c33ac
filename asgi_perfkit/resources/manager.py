"""What a request, or a piece of code, holds open."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar, Token, copy_context
from types import AsyncGeneratorType, GeneratorType, MethodType, TracebackType
from typing import Any, Final, Protocol, TypeVar, overload
from weakref import ref

from asgi_perfkit.caching.request import RequestScopedCache
from asgi_perfkit.exceptions import ConfigurationTypeError, ResourcesClosedError
from asgi_perfkit.resources.apart import EAGER, Apart, adopt, starts_tasks_at_once
from asgi_perfkit.resources.exits import (
    AsyncCallback,
    Callback,
    Exit,
    ThreadExit,
    ThreadManager,
    seconds_in_force,
)
from asgi_perfkit.resources.leaving import leave_all
from asgi_perfkit.resources.limits import Limit, Region, checked_timeout
from asgi_perfkit.resources.shield import shielded
from asgi_perfkit.resources.tickets import ABSENT, Making, Ticket, joined, made_around, makes
from asgi_perfkit.steps import Account, current_account, on_event_loop
from asgi_perfkit.steps.drive import DrivenAccount
from asgi_perfkit.steps.loop import on_trio

__all__ = ["NOTHING_SOLVED", "Request", "ResourceManager", "innermost", "not_yielded"]

T = TypeVar("T")

Mark = tuple[int, int, int]

NOTHING_SOLVED: Final[dict[Hashable, Any]] = {}  # nothing is ever put into this one


class Request(Protocol):
    """What resources are for, and what it knows."""

    def known(self) -> Mapping[str, Any]:
        """Values for parameters, by name."""

    def app(self) -> ResourceManager:
        """The resources of the application's lifetime."""


class ResourceManager:
    """Holds resources open, and closes them in the reverse order.

    As ``async with ResourceManager() as resources:`` it closes them at the end of the block, and what runs in the block
    finds it with :func:`current_resources`. An exception that leaves the block is thrown into them, as nested ``with``
    statements would have it; one of them may suppress it. Otherwise :meth:`aclose` closes it.

    Once the closing has begun it comes to its end: a cancellation shows behind it, whether it is asyncio's, that of a
    time-out, or of a scope of anyio or trio. All resources are closed, even if some fail.

    A resource is entered in the task that asks for it. What must be exited in the same task (task groups, cancel
    scopes) is to be entered in the one that closes the manager; on trio, within ``async with``. What is entered in
    another one runs in a context of its own, enter and exit alike, so that the exit may reset the context variables
    which the enter has set; these are set where it was asked for, too.

    :param close_timeout: how long each resource may take to close (seconds, monotonic); None for any time, or within
        a closing that has a limit, that one. Then it is cancelled, and waited for, and it counts as one that has failed
        to close, with a :class:`CleanupTimeoutError`; one in a worker thread is left behind there. The others are
        closed all the same.
    :raises ConfigurationError: `close_timeout` is neither None nor a number above 0.
    """

    __slots__ = (
        "__weakref__",
        "_account",
        "_cache",
        "_closing",
        "_named",
        "_token",
        "active",
        "begun",
        "close_timeout",
        "closed",
        "exits",
        "home",
        "ledger",
        "region",
        "request",
        "solved",
        "spare",
    )

    def __init__(self, *, close_timeout: float | None = None) -> None:
        # Much is set at once, and little made: outside of requests each resolution makes a manager.
        self.close_timeout = (
            close_timeout
            if close_timeout is None
            else checked_timeout("ResourceManager", close_timeout)
        )
        self.exits: list[Exit] = []
        self.closed = self._closing = False
        self.active = self.begun = 0  # resolutions that run, and that ever began
        self.solved = NOTHING_SOLVED  # the dependencies' values, by what they are made of
        self.ledger: Any = None  # what the first resolution has made, as long as it is alone
        self.spare: Ticket | None = None  # its ticket, if it has to wait for something while it is
        self.request: Request | None = None  # what it is for
        self.home: DrivenAccount | None = None  # the work whose last part the closing is
        self.region: Region | None = None  # on trio, what is around everything
        self._account: ref[Account] | None = None  # a task in whose context it is may wait for long
        self._token: Token[ResourceManager | None] | None = None
        self._cache: RequestScopedCache | None = None
        self._named: dict[Hashable, Any] | None = None

    @property
    def cache(self) -> RequestScopedCache:
        """Values for as long as the manager is open; made at the first use."""
        if self._cache is None:
            self._cache = RequestScopedCache()
        return self._cache

    @overload
    async def enter(self, cm: AbstractAsyncContextManager[T, Any]) -> T: ...
    @overload
    async def enter(self, cm: AbstractContextManager[T, Any]) -> T: ...
    async def enter(self, cm: Any) -> Any:
        """Enter a context manager, to be exited at the end.

        :param cm: an asynchronous one, or a blocking one: that is entered and exited in worker threads, as
            :func:`contextmanager_in_threadpool` does it.
        :return: what entering it gives.
        :raises ConfigurationTypeError: `cm` is no context manager.
        :raises ResourcesClosedError: the manager is closed, or was so when the entering came to its end: then `cm` has
            been exited again.
        """
        self._check_open()
        kind = type(cm)
        if not (hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")):
            if not (hasattr(kind, "__enter__") and hasattr(kind, "__exit__")):
                raise ConfigurationTypeError(
                    "ResourceManager.enter(cm)", cm, "give a context manager."
                )
            cm = ThreadManager(cm)
            kind = ThreadManager
        leave: Any = MethodType(kind.__aexit__, cm)
        if self.is_apart():
            leave = Apart(leave)
            value = await leave.enter(kind.__aenter__, cm)
        else:
            value = await kind.__aenter__(cm)
        await self.keep(leave)
        return value

    def enter_sync(self, cm: AbstractContextManager[T, Any]) -> T:
        """Enter a blocking context manager here, in a worker thread of the request, to be exited in one at the end.

        :return: what entering it gives.
        :raises ConfigurationTypeError: `cm` is no blocking context manager.
        :raises ResourcesClosedError: the manager is closed.
        :raises RuntimeError: this is the thread of an event loop.
        """
        self._check_open()
        kind = type(cm)
        if not (hasattr(kind, "__enter__") and hasattr(kind, "__exit__")):
            raise ConfigurationTypeError(
                "ResourceManager.enter_sync(cm)", cm, "give a context manager for `with`."
            )
        if on_event_loop():
            raise RuntimeError(
                "enter_sync() would block the event loop that runs in this thread: "
                "use `await enter(cm)`, which enters it in a worker thread."
            )
        context = copy_context()
        value = context.run(kind.__enter__, cm)
        if self.closed:
            context.run(kind.__exit__, cm, None, None, None)
            raise ResourcesClosedError
        adopt(context)
        self.exits.append(ThreadExit(cm, context))
        return value

    @makes
    async def acquire(self, name: Hashable, factory: Callable[[], Any]) -> Any:
        """The resource of that `name`, made when somebody asks for it first.

        Tasks that ask while it is being made wait for it. An exception of its making is raised to all of them and not
        kept; where who makes it is cancelled, the next of those who wait makes it.

        :param factory: called without arguments. An awaitable that it returns is awaited; a context manager, blocking
            ones included, is entered, and a generator advanced to its ``yield``: to be closed with the manager.
        :raises DependencyCycleError: the factory, or a task that it has started, asks for the same name while it makes
            the resource: both would wait for ever.
        :raises ResourcesClosedError: the manager is closed.
        """
        self._check_open()
        named = self._named
        if named is None:
            named = self._named = {}
        value = named.get(name, ABSENT)
        if value is ABSENT or (
            type(value) is Ticket and (value := await joined(named, name, repr(name))) is ABSENT
        ):
            ticket = named[name] = Ticket()
            making = Making(ticket, name, repr)
            token = made_around.set(making)
            try:
                value = await self.open_made(factory())
            except BaseException as error:
                ticket.fail(named, name, error)
                raise
            finally:
                making.end(token)
            named[name] = value
            ticket.wake()
        return value

    async def open_made(self, made: Any) -> Any:
        """The value of what a function has returned, which may have to be awaited or entered."""
        if type(made) is GeneratorType:
            return await self.enter(contextmanager(lambda: made)())
        if type(made) is AsyncGeneratorType:
            leave: Any = Apart(made) if self.is_apart() else made
            try:
                value = await leave.__anext__()
            except StopAsyncIteration:
                raise not_yielded(made.__qualname__) from None
            await self.keep(leave)
            return value
        kind = type(made)
        if hasattr(kind, "__await__") and not hasattr(kind, "__aenter__"):
            made = await made
            kind = type(made)
        if hasattr(kind, "__aenter__") or hasattr(kind, "__enter__"):
            return await self.enter(made)
        return made

    def push_async_callback(
        self, callback: Callable[..., Awaitable[object]], /, *args: Any, **kwargs: Any
    ) -> None:
        """Have an async function called at the end, when its turn comes; from any thread.

        :param args: its arguments, as `kwargs` are.
        :raises ConfigurationTypeError: `callback` is not callable.
        :raises ResourcesClosedError: the manager is closed.
        """
        self._check_open()
        if not callable(callback):
            raise ConfigurationTypeError(
                "ResourceManager.push_async_callback(callback)", callback, "give an async function."
            )
        self.exits.append(AsyncCallback(callback, args, kwargs))

    def push_callback(self, callback: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        """Have a blocking function called at the end, in a worker thread; from any thread.

        :param args: its arguments, as `kwargs` are.
        :raises ConfigurationTypeError: `callback` is not callable, or is an async function.
        :raises ResourcesClosedError: the manager is closed.
        """
        self._check_open()
        if not callable(callback):
            raise ConfigurationTypeError(
                "ResourceManager.push_callback(callback)", callback, "give a function."
            )
        if inspect.iscoroutinefunction(callback):
            raise ConfigurationTypeError(
                "ResourceManager.push_callback(callback)",
                callback,
                "an async function needs no thread: use push_async_callback.",
            )
        self.exits.append(Callback(callback, args, kwargs))

    async def aclose(self) -> None:
        """Close all, the last one first; more than once does nothing.

        :raises ExceptionGroup: of what was raised by some, when all are closed. (:class:`CleanupError` on Python 3.10
            where the package `exceptiongroup` is missing.)
        """
        await self.close(None)

    async def __aenter__(self) -> ResourceManager:
        self._check_open()
        self.begin_block(current_account.get())
        return self

    def begin_block(self, account: Account | None) -> None:
        """Be the manager that the code from here on finds.

        :param account: the current one.
        """
        self._account = None if account is None else ref(account)
        if "trio" in sys.modules and on_trio():
            self.enter_region()
        self._token = entered.set(self)

    def is_of(self, account: Account) -> bool:
        """Whether the block was begun in `account`, or in the work that it stands in for."""
        if self._account is None:
            return False
        own = self._account()
        if own is None:  # it is gone, and left what stands in for it
            return account.closed
        return own is account or own.heir is account

    def end_empty_block(self) -> bool:
        """End the block at once if there is nothing to close; whether that is so."""
        if self.exits or self.region is not None:
            return False
        self._forget()
        self._closing = True
        token, self._token = self._token, None
        assert token is not None
        entered.reset(token)
        return True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._reset()
        return await self._end(error)

    def _reset(self) -> None:
        token, self._token = self._token, None
        assert token is not None
        try:
            entered.reset(token)
        except ValueError:  # in another context it was not set
            pass

    async def finish(self, error: BaseException | None) -> None:
        """Close all, as the last part of work that has raised `error`, if it has.

        :raises: `error`, unless it was suppressed; or what came of the closing.
        """
        try:
            if not await self._end(error) and error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame

    def enter_region(self) -> None:
        """On trio, put the cancel scopes around all that comes, which shield the closing."""
        self.region = Region(limited=self._seconds() is not None)
        self.region.enter()

    async def _end(self, error: BaseException | None) -> bool:
        try:
            suppressed = await self.close(error)
        except BaseException as raised:
            self._leave_region(raised)
            raise
        else:
            self._leave_region(None if suppressed else error)
            return suppressed
        finally:
            del error  # its traceback holds this frame

    def _leave_region(self, error: BaseException | None) -> None:
        region, self.region = self.region, None
        if region is not None:
            region.leave(error)

    async def close(self, error: BaseException | None) -> bool:
        """Close all, as the end of a block that raises `error` does; whether that is suppressed."""
        if self._closing:
            return False
        self._closing = True
        try:
            if not self.exits:
                return False
            return await self.leave(self.exits, 0, error, is_end=True)
        finally:
            self._forget()
            del error

    def leave(
        self, exits: list[Exit], depth: int, error: BaseException | None, *, is_end: bool = False
    ) -> Awaitable[bool]:
        """Leave what stands in `exits` above `depth`, whoever cancels the task meanwhile; see :func:`leave_all`.

        :param is_end: whether the manager is closed then.
        """
        region = self.region
        if region is None and "trio" in sys.modules and on_trio():
            return self._leave_in_region(exits, depth, error, is_end)
        return shielded(self._leave(exits, depth, error, region, is_end), region)

    async def _leave_in_region(
        self, exits: list[Exit], depth: int, error: BaseException | None, is_end: bool
    ) -> bool:
        region = Region(limited=self._seconds() is not None)
        region.enter()
        try:
            return await shielded(self._leave(exits, depth, error, region, is_end), region)
        finally:
            region.leave(sys.exc_info()[1])
            del error  # its traceback holds this frame

    async def _leave(
        self,
        exits: list[Exit],
        depth: int,
        error: BaseException | None,
        region: Region | None,
        is_end: bool,
    ) -> bool:
        seconds = self._seconds()
        limit = token = None
        if seconds is not None:
            limit = Limit(seconds, region)
            token = seconds_in_force.set(seconds)
        try:
            return await leave_all(exits, depth, error, limit)
        finally:
            if is_end:
                self.closed = True  # before a cancellation is delivered: others may run then
            if limit is not None and token is not None:
                limit.end()
                try:
                    seconds_in_force.reset(token)
                except ValueError:  # closed by a garbage collection, in another context
                    pass
            del error

    def _seconds(self) -> float | None:
        return seconds_in_force.get() if self.close_timeout is None else self.close_timeout

    def mark(self) -> Mark:
        """How far it is, for :meth:`undo`."""
        named = self._named
        return len(self.exits), len(self.solved), 0 if named is None else len(named)

    async def undo(self, mark: Mark, error: BaseException) -> None:
        """Close what was opened since the `mark`, as the end of a block that raises `error` does, and forget it.

        :raises: as :meth:`aclose`.
        """
        if self.closed or self._closing:
            return
        opened, solved, acquired = mark
        self.ledger = None
        while len(self.solved) > solved:
            self.solved.popitem()
        while self._named is not None and len(self._named) > acquired:
            self._named.popitem()
        try:
            if len(self.exits) > opened:
                await self.leave(self.exits, opened, error)
        finally:
            del error  # its traceback holds this frame

    def keep_values(self) -> None:
        """Be ready to keep the values of dependencies."""
        if self.solved is NOTHING_SOLVED:
            self.solved = {}

    def _forget(self) -> None:
        self.closed = True
        self.solved = {}
        self.ledger = self.spare = self.request = self.home = self._cache = self._named = None

    def is_apart(self) -> bool:
        """Whether the running code is in another context than the closing will be."""
        home, token = self.home, self._token
        if home is not None:
            return not home.works_here() or (EAGER is not None and starts_tasks_at_once())
        if token is None:
            return False
        current = entered.get()
        try:
            entered.reset(token)  # in another context that is an error, and here it is taken back
        except ValueError:
            return True
        self._token = entered.set(current)
        return False

    async def keep(self, leave: Exit) -> None:
        """Leave at the end what was entered just now.

        :raises ResourcesClosedError: it is too late for that, and it was left at once.
        """
        if self.closed:
            await self.leave([leave], 0, None)
            raise ResourcesClosedError
        self.exits.append(leave)

    def _check_open(self) -> None:
        if self.closed:
            raise ResourcesClosedError


def not_yielded(name: str) -> RuntimeError:
    """What is wrong with a generator of that `name` that ended at once."""
    return RuntimeError(
        f"{name} ended without a value: a dependency that is a generator yields it."
    )


def innermost(account: Account | None, *, makes: bool = True) -> ResourceManager | None:
    """The manager of the innermost block or request that runs here; None outside of any.

    :param account: the current one.
    :param makes: whether that of a request is made if there was none so far; None then, otherwise.
    """
    manager = entered.get()
    if manager is not None and (account is None or manager.is_of(account)):
        return None if manager.closed else manager
    while account is not None:
        found = account.resources
        if found is not None:
            if type(found) is not ResourceManager:
                if account.closed or not makes:
                    return None
                found = found.open(account)
            return None if found.closed else found
        account = account.parent
        if manager is not None and account is not None and manager.is_of(account):
            break
    return None if manager is None or manager.closed else manager


entered: ContextVar[ResourceManager | None] = ContextVar(
    "asgi_perfkit.resources.entered", default=None
)
"""That of the innermost `async with` around the running code."""
