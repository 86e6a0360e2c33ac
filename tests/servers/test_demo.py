"""The demo shows where the time went, and behaves when it is interrupted, misused or cannot start."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .harness import SAMPLES

DEMO = SAMPLES / "demo.py"
ESCAPE = "\x1b["
SECONDS = 15


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_apps_demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass or NamedTuple looks its annotations up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sample", ["starlette", "django"])
def test_it_shows_every_endpoint_and_names_the_blocker(sample: str) -> None:
    """Without a terminal the whole table is one, and has no colours."""
    shown = run("--sample", sample, "--seconds", "1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert ESCAPE not in shown.stdout
    endpoints = set(re.findall(r"^((?:GET|POST|WEBSOCKET) \S+) ", shown.stdout, re.MULTILINE))
    expected = {
        "GET /items/",
        "GET /items/{item_id}",
        "GET /shop/{shop_id}/items/{item_id}",
        "GET /sales/{item_id}",
        "GET /wait",
        "GET /block",
        "GET /sync",
        "GET /stream",
        "GET /error",
        "GET <unmatched>",
        "POST /upload",
        "POST /after",
        "POST /orders/{item_id}",
        "POST /sales/{item_id}",
    }
    assert endpoints == expected | ({"WEBSOCKET /ws"} if sample == "starlette" else set())
    assert re.search(r"^GET /block froze the event loop \d+ times", shown.stdout, re.MULTILINE)


@contextlib.contextmanager
def on_a_terminal(
    *arguments: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The demo in a process group of its own, as a shell starts it, and the terminal's other end."""
    ours, theirs = pty.openpty()
    # Where the tests run in the background it may be ignored, and what is started ignores it then, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, str(DEMO), *arguments],
        env={**os.environ, "TERM": "xterm", **environment},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    try:
        yield process, ours
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()


def read_all(terminal: int, until: str | None = None) -> str:
    """What comes up to `until`, or to the end."""
    text = b""
    while until is None or until.encode() not in text:
        try:
            data = os.read(terminal, 65_536)
        except OSError:  # how Linux says that nobody holds the other end any more
            break
        if not data:
            break
        text += data
    return text.decode()


@pytest.mark.parametrize("no_color", ["", "1"])
def test_it_fits_the_terminal(no_color: str) -> None:
    """Tables are split to fit; there are colours unless NO_COLOR says otherwise."""
    environment = {"COLUMNS": "80", "NO_COLOR": no_color}
    with on_a_terminal("--seconds", "0.5", **environment) as (process, terminal):
        text = read_all(terminal)
        assert process.wait(SECONDS) == 0
    assert (ESCAPE in text) == (not no_color)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    _, _, report = plain.partition("requests in")
    assert max(map(len, report.splitlines())) <= 80
    assert report.count("\r\nendpoint ") > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_the_server(number: signal.Signals) -> None:
    """In the middle of the traffic: no traceback, the usual exit code, and nothing left that listens."""
    with on_a_terminal("--seconds", "60") as (process, terminal):
        text = read_all(terminal, until="clients use it")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", text)
        assert found is not None, text
        os.killpg(
            process.pid, number
        )  # a terminal's Ctrl-C goes to all of its foreground processes
        assert process.wait(SECONDS) == 128 + number
        text += read_all(terminal)
    assert "Traceback" not in text
    assert ("Interrupted" in text) == (number is signal.SIGINT)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found[1])), timeout=1).close()


def test_a_server_that_does_not_start_is_shown(tmp_path: Path) -> None:
    """Its own words, and exit code 1."""
    (tmp_path / "starlette.py").write_text("raise ImportError('starlette is broken today')\n")
    failed = run(PYTHONPATH=str(tmp_path))
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("The starlette sample did not start.")
    assert "ImportError: starlette is broken today" in failed.stderr


def test_a_database_that_cannot_be_made_is_shown(tmp_path: Path) -> None:
    """Django's words, and exit code 1."""
    (tmp_path / "django.py").write_text("raise ImportError('django is broken today')\n")
    failed = run("--sample", "django", PYTHONPATH=str(tmp_path))
    assert failed.returncode == 1
    assert "ImportError: django is broken today" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "'0' is not a number above 0 and up to 600"),
        (["--seconds", "soon"], "'soon' is not a number above 0 and up to 600"),
        (["--seconds", "nan"], "'nan' is not a number above 0 and up to 600"),
        (["--clients", "1.5"], "'1.5' is not a number above 0 and up to 100"),
        (["--clients", "101"], "'101' is not a number above 0 and up to 100"),
        (["--sample", "flask"], "invalid choice: 'flask'"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_arguments_are_told(
    demo: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which one, its value and what is allowed; exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        demo.parse_arguments(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def endpoint(longest: float, *, times: int = 10, outcome: str = "ok") -> dict[str, Any]:
    summary = {
        "count": times,
        "sum": times * longest,
        **dict.fromkeys(["avg", "min", "max", "p50", "p90", "p95", "p99"], longest),
    }
    return {
        "loop_time": summary,
        "longest_step": summary,
        "processing_time": summary,
        "outcomes": {outcome: times},
        "statuses": {"200": times},
    }


def report(demo: ModuleType, **endpoints: dict[str, Any]) -> str:
    stats = {
        "endpoints": {f"GET /{name}": figures for name, figures in endpoints.items()},
        "runtime": {},
    }
    text: str = demo.report(stats, demo.Traffic(20, 1.0, 2), "raw", demo.Style(False), None)
    return text


def test_the_heaviest_is_first(demo: ModuleType) -> None:
    """What an endpoint costs the loop is its time on it in all; reading the figures is left out."""
    text = report(
        demo, light=endpoint(0.004), heavy=endpoint(0.002, times=1000), stats=endpoint(0.009)
    )
    assert text.index("GET /heavy") < text.index("GET /light")
    assert "GET /stats" not in text


def test_nobody_is_accused_for_nothing(demo: ModuleType) -> None:
    """Where no endpoint holds the loop as a habit, the longest step is told without blame."""
    text = report(demo, one=endpoint(0.004), two=endpoint(0.002, outcome="error"))
    assert "Nobody froze the event loop: the longest step was 4.0 ms, of GET /one." in text


def test_a_figure_that_does_not_exist_is_a_dash(demo: ModuleType) -> None:
    """A metric without any observation is not a zero."""
    figures = endpoint(0.001)
    del figures["processing_time"]
    (line,) = (line for line in report(demo, ws=figures).splitlines() if line.startswith("GET /ws"))
    assert line.split() == "GET /ws 10 - - - 1.00 1.00 - - - ok 10".split()
