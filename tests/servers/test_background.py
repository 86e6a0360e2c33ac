"""Tasks behind real servers: when they run, and that no shutdown loses one. Their own journal is the witness."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from .harness import VARIANTS

START_SECONDS = 15
STOP_SECONDS = 15
GRACEFUL_SECONDS = 1  # hypercorn takes whole ones

WORKERS = ("asyncio", "uvloop", "trio")
#: How many servers are ended at a random moment, on each loop: 200 say more, and take two minutes on each.
ROUNDS = int(os.environ.get("PERFKIT_SIGTERM_ROUNDS", "5"))

#: What ends a server: by hand in a terminal, and by supervisors that tell the parent only, or every process.
ENDINGS = {
    "SIGTERM": lambda server: os.kill(server.pid, signal.SIGTERM),
    "SIGINT": lambda server: os.kill(server.pid, signal.SIGINT),
    "SIGTERM to all": lambda server: os.killpg(server.pid, signal.SIGTERM),
    "SIGINT to all": lambda server: os.killpg(server.pid, signal.SIGINT),
}

Ending = Callable[["Server"], None]


class Server:
    """A server that was started with the journal's app.

    :ivar pid: the process that was started, and the group of all of its processes.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.pid = process.pid
        self.port = port
        self._process = process
        self._folder = folder

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)

    def open_gate(self) -> None:
        """Let the tasks finish that wait for it."""
        (self._folder / "gate").touch()

    def journal(self) -> list[tuple[str, ...]]:
        """What the app and its tasks have written: a word, its subject, and the number of the process at the end."""
        with contextlib.suppress(FileNotFoundError):
            return [
                tuple(line.split()) for line in (self._folder / "journal").read_text().splitlines()
            ]
        return []

    def numbers(self, word: str) -> list[str]:
        """The tasks that this word was written of."""
        return [line[1] for line in self.journal() if line[0] == word]

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def until(self, condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
        """Wait for something that the server does."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.journal()}\n{self.log()}"
            time.sleep(0.005)

    def end(self) -> int:
        """Wait for the end of it, and of all of its processes; the exit code."""
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"The server has not ended.\n{self.journal()}\n{self.log()}")
        self.until(lambda: not alive_in(self.pid))
        return code


def alive_in(group: int) -> list[int]:
    """The processes of a group that still run."""
    members = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != "zombie":
                members.append(process.pid)
    return members


@contextlib.contextmanager
def serve(
    folder: Path,
    worker: str,
    *,
    workers: int = 1,
    lifespan: str = "on",
    drain_seconds: float = 30,
) -> Iterator[Server]:
    """Start a server, and leave nothing of it behind.

    :param worker: one of hypercorn's worker classes, or uvicorn.
    :param workers: how many processes serve; of hypercorn only.
    :param lifespan: `off` to have no lifespan; of uvicorn only.
    """
    folder.mkdir(exist_ok=True)
    target = f"{VARIANTS / 'background'}:app"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        fd, port = str(listener.fileno()), listener.getsockname()[1]
        if worker == "uvicorn":
            target = "background:app"
            options = ["--fd", fd, "--lifespan", lifespan, "--app-dir", str(VARIANTS)]
        else:
            options = ["--bind", f"fd://{fd}", "--worker-class", worker, "--workers", str(workers)]
            options += ["--graceful-timeout", str(GRACEFUL_SECONDS)]
        module = "uvicorn" if worker == "uvicorn" else "hypercorn"
        environment = {
            **os.environ,
            "JOURNAL": str(folder / "journal"),
            "GATE": str(folder / "gate"),
            "DRAIN_SECONDS": str(drain_seconds),
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *options, target],
                cwd=folder,  # not the source tree, which would be imported
                env=environment,
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        stack.callback(_kill, process)
        listener.close()
        server = Server(process, port, folder)
        if lifespan == "on":
            server.until(lambda: len(server.numbers("startup")) == workers)
        yield server


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the server's group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def order(connection: http.client.HTTPConnection, task: str, number: int) -> None:
    """Have a task queued, and read the whole answer."""
    connection.request("GET", f"/{task}/{number}")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"there")


def assert_clean(server: Server, code: int) -> None:
    """The server has ended as it does, and nothing was said of an exception."""
    assert code in (0, -signal.SIGTERM, -signal.SIGINT, 130), server.log()
    for sign in ("Traceback", "never retrieved", "never awaited", "RuntimeWarning"):
        assert sign not in server.log(), server.log()


def assert_done_before_the_apps_shutdown(server: Server) -> None:
    """In each process the last task is done when the app's own shutdown begins, and every process has one."""
    journal = server.journal()
    for process in {line[-1] for line in journal}:
        words = [line[0] for line in journal if line[-1] == process]
        assert words[0] == "startup", journal
        assert words[-1] == "shutdown", journal
        assert words.count("shutdown") == 1, journal


SERVERS = [(worker, "on") for worker in (*WORKERS, "uvicorn")] + [("uvicorn", "off")]


@pytest.mark.parametrize(("worker", "lifespan"), SERVERS)
def test_the_client_has_its_answers_while_the_task_runs(
    worker: str, lifespan: str, tmp_path: Path
) -> None:
    """The one that the task was queued in, and the next ones on the same connection."""
    with serve(tmp_path, worker, lifespan=lifespan) as server:
        connection = server.connect()
        order(connection, "on_the_loop", 1)
        client = connection.sock
        order(connection, "in_a_thread", 2)
        order(connection, "briefly", 3)
        assert connection.sock is client
        server.until(lambda: {"1", "2"} <= set(server.numbers("begun")))
        server.until(lambda: server.numbers("done") == ["3"])
        connection.close()
        server.open_gate()
        server.until(lambda: len(server.numbers("done")) == 3)
        os.kill(server.pid, signal.SIGTERM)
        assert_clean(server, server.end())
        assert server.numbers("reported") == []


# How it ends is the matter of the parent and of signals: each way with one kind of worker, and the plain way with all.
SHUTDOWNS = [
    pytest.param(worker, workers, ENDINGS[name], id=f"{worker}-{workers}-{name}")
    for worker in WORKERS
    for workers in (1, 2)
    for name in ENDINGS
    if worker == WORKERS[0] or name == "SIGTERM"
]


@pytest.mark.parametrize(("worker", "workers", "ending"), SHUTDOWNS)
def test_a_shutdown_waits_for_what_runs(
    worker: str, workers: int, ending: Ending, tmp_path: Path
) -> None:
    """On the loop and in a thread, for longer than the graceful time-out, and beside a worker with nothing to do."""
    with serve(tmp_path, worker, workers=workers) as server:
        connection = server.connect()
        order(connection, "on_the_loop", 1)
        order(connection, "in_a_thread", 2)
        server.until(lambda: len(server.numbers("begun")) == 2)
        connection.close()
        ending(server)
        server.until(lambda: not is_listening(server))
        # An idle worker is gone when the app has had its shutdown there, and the busy one would be ended with it.
        server.until(lambda: len(server.numbers("shutdown")) == workers - 1)
        # For the time in which nothing may happen there is nothing to wait for.
        time.sleep(1.5 * GRACEFUL_SECONDS)
        assert server.numbers("done") == []
        assert len(server.numbers("shutdown")) == workers - 1
        server.open_gate()
        assert_clean(server, server.end())
        assert sorted(server.numbers("done")) == ["1", "2"]
        assert server.numbers("reported") == []
        assert_done_before_the_apps_shutdown(server)


def is_listening(server: Server) -> bool:
    """Whether any of its processes still takes connections."""
    try:
        socket.create_connection(("127.0.0.1", server.port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("ending", [ENDINGS["SIGTERM"], ENDINGS["SIGINT"]], ids=["term", "int"])
@pytest.mark.parametrize("lifespan", ["on", "off"])
def test_uvicorn_waits_too(lifespan: str, ending: Ending, tmp_path: Path) -> None:
    """The shutdown does; without a lifespan it is the request that lasts as long as its tasks."""
    with serve(tmp_path, "uvicorn", lifespan=lifespan) as server:
        for number, task in enumerate(["on_the_loop", "in_a_thread"], 1):
            connection = server.connect()
            order(connection, task, number)
            connection.close()
        server.until(lambda: len(server.numbers("begun")) == 2)
        ending(server)
        server.until(lambda: "Shutting down" in server.log())
        assert server.numbers("done") == []
        server.open_gate()
        assert_clean(server, server.end())
        assert sorted(server.numbers("done")) == ["1", "2"]
        assert server.numbers("reported") == []
        if lifespan == "on":
            assert_done_before_the_apps_shutdown(server)


@pytest.mark.parametrize("worker", [*WORKERS, "uvicorn"])
def test_what_takes_too_long_is_reported(worker: str, tmp_path: Path) -> None:
    """By name and types in the log, and to `on_error`, before the app's own shutdown."""
    with serve(tmp_path, worker, drain_seconds=0.1) as server:
        connection = server.connect()
        order(connection, "on_the_loop", 1)
        connection.close()
        server.until(lambda: server.numbers("begun") == ["1"])
        os.kill(server.pid, signal.SIGTERM)
        assert_clean(server, server.end())
        assert [line[:3] for line in server.journal() if line[0] == "reported"] == [
            ("reported", "1", "cancelled")
        ]
        assert server.numbers("done") == []
        assert "background.on_the_loop(str) could not finish before the shutdown" in server.log()
        assert_done_before_the_apps_shutdown(server)


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("worker", WORKERS)
def test_what_was_accepted_is_done_or_reported(worker: str, seed: int, tmp_path: Path) -> None:
    """To the last task, whenever the signal comes and to whom; the shutdown has time enough, and cancels none."""
    chance = random.Random(seed)
    workers = chance.choice([1, 2])
    ending = chance.choice(list(ENDINGS.values()))
    enough = chance.randrange(1, 200)
    with serve(tmp_path, worker, workers=workers) as server:
        answered: list[str] = []
        counter = iter(range(10**9))

        def visit() -> None:
            with (
                contextlib.closing(server.connect()) as connection,
                contextlib.suppress(OSError, http.client.HTTPException),
            ):
                while True:
                    number = next(counter)
                    order(connection, ("briefly", "briefly_in_a_thread")[number % 2], number)
                    answered.append(str(number))

        visitors = [threading.Thread(target=visit) for _ in range(4)]
        for visitor in visitors:
            visitor.start()
        server.until(lambda: len(answered) >= enough)
        ending(server)
        code = server.end()
        for visitor in visitors:
            visitor.join()
        accepted = server.numbers("accepted")
        settled = Counter(server.numbers("done") + server.numbers("reported"))
        assert settled == Counter(accepted)
        assert set(answered) <= set(accepted)
        assert "cancelled" not in {line[2] for line in server.journal() if line[0] == "reported"}
        assert_clean(server, code)
