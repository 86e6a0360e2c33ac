"""What requests and connections have in common."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from threading import RLock
from time import perf_counter_ns
from typing import ClassVar

from asgi_perfkit.metrics.histogram import Histogram, Snapshot
from asgi_perfkit.metrics.registry import absorb, condense
from asgi_perfkit.middleware.exchange.unread_body import UnreadBody
from asgi_perfkit.steps import Account, DrivenAccount, LateObserver, Owner, current_account
from asgi_perfkit.types import Message, Receive, Scope, Send

__all__ = ["COMPLETE", "ENDING", "OPEN", "TOLD", "TRAILED", "UNREADABLE", "Exchange", "exchange_of"]

# How far a response, or a connection, has come. Where trailers are announced, the last message is theirs.
TRAILED = -1  # trailers are announced
OPEN = 0
ENDING = 1  # its last message is on the way to the server
TOLD = 2  # and the server has told of the end since
COMPLETE = 3  # the server has taken the last message

_condensing = RLock()  # observations may come from several threads of a request
# Stands in for the scope of an exchange that is over: a task that outlives its request holds the exchange.
_NO_SCOPE: Scope = {}
# What reading a message may raise that is not made as the specification has it.
UNREADABLE = (TypeError, ValueError, LookupError, AttributeError)


class Exchange(DrivenAccount):
    """What is known about one request or connection so far. Times are nanoseconds on the monotonic clock.

    :ivar started_ns: when the app was called.
    :ivar memory: the resident memory when the app was called, in bytes; None if it was not read.
    :ivar path: as it was then: routers rewrite the scope's.
    :ivar processing_ns: from the call of the app to `http.response.start`; None before.
    :ivar response_ns: from the call until the server took the last body message; None before.
    :ivar receive_ns: awaiting the request's body; None if the app never asked for it.
    :ivar send_ns: awaiting `send`; None if the app has sent nothing.
    :ivar status: of the response or of the handshake; None before.
    :ivar disconnected: whether the client left before all had been said: the last body message taken by the server,
        and the trailers if there were to be any; of a connection, before one side had closed it.
    :ivar request_bytes: body bytes received.
    :ivar response_bytes: body bytes sent.
    :ivar condensed: what :meth:`condense` has made of observations, by metric; None as a rule.
    :ivar malformed: messages that the kit could not read.
    :ivar decorate_start: makes the `http.response.start` message that is sent of the one that the app sent.
    """

    __slots__ = (
        "_receive",
        "_receiving",
        "_send",
        "_stage",
        "_unread",
        "_uploaded",
        "condensed",
        "decorate_start",
        "disconnected",
        "malformed",
        "memory",
        "path",
        "processing_ns",
        "receive_ns",
        "request_bytes",
        "response_bytes",
        "response_ns",
        "scope",
        "send_ns",
        "status",
    )

    metrics: ClassVar[tuple[str, ...]]
    """The names of the :meth:`figures`."""
    _receiving: int  # how many times the app awaits `receive` now
    _unread: UnreadBody | None  # once something had to be read for the app

    def __init__(
        self, owner: Owner, parent: Account | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.started_ns = perf_counter_ns()
        # Account's fields, set here: a call of its constructor costs as much as a third of all this.
        self.loop_ns = self.longest_ns = 0
        self.stepping = self.closed = self.ending = False
        self.observers = ()
        self.first = None
        self.parent = parent
        self.endpoint = self.late = self.observations = self.tasks = self.encoder = self._unread = (
            None
        )
        self.resources = self.profile = self.afterwards = self.heir = None
        self.condensed: dict[str, Histogram] | None = None
        self.owner = owner
        self.memory: int | None = None
        self.scope = scope
        self.path: object = scope.get("path", "")  # a string, if the server is right
        self._receive = receive
        self._send = send
        self.processing_ns: int | None = None
        self.response_ns: int | None = None
        self.receive_ns: int | None = None
        self.send_ns: int | None = None
        self.request_bytes = self.response_bytes = self.malformed = self._receiving = 0
        self.status: int | None = None
        self._stage = OPEN
        self.decorate_start: Callable[[Exchange, Message], Message] | None = None
        self.disconnected = self._uploaded = False  # the latter: whether the request's body is in

    async def receive_message(self) -> Message:
        """Pass on what comes from the client; the `receive` for the app."""
        raise NotImplementedError

    async def send_message(self, message: Message) -> None:
        """Pass on what the app says; the `send` for the app."""
        raise NotImplementedError

    def conclude(self, error: BaseException | None) -> None:
        """End an exchange that is not recorded by who has opened it: the app has returned or raised `error`."""
        # One further in that has recorded it may have set it, and it is told of the end.
        late, self.late = self.late, None
        self.closed = True
        # Unless it ends in another context than it began in, as a coroutine does that a garbage collection closes.
        if current_account.get() is self:
            current_account.set(self.parent)
        if self.profile is not None:
            self.profile.ended(self, None, error)
        self.end_before_tasks(error, late)

    def end(self, late: LateObserver | None) -> None:
        self.scope = _NO_SCOPE
        if late is None and self.condensed and isinstance(self.parent, Exchange):
            self.parent._absorb(self.condensed)
        Account.end(self, late)

    @property
    def method(self) -> str:
        """As it is told: one that is not a method is `OTHER`."""
        raise NotImplementedError

    def figures(self, total_ns: int, memory_delta: int | None) -> tuple[int | None, ...]:
        """What this request or connection has come to.

        :param total_ns: from the call of the app until now.
        :param memory_delta: by how many bytes the resident memory has grown, if that is known.
        """
        raise NotImplementedError

    def condense(self) -> None:
        with _condensing:
            if self.condensed is None:
                self.condensed = {}
            condense(self.condensed, self.take_observations())

    def _absorb(self, condensed: dict[str, Histogram]) -> None:
        with _condensing:
            if self.condensed is None:
                self.condensed = {}
            absorb(self.condensed, condensed)

    def observations_so_far(self) -> tuple[list[tuple[str, int]], dict[str, Snapshot]]:
        """A copy of the observations, and one of what was condensed of others."""
        with _condensing:
            condensed = self.condensed or {}
            copies = {metric: histogram.snapshot() for metric, histogram in condensed.items()}
            return list(self.observations or ()), copies

    def end_before_tasks(self, error: BaseException | None, late: LateObserver | None) -> None:
        """End the work, and then let go of its tasks, which hold nothing of it so."""
        # Where there is nobody to take tasks, the end puts the one around in his place.
        takes_tasks = self.tasks is not None
        self.end(late)
        if takes_tasks and (error is not None or self.tasks.holds_tasks):  # type: ignore[union-attr]  # nobody takes it away
            self.finish_tasks(error)

    def finish_tasks(self, error: BaseException | None) -> None:
        """Let go of the tasks that were added, if there is somebody for them: the app has returned or raised `error`.

        A response that is with the client stands, also when the server cancels what the app does after it.
        """
        tasks = self.tasks
        if tasks is not None and (error is not None or tasks.holds_tasks):
            failed = error is not None and not (self._stage == COMPLETE and _is_cancellation(error))
            tasks.finish(self, failed=failed)

    def outcome(self, error: BaseException | None) -> str:
        """How it ended, once the app has returned or has raised `error`.

        Whoever leaves before the last byte is `disconnected`, whatever the app made of it then.
        """
        if self.disconnected:
            return "disconnected"
        if error is None:
            return "ok" if self._stage == COMPLETE else "incomplete"
        return "cancelled" if _is_cancellation(error) else "error"

    def _read_status(self, status: object) -> int | None:
        if isinstance(status, int) and 100 <= status <= 999:  # http.HTTPStatus is an int, too
            return int(status)
        self.malformed += 1
        return None


def exchange_of(send: Send) -> Exchange | None:
    """The open exchange whose own `send` this is; None if it is another's."""
    owner = getattr(send, "__self__", None)
    return owner if isinstance(owner, Exchange) else None


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return True
    # Another thread may be importing trio just now: then the module is there, and nothing in it.
    cancelled = getattr(sys.modules.get("trio"), "Cancelled", None)
    if cancelled is not None and isinstance(error, cancelled):
        return True
    # An exception group, of Python 3.11 or of the package that brings it to 3.10.
    inner = getattr(error, "exceptions", None)
    return isinstance(inner, tuple) and bool(inner) and all(map(_is_cancellation, inner))
