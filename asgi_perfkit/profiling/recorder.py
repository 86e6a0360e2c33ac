"""Records every call that the running thread makes, as a tree.

This is what `sys.setprofile` is for, and not `cProfile`: from Python 3.12 on the latter is told of the calls of all
threads, and takes those of a worker thread for calls of the request whose step happens to run. The function that
`sys.setprofile` sets is called for one thread on every Python, in the order in which things happen there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from time import perf_counter_ns
from types import CodeType, FrameType
from typing import Any

__all__ = ["MAX_NODES", "CallNode", "CallRecorder"]

MAX_NODES = 20_000
"""How many nodes the tree of a request may have. What is called beyond them counts as its caller's own time."""


class CallNode:
    """What was called in one place of the tree.

    :ivar parent: who has called it; None at the root.
    :ivar code: of the function; None for one that is not written in Python, and at the root.
    :ivar name: ``(qualified name, module)`` of one that is not written in Python; None for all others.
    :ivar calls: how often. Each time that a coroutine or generator is resumed counts as a call.
    :ivar own_ns: the time that ran in it, and in nothing that it has called.
    :ivar drives: whether it belongs to the kit, which drives the request, and not to the request.
    :ivar watches: whether it belongs to what watches the request, with all that it calls.
    """

    __slots__ = ("calls", "children", "code", "drives", "name", "own_ns", "parent", "watches")

    def __init__(
        self, parent: CallNode | None, code: CodeType | None, name: tuple[str, str | None] | None
    ) -> None:
        self.parent: Any = parent
        self.code = code
        self.name = name
        self.calls = 1
        self.own_ns = 0
        file = "" if code is None else code.co_filename
        self.drives = file.startswith(_DRIVERS)
        self.watches = file in _WATCHERS
        # By the identity of the code, which costs a tenth of its hash, or by the name.
        self.children: dict[object, CallNode] = {}


class CallRecorder:
    """Records the calls of the thread between :meth:`start` and :meth:`stop`, as often as they are called in turn.

    A recorder that starts while another one records takes over from it, and lets it go on in the end: each records
    what is its own. A profiler of somebody else is left alone.

    :ivar root: of the tree.
    :ivar lost: whether a profiler of somebody else has come in between, so that calls are missing.
    """

    __slots__ = (
        "_before",
        "_begin",
        "_cut",
        "_depth",
        "_end",
        "_go_on",
        "_over",
        "_pause",
        "_profile",
        "lost",
        "root",
    )

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self.root = CallNode(None, None, None)
        self.root.drives = True
        self.lost = False
        self._depth = 0
        self._before: CallRecorder | None = None
        (
            self._profile,
            self._begin,
            self._pause,
            self._go_on,
            self._end,
            self._over,
            self._cut,
        ) = _recording(self.root, max_nodes)
        self._profile.recorder = self  # one recorder knows another in what `sys.getprofile` returns

    @property
    def cut(self) -> int:
        """How many calls had no room in the tree."""
        return self._cut()

    def start(self, base: Collection[int] | None = None) -> str | None:
        """Record from now on, in this thread; within a start of its own, nothing changes.

        :param base: the identities of frames that are around; None to go and see.
        :return: what prevents it; None if nothing does.
        """
        current: Any = sys.getprofile()
        if current is self._profile:
            self._depth += 1
            return None
        other = other_profiler()
        if other is not None:
            return f"another profiler is active: {other}"
        self._before = before = None if current is None else current.recorder
        if before is not None:
            before._pause()
        self._begin(_frames_around() if base is None else base)
        try:
            sys.setprofile(self._profile)
        except Exception as refusal:  # of an audit hook
            return f"sys.setprofile is refused: {refusal!r}"
        self._depth = 1
        return None

    def stop(self) -> None:
        """End what the :meth:`start` that belongs to it has begun; without one, nothing happens."""
        if self._depth:
            self._depth -= 1
            if not self._depth:
                self._stop()
        elif (
            self.lost and sys.getprofile() is self._profile
        ):  # whoever came in between has put it back
            with suppress(Exception):  # of an audit hook
                sys.setprofile(None)

    def close(self) -> None:
        """Record no more, however many starts there were."""
        if self._depth:
            self._depth = 0
            self._stop()
        self._over()

    def _stop(self) -> None:
        before, self._before = self._before, None
        if sys.getprofile() is not self._profile:
            self.lost = True  # and theirs, if there is one, is not to be stopped
            return
        with suppress(Exception):  # of an audit hook
            if before is None:
                sys.setprofile(None)
            else:
                before._go_on()
                sys.setprofile(before._profile)
        self._end()


def other_profiler() -> str | None:
    """The name of a profiler that is active in this thread and is not the kit's; None if there is none."""
    current: Any = sys.getprofile()
    if current is not None:
        if isinstance(getattr(current, "recorder", None), CallRecorder):
            return None
        named = current if hasattr(current, "__qualname__") else type(current)
        return f"{named.__module__}.{named.__qualname__}"
    if _monitoring is not None:
        name: str | None = _monitoring.get_tool(_monitoring.PROFILER_ID)
        return name
    return None


