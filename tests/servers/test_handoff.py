"""Tasks that Celery and Taskiq run, behind a real server, with a real Redis between; their rows are the witness."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import VARIANTS, Application, Deployment, Server, ServerFailed, serve
from .witness import Witness

REDIS = shutil.which("redis-server")
PATIENCE_SECONDS = 15

pytestmark = pytest.mark.skipif(
    REDIS is None, reason="redis-server is not installed (Debian's package of that name)"
)


def until(condition: Callable[[], object], fact: str) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, fact
        time.sleep(0.01)


@contextlib.contextmanager
def running(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, and leave nothing of it behind."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(VARIANTS)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Redis:
    """A Redis server that keeps what it was given when it is killed.

    :ivar port: where it listens whenever it runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """Have it run for the length of the block."""
        assert REDIS is not None
        options = {"bind": "127.0.0.1", "port": self.port, "dir": self._folder, "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always"}
        arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with running(self._folder, REDIS, *arguments) as process:
            until(lambda: process.poll() is not None or self.answers(), "Redis does not start")
            assert process.poll() is None, (self._folder / "log").read_text()
            yield

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16) == b"+PONG\r\n"
        except OSError:
            return False


class Place:
    """Where a test has its servers, its workers, and what these have written."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, witness: Witness) -> None:
        self.folder = folder
        self.redis = Redis(folder / "redis")
        self._patch = patch
        self._witness = witness
        patch.setenv("WITNESS", str(witness.path))
        patch.setenv("REDIS_URL", f"redis://127.0.0.1:{self.redis.port}/0")

    def rows(self) -> list[tuple[str, str, int]]:
        return self._witness.rows()

    def numbers(self, word: str) -> list[str]:
        """The tasks that this was written of, sorted."""
        return sorted(self._witness.numbers(word))

    def until(self, word: str, *numbers: str) -> None:
        """Wait until this was written of all these tasks."""
        until(
            lambda: set(numbers) <= set(self.numbers(word)),
            f"{word} {numbers}: {self.rows()}\n{self.logs()}",
        )

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("*/log"))

    @contextlib.contextmanager
    def celery_worker(self) -> Iterator[None]:
        options = ["--pool", "solo", "--loglevel", "WARNING"]
        options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self._worker("celery", "-A", "handoff_tasks", "worker", *options):
            yield

    @contextlib.contextmanager
    def taskiq_worker(self) -> Iterator[None]:
        with self._worker("taskiq", "worker", "--workers", "1", "handoff_tasks:taskiq_broker"):
            yield

    @contextlib.contextmanager
    def _worker(self, module: str, *arguments: str) -> Iterator[None]:
        folder = self.folder / module
        folder.mkdir()
        # What it warns of while it starts is its own affair.
        with running(folder, sys.executable, "-m", module, *arguments):
            yield

    @contextlib.contextmanager
    def server(
        self, worker: str = "asyncio", *, drain_seconds: float = 30, **options: Any
    ) -> Iterator[Server]:
        """The app, behind hypercorn; its log and its end are judged.

        :param options: of the `Handoff`.
        """
        self._patch.setenv("HANDOFF_OPTIONS", json.dumps(options))
        self._patch.setenv("DRAIN_SECONDS", str(drain_seconds))
        with serve(Deployment(Application("raw", "handoff"), worker)) as server:
            yield server


@contextlib.contextmanager
def make_place(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Place]:
    with contextlib.closing(Witness(folder / "witness.sqlite3")) as witness:
        yield Place(folder, patch, witness)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with make_place(tmp_path, monkeypatch) as place:
        yield place


@pytest.fixture(scope="module")
def working_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Where Redis and the workers of both engines run all the time."""
    with (
        pytest.MonkeyPatch.context() as patch,
        make_place(tmp_path_factory.mktemp("handoff"), patch) as place,
        place.redis.up(),
        place.celery_worker(),
        place.taskiq_worker(),
    ):
        yield place


