"""The samples' orders, which are mailed after their answers: to an SMTP server that is down, up, or slow."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, cast

import psutil
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from . import harness
from .client import PATIENCE_SECONDS, Connection
from .harness import Application, Deployment, serve

pytestmark = pytest.mark.anyio

# Each sample once, and each of hypercorn's workers.
SAMPLES = [
    Deployment(Application("starlette"), "asyncio"),
    Deployment(Application("fastapi"), "uvloop"),
    Deployment(Application("litestar"), "trio"),
    Deployment(Application("raw"), "trio"),
    Deployment(Application("django"), "asyncio"),
    Deployment(Application("quart"), "uvloop"),
]
# Each way to send: smtplib in a thread, Django's own, aiosmtplib on the loop.
SENDERS = [
    Deployment(Application("raw"), "trio"),
    Deployment(Application("django"), "uvloop"),
    Deployment(Application("quart"), "asyncio"),
]

#: What is in the log, with a traceback, of a mail that could not be sent.
REFUSED = ("ConnectionRefusedError: ", "aiosmtplib.errors.SMTPConnectError: ")


class MailServer:
    """An SMTP server on the test's own loop, which is down until it is opened.

    Its port is taken all the time: who connects before is refused, and nobody else can get it.

    :ivar gate: a mail is held until it is open.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server: asyncio.Server | None = None
        self._mails: asyncio.Queue[tuple[Envelope, EmailMessage]] = asyncio.Queue()
        self._partings: asyncio.Queue[bool] = asyncio.Queue()
        self.gate = asyncio.Event()

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        partings = self._partings

        class Protocol(SMTP):
            has_quit = False

            def connection_lost(self, error: Exception | None) -> None:
                super().connection_lost(error)
                partings.put_nowait(self.has_quit)

        self._server = await loop.create_server(
            lambda: Protocol(self, hostname="localhost", loop=loop), sock=self._socket
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self._socket.close()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # aiosmtpd's
        mail = message_from_bytes(cast(bytes, envelope.content), policy=policy.default)
        self._mails.put_nowait((envelope, cast(EmailMessage, mail)))
        await self.gate.wait()
        return "250 OK"

    async def handle_QUIT(self, server: Any, session: Session, envelope: Envelope) -> str:  # noqa: N802
        server.has_quit = True
        return "221 Bye"

    async def next_mail(self) -> tuple[Envelope, EmailMessage]:
        """The next one that comes in; whether it is accepted is the gate's matter."""
        return await asyncio.wait_for(self._mails.get(), PATIENCE_SECONDS)

    async def next_parting(self) -> bool:
        """Whether the next client that is gone has taken its leave: before that its mail was accepted."""
        return await asyncio.wait_for(self._partings.get(), PATIENCE_SECONDS)

    def holds_a_mail(self) -> bool:
        """Whether no client is gone that the test does not know of."""
        return self._partings.empty()


@pytest.fixture
async def mail_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MailServer]:
    server = MailServer()
    monkeypatch.setenv("SHOP_MAIL_SERVER", server.address)
    yield server
    await server.close()


async def order(connection: Connection, item_id: int) -> None:
    response = await connection.request("POST", f"/orders/{item_id}")
    assert (response.status, response.json()) == (202, {"accepted": True})


async def sold(connection: Connection, item_id: int) -> int:
    number: int = (await connection.request("GET", f"/sales/{item_id}")).json()["sold"]
    return number


async def tasks_when(connection: Connection, **wanted: int) -> dict[str, int]:
    """What has become of the server's tasks, as soon as there are so many as are `wanted`; without the zeros."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        stats = (await connection.request("GET", "/stats")).json()
        tasks: dict[str, int] = stats["runtime"]["background_tasks"]
        if all(tasks[name] == number for name, number in wanted.items()):
            return {name: number for name, number in tasks.items() if number}
        assert time.monotonic() < deadline, tasks


@pytest.mark.parametrize("deployment", SAMPLES, ids=str)
async def test_an_order_is_written_and_mailed_after_its_answer(
    deployment: Deployment, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the mail server is down, or slow, the client does not feel it, and the sale is in the book."""
    monkeypatch.setattr(harness, "PROVOKED", (*harness.PROVOKED, *REFUSED))
    with serve(deployment) as server:
        async with Connection(server.port) as connection:
            before = await sold(connection, 1)
            await order(connection, 1)  # and nobody takes its mail
            tasks = await tasks_when(connection, pending=0, running=0)
            assert tasks == {"done": 1, "failed": 1}
            assert await sold(connection, 1) == before + 1

            await mail_server.open()
            await order(connection, 1)
            envelope, mail = await mail_server.next_mail()
            # All on the connection that the answer came on, while the mail is held.
            assert await sold(connection, 1) == before + 2
            tasks = await tasks_when(connection)
            assert tasks == {"running": 1, "done": 2, "failed": 1}
            assert mail_server.holds_a_mail()
            mail_server.gate.set()
            assert await mail_server.next_parting()
            tasks = await tasks_when(connection, pending=0, running=0)
            assert tasks == {"done": 3, "failed": 1}

            assert (await connection.request("POST", "/orders/9")).status == 404
            assert await tasks_when(connection) == tasks
    assert envelope.mail_from == mail["From"] == "shop@example.org"
    assert envelope.rcpt_tos == [mail["To"]] == ["orders@example.org"]
    assert mail["Subject"] == "Order: kettle"
    assert mail.get_content().splitlines() == ["One kettle, for 24.50."]


@pytest.mark.parametrize("deployment", SENDERS, ids=str)
async def test_a_shutdown_waits_for_the_mail(
    deployment: Deployment, mail_server: MailServer
) -> None:
    """That is on its way: everybody else has been shown out, and the server ends when the mail was accepted."""
    await mail_server.open()
    with serve(deployment) as server:
        async with Connection(server.port) as connection:
            await order(connection, 2)
        _, mail = await mail_server.next_mail()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        os.kill(server.pid, signal.SIGTERM)
        # The server hangs up on who has nothing to say when it begins to shut down.
        assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) == b""
        writer.close()
        await writer.wait_closed()
        # For the time in which nothing may happen there is nothing to wait for.
        await asyncio.sleep(0.5)
        assert mail_server.holds_a_mail()
        assert psutil.Process(server.pid).status() != psutil.STATUS_ZOMBIE
        mail_server.gate.set()
        assert await mail_server.next_parting()
    assert mail["Subject"] == "Order: teapot"
