"""Starts an application behind a real server, in a process of its own, and ends it again.

The listening socket is made here and handed over as a file descriptor: no port can be taken by another
in between, and the first request waits in the socket's backlog until the server accepts it, so that nothing
has to be polled. If the server dies instead, the socket dies with it and that request fails at once.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parents[1] / "sample_apps"
VARIANTS = HERE / "apps"

#: What the tests provoke: the samples' /error, an upload that breaks off, a websocket to Django. Any other traceback
#: in a log is a defect.
PROVOKED = (
    "RuntimeError: The warehouse does not answer.",
    "starlette.requests.ClientDisconnect",
    "ValueError: Django can only handle ASGI/HTTP connections, not websocket.",
)

#: What no log may have: what Python says of something that was forgotten, and the kit of a task that was lost.
SIGNS = (
    "was never retrieved",
    "was never awaited",
    "ResourceWarning",
    "RuntimeWarning",
    "could not finish before the shutdown",
)

#: What a request of the samples is recorded by, call by call, in the header x-profile.
PROFILE_SECRET = "only-the-tests-know-it"

START_SECONDS = 15
STOP_SECONDS = 15


@dataclass(frozen=True)
class Application:
    """An application that a server can be started with.

    :param framework: the sample's folder, which is the working directory of the process.
    :param variant: a module of `apps/` that builds on the sample, instead of the sample itself.
    :param workers: hypercorn's worker classes that the framework runs on.
    """

    framework: str
    variant: str | None = None
    workers: tuple[str, ...] = ("asyncio", "uvloop", "trio")

    @property
    def name(self) -> str:
        return self.variant or self.framework

    @property
    def folder(self) -> Path:
        return SAMPLES / self.framework

    @property
    def target(self) -> str:
        return "app:app" if self.variant is None else f"{VARIANTS / self.variant}:app"

    @property
    def raises(self) -> bool:
        """Whether an exception in a handler reaches the server; some frameworks only answer 500."""
        return self.framework not in {"django", "quart", "litestar"}


@dataclass(frozen=True)
class Deployment:
    """An application and what runs it: one of hypercorn's worker classes, or uvicorn."""

    application: Application
    worker: str

    def __str__(self) -> str:
        return f"{self.application.name}-{self.worker}"

    def command(self, fd: int) -> list[str]:
        if self.worker == "uvicorn":
            options = ["--fd", str(fd), "--log-level", "warning", "--no-access-log"]
            return [sys.executable, "-m", "uvicorn", *options, self.application.target]
        options = ["--bind", f"fd://{fd}", "--worker-class", self.worker]
        return [sys.executable, "-m", "hypercorn", *options, self.application.target]


class ServerFailed(AssertionError):
    """The server did not start, did not end, or wrote something to its log that it should not have."""

    def __init__(self, fact: str, log: str) -> None:
        super().__init__(f"{fact}\n--- the server's log ---\n{log}")


class Server:
    """A running server.

    :ivar port: where it listens.
    :ivar pid: the process that was started; it may have started another that does the work.
    :ivar database: the file that the sample keeps its book of sales in.
    :ivar provoked: how many exceptions the tests have made the application raise; the server reports each.
    """

    def __init__(
        self, deployment: Deployment, port: int, *, pid: int = 0, database: Path | None = None
    ) -> None:
        self.deployment = deployment
        self.application = deployment.application
        self.port = port
        self.pid = pid
        self.database = database
        self.provoked = 0

    def count_connections(self) -> int:
        """How many connections to the database are open in the server's processes: each has a descriptor.

        SQLite keeps that of a closed one until no other connection of the process is reading.
        """
        process = psutil.Process(self.pid)
        return sum(
            file.path == str(self.database)
            for member in (process, *process.children(recursive=True))
            for file in member.open_files()
        )


@contextlib.contextmanager
def serve(deployment: Deployment, *, command: list[str] | None = None) -> Iterator[Server]:
    """Run `deployment` for the length of the block; then end it and judge its exit and its log.

    :param command: the server's command line instead of the usual one; `{fd}` in it stands for the socket.
    :raises ServerFailed: when it does not start, or does not end cleanly on SIGTERM.
    """
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        # Accepted sockets inherit this: a client that does not read is felt after some ten kilobytes, and not
        # after the megabytes that the kernel would take in.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        port = listener.getsockname()[1]
        fd = listener.fileno()
        if command is None:
            arguments = deployment.command(fd)
        else:
            arguments = [argument.format(fd=fd) for argument in command]

        database = Path(scratch).resolve() / "shop.sqlite3"
        shop = {"SHOP_DATABASE": str(database), "SHOP_PROFILE_SECRET": PROFILE_SECRET}
        environment = {**os.environ, **shop}
        folder = deployment.application.folder
        if (folder / "manage.py").exists():
            migrate = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
            subprocess.run(migrate, cwd=folder, env=environment, check=True)
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment,
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(_kill, process)
        listener.close()
        try:
            _await_first_answer(port)
        except OSError as error:
            _kill(process)
            raise ServerFailed(f"{deployment} did not start: {error!r}", _read(log)) from None
        server = Server(deployment, port, pid=process.pid, database=database)
        yield server

        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"{deployment} ignored SIGTERM.", _read(log)) from None
        # uvicorn restores the signal's default and raises it again once it has shut down.
        clean = {0, -signal.SIGTERM} if deployment.worker == "uvicorn" else {0}
        if code not in clean:
            raise ServerFailed(f"{deployment} ended with exit code {code}.", _read(log))
        judge_log(server, _read(log))


def judge_log(server: Server, log: str) -> None:
    """Accept the failures that were asked for, and nothing else."""
    for line in _last_lines_of_tracebacks(log):
        if not line.startswith(PROVOKED):
            raise ServerFailed(f"{server.deployment} logged a traceback: {line}", log)
    for sign in SIGNS:
        if sign in log:
            raise ServerFailed(f"{server.deployment} logged {sign!r}.", log)
    reported = len(re.findall(r"Error in ASGI Framework|Exception in ASGI application", log))
    if reported != server.provoked:
        fact = f"{server.deployment} reported {reported} exceptions, not {server.provoked}."
        raise ServerFailed(fact, log)


def _last_lines_of_tracebacks(log: str) -> Iterator[str]:
    inside = False
    for line in log.splitlines():
        # trio shows a group's members behind a margin.
        text = re.sub(r"^[ |+]*\| ?", "", line)
        if text.lstrip("+ ").startswith(("Traceback (most", "Exception Group Traceback (most")):
            inside = True
        elif inside and text and not text[0].isspace():
            inside = False
            yield text


def _await_first_answer(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    try:
        connection.request("GET", "/items/1")
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise ConnectionError(f"the first request was answered with {response.status}")
    except http.client.HTTPException as error:
        raise ConnectionError(repr(error)) from error
    finally:
        connection.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a server that has not ended by itself, its worker included."""
    if process.returncode != 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(log: tempfile._TemporaryFileWrapper[str]) -> str:
    log.seek(0)
    return log.read()
