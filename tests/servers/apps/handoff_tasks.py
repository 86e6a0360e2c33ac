"""The tasks of `handoff`, for the app and for the workers of Celery and Taskiq; a row in SQLite tells of each run."""

from __future__ import annotations

import os

from celery import Celery
from taskiq_redis import ListQueueBroker
from witness import note

REDIS_URL = os.environ["REDIS_URL"]

celery_app = Celery("handoff", broker=REDIS_URL)
celery_app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
taskiq_broker = ListQueueBroker(REDIS_URL)


@celery_app.task
def by_celery(number: str) -> None:
    note("celery", number)


@taskiq_broker.task
async def by_taskiq(number: str) -> None:
    note("taskiq", number)
