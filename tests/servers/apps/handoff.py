"""An app that hands its tasks to Celery and Taskiq."""

from __future__ import annotations

import json
import os
from typing import Any

from handoff_tasks import by_celery, by_taskiq, celery_app, taskiq_broker
from witness import note

from asgi_perfkit import (
    CeleryEngine,
    Handoff,
    PerfKit,
    TaskFailure,
    TaskiqEngine,
    add_task,
    get_runtime_stats,
    task_options,
)

OPTIONS = json.loads(os.environ["HANDOFF_OPTIONS"])
DRAIN_SECONDS = float(os.environ["DRAIN_SECONDS"])


class NotingCeleryEngine(CeleryEngine):
    def submit(self, func: Any, args: Any, kwargs: Any) -> None:
        note("tried", args[0])
        super().submit(func, args, kwargs)


class NotingTaskiqEngine(TaskiqEngine):
    async def submit(self, func: Any, args: Any, kwargs: Any) -> None:
        note("tried", args[0])
        await super().submit(func, args, kwargs)


celery = Handoff(NotingCeleryEngine(celery_app), **OPTIONS)
taskiq = Handoff(NotingTaskiqEngine(taskiq_broker), **OPTIONS)


def here(number: str) -> None:
    note("here", number)


def tell(failure: TaskFailure) -> None:
    note(failure.reason, failure.args[0])


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        note("shutdown")
        await taskiq_broker.shutdown()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b"there"
    word, _, number = scope["path"].strip("/").partition("/")
    if word == "celery":
        add_task(by_celery, number)  # the app's engine knows it
    elif word == "taskiq":
        add_task(task_options(by_taskiq, handoff=taskiq), number)
    elif word == "here":
        add_task(here, number)
    elif word == "figures":
        body = json.dumps(get_runtime_stats()["background_tasks"]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


app = PerfKit(
    application, background={"drain_timeout": DRAIN_SECONDS, "on_error": tell, "handoff": celery}
)
