"""What hypercorn serves in the benchmark of background tasks: ``GET /100`` leaves a hundred tasks behind.

Functions make them, since a framework that is not served should not be imported; hypercorn evaluates
the name that it is given.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asgi_perfkit import PerfKit, add_task

BODY = b"Hello, world"


async def work() -> None:
    await asyncio.sleep(0.01)


def make_perfkit() -> Any:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        for _ in range(int(scope["path"][1:])):
            add_task(work)
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"12")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})

    return PerfKit(app)


def make_starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTasks
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def hello(request: Request) -> PlainTextResponse:
        tasks = BackgroundTasks()
        for _ in range(request.path_params["number"]):
            tasks.add_task(work)
        return PlainTextResponse(BODY, background=tasks)

    return Starlette(routes=[Route("/{number:int}", hello)])


def make_fastapi() -> Any:
    from fastapi import BackgroundTasks, FastAPI
    from fastapi.responses import PlainTextResponse

    app = FastAPI()

    async def hello(number: int, tasks: BackgroundTasks) -> PlainTextResponse:
        for _ in range(number):
            tasks.add_task(work)
        return PlainTextResponse(BODY)

    hello.__annotations__["tasks"] = BackgroundTasks  # which is no global, where FastAPI looks
    app.get("/{number}", response_class=PlainTextResponse)(hello)
    return app


def make_quart() -> Any:
    from quart import Quart

    app = Quart(__name__)

    @app.get("/<int:number>")
    async def hello(number: int) -> bytes:
        for _ in range(number):
            app.add_background_task(work)
        return BODY

    return app
