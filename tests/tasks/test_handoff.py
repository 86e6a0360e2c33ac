"""Tasks that are handed to an engine, as far as the kit is concerned: the engines are the tests' own."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from asgi_perfkit import (
    BackgroundTaskMiddleware,
    BackgroundTasks,
    BatchedBackgroundTasks,
    CeleryEngine,
    ConfigurationError,
    Handoff,
    PerfKit,
    TaskFailure,
    TaskiqEngine,
    ThreadLimiter,
    add_task,
    get_runtime_stats,
    task_options,
)
from asgi_perfkit.tasks import submission
from tests.conftest import Run
from tests.support import LOGGER, Server, Trouble, checkpoint, forever, http_scope, no_collector
from tests.tasks.conftest import Supervise
from tests.tasks.requests import Request
from tests.threads.gates import PATIENCE_SECONDS, Gate, Signal

variable: ContextVar[str] = ContextVar("variable")

Answer = BaseException | None


class BlockingEngine:
    """Answers to each submission in turn, and to all further ones like to the last.

    :param answers: an exception to raise; None to take the task.
    :ivar asked: for each submission, the function's name, its arguments, the value of the context variable, and
        whether the engine was called on the thread that the engine was made in.
    """

    def __init__(self, *answers: Answer) -> None:
        self.asked: list[tuple[str, Any, Any, str | None, bool]] = []
        self._answers = list(answers) or [None]
        self._thread = threading.get_ident()

    def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        here = threading.get_ident() == self._thread
        self.asked.append((func.__name__, args, kwargs, variable.get(None), here))
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        if answer is not None:
            raise answer


class AsyncEngine(BlockingEngine):
    async def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        await checkpoint()
        super().submit(func, args, kwargs)


class AwaitableEngine(AsyncEngine):
    """One that only its result tells to be async."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(*answers)
        self.submit: Any = lambda *args: AsyncEngine.submit(self, *args)


class PickyEngine(BlockingEngine):
    """Takes only what it knows, and has names of its own."""

    def __init__(self, *known: Any) -> None:
        super().__init__()
        self._known = known

    def knows(self, func: Any) -> bool:
        return func in self._known

    def name(self, func: Any) -> str:
        if func is not work:
            raise Trouble
        return f"{func.__name__} of the picky"


kinds = pytest.mark.parametrize("kind", [BlockingEngine, AsyncEngine])
Kind = Callable[..., BlockingEngine]

ran: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


async def work(*args: Any, **kwargs: Any) -> None:
    ran.append((*args, *kwargs))


def work_in_a_thread(*args: Any) -> None:
    ran.append(args)


def settle(run: Run, supervisor: Any, *requests: Callable[[Request], object]) -> None:
    """Serve requests, each of which adds its tasks, and wait for these."""

    async def main() -> None:
        supervisor.open()
        for fill in requests:
            request = Request(supervisor)
            fill(request)
            request.end()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)


