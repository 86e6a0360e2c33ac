"""A PostgreSQL server for the tests: with a data directory of its own, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

USER = "postgres"
PATIENCE_SECONDS = 15

INITDB = ("--auth=trust", f"--username={USER}", "--encoding=UTF8", "--no-locale", "--no-sync")
# Nothing of it is to outlive a crash, and it serves few.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "30",
    "shared_buffers": "16MB",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


@dataclass(frozen=True)
class Postgres:
    """A server that runs.

    :ivar port: where it listens.
    """

    port: int

    @property
    def url(self) -> str:
        """As psycopg and asyncpg take it."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def sqlalchemy_url(self, driver: str) -> str:
        """As SQLAlchemy takes it."""
        return self.url.replace("://", f"+{driver}://")


def programs() -> Path | None:
    """Where PostgreSQL's programs are: Debian keeps those of a server out of PATH; the newest of several."""
    places = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: place.parent.name.zfill(4)
    )
    found = shutil.which("initdb", path="/usr/local/bin:" + os.environ.get("PATH", ""))
    if found is not None:
        places.insert(0, Path(found).resolve().parent)
    complete = [
        place for place in places if all((place / name).exists() for name in ("initdb", "postgres"))
    ]
    return complete[-1] if complete else None


def _as_whom() -> dict[str, Any]:
    """The arguments of Popen to run as who may: PostgreSQL refuses to run for root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def why_not() -> str | None:
    """Why there can be no server here; None if there can."""
    if sys.platform == "win32":
        return "PostgreSQL is started by the tests on Linux and macOS alone"
    if programs() is None:
        return "PostgreSQL is not installed (Debian's package postgresql)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(USER)
        except KeyError:
            return f"PostgreSQL does not run for root, and there is no user {USER}"
        if not Path(os.devnull).stat().st_mode & stat.S_IWOTH:  # initdb has a shell write there
            return f"the user {USER} may not write to {os.devnull}"
    return None


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """Have a server run for the length of the block."""
    bin_ = programs()
    assert bin_ is not None
    whom = _as_whom()
    # Not pytest's own directory, which only who runs the tests may enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if whom:
            os.chown(folder, whom["user"], whom["group"])
        data, log_file = folder / "data", folder / "log"
        common: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL, **whom}
        made = subprocess.run(
            [bin_ / "initdb", *INITDB, "-D", data], capture_output=True, check=False, **common
        )
        assert made.returncode == 0, made.stderr.decode()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = [f"--{setting}={value}" for setting, value in SETTINGS.items()]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [bin_ / "postgres", "-D", data, f"--port={port}", *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **common,
            )
        try:
            _wait_for(process, port, log_file)
            yield Postgres(port)
        finally:
            process.send_signal(signal.SIGQUIT)  # at once; there is nothing to keep
            process.wait(PATIENCE_SECONDS)


def _wait_for(process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "ready to accept connections" not in log_file.read_text():
        assert process.poll() is None, log_file.read_text()
        assert time.monotonic() < deadline, log_file.read_text()
        time.sleep(0.01)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests of a process; where there is none the test is skipped."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with running() as server:
        yield server
