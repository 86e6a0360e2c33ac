from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import HERE, Application, Deployment, Server, serve

ASYNCIO_ONLY = ("asyncio", "uvloop")

APPLICATIONS = [
    Application("raw"),
    Application("starlette"),
    Application("fastapi"),
    Application("litestar"),
    # Django and Quart are written for asyncio.
    Application("django", workers=ASYNCIO_ONLY),
    Application("quart", workers=ASYNCIO_ONLY),
    Application("starlette", "starlette_base_http"),
    Application("starlette", "starlette_add_middleware", workers=("asyncio",)),
    Application("fastapi", "fastapi_add_middleware", workers=("asyncio",)),
    Application("litestar", "litestar_define_middleware", workers=("asyncio",)),
    Application("raw", "raw_named", workers=("asyncio",)),
]
DEPLOYMENTS = [
    Deployment(application, worker)
    for application in APPLICATIONS
    for worker in application.workers
] + [Deployment(Application(framework), "uvicorn") for framework in ("raw", "starlette", "django")]


@pytest.fixture(scope="session", params=DEPLOYMENTS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Every application behind every server it runs on; all tests of one share its process."""
    with serve(request.param) as server:
        yield server


@pytest.fixture
def anyio_backend() -> str:
    """The clients' loop; the servers' are in their own processes."""
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of servers, which take longest, and keep those that share servers in one process."""
    items.sort(key=lambda item: not item.path.is_relative_to(HERE))
    for item in items:
        if item.path.is_relative_to(HERE) and isinstance(item, pytest.Function):
            shares = "server" in item.fixturenames and not hasattr(item.module, "server")
            item.add_marker(pytest.mark.xdist_group("servers" if shares else item.path.name))
