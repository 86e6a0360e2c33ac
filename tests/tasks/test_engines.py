"""Celery and Taskiq themselves, without a broker that answers: what their engines know, and what these raise."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from celery import Celery, shared_task
from taskiq import InMemoryBroker, async_shared_broker

from asgi_perfkit import CeleryEngine, ConfigurationError, TaskiqEngine, task_options


def work(*args: object) -> None:
    pass


async def async_work(*args: object) -> None:
    pass


def free_port() -> int:
    """One that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def celery_app() -> Celery:
    return Celery("engines", broker=f"redis://127.0.0.1:{free_port()}/0", set_as_current=False)


@pytest.mark.parametrize("form", ["task", "bound", "signature", "remote"])
def test_celery_knows_its_own(celery_app: Celery, form: str) -> None:
    """Tasks, and signatures, also of tasks that are registered nowhere here."""
    task = celery_app.task(work, name="work", bind=form == "bound")
    functions: dict[str, Any] = {
        "task": task,
        "bound": task,
        "signature": task.si(1),
        "remote": celery_app.signature("another.task"),
    }
    engine = CeleryEngine(celery_app)
    options = task_options(functions[form], handoff=engine)
    assert options.func is functions[form]
    assert engine.name(options.func) == ("another.task" if form == "remote" else "work")


def test_celery_knows_a_shared_task() -> None:
    """That belongs to the app that is the current one."""
    celery_app = Celery("engines")
    try:
        task_options(shared_task(work), handoff=CeleryEngine(celery_app))
    finally:
        celery_app.close()


@pytest.mark.parametrize("form", ["function", "another app's", "taskiq's"])
def test_celery_does_not_know_what_is_of_others(celery_app: Celery, form: str) -> None:
    """The workers would drop it."""
    functions: dict[str, Any] = {
        "function": work,
        "another app's": Celery("another", set_as_current=False).task(work, name="work"),
        "taskiq's": InMemoryBroker().register_task(fresh(), "work"),
    }
    with pytest.raises(ConfigurationError, match="CeleryEngine does not know it"):
        task_options(functions[form], handoff=CeleryEngine(celery_app))


def test_celery_does_not_wait_for_a_broker(celery_app: Celery) -> None:
    """That is done by who calls it, with an end to it: Celery and kombu would take their own time, each time."""
    engine = CeleryEngine(celery_app)
    task = celery_app.task(work, name="work")
    rounds = []
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(task.OperationalError):
            engine.submit(task, (1,), {})
        rounds.append(time.monotonic() - started)
    assert min(rounds) < 0.15  # Celery's waits are 0.6 s, and kombu's 6


def test_celery_says_what_can_never_be_sent(celery_app: Celery) -> None:
    """So that it is not tried again."""
    engine = CeleryEngine(celery_app)

    def exact(number: int) -> None: ...

    task = celery_app.task(exact, name="exact")
    with pytest.raises(ValueError, match="not JSON serializable"):
        engine.submit(task, (object(),), {})
    with pytest.raises(TypeError):
        engine.submit(task, (1, 2), {})


def fresh() -> Any:
    """A function of its own: Taskiq changes the names of those that it registers."""

    async def function(*args: object) -> None: ...

    return function


@pytest.mark.parametrize("form", ["task", "shared"])
def test_taskiq_knows_its_own(form: str) -> None:
    """And what is shared by all brokers, which it is sent through then."""
    broker = InMemoryBroker()
    kicked: list[str] = []

    async def kick(message: Any) -> None:
        kicked.append(message.task_name)

    broker.kick = kick  # type: ignore[method-assign]
    task = (broker if form == "task" else async_shared_broker).register_task(fresh(), f"a {form}")
    engine = TaskiqEngine(broker)
    assert task_options(task, handoff=engine).func is task
    assert engine.name(task) == f"a {form}"
    asyncio.run(engine.submit(task, (1,), {}))
    assert kicked == [f"a {form}"]


@pytest.mark.parametrize("form", ["function", "another broker's", "celery's"])
def test_taskiq_does_not_know_what_is_of_others(celery_app: Celery, form: str) -> None:
    """The workers would drop it."""
    broker = InMemoryBroker()
    broker.register_task(fresh(), "work")
    functions: dict[str, Any] = {
        "function": async_work,
        "another broker's": InMemoryBroker().register_task(fresh(), "work"),
        "celery's": celery_app.task(work, name="work"),
    }
    with pytest.raises(ConfigurationError, match="TaskiqEngine does not know it"):
        task_options(functions[form], handoff=TaskiqEngine(broker))
