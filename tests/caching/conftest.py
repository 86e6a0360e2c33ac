from __future__ import annotations

import pytest

from tests.caching.slow import Slow
from tests.support import Clock
from tests.threads.conftest import FORMS, Form


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """Each form of cancellation on each loop, in turn."""
    return request.param


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all caches that are made in the test."""
    return Clock.install(monkeypatch)


@pytest.fixture
def slow() -> Slow:
    return Slow()
