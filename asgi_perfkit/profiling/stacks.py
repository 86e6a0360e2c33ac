"""Whose turn it is, read from the stack of a thread.

What drives the work of an account has that account and the beginning of the step in its frame, so a thread that looks
at another one's stack can tell whose code runs there and since when: nothing is noted for it while requests run.

Up to Python 3.12, reading the locals of a frame makes a dict of them that lives as long as the frame, and is the one
that ``locals()`` gives to the function itself. So no frame of an app is ever asked for them: only those of the kit
(where nothing waits to be freed that the frame does not hold anyway), and those of libraries that run a call in a
thread. There is one of these that outlives its call, anyio's: see :meth:`Hops.let_go`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from functools import partial
from threading import get_ident
from time import perf_counter_ns
from types import BuiltinMethodType, CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

from asgi_perfkit.steps import Account, current_account
from asgi_perfkit.steps.drive import DrivenAccount
from asgi_perfkit.steps.follow import FollowedCoroutine
from asgi_perfkit.steps.loop import asyncio_loop, on_trio
from asgi_perfkit.threads.call import Call

__all__ = [
    "Hops",
    "Line",
    "LoopThread",
    "Reading",
    "Step",
    "frames_of",
    "is_app_code",
    "line_of",
    "step_of",
]


class Step(NamedTuple):
    """A step that runs.

    :ivar account: whose it is; the innermost, where several are charged.
    :ivar started_ns: when it has begun, on the monotonic clock; where that cannot be told, when it was looked at.
    """

    account: Account
    started_ns: int


class Line(NamedTuple):
    """Where code runs."""

    file: str
    line: int
    function: str


_DRIVERS = {
    id(function.__code__): name
    for function, name in (
        (DrivenAccount.begin, "self"),
        (DrivenAccount._step, "self"),
        (DrivenAccount._go_on, "self"),
        (FollowedCoroutine.send, "account"),
        (FollowedCoroutine.throw, "account"),
    )
}
"""By the identity of its code, as what a function that runs a step knows the account. All know `started_ns`."""


def frames_of(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of a stack, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def step_of(frame: FrameType | None) -> Step | None:
    """The step that runs in a thread, by its innermost frame; None if no account's work does.

    Of child tasks on trio, and of code in a greenlet, the stack says nothing: see :meth:`LoopThread.step_of`.
    """
    account: Account | None = None
    started_ns = 0
    for each in frames_of(frame):
        if id(each.f_code) in _DRIVERS:
            found = _driven_by(each)
            if found is not None:
                started_ns = found.started_ns or started_ns
                if account is None:
                    account = found.account
    return None if account is None else Step(account, started_ns)


def _driven_by(frame: FrameType) -> Step | None:
    """What a frame of a driver drives; None if it charges nobody, or has only just begun."""
    known = frame.f_locals
    account = known.get(_DRIVERS[id(frame.f_code)])
    if isinstance(account, Account) and "started_ns" in known:
        return Step(account, known["started_ns"])
    return None


def line_of(frame: FrameType) -> Line:
    """Where a frame is."""
    code = frame.f_code
    return Line(
        code.co_filename,
        frame.f_lineno or code.co_firstlineno,
        getattr(code, "co_qualname", code.co_name),
    )


def is_app_code(file: str) -> bool:
    """Whether a file is the app's own: neither of the standard library, nor installed, nor the kit's."""
    return not (file.startswith(_NOT_THE_APPS) or any(packages in file for packages in _INSTALLED))


# Those of the user, of the system and of another environment are in no path that `sysconfig` knows.
_INSTALLED = tuple(f"{os.sep}{packages}{os.sep}" for packages in ("site-packages", "dist-packages"))
_NOT_THE_APPS = (
    "<",
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,  # noqa: PTH100, PTH120
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)


class Reading(NamedTuple):
    """What runs in a thread.

    :ivar account: whose work it is; None if it is no account's.
    :ivar stack: the code that runs and where in it, the innermost first; without what is around that work.
    """

    account: Account | None
    stack: list[tuple[CodeType, int]]


class LoopThread:
    """The calling thread, in which an event loop runs; to be made in a task of the loop.

    :ivar ident: of the thread.
    :raises RuntimeError: no loop is running, neither asyncio's nor trio's.
    """

    def __init__(self) -> None:
        self.ident = get_ident()
        loop: Any = asyncio_loop()
        self._on_asyncio = loop is not None
        self._charged: Sequence[tuple[Account, int]] = ()
        if loop is None:
            if not on_trio():
                raise RuntimeError(
                    "This needs a running asyncio or trio loop; do it in a coroutine."
                )
            import trio

            from asgi_perfkit.steps.follow_trio import _instrument, follow_children_on_trio

            follow_children_on_trio()
            self._charged = _instrument.get()._steps
            loop = trio.lowlevel.current_trio_token()
        self._loop = weakref.ref(loop)
        frames = list(frames_of(sys._getframe(1)))
        self._root = id(frames[-1].f_code)
        self._outside, self._shows_itself = _outside_of_the_loop(frames)

    def is_alive(self) -> bool:
        """Whether that loop runs still. Only the thread itself and the sampler's ask."""
        loop = self._loop()
        return loop is not None and (not self._on_asyncio or loop.is_running())

    def is_here(self) -> bool:
        """Whether it is the loop of this thread that runs the calling code."""
        loop = self._loop()
        if loop is None or get_ident() != self.ident:
            return False
        if self._on_asyncio:
            return asyncio._get_running_loop() is loop
        try:
            return bool(sys.modules["trio"].lowlevel.current_trio_token() is loop)
        except RuntimeError:  # it runs no more
            return False

    def step_of(self, frame: FrameType | None) -> Step | None:
        """The step that runs in this thread, by its innermost frame; None if no account's work does."""
        step = step_of(frame)
        if step is None:
            if frame is None:
                return None
            *_, root = frames_of(frame)
            return self._step_apart(root)
        for _, started_ns in self._charged:
            if started_ns < step.started_ns:
                step = Step(step.account, started_ns)
        return step

    def read(self, frame: FrameType) -> Reading | None:
        """What runs in this thread, by its innermost frame; None if the loop waits for something to do."""
        innermost = root = frame
        stack: list[tuple[CodeType, int]] = []
        each: FrameType | None = frame
        while each is not None:
            code = each.f_code
            if id(code) in _DRIVERS:
                step = _driven_by(each)
                if step is not None:
                    return Reading(step.account, stack)
            stack.append((code, each.f_lasti))
            root = each
            each = each.f_back
        step = self._step_apart(root)
        if id(root.f_code) == self._root:  # it is no greenlet's
            if self._shows_itself and not self._runs(stack):
                return None
            if step is None and self._waits(len(stack), innermost):
                return None
            del stack[max(1, len(stack) - self._outside) :]
        return Reading(None if step is None else step.account, stack)

    def _step_apart(self, root: FrameType) -> Step | None:
        """The step that runs where no frame of a stack tells of it; None if no account's work does.

        :param root: the outermost frame of that stack.
        """
        if self._charged:  # the innermost account comes first
            return Step(*self._charged[0])
        if self._on_asyncio and id(root.f_code) != self._root:
            # In a greenlet, as SQLAlchemy's: the frames of who waits for it are not on the stack.
            account = self._account_of_current_task()
            if account is not None and not account.closed:
                return Step(account, perf_counter_ns())
        return None

    def _account_of_current_task(self) -> Account | None:
        loop: Any = self._loop()
        task = None if loop is None else asyncio.current_task(loop)
        if task is None:
            return None
        get_context: Callable[[], Context] | None = getattr(task, "get_context", None)  # 3.12
        if get_context is not None:
            return get_context().get(current_account)
        for each in gc.get_referents(task):  # a task shows its context in no other way
            if type(each) is Context:
                return each.get(current_account)
        return None

    def _runs(self, stack: list[tuple[CodeType, int]]) -> bool:
        """Whether the loop's own frame is where it should be."""
        return len(stack) > self._outside and stack[-1 - self._outside][0].co_name in _LOOPS

    def _waits(self, depth: int, innermost: FrameType) -> bool:
        """Whether the loop waits for something to do, with a stack of `depth` frames."""
        if self._shows_itself:
            return id(innermost.f_code) in _WAITS
        return (
            depth <= self._outside
        )  # uvloop has no frames of its own: what it does shows as waiting


