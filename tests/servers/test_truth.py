"""What the figures say is what happened: figures with known answers, from real servers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import Any

import pytest

from .client import Connection
from .figures import Bound, Meter, below, until_undisturbed
from .harness import Server

pytestmark = pytest.mark.anyio

# A request's own share of the loop: parsing, routing, encoding. It is the framework's, not the handler's.
FRAMEWORK_SECONDS = 0.005
# Timers of uvloop tick in milliseconds, and a tick may come early.
TICK_SECONDS = 0.001


def crowding() -> float:
    """How much longer a framework's own share takes now: where more wants to run than there are CPUs, in proportion.

    Three times at the most: for the share that is half of the spin, so a spin charged to the wrong request is found
    in any crowd.
    """
    last_minutes = max(os.getloadavg()[:2])
    return min(max(last_minutes / (os.cpu_count() or 1), 1), 3)


def figures_of(figures: dict[str, Any], server: Server, key: str) -> dict[str, Any]:
    """The figures of one endpoint; the sample that names its endpoints itself leaves the slash out."""
    if server.application.name == "raw_named":
        key = key.replace("/", "")
    endpoint: dict[str, Any] = figures[key]
    return endpoint


def highest(endpoint: dict[str, Any], metric: str) -> float:
    """The greatest value, or 0 where there is none: an application that never asks for a body has no receive_time."""
    value: float = endpoint[metric]["max"] if metric in endpoint else 0.0
    return value


async def test_a_blocker_is_charged_and_nobody_else(server: Server) -> None:
    """While one request spins on the loop, ten others wait: only the first has used the loop."""

    async def spin_while_ten_wait() -> list[Bound]:
        waiters = [Connection(server.port) for _ in range(10)]
        async with Meter(server) as meter, Connection(server.port) as blocker:
            await asyncio.gather(*(waiter.__aenter__() for waiter in waiters))
            try:
                await meter.reset()
                for waiter in waiters:
                    await waiter.send_head("GET", "/wait")
                    await waiter.send_end()
                await meter.await_in_flight(10)
                spun = (await blocker.request("GET", "/block")).json()["seconds"]
                await asyncio.gather(*(waiter.receive() for waiter in waiters))
                figures = await meter.read()
            finally:
                for waiter in waiters:
                    waiter.close()
        block = figures_of(figures, server, "GET /block")
        wait = figures_of(figures, server, "GET /wait")
        assert block["loop_time"]["count"] == block["longest_step"]["count"] == 1
        assert wait["loop_time"]["count"] == wait["longest_step"]["count"] == 10
        assert block["longest_step"]["max"] >= spun
        assert block["loop_time"]["max"] >= block["longest_step"]["max"]
        return below(
            (1 + 0.1 * crowding()) * spun,
            block_loop_time=block["loop_time"]["max"],
            block_longest_step=block["longest_step"]["max"],
        ) + below(
            FRAMEWORK_SECONDS * crowding(),
            wait_loop_time=wait["loop_time"]["max"],
            wait_longest_step=wait["longest_step"]["max"],
        )

    await until_undisturbed(spin_while_ten_wait)


async def test_waiting_takes_time_but_not_the_loop(server: Server) -> None:
    """A handler that awaits 100 ms has a total_time of it, and next to no loop_time."""

    async def wait() -> list[Bound]:
        async with Meter(server) as meter, Connection(server.port) as connection:
            await meter.reset()
            waited = (await connection.request("GET", "/wait")).json()["seconds"]
            figures = figures_of(await meter.read(), server, "GET /wait")
        for metric in ("processing_time", "response_time", "total_time"):
            assert figures[metric]["count"] == 1
            assert figures[metric]["min"] >= waited
        # Frameworks await receive() all the while, for a disconnect: that is not an upload.
        return below(1.1 * waited, total_time=figures["total_time"]["max"]) + below(
            FRAMEWORK_SECONDS * crowding(),
            loop_time=figures["loop_time"]["max"],
            receive_time=highest(figures, "receive_time"),
            send_time=figures["send_time"]["max"],
        )

    await until_undisturbed(wait)


async def test_a_thread_is_not_the_loop(server: Server) -> None:
    """A sync handler's time in its worker thread counts as time, not as loop time."""

    async def hash_password() -> list[Bound]:
        async with Meter(server) as meter, Connection(server.port) as connection:
            await meter.reset()
            worked = (await connection.request("GET", "/sync")).json()["seconds"]
            figures = figures_of(await meter.read(), server, "GET /sync")
        assert figures["total_time"]["min"] >= worked
        return below(
            worked / 2,
            loop_time=figures["loop_time"]["max"],
            longest_step=figures["longest_step"]["max"],
        )

    await until_undisturbed(hash_password)


