"""Runs the tasks that requests leave behind, and answers for each of them.

The rules:

* The tasks of one request run one after the other, in the order they were added; those of different requests at the
  same time, `max_concurrency` requests at once.
* Every task that was accepted is, in the end, done, failed, timed out, cancelled or discarded, and counted as that. Of
  all but the first a line is logged, and `on_error` is told.
* Whatever a task raises stays with it: the next one runs. Only the cancellation of the supervisor's own work by the
  loop is another matter: it ends that, and what had not been run is told of as cancelled.
* There are at most `max_pending` tasks that wait for their turn; who adds one more is told so.

It knows nothing of requests: a queue is filled while one is served, and then released, or discarded.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import RLock
from time import perf_counter_ns
from typing import Any, Literal

from asgi_perfkit.exceptions import ConfigurationTypeError, QueueFullError
from asgi_perfkit.steps import Account
from asgi_perfkit.tasks.item import Item, TaskList
from asgi_perfkit.tasks.loop import Flag, Job, Loop
from asgi_perfkit.tasks.running import running_loop
from asgi_perfkit.threads.limiter import ThreadLimiter, default_limiter

__all__ = ["Supervisor", "TaskFailure", "TaskQueue", "background_stats", "run_alone"]

logger = logging.getLogger("asgi_perfkit")

Reason = Literal["failed", "timed_out", "cancelled", "discarded"]

_SETTLED = ("done", "failed", "timed_out", "cancelled", "discarded")


@dataclass(frozen=True)
class TaskFailure:
    """A task that did not end well, for `on_error`.

    :ivar name: module and name of its function.
    :ivar reason: `failed`: it raised; `timed_out`: it took longer than its time-out; `cancelled`: it could not finish,
        or not even start, before the shutdown; `discarded`: the request that added it raised.
    :ivar error: what it raised; None if that is not the reason.
    :ivar function: the function itself, with `args` and `kwargs`: whoever keeps these can run it again.
    """

    name: str
    reason: Reason
    error: BaseException | None
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


OnError = Callable[[TaskFailure], object]
Group = list[Item]  # of tasks that run at the same time
Entry = Item | deque[Group]  # the groups of a list of tasks


class TaskQueue:
    """The tasks of one request.

    :ivar supervisor: who runs them.
    """

    __slots__ = ("_entries", "_scheduled", "_state", "supervisor")

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self._entries: deque[Entry] = deque()
        self._state: Literal["filling", "released", "discarded"] = "filling"
        self._scheduled = False  # whether it is running, or will be without further ado

    def add(
        self, account: Account, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Queue a task, or a list of them; from any thread.

        :raises QueueFullError: too many tasks wait for their turn.
        """
        supervisor = self.supervisor
        entry: Entry
        if isinstance(function, TaskList):
            if args or kwargs:
                raise ConfigurationTypeError(
                    "add_task(tasks)", args or kwargs, "a list of tasks has its arguments already."
                )
            supervisor.expect(len(function))
            entry = deque(function.take(partial(self.add, account)))
        else:
            entry = Item(function, args, kwargs)
            supervisor.expect(1)
        with supervisor.lock:
            state = self._state
            if state != "discarded":
                self._entries.append(entry)
            late = state == "released" and not self._scheduled
            if late:
                self._scheduled = True
        if state == "discarded":
            supervisor.account_for(_items_of([entry]), "discarded")
        elif late:
            supervisor.schedule(self)

    def finish(self, account: Account, *, failed: bool) -> None:
        """The request is over: its tasks may run, or, if it has `failed`, are discarded. A second time is nothing."""
        supervisor = self.supervisor
        with supervisor.lock:
            if self._state != "filling":
                return
            if failed and not supervisor.run_on_error:
                self._state = "discarded"
            else:
                self._state = "released"
                self._scheduled = bool(self._entries)
        if self._state == "discarded":
            supervisor.account_for(_items_of(self.take_all()), "discarded")
        elif self._scheduled:
            if supervisor.runs_here():
                supervisor.schedule(self)
            else:
                supervisor.unclaimed.queues.append(self)

    def finish_late(self) -> None:
        """The request is over, and was when the queue was made."""
        with self.supervisor.lock:
            if self._state != "filling":
                return
            self._state = "released"
            self._scheduled = True
        self.supervisor.schedule(self)

    def take(self) -> Entry | None:
        """The next one; after None it has to be scheduled again."""
        entries = self._entries
        if not entries:
            with self.supervisor.lock:  # `add` looks at both
                if not entries:
                    self._scheduled = False
                    return None
        return entries.popleft()

    def take_all(self) -> list[Entry]:
        """All that are there, none of which will run."""
        with self.supervisor.lock:
            entries = list(self._entries)
            self._entries.clear()
            self._scheduled = False
            return entries


