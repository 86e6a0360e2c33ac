"""Runs work after the response, and waits for it at the shutdown."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from types import MethodType
from typing import Any

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.middleware.exchange import Exchange, HTTPExchange, WebSocketExchange
from asgi_perfkit.middleware.lifespan import run_lifespan
from asgi_perfkit.steps import DONE, Account, current_account
from asgi_perfkit.tasks.failure import TaskFailure
from asgi_perfkit.tasks.handoff import Engine, Handoff, as_handoff
from asgi_perfkit.tasks.item import is_async
from asgi_perfkit.tasks.supervisor import Supervisor
from asgi_perfkit.threads.limiter import ThreadLimiter
from asgi_perfkit.types import ASGIApp, Message, Receive, Scope, Send, single_callable

__all__ = ["BackgroundTaskMiddleware"]

_THREADS = 40  # for tasks that are no async functions, as many as there are for requests

Hook = Callable[[], object]


class BackgroundTaskMiddleware:
    """Run what :func:`add_task` queues in a request of `app` after its response.

    The tasks of a request run one after the other, apart from the request: it ends at once. At the shutdown they are
    waited for, before the app gets its own shutdown, so they can use what the app closes there. Where there is no
    lifespan (the server has it switched off) the call of the app lasts until the tasks of its request have run.

    A request that raises discards its tasks; a response that the framework has made of an exception keeps them.

    :param app: an ASGI app, single or double callable.
    :param max_concurrency: of how many requests tasks run at the same time.
    :param max_pending: how many tasks may wait for their turn; :func:`add_task` raises :class:`QueueFullError` then.
    :param drain_timeout: seconds that the shutdown waits for tasks. The rest is cancelled, waited for, and reported
        by name. It should be below the server's own (hypercorn's `shutdown_timeout`, 60).
    :param run_on_error: run the tasks of a request that raises, too.
    :param on_error: a function that is told of each task that did not end well (a :class:`TaskFailure`).
    :param task_hooks: two functions, called in the worker thread before and after each task that is no async
        function; for Django twice `close_old_connections`.
    :param handoff: an engine, or a :class:`Handoff` with options for one: the tasks that it knows are handed to it
        instead of run here, unless their own options say otherwise (:class:`task_options`).
    :raises ConfigurationTypeError: an argument of the wrong type.
    :raises ConfigurationValueError: an argument outside of what is allowed.
    """

    def __init__(
        self,
        app: Any,
        *,
        max_concurrency: int = 100,
        max_pending: int = 10_000,
        drain_timeout: float = 30.0,
        run_on_error: bool = False,
        on_error: Callable[[TaskFailure], object] | None = None,
        task_hooks: tuple[Hook | None, Hook | None] | None = None,
        handoff: Engine | Handoff | None = None,
    ) -> None:
        _check(app, max_concurrency, max_pending, drain_timeout, run_on_error, on_error, task_hooks)
        self.app: ASGIApp = single_callable(app)
        self._drain_timeout = drain_timeout
        before, after = task_hooks or (None, None)
        self.supervisor = Supervisor(
            max_concurrency=max_concurrency,
            max_pending=max_pending,
            limiter=ThreadLimiter(_THREADS, before=before, after=after),
            run_on_error=run_on_error,
            on_error=on_error,
            handoff=None
            if handoff is None
            else as_handoff(f"{BackgroundTaskMiddleware.__name__}(handoff=...)", handoff),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: BaseException | None = None
        try:
            rest = self.serve(scope, receive, send)
            if rest is not DONE:
                await rest
        except BaseException as raised:
            error = raised
            raise
        finally:
            tasks = self.tasks_left(send, error)
            error = None  # it holds this frame
            if tasks is not None:
                await tasks

    def tasks_left(self, send: Send, error: BaseException | None) -> Awaitable[None] | None:
        """What is to be awaited after :meth:`serve` when no lifespan has told that somebody else would: the tasks.

        :param send: as :meth:`serve` got it.
        :param error: what it has raised.
        """
        supervisor = self.supervisor
        if supervisor.is_open and supervisor.runs_here():
            return None
        outer = send.__self__ if type(send) is MethodType else None  # `exchange_of`, in line
        if (
            isinstance(outer, Exchange)
            and outer.tasks is not None
            and outer.tasks.supervisor is supervisor
        ):
            outer.finish_tasks(error)  # which is not over, but for what is around
        if not supervisor.unclaimed.queues:
            return None
        if isinstance(
            error, GeneratorExit
        ):  # the call is being closed: there is nothing more to await
            supervisor.give_up_unclaimed()
            return None
        return supervisor.run_unclaimed()

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """What calling the middleware awaits, to be awaited at once and in the same task.

        Whoever calls it asks for the :meth:`tasks_left` afterwards, as `__call__` does.
        """
        exchange = send.__self__ if type(send) is MethodType else None  # `exchange_of`, in line
        if isinstance(exchange, Exchange) and not exchange.closed:
            if exchange.tasks is None:  # or it is that of a middleware of this kind further out
                supervisor = self.supervisor
                if supervisor.is_open or not _has_taker(exchange.parent):
                    exchange.tasks = supervisor
            return self.app(scope, receive, send)
        kind = scope["type"]
        if kind == "http":
            exchange_class: type[Exchange] = HTTPExchange
        elif kind == "websocket":
            exchange_class = WebSocketExchange
        elif kind == "lifespan":
            return self._live(scope, receive, send)
        else:
            return self.app(scope, receive, send)
        around = current_account.get()
        exchange = exchange_class(self, around, scope, receive, send)
        if self.supervisor.is_open or not _has_taker(around):
            exchange.tasks = self.supervisor
        current_account.set(exchange)
        try:
            work = self.app(scope, exchange.receive_message, exchange.send_message)
        except BaseException as error:
            self.work_ended(exchange, error)
            raise
        return exchange.begin(work)

    def work_ended(self, account: Exchange, error: BaseException | None) -> None:
        """End an exchange that this middleware has opened."""
        account.conclude(error)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        supervisor = self.supervisor

        async def listen() -> Message:
            message = await receive()
            kind = message.get("type")
            if kind == "lifespan.startup":
                supervisor.open()
                _outlive_other_workers()
            elif kind == "lifespan.shutdown":
                await supervisor.drain(self._drain_timeout)
            return message

        try:
            await run_lifespan(self.app, scope, listen, send)
        finally:
            supervisor.detach()  # nobody will tell of the shutdown any more


def _has_taker(account: Account | None) -> bool:
    """Whether tasks are taken further out: those of an app that is mounted in another, and so has no lifespan."""
    while account is not None:
        if account.tasks is not None and not account.closed:
            return True
        account = account.parent
    return False


def _outlive_other_workers() -> None:
    """Keep a worker process from being killed while it drains.

    hypercorn 0.18 tells its workers of the end by an event, and when the first of them has ended sends SIGTERM to the
    others, which have no handler for it. A SIGTERM to all of a process group kills them at once. Both are only meant
    for the parent, which has told them.
    """
    process = sys.modules.get("multiprocessing.process")
    if (
        process is not None
        and process.parent_process() is not None
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _ignore)


def _ignore(number: int, frame: object) -> None:
    pass


def _check(
    app: object,
    max_concurrency: object,
    max_pending: object,
    drain_timeout: object,
    run_on_error: object,
    on_error: object,
    task_hooks: object,
) -> None:
    """Refuse arguments that cannot be used."""
    name = BackgroundTaskMiddleware.__name__
    if not callable(app):
        raise ConfigurationTypeError(f"{name}(app)", app, "an ASGI application is a callable.")
    for option, number in (("max_concurrency", max_concurrency), ("max_pending", max_pending)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise ConfigurationTypeError(f"{name}({option}=...)", number, "give a whole number.")
        if number < 1:
            raise ConfigurationValueError(f"{name}({option}=...)", number, "give 1 or more.")
    if not isinstance(drain_timeout, (int, float)) or isinstance(drain_timeout, bool):
        raise ConfigurationTypeError(f"{name}(drain_timeout=...)", drain_timeout, "give seconds.")
    if not drain_timeout >= 0:
        raise ConfigurationValueError(
            f"{name}(drain_timeout=...)", drain_timeout, "give 0 seconds or more."
        )
    if not isinstance(run_on_error, bool):
        raise ConfigurationTypeError(f"{name}(run_on_error=...)", run_on_error, "True or False.")
    if on_error is not None and (not callable(on_error) or is_async(on_error)):
        raise ConfigurationTypeError(
            f"{name}(on_error=...)",
            on_error,
            "give a function of a TaskFailure that is not async, or None.",
        )
    if task_hooks is not None and not (
        isinstance(task_hooks, tuple)
        and len(task_hooks) == 2
        and all(hook is None or (callable(hook) and not is_async(hook)) for hook in task_hooks)
    ):
        raise ConfigurationTypeError(
            f"{name}(task_hooks=...)",
            task_hooks,
            "give two functions that are not async, (before, after), or None.",
        )