async def test_a_stream_is_response_time_not_processing_time(server: Server) -> None:
    """Five chunks 50 ms apart: processing_time ends before the first, response_time with the last."""
    apart = 4 * (0.05 - TICK_SECONDS)

    async def stream() -> list[Bound]:
        async with Meter(server) as meter, Connection(server.port) as connection:
            await meter.reset()
            response = await connection.request("GET", "/stream")
            figures = figures_of(await meter.read(), server, "GET /stream")
        assert len(response.body) == 300_000
        assert figures["response_time"]["min"] - figures["processing_time"]["max"] >= apart
        assert figures["total_time"]["min"] >= figures["response_time"]["min"]
        return below(
            0.05,
            processing_time=figures["processing_time"]["max"],
            send_time=figures["send_time"]["max"],
            loop_time=figures["loop_time"]["max"],
        )

    await until_undisturbed(stream)


async def test_a_slow_reader_is_send_time(server: Server) -> None:
    """A client that does not read for a while is seen in send_time, and in no other figure but the totals."""

    async def read_late() -> list[Bound]:
        async with (
            Meter(server) as meter,
            Connection(server.port, receive_buffer_bytes=4_096) as connection,
        ):
            await meter.reset()
            await connection.send_head("GET", "/stream")
            await connection.send_end()
            await meter.await_in_flight(1)
            began = time.perf_counter()
            await asyncio.sleep(0.3)
            paused = time.perf_counter() - began
            response = await connection.receive()
            figures = figures_of(await meter.read(), server, "GET /stream")
        assert len(response.body) == figures["response_size"]["sum"] == 300_000
        # The server can hand over some of the chunks, which takes 100 ms, before it has to wait for the reader.
        assert figures["send_time"]["min"] >= 0.1
        assert figures["response_time"]["min"] >= paused
        return below(
            0.05,
            processing_time=figures["processing_time"]["max"],
            receive_time=highest(figures, "receive_time"),
            loop_time=figures["loop_time"]["max"],
        )

    await until_undisturbed(read_late)


async def test_a_slow_upload_is_receive_time(server: Server) -> None:
    """A client that pauses in the middle of its body is seen in receive_time."""

    async def pause() -> list[Bound]:
        body = bytes(range(256)) * 100
        async with Meter(server) as meter, Connection(server.port) as connection:
            await meter.reset()
            await connection.send_head("POST", "/upload", length=2 * len(body))
            await connection.send_body_part(body)
            # The server has taken in the first half when it has nothing else left to do.
            await meter.await_in_flight(1)
            began = time.perf_counter()
            await asyncio.sleep(0.2)
            paused = time.perf_counter() - began
            await connection.send_body_part(body)
            await connection.send_end()
            response = await connection.receive()
            figures = figures_of(await meter.read(), server, "POST /upload")
        assert response.json()["sha256"] == hashlib.sha256(body + body).hexdigest()
        assert figures["request_size"]["sum"] == 2 * len(body)
        assert figures["receive_time"]["min"] >= paused - FRAMEWORK_SECONDS
        assert figures["total_time"]["min"] >= figures["receive_time"]["min"]
        return below(
            0.05,
            send_time=figures["send_time"]["max"],
            loop_time=figures["loop_time"]["max"],
            beside_receiving=figures["total_time"]["max"] - figures["receive_time"]["max"],
        )

    await until_undisturbed(pause)


