"""Which line of the app has sent a query.

It is the innermost frame of the app's own code on the stack, as a rule. A stack may end before that: SQLAlchemy's async
engine runs its drivers in greenlets, and a worker thread runs what a coroutine waits for. Then it goes on with the
greenlet's parent, or with the task that waits for the thread.

Nothing of that is promised by anybody: where it is not as expected there is no line, or one further out.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import lru_cache
from itertools import islice
from types import FrameType
from typing import Any

from asgi_perfkit.profiling.stacks import Line, is_app_code, line_of
from asgi_perfkit.steps import drive, follow
from asgi_perfkit.threads.call import Call

__all__ = ["origin"]

_DRIVERS = (drive.__file__, follow.__file__)
"""What drives a request is where its stack ends: what has called that belongs to the server."""

_BETWEEN = frozenset(
    "aiosqlite anyio asgi_perfkit asgiref asyncpg databases django fastapi greenlet hypercorn litestar ormar peewee "
    "piccolo pony psycopg psycopg_pool quart sqlalchemy sqlmodel starlette tortoise trio uvicorn".split()
)
"""Packages that stand between an app and its database, or its server."""

_MAX_FRAMES = 500

_is_app_code = lru_cache(4_096)(is_app_code)


def origin(frame: FrameType) -> Line | None:
    """Which line of the app's own code has led to `frame`, which runs in this thread; None if none is found.

    Of an app that is installed as libraries are, it is the innermost line that is in none of those which are known to
    stand between an app and its database.
    """
    each: FrameType | None = frame
    while each is not None:  # the usual way, as fast as can be
        file = each.f_code.co_filename
        if _is_app_code(file):
            return line_of(each)
        if file in _DRIVERS:
            break
        each = each.f_back
    second: FrameType | None = None
    for each in islice(_frames(frame), _MAX_FRAMES):
        file = each.f_code.co_filename
        if _is_app_code(file):
            return line_of(each)
        if second is None and _is_installed(file) and _package_of(each) not in _BETWEEN:
            second = each
    return None if second is None else line_of(second)


def _is_installed(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _frames(frame: FrameType) -> Iterator[FrameType]:
    """The frames that have led to `frame`, the innermost first, and on where its stack ends but its work does not."""
    stack = list(_stack(frame))
    yield from stack
    greenlet = sys.modules.get("greenlet")
    current = None if greenlet is None else greenlet.getcurrent().parent
    while current is not None:
        yield from _stack(current.gr_frame)
        current = current.parent
    for each in reversed(stack):
        future = _future_of(each)
        if future is not None:
            yield from _awaiting(future)
            return
    yield from _waiting_on_trio()


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None and frame.f_code.co_filename not in _DRIVERS:
        yield frame
        frame = frame.f_back


def _future_of(frame: FrameType) -> object | None:
    """What is told of the end of the call that `frame` makes in a worker thread, if it is one that makes such calls.

    Those are the kit's, the executors of `concurrent.futures` and of asgiref, and anyio's.
    """
    name = frame.f_code.co_name
    if name == "execute" and frame.f_code is Call.execute.__code__:
        return getattr(frame.f_locals["self"], "_future", None)
    if name == "run":
        local = frame.f_locals
        for found in (local.get("future"), getattr(local.get("self"), "future", None)):
            if isinstance(found, (Future, asyncio.Future)):
                return found
    return None


def _awaiting(future: Any) -> Iterator[FrameType]:
    """The frames of the task that waits for `future`, and of those that wait for that one, as in `asyncio.gather`."""
    seen: set[int] = set()
    task = _waiting_for(future, seen)
    while task is not None:
        yield from _suspended(task.get_coro())
        task = None if id(task) in seen else _waiting_for(task, seen)


def _waiting_on_trio() -> Iterator[FrameType]:
    """The frames of the task of trio that waits for what this thread, one of trio's, runs; and of those around it."""
    threads = sys.modules.get("trio._threads")
    register = getattr(getattr(threads, "PARENT_TASK_DATA", None), "task_register", None)
    task = register[0] if register else None
    while task is not None:
        yield from _suspended(task.coro)
        nursery = task.parent_nursery
        task = None if nursery is None else nursery.parent_task


def _waiting_for(future: Any, seen: set[int]) -> asyncio.Task[Any] | None:
    """The task that waits for `future`, or for one that is chained to it."""
    seen.add(id(future))
    for each in (
        getattr(future, "_done_callbacks", None) or getattr(future, "_callbacks", None) or ()
    ):
        callback = each[0] if isinstance(each, tuple) else each
        task = getattr(callback, "__self__", None)
        if isinstance(task, asyncio.Task):
            return task
        for cell in getattr(callback, "__closure__", None) or ():
            chained = cell.cell_contents
            if isinstance(chained, (Future, asyncio.Future)) and id(chained) not in seen:
                task = _waiting_for(chained, seen)
                if task is not None:
                    return task
    return None


def _suspended(work: Any) -> list[FrameType]:
    """The frames of a coroutine that waits, the innermost first."""
    frames: list[FrameType] = []
    while len(frames) < _MAX_FRAMES:
        if isinstance(work, drive.DrivenAccount):
            frames.clear()  # those so far are the server's
            work = getattr(work, "_work", None)
        for frame_of, awaited_by in _AWAITING:
            frame = getattr(work, frame_of, None)
            if frame is not None:
                frames.append(frame)
                work = getattr(work, awaited_by)
                break
        else:
            break
    frames.reverse()
    return frames


_AWAITING = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
