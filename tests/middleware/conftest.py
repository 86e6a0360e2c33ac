from __future__ import annotations

import pytest

from asgi_perfkit import Registry
from tests.support import Clock


@pytest.fixture
def registry() -> Registry:
    """A registry of the test's own."""
    return Registry()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the kit: it goes on when the test says so."""
    return Clock.install(monkeypatch)