class Supervisor:
    """Runs queues, and answers for their tasks.

    :param max_concurrency: how many queues run at the same time.
    :param max_pending: how many tasks may wait for their turn.
    :param limiter: for those that are not async and run in worker threads.
    :param run_on_error: whether the tasks of a request that has failed run all the same.
    :param on_error: told of each task that did not end well, in whatever thread that is found. What it raises is
        logged.
    :ivar lock: held while queues and counts are changed.
    :ivar counts: what has become of tasks.
    :ivar is_open: whether queues run apart from who releases them.
    :ivar unclaimed: those that were released in this thread while they did not: for who has served the request to run,
        at once.
    """

    def __init__(
        self,
        *,
        max_concurrency: int,
        max_pending: int,
        limiter: ThreadLimiter,
        run_on_error: bool = False,
        on_error: OnError | None = None,
    ) -> None:
        self.run_on_error = run_on_error
        self._max_concurrency = max_concurrency
        self._max_pending = max_pending
        self._limiter = limiter
        self._on_error = on_error
        # Re-entrant: a garbage collection may close a coroutine whose tasks are to be accounted for.
        self.lock = RLock()
        self.is_open = False
        self.unclaimed = _Unclaimed()
        self._closed = False
        self._coming = 0  # queues on their way from other threads
        self.counts = dict.fromkeys(_SETTLED, 0)
        self._unsettled = 0  # accepted, and none of these yet
        self._running: set[Item] = set()
        self._loop: Loop | None = None
        self._ready: deque[TaskQueue] = deque()
        self._runners: set[_Runner] = set()
        self._drained: Flag | None = None
        _supervisors.add(self)
        weakref.finalize(self, _add_to_past, self.counts).atexit = False

    # ---- for queues

    def add(
        self, account: Account, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Make the queue of a request, and begin it; see :meth:`TaskQueue.add`."""
        with self.lock:
            queue = account.tasks
            if queue is self:  # or another thread of the request was faster
                queue = account.tasks = TaskQueue(self)
        assert queue is not None
        queue.add(account, function, args, kwargs)
        if account.closed and isinstance(queue, TaskQueue):
            queue.finish_late()  # unless `finish` has met the queue

    @property
    def supervisor(self) -> Supervisor:
        """Itself, as a queue has it."""
        return self

    def finish(self, account: Account, *, failed: bool) -> None:
        """The request is over, and nothing was added in it. What comes late runs, or is discarded if it `failed`."""
        if not failed or self.run_on_error:
            return
        with self.lock:
            queue = account.tasks
            if queue is self:
                queue = account.tasks = TaskQueue(self)
        assert queue is not None
        queue.finish(account, failed=True)

    def expect(self, number: int) -> None:
        """Count so many tasks more that wait.

        :raises QueueFullError: that is too many.
        """
        with self.lock:
            pending = self._unsettled - len(self._running)
            if pending + number > self._max_pending:
                raise QueueFullError(pending, self._max_pending)
            self._unsettled += number

    def schedule(self, queue: TaskQueue) -> None:
        """Run `queue` when there is room for it; from any thread."""
        loop = self._loop
        if loop is None:
            # It was never open, and the request, whose call would have run the queue, is over.
            self._give_up(queue)
        elif loop.is_current():
            self._admit(queue)
        else:
            with self.lock:
                self._coming += 1
            if not loop.call_soon(partial(self._admit, queue, came=1)):
                with self.lock:
                    self._coming -= 1
                self._give_up(queue)

    def statistics(self) -> dict[str, int]:
        """How many tasks wait, run, and have become what."""
        with self.lock:
            running = len(self._running)
            return {"pending": self._unsettled - running, "running": running, **self.counts}

    # ---- for who owns it

    def open(self) -> None:
        """Run queues on the running loop from now on."""
        self._loop = running_loop()
        self._drained = None
        self._closed = False
        self.is_open = True

    def runs_here(self) -> bool:
        """Whether a queue that is scheduled runs by itself, on the loop of the caller."""
        return self.is_open and self._loop is not None and self._loop.is_current()

    def detach(self) -> None:
        """Take no more queues; those that were scheduled are run to their end, as long as the loop lives."""
        self.is_open = False

    async def run_unclaimed(self) -> None:
        """Run the queues that nobody else will, and wait for their end."""
        loop = running_loop()
        queues = self._take_unclaimed()
        try:
            await loop.together([partial(self._run, loop, queue, here=True) for queue in queues])
        finally:
            for queue in queues:
                self._give_up(queue)  # should one have been cancelled before it had begun

    def give_up_unclaimed(self) -> None:
        """Account for the queues that nobody will run."""
        for queue in self._take_unclaimed():
            self._give_up(queue)

    def _take_unclaimed(self) -> list[TaskQueue]:
        queues, self.unclaimed.queues = self.unclaimed.queues, []
        return queues

    async def drain(self, seconds: float) -> None:
        """Wait until all that was accepted is done, at most so many `seconds`; then cancel the rest, and wait for that.

        After it the supervisor is closed.
        """
        loop = self._loop
        if loop is None:
            return
        if self._runners or self._ready or self._coming:
            self._drained = loop.flag()
            if not await self._drained.wait(seconds):
                self._closed = True
                for queue in list(self._ready):
                    self._give_up(queue)
                self._ready.clear()
                self._drained = loop.flag()
                for runner in list(self._runners):
                    runner.job.cancel()
                if self._runners or self._coming:
                    await self._drained.wait()
        self._closed = True
        self.is_open = False

    # ---- inside

    def _admit(self, queue: TaskQueue, came: int = 0) -> None:
        with self.lock:
            self._coming -= came
        if self._closed:  # while it was on its way here
            self._give_up(queue)
            self._look_drained()
            return
        self._ready.append(queue)
        if len(self._runners) < self._max_concurrency:
            assert self._loop is not None
            runner = _Runner()
            self._runners.add(runner)
            try:
                runner.job = self._loop.start(
                    partial(self._run_ready, self._loop, runner), partial(self._note_end, runner)
                )
            except RuntimeError:  # the loop takes no more work: it ends
                self._note_end(runner)

    async def _run_ready(self, loop: Loop, runner: _Runner) -> None:
        try:
            while self._ready:
                await self._run(loop, self._ready.popleft())
        finally:
            self._runners.discard(runner)

    def _note_end(self, runner: _Runner) -> None:
        """A runner is over; it may have been cancelled before it began."""
        self._runners.discard(runner)
        if not self._runners:
            while self._ready:  # the loop has cancelled all: it ends
                self._give_up(self._ready.popleft())
            self._look_drained()

    def _look_drained(self) -> None:
        if self._drained is not None and not (self._runners or self._ready or self._coming):
            self._drained.set()

    async def _run(self, loop: Loop, queue: TaskQueue, *, here: bool = False) -> None:
        try:
            while not self._stops(loop, here=here) and (entry := queue.take()) is not None:
                if isinstance(entry, Item):
                    await self._run_item(loop, entry)
                else:
                    await self._run_groups(loop, entry, here=here)
        except BaseException:  # the loop has cancelled this
            self._give_up(queue)
            raise
        if self._stops(loop, here=here):
            self._give_up(queue)

    def _stops(self, loop: Loop, *, here: bool) -> bool:
        """Whether no other task is to begin: a task may have swallowed the cancellation."""
        return (self._closed and not here) or not loop.begins_anew()

    async def _run_groups(self, loop: Loop, groups: deque[Group], *, here: bool) -> None:
        try:
            while groups and not self._stops(loop, here=here):
                group = groups.popleft()
                if len(group) == 1:
                    await self._run_item(loop, group.pop())
                else:
                    await self._run_group(loop, group)
        finally:
            self.account_for(_items_of([groups]), "cancelled")

    async def _run_group(self, loop: Loop, group: Group) -> None:
        waiting = set(group)

        async def begin(item: Item) -> None:
            waiting.discard(item)
            await self._run_item(loop, item)

        try:
            await loop.together([partial(begin, item) for item in group])
        finally:
            self.account_for(waiting, "cancelled")  # before they had begun

    async def _run_item(self, loop: Loop, item: Item) -> None:
        self._running.add(item)
        account = item.account
        started_ns = perf_counter_ns()
        reason: Reason | Literal["done"] = "done"
        error = None
        try:
            if item.timeout is None:
                await item.start(self._limiter)
            elif not await loop.attempt(item.start(self._limiter), item.timeout):
                reason = "timed_out"
        except BaseException as raised:
            if loop.is_cancellation(raised):
                if item.error is not None:
                    reason, error = "failed", item.error
                elif not item.has_finished:
                    reason = "cancelled"
                raise
            reason, error = "failed", raised
        finally:
            if account is not None:
                account.observe("background_wait_time", started_ns - item.added_ns)
                account.observe("background_time", perf_counter_ns() - started_ns)
            self._running.discard(item)
            with self.lock:
                self._unsettled -= 1
                self.counts[reason] += 1
            if reason != "done":
                self._tell(item, reason, error)
            del error, item

    def _give_up(self, queue: TaskQueue) -> None:
        """Account for what a queue still holds, and what will not run."""
        self.account_for(_items_of(queue.take_all()), "cancelled")

    def account_for(self, items: Iterable[Item], reason: Reason) -> None:
        """Account for tasks that waited and will not run."""
        for item in items:
            with self.lock:
                self._unsettled -= 1
                self.counts[reason] += 1
            self._tell(item, reason, None)

    def _tell(self, item: Item, reason: Reason, error: BaseException | None) -> None:
        if reason == "failed":
            logger.error("The background task %s failed.", item.describe(), exc_info=error)
        elif reason == "timed_out":
            logger.error(
                "The background task %s was given up after %g s.", item.describe(), item.timeout
            )
        elif reason == "cancelled":
            logger.error(
                "The background task %s could not finish before the shutdown.", item.describe()
            )
        else:
            logger.warning(
                "The background task %s was discarded: its request failed.", item.describe()
            )
        if self._on_error is None:
            return
        try:
            self._on_error(
                TaskFailure(item.name, reason, error, item.function, item.args, item.kwargs)
            )
        except BaseException as failure:  # whatever it is, the tasks go on
            logger.error("on_error failed for %s.", item.describe(), exc_info=failure)


class _Unclaimed(threading.local):
    def __init__(self) -> None:
        self.queues: list[TaskQueue] = []


class _Runner:
    """One of those that take queues in turn."""

    job: Job


def _items_of(entries: Iterable[Entry]) -> Iterator[Item]:
    for entry in entries:
        if isinstance(entry, Item):
            yield entry
        else:
            for group in entry:
                yield from group


async def run_alone(tasks: TaskList) -> None:
    """Run a list that belongs to nobody else, and wait for its end."""
    supervisor = Supervisor(
        max_concurrency=1, max_pending=max(1, len(tasks)), limiter=default_limiter()
    )
    supervisor.expect(len(tasks))
    loop = running_loop()
    groups = deque(tasks.take())
    try:
        await loop.together([partial(supervisor._run_groups, loop, groups, here=True)])
    finally:
        supervisor.account_for(_items_of([groups]), "cancelled")  # should it not have begun


_supervisors: weakref.WeakSet[Supervisor] = weakref.WeakSet()
_past = dict.fromkeys(
    _SETTLED, 0
)  # of supervisors that are gone: what was counted does not go with them


def _add_to_past(counts: dict[str, int]) -> None:
    for name, number in counts.items():
        _past[name] += number


def background_stats() -> dict[str, int]:
    """The tasks of all supervisors of the process, by what became of them."""
    stats = {"pending": 0, "running": 0, **_past}
    for supervisor in list(_supervisors):
        for name, number in supervisor.statistics().items():
            stats[name] += number
    return stats
