"""Requests a second behind hypercorn, wrapped and unwrapped, over real sockets.

The servers run side by side, each a hypercorn of one worker on a port of its own; a round loads one
after the other with the same number of requests and compares them. Two processes of the same
program differ by a few percent for as long as they live (where their memory came to lie, how their
strings hash), so the servers are started anew several times. A second unwrapped server is the
control: its ratio to the first shows how far the machine alone moves the figures. Where the kernel
tells it exactly, the CPU time that the worker spends on a request is a second table; it is what
bounds a busy server, and hears less of other work on the machine.
"""

from __future__ import annotations

import contextlib
import json
import operator
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from .harness import Row, Settings, Spread, Table, Target, interleave, pair

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = 16
CONTROL = "unwrapped, again"
TARGET = Target(">=", 0.97, of="ratio")


@dataclass(frozen=True)
class Case:
    """Servers to compare: what to call them and the app of each, the unwrapped one first."""

    title: str
    worker_class: str
    path: str
    apps: dict[str, str]
    target: Target = TARGET


def run(settings: Settings) -> Iterator[Table]:
    raw = {
        "unwrapped": "unwrapped",
        "PerformanceMiddleware": "middleware",
        "PerfKit": "wrapped",
        CONTROL: "unwrapped",
    }
    starlette = {
        "unwrapped": "starlette_unwrapped",
        "PerfKit": "starlette_wrapped",
        CONTROL: "starlette_unwrapped",
    }
    cases = [
        Case("a raw app", "asyncio", "/hello", raw),
        Case("a Starlette route", "asyncio", "/items/42", starlette),
        Case("a Starlette route that answers 100 rows", "asyncio", "/rows", starlette),
    ]
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: F401

        cases.append(Case("a raw app", "uvloop", "/hello", raw))
    for case in cases:
        yield from compare(case, settings)


def compare(case: Case, settings: Settings) -> Iterator[Table]:
    requests = settings.pick(800, 320)
    rounds = settings.pick(8, 2)
    warm_up = 2
    generations = settings.pick(6, 1)
    names = list(case.apps)
    rates: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    with load_generator() as generator:
        for _ in range(generations):
            used: dict[str, list[float]] = {name: [] for name in names}
            with contextlib.ExitStack() as stack:

                def batch_of(
                    port: int, hypercorn: psutil.Process, used: list[float]
                ) -> Callable[[], float]:
                    def batch() -> float:
                        before = cpu_nanoseconds(hypercorn)
                        nanoseconds = generator(port, case.path, requests)
                        after = cpu_nanoseconds(hypercorn)
                        if before is not None and after is not None:
                            # The requests that opened the connections are work of the worker too.
                            used.append((after - before) / (requests + CONNECTIONS) / 1000)
                        return requests / nanoseconds * 1e9

                    return batch

                batches = {
                    name: batch_of(*stack.enter_context(server(app, case.worker_class)), used[name])
                    for name, app in case.apps.items()
                }
                figures = interleave(batches, rounds=rounds, warm_up=warm_up)
            for name in names:
                rates[name] += figures[name]
                cpu[name] += used[name][warm_up:]

    notes = [
        f"{generations} generations of servers, each {rounds} rounds of {requests} requests.",
        f"{CONNECTIONS} connections.",
    ]
    where = f"{case.title} behind hypercorn ({case.worker_class}, one worker)"
    yield Table(
        f"Throughput of {where}",
        "requests/s",
        compared(rates, case.target),
        reference=names[0],
        notes=notes,
    )
    if all(cpu.values()):
        yield Table(
            f"CPU time of a request to {where}",
            "us",
            compared(cpu, None),
            reference=names[0],
            notes=notes,
        )


def compared(figures: dict[str, list[float]], target: Target | None) -> list[Row]:
    """Return a row for each server, with its ratio to the first."""
    first, *others = figures
    rows = [Row(first, Spread.of(figures[first]))]
    for name in others:
        ratio = Spread.of(pair(figures[name], figures[first], operator.truediv))
        rows.append(Row(name, Spread.of(figures[name]), ratio, None if name == CONTROL else target))
    return rows


@contextlib.contextmanager
def server(app: str, worker_class: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run hypercorn with one worker on a free port; yield the port and hypercorn's process, whose
    child is the worker.
    """
    command = [sys.executable, "-m", "hypercorn", "--worker-class", worker_class, "--workers", "1"]
    command += ["--bind", "fd://{fd}", "--log-level", "WARNING", f"benchmarks.apps:{app}"]
    with serve(command) as served:
        yield served


@contextlib.contextmanager
def serve(command: list[str]) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server on a free port; yield the port and the server's process.

    :param command: how it is started; `{fd}` in it stands for the listening socket.
    """
    with socket.socket() as listener:
        # Listening before the server is there: the first request waits in the backlog until it is,
        # and nobody has to poll.
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        descriptor = listener.fileno()
        arguments = [argument.format(fd=descriptor) for argument in command]
        process = subprocess.Popen(
            arguments, cwd=ROOT, pass_fds=[descriptor], stdin=subprocess.DEVNULL
        )
        port = listener.getsockname()[1]
    try:
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def load_generator() -> Iterator[Callable[[int, str, int], int]]:
    """Run the load generator; yield a function that makes `requests` requests and returns the
    nanoseconds they took.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    jobs, answers = process.stdin, process.stdout

    def load(port: int, path: str, requests: int) -> int:
        job = {"port": port, "path": path, "connections": CONNECTIONS, "requests": requests}
        jobs.write(json.dumps(job) + "\n")
        jobs.flush()
        answer = answers.readline()
        if not answer:
            raise RuntimeError("The load generator ended; its own message is above.")
        return int(answer)

    try:
        yield load
    finally:
        jobs.close()
        process.wait(60)
        answers.close()


def cpu_nanoseconds(parent: psutil.Process) -> int | None:
    """Return the CPU time of hypercorn's worker so far; None where the kernel does not tell.

    What psutil has is in clock ticks of 10 ms, in some kernels counted by sampling: too coarse by
    far. The first number in schedstat is the time that a thread has run, in nanoseconds.
    """
    total = 0
    try:
        for process in parent.children(recursive=True):
            for thread in process.threads():
                path = Path("/proc", str(process.pid), "task", str(thread.id), "schedstat")
                total += int(path.read_text(encoding="ascii").split()[0])
    except (OSError, psutil.Error):
        return None
    return total
