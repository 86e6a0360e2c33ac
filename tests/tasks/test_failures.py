"""Tasks that raise."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import BackgroundTasks, BatchedBackgroundTasks, TaskFailure
from tests.conftest import Run
from tests.support import Trouble, checkpoint
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Request
from tests.threads.gates import PATIENCE_SECONDS

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup


class BaseTrouble(BaseException):
    """One that `except Exception` does not see."""


class Unprintable(Exception):
    """Cannot even be shown."""

    def __str__(self) -> str:
        raise Trouble


ERRORS: dict[str, Callable[[], BaseException]] = {
    "Exception": lambda: Trouble("of its own"),
    "BaseException": lambda: BaseTrouble("of its own"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "CancelledError": lambda: asyncio.CancelledError("of its own"),
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "TimeoutError": asyncio.TimeoutError,
    "ExceptionGroup": lambda: ExceptionGroup("several", [Trouble(), ValueError()]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup(
        "several", [KeyboardInterrupt(), BaseExceptionGroup("", [asyncio.CancelledError()])]
    ),
    "unprintable": Unprintable,
    "MemoryError": MemoryError,
}

error_kinds = pytest.mark.parametrize("make_error", ERRORS.values(), ids=ERRORS)


def fail(error: BaseException) -> None:
    raise error


async def fail_async(error: BaseException) -> None:
    raise error


async def fail_later(error: BaseException) -> None:
    await checkpoint()
    raise error


def fail_before_it_is_a_coroutine(error: BaseException) -> Any:
    raise error


failing = pytest.mark.parametrize("function", [fail, fail_async, fail_later])


def same_error(got: BaseException | None, raised: BaseException) -> bool:
    # A StopIteration cannot leave a coroutine as what it is (PEP 479).
    return got is raised or (isinstance(got, RuntimeError) and got.__cause__ is raised)


@failing
@error_kinds
def test_whatever_a_task_raises_the_next_one_runs(
    run: Run,
    supervise: Supervise,
    caplog: pytest.LogCaptureFixture,
    function: Callable[..., Any],
    make_error: Callable[[], BaseException],
) -> None:
    """It is counted, logged with name and traceback, and told of; the rest of the request and all others run."""
    supervisor = supervise(max_concurrency=1)
    error = make_error()
    ran: list[int] = []

    async def note(number: int) -> None:
        await checkpoint()
        ran.append(number)

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(note, 1).add(function, error).add(note, 2).end()
        Request(supervisor).add(note, 3).end()
        await supervisor.drain(PATIENCE_SECONDS)

    with caplog.at_level(logging.INFO, "asgi_perfkit"):
        run(main)
    assert ran == [1, 2, 3]
    assert supervisor.figures() == {"done": 3, "failed": 1}
    (failure,) = supervisor.told
    assert same_error(failure.error, error)
    assert failure == TaskFailure(
        f"{__name__}.{function.__name__}", "failed", failure.error, function, (error,), {}
    )
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "asgi_perfkit")
    assert record.exc_info is not None
    assert same_error(record.exc_info[1], error)
    assert record.msg % record.args == (
        f"The background task {__name__}.{function.__name__}({type(error).__qualname__}) failed."
    )


@error_kinds
@pytest.mark.parametrize("batched", [True, False])
def test_a_list_that_runs_alone_raises_nothing(
    run: Run,
    caplog: pytest.LogCaptureFixture,
    batched: bool,
    make_error: Callable[[], BaseException],
) -> None:
    """What its tasks raise is logged, and the others run."""
    ran: list[int] = []

    async def note(number: int) -> None:
        ran.append(number)

    async def main() -> None:
        tasks = BatchedBackgroundTasks(3) if batched else BackgroundTasks()
        for number, function in enumerate((fail, fail_async, fail_later)):
            tasks.add_task(function, make_error())
            tasks.add_task(note, number)
        await tasks.run()

    run(main)
    assert sorted(ran) == [0, 1, 2]
    assert len(caplog.records) == 3
    assert all(record.exc_info for record in caplog.records)


@error_kinds
def test_one_of_a_batch_that_raises_leaves_the_others_alone(
    run: Run, supervise: Supervise, make_error: Callable[[], BaseException]
) -> None:
    """The tasks of its batch, and the batches behind it, run to their end."""
    supervisor = supervise()
    ran: list[int] = []

    async def slowly(number: int) -> None:
        for _ in range(5):
            await checkpoint()
        ran.append(number)

    async def main() -> None:
        supervisor.open()
        tasks = BatchedBackgroundTasks(4)
        tasks.add_task(slowly, 0)
        tasks.add_task(fail_later, make_error())
        tasks.add_task(fail, make_error())
        for number in (1, 2, 3):
            tasks.add_task(slowly, number)
        Request(supervisor).add(tasks).add(slowly, 4).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert sorted(ran) == [0, 1, 2, 3, 4]
    assert supervisor.figures() == {"done": 5, "failed": 2}


@pytest.mark.parametrize("function", [fail, fail_async])
def test_wrong_arguments_are_a_failure_of_the_task(
    run: Run, supervise: Supervise, function: Callable[..., Any]
) -> None:
    """They show when it is called, and harm nobody else."""
    supervisor = supervise()
    ran: list[str] = []

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(function, 1, 2, three=3).add(ran.append, "next").end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == ["next"]
    (failure,) = supervisor.told
    assert isinstance(failure.error, TypeError)
    assert (failure.args, failure.kwargs) == ((1, 2), {"three": 3})


def test_the_traceback_ends_where_it_was_raised(run: Run, supervise: Supervise) -> None:
    """The last line of it is the task's own."""
    supervisor = supervise()

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(fail_later, Trouble()).add(fail, Trouble()).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    for failure, name in zip(supervisor.told, ("fail_later", "fail"), strict=True):
        assert failure.error is not None
        traceback = failure.error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        assert traceback is not None
        assert traceback.tb_frame.f_code.co_name == name


