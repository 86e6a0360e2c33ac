"""What a request, or a piece of code, holds open."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from types import AsyncGeneratorType, GeneratorType, MethodType, TracebackType
from typing import Any, Final, Protocol, TypeVar, overload

from asgi_perfkit.caching.request import RequestScopedCache
from asgi_perfkit.exceptions import ConfigurationTypeError, ResourcesClosedError
from asgi_perfkit.resources.exits import AsyncCallback, Callback, Exit, ThreadExit, leave_all
from asgi_perfkit.resources.shield import shielded
from asgi_perfkit.resources.tickets import ABSENT, Ticket, joined
from asgi_perfkit.steps import Account, current_account, on_event_loop
from asgi_perfkit.steps.loop import on_trio
from asgi_perfkit.threads.managers import contextmanager_in_threadpool

__all__ = ["NOTHING_SOLVED", "Request", "ResourceManager", "innermost", "not_yielded"]

T = TypeVar("T")

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
    scopes) is to be entered in the one that closes the manager; on trio, within ``async with``.
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
        "closed",
        "exits",
        "ledger",
        "region",
        "request",
        "solved",
    )

    def __init__(self) -> None:
        # Much is set at once, and little made: outside of requests each resolution makes a manager.
        self.exits: list[Exit] = []
        self.closed = self._closing = False
        self.active = self.begun = 0  # resolutions that run, and that ever began
        self.solved = NOTHING_SOLVED  # the dependencies' values, by what they are made of
        self.ledger: Any = None  # what the first resolution has made, as long as it is alone
        self.request: Request | None = None  # what it is for
        self.region: Any = None  # on trio, the cancel scope around everything
        self._account: Account | None = None
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
            cm = contextmanager_in_threadpool(cm)
            kind = type(cm)
        value = await kind.__aenter__(cm)
        await self.keep(MethodType(kind.__aexit__, cm))
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
        value = kind.__enter__(cm)
        if self.closed:
            kind.__exit__(cm, None, None, None)
            raise ResourcesClosedError
        self.exits.append(ThreadExit(cm))
        return value

    async def acquire(self, name: Hashable, factory: Callable[[], Any]) -> Any:
        """The resource of that `name`, made when somebody asks for it first.

        Tasks that ask while it is being made wait for it. An exception of its making is raised to all of them and not
        kept; where who makes it is cancelled, the next of those who wait makes it.

        :param factory: called without arguments. An awaitable that it returns is awaited; a context manager, blocking
            ones included, is entered, and a generator advanced to its ``yield``: to be closed with the manager.
        :raises ResourcesClosedError: the manager is closed.
        """
        self._check_open()
        named = self._named
        if named is None:
            named = self._named = {}
        value = named.get(name, ABSENT)
        if value is ABSENT or (
            type(value) is Ticket and (value := await joined(named, name)) is ABSENT
        ):
            ticket = named[name] = Ticket()
            try:
                value = await self.open_made(factory())
            except BaseException as error:
                ticket.fail(named, name, error)
                raise
            named[name] = value
            ticket.wake()
        return value

    async def open_made(self, made: Any) -> Any:
        """The value of what a function has returned, which may have to be awaited or entered."""
        if type(made) is GeneratorType:
            return await self.enter(contextmanager(lambda: made)())
        if type(made) is AsyncGeneratorType:
            try:
                value = await made.__anext__()
            except StopAsyncIteration:
                raise not_yielded(made.__qualname__) from None
            await self.keep(made)
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
        :raises ConfigurationTypeError: `callback` is not callable.
        :raises ResourcesClosedError: the manager is closed.
        """
        self._check_open()
        if not callable(callback):
            raise ConfigurationTypeError(
                "ResourceManager.push_callback(callback)", callback, "give a function."
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
        self._account = account
        if "trio" in sys.modules and on_trio():
            self.enter_region()
        self._token = entered.set(self)

    def is_of(self, account: Account) -> bool:
        """Whether the block was begun in `account`, or in the work that it stands in for."""
        own = self._account
        return own is account or (own is not None and own.closed and own.parent is account)

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
        """On trio, put the cancel scope around all that comes, which shields the closing."""
        self.region = sys.modules["trio"].CancelScope()
        self.region.__enter__()

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
            region.__exit__(type(error) if error else None, error, error and error.__traceback__)

    async def close(self, error: BaseException | None) -> bool:
        """Close all, as the end of a block that raises `error` does; whether that is suppressed."""
        if self._closing:
            return False
        self._closing = True
        try:
            if not self.exits:
                return False
            return await shielded(self._leave_exits(error), self.region)
        finally:
            self._forget()
            del error

    async def _leave_exits(self, error: BaseException | None) -> bool:
        try:
            return await leave_all(self.exits, 0, error)
        finally:
            self.closed = True  # before a cancellation is delivered: others may run then
            del error

    def keep_values(self) -> None:
        """Be ready to keep the values of dependencies."""
        if self.solved is NOTHING_SOLVED:
            self.solved = {}

    def _forget(self) -> None:
        self.closed = True
        self.solved = {}
        self.ledger = self.request = self._cache = self._named = None

    async def keep(self, leave: Exit) -> None:
        """Leave at the end what was entered just now.

        :raises ResourcesClosedError: it is too late for that, and it was left at once.
        """
        if self.closed:
            await shielded(leave_all([leave], 0, None), self.region)
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


def innermost(account: Account | None) -> ResourceManager | None:
    """The manager of the innermost block or request that runs here; None outside of any.

    :param account: the current one.
    """
    manager = entered.get()
    if manager is not None and (account is None or manager.is_of(account)):
        return None if manager.closed else manager
    while account is not None:
        found = account.resources
        if found is not None:
            if type(found) is not ResourceManager:
                if account.closed:
                    return None
                found = found.open(account)
            return None if found.closed else found
        account = account.parent
        if manager is not None and manager._account is account:
            break
    return None if manager is None or manager.closed else manager


entered: ContextVar[ResourceManager | None] = ContextVar(
    "asgi_perfkit.resources.entered", default=None
)
"""That of the innermost `async with` around the running code."""
