"""Tasks behind real servers: when they run, and that no shutdown loses one. Their own rows are the witness."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
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

from .client import WebSocket
from .harness import VARIANTS
from .http2 import HTTP2Connection
from .witness import Witness

START_SECONDS = 15
STOP_SECONDS = 15
GRACEFUL_SECONDS = 0.2

WORKERS = ("asyncio", "uvloop", "trio")
#: How many servers are ended at a random moment, on each loop: 200 say more, and take some minutes on each.
ROUNDS = int(os.environ.get("PERFKIT_SIGTERM_ROUNDS", "2"))

#: What `on_error` is told of a task that was not done.
REASONS = ("failed", "timed_out", "cancelled", "discarded", "lost")

#: What ends a server: by hand in a terminal, and by supervisors that tell the parent only, or every process.
ENDINGS: dict[str, Callable[[Server], None]] = {
    "SIGTERM": lambda server: os.kill(server.pid, signal.SIGTERM),
    "SIGINT": lambda server: os.kill(server.pid, signal.SIGINT),
    "SIGTERM to all": lambda server: os.killpg(server.pid, signal.SIGTERM),
    "SIGINT to all": lambda server: os.killpg(server.pid, signal.SIGINT),
}


class Server:
    """A server that was started with the app whose tasks keep a record.

    :ivar pid: the process that was started, and the group of all of its processes.
    :ivar worker: one of hypercorn's worker classes, or uvicorn.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        port: int,
        folder: Path,
        worker: str,
        witness: Witness,
    ) -> None:
        self.pid = process.pid
        self.port = port
        self.worker = worker
        self._process = process
        self._folder = folder
        self._witness = witness

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)

    def open_gates(self, *numbers: str) -> None:
        """Let these tasks finish, or all that wait."""
        for number in numbers or ["all"]:
            (self._folder / "gates" / number).touch()

    def rows(self) -> list[tuple[str, str, int]]:
        """What the app and its tasks have written: a word, the task's number, and the process."""
        return self._witness.rows()

    def numbers(self, *words: str) -> list[str]:
        """The tasks that one of these words was written of."""
        return self._witness.numbers(*words)

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def until(self, condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
        """Wait for something that the server does."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.rows()}\n{self.log()}"
            time.sleep(0.005)

    def end(self) -> int:
        """Wait for the end of it, and of all of its processes; the exit code."""
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"The server has not ended.\n{self.rows()}\n{self.log()}")
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
    (folder / "gates").mkdir(parents=True)
    target = f"{VARIANTS / 'background'}:app"
    with contextlib.ExitStack() as stack:
        witness = stack.enter_context(contextlib.closing(Witness(folder / "witness.sqlite3")))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        fd, port = str(listener.fileno()), listener.getsockname()[1]
        if worker == "uvicorn":
            target = "background:app"
            options = ["--fd", fd, "--lifespan", lifespan, "--app-dir", str(VARIANTS)]
        else:
            options = ["--bind", f"fd://{fd}", "--worker-class", worker, "--workers", str(workers)]
            settings = (
                folder / "hypercorn.toml"
            )  # of which the command line takes whole seconds only
            settings.write_text(f"graceful_timeout = {GRACEFUL_SECONDS}")
            options += ["--config", str(settings)]
        module = "uvicorn" if worker == "uvicorn" else "hypercorn"
        environment = {
            **os.environ,
            "WITNESS": str(witness.path),
            "GATES": str(folder / "gates"),
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
        server = Server(process, port, folder, worker, witness)
        if lifespan == "on":
            server.until(lambda: len(server.numbers("startup")) == workers)
        yield server


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the server's group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def order(connection: http.client.HTTPConnection, task: str, number: str) -> None:
    """Have a task queued, and read the whole answer."""
    connection.request("GET", f"/{task}/{number}")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"there")


def assert_clean(server: Server, code: int) -> None:
    """The server has ended as it does, and nothing was said of an exception but of those of tasks, by the kit."""
    assert code in (0, -signal.SIGTERM, -signal.SIGINT, 130), server.log()
    for sign in ("never retrieved", "never awaited", "RuntimeWarning"):
        assert sign not in server.log(), server.log()
    assert server.log().count("Traceback") == len(server.numbers("failed")), server.log()


def assert_done_before_the_apps_shutdown(server: Server) -> None:
    """In each process the last task is done when the app's own shutdown begins, and every process has one."""
    rows = server.rows()
    for process in {row[2] for row in rows}:
        words = [word for word, _, each in rows if each == process]
        assert words[0] == "startup", rows
        assert words[-1] == "shutdown", rows
        assert words.count("shutdown") == 1, rows


# ---- while it serves

KINDS = ("on_the_loop", "in_a_thread", "on_the_loop")
SERVERS = [(worker, "on") for worker in (*WORKERS, "uvicorn")] + [("uvicorn", "off")]

_numbers = map(str, itertools.count(1))


@pytest.fixture(scope="module", params=SERVERS, ids="-".join)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One that several tests share, each with tasks of its own; what they have found holds to its end."""
    worker, lifespan = request.param
    with serve(tmp_path_factory.mktemp("server") / "folder", worker, lifespan=lifespan) as server:
        yield server
        os.kill(server.pid, signal.SIGTERM)
        assert_clean(server, server.end())
        assert_all_settled(server)
        assert server.numbers("cancelled") == []


def number() -> str:
    """A task's."""
    return next(_numbers)


def assert_all_settled(server: Server) -> None:
    """Each task that was accepted is done, or was reported; none twice."""
    assert Counter(server.numbers("done", *REASONS)) == Counter(server.numbers("accepted"))


def test_the_client_has_its_answers_while_tasks_run(server: Server) -> None:
    """The one that the task was queued in, and the next ones on the same connection."""
    first, second, third = number(), number(), number()
    connection = server.connect()
    order(connection, "on_the_loop", first)
    client = connection.sock
    order(connection, "in_a_thread", second)
    order(connection, "briefly", third)
    assert connection.sock is client
    server.until(lambda: {first, second} <= set(server.numbers("begun")))
    server.until(lambda: third in server.numbers("done"))
    assert not {first, second} & set(server.numbers("done"))
    connection.close()
    server.open_gates(first, second)
    server.until(lambda: {first, second} <= set(server.numbers("done")))


def test_a_task_that_fails_leaves_the_connection_alone(server: Server) -> None:
    """The next request is served on it, and its task runs."""
    failing = {"fails": number(), "fails_in_a_thread": number()}
    last = number()
    connection = server.connect()
    order(connection, "fails", failing["fails"])
    client = connection.sock
    order(connection, "fails_in_a_thread", failing["fails_in_a_thread"])
    server.until(lambda: set(failing.values()) <= set(server.numbers("failed")))
    order(connection, "briefly", last)
    assert connection.sock is client
    server.until(lambda: last in server.numbers("done"))
    connection.close()


def test_pipelined_requests_are_answered_while_tasks_run(server: Server) -> None:
    """All at once on one connection: none waits for the tasks of another."""
    numbers = [number() for _ in range(3)]
    with socket.create_connection(("127.0.0.1", server.port), START_SECONDS) as client:
        client.sendall(
            b"".join(
                f"GET /{task}/{number} HTTP/1.1\r\nHost: there\r\n\r\n".encode()
                for task, number in zip(KINDS, numbers, strict=True)
            )
        )
        answers = b""
        while answers.count(b"\r\n\r\nthere") < 3:
            data = client.recv(65_536)
            assert data, answers
            answers += data
    server.until(lambda: set(numbers) <= set(server.numbers("begun")))
    assert not set(numbers) & set(server.numbers("done"))
    server.open_gates(*numbers)
    server.until(lambda: set(numbers) <= set(server.numbers("done")))


def test_the_tasks_of_a_websocket_begin_at_its_end(server: Server) -> None:
    """In the order of adding; the client goes on talking before that."""
    numbers = [number(), number()]

    async def talk() -> None:
        async with WebSocket(server.port, "/") as connection:
            for each in numbers:
                await connection.send_text(f"on_the_loop/{each}")
                assert await connection.receive_text() == "there"
            assert server.numbers("accepted")[-2:] == numbers
            assert not set(numbers) & set(server.numbers("begun"))

    asyncio.run(talk())
    server.open_gates(*numbers)
    server.until(lambda: set(numbers) <= set(server.numbers("done")))
    words = [row[:2] for row in server.rows()]
    steps = [("left", ""), *((word, each) for each in numbers for word in ("begun", "done"))]
    assert [word for word in words if word in steps][-5:] == steps


def test_streams_of_http_2_are_answered_while_tasks_run(server: Server) -> None:
    """Several at the same time, and the next one on the same connection."""
    if server.worker == "uvicorn":
        pytest.skip("uvicorn does not speak HTTP/2")
    first, second, third = number(), number(), number()
    with HTTP2Connection(server.port) as connection:
        paths = f"/on_the_loop/{first}", f"/in_a_thread/{second}"
        for stream in [connection.ask(path) for path in paths]:
            assert connection.receive(stream) == b"there"
        server.until(lambda: {first, second} <= set(server.numbers("begun")))
        assert connection.receive(connection.ask(f"/briefly/{third}")) == b"there"
        server.until(lambda: third in server.numbers("done"))
        assert not {first, second} & set(server.numbers("done"))
    server.open_gates(first, second)
    server.until(lambda: {first, second} <= set(server.numbers("done")))


#: So many messages of a body that is not read fill the queue of hypercorn for the app.
FULL = 10


def test_a_body_that_is_not_read_holds_no_task(server: Server) -> None:
    """Though hypercorn has no room for the end of the response then; the client goes on uploading."""
    if server.worker == "uvicorn":
        pytest.skip("uvicorn does not keep what is not read")
    task = number()
    with socket.create_connection(("127.0.0.1", server.port), START_SECONDS) as client:
        head = f"POST /briefly/{task} HTTP/1.1\r\nHost: there\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode() + b"1\r\nx\r\n" * (2 * FULL))
        server.until(lambda: task in server.numbers("done"))
        assert client.recv(65_536).startswith(b"HTTP/1.1 200")


def test_nor_does_one_of_http_2(server: Server) -> None:
    """The next request on the same connection is served."""
    if server.worker in ("uvicorn", "trio"):
        pytest.skip(
            "uvicorn does not speak HTTP/2, hypercorn's trio worker does not survive what would help"
        )
    first, second = number(), number()
    with HTTP2Connection(server.port) as connection:
        stream = connection.begin_upload(f"/briefly/{first}", *[b"x"] * FULL)
        assert connection.receive(stream) == b"there"
        server.until(lambda: first in server.numbers("done"))
        assert connection.receive(connection.ask(f"/briefly/{second}")) == b"there"
    server.until(lambda: second in server.numbers("done"))


# ---- at its end

# How it ends is the matter of the parent and of signals: each way with one kind of worker, and the plain way with all.
SHUTDOWNS = [
    *(("asyncio", 2, name) for name in ENDINGS),
    ("asyncio", 1, "SIGTERM"),
    ("asyncio", 1, "SIGTERM to all"),
    ("asyncio", 1, "SIGINT to all"),
    ("uvloop", 2, "SIGTERM"),
    ("trio", 1, "SIGTERM"),
    ("trio", 2, "SIGTERM"),
]


@pytest.mark.parametrize(("worker", "workers", "ending"), SHUTDOWNS)
def test_a_shutdown_waits_for_what_runs(
    worker: str, workers: int, ending: str, tmp_path: Path
) -> None:
    """On the loop and in a thread, for longer than the graceful time-out, and beside a worker with nothing to do."""
    with serve(tmp_path / "folder", worker, workers=workers) as server:
        connection = server.connect()
        order(connection, "on_the_loop", "1")
        order(connection, "in_a_thread", "2")
        server.until(lambda: len(server.numbers("begun")) == 2)
        connection.close()
        ENDINGS[ending](server)
        server.until(lambda: len(server.numbers("asked")) == workers)
        # An idle worker is gone when the app has had its shutdown there, and the busy one would be ended with it.
        server.until(lambda: len(server.numbers("shutdown")) == workers - 1)
        # For the time in which nothing may happen there is nothing to wait for.
        time.sleep(1.5 * GRACEFUL_SECONDS)
        assert server.numbers("done") == []
        assert len(server.numbers("shutdown")) == workers - 1
        server.open_gates()
        assert_clean(server, server.end())
        assert sorted(server.numbers("done")) == ["1", "2"]
        assert server.numbers(*REASONS) == []
        assert_done_before_the_apps_shutdown(server)


@pytest.mark.parametrize(
    ("lifespan", "ending"), [("on", "SIGTERM"), ("on", "SIGINT"), ("off", "SIGTERM")]
)
def test_uvicorn_waits_too(lifespan: str, ending: str, tmp_path: Path) -> None:
    """The shutdown does; without a lifespan it is the request that lasts as long as its tasks."""
    with serve(tmp_path / "folder", "uvicorn", lifespan=lifespan) as server:
        for number, task in zip("12", KINDS[:2], strict=True):
            connection = server.connect()
            order(connection, task, number)
            connection.close()
        server.until(lambda: len(server.numbers("begun")) == 2)
        ENDINGS[ending](server)
        server.until(lambda: "Shutting down" in server.log())
        assert server.numbers("done") == []
        server.open_gates()
        assert_clean(server, server.end())
        assert sorted(server.numbers("done")) == ["1", "2"]
        assert server.numbers(*REASONS) == []
        if lifespan == "on":
            assert_done_before_the_apps_shutdown(server)


@pytest.mark.parametrize("worker", ["asyncio", "trio", "uvicorn"])
def test_what_takes_too_long_is_reported(worker: str, tmp_path: Path) -> None:
    """By name and types in the log, and to `on_error`, before the app's own shutdown."""
    with serve(tmp_path / "folder", worker, drain_seconds=0.1) as server:
        connection = server.connect()
        order(connection, "on_the_loop", "1")
        connection.close()
        server.until(lambda: server.numbers("begun") == ["1"])
        os.kill(server.pid, signal.SIGTERM)
        assert_clean(server, server.end())
        assert server.numbers("cancelled") == ["1"]
        assert server.numbers("done", *(set(REASONS) - {"cancelled"})) == []
        assert "background.on_the_loop(str) could not finish before the shutdown" in server.log()
        assert_done_before_the_apps_shutdown(server)


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("worker", WORKERS)
def test_what_was_accepted_is_done_or_reported(worker: str, seed: int, tmp_path: Path) -> None:
    """To the last task, whenever the signal comes and to whom; a shutdown that has time enough cancels none."""
    chance = random.Random(seed)
    workers = chance.choice([1, 2])
    ending = chance.choice(list(ENDINGS.values()))
    enough = chance.randrange(1, 200)
    has_time = seed % 2 == 0
    drain_seconds = 30 if has_time else 0.02  # and a task takes 0.05
    with serve(tmp_path / "folder", worker, workers=workers, drain_seconds=drain_seconds) as server:
        answered: list[str] = []
        counter = iter(range(10**9))

        def visit() -> None:
            with (
                contextlib.closing(server.connect()) as connection,
                contextlib.suppress(OSError, http.client.HTTPException),
            ):
                while True:
                    number = next(counter)
                    task = ("briefly", "briefly_in_a_thread")[number % 2]
                    order(connection, task, str(number))
                    answered.append(str(number))

        visitors = [threading.Thread(target=visit) for _ in range(4)]
        for visitor in visitors:
            visitor.start()
        server.until(lambda: len(answered) >= enough)
        ending(server)
        code = server.end()
        for visitor in visitors:
            visitor.join()
        assert_all_settled(server)
        assert set(answered) <= set(server.numbers("accepted"))
        if has_time:
            assert server.numbers("cancelled") == []
        assert_clean(server, code)