def test_a_log_line_has_the_types_of_arguments_and_no_values(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    """Values may be secrets."""
    supervisor = supervise()

    async def send(user: str, password: bytes, *, retries: int) -> None:
        raise Trouble

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(send, "anna", b"hunter2", retries=12345).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    message = caplog.records[0].getMessage()
    assert message.startswith(f"The background task {__name__}.")
    assert message.endswith("<locals>.send(str, bytes, retries=int) failed.")


@error_kinds
def test_an_on_error_that_raises_is_logged(
    run: Run,
    supervise: Supervise,
    caplog: pytest.LogCaptureFixture,
    make_error: Callable[[], BaseException],
) -> None:
    """Whatever it raises, the next tasks and the other requests run, and it is told of the next failure, too."""
    error = make_error()

    def on_error(failure: TaskFailure) -> None:
        raise error

    supervisor = supervise(max_concurrency=1, on_error=on_error)
    ran: list[int] = []

    async def note(number: int) -> None:
        ran.append(number)

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor).add(fail_async, Trouble()).add(note, 1).add(fail, Trouble())
        request.add(note, 2).end()
        Request(supervisor).add(note, 3).end()
        Request(supervisor).add(note, 4).end(failed=True)
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == [1, 2, 3]
    assert supervisor.figures() == {"done": 3, "failed": 2, "discarded": 1}
    failed = [record for record in caplog.records if "on_error" in str(record.msg)]
    assert [record.exc_info and record.exc_info[1] for record in failed] == [error] * 3


def test_on_error_has_what_it_takes_to_run_the_task_again(run: Run, supervise: Supervise) -> None:
    """It may add it to another request, even while it is told of it."""
    ran: list[str] = []

    async def flaky(name: str, *, times: list[int]) -> None:
        times.append(1)
        if len(times) < 3:
            raise Trouble
        ran.append(name)

    def on_error(failure: TaskFailure) -> None:
        Request(supervisor).add(failure.function, *failure.args, **failure.kwargs).end()

    supervisor = supervise(on_error=on_error)

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(flaky, "task", times=[]).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == ["task"]
    assert supervisor.figures() == {"done": 1, "failed": 2}


def test_what_on_error_adds_to_a_request_that_has_failed_ends_there(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    """It is discarded and logged, but not told of, which would go on for ever; later ones are told of."""
    ran: list[str] = []

    def on_error(failure: TaskFailure) -> None:
        request.add(ran.append, f"instead of {failure.args[0]}")

    supervisor = supervise()
    supervisor._on_error = lambda failure: (supervisor.told.append(failure), on_error(failure))
    request = Request(supervisor)

    async def main() -> None:
        supervisor.open()
        request.add(ran.append, "first").end(failed=True)
        request.add(ran.append, "second")
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == []
    assert [failure.args for failure in supervisor.told] == [("first",), ("second",)]
    assert supervisor.figures() == {"discarded": 4}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
    supervisor.told *= 2  # as the accounts have it


def test_a_task_whose_child_fails_is_a_failure(run: Run, supervise: Supervise) -> None:
    """A group of tasks inside of it that is cancelled by one that fails leaves nothing behind for the next."""
    supervisor = supervise(max_concurrency=1)
    ran: list[str] = []

    async def fail_in_a_group() -> None:
        if asyncio._get_running_loop() is None:
            import trio

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(fail_later, Trouble())
        else:
            import anyio

            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                group.start_soon(fail_later, Trouble())

    async def main() -> None:
        supervisor.open()
        request = Request(supervisor)
        for _ in range(3):
            request.add(fail_in_a_group).add(fail_later, asyncio.CancelledError())
        request.add(ran.append, "end").end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert ran == ["end"]
    assert supervisor.figures() == {"done": 1, "failed": 6}


class Nameless:
    """Has nothing behind it where tasks run, as the proxies of some frameworks."""

    def __call__(self) -> None:
        raise Trouble

    def __getattribute__(self, name: str) -> Any:
        if name in ("__qualname__", "__module__"):
            raise Trouble
        return super().__getattribute__(name)


def test_one_that_does_not_tell_its_name_is_reported_all_the_same(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    """By the name of what it is."""
    supervisor = supervise()

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(Nameless()).add(checkpoint).end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert supervisor.figures() == {"done": 1, "failed": 1}
    assert supervisor.reasons() == [("Nameless", "failed")]
    assert "The background task Nameless() failed." in caplog.text


@pytest.mark.parametrize("broken_too", [False, True])
def test_a_log_that_raises_ends_nothing(run: Run, supervise: Supervise, broken_too: bool) -> None:
    """A filter or a handler that is broken: all is accounted for, and told to `on_error`, which may be broken too."""

    def refuse(record: logging.LogRecord) -> bool:
        raise Trouble

    def on_error(failure: TaskFailure) -> None:
        if broken_too:
            raise Trouble

    supervisor = supervise(max_concurrency=1, on_error=on_error)

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(fail_async, Trouble()).add(fail, Trouble()).add(checkpoint).end()
        Request(supervisor).add(checkpoint).end()
        Request(supervisor).add(checkpoint).end(failed=True)
        await supervisor.drain(PATIENCE_SECONDS)

    logger = logging.getLogger("asgi_perfkit")
    logger.addFilter(refuse)
    try:
        run(main)
    finally:
        logger.removeFilter(refuse)
    assert supervisor.figures() == {"done": 2, "failed": 2, "discarded": 1}
