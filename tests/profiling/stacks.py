"""Threads to look at: what the tests of stacks, samples and reports share."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, get_ident
from types import FrameType
from typing import Any

from asgi_perfkit.profiling.calls import Place
from tests.support import http_scope

PATIENCE_SECONDS = 10


def place(function: str, line: int = 1, file: str = "/app/shop.py") -> Place:
    return Place(function, file, 1, line)


def stack(names: str) -> list[Place]:
    """``"a b c"``: a has called b, and that c."""
    return [place(name) for name in names.split()]


class Held:
    """A call that stays where it is until it is released; other threads look at its stack meanwhile."""

    def __init__(self) -> None:
        self.arrived = Event()
        self.released = Event()
        self.ident = 0

    def hold(self) -> None:
        self.ident = get_ident()
        self.arrived.set()
        assert self.released.wait(PATIENCE_SECONDS)

    @property
    def frame(self) -> FrameType:
        return sys._current_frames()[self.ident]


@contextmanager
def looking(held: Held, look: Callable[[FrameType], object]) -> Iterator[list[Any]]:
    """Have another thread look at the stack of a call that is held, and release it; what it saw."""
    seen: list[Any] = []

    def run() -> None:
        try:
            assert held.arrived.wait(PATIENCE_SECONDS)
            seen.append(look(held.frame))
        finally:
            held.released.set()

    thread = Thread(target=run)
    thread.start()
    try:
        yield seen
    finally:
        thread.join()


def busy(seconds: float) -> None:
    """Occupy the thread, for as much of the processor's time: on a busy machine that takes longer."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def nothing() -> None:
    raise AssertionError("nothing is received here")


async def ignore(message: Any) -> None:
    pass


async def request(app: Any, path: str) -> None:
    await app(http_scope(path), nothing, ignore)


async def in_thread(function: Callable[[], object]) -> None:
    """A worker thread as the loop's own library has it."""
    if asyncio._get_running_loop() is not None:
        await asyncio.to_thread(function)
    else:
        import trio

        await trio.to_thread.run_sync(function)


Work = Callable[[], Awaitable[object]]
