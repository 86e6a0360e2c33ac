"""What every test can ask for: each event loop, and that the installed wheel is what it tests."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import hypothesis
import pytest

Run = Callable[..., Any]

# Slow because the machine is busy is no failure of an example: the limit of its test still holds.
hypothesis.settings.register_profile(
    "asgi_perfkit", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("asgi_perfkit")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the source tree: it would hide what is missing from the wheel."""
    spec = importlib.util.find_spec("asgi_perfkit")
    if spec is None or spec.origin is None:
        raise pytest.UsageError("asgi_perfkit is not installed: run the tests with `make test`.")
    if Path(spec.origin).is_relative_to(config.rootpath / "asgi_perfkit"):
        raise pytest.UsageError(
            f"asgi_perfkit comes from the source tree ({spec.origin}), not from the wheel: run the "
            "tests with `make test`, or with the `pytest` script; `python -m pytest` won't do."
        )


def _on_asyncio(func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    return asyncio.run(func(*args))


def _on_uvloop(func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    import uvloop

    return uvloop.run(func(*args))


def _on_trio(func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    import trio

    return trio.run(func, *args)


ASYNCIO = {"asyncio": _on_asyncio}
if sys.platform != "win32":
    ASYNCIO["uvloop"] = _on_uvloop
EVERY_LOOP = {**ASYNCIO, "trio": _on_trio}


@pytest.fixture(params=EVERY_LOOP.values(), ids=EVERY_LOOP)
def run(request: pytest.FixtureRequest) -> Run:
    """`run(async_function, *args)`, on asyncio, uvloop and trio in turn."""
    return request.param


@pytest.fixture(params=ASYNCIO.values(), ids=ASYNCIO)
def run_asyncio(request: pytest.FixtureRequest) -> Run:
    """`run_asyncio(async_function, *args)`, on the loops that speak asyncio: its own and uvloop."""
    return request.param


@pytest.fixture
def run_trio() -> Run:
    """`run_trio(async_function, *args)`, on trio."""
    return _on_trio
