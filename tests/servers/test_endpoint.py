"""`endpoint` behind real servers: what is refused leaves its connection usable, and who hangs up is not answered."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .client import Connection, Response
from .harness import Application, Deployment, Server, serve

pytestmark = pytest.mark.anyio

APPLICATION = Application("endpoint")
PATIENCE_SECONDS = 10
JSON = (("content-type", "application/json"),)
MIB = 1 << 20


@pytest.fixture(
    scope="module",
    params=[Deployment(APPLICATION, worker) for worker in (*APPLICATION.workers, "uvicorn")],
    ids=str,
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param) as server:
        yield server


async def ask(server: Server, target: str) -> Response:
    async with Connection(server.port) as connection:
        response: Response = await connection.request("GET", target)
        return response


async def until(server: Server, target: str, condition: Callable[[Any], object]) -> Any:
    """The answer, once it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = (await ask(server, target)).json()
        if condition(found):
            return found
        assert time.monotonic() < deadline, found


async def test_a_body_over_the_limit_is_refused_at_once_and_the_connection_stays(
    server: Server,
) -> None:
    """The answer is there before any of the body; once that has come all the same, the next request is served."""
    async with Connection(server.port) as connection:
        await connection.send_head("POST", "/notes/a", length=3 * MIB, headers=JSON)
        status, headers = await connection.receive_head()
        part = await connection.receive_body_part()
        assert status == 413
        assert part is not None
        assert len(part) == int(headers["content-length"])
        assert b"65536 bytes" in part
        for _ in range(48):
            await connection.send_body_part(bytes(65_536))
        await connection.send_end()
        assert await connection.receive_body_part() is None
        assert (await connection.request("GET", "/items/2")).json()["name"] == "teapot"


async def test_a_body_without_a_length_is_refused_when_it_passes_the_limit(server: Server) -> None:
    async with Connection(server.port) as connection:
        await connection.send_head("POST", "/notes/a", chunked=True, headers=JSON)
        await connection.send_body_part(bytes(65_537))
        status, _ = await connection.receive_head()
        assert status == 413
        assert await connection.receive_body_part()
        await connection.send_body_part(bytes(MIB))
        await connection.send_end()
        assert await connection.receive_body_part() is None
        assert (await connection.request("GET", "/items/3")).status == 200


async def test_an_upload_tells_how_far_it_is(server: Server) -> None:
    data = bytes(range(256)) * 4096
    async with Connection(server.port) as connection:
        await connection.send_head("PUT", "/uploads/film", length=2 * len(data))
        await connection.send_body_part(data)
        found = await until(
            server, "/uploads/film", lambda upload: upload.get("received") == len(data)
        )
        assert (found["state"], found["length"]) == ("uploading", 2 * len(data))
        await connection.send_body_part(data)
        await connection.send_end()
        response = await connection.receive()
    assert response.status == 201
    assert response.json()["digest"] == hashlib.sha256(data * 2).hexdigest()


async def test_who_hangs_up_in_the_upload_is_disconnected(server: Server) -> None:
    """The function is ended at its `async for`, its `finally` runs, and nothing is logged."""
    before = (await ask(server, "/outcomes")).json().get("disconnected", 0)
    async with Connection(server.port) as connection:
        await connection.send_head("PUT", "/uploads/half", length=MIB)
        await connection.send_body_part(b"half")
        await until(server, "/uploads/half", lambda upload: upload.get("received") == 4)
    found = await until(server, "/uploads/half", lambda upload: upload["state"] != "uploading")
    assert found["state"] == "broken off"
    await until(server, "/outcomes", lambda outcomes: outcomes.get("disconnected", 0) == before + 1)


async def test_files_of_a_form(server: Server) -> None:
    """One of five megabytes, which is on the disk meanwhile, and a small one."""
    large = bytes(range(256)) * (5 * 4096)
    parts = b"".join(
        b'--XX\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n' % part
        for part in ((b"large", large), (b"small", b"tea"))
    )
    body = (
        parts + b'--XX\r\nContent-Disposition: form-data; name="comment"\r\n\r\nfine\r\n--XX--\r\n'
    )
    async with Connection(server.port) as connection:
        await connection.send_head(
            "POST",
            "/forms",
            length=len(body),
            headers=(("content-type", "multipart/form-data; boundary=XX"),),
        )
        await connection.send_body_part(body)
        await connection.send_end()
        found = (await connection.receive()).json()
    assert found == {
        "comment": "fine",
        "files": [
            {"name": name, "size": len(data), "digest": hashlib.sha256(data).hexdigest()}
            for name, data in (("large", large), ("small", b"tea"))
        ],
    }
