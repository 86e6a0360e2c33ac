"""Runs the tasks that requests leave behind, and answers for each of them.

The rules:

* The tasks of one request run one after the other, in the order they were added; those of different requests at the
  same time, `max_concurrency` requests at once.
* Every task that was accepted is, in the end, done, handed off, failed, timed out, cancelled, discarded or lost, and
  counted as that. Of all but the first two a line is logged, and `on_error` is told.
* Whatever a task raises stays with it: the next one runs. Only the cancellation of the supervisor's own work by the
  loop is another matter: it ends that, and what had not been run is told of as cancelled.
* There are at most `max_pending` tasks that wait for their turn; who adds one more is told so.

It knows nothing of requests: a queue is filled while one is served, and then released, or discarded.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Iterable
from functools import partial
from math import inf
from threading import RLock
from time import perf_counter_ns
from typing import Any, Literal

from asgi_perfkit.exceptions import QueueFullError
from asgi_perfkit.steps import Account
from asgi_perfkit.steps.loop import asyncio_loop
from asgi_perfkit.tasks.failure import (
    OnError,
    Reason,
    TaskFailure,
    log_failure,
    log_fallback,
    log_on_error_failure,
)
from asgi_perfkit.tasks.handoff import Handoff
from asgi_perfkit.tasks.item import Item, TaskList
from asgi_perfkit.tasks.loop import Flag, Job, Loop
from asgi_perfkit.tasks.running import running_loop
from asgi_perfkit.tasks.stretch import Stretch
from asgi_perfkit.tasks.submission import submit
from asgi_perfkit.tasks.task_queue import Group, TaskQueue, items_of
from asgi_perfkit.threads.limiter import ThreadLimiter, default_limiter

__all__ = ["Supervisor", "TaskQueue", "background_stats", "run_alone"]

_SETTLED = ("done", "failed", "timed_out", "cancelled", "discarded", "handed_off", "lost")
_COUNTED = (*_SETTLED, "handoff_failed")  # of tasks that ran here then, or are lost


class Supervisor:
    """Runs queues, and answers for their tasks.

    :param max_concurrency: how many queues run at the same time.
    :param max_pending: how many tasks may wait for their turn.
    :param limiter: for those that are not async and run in worker threads.
    :param run_on_error: whether the tasks of a request that has failed run all the same.
    :param on_error: told of each task that did not end well, in whatever thread that is found; not, while it runs, of
        one that it has added itself and that cannot run any more. What it raises is logged.
    :param handoff: where the tasks run that have no engine of their own, if it knows them; None for here.
    :ivar lock: held while queues and counts are changed.
    :ivar counts: what has become of tasks.
    :ivar stretches: those that are running; each has a number of tasks done beside `counts`.
    :ivar home: the asyncio loop on which queues run by themselves, for who asks at every request; what no loop is while
        there is none, and on trio.
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
        handoff: Handoff | None = None,
    ) -> None:
        self.run_on_error = run_on_error
        self.handoff = handoff
        self._max_concurrency = max_concurrency
        self._max_pending = max_pending
        self._limiter = limiter
        self._on_error = on_error
        # Re-entrant: a garbage collection may close a coroutine whose tasks are to be accounted for.
        self.lock = RLock()
        self.home: object = self
        self.is_open = False
        self.unclaimed = _Unclaimed()
        self._telling = _Telling()
        self._closed = False
        self._coming = 0  # queues on their way from other threads
        self.counts = dict.fromkeys(_COUNTED, 0)
        self._unsettled = 0  # accepted, and none of these yet
        self._running: set[Item] = set()
        self.stretches: set[Stretch] = set()
        self._loop: Loop | None = None
        self._ready: deque[TaskQueue] = deque()
        self._runners: set[_Runner] = set()
        self._drained: Flag | None = None
        self._hurry: Flag | None = None  # set when the drain begins
        with _listing:
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
        # Where the end has not come so far, `finish` will find the queue.
        if account.closed and account.late is not None and isinstance(queue, TaskQueue):
            queue.finish_late()

    holds_tasks = False

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
            if self._unsettled - len(self._running) + number > self._max_pending:
                pending = self._unsettled - self._done_meanwhile() - len(self._running)
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
            running, done = len(self._running), self._done_meanwhile()
            counts = {**self.counts, "done": self.counts["done"] + done}
            return {"pending": self._unsettled - done - running, "running": running, **counts}

    # ---- for who owns it

    def open(self) -> None:
        """Run queues on the running loop from now on."""
        if self._loop is not None and not self._loop.is_current():
            # That may have been closed under its tasks, without a word to them.
            self._runners = set()
            left, self._ready = self._ready, deque()
            for queue in left:
                self._give_up(queue)
        self._loop = running_loop()
        self._drained = None
        self._hurry = self._loop.flag()
        self._closed = False
        self.is_open = True
        self.home = asyncio_loop() or self

    def runs_here(self) -> bool:
        """Whether a queue that is scheduled runs by itself, on the loop of the caller."""
        return self.is_open and self._loop is not None and self._loop.is_current()

    def detach(self) -> None:
        """Take no more queues; those that were scheduled are run to their end, as long as the loop lives."""
        self.is_open = False
        self.home = self

    async def run_unclaimed(self) -> None:
        """Run the queues that nobody else will, and wait for their end."""
        loop = running_loop()
        queues = self._take_unclaimed()
        try:
            await loop.together([partial(self._run_here, loop, queue) for queue in queues])
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
        if self._hurry is not None:
            self._hurry.set()
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
        self.detach()

    def settle(self, done: int) -> None:
        """Count so many tasks as done; with the lock held."""
        self._unsettled -= done
        self.counts["done"] += done

    # ---- inside

    def _done_meanwhile(self) -> int:
        return sum(stretch.done for stretch in self.stretches)

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
        else:
            queue.let_go()

    async def _run_ready(self, loop: Loop, runner: _Runner) -> None:
        stretch = Stretch(self)
        try:
            while self._ready:
                await self._run(loop, self._ready.popleft(), stretch)
        finally:
            stretch.close()
            self._runners.discard(runner)

    async def _run_here(self, loop: Loop, queue: TaskQueue) -> None:
        stretch = Stretch(self)
        try:
            await self._run(loop, queue, stretch, here=True)
        finally:
            stretch.close()

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

    async def _run(
        self, loop: Loop, queue: TaskQueue, stretch: Stretch, *, here: bool = False
    ) -> None:
        try:
            while (
                (here or not self._closed)
                and loop.begins_anew()
                and (entry := queue.take()) is not None
            ):
                if not isinstance(entry, Item):
                    queue.let_go()
                    await self._run_groups(loop, entry, stretch, here=here)
                elif (rest := self._begin(loop, entry, stretch)) is not None:
                    stretch.note()
                    queue.let_go()
                    await rest
                    stretch.begin()
                elif stretch.ended_ns > stretch.until_ns:
                    stretch.note()
                    await loop.pause()
                    stretch.begin()
        except BaseException:  # the loop has cancelled this
            self._give_up(queue)
            raise
        finally:
            stretch.note()
        if self._stops(loop, here=here):
            self._give_up(queue)

    def _stops(self, loop: Loop, *, here: bool) -> bool:
        """Whether no other task is to begin: a task may have swallowed the cancellation."""
        return (self._closed and not here) or not loop.begins_anew()

    async def _run_groups(
        self, loop: Loop, groups: list[Group], stretch: Stretch, *, here: bool
    ) -> None:
        try:
            while groups and not self._stops(loop, here=here):
                group = groups.pop()
                rest: Awaitable[None] | None
                if len(group) == 1:
                    rest = self._begin(loop, group.pop(), stretch)
                else:
                    rest = self._run_group(loop, group)
                if rest is None and stretch.ended_ns > stretch.until_ns:
                    rest = loop.pause()
                if rest is not None:
                    stretch.note()
                    await rest
                    stretch.begin()
        finally:
            self.account_for(items_of([groups]), "cancelled")

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
        stretch = Stretch(self)
        try:
            rest = self._begin(loop, item, stretch)
            if rest is not None:
                await rest
        finally:
            stretch.close()

    def _begin(self, loop: Loop, item: Item, stretch: Stretch) -> Awaitable[None] | None:
        """Run a task as far as it goes without waiting, which short ones do to their end.

        :return: what is left of it, to be awaited at once; None if it is done.
        :raises: the cancellation of the running task by others.
        """
        if item.handoff or item.timeout is not None or not item.is_async:
            return self._run_rest(loop, item, stretch)
        self._running.add(item)
        started_ns = perf_counter_ns()
        try:
            rest = item.begin()
        except BaseException as error:
            if self._settle_raised(loop, item, stretch, started_ns, error):
                raise
        else:
            if rest is not None:
                return self._run_rest(loop, item, stretch, rest, started_ns)
            ended_ns = perf_counter_ns()
            self._running.discard(item)
            stretch.done += 1
            stretch.add(item.account, item.added_ns, started_ns, ended_ns)
        return None

    async def _run_rest(
        self,
        loop: Loop,
        item: Item,
        stretch: Stretch,
        rest: Awaitable[None] | None = None,
        started_ns: int = 0,
    ) -> None:
        if rest is None and item.handoff and await self._hand_off(loop, item):
            return
        self._running.add(item)
        started_ns = started_ns or perf_counter_ns()
        reason: Reason | Literal["done"] = "done"
        try:
            if rest is not None:
                await rest
            elif item.timeout is None:
                await item.start(self._limiter)
            elif not await loop.attempt(item.start(self._limiter), item.timeout):
                reason = "timed_out"
        except BaseException as error:
            if self._settle_raised(loop, item, stretch, started_ns, error):
                raise
        else:
            self._settle(item, stretch, started_ns, reason)
        finally:
            stretch.note()
            del item

    def _settle_raised(
        self, loop: Loop, item: Item, stretch: Stretch, started_ns: int, error: BaseException
    ) -> bool:
        """Account for a task that has raised; says whether that is the cancellation of the running task by others."""
        if not loop.is_cancellation(error):
            self._settle(item, stretch, started_ns, "failed", error)
            return False
        if item.error is not None:
            self._settle(item, stretch, started_ns, "failed", item.error)
        else:
            self._settle(item, stretch, started_ns, "done" if item.has_finished else "cancelled")
        return True

    def _settle(
        self,
        item: Item,
        stretch: Stretch,
        started_ns: int,
        reason: Reason | Literal["done"],
        error: BaseException | None = None,
    ) -> None:
        """Account for a task that has run."""
        stretch.add(item.account, item.added_ns, started_ns, perf_counter_ns())
        self._running.discard(item)
        with self.lock:
            self._unsettled -= 1
            self.counts[reason] += 1
        if reason != "done":
            stretch.note()
            self._tell(item, reason, error)

    async def _hand_off(self, loop: Loop, item: Item) -> bool:
        """Give a task to its engine; False if it is to run here after all."""
        handoff = item.handoff
        assert isinstance(handoff, Handoff)
        reason: Reason | Literal["handed_off"] | None = "cancelled"
        error = None
        self._running.add(item)
        try:
            hurry = self._hurry if loop is self._loop else None
            error = await submit(item, handoff, loop=loop, limiter=self._limiter, hurry=hurry)
            if error is None:
                reason = "handed_off"
            elif not loop.begins_anew():  # an engine has swallowed the cancellation
                error = None
            else:
                with self.lock:
                    self.counts["handoff_failed"] += 1
                if handoff.fallback == "report":
                    reason = "lost"
                else:
                    reason = None
                    log_fallback(item, handoff, error)
        finally:
            self._running.discard(item)
            if reason is not None:
                if item.account is not None:
                    item.account.observe("background_wait_time", perf_counter_ns() - item.added_ns)
                self.account_for([item], reason, error)
            del error, item  # the frames of its traceback hold this one
        return reason is not None

    def _give_up(self, queue: TaskQueue) -> None:
        """Account for what a queue still holds, and what will not run."""
        self.account_for(items_of(queue.take_all()), "cancelled")

    def account_for(
        self,
        items: Iterable[Item],
        reason: Reason | Literal["handed_off"],
        error: BaseException | None = None,
    ) -> None:
        """Account for tasks that waited and will not run here."""
        for item in items:
            with self.lock:
                self._unsettled -= 1
                self.counts[reason] += 1
            if reason != "handed_off":
                self._tell(item, reason, error)

    def _tell(self, item: Item, reason: Reason, error: BaseException | None) -> None:
        log_failure(item, reason, error)
        telling = self._telling
        outer_ns = telling.since_ns
        # What `on_error` adds itself may come to nothing at once; told of that, it might do so for ever.
        if self._on_error is None or item.added_ns >= outer_ns:
            return
        telling.since_ns = min(outer_ns, perf_counter_ns())
        try:
            self._on_error(
                TaskFailure(item.name, reason, error, item.function, item.args, item.kwargs)
            )
        except BaseException as failure:  # whatever it is, the tasks go on
            log_on_error_failure(item, failure)
        finally:
            telling.since_ns = outer_ns


