from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.steps.charging import drive, new_account
from tests.support import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the kit: it goes on when the test says so."""
    return Clock.install(monkeypatch)


async def natively(work: Awaitable[Any]) -> Any:
    return await work


def driven(work: Awaitable[Any]) -> Awaitable[Any]:
    return drive(work, new_account(), 0)


@pytest.fixture(params=[natively, driven])
def awaited(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """A coroutine function that awaits what it is given: natively, to show what is right, and driven."""
    return request.param