async def test_sizes_are_the_bytes_on_the_wire(server: Server) -> None:
    """Bodies count with what was sent of them: with a length, in chunks, streamed, and none for HEAD."""
    async with Meter(server) as meter, Connection(server.port) as connection:
        await meter.reset()
        received: dict[str, int] = {}

        async def note(key: str, response: Any) -> None:
            received[key] = received.get(key, 0) + len(response.body)

        known = b"x" * 100_000
        await note("POST /upload", await connection.request("POST", "/upload", known))
        await connection.send_head("POST", "/upload", chunked=True)
        for size in (1, 20, 300, 4_000, 50_000):
            await connection.send_body_part(b"y" * size)
        await connection.send_end()
        await note("POST /upload", await connection.receive())
        await note("GET /stream", await connection.request("GET", "/stream"))
        await note("GET /block", await connection.request("GET", "/block"))
        head = await connection.request("HEAD", "/block")
        await note("HEAD /block", head)
        figures = await meter.read()

    assert received["HEAD /block"] == 0
    if head.status == 405:  # FastAPI and Litestar answer HEAD only where they are told to
        del received["HEAD /block"]
    for key, size in received.items():
        assert figures_of(figures, server, key)["response_size"]["sum"] == size, key
    uploads = figures_of(figures, server, "POST /upload")
    assert uploads["request_size"]["count"] == 2
    assert uploads["request_size"]["sum"] == 100_000 + 54_321
    assert highest(figures_of(figures, server, "GET /block"), "request_size") == 0


async def test_work_after_the_response_is_in_total_time_only(server: Server) -> None:
    """The client does not wait for it, so neither do processing_time and response_time."""
    # Quart's background tasks belong to the application, not to the request: no figure of it has them.
    beside = server.application.framework == "quart"

    async def order() -> list[Bound]:
        async with Meter(server) as meter, Connection(server.port) as connection:
            await meter.reset()
            response = await connection.request("POST", "/after")
            figures = figures_of(await meter.read(), server, "POST /after")
        assert response.json() == {"accepted": True}
        quick = {
            "processing_time": figures["processing_time"]["max"],
            "response_time": figures["response_time"]["max"],
        }
        if beside:
            quick["total_time"] = figures["total_time"]["max"]
        else:
            assert figures["total_time"]["min"] >= 0.05 - TICK_SECONDS
        return below(0.04, **quick)

    await until_undisturbed(order)


async def test_a_reader_who_hangs_up_is_not_an_error(server: Server) -> None:
    """Hanging up in mid-stream is `disconnected`; the disconnect that follows every complete response is not."""
    async with Meter(server) as meter:
        await meter.reset()
        async with Connection(server.port) as complete:
            await complete.request("GET", "/stream")
        async with Connection(server.port) as hasty:
            await hasty.send_head("GET", "/stream")
            await hasty.send_end()
            await hasty.receive_head()
            await hasty.receive_body_part()
        figures = figures_of(await meter.read(), server, "GET /stream")
    assert figures["outcomes"] == {"ok": 1, "disconnected": 1}
    assert figures["statuses"] == {"200": 2}
    assert figures["response_size"]["max"] == 300_000
    assert 0 < figures["response_size"]["min"] < 300_000


async def test_an_upload_that_breaks_off_is_not_an_error(server: Server) -> None:
    """Hanging up in the middle of the body is `disconnected`, whatever the application makes of it."""
    async with Meter(server) as meter:
        await meter.reset()
        async with Connection(server.port) as hasty:
            await hasty.send_head("POST", "/upload", length=1_000)
            await hasty.send_body_part(b"x" * 600)
            await meter.await_in_flight(1)
        figures = figures_of(await meter.read(), server, "POST /upload")
    if server.application.framework in {"starlette", "fastapi"}:
        server.provoked += 1  # they raise ClientDisconnect, and nobody handles it
    assert figures["outcomes"] == {"disconnected": 1}
    assert figures["request_size"]["sum"] == 600
