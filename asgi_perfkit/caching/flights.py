"""Calls whose outcome several wait for.

The rules:

* A flight is one call that makes the value of one key. Who asks for that key meanwhile joins it.
* Tasks join the flights of their own event loop and threads those of other threads: a future of one loop is never
  awaited on another, which may end or be stopped at any time. So as many calls as loops may be made at once, and the
  threads' one; the value is everybody's.
* A value is kept if its flight is still the one that askers would join when it lands. Whatever makes the value
  obsolete meanwhile (clearing, storing another value) takes the flight out, and who had joined gets it none the less.
* An exception is raised to all who have joined, and not kept.
* Who leaves, because it is cancelled, leaves alone. When the last one leaves, the call is cancelled, and the last one
  waits until it is over: as if it had made the call itself.
* Who makes or joins a flight from within another one makes that other one wait. A circle of these would be waited for
  for ever: it is an error.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from threading import Lock, get_ident
from types import TracebackType
from typing import Any, Protocol

from asgi_perfkit.caching.store import MISSING

__all__ = ["AsyncFlight", "Flight", "Owner", "ThreadFlight", "current_flight"]


class Owner(Protocol):
    """Who keeps the values, and knows the flights that may be joined."""

    @property
    def name(self) -> str:
        """What the flights are for; shown in errors."""

    def land(self, flight: Flight) -> None:
        """Keep the value of `flight`, if it may still be joined, and let nobody join it any more."""

    def forsake(self, flight: Flight) -> None:
        """Let nobody join `flight` any more."""


class Flight:
    """One call.

    :param owner: who keeps its value.
    :param place: the event loop that it runs on; None for that of a thread.
    :param key: of the value.
    :ivar askers: how many wait for it, who makes the call included; the owner counts them.
    :ivar over: whether it has ended.
    :ivar value: what was returned; MISSING before, and if it has failed.
    :ivar error: what was raised.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_traceback",
        "_waits_for",
        "askers",
        "error",
        "key",
        "over",
        "owner",
        "place",
        "value",
    )

    def __init__(self, owner: Owner, place: Any, key: Hashable) -> None:
        self.owner = owner
        self.place = place
        self.key = key
        self.askers = 0
        self.over = False
        self.value: Any = MISSING
        self.error: BaseException | None = None
        self._context: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._waits_for: list[Flight] = []

    def succeed(self, value: Any) -> None:
        """End it with a `value`."""
        self.value = value
        self.over = True
        self.owner.land(self)

    def fail(self, error: BaseException, traceback: TracebackType | None) -> None:
        """End it with an `error`."""
        self.error = error
        self._context = error.__context__
        self._traceback = traceback
        self.over = True
        self.owner.land(self)

    def result(self) -> Any:
        """What was returned.

        :raises: what was raised. All who wait get the same object: each time as it came out of the call, so that what
            one request was handling does not show in the traceback of another.
        """
        error = self.error
        if error is None:
            return self.value
        try:
            raise error.with_traceback(self._traceback)
        finally:
            error.__context__ = self._context
            del error  # its traceback holds this frame

    def let_go(self) -> None:
        """Forget what came of it, when all have it.

        The traceback of the error holds those who have waited, and they this; and what a call has left running holds
        this in its context.
        """
        self.key = self.value = self.error = self._context = self._traceback = None

    def begin_wait(self) -> Flight | None:
        """Note that the flight which the running code is part of, if it is, waits for this one.

        :return: that flight, for :meth:`end_wait`.
        :raises RuntimeError: this one waits for that one, by whatever way.
        """
        waiting = current_flight.get()
        if waiting is None or waiting.over:
            return None
        # First noted, then looked: of two threads that close a circle at once, one sees it.
        waiting._waits_for.append(self)
        way = self._way_to(waiting)
        if way:
            self.end_wait(waiting)
            names = [each.owner.name for each in (waiting, *way)]
            raise RuntimeError(
                f"{self.owner.name} waits for itself: {' -> '.join(names)}. "
                "What makes a value must not ask for the same value."
            )
        return waiting

    def end_wait(self, waiting: Flight | None) -> None:
        """Take back what :meth:`begin_wait` has noted."""
        if waiting is not None:
            waiting._waits_for.remove(self)

    def _way_to(self, goal: Flight) -> list[Flight]:
        came_from: dict[Flight, Flight | None] = {self: None}
        pending = [self]
        while pending:
            flight = pending.pop()
            if flight is goal:
                way: list[Flight] = []
                step: Flight | None = goal
                while step is not None:
                    way.insert(0, step)
                    step = came_from[step]
                return way
            for next_one in list(flight._waits_for):  # another thread may change it
                if next_one not in came_from:
                    came_from[next_one] = flight
                    pending.append(next_one)
        return []


