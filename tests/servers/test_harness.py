"""The documented commands start and end as they should, and the harness sees it when one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .harness import (
    PROVOKED,
    SAMPLES,
    Application,
    Deployment,
    Server,
    ServerFailed,
    judge_log,
    serve,
)

HYPERCORN = str(Path(sys.executable).with_name("hypercorn"))


@pytest.mark.parametrize(
    ("framework", "target"), [("starlette", "app:app"), ("django", "app:application")]
)
def test_the_documented_command_runs_a_sample(framework: str, target: str) -> None:
    """`hypercorn app:app` serves from the sample's folder, and ends cleanly on SIGTERM."""
    command = [HYPERCORN, target, "--bind", "fd://{fd}"]
    with serve(Deployment(Application(framework), "asyncio"), command=command) as server:
        assert server.port


def test_the_django_sample_has_all_its_migrations() -> None:
    """What the migrations make is what the models say."""
    check = [sys.executable, "manage.py", "makemigrations", "--check", "--dry-run"]
    made = subprocess.run(
        check,
        cwd=SAMPLES / "django",
        env={**os.environ, "SHOP_DATABASE": ":memory:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_a_server_that_does_not_start_shows_why() -> None:
    """What the server wrote is in the failure, and it does not take a timeout to come."""
    command = [HYPERCORN, "no_such_module:app", "--bind", "fd://{fd}"]
    with (
        pytest.raises(ServerFailed, match=r"(?s)did not start.*no_such_module"),
        serve(Deployment(Application("raw"), "asyncio"), command=command),
    ):
        pass


TRACEBACK = """\
[ERROR] Error in ASGI Framework
Traceback (most recent call last):
  File "app.py", line 1, in app
    fail()
{0}
"""
GROUP = """\
[ERROR] Error in ASGI Framework
  + Exception Group Traceback (most recent call last):
  |   File "app.py", line 1, in app
  |     fail()
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
"""


@pytest.mark.parametrize(
    ("log", "provoked"),
    [
        (TRACEBACK.format("KeyError: 'shop'"), 1),
        (TRACEBACK.format(PROVOKED[0]), 0),
        ("", 1),
        (GROUP, 1),
        ("Task exception was never retrieved\n", 0),
        ("sys:1: RuntimeWarning: coroutine 'app' was never awaited\n", 0),
    ],
)
def test_what_should_not_be_in_a_log_is_found(log: str, provoked: int) -> None:
    """Other tracebacks, failures nobody asked for, and those that were asked for and did not come."""
    server = Server(Deployment(Application("raw"), "asyncio"), port=0)
    server.provoked = provoked
    with pytest.raises(ServerFailed):
        judge_log(server, log)


def test_what_was_provoked_may_be_in_a_log() -> None:
    """The samples' own error, as often as it was asked for, beside what a server says anyway."""
    server = Server(Deployment(Application("raw"), "asyncio"), port=0)
    server.provoked = 2
    judge_log(server, "[INFO] Running on http://127.0.0.1\n" + 2 * TRACEBACK.format(PROVOKED[0]))
