"""One event loop that is watched for what keeps it from turning.

A timer of the loop notes that it turns: the beat. While the beat is on time nothing else is looked at, as no step can
be long. When it is not, the watching thread looks at the stack of the loop's thread, turn after turn:

* If it is within a step of a request, that tells since when the step lasts.
* If not, it is within a callback or a task of somebody else's. The loop runs each callback, and each task for one step,
  at most once between two beats that are due, so the same frame at two looks is the same call, which has gone on from
  the one to the other. A loop that is merely busy with many short ones shows another frame at each look.

Frames are told apart by where they lie, and that only as long as they exist. So those that are looked at are held until
the next beat, which lets go of them: what their code leaves behind is to be freed in the thread that it belongs to.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from asyncio import AbstractEventLoop, Handle
from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import Context
from time import perf_counter_ns
from types import FrameType
from typing import NamedTuple, Protocol

from asgi_perfkit import steps
from asgi_perfkit.profiling.pauses import Garbage, Pauses, ThreadClock, Tick, lock_wait_ns
from asgi_perfkit.profiling.stacks import Line, LoopThread, Step, frames_of, is_app_code, line_of
from asgi_perfkit.steps import Account

__all__ = ["AsyncioWatch", "Listener", "Look", "TrioWatch", "Turn", "Watch", "place_in"]

_MIN_PERIOD_NS = 5_000_000
_MAX_PERIOD_NS = 250_000_000
_MAX_PLACES = 64
_MAX_FRAMES = 64
_STEPS = os.path.dirname(steps.__file__) + os.sep  # noqa: PTH120  # compared with names of files
_CALLS = Handle._run.__code__
_DEBUGGERS = frozenset({"bdb", "pdb", "pydevd"})


class Turn:
    """One turn of the watching thread, as all watches need it.

    :ivar now_ns: on the monotonic clock.
    :ivar late_ns: by how much the watching thread was woken too late.
    :ivar lock_ns: how much of that it has waited for the interpreter's lock, as far as it can be told from starving.
    """

    __slots__ = ("_frames", "late_ns", "lock_ns", "now_ns")

    def __init__(self, now_ns: int, late_ns: int = 0, lock_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.late_ns = late_ns
        self.lock_ns = lock_ns
        self._frames: Mapping[int, FrameType] | None = None

    def frame_of(self, ident: int) -> FrameType | None:
        """The innermost frame of a thread."""
        if self._frames is None:
            self._frames = sys._current_frames()
        return self._frames.get(ident)

    def end(self) -> None:
        """Let go of all frames."""
        self._frames = None


class Look:
    """What has been seen of one step or call that lasts.

    :ivar key: tells it from others of its loop.
    :ivar account: whose step it is, if it is one of a request's.
    :ivar begin_ns: when it has begun, or the earliest moment that it can have.
    :ivar certain_ns: from when on it is certain to run.
    :ivar seen_ns: when it was seen last.
    :ivar excused_ns: how much of the time from `certain_ns` to `seen_ns` does not count.
    :ivar before: what had been counted before it began.
    :ivar places: where it was seen, and how often.
    :ivar debugged: whether somebody debugs it.
    :ivar told: whether it was told of.
    """

    __slots__ = (
        "account",
        "before",
        "begin_ns",
        "certain_ns",
        "debugged",
        "excused_ns",
        "key",
        "places",
        "seen_ns",
        "told",
    )

    def __init__(
        self,
        key: object,
        account: Account | None,
        begin_ns: int,
        certain_ns: int,
        excused_ns: int,
        before: Tick,
    ) -> None:
        self.key = key
        # A request that ends while it is looked at is freed where it belongs.
        self.account = None if account is None else weakref.ref(account)
        self.begin_ns = begin_ns
        self.certain_ns = self.seen_ns = certain_ns
        self.excused_ns = excused_ns
        self.before = before
        self.places: Counter[Line] = Counter()
        self.debugged = self.told = False


class _Seen(NamedTuple):
    """What was seen to run."""

    key: object
    step: Step | None
    stack: list[Line]
    debugged: bool


class Listener(Protocol):
    """Is told of what keeps a loop from turning."""

    def met(self, account: Account) -> None:
        """A step of `account` runs, which may be over, and the account with it, by the time that it is told of."""

    def stalled(self, watch: Watch, look: Look, place: Line, stack: list[Line]) -> None:
        """A step or call has lasted for the threshold, and goes on.

        :param place: where it was seen just now.
        :param stack: of the loop's thread then, the innermost line first.
        """

    def lasts(self, watch: Watch, look: Look) -> None:
        """One that was told of goes on."""

    def over(self, watch: Watch, look: Look, duration_ns: int) -> None:
        """One that was told of is over; it has lasted `duration_ns`, without what does not count."""


class Watch:
    """Looks at one loop. Each kind of loop has its own subclass; made on the loop that it is for.

    :param threshold_ns: from which duration on a step is told of.
    :param garbage: what is known of garbage collections.
    :param listener: is told.
    :ivar beaten_ns: when the loop was heard of last.
    :ivar period_ns: in which intervals the loop is to be looked at, and to beat.
    :ivar stopped: whether nobody looks any more; then it does not beat either.
    """

    def __init__(self, threshold_ns: int, garbage: Garbage, listener: Listener) -> None:
        self._garbage = garbage
        self._listener = listener
        self._depth = self._root = 0  # until the first beat
        self._held: list[FrameType] = []
        self._look: Look | None = None
        self._looked_ns = 0
        self.stopped = False
        self.set_threshold(threshold_ns)
        self._meet_thread()

    def set_threshold(self, threshold_ns: int) -> None:
        """Tell of what lasts for `threshold_ns` or more from now on."""
        self.threshold_ns = threshold_ns
        self.period_ns = max(_MIN_PERIOD_NS, min(threshold_ns // 4, _MAX_PERIOD_NS))
        self._patience_ns = (
            self.period_ns * 5 // 4 + 2_000_000
        )  # timers are rounded to milliseconds

    @property
    def ended(self) -> bool:
        """Whether the loop will never turn again."""
        raise NotImplementedError

    @property
    def runs(self) -> bool:
        """Whether the loop turns now, or would."""
        raise NotImplementedError

    def beat(self, frame: FrameType) -> None:
        """The loop turns; called by it.

        :param frame: that of the function that the loop has called.
        """
        if threading.get_ident() != self._thread.ident:
            self._meet_thread()
        outer = list(frames_of(frame))
        self._depth = len(outer)
        self._root = id(outer[-1].f_code)
        self.beaten_ns = perf_counter_ns()
        self._held.clear()

    def turn(self, turn: Turn) -> None:
        """See how the loop does; called by the watching thread, again and again."""
        now_ns = turn.now_ns
        if not self.runs:
            self._leave(now_ns)
            self.beaten_ns = now_ns
            return
        beaten_ns = self.beaten_ns
        silent = now_ns - beaten_ns > self._patience_ns
        # First of all: what follows may let the loop's thread run on.
        seen = self._see(turn, beaten_ns) if silent else None
        if seen is not None and seen.step is not None:
            self._listener.met(seen.step.account)
        tick = self._pauses.tick(now_ns, turn.late_ns, turn.lock_ns, silent=silent)
        if seen is not None:
            self._judge(seen, beaten_ns, turn, tick)
        else:
            self._leave(now_ns if silent else beaten_ns)
            self._looked_ns = now_ns

    def stop(self) -> None:
        """Look no more."""
        self.stopped = True
        self._leave(perf_counter_ns())

    def _see(self, turn: Turn, beaten_ns: int) -> _Seen | None:
        """What runs in the loop's thread; None if the loop waits there, or if nobody knows."""
        frames = list(frames_of(turn.frame_of(self._thread.ident)))
        turn.end()
        if not frames:
            return None
        step = self._thread.step_of(frames[0])
        called = self._called_by_loop(frames)
        if step is not None and step.started_ns < turn.now_ns:
            key: object = step.started_ns
        elif called is not None and not self._waits_in(frames[0]):
            key = (id(frames[called]), beaten_ns)
            if not self._held or self._held[-1] is not frames[called]:
                self._held.append(frames[called])
        else:
            return None
        if called is not None:
            del frames[called + 1 :]  # what runs the loop
        stack = [line_of(frame) for frame in frames if not _drives(frame)] or [line_of(frames[0])]
        return _Seen(key, step, stack[:_MAX_FRAMES], any(map(_is_of_a_debugger, frames)))

    def _judge(self, seen: _Seen, beaten_ns: int, turn: Turn, tick: Tick) -> None:
        """Whether what was seen lasts for too long."""
        now_ns = turn.now_ns
        look = self._look
        if look is None or look.key != seen.key:
            self._leave(now_ns)
            look = self._look = self._first_look(seen, beaten_ns, turn)
        else:
            look.excused_ns += tick.excused_ns
        look.seen_ns = self._looked_ns = now_ns
        place = place_in(seen.stack)
        look.places[place] += 1
        if len(look.places) > _MAX_PLACES:
            look.places = Counter(dict(look.places.most_common(_MAX_PLACES // 2)))
        look.debugged |= seen.debugged
        if look.told:
            self._listener.lasts(self, look)
        elif now_ns - look.certain_ns - look.excused_ns >= self.threshold_ns and not look.debugged:
            look.told = True
            self._listener.stalled(self, look, place, seen.stack)

    def _called_by_loop(self, frames: list[FrameType]) -> int | None:
        """Which of the frames is that of what the loop has called; None if it has called nothing."""
        if not self._depth:
            return None
        if id(frames[-1].f_code) != self._root:  # in a greenlet, whose stack is a part
            return len(frames) - 1
        called = len(frames) - self._depth
        if called == -1 and frames[0].f_code is _CALLS:  # a function that is not written in Python
            called = 0
        return called if called >= 0 else None

    def _first_look(self, seen: _Seen, beaten_ns: int, turn: Turn) -> Look:
        pauses = self._pauses
        step = seen.step
        if step is not None and step.started_ns == seen.key:
            begin_ns = certain_ns = step.started_ns
        else:
            begin_ns = max(beaten_ns, self._looked_ns)
            # Who is not given the interpreter's lock for so long waits for one call: between calls it is given away.
            waited_ns = turn.lock_ns if turn.lock_ns > lock_wait_ns() else 0
            certain_ns = max(begin_ns, turn.now_ns - waited_ns)
        excused_ns = pauses.excused_since(certain_ns)
        begin_ns = min(certain_ns, begin_ns + pauses.excused_since(begin_ns) - excused_ns)
        account = None if step is None else step.account
        return Look(seen.key, account, begin_ns, certain_ns, excused_ns, pauses.before(begin_ns))

    def _leave(self, ended_ns: int) -> None:
        """What was looked at is over, at `ended_ns` at the latest."""
        look = self._look
        if look is None:
            return
        self._look = None
        if look.told:
            duration_ns = max(ended_ns, look.seen_ns) - look.begin_ns
            account = None if look.account is None else look.account()
            if account is not None:  # which has it exactly, unless another step of it was longer
                longest_ns = account.longest_ns
                if look.seen_ns - look.begin_ns <= longest_ns < duration_ns:
                    duration_ns = longest_ns
            self._listener.over(self, look, duration_ns - look.excused_ns)

    def used_by(self, look: Look) -> tuple[int, int, int]:
        """What the thread has had of the processor since a step began, and the garbage collections meanwhile.

        :return: nanoseconds, nanoseconds, and their number.
        """
        now = self._pauses.last
        before = look.before
        return (
            now.cpu_ns - before.cpu_ns,
            now.collecting_ns - before.collecting_ns,
            now.collections - before.collections,
        )

    def _waits_in(self, frame: FrameType) -> bool:
        """Whether this is where the loop waits for something to do, in a call that looks as any other."""
        return False

    def _meet_thread(self) -> None:
        self._thread = LoopThread()
        self.thread = threading.current_thread().name
        self.beaten_ns = perf_counter_ns()
        self._pauses = Pauses(self.beaten_ns, ThreadClock(), self._garbage)


class AsyncioWatch(Watch):
    """Of a loop of asyncio or uvloop."""

    def __init__(
        self, loop: AbstractEventLoop, threshold_ns: int, garbage: Garbage, listener: Listener
    ) -> None:
        super().__init__(threshold_ns, garbage, listener)
        self._loop = weakref.ref(loop)
        # In a context of its own: the timer would keep that of the first request for as long as it lives.
        Context().run(loop.call_soon, self._turns, loop)

    @property
    def ended(self) -> bool:
        loop = self._loop()
        return loop is None or loop.is_closed()

    @property
    def runs(self) -> bool:
        loop = self._loop()
        return loop is not None and loop.is_running()

    def _turns(self, loop: AbstractEventLoop) -> None:
        """Beat, for as long as the loop runs: a pending timer keeps none alive, and is dropped when it is closed."""
        if not self.stopped:
            self.beat(sys._getframe())
            loop.call_later(self.period_ns / 1e9, self._turns, loop)


class TrioWatch(Watch):
    """Of a run of trio.

    :raises RuntimeError: none is running.
    """

    def __init__(self, threshold_ns: int, garbage: Garbage, listener: Listener) -> None:
        import trio

        super().__init__(threshold_ns, garbage, listener)
        self._over = False
        trio.lowlevel.spawn_system_task(self._turn, name="asgi_perfkit watchdog")

    @property
    def ended(self) -> bool:
        return self._over

    @property
    def runs(self) -> bool:
        return not self._over

    async def _turn(self) -> None:
        import trio

        try:
            while not self.stopped:
                self.beat(sys._getframe())
                await trio.sleep(self.period_ns / 1e9)
        finally:
            self._over = True

    def _waits_in(self, frame: FrameType) -> bool:
        return frame.f_code.co_name == "get_events"


def place_in(stack: Sequence[Line]) -> Line:
    """The innermost line of the app's own code, or the innermost of all if there is none of it."""
    for line in stack:
        if is_app_code(line.file):
            return line
    return stack[0]


def _drives(frame: FrameType) -> bool:
    """Whether this is of what runs the work of requests, and none of that work."""
    return frame.f_code.co_filename.startswith(_STEPS)


def _is_of_a_debugger(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _DEBUGGERS
