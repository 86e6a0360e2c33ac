"""The trio side of :mod:`asgi_perfkit.threads`; imported only where trio runs.

The threads are trio's own, so that :mod:`trio.from_thread` works in them; the tokens are the kit's.
"""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import trio

from asgi_perfkit.steps.loop import on_trio
from asgi_perfkit.threads.call import NO_THREAD, Call, Pin
from asgi_perfkit.threads.limiter import EXIT, MAY_STALL, STALL_SECONDS, ThreadLimiter

__all__ = ["TrioCall", "TrioPin"]


class _NoLimit:
    """In place of a limiter of trio's: the call has its token already."""

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        pass

    def release_on_behalf_of(self, borrower: object) -> None:
        pass


_no_limit: Any = _NoLimit()


class TrioPin(Pin):
    """Keeps one of trio's threads: what it has to run comes through a queue."""

    __slots__ = ("_calls",)

    def __init__(self, loop: object) -> None:
        super().__init__(loop)
        self._calls: SimpleQueue[TrioCall | None] | None = None

    def give(self, call: TrioCall) -> None:
        if self._calls is None:
            self._calls = SimpleQueue()
            trio.lowlevel.spawn_system_task(_serve, self._calls)
        self._calls.put(call)

    def release(self) -> None:
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.put(None)

    __del__ = release


async def _serve(calls: SimpleQueue[TrioCall | None]) -> None:
    token = trio.lowlevel.current_trio_token()
    try:
        # A pin that is still held when the run of trio ends does not hold that up.
        await trio.to_thread.run_sync(
            _run_all, calls, token, limiter=_no_limit, abandon_on_cancel=True
        )
    except (
        Exception
    ) as error:  # the system has no thread left; a system task that raises ends all of trio
        while not calls.empty():
            call = calls.get()
            if call is not None:
                call.error = error
                call.finish()


def _run_all(calls: SimpleQueue[TrioCall | None], token: trio.lowlevel.TrioToken) -> None:
    while (call := calls.get()) is not None:
        call.execute()
        try:
            token.run_sync_soon(call.finish)
        except trio.RunFinishedError:  # it was left behind; others use its limiter still
            call._give_back()
        del call  # or its arguments and its result live until the next one


class TrioCall(Call):
    """A call in one of trio's threads."""

    __slots__ = ("_apart", "_ended", "_granted", "_token")

    limiter: ThreadLimiter
    pin: TrioPin | None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._token = trio.lowlevel.current_trio_token()
        self._apart = False  # whether it was begun, and is to run beside the task
        self._granted = trio.Event()
        self._ended = trio.Event()

    async def run(self, *, leaves: bool = True) -> None:
        if leaves:
            await self._run()
        else:
            with trio.CancelScope(shield=True):
                await self._run()

    async def _run(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._acquire()
        if self.pin is not None:
            if self._comes_too_late():
                self._give_back()
                return
            self.pin.give(self)
            with trio.CancelScope(shield=True):
                await self._ended.wait()
            return
        try:
            # trio waits for the thread even if the task is cancelled; that shows at its next checkpoint.
            await trio.to_thread.run_sync(self.execute, limiter=_no_limit)
        finally:
            self._give_back()

    async def _acquire(self) -> None:
        limiter = self.limiter
        moves = limiter._moves[self.kind]
        if limiter._acquire(self):
            return
        try:
            while self.kind in MAY_STALL:
                with trio.move_on_after(STALL_SECONDS):
                    await self._granted.wait()
                    return
                seen = limiter._rescue(self, moves)
                if seen is None:
                    break
                moves = seen
            await self._granted.wait()
        except BaseException:
            if not self.withdraw():
                self._give_back()
            raise

    def begin(self) -> None:
        self._apart = True
        if self.limiter._acquire(self):
            self._start_apart()

    def proceed(self) -> None:
        go_on = self._start_apart if self._apart else self._granted.set
        if on_trio() and trio.lowlevel.current_trio_token() is self._token:
            go_on()
            return
        try:
            self._token.run_sync_soon(go_on)
        except trio.RunFinishedError:
            self._give_back()

    def _start_apart(self) -> None:
        if self._comes_too_late():
            self.finish()
        elif self.pin is not None:
            self.pin.give(self)
        else:
            trio.lowlevel.spawn_system_task(self._run_apart)

    async def _run_apart(self) -> None:
        try:
            await trio.to_thread.run_sync(self.execute, limiter=_no_limit)
        except (
            Exception
        ) as error:  # the system has no thread left; a system task that raises ends all of trio
            self.error = error
        self.finish()

    def finish(self) -> None:
        """Give the token back and wake who waits for the call; runs on the loop."""
        self._give_back()
        self._end()

    def _end(self) -> None:
        self.over = True
        self._ended.set()

    async def wait(self, *, leaves: bool = True) -> None:
        await self._wait_in(trio.CancelScope(shield=not leaves))

    async def wait_a_moment(self, seconds: float) -> None:
        await self._wait_in(trio.CancelScope(deadline=trio.current_time() + seconds))

    async def _wait_in(self, cancel_scope: trio.CancelScope) -> None:
        try:
            with cancel_scope:
                await self._ended.wait()
        except BaseException:
            if not self.withdraw():
                with trio.CancelScope(shield=True):
                    await self._ended.wait()
            raise

    def withdraw(self) -> bool:
        withdrawn = self.limiter._withdraw(self)
        if withdrawn:
            self._end()
        return withdrawn

    def _comes_too_late(self) -> bool:
        """Whether the manager whose thread the call needs has been exited meanwhile; then that is its error."""
        if self.pin is None or not self.pin.closed or self.kind == EXIT:
            return False
        self.error = RuntimeError(NO_THREAD)
        return True

    def _give_back(self) -> None:
        for waiter in self.limiter._release(self.kind):
            waiter.proceed()
