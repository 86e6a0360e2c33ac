"""Requests a second behind hypercorn, wrapped and unwrapped, over real sockets.

The servers run side by side, each a hypercorn of one worker on a port of its own; a round loads one
after the other with the same number of requests and compares them. Two processes of the same
program differ by a few percent for as long as they live (where their memory came to lie, how their
strings hash), so the servers are started anew several times. A second unwrapped server is the
control: its ratio to the first shows how far the machine alone moves the figures. The workers' CPU
time a request is shown too; it is what bounds a busy server, and hears less of other work on the
machine.
"""

from __future__ import annotations

import contextlib
import json
import operator
import socket
import statistics
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
    ]
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: F401

        cases.append(Case("a raw app", "uvloop", "/hello", raw))
    for case in cases:
        yield compare(case, settings)


def compare(case: Case, settings: Settings) -> Table:
    requests = settings.pick(800, 320)
    rounds = settings.pick(8, 2)
    generations = settings.pick(8, 1)
    names = list(case.apps)
    rates: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    with load_generator() as generator:
        for _ in range(generations):
            with contextlib.ExitStack() as stack:
                servers = {
                    name: stack.enter_context(server(app, case.worker_class))
                    for name, app in case.apps.items()
                }

                def batch_of(
                    name: str, port: int, hypercorn: psutil.Process
                ) -> Callable[[], float]:
                    def batch() -> float:
                        before = cpu_seconds(hypercorn)
                        nanoseconds = generator(port, case.path, requests)
                        # The requests that opened the connections are work of the worker too.
                        cpu[name].append(
                            (cpu_seconds(hypercorn) - before) / (requests + CONNECTIONS) * 1e6
                        )
                        return requests / nanoseconds * 1e9

                    return batch

                batches = {name: batch_of(name, *servers[name]) for name in names}
                for name, samples in interleave(batches, rounds=rounds).items():
                    rates[name] += samples

    first = names[0]
    rows = [Row(first, Spread.of(rates[first]))]
    for name in names[1:]:
        ratio = Spread.of(pair(rates[name], rates[first], operator.truediv))
        rows.append(Row(name, Spread.of(rates[name]), ratio, None if name == CONTROL else TARGET))
    # A clock tick of CPU time is longer than many requests: one round says little, their mean says
    # much.
    used = ", ".join(f"{name} {statistics.fmean(samples):.0f} us" for name, samples in cpu.items())
    notes = [
        f"CPU time a request, warm-up included: {used}.",
        f"{generations} generations of servers, each {rounds} rounds of {requests} requests.",
        f"{CONNECTIONS} connections.",
    ]
    return Table(
        f"Throughput of {case.title} behind hypercorn ({case.worker_class}, one worker)",
        "requests/s",
        rows,
        reference=first,
        notes=notes,
    )


@contextlib.contextmanager
def server(app: str, worker_class: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run hypercorn with one worker on a free port; yield the port and hypercorn's process, whose
    child is the worker.
    """
    with socket.socket() as listener:
        # Listening before hypercorn is there: the first request waits in the backlog until it is,
        # and nobody has to poll.
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        command = [
            sys.executable,
            "-m",
            "hypercorn",
            "--worker-class",
            worker_class,
            "--workers",
            "1",
        ]
        command += [
            "--bind",
            f"fd://{listener.fileno()}",
            "--log-level",
            "WARNING",
            f"benchmarks.apps:{app}",
        ]
        process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL
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


def cpu_seconds(parent: psutil.Process) -> float:
    """Return the CPU time of the worker so far, in seconds; hypercorn's parent process only waits."""
    total = 0.0
    for process in parent.children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total
