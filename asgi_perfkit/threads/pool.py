"""Worker threads for asyncio and uvloop.

A worker sleeps on a lock of its own; releasing the lock wakes it. A call that has its token goes to those that are
ready, and a worker is woken for it: the last that has lain down, so that those which there has been nothing to do for
for a while end. A worker that has finished takes the next call that is ready, whoever was woken for it. What is done is
told to the loop in batches: one wake-up of the loop takes all that is done by then.

There is one pool for each loop. It needs no limit of its own: a call gets here when it has its token.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from threading import RLock, Thread
from typing import Any, Final

from asgi_perfkit.threads.asyncio_call import AsyncioCall
from asgi_perfkit.threads.call import NO_THREAD, Pin
from asgi_perfkit.threads.limiter import EXIT, MAY_STALL, STALL_SECONDS, ThreadLimiter, Waiter

__all__ = ["PooledCall", "WorkerPin", "count_threads"]

IDLE_SECONDS: Final = 10.0  # after which a worker with nothing to do ends
# Workers that are on their way at once. Whoever comes takes a call and wakes the next if there are more, and by then
# those that run may have taken them: fifty short calls at once cost half as much as with a wake-up for each.
_MAX_COMING: Final = 4
_EXIT_SECONDS: Final = 1.0  # for idle workers to end with the interpreter; they need microseconds


class WorkerPin(Pin):
    """Keeps a worker of an asyncio pool."""

    __slots__ = ("worker",)

    def __init__(self, loop: object) -> None:
        super().__init__(loop)
        self.worker: Worker | None = None

    def release(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.unpin()

    def __del__(self) -> None:
        # A garbage collection may come while any lock is held, so none is taken here.
        if self.worker is not None:
            self.worker.unpin_later()


class PooledCall(AsyncioCall):
    """A call for a worker of the pool of the loop."""

    __slots__ = ("pool",)

    pin: WorkerPin | None
    limiter: ThreadLimiter

    def begin(self) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        try:
            self.pool = _pools[loop]
        except KeyError:
            self.pool = _new_pool(loop)
        limiter = self.limiter
        if limiter._acquire(self):
            self.proceed()
        elif self.kind in MAY_STALL:
            loop.call_later(STALL_SECONDS, self._look_for_stall, limiter._moves[self.kind])

    def _look_for_stall(self, moves: int) -> None:
        seen = self.limiter._rescue(self, moves)
        if seen is not None:
            self.loop.call_later(STALL_SECONDS, self._look_for_stall, seen)

    def proceed(self) -> None:
        admitted = self._start()
        if admitted:
            going = list(admitted)
            for waiter in going:
                if isinstance(waiter, PooledCall):
                    going += waiter._start()
                else:
                    waiter.proceed()

    def _start(self) -> Sequence[Waiter]:
        """Get a thread, or fail; returns who has got the token in the latter case."""
        try:
            self.pool.start(self)
        except RuntimeError as error:
            self.error = error
            admitted = self.limiter._release(self.kind)
            self.pool.post(self)
            return admitted
        return ()

    def _leave_queue(self) -> bool:
        return self.limiter._withdraw(self)


class Pool:
    """The workers of one loop. Its methods may be called in any thread.

    :ivar lock: held while the fields below are changed. Re-entrant: a garbage collection may release a pin.
    :ivar ready: calls that have their token and no worker yet, in the order they came.
    :ivar active: how many calls there are that are ready or run.
    :ivar size: how many workers there are; of this and the next, the pinned ones are not part.
    :ivar coming: how many workers were woken and have not come for a call yet.
    :ivar idle: the workers that sleep, the last to lie down at the end.
    :ivar threads: of all workers that live.
    :ivar closing: whether the loop is about to be closed: no worker lies down any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.start_anew()
        # Loops close their asynchronous generators before they close: the only word of it that there is.
        self._keeper = self._keep()
        if getattr(
            loop, "_asyncgens_shutdown_called", False
        ):  # they are closed already; uvloop does not tell
            self.closing = True
            return
        try:
            first: Any = self._keeper.__anext__()
        except (
            ResourceWarning
        ):  # as an error; elsewhere the workers end when they have been idle for long
            self.closing = True
            return
        with contextlib.suppress(StopIteration):
            first.send(None)

    def start_anew(self) -> None:
        """Begin without workers: they do not exist in a forked child."""
        self.lock = RLock()
        self.ready: deque[PooledCall] = deque()
        self.active = self.size = self.coming = 0
        self.idle: list[Worker] = []
        self.threads: set[Worker] = set()
        self.closing = False
        self._ended: list[Worker] = []  # some of these may have their last step to make still
        self._done: deque[PooledCall] = deque()
        self._told = False  # whether the loop is about to look at what is done
        self._fewer: asyncio.Future[None] | None = None

    def start(self, call: PooledCall) -> None:
        """Run a `call` that has its token.

        :raises RuntimeError: it needs a new thread, and the system has none left; or it needs that of a manager which
            has been exited meanwhile.
        """
        pin = call.pin
        with self.lock:
            if pin is not None:
                if pin.closed and call.kind != EXIT:
                    raise RuntimeError(NO_THREAD)
                # A pin that was forgotten keeps its worker no more: an exit that comes even so runs in any.
                if pin.worker is not None and pin.worker.kept:
                    pin.worker.give(call)
                    return
            self.ready.append(call)
            self.active += 1
            if self.idle:
                self._wake_another()
            if (
                self.size >= self.active
            ):  # one of the workers sleeps, or is awake and has nothing to do yet
                return
            self.size += 1
            worker = Worker(self)
            self.threads.add(worker)
            self._ended = [ended for ended in self._ended if ended.is_alive()]
        try:
            worker.start()
        except RuntimeError:
            with self.lock:
                self.threads.discard(worker)
                self.size -= 1
                if call in self.ready:  # and nobody else has come for it
                    self.ready.remove(call)
                    self.active -= 1
                    raise

    def post(self, call: PooledCall) -> None:
        """Tell the loop that a `call` is over."""
        self._done.append(call)
        if not self._told:
            self._told = True
            self.tell(self._deliver)

    def tell(self, callback: Callable[[], object]) -> bool:
        """Have the loop call `callback`; False if it is closed, and nobody waits there."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False
        return True

    def _deliver(self) -> None:
        self._told = False  # first: what is done from now on is told again
        done = self._done
        while done:
            done.popleft().finish()

    def next_call(self, worker: Worker) -> PooledCall | None:
        """A call for a `worker` that has nothing to do; it lies down if there is none. Called with the lock held."""
        if worker.pinned:
            if worker.given:
                return worker.given.popleft()
            if worker.kept:
                worker.rests = True
                return None
            worker.pinned = False
            self.size += 1
        if self.ready:
            call = self.ready.popleft()
            if self.ready and self.idle:
                self._wake_another()
            return call
        if self.closing:
            worker.dismissed = True
            self.size -= 1
        else:
            self.idle.append(worker)
        return None

    def _wake_another(self) -> None:
        if self.coming < _MAX_COMING:
            worker = self.idle.pop()
            worker.coming = True
            self.coming += 1
            worker.wake()

    def retire(self, worker: Worker) -> bool:
        """Let a `worker` end that has slept for long; False if somebody has just woken it, or it is pinned."""
        with self.lock:
            if worker not in self.idle:
                return False
            self.idle.remove(worker)
            self.size -= 1
            return True

    def dismiss_idle(self) -> None:
        """Have the idle workers end."""
        with self.lock:
            self.size -= len(self.idle)
            for worker in self.idle:
                worker.dismissed = True
                worker.wake()
            self.idle.clear()

    def note_end(self, worker: Worker) -> None:
        """A worker ends; runs in its thread."""
        with self.lock:
            self.threads.discard(worker)
            self._ended.append(worker)
        if self.closing:
            self.tell(self.note_fewer)

    def note_fewer(self) -> None:
        if self._fewer is not None and not self._fewer.done():
            self._fewer.set_result(None)

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            # Other asynchronous generators are being closed, too, and may have calls to make still.
            with self.lock:
                self.closing = True
            self.dismiss_idle()
            while any(not worker.kept for worker in list(self.threads)):
                self._fewer = self._loop.create_future()
                await self._fewer
            with self.lock:
                ended = list(self._ended)
            for worker in ended:
                worker.join()
            # The pool stays: who makes a call still, before the loop is closed, gets a worker that ends after it.


class Worker(Thread):
    """One thread of a pool.

    :ivar coming: whether it was woken and has not come for a call yet.
    :ivar dismissed: whether it ends when it is woken.
    :ivar pinned: whether it belongs to whoever holds its pin, and runs what it is given and nothing else.
    :ivar kept: whether it is to stay so.
    :ivar given: that, in the order it came.
    :ivar rests: whether it is pinned and sleeps.
    """

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="asgi_perfkit worker", daemon=True)
        self.coming = False
        self.dismissed = False
        self.pinned = False
        self._pool = pool
        self.kept = False
        self.given: deque[PooledCall] = deque()
        self.rests = False
        self._alarm = allocate_lock()  # held by the worker; releasing it wakes it
        self._alarm.acquire()
        self.wake = self._alarm.release

    def give(self, call: PooledCall) -> None:
        """Run a `call` for who holds the pin."""
        with self._pool.lock:
            self.given.append(call)
            if self.rests:
                self.rests = False
                self.wake()

    def unpin(self) -> None:
        """Be there for all again."""
        with self._pool.lock:
            self.kept = False
            if self.rests:
                self.rests = False
                self.wake()

    def unpin_later(self) -> None:
        """The same, from a place where no lock may be taken."""
        if not self._pool.tell(self.unpin):
            self.dismissed = True
            if self.rests:
                self.wake()

    def run(self) -> None:
        pool = self._pool
        while True:
            with pool.lock:
                if self.coming:
                    self.coming = False
                    pool.coming -= 1
                call = pool.next_call(self)
            while call is not None:
                call = self._carry_out(call)
            while not self.dismissed and not self._alarm.acquire(timeout=IDLE_SECONDS):
                self.dismissed = pool.retire(self)
            if self.dismissed:
                break
        pool.note_end(self)

    def _carry_out(self, call: PooledCall) -> PooledCall | None:
        """Run a `call`; returns the next one, if there is one for this worker."""
        call.execute()
        pool = self._pool
        with pool.lock:
            if not self.pinned:
                pool.active -= 1
                if call.pin is not None and not call.pin.closed:
                    call.pin.worker = self
                    self.pinned = self.kept = True
                    pool.size -= 1
                    if pool.closing:
                        pool.tell(pool.note_fewer)
            following = pool.next_call(self)
        # The token is given back only when a worker is ready for who takes it, and the caller told only after that: so
        # there are never more workers than tokens.
        admitted = call.limiter._release(call.kind)
        pool.post(call)
        for waiter in admitted:
            waiter.proceed()
        return following


_pools: dict[asyncio.AbstractEventLoop, Pool] = {}


def _new_pool(loop: asyncio.AbstractEventLoop) -> Pool:
    for other in list(_pools):
        if other.is_closed():  # perhaps without closing its asynchronous generators
            forgotten = _pools.pop(other, None)
            if forgotten is not None:
                forgotten.closing = True
                forgotten.dismiss_idle()
    pool = _pools[loop] = Pool(loop)
    return pool


def count_threads() -> tuple[int, int]:
    """How many worker threads there are for all asyncio loops, and how many of them are idle."""
    pools = list(_pools.values())
    return sum(len(pool.threads) for pool in pools), sum(len(pool.idle) for pool in pools)


def _start_all_anew() -> None:
    for pool in list(_pools.values()):
        pool.start_anew()


def _dismiss_all_idle() -> None:
    """At the end of the interpreter. A call that still runs is cut off: its loop has gone without waiting for it."""
    workers = []
    for pool in list(_pools.values()):
        with pool.lock:
            pool.closing = True
            workers += pool.idle
            pool.dismiss_idle()
    deadline = time.monotonic() + _EXIT_SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)
atexit.register(_dismiss_all_idle)
