"""Starts a sample application behind hypercorn, sends it real traffic, and shows where the time went.

The figures are what `get_performance_stats(by="endpoint")` returns in the server's process; the samples
show it at /stats. Runs on systems that can hand over a socket to a process by its descriptor (not on Windows).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import wsproto
import wsproto.events

HERE = Path(__file__).resolve().parent
SAMPLES = ("django", "fastapi", "litestar", "quart", "raw", "starlette")

START_SECONDS = 30
REQUEST_SECONDS = 10
STOP_SECONDS = 10
LOG_LINES = 30

#: A stretch on the loop that other requests feel.
FREEZE_SECONDS = 0.01


class DemoError(Exception):
    """The demo cannot go on; the message is for its user."""


# ---- the server


class Server:
    """A sample application behind hypercorn, in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Any) -> None:
        self.process = process
        self.port = port
        self._log = log

    def connect(self, timeout: float = REQUEST_SECONDS) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def failure(self, fact: str) -> DemoError:
        """What has happened, with what the server has to say about it."""
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["(nothing)"]
        return DemoError(
            "\n".join([fact, "The last that the server wrote:", "", *lines[-LOG_LINES:]])
        )

    def stats(self) -> dict[str, Any]:
        """The figures, once every request that was sent is in them, and what it has left to do afterwards."""
        deadline = time.monotonic() + REQUEST_SECONDS
        with contextlib.closing(self.connect()) as connection:
            while True:
                connection.request("GET", "/stats")
                stats: dict[str, Any] = json.loads(connection.getresponse().read())
                runtime = stats["runtime"]
                tasks = runtime["background_tasks"]
                # A response has arrived a moment before its request is recorded.
                settled = runtime["requests"]["in_flight"] == 1
                settled = settled and not tasks["pending"] + tasks["running"]
                if settled or time.monotonic() > deadline:
                    return stats


@contextlib.contextmanager
def serving(sample: str) -> Iterator[Server]:
    """Run a sample for the length of the block.

    The socket is made here and handed over, so nobody else can take its port in between; and the first request
    waits in it until the server is ready, or fails at once if the server does not come up.

    :raises DemoError: the server does not start.
    """
    folder = HERE / sample
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        environment = {**os.environ, "SHOP_DATABASE": str(Path(scratch, "shop.sqlite3"))}
        if sample == "django":
            _migrate(folder, environment)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        port, descriptor = listener.getsockname()[1], listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "hypercorn", "app:app", "--bind", f"fd://{descriptor}"],
            cwd=folder,
            env=environment,
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for the demo, which then ends the server: in this order, nothing has to fail.
            start_new_session=True,
        )
        stack.callback(_end, process)
        listener.close()
        server = Server(process, port, log)
        with contextlib.closing(server.connect(START_SECONDS)) as connection:
            try:
                connection.request("GET", "/items/1")
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException):
                process.wait(STOP_SECONDS)
                raise server.failure(f"The {sample} sample did not start.") from None
        if status != 200:
            raise server.failure(f"The {sample} sample answered its first request with {status}.")
        yield server