class _Telling(threading.local):
    """Since when `on_error` runs in this thread."""

    since_ns: float = inf  # it does not


class _Unclaimed(threading.local):
    def __init__(self) -> None:
        self.queues: list[TaskQueue] = []


class _Runner:
    """One of those that take queues in turn."""

    job: Job


async def run_alone(tasks: TaskList) -> None:
    """Run a list that belongs to nobody else, and wait for its end."""
    supervisor = Supervisor(
        max_concurrency=1, max_pending=max(1, len(tasks)), limiter=default_limiter()
    )
    tasks.direct(None)
    supervisor.expect(len(tasks))
    loop = running_loop()
    groups = list(tasks.take())
    groups.reverse()
    stretch = Stretch(supervisor)
    try:
        await loop.together([partial(supervisor._run_groups, loop, groups, stretch, here=True)])
    finally:
        stretch.close()
        supervisor.account_for(items_of([groups]), "cancelled")  # should it not have begun


# Re-entrant: a garbage collection in the middle may end a supervisor.
_listing = RLock()
_supervisors: weakref.WeakSet[Supervisor] = weakref.WeakSet()
_past = dict.fromkeys(
    _COUNTED, 0
)  # of supervisors that are gone: what was counted does not go with them


def _add_to_past(counts: dict[str, int]) -> None:
    with _listing:
        for name, number in counts.items():
            _past[name] += number


def background_stats() -> dict[str, int]:
    """The tasks of all supervisors of the process, by what became of them."""
    with _listing:
        supervisors = list(_supervisors)
        stats = {"pending": 0, "running": 0, **_past}
    for supervisor in supervisors:
        for name, number in supervisor.statistics().items():
            stats[name] += number
    return stats