class ThreadFlight(Flight):
    """A call that whoever needs it first makes in its own thread; others wait in theirs."""

    __slots__ = ("_gate", "_thread")

    def __init__(self, owner: Owner, place: Any, key: Hashable) -> None:
        super().__init__(owner, place, key)
        self._thread = get_ident()
        self._gate = Lock()
        self._gate.acquire()

    def make(self, call: Callable[[], Any]) -> Any:
        """Make the `call`.

        :raises: what it raises. What ends a thread rather than a call (KeyboardInterrupt, the cancellation of what
            runs in it) is for this caller alone: another one of those who wait makes the call then.
        """
        waiting = self.begin_wait()
        token = current_flight.set(self)
        try:
            value = call()
            if value is not None and hasattr(type(value), "__await__"):
                _refuse_awaitable(value, self.owner.name)
            self.succeed(value)
            return value
        except Exception as error:
            self.fail(error, error.__traceback__ and error.__traceback__.tb_next)
            raise
        finally:
            current_flight.reset(token)
            self.end_wait(waiting)
            self.owner.forsake(self)
            self._gate.release()

    def join(self) -> bool:
        """Wait until the call is over; False if it was broken off.

        :raises RuntimeError: it is this thread that makes the call, or the call waits for what asks here.
        """
        if self._thread == get_ident():
            raise RuntimeError(
                f"{self.owner.name} waits for itself: it was called again in the thread that makes its value. "
                "What makes a value must not ask for the same value."
            )
        waiting = self.begin_wait()
        try:
            with self._gate:
                return self.over
        finally:
            self.end_wait(waiting)


class AsyncFlight(Flight):
    """A call in a task of its own, on the event loop of those who wait for it."""

    __slots__ = ()

    async def make(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make the `call`, in a copy of the context of who is the first to need it, and wait for it.

        :raises: what it raises, or the cancellation of who waits.
        """
        token = current_flight.set(self)
        try:
            self._start(call)
        except BaseException:
            self.owner.forsake(self)
            raise
        finally:
            current_flight.reset(token)
        return await self.join()

    async def join(self) -> Any:
        """Wait for the call; see :meth:`make`.

        :raises RuntimeError: the call waits for what asks here.
        """
        waiting = self.begin_wait()
        try:
            if not self.over:  # a task that starts eagerly may have ended within its start
                await self._wait()
        finally:
            self.end_wait(waiting)
        return self.result()

    async def _wait(self) -> None:
        try:
            await self._landing()
        except GeneratorExit:  # the coroutine is closed, in whichever thread: nobody will wait
            self._call_soon(self._reconsider)
            raise
        except BaseException:
            if self.askers == 1 and not self.over:
                self._give_up()
                await self._ended()
                if isinstance(self.error, (Exception, SystemExit, KeyboardInterrupt)):
                    self.result()  # it would be lost
            raise

    def _reconsider(self) -> None:
        if not self.askers and not self.over:
            self._give_up()

    def _give_up(self) -> None:
        self.owner.forsake(self)
        self._cancel()

    @abstractmethod
    def _start(self, call: Callable[[], Awaitable[Any]]) -> None:
        """Start it; runs on the loop."""

    @abstractmethod
    def _cancel(self) -> None:
        """Cancel the call; runs on the loop."""

    @abstractmethod
    async def _landing(self) -> None:
        """Wait until it is over."""

    @abstractmethod
    async def _ended(self) -> None:
        """Wait until it is over, whatever happens to the task meanwhile."""

    @abstractmethod
    def _call_soon(self, callback: Callable[[], object]) -> None:
        """Have it called on the loop, from any thread, unless the loop is over."""


def _refuse_awaitable(value: Any, name: str) -> None:
    if hasattr(value, "close"):
        value.close()  # or Python warns that a coroutine was never awaited
    raise TypeError(
        f"{name} got an awaitable from a plain function, and that gives its value once only: "
        "make the value with an async function."
    )


current_flight: ContextVar[Flight | None] = ContextVar(
    "asgi_perfkit.caching.current_flight", default=None
)
"""The flight that the running code is part of, in its tasks and its worker threads too."""