def _outside_of_the_loop(frames: Sequence[FrameType]) -> tuple[int, bool]:
    """How many frames are outside of the loop, and whether the loop has a frame of its own.

    :param frames: those of a task, the innermost first.
    """
    outermost = 0
    for index, frame in enumerate(frames):
        if frame.f_code.co_flags & _CO_COROUTINE:
            outermost = index
        elif frame.f_code.co_name in _LOOPS:
            return len(frames) - index - 1, True
    return len(frames) - outermost - 1, False


_CO_COROUTINE = (
    0x80  # inspect.CO_COROUTINE; importing that module takes longer than all of this package
)
_LOOPS = {"_run_once", "unrolled_run"}  # of asyncio, of trio


def _waits() -> Iterator[int]:
    for name in vars(selectors):
        select = getattr(getattr(selectors, name), "select", None)
        if isinstance(select, FunctionType):
            yield id(select.__code__)
    proactor = sys.modules.get("asyncio.windows_events")
    if proactor is not None:
        for name in ("select", "_poll"):
            yield id(proactor.IocpProactor.__dict__[name].__code__)


_WAITS = set(_waits())
"""The code in which an event loop waits, by its identity."""


class Hops:
    """Finds the work of requests in worker threads: by the context that a call has taken along."""

    def __init__(self) -> None:
        self._names = {id(Call.execute.__code__): "self"}
        self._wanted = dict(_HOPS)
        self._lasting: int | None = None

    def learn(self) -> None:
        """Look for libraries that were imported since the last time."""
        for module, (path, name) in list(self._wanted.items()):
            if module in sys.modules:
                function: Any = sys.modules[module]
                try:
                    for part in path.split("."):
                        function = getattr(function, part)
                    code = id(function.__code__)
                except AttributeError:  # half imported, or another version
                    continue
                del self._wanted[module]
                if name:
                    self._names[code] = name
                else:
                    _WAITS.add(code)
                if module == _ANYIO:
                    self._lasting = code

    def read(self, frame: FrameType) -> Reading | None:
        """What a thread runs that has taken over a call, by its innermost frame; None if it has none."""
        stack: list[tuple[CodeType, int]] = []
        each: FrameType | None = frame
        while each is not None:
            code = each.f_code
            if id(code) in self._names:
                found = self._account_of(each)
                if found is not None:
                    return Reading(found[0], stack)
            stack.append((code, each.f_lasti))
            each = each.f_back
        return None

    def _account_of(self, frame: FrameType) -> tuple[Account | None] | None:
        """Whose call a frame runs that runs such calls; None if it is not running one just now."""
        value = frame.f_locals.get(self._names[id(frame.f_code)])
        if isinstance(value, Call):
            return (value._account,)
        context = _context_in(value, 4)
        return None if context is None else (context.get(current_account),)

    def let_go(self, frames: dict[int, FrameType]) -> bool:
        """See that no frame that outlives its call holds more than it holds itself.

        :param frames: the innermost frame of each thread.
        :return: whether there is one left whose call runs still.
        """
        busy = False
        if sys.version_info < (3, 13):
            for frame in frames.values():
                for each in frames_of(frame):
                    if id(each.f_code) == self._lasting and self._account_of(each) is not None:
                        busy = True
        return busy


