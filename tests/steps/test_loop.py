"""Which loop runs is found out without importing one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgi_perfkit.steps import on_event_loop

Run = Callable[..., Any]


def test_on_a_loop(run: Run) -> None:
    """A coroutine runs on an event loop, on whichever."""

    async def main() -> bool:
        return on_event_loop()

    assert run(main) is True


def test_not_on_a_loop(run: Run) -> None:
    """Neither before nor after a loop has run does its thread count, nor another thread while it runs."""
    seen = []

    async def main() -> None:
        thread = threading.Thread(target=lambda: seen.append(on_event_loop()))
        thread.start()
        thread.join()

    assert not on_event_loop()
    run(main)
    assert not on_event_loop()
    assert seen == [False]


def test_not_on_a_loop_where_trio_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without trio there can be no loop of trio's."""
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    assert not on_event_loop()


def test_trio_is_not_imported(tmp_path: Path) -> None:
    """Where trio is not in use it is not loaded to find that out."""
    script = (
        "import asyncio, sys; from asgi_perfkit.steps import follow_children, on_event_loop\n"
        "async def main(): follow_children(); return on_event_loop()\n"
        "assert not on_event_loop() and asyncio.run(main()); print('trio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,  # or else the source tree would be imported
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
