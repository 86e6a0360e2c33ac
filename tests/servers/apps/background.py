"""An app whose tasks keep a record of themselves, as the app does of those that it has added."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from witness import note

from asgi_perfkit import PerfKit, TaskFailure, add_task

GATES = Path(os.environ["GATES"])
DRAIN_SECONDS = float(os.environ.get("DRAIN_SECONDS", "30"))


def gate_is_open(number: str) -> bool:
    """Whether this task may go on, or all may."""
    return (GATES / number).exists() or (GATES / "all").exists()


async def pause(seconds: float) -> None:
    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(seconds)
    else:
        import trio

        await trio.sleep(seconds)


async def on_the_loop(number: str) -> None:
    """Runs until the test opens its gate."""
    note("begun", number)
    while not gate_is_open(number):
        await pause(0.005)
    note("done", number)


def in_a_thread(number: str) -> None:
    note("begun", number)
    while not gate_is_open(number):
        time.sleep(0.005)
    note("done", number)


async def briefly(number: str) -> None:
    await pause(0.05)
    note("done", number)


def briefly_in_a_thread(number: str) -> None:
    time.sleep(0.05)
    note("done", number)


async def fails(number: str) -> None:
    raise RuntimeError("The mail server does not answer.")


def fails_in_a_thread(number: str) -> None:
    raise RuntimeError("The mail server does not answer.")


TASKS = {
    function.__name__: function
    for function in (
        on_the_loop,
        in_a_thread,
        briefly,
        briefly_in_a_thread,
        fails,
        fails_in_a_thread,
    )
}


def tell(failure: TaskFailure) -> None:
    note(failure.reason, *failure.args)


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        note("startup")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        note("shutdown")
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        await converse(receive, send)
        return
    queue_task(scope["path"])
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}
    )
    await send({"type": "http.response.body", "body": b"there"})


def queue_task(target: str) -> None:
    name, _, number = target.strip("/").partition("/")
    if name in TASKS:
        add_task(TASKS[name], number)
        note("accepted", number)


async def converse(receive: Any, send: Any) -> None:
    """Each message of the client is a task."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        queue_task(message["text"])
        await send({"type": "websocket.send", "text": "there"})
    note("left")


kit = PerfKit(application, background={"drain_timeout": DRAIN_SECONDS, "on_error": tell})


async def app(scope: Any, receive: Any, send: Any) -> None:
    """What the server is given: it sees what the server says before the kit does."""
    if scope["type"] == "lifespan":
        await kit(scope, partial(receive_and_note, receive), send)
        return
    if scope.get("method") == "POST":
        while not is_full(receive.__self__):
            await pause(0.005)
    await kit(scope, receive, send)


async def receive_and_note(receive: Any) -> Any:
    message = await receive()
    if message["type"] == "lifespan.shutdown":
        note("asked")
    return message


def is_full(queue: Any) -> bool:
    """Whether nothing more goes into hypercorn's queue for the app: an asyncio.Queue, or a channel of trio."""
    if isinstance(queue, asyncio.Queue):
        return queue.full()
    figures = queue.statistics()
    return bool(figures.current_buffer_used == figures.max_buffer_size)
