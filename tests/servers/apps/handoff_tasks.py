"""The tasks of `handoff`, for the app and for the workers of Celery and Taskiq; a row in SQLite tells of each run."""

from __future__ import annotations

import contextlib
import os
import sqlite3

from celery import Celery
from taskiq_redis import ListQueueBroker

WITNESS = os.environ["WITNESS"]
REDIS_URL = os.environ["REDIS_URL"]

celery_app = Celery("handoff", broker=REDIS_URL)
celery_app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
taskiq_broker = ListQueueBroker(REDIS_URL)


def note(word: str, number: str) -> None:
    with contextlib.closing(sqlite3.connect(WITNESS, timeout=10, isolation_level=None)) as database:
        database.execute("INSERT INTO seen VALUES (?, ?, ?)", (word, number, os.getpid()))


@celery_app.task
def by_celery(number: str) -> None:
    note("celery", number)


@taskiq_broker.task
async def by_taskiq(number: str) -> None:
    note("taskiq", number)