_ANYIO = "anyio._backends._asyncio"
_HOPS = {
    "concurrent.futures.thread": ("_WorkItem.run", "self"),
    "asgiref.current_thread_executor": ("_WorkItem.run", "self"),
    _ANYIO: ("WorkerThread.run", "context"),
    "trio._core._thread_cache": ("WorkerThread._handle_job", "fn"),
    # No hops: where trio waits.
    "trio._core._io_epoll": ("EpollIOManager.get_events", ""),
    "trio._core._io_kqueue": ("KqueueIOManager.get_events", ""),
    "trio._core._io_windows": ("WindowsIOManager.get_events", ""),
}
"""By module: the function that runs calls in a thread, and what it calls that which has the call's context."""


def _context_in(value: Any, depth: int) -> Context | None:
    """The context that calling `value` runs in: ``context.run``, in partials and closures too."""
    if type(value) is Context:
        return value
    if depth == 0:
        return None
    inside: Any
    if isinstance(value, BuiltinMethodType):
        inside = (value.__self__,)
    elif isinstance(value, partial):
        inside = (value.func, *value.args)
    elif isinstance(value, FunctionType):
        inside = map(_content, value.__closure__ or ())
    elif type(value).__name__ == "_WorkItem":
        task = getattr(value, "task", None)  # 3.14
        inside = (value.fn, *value.args) if task is None else (task[0], *task[1])
    else:
        return None
    for each in inside:
        found = _context_in(each, depth - 1)
        if found is not None:
            return found
    return None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None
