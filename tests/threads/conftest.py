from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from asgi_perfkit import ThreadLimiter, default_limiter
from tests.conftest import ASYNCIO, EVERY_LOOP, Run
from tests.threads.gates import ON_ASYNCIO, ON_TRIO, Function, Task

WORKER = "asgi_perfkit worker"


def workers() -> list[threading.Thread]:
    """The kit's worker threads that live."""
    return [thread for thread in threading.enumerate() if thread.name == WORKER]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Whatever a test does: when its loop has ended, no thread of the kit's lives and all tokens are back."""
    before = (
        workers(),
        default_limiter().statistics(),
    )  # what a test that hung has left is not for others to pay
    yield
    assert set(workers()) <= set(before[0])
    stats = default_limiter().statistics()
    assert stats.borrowed_tokens <= before[1].borrowed_tokens
    assert stats.tasks_waiting <= before[1].tasks_waiting
    assert stats.exits <= before[1].exits


@pytest.fixture
def limiter() -> Iterator[ThreadLimiter]:
    """A limiter of the test's own, of one token, all of whose tokens must be back in the end."""
    limiter = ThreadLimiter(1)
    yield limiter
    stats = limiter.statistics()
    assert (stats.borrowed_tokens, stats.tasks_waiting, stats.exits) == (0, 0, 0)


class Form:
    """A loop, and a form of cancellation on it.

    :ivar run: `form.run(async_function, *args)`.
    :ivar cancelled: what a cancellation raises.
    :ivar on_trio: there a call that is over returns, and the cancellation is raised at the next checkpoint.
    """

    def __init__(self, run: Run, task: type[Task], *, on_trio: bool) -> None:
        self.run = run
        self.on_trio = on_trio
        self.cancelled: Any = trio.Cancelled if on_trio else asyncio.CancelledError
        self._task = task

    def spawn(self, function: Function) -> Task:
        """Run an async function in a task that can be cancelled."""
        return self._task(function)


FORMS = {
    f"{loop}-{name}": Form(EVERY_LOOP[loop], task, on_trio=loop == "trio")
    for loop in EVERY_LOOP
    for name, task in (ON_TRIO if loop == "trio" else ON_ASYNCIO).items()
}
ASYNCIO_FORMS = {name: form for name, form in FORMS.items() if name.split("-")[0] in ASYNCIO}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """Each form of cancellation on each loop, in turn."""
    return request.param


@pytest.fixture(params=ASYNCIO_FORMS.values(), ids=ASYNCIO_FORMS)
def asyncio_form(request: pytest.FixtureRequest) -> Form:
    """Each form of cancellation on the loops that speak asyncio."""
    return request.param
