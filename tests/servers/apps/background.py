"""An app whose tasks keep a record of themselves: each line of the journal is one write, in order."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from asgi_perfkit import PerfKit, TaskFailure, add_task

JOURNAL = Path(os.environ["JOURNAL"])
GATE = Path(os.environ["GATE"])
DRAIN_SECONDS = float(os.environ.get("DRAIN_SECONDS", "30"))


def note(*words: object) -> None:
    """Append a line: short writes at the end of a file are not torn, nor mixed with those of other processes."""
    line = " ".join(map(str, (*words, os.getpid()))) + "\n"
    descriptor = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def gate_is_open() -> bool:
    return GATE.exists()


async def pause(seconds: float) -> None:
    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(seconds)
    else:
        import trio

        await trio.sleep(seconds)


async def on_the_loop(number: str) -> None:
    """Runs until the test opens the gate."""
    note("begun", number)
    while not gate_is_open():
        await pause(0.005)
    note("done", number)


def in_a_thread(number: str) -> None:
    note("begun", number)
    while not gate_is_open():
        time.sleep(0.005)
    note("done", number)


async def briefly(number: str) -> None:
    await pause(0.05)
    note("done", number)


def briefly_in_a_thread(number: str) -> None:
    time.sleep(0.05)
    note("done", number)


TASKS = {
    function.__name__: function
    for function in (on_the_loop, in_a_thread, briefly, briefly_in_a_thread)
}


def tell(failure: TaskFailure) -> None:
    note("reported", *failure.args, failure.reason)


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        note("startup", "of")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        note("shutdown", "of")
        await send({"type": "lifespan.shutdown.complete"})
        return
    name, _, number = scope["path"].strip("/").partition("/")
    if name in TASKS:
        add_task(TASKS[name], number)
        note("accepted", number)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}
    )
    await send({"type": "http.response.body", "body": b"there"})


app = PerfKit(application, background={"drain_timeout": DRAIN_SECONDS, "on_error": tell})