_monitoring: Any = getattr(sys, "monitoring", None)  # 3.12
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
_DRIVERS = (
    os.path.join(os.path.dirname(_HERE), "steps", ""),  # noqa: PTH118, PTH120
    *(os.path.join(_HERE, f"{name}.py") for name in ("recorder", "exact")),  # noqa: PTH118
)
_WATCHERS = tuple(os.path.join(_HERE, f"{name}.py") for name in ("allocations", "growth"))  # noqa: PTH118
_TRIOS_LOOP = os.path.join("trio", "_core", "_run.py")  # noqa: PTH118


def _frames_around() -> set[int]:
    """The identities of the frames that were there before the recorder, and outlast what it records."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_DRIVERS):
        frame = frame.f_back
    around = set()
    while frame is not None:
        around.add(id(frame))
        frame = frame.f_back
    return around


def _recording(
    root: CallNode, room: int
) -> tuple[
    Any,
    Callable[[Collection[int]], None],
    Callable[[], None],
    Callable[[], None],
    Callable[[], None],
    Callable[[], None],
    Callable[[], int],
]:
    """The function for `sys.setprofile`; what begins, interrupts, resumes and ends a stretch; what tells the calls cut.

    All that is kept from one call to the next is in variables of this function: reading an attribute costs more. The
    time that the profile function takes itself is nobody's.
    """
    clock = perf_counter_ns
    node = root
    last_ns = 0
    deep = 0  # how many calls within each other have no node, just now
    cut = 0
    around: Collection[int] = ()

    def profile(frame: FrameType, event: str, function: Any) -> None:
        nonlocal node, last_ns, deep, room, cut
        try:
            node.own_ns += clock() - last_ns
        except (
            AttributeError
        ):  # it is over, and somebody has put back what he had found in `sys.getprofile`
            sys.setprofile(None)
            return
        if event == "call":
            if deep:
                deep += 1
            else:
                code = frame.f_code
                child = node.children.get(id(code))
                if child is not None:
                    child.calls += 1
                    node = child
                elif room:
                    room -= 1
                    node.children[id(code)] = node = CallNode(node, code, None)
                else:
                    deep = 1
                    cut += 1
        elif event == "c_call":
            if deep:
                deep += 1
            else:
                if node.code is not frame.f_code:
                    find(frame)
                try:
                    name = (function.__qualname__, function.__module__)
                    child = node.children.get(name)
                except Exception:  # a metaclass is asked for the one, and anything may be the other
                    name = (function.__name__, None)
                    child = node.children.get(name)
                if child is not None:
                    child.calls += 1
                    node = child
                elif room:
                    room -= 1
                    node.children[name] = node = CallNode(node, None, name)
                else:
                    deep = 1
                    cut += 1
        elif deep:
            deep -= 1
        elif event != "return":  # of what is not written in Python: it has returned or raised
            if node.code is None and node is not root:
                node = node.parent
            if node.code is not frame.f_code:
                find(frame)
        elif node.code is frame.f_code:
            node = node.parent
        elif frame.f_back is not None and not _is_base(frame.f_code):
            find(frame.f_back)
        last_ns = clock()

    def find(frame: FrameType) -> None:
        """Go to where `frame` is in the tree.

        The calls do not always say so: when an exception is thrown into coroutines that wait for each other, Python
        3.11 tells only of the innermost one, and a greenlet goes on in the middle of its functions.
        """
        nonlocal node, room
        if id(frame) in around or _is_base(frame.f_code):
            return  # what drives the request, from wherever
        missing: list[CodeType] = []
        above: FrameType | None = frame
        found = None
        while above is not None and found is None:
            code = above.f_code
            if id(above) in around or _is_base(code):
                found = root
            else:
                found = node
                while found is not None and found.code is not code:
                    found = found.parent
                if found is None:
                    missing.append(code)
            above = above.f_back
        if found is None:
            return
        node = found
        for code in reversed(missing):
            child = node.children.get(id(code))
            if child is None:
                if not room:
                    return
                room -= 1
                child = node.children[id(code)] = CallNode(node, code, None)
            node = child

    def begin(frames_around: Collection[int]) -> None:
        nonlocal node, last_ns, deep, around
        around = frames_around
        node = root
        deep = 0
        last_ns = clock()

    def pause() -> None:
        nonlocal node
        while node.drives and node is not root:  # they return while another one records
            node = node.parent

    def go_on() -> None:
        nonlocal last_ns
        last_ns = clock()

    def end() -> None:
        nonlocal node
        while node is not root:
            node.drives = True  # a function that has led here is none of the request's
            node = node.parent

    def over() -> None:
        nonlocal node
        node = None  # type: ignore[assignment]  # and `profile` leaves, should it be put back

    def told() -> int:
        return cut

    return profile, begin, pause, go_on, end, over, told


def _is_base(code: CodeType) -> bool:
    file = code.co_filename
    return file.startswith(_DRIVERS) or file.endswith(_TRIOS_LOOP)
