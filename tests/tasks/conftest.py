from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_perfkit import ThreadLimiter
from tests.tasks.requests import WatchedSupervisor

Supervise = Callable[..., WatchedSupervisor]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """`supervise(**options)` makes a supervisor, which in the end must have answered for all that it accepted."""
    made: list[WatchedSupervisor] = []

    def supervise(**options: Any) -> WatchedSupervisor:
        options = {
            "max_concurrency": 100,
            "max_pending": 10_000,
            "limiter": ThreadLimiter(40),
            **options,
        }
        made.append(WatchedSupervisor(**options))
        return made[-1]

    yield supervise
    for supervisor in made:
        supervisor.check_all_settled()