@pytest.mark.parametrize("kind", [BlockingEngine, AsyncEngine, AwaitableEngine])
def test_a_task_is_submitted_and_not_run(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    """In the order of adding, in the context it was added in; on the loop or in a thread, as the engine is."""
    supervisor = supervise()
    engine = kind()

    def fill(request: Request) -> None:
        for number, function in enumerate((work, work_in_a_thread)):
            variable.set(f"of {number}")
            request.add(task_options(function, handoff=engine), number, key=number)
        variable.set("another")

    settle(run, supervisor, fill)
    on_the_loop = kind is AsyncEngine or kind is AwaitableEngine
    assert engine.asked == [
        ("work", (0,), {"key": 0}, "of 0", on_the_loop),
        ("work_in_a_thread", (1,), {"key": 1}, "of 1", on_the_loop),
    ]
    assert ran == []
    assert supervisor.figures() == {"handed_off": 2}
    assert caplog.records == []


@kinds
def test_a_submission_that_fails_is_tried_again(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    """Nothing is said of it when it succeeds in the end."""
    supervisor = supervise()
    engine = kind(ConnectionError(), Trouble(), None)
    handoff = Handoff(engine, backoff=0.001)
    settle(run, supervisor, lambda request: request.add(task_options(work, handoff=handoff), 1))
    assert len(engine.asked) == 3
    assert ran == []
    assert supervisor.figures() == {"handed_off": 1}
    assert caplog.records == []


def test_the_waits_between_the_tries_double(
    run: Run, supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a random part, from a half on, of twice as much as that of the one before, up to the time for all."""
    waits: list[float] = []

    async def note(loop: Any, seconds: float, hurry: Any) -> None:
        waits.append(seconds)

    monkeypatch.setattr(submission, "_pause", note)
    engine = AsyncEngine(ConnectionError())
    handoff = Handoff(engine, retries=6, backoff=3, timeout=48, fallback="report")
    rounds = 30
    settle(
        run,
        supervise(max_concurrency=1),
        *[lambda request: request.add(task_options(work, handoff=handoff))] * rounds,
    )
    assert len(waits) == 6 * rounds
    for number in range(6):
        of_this = [wait / min(48, 3 * 2**number) for wait in waits[number::6]]
        assert 0.5 <= min(of_this) < 0.65
        assert 0.85 < max(of_this) <= 1


@pytest.mark.parametrize("function", [work, work_in_a_thread])
@kinds
def test_a_task_that_no_engine_takes_runs_here(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture, kind: Kind, function: Any
) -> None:
    """Before the next one of its request; a line tells of it, with no value of an argument, and nobody else is told."""
    supervisor = supervise()
    error = Trouble("outer")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    engine = kind(error)
    handoff = Handoff(engine, retries=2, backoff=0)

    def fill(request: Request) -> None:
        request.add(task_options(function, handoff=handoff), "hunter2").add(ran.append, "next")

    settle(run, supervisor, fill)
    assert len(engine.asked) == 3
    assert ran == [("hunter2",), "next"]
    assert supervisor.figures() == {"done": 2, "handoff_failed": 1}
    assert supervisor.told == []
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("WARNING", LOGGER)
    assert record.getMessage() == (
        f"The background task {__name__}.{function.__name__}(str) could not be handed to "
        f"{kind.__name__}, and runs here: ConnectionRefusedError: [Errno 111] Connection refused"
    )


def test_what_runs_here_after_all_is_a_task_like_any(run: Run, supervise: Supervise) -> None:
    """It may fail, or take longer than its time-out, and is told of."""
    supervisor = supervise()
    handoff = Handoff(AsyncEngine(ConnectionError()), retries=0)

    async def fail() -> None:
        raise Trouble

    def fill(request: Request) -> None:
        request.add(task_options(fail, handoff=handoff))
        request.add(task_options(forever, handoff=handoff, timeout=0.001))

    settle(run, supervisor, fill)
    assert supervisor.reasons() == [("fail", "failed"), ("forever", "timed_out")]
    assert supervisor.figures() == {"failed": 1, "timed_out": 1, "handoff_failed": 2}


@kinds
def test_a_task_that_no_engine_takes_is_reported_lost(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    """If it must not run here: with what the engine has said, and all that it takes to submit it again."""
    supervisor = supervise()
    error = ConnectionError("nobody there")
    handoff = Handoff(kind(error), retries=1, backoff=0, fallback="report")
    settle(
        run,
        supervisor,
        lambda request: request.add(task_options(work, handoff=handoff), 1, key="hunter2"),
    )
    assert ran == []
    assert supervisor.told == [
        TaskFailure(f"{__name__}.work", "lost", error, work, (1,), {"key": "hunter2"})
    ]
    assert supervisor.figures() == {"lost": 1, "handoff_failed": 1}
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == (
        f"The background task {__name__}.work(int, key=str) could not be handed to "
        f"{kind.__name__}, and is lost: ConnectionError: nobody there"
    )


def test_a_task_is_reported_by_the_name_that_its_engine_has_for_it(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture
) -> None:
    """What an engine has made of a function may have another one than that."""
    supervisor = supervise()
    engine = PickyEngine(work, work_in_a_thread)
    error = ConnectionError()
    error.__cause__ = OSError()
    error.__cause__.__cause__ = error  # which no log may follow for ever
    engine._answers = [error]
    handoff = Handoff(engine, retries=0, fallback="report")

    def fill(request: Request) -> None:
        request.add(task_options(work, handoff=handoff), 1)
        request.add(task_options(work_in_a_thread, handoff=handoff), 2)  # it has none for this one

    settle(run, supervisor, fill)
    names = [failure.name for failure in supervisor.told]
    assert names == ["work of the picky", f"{__name__}.work_in_a_thread"]
    assert "The background task work of the picky(int) could not be handed to" in caplog.text


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    "error",
    [TypeError(), ValueError(), caused(Trouble(), TypeError()), caused(Trouble(), ValueError())],
    ids=repr,
)
def test_what_can_never_be_submitted_is_tried_once(
    run: Run, supervise: Supervise, error: BaseException
) -> None:
    """Nor does it say anything of the engine: the next task is tried as often as ever."""
    engine = AsyncEngine(error, ConnectionError(), None)
    handoff = Handoff(engine, backoff=0)

    def fill(request: Request) -> None:
        request.add(task_options(work, handoff=handoff), 1)
        request.add(task_options(work, handoff=handoff), 2)

    supervisor = supervise()
    settle(run, supervisor, fill)
    assert [asked[1] for asked in engine.asked] == [(1,), (2,), (2,)]
    assert ran == [(1,)]
    assert supervisor.figures() == {"done": 1, "handed_off": 1, "handoff_failed": 1}


@kinds
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError(), GeneratorExit()]
)
def test_whatever_an_engine_raises_the_task_runs(
    run: Run, supervise: Supervise, kind: Kind, error: BaseException
) -> None:
    """And the next one."""
    supervisor = supervise()
    handoff = Handoff(kind(error))

    def fill(request: Request) -> None:
        request.add(task_options(work, handoff=handoff), 1).add(work, 2)

    settle(run, supervisor, fill)
    assert ran == [(1,), (2,)]
    assert supervisor.figures() == {"done": 2, "handoff_failed": 1}


@pytest.mark.parametrize(("fallback", "tries"), [("run", [3, 1, 1, 3]), ("report", [3, 3, 3, 3])])
def test_tasks_that_can_run_here_are_not_held_up_while_the_engine_is_down(
    run: Run, supervise: Supervise, fallback: Any, tries: list[int]
) -> None:
    """One try for each is enough then, until one gets through; others have nowhere else to go."""
    down, up = ConnectionError(), None
    answers: list[Answer] = [down] * sum(tries[:2]) + [down] * (tries[2] - 1) + [up, down, down, up]
    engine = AsyncEngine(*answers)
    handoff = Handoff(engine, retries=2, backoff=0, fallback=fallback)

    def fill(request: Request) -> None:
        for number in range(4):
            request.add(task_options(work, handoff=handoff), number)

    supervisor = supervise()
    settle(run, supervisor, fill)
    asked = [asked[1][0] for asked in engine.asked]
    assert [asked.count(number) for number in range(4)] == tries
    assert supervisor.statistics()["handed_off"] == 2


class HangingEngine:
    """Takes its time, in a thread; what comes of it nobody knows."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.asked: list[Any] = []

    def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.asked.append(args)
        self._gate()


class HangingAsyncEngine:
    def __init__(self, gate: Gate) -> None:
        self.asked: list[Any] = []
        self.reached = Signal()
        self.left = 0

    async def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.asked.append(args)
        self.reached.set()
        try:
            await forever()
        finally:
            self.left += 1


@pytest.mark.parametrize("kind", [HangingEngine, HangingAsyncEngine])
def test_an_engine_that_does_not_answer_is_left_after_a_while(
    run: Run, supervise: Supervise, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    """The task runs, though the thread is still in there."""
    supervisor = supervise()
    with Gate() as gate:
        engine = kind(gate)
        handoff = Handoff(engine, timeout=0.02)

        async def main() -> None:
            supervisor.open()
            Request(supervisor).add(task_options(work, handoff=handoff), 1).add(work, 2).end()
            await supervisor.drain(PATIENCE_SECONDS)
            assert ran == [(1,), (2,)]
            assert gate.inside == (kind is HangingEngine)
            gate.open()

        run(main)
    assert engine.asked == [(1,)]
    assert "TimeoutError: no answer within 0.02 s" in caplog.text
    assert supervisor.figures() == {"done": 2, "handoff_failed": 1}


@pytest.mark.parametrize("kind", [HangingEngine, HangingAsyncEngine])
def test_a_shutdown_does_not_wait_longer_for_an_engine_than_for_a_task(
    run: Run, supervise: Supervise, kind: Any
) -> None:
    """A thread that is in there is left to itself, and what it was about is told of, as is what waits behind it."""
    supervisor = supervise(max_concurrency=1)
    with Gate() as gate:
        engine = kind(gate)
        option = task_options(work, handoff=engine)

        async def main() -> None:
            supervisor.open()
            Request(supervisor).add(option, 1).add(option, 2).end()
            Request(supervisor).add(work, 3).end()
            await (engine.reached.wait() if kind is HangingAsyncEngine else gate.reached())
            await supervisor.drain(0)
            supervisor.check_all_settled()
            assert gate.inside == (kind is HangingEngine)
            gate.open()

        run(main)
    assert engine.asked == [(1,)]
    assert kind is HangingEngine or engine.left == 1
    assert ran == []
    assert [(failure.args, failure.reason) for failure in supervisor.told] == [
        ((3,), "cancelled"),
        ((1,), "cancelled"),
        ((2,), "cancelled"),
    ]


def test_a_submission_that_waits_for_a_thread_is_not_made_after_the_shutdown(
    run: Run, supervise: Supervise
) -> None:
    """It has no thread yet, and what was told of as not done must not be done then."""
    supervisor = supervise(limiter=ThreadLimiter(1))
    engine = BlockingEngine()
    with Gate() as gate:

        async def main() -> None:
            supervisor.open()
            Request(supervisor).add(task_options(work, handoff=HangingEngine(gate)), 1).end()
            await gate.reached()
            Request(supervisor).add(task_options(work, handoff=engine), 2).end()
            while not supervisor._limiter.statistics().tasks_waiting:
                await checkpoint()
            await supervisor.drain(0)
            supervisor.check_all_settled()
            gate.open()
            while supervisor._limiter.borrowed_tokens:
                await checkpoint()

        run(main)
    assert engine.asked == []
    assert supervisor.figures() == {"cancelled": 2}


def test_a_shutdown_shortens_the_waits(
    run: Run, supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tries are made all the same, and the task is done before the drain gives it up."""
    monkeypatch.setattr(submission, "_HURRIED_SECONDS", 0.001)
    supervisor = supervise()
    asked = Signal()

    class Engine(AsyncEngine):
        async def submit(self, *args: Any) -> None:
            asked.set()
            await super().submit(*args)

    engine = Engine(ConnectionError())
    handoff = Handoff(engine, retries=3, backoff=1000, timeout=10_000)

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(task_options(work, handoff=handoff), 1).end()
        await asked.wait()
        await checkpoint()
        await supervisor.drain(PATIENCE_SECONDS)

    run(main)
    assert len(engine.asked) == 4
    assert ran == [(1,)]


@pytest.mark.parametrize("fallback", ["run", "report"])
def test_a_shutdown_that_is_over_ends_the_waits(
    run: Run, supervise: Supervise, fallback: Any
) -> None:
    """The task is cancelled, and told of as that."""
    supervisor = supervise()
    asked = Signal()

    class Engine(BlockingEngine):
        def submit(self, *args: Any) -> None:
            asked.set()
            super().submit(*args)

    handoff = Handoff(Engine(ConnectionError()), backoff=1000, fallback=fallback, timeout=10_000)

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(task_options(work, handoff=handoff), 1).end()
        await asked.wait()
        await supervisor.drain(0)
        supervisor.check_all_settled()

    run(main)
    assert ran == []
    assert supervisor.reasons() == [("work", "cancelled")]


def test_an_engine_that_hides_its_cancellation_is_not_asked_again(
    run: Run, supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shutdown is over: its task is not begun here either."""
    monkeypatch.setattr(submission, "_HURRIED_SECONDS", 0)
    supervisor = supervise()
    asked = Signal()
    submitted: list[Any] = []

    class Engine:
        async def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            submitted.append(args)
            if not asked.is_set():
                asked.set()
                try:
                    await forever()
                except BaseException as error:
                    raise Trouble from error

    async def main() -> None:
        supervisor.open()
        Request(supervisor).add(task_options(work, handoff=Engine()), 1).add(work, 2).end()
        await asked.wait()
        await supervisor.drain(0)

    run(main)
    assert ran == []
    assert supervisor.reasons() == [("work", "cancelled")] * 2
    assert submitted == [(1,)]
    assert supervisor.figures() == {"cancelled": 2}
    assert [failure.error for failure in supervisor.told] == [None, None]


def test_a_loop_that_is_gone_hurries_nobody(run: Run, supervise: Supervise) -> None:
    """A server without a lifespan may serve the app on another one, then."""
    supervisor = supervise()
    engine = AsyncEngine(ConnectionError(), None, ConnectionError(), None)
    handoff = Handoff(engine, backoff=0.001)
    done = Signal()

    def signal() -> None:
        done.set()

    async def with_lifespan() -> None:
        supervisor.open()
        request = Request(supervisor).add(task_options(work, handoff=handoff))
        request.add(task_options(signal, handoff=False)).end()
        await done.wait()
        while supervisor.statistics()["running"]:
            await checkpoint()
        supervisor.detach()

    async def without() -> None:
        Request(supervisor).add(task_options(work, handoff=handoff)).end()
        await supervisor.run_unclaimed()

    run(with_lifespan)
    run(without)
    assert len(engine.asked) == 4
    assert supervisor.figures() == {"handed_off": 2, "done": 1}


def test_the_engine_of_the_app_takes_what_it_knows(run: Run, supervise: Supervise) -> None:
    """Unless an option says otherwise; in lists, too."""
    engine, other = PickyEngine(work), AsyncEngine()
    supervisor = supervise(handoff=Handoff(engine))

    def fill(request: Request) -> None:
        tasks: Any
        for tasks in (BackgroundTasks(), BatchedBackgroundTasks(2), None):
            add = request.add if tasks is None else tasks.add_task
            add(work, 1)
            add(work_in_a_thread, 2)
            add(task_options(work, handoff=False), 3)
            add(task_options(work, handoff=True), 4)
            add(task_options(work, timeout=1), 5)
            add(task_options(work, handoff=other), 6)
            if tasks is not None:
                request.add(tasks)

    settle(run, supervisor, fill)
    assert sorted(asked[1] for asked in engine.asked) == [(1,)] * 3 + [(4,)] * 3 + [(5,)] * 3
    assert [asked[1] for asked in other.asked] == [(6,)] * 3
    assert sorted(ran) == [(2,)] * 3 + [(3,)] * 3
    assert supervisor.figures() == {"done": 6, "handed_off": 12}


def test_a_function_that_the_engine_does_not_know_is_refused_where_it_is_named(
    supervise: Supervise,
) -> None:
    """And nothing is queued then, nor of the list that it is in."""
    with pytest.raises(
        ConfigurationError, match=r"task_options\(func\) got .*PickyEngine does not"
    ):
        task_options(work, handoff=PickyEngine())
    for default, fact in ((Handoff(PickyEngine()), "does not know"), (None, "has no engine")):
        supervisor = supervise(handoff=default)
        request = Request(supervisor)
        tasks = BackgroundTasks()
        tasks.add_task(work)
        tasks.add_task(task_options(work, handoff=True))
        for added in (tasks, task_options(work, handoff=True)):
            with pytest.raises(ConfigurationError, match=fact):
                request.add(added)
        assert supervisor.accepted == 0


def test_a_list_that_runs_alone_hands_its_tasks_off_too(run: Run) -> None:
    """To an engine of their own: it belongs to no app."""
    engine = AsyncEngine(ConnectionError(), None)
    tasks = BackgroundTasks()
    tasks.add_task(task_options(work, handoff=Handoff(engine, backoff=0.001)), 1)
    tasks.add_task(work, 2)
    run(tasks.run)
    assert len(engine.asked) == 2
    assert ran == [(2,)]
    tasks.add_task(task_options(work, handoff=True))
    with pytest.raises(ConfigurationError, match="the app has no engine"):
        run(tasks.run)


class Thing:
    """An argument whose end can be seen."""


class Forgetful(list[TaskFailure]):
    """Keeps count, and nothing else."""

    def append(self, failure: TaskFailure) -> None:
        super().append(None)  # type: ignore[arg-type]


class ForgetfulEngine:
    """Fails so often, and holds neither what it is asked nor what it raises."""

    def __init__(self, failures: int, alive: list[weakref.ref[Any]]) -> None:
        self.failures = failures
        self._alive = alive

    def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise self._noted(Trouble(*args))

    def _noted(self, error: Exception) -> Exception:
        self._alive.append(weakref.ref(error))
        return error  # and no frame that it is raised through holds it


class ForgetfulAsyncEngine(ForgetfulEngine):
    async def submit(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        await checkpoint()
        super().submit(func, args, kwargs)


@pytest.mark.parametrize("failures", [0, 1, 2])
@pytest.mark.parametrize("fallback", ["run", "report"])
@pytest.mark.parametrize("kind", [ForgetfulEngine, ForgetfulAsyncEngine])
def test_what_is_handed_off_leaves_nothing_behind(
    run: Run,
    supervise: Supervise,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    fallback: Any,
    failures: int,
) -> None:
    """Neither arguments nor errors, when the next task runs, and without the garbage collector's help."""
    monkeypatch.setattr(logging.getLogger(LOGGER), "disabled", True)  # pytest keeps what is logged
    supervisor = supervise()
    supervisor.told = Forgetful()
    alive: list[weakref.ref[Any]] = []
    handoff = Handoff(kind(failures, alive), retries=1, backoff=0, fallback=fallback)
    left: list[Any] = []

    async def nothing(thing: Thing) -> None:
        pass

    async def look() -> None:
        await checkpoint()
        while kind is ForgetfulEngine and alive[0]() is not None:  # the worker is about to let go
            await checkpoint()
        left.extend(ref() for ref in alive)

    async def main() -> None:
        supervisor.open()
        thing = Thing()
        alive.append(weakref.ref(thing))
        Request(supervisor).add(task_options(nothing, handoff=handoff), thing).add(look).end()
        del thing
        await supervisor.drain(PATIENCE_SECONDS)

    with no_collector():
        run(main)
    assert left == [None] * (1 + failures)


def test_the_wait_is_measured_and_no_run(run: Run, supervise: Supervise) -> None:
    """Of a task that runs elsewhere; of one that runs here after all both are, once."""
    supervisor = supervise()
    observed: list[list[tuple[str, int]]] = []

    class Late:
        def observe_late(self, metric: str, value: int) -> None:
            observed[-1].append((metric, value))

        def observe_many(self, metric: str, values: Sequence[int]) -> None:
            observed[-1].extend((metric, value) for value in values)

    async def main() -> None:
        supervisor.open()
        for answer, fallback in (
            (None, "run"),
            (ConnectionError(), "report"),
            (ConnectionError(), "run"),
        ):
            observed.append([])
            handoff: Any = Handoff(AsyncEngine(answer), retries=0, fallback=fallback)  # type: ignore[arg-type]
            Request(supervisor).add(task_options(work, handoff=handoff)).end(late=Late())
            await supervisor.drain(PATIENCE_SECONDS)
            supervisor.open()
        await supervisor.drain(0)

    run(main)
    wait, time = "background_wait_time", "background_time"
    assert [[metric for metric, _ in each] for each in observed] == [[wait], [wait], [wait, time]]
    assert all(value > 0 for each in observed for _, value in each)


@pytest.mark.parametrize("face", ["middleware", "stack"])
def test_the_app_is_given_an_engine(run: Run, face: str) -> None:
    """By the middleware's option, or the stack's; the process's figures have what became of the tasks."""
    engine = PickyEngine(work)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        add_task(work, 1)
        add_task(ran.append, 2)
        handoff = Handoff(AsyncEngine(ConnectionError()), retries=0, fallback="report")
        add_task(task_options(work, handoff=handoff))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    wrapped: Any
    if face == "middleware":
        wrapped = BackgroundTaskMiddleware(app, handoff=engine)
    else:
        wrapped = PerfKit(app, background={"handoff": engine})
    before = get_runtime_stats()["background_tasks"]
    server = Server({"type": "http.request", "body": b""})
    run(wrapped, http_scope(), server.receive, server.send)
    after = get_runtime_stats()["background_tasks"]
    assert [asked[1] for asked in engine.asked] == [(1,)]
    assert ran == [2]
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {"handed_off": 1, "done": 1, "lost": 1, "handoff_failed": 1}


class OtherSubmit:
    def submit(self, func: Any, /, *args: Any, **kwargs: Any) -> None: ...


class ShortSubmit:
    def submit(self, func: Any) -> None: ...


NO_ENGINES = [None, object(), BlockingEngine, "redis://", OtherSubmit(), ShortSubmit()]
WRONG_OPTIONS: Iterable[tuple[dict[str, Any], type[Exception]]] = [
    ({"retries": -1}, ValueError),
    ({"retries": 1.5}, TypeError),
    ({"retries": True}, TypeError),
    ({"backoff": -0.1}, ValueError),
    ({"backoff": "1"}, TypeError),
    ({"backoff": float("nan")}, ValueError),
    ({"backoff": float("inf")}, ValueError),
    ({"timeout": 0}, ValueError),
    ({"timeout": None}, TypeError),
    ({"timeout": float("inf")}, ValueError),
    ({"fallback": "drop"}, ValueError),
    ({"fallback": True}, ValueError),
]


@pytest.mark.parametrize("engine", NO_ENGINES, ids=lambda engine: type(engine).__name__)
def test_what_is_no_engine_is_refused(engine: Any) -> None:
    """Where it is given; an executor for one, whose `submit` takes the arguments themselves."""
    for make in (
        Handoff,
        lambda engine: task_options(work, handoff=engine),
        lambda engine: BackgroundTaskMiddleware(work, handoff=engine),
    ):
        if engine is None and make is not Handoff:
            continue
        with pytest.raises(ConfigurationError, match=r"submit\(func, args, kwargs\)"):
            make(engine)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ConfigurationError, match="another one"):
        Handoff(executor)  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "kind"), WRONG_OPTIONS, ids=repr)
def test_wrong_options_are_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    """With their name and value."""
    (name,) = options
    with pytest.raises(ConfigurationError, match=rf"Handoff\({name}=...\) got ") as caught:
        Handoff(BlockingEngine(), **options)
    assert isinstance(caught.value, kind)


@pytest.mark.parametrize("thing", [None, object(), BlockingEngine(), CeleryEngine, "redis://"])
@pytest.mark.parametrize("adapter", [CeleryEngine, TaskiqEngine])
def test_an_adapter_refuses_what_is_not_its_own(adapter: Any, thing: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"{adapter.__name__}\(\w+\) got "):
        adapter(thing)