def _migrate(folder: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    made = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise DemoError(f"The database could not be made:\n\n{made.stderr.strip()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    # Ctrl-C once more must not leave the server behind.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode < 0:  # it could not end its worker by itself
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    finally:
        signal.signal(signal.SIGINT, previous)


# ---- the traffic


class Client:
    """One user of the shop, with a connection that is kept open between requests."""

    def __init__(self, server: Server, seed: int, *, chats: bool) -> None:
        self._server = server
        self._deeds = {
            deed: weight for deed, weight in DEEDS.items() if chats or deed is not Client.chat
        }
        self._random = random.Random(seed)
        self._connection = server.connect()

    def run(self, stop: threading.Event, sent: list[None]) -> None:
        """Do what users do, with short pauses, until told to `stop`."""
        deeds, weights = list(self._deeds), list(self._deeds.values())
        # Everything once to begin with, so that a short run has it all.
        to_do = deeds.copy()
        self._random.shuffle(to_do)
        with contextlib.closing(self._connection):
            while not stop.wait(self._random.expovariate(100)):
                deed = to_do.pop() if to_do else self._random.choices(deeds, weights)[0]
                deed(self)
                sent.append(None)

    def _request(self, method: str, target: str, body: bytes | None = None) -> None:
        self._connection.request(method, target, body)
        self._connection.getresponse().read()

    def look_at_an_item(self) -> None:
        self._request("GET", f"/items/{self._random.randint(1, 4)}")  # there are three

    def look_into_a_shop(self) -> None:
        self._request(
            "GET", f"/shop/{self._random.randint(1, 2)}/items/{self._random.randint(1, 3)}"
        )

    def browse(self) -> None:
        self._request("GET", "/items/")

    def get_lost(self) -> None:
        self._request("GET", f"/old-page-{self._random.randrange(10_000)}")

    def ask_the_supplier(self) -> None:
        self._request("GET", "/wait")

    def log_in(self) -> None:
        self._request("GET", "/sync")

    def order(self) -> None:
        self._request("POST", f"/orders/{self._random.randint(1, 2)}")

    def make_a_wish(self) -> None:
        self._request("POST", "/after")

    def upload(self) -> None:
        self._request(
            "POST", "/upload", self._random.randbytes(self._random.randint(1_000, 400_000))
        )

    def buy(self) -> None:
        self._request("POST", f"/sales/{self._random.randint(1, 2)}")

    def see_what_sells(self) -> None:
        self._request("GET", f"/sales/{self._random.randint(1, 3)}")

    def export(self) -> None:
        self._request("GET", "/stream")

    def export_and_hang_up(self) -> None:
        with contextlib.closing(self._server.connect()) as connection:
            connection.request("GET", "/stream")
            connection.getresponse().read(1)

    def recalculate(self) -> None:
        self._request("GET", "/block")

    def fail(self) -> None:
        self._request("GET", "/error")

    def chat(self) -> None:
        with socket.create_connection(
            ("127.0.0.1", self._server.port), REQUEST_SECONDS
        ) as connection:
            websocket = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)

            def exchange(event: wsproto.events.Event) -> None:
                connection.sendall(websocket.send(event))
                while not (answers := list(websocket.events())):
                    websocket.receive_data(connection.recv(65_536) or None)
                if isinstance(answers[0], wsproto.events.RejectConnection):
                    raise DemoError("The server has refused a websocket.")

            exchange(wsproto.events.Request(host="127.0.0.1", target="/ws"))
            for _ in range(self._random.randint(1, 5)):
                exchange(wsproto.events.TextMessage(data="Is the kettle still there?"))
            exchange(wsproto.events.CloseConnection(code=1000))


#: How often each is done, in relation to the others.
DEEDS: dict[Callable[[Client], None], int] = {
    Client.look_at_an_item: 30,
    Client.look_into_a_shop: 18,
    Client.browse: 8,
    Client.get_lost: 3,
    Client.ask_the_supplier: 8,
    Client.log_in: 6,
    Client.order: 5,
    Client.make_a_wish: 3,
    Client.upload: 6,
    Client.buy: 6,
    Client.see_what_sells: 4,
    Client.export: 3,
    Client.export_and_hang_up: 2,
    Client.recalculate: 3,
    Client.fail: 2,
    Client.chat: 2,
}


class Traffic(NamedTuple):
    requests: int
    seconds: float
    clients: int


def send_traffic(server: Server, sample: str, seconds: float, number: int) -> Traffic:
    """Have a `number` of clients use the shop for some `seconds`.

    :raises DemoError: the server stopped answering.
    """
    stop = threading.Event()
    sent: list[None] = []  # a list takes appends from several threads
    failures: list[Exception] = []

    def use(client: Client) -> None:
        try:
            client.run(stop, sent)
        except (OSError, http.client.HTTPException, DemoError) as failure:
            failures.append(failure)
            stop.set()

    chats = sample != "django"  # which has no websockets
    clients = [Client(server, seed, chats=chats) for seed in range(number)]
    # An interruption does not wait for their answers: they end with the server.
    threads = [threading.Thread(target=use, args=[client], daemon=True) for client in clients]
    began = time.monotonic()
    try:
        for thread in threads:
            thread.start()
        # Not `stop.wait`: an interruption may come while that has the lock of the event, and leave it locked.
        while not stop.is_set() and (left := began + seconds - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
    finally:
        stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise server.failure(f"The server stopped answering ({failures[0]!r}).")
    return Traffic(len(sent), time.monotonic() - began, number)


# ---- the report


class Style:
    """ANSI colours where they are wanted; otherwise nothing."""

    def __init__(self, on: bool) -> None:
        self._on = on

    @classmethod
    def of(cls, stream: TextIO) -> Style:
        # https://no-color.org: whatever its value, if it is not empty.
        return cls(
            stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )

    def bold(self, text: str) -> str:
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        return self._wrap("2", text)

    def alarm(self, text: str) -> str:
        return self._wrap("1;31", text)

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._on else text


#: What get_performance_stats() has of one endpoint: by metric, the figures; by "outcomes", the numbers.
Figures = dict[str, dict[str, Any]]


class Column(NamedTuple):
    """A column: its head, what it shows of an endpoint, and when that is alarming."""

    head: str
    show: Callable[[Figures], str]
    alarming: Callable[[Figures], bool] = lambda figures: False


def milliseconds(metric: str, figure: str) -> Callable[[Figures], str]:
    return lambda figures: f"{figures[metric][figure] * 1e3:,.2f}" if metric in figures else "-"


def mean_bytes(metric: str) -> Callable[[Figures], str]:
    return lambda figures: in_bytes(figures[metric]["avg"]) if metric in figures else "-"


def in_bytes(number: float) -> str:
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if abs(number) >= factor:
            return f"{number / factor:,.1f} {unit}"
    return f"{number:.0f} B"


def count(figures: Figures) -> int:
    """How many requests, or websocket connections."""
    return sum(figures["outcomes"].values())


def outcomes(figures: Figures) -> str:
    return ", ".join(f"{outcome} {times:,}" for outcome, times in figures["outcomes"].items())


def fails(figures: Figures) -> bool:
    return "error" in figures["outcomes"]


def freezes(figures: Figures) -> bool:
    """Whether the endpoint holds the loop as a habit: one long step among many may be the machine's doing."""
    return bool(figures["longest_step"]["p50"] >= FREEZE_SECONDS)


#: Columns that belong together, under the head of their group.
GROUPS = {
    "": [Column("requests", lambda figures: f"{count(figures):,}")],
    "processing time, ms": [
        Column(figure, milliseconds("processing_time", figure)) for figure in ("p50", "p95", "p99")
    ],
    "on the event loop, ms": [
        Column("mean", milliseconds("loop_time", "avg")),
        Column("longest step", milliseconds("longest_step", "max"), freezes),
    ],
    "body": [
        Column("received", mean_bytes("request_size")),
        Column("sent", mean_bytes("response_size")),
    ],
    "process": [Column("memory", mean_bytes("memory_delta"))],
    "how it ended": [Column("outcomes", outcomes, fails)],
}
GAP = "  "


def block(head: str, columns: list[Column], rows: list[Figures], style: Style) -> list[str]:
    """Lay out a group of columns: two lines of heads, then one for each row, all of the same width."""
    texts = [[column.show(figures) for figures in rows] for column in columns]
    widths = [
        max(len(column.head), *map(len, cells))
        for column, cells in zip(columns, texts, strict=True)
    ]
    widths[0] += max(0, len(head) - sum(widths) - len(GAP) * (len(columns) - 1))
    align = str.ljust if columns[-1].show is outcomes else str.rjust
    whole = sum(widths) + len(GAP) * (len(columns) - 1)
    if len(columns) > 1:
        head = f" {head} ".center(whole, "-") if whole > len(head) + 3 else head.center(whole)
    lines = [
        style.dim(align(head, whole)),
        style.bold(
            GAP.join(
                align(column.head, width) for column, width in zip(columns, widths, strict=True)
            )
        ),
    ]
    for number, figures in enumerate(rows):
        cells = []
        for column, text, width in zip(columns, texts, widths, strict=True):
            cell = align(text[number], width)
            cells.append(style.alarm(cell) if column.alarming(figures) else cell)
        lines.append(GAP.join(cells))
    return lines


def tables(endpoints: dict[str, Figures], style: Style, width: float) -> list[str]:
    """One table, or as many as it takes for each to fit in the `width`."""
    rows = list(endpoints.values())
    room = max(map(len, endpoints))
    names = [
        " " * room,
        style.bold("endpoint".ljust(room)),
        *(name.ljust(room) for name in endpoints),
    ]
    lines: list[str] = []
    table, taken = names, room
    for head, columns in GROUPS.items():
        group = block(head, columns, rows, style)
        needed = len(GAP) + len(block(head, columns, rows, Style(False))[0])
        if taken + needed > width and table is not names:
            lines += [*table, ""]
            table, taken = names, room
        table = [line + GAP + more for line, more in zip(table, group, strict=True)]
        taken += needed
    return [line.rstrip() for line in [*lines, *table]]


def verdict(endpoints: dict[str, Figures]) -> tuple[str, str]:
    """Who froze the loop, and how much."""
    guilty = {key: figures for key, figures in endpoints.items() if freezes(figures)}
    key, figures = max(
        (guilty or endpoints).items(),
        key=lambda row: row[1]["longest_step"]["sum" if guilty else "max"],
    )
    longest = figures["longest_step"]
    if not guilty:
        return (
            "Nobody froze the event loop",
            f": the longest step was {longest['max'] * 1e3:.1f} ms, of {key}.",
        )
    extent = (
        f" {count(figures):,} times, for {longest['p50'] * 1e3:.1f} ms as a rule (p50) and "
        f"{longest['max'] * 1e3:.1f} ms at the worst: {figures['loop_time']['sum']:.2f} s in which "
        "no other request could move."
    )
    return f"{key} froze the event loop", extent


def report(
    stats: dict[str, Any], traffic: Traffic, sample: str, style: Style, width: int | None
) -> str:
    """The whole report.

    :param width: how many columns the terminal has; None if it is none.
    """
    # Reading the figures is a request too, but not one of the traffic.
    endpoints: dict[str, Figures] = {
        key: figures for key, figures in stats["endpoints"].items() if key != "GET /stats"
    }
    endpoints = dict(
        sorted(endpoints.items(), key=lambda row: row[1]["loop_time"]["sum"], reverse=True)
    )

    def prose(text: str) -> str:
        return textwrap.fill(text, min(width or 100, 100))

    subject, extent = verdict(endpoints)
    lines = [
        style.bold(
            prose(
                f"{traffic.requests:,} requests in {traffic.seconds:.1f} s, from {traffic.clients} "
                f"clients to the {sample} sample"
            )
        ),
        style.dim('get_performance_stats(by="endpoint"), the heaviest on the event loop first'),
        "",
        *tables(endpoints, style, width or math.inf),
        "",
        style.dim(
            prose(
                "Sizes are means; memory is what that of the whole process grew by during a request."
            )
        ),
        "",
        prose(subject + extent).replace(subject, style.alarm(subject)),
    ]
    lag = stats["runtime"].get("event_loop_lag")
    if lag is not None:
        lines.append(
            prose(
                f"Event loop lag: {lag['p50'] * 1e3:.1f} ms p50, {lag['p99'] * 1e3:.1f} ms p99, "
                f"{lag['max'] * 1e3:.1f} ms at the worst."
            )
        )
    tasks = stats["runtime"].get("background_tasks")
    if tasks is not None:
        lines.append(
            f"Background tasks: {tasks['done']:,} done after their responses, {tasks['failed']:,} failed."
        )
    return "\n".join(lines)


# ---- the command line


def positive(kind: Callable[[str], Any], most: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to {most}")
        return value

    return parse


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sample", choices=SAMPLES, default="starlette", help="default: %(default)s"
    )
    parser.add_argument(
        "--seconds",
        type=positive(float, 600),
        default=8.0,
        help="how long to send traffic (default: %(default)g)",
    )
    parser.add_argument(
        "--clients",
        type=positive(int, 100),
        default=8,
        help="how many clients send it at the same time (default: %(default)d)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        with serving(options.sample) as server:
            print(
                f"The {options.sample} sample runs at http://127.0.0.1:{server.port} "
                f"(process {server.process.pid}); {options.clients} clients use it for {options.seconds:g} s.\n",
                flush=True,
            )
            traffic = send_traffic(server, options.sample, options.seconds, options.clients)
            stats = server.stats()
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(report(stats, traffic, options.sample, Style.of(sys.stdout), width))
    except DemoError as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the server has been ended.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