def order(server: Server, *paths: str) -> list[bytes]:
    """Have tasks queued, in requests on one connection; the answers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
    answers = []
    with contextlib.closing(connection):
        for path in paths:
            connection.request("GET", f"/{path}")
            client = connection.sock
            response = connection.getresponse()
            answers.append(response.read())
            assert response.status == 200
            assert connection.sock is client
    return answers


def figures(server: Server) -> dict[str, int]:
    """The figures of the server's tasks, without what is zero."""
    (body,) = order(server, "figures")
    return {name: number for name, number in json.loads(body).items() if number}


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_workers_run_what_was_handed_off(working_place: Place, worker: str) -> None:
    """Each task once, in the worker's process, and none of them here; Taskiq where there is asyncio."""
    place = working_place
    engines = ["celery"] if worker == "trio" else ["celery", "taskiq"]
    orders = {f"{engine}/{worker}{number}" for engine in engines for number in range(10)}
    with place.server(worker) as server:
        order(server, *orders, f"here/{worker}")
        for engine in engines:
            place.until(engine, *(f"{worker}{number}" for number in range(10)))
        until(
            lambda: figures(server) == {"handed_off": len(orders), "done": 1}, "not counted as that"
        )
    rows = [row for row in place.rows() if row[1].startswith(worker)]
    ran = Counter(f"{word}/{number}" for word, number, _ in rows if word in {"celery", "taskiq"})
    assert ran == Counter(orders)
    (web,) = {process for word, number, process in rows if word == "here"}
    assert {process for word, _, process in rows if word == "tried"} == {web}
    assert web not in {process for word, _, process in rows if word in {"celery", "taskiq"}}


@pytest.mark.parametrize("fallback", ["run", "report"])
def test_without_a_broker_no_request_is_harmed(place: Place, fallback: str) -> None:
    """Its tasks run in the server's own process, or are told of, one by one."""
    with place.server(fallback=fallback, retries=1, backoff=0.01) as server:
        order(server, "celery/1", "taskiq/2", "here/3", "celery/4")
        if fallback == "run":
            place.until("celery", "1", "4")
            place.until("taskiq", "2")
            counted = {"done": 4, "handoff_failed": 3}
        else:
            place.until("lost", "1", "2", "4")
            counted = {"done": 1, "lost": 3, "handoff_failed": 3}
        place.until("here", "3")
        until(lambda: figures(server) == counted, "not counted")
    (_,) = {process for _, _, process in place.rows()}


def test_a_broker_that_comes_back_gets_all_that_it_has_missed(place: Place) -> None:
    """What it had before it died, what came while it was dead, and what came then: each task runs once."""
    # Waits of at most 0.2, 0.4, 0.8 s, ..., so that the last is long after it is back.
    with place.server(retries=8, backoff=0.2, timeout=60) as server:
        with place.redis.up():
            order(server, "celery/1", "taskiq/2")
            until(lambda: figures(server) == {"handed_off": 2}, "not handed off")
        order(server, "celery/3", "taskiq/4", "celery/5")
        until(lambda: place.numbers("tried").count("3") >= 2, "not tried again")
        until(lambda: place.numbers("tried").count("4") >= 2, "not tried again")
        with place.redis.up(), place.celery_worker(), place.taskiq_worker():
            order(server, "celery/6", "taskiq/7")
            place.until("celery", "1", "3", "5", "6")
            place.until("taskiq", "2", "4", "7")
            until(lambda: figures(server) == {"handed_off": 7}, "not counted")
    assert place.numbers("celery") == ["1", "3", "5", "6"]
    assert place.numbers("taskiq") == ["2", "4", "7"]


@pytest.mark.parametrize(
    ("fallback", "word"), [("run", ("celery", "taskiq")), ("report", ("lost",))]
)
def test_a_shutdown_does_not_sleep(place: Place, fallback: str, word: tuple[str, ...]) -> None:
    """What waits for its next try then is tried at once, and run or told of before the app's own shutdown."""
    with place.server(fallback=fallback, backoff=1000, timeout=5000, retries=2) as server:
        order(server, "celery/1", "taskiq/2")
        place.until("tried", "1", "2")
    ended = [row[1] for row in place.rows() if row[0] in word]
    assert sorted(ended) == ["1", "2"]
    assert place.numbers("tried") == ["1"] * 3 + ["2"] * 3
    assert place.rows()[-1][0] == "shutdown"


def test_an_engine_that_is_stuck_does_not_hold_the_drain_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread is in a socket that never answers: the drain leaves it when its time is up, and the app has its end."""
    with contextlib.ExitStack() as stack:
        # A task that was lost is what no log may tell of, elsewhere.
        stack.enter_context(
            pytest.raises(ServerFailed, match="could not finish before the shutdown")
        )
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        with place.server(drain_seconds=0.2) as server:
            order(server, "celery/1", "taskiq/2")
            connections = [stack.enter_context(silent.accept()[0]) for _ in range(2)]
            place.until("tried", "1", "2")
            os.kill(server.pid, signal.SIGTERM)
            place.until("shutdown", "")
            assert place.numbers("cancelled") == ["1", "2"]
            # The process itself cannot end before its thread does.
            silent.close()
            for connection in connections:
                connection.close()
    assert place.rows()[-1][0] == "shutdown"
    assert place.numbers("celery") == place.numbers("taskiq") == []
