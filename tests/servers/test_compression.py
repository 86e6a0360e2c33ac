"""Compressed responses of every sample behind hypercorn, read back by curl, httpx and Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import httpx
import pytest

from tests.encoding.decoding import CODINGS, Reader

from .harness import Application, Deployment, Server, serve

FRAMEWORKS = ("raw", "starlette", "fastapi", "litestar", "django", "quart")
# Each sample on asyncio; what the others share with it, one or two of them show.
DEPLOYMENTS = [
    *(Deployment(Application(framework, "compressed"), "asyncio") for framework in FRAMEWORKS),
    Deployment(Application("raw", "compressed"), "uvloop"),
    Deployment(Application("starlette", "compressed"), "trio"),
]
PATHS = ("/items/", "/sales/")
PATIENCE_SECONDS = 15

CURL = shutil.which("curl")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def name_of(deployment: Deployment) -> str:
    return f"{deployment.application.framework}-{deployment.worker}"


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    """Servers and browsers take their time to start: the next ones do while the tests of one run."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture(scope="module")
def starting(threads: ThreadPoolExecutor) -> Iterator[dict[Deployment, Future[Server]]]:
    contexts = {deployment: serve(deployment) for deployment in DEPLOYMENTS}
    starting = {
        deployment: threads.submit(context.__enter__) for deployment, context in contexts.items()
    }
    with ExitStack() as stack:
        for deployment, context in contexts.items():
            stack.callback(_leave, starting[deployment], context)
        yield starting


def _leave(started: Future[Server], context: AbstractContextManager[Server]) -> None:
    if started.exception() is None:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module", params=DEPLOYMENTS, ids=name_of)
def server(request: pytest.FixtureRequest, starting: dict[Deployment, Future[Server]]) -> Server:
    return starting[request.param].result()


@pytest.fixture(scope="module")
def plain(server: Server) -> dict[str, tuple[int, bytes]]:
    """What the sample says when nothing is compressed."""
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        bodies = {}
        for path in PATHS:
            response = client.get(path, headers={"accept-encoding": "identity"})
            assert "content-encoding" not in response.headers
            bodies[path] = response.status_code, response.content
    assert [status for status, _ in bodies.values()] == [200, 200]
    assert len(bodies["/sales/"][1]) > 500_000
    return bodies


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("coding", CODINGS)
def test_httpx_reads_it(
    server: Server, plain: dict[str, tuple[int, bytes]], coding: str, http2: bool
) -> None:
    """Whole bodies and streams."""
    address = f"http://127.0.0.1:{server.port}/{coding}"
    with httpx.Client(http1=not http2, http2=http2, timeout=PATIENCE_SECONDS) as client:
        for path, (status, body) in plain.items():
            # What is compressed in any case, since nothing else will do.
            only = {"accept-encoding": f"{coding}, identity;q=0"}
            with client.stream("GET", address + path, headers=only) as response:
                received = b"".join(response.iter_raw())
            assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert response.status_code == status
            assert response.headers["content-encoding"] == coding
            assert "accept-encoding" in response.headers["vary"].lower()
            reader = Reader(coding)
            assert reader.read(received) == body
            assert reader.ended
            if "content-length" in response.headers:
                assert int(response.headers["content-length"]) == len(received)
            if len(body) > 500:
                assert len(received) < len(body) / 2


def test_who_cannot_read_it_gets_it_as_it_is(
    server: Server, plain: dict[str, tuple[int, bytes]]
) -> None:
    """Below the name of zstd, whatever httpx offers by itself; a HEAD is the app's."""
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        assert client.get("/gzip/sales/").content == plain["/sales/"][1]
        response = client.get("/zstd/items/", headers={"accept-encoding": "gzip, br"})
        assert response.content == plain["/items/"][1]
        assert response.headers["vary"].lower().count("accept-encoding") == 1
        response = client.head("/zstd/items/", headers={"accept-encoding": "zstd"})
        assert "content-encoding" not in response.headers


@pytest.mark.parametrize("coding", CODINGS)
def test_an_event_is_there_at_once(server: Server, coding: str) -> None:
    """While its stream stays open: nothing waits for the next one."""
    address = f"http://127.0.0.1:{server.port}/{coding}/events"
    reader = Reader(coding)
    read = b""
    with (
        httpx.Client(timeout=PATIENCE_SECONDS) as client,
        client.stream("GET", address, headers={"accept-encoding": coding}) as response,
    ):
        assert response.headers["content-encoding"] == coding
        for part in response.iter_raw():
            read += reader.read(part)
            if read:
                break
    assert read == b"id: 7\ndata: kettle\n\n"
    assert not reader.ended


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_curl_reads_it(server: Server, plain: dict[str, tuple[int, bytes]], http2: bool) -> None:
    """With the codings that it was built with."""
    features = subprocess.run(
        [CURL, "--version"], capture_output=True, text=True, check=True
    ).stdout
    if http2 and "nghttp2" not in features:
        pytest.skip("curl was built without HTTP/2")
    known = {"zstd": "zstd/", "br": "brotli/", "gzip": "zlib/"}
    for coding in CODINGS:
        if known[coding] not in features:
            continue
        for path, (status, body) in plain.items():
            if http2 and path == "/sales/":
                continue  # that takes long, and httpx reads it
            command = [
                CURL,
                "--silent",
                "--show-error",
                "--compressed",
                *(["--http2-prior-knowledge"] if http2 else ["--http1.1"]),
                "--max-time",
                str(PATIENCE_SECONDS),
                "--write-out",
                "%{stderr}%{http_code} %{header_json}",
                f"http://127.0.0.1:{server.port}/{coding}{path}",
            ]
            ran = subprocess.run(command, capture_output=True, check=True)
            code, _, headers = ran.stderr.decode().partition(" ")
            assert int(code) == status
            assert json.loads(headers)["content-encoding"] == [coding]
            assert ran.stdout == body


# It sees no difference between the loops.
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(
    "server",
    [deployment for deployment in DEPLOYMENTS if deployment.worker == "asyncio"],
    indirect=True,
    ids=name_of,
)
def test_chromium_reads_it(server: Server, plain: dict[str, tuple[int, bytes]]) -> None:
    """In a page: whole bodies and streams of each coding, and an event of each stream that stays open."""
    # By a name of this machine: to those it offers br and zstd without TLS, too.
    dom = browse(f"http://localhost:{server.port}/page")
    shown = re.search('<pre id="read">(.*?)</pre>', dom, re.DOTALL)
    assert shown is not None, dom
    read: dict[str, Any] = json.loads(html.unescape(shown[1]))
    for coding in CODINGS:
        assert read.pop(f"/{coding}/events") == ["7", "kettle"]
        for path, (status, body) in plain.items():
            assert read.pop(f"/{coding}{path}") == [
                status,
                coding,
                zlib.adler32(body),
            ]
    assert read == {}


def browse(address: str) -> str:
    """The document that Chromium makes of a page, once it is loaded."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        ran = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={profile}",
                "--dump-dom",
                address,
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
    return ran.stdout
