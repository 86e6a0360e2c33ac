"""Exact profiles: of interleaved requests each has its own calls, all of them and no other."""

from __future__ import annotations

import asyncio
import cProfile
import json
import pstats
import random
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import pytest

from asgi_perfkit import (
    ConfigurationError,
    PerfKit,
    PerformanceMiddleware,
    Profiles,
    ProfilingMiddleware,
    Registry,
    exact_by_header,
    exact_profile,
    get_profile_stats,
)
from asgi_perfkit.profiling.exact import ExactProfiles, RequestCalls
from asgi_perfkit.profiling.packed import PackedCalls
from asgi_perfkit.profiling.recorder import CallRecorder
from asgi_perfkit.steps import DrivenAccount, current_account, follow_children
from tests.conftest import Run
from tests.support import (
    BODY,
    START,
    Receive,
    Scope,
    Send,
    Trouble,
    checkpoint,
    http_scope,
    together,
)

Work = Callable[[], Awaitable[Any]]


@pytest.fixture(autouse=True)
def _nothing_stays_on() -> Iterator[None]:
    assert sys.getprofile() is None
    yield
    assert sys.getprofile() is None


class Owner:
    def work_ended(self, account: DrivenAccount, error: BaseException | None) -> None:
        account.closed = True


async def profiled(exact: ExactProfiles, name: str, work: Work) -> Any:
    """Do `work` as that of a request which is profiled."""
    request = exact.request()
    account = DrivenAccount(Owner(), perf_counter_ns())
    account.observers = (request,)
    account.parent = current_account.get()
    current_account.set(account)
    try:
        return await account.begin(work())  # type: ignore[arg-type]
    finally:
        exact.add(name, request)


def calls_of(exact: ExactProfiles, name: str) -> dict[str, int]:
    """By the name of the function, of those of this file."""
    (calls,) = exact.calls(name).values()
    return {
        line.function.rpartition(".")[2]: figures.calls
        for line, figures in calls.by_function().items()
        if line.file == __file__
    }


def only_a(depth: int = 0) -> int:
    return only_a(depth - 1) if depth else len("a")


def only_b() -> list[int]:
    return sorted([2, 1], key=inner_b)


def inner_b(value: int) -> int:
    return value


def only_child() -> None:
    "x".upper()


def test_each_request_has_its_own_calls_and_all_of_them(run: Run) -> None:
    """Seven of one function by one, five of another by the other, a step for each; children are theirs too."""
    exact = ExactProfiles(1 << 20)

    async def child() -> None:
        for _ in range(3):
            only_child()
            await checkpoint()

    async def a() -> None:
        for _ in range(7):
            only_a()
            await checkpoint()
        await together(child)

    async def b() -> None:
        for _ in range(5):
            only_b()
            await checkpoint()

    async def main() -> None:
        follow_children()
        await together(
            lambda: profiled(exact, "A", a),
            lambda: profiled(exact, "B", b),
        )

    run(main)
    of_a, of_b = calls_of(exact, "A"), calls_of(exact, "B")
    assert of_a["only_a"] == 7
    assert of_a["only_child"] == 3
    assert of_b["only_b"] == 5
    assert of_b["inner_b"] == 10
    assert not {"only_b", "inner_b"} & set(of_a)
    assert not {"only_a", "only_child"} & set(of_b)
    for name in "AB":
        (calls,) = exact.calls(name).values()
        for function in calls.functions:  # nothing of what drives the request, or watches it
            assert "asgi_perfkit/steps" not in function.file
            assert "asgi_perfkit/profiling" not in function.file
            assert "setprofile" not in function.function
            assert "'send' of" not in function.function  # whose `send` drives it
        for function, callers in calls.by_caller().items():  # trio's, which tells of the steps
            assert "_instrumentation" not in function.file or None not in callers


def test_interleaved_at_random_the_counts_are_exact(run: Run) -> None:
    """Each request calls a function of its own, so many times a step as it has noted."""
    exact = ExactProfiles(1 << 20)
    chance = random.Random(7)
    expected: Counter[str] = Counter()

    def request(number: int) -> Work:
        name = f"own_{number}"
        space: dict[str, Any] = {}
        exec(compile(f"def {name}(): pass", __file__, "exec"), space)
        own = space[name]

        async def work() -> None:
            for _ in range(chance.randrange(1, 12)):
                times = chance.randrange(4)
                expected[name] += times
                for _ in range(times):
                    own()
                if chance.random() < 0.7:
                    await checkpoint()
            if chance.random() < 0.3:
                raise Trouble

        async def guarded() -> None:
            with suppress(Trouble):
                await profiled(exact, str(number), work)

        return guarded

    run(together, *(request(number) for number in range(12)))
    for number in range(12):
        found = {name: n for name, n in calls_of(exact, str(number)).items() if name[:4] == "own_"}
        name = f"own_{number}"
        assert found == ({name: expected[name]} if expected[name] else {})


def test_what_other_threads_do_meanwhile_is_not_in_it(run_asyncio: Run) -> None:
    """From Python 3.12 on cProfile would have it."""
    exact = ExactProfiles(1 << 20)
    ran = threading.Event()
    over = threading.Event()

    def foreign() -> None:
        ran.set()

    def other() -> None:
        while not over.is_set():
            foreign()

    async def work() -> None:
        ran.clear()
        assert ran.wait(10)  # another thread has run in the midst of the step
        only_a()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        run_asyncio(profiled, exact, "A", work)
    finally:
        over.set()
        thread.join()
    found = calls_of(exact, "A")
    assert found["only_a"] == 1
    assert not {"foreign", "other"} & set(found)


def test_recursion_and_callers_are_as_in_cprofile(tmp_path: Path) -> None:
    """The same work under both: calls, primitive calls and callers are the same, and pstats reads both."""

    def work() -> None:
        for depth in (0, 2, 3):
            only_a(depth)
        only_b()

    recorder = CallRecorder()
    assert recorder.start() is None
    work()
    recorder.stop()
    profile = cProfile.Profile()
    profile.enable()
    work()
    profile.disable()
    exact = Profiles()
    request = exact.exact.request()
    request._recorder = recorder
    exact.exact.add("GET /", request)
    path = tmp_path / "out.pstats"
    exact_profile("GET /", profiles=exact).save(path)
    mine, theirs = pstats.Stats(str(path)).stats, pstats.Stats(profile).stats  # type: ignore[attr-defined]

    def counts(stats: dict[Any, Any]) -> dict[Any, Any]:
        return {
            (file, line, name.rpartition(".")[2]): (
                primitive,
                calls,
                {by[2].rpartition(".")[2]: known[:2] for by, known in callers.items()},
            )
            for (file, line, name), (primitive, calls, _, _, callers) in stats.items()
            if file == __file__ or "len" in name or "sorted" in name
        }

    assert counts(mine) == counts(theirs)
    for primitive, calls, own, cumulative, _callers in mine.values():
        assert calls >= primitive >= 1
        assert cumulative >= own >= 0


@pytest.mark.parametrize("suffix", [".speedscope.json", ".collapsed", ".html", ".pstats"])
def test_a_report_is_saved_in_each_form(run: Run, tmp_path: Path, suffix: str) -> None:
    profiles = Profiles()

    async def work() -> None:
        only_a()
        await checkpoint()

    async def main() -> None:
        for _ in range(2):
            await profiled(profiles.exact, "GET /a", work)

    run(main)
    report = exact_profile("GET /a", profiles=profiles)
    path = tmp_path / f"out{suffix}"
    report.save(path)
    assert b"only_a" in path.read_bytes()
    if suffix == ".speedscope.json":
        names = [profile["name"] for profile in json.loads(path.read_bytes())["profiles"]]
        assert len(names) == 3  # all requests, and each of the latest
    assert report.endpoints == ["GET /a"]
    assert any(row["function"] == "only_a" and row["calls"] == 2 for row in report.top(100))


def test_other_suffixes_and_arguments_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="suffix"):
        exact_profile(profiles=Profiles()).save("out.png")
    with pytest.raises(ConfigurationError, match="path"):
        exact_profile(profiles=Profiles()).save(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="endpoint"):
        exact_profile(5)  # type: ignore[arg-type]


def their_profiler() -> Iterator[Any]:
    """Somebody else's profiler: a function, a cProfile, and, from Python 3.12 on, what holds the id of profilers."""

    def theirs(*_event: Any) -> None:
        pass

    sys.setprofile(theirs)
    yield lambda: sys.getprofile() is theirs
    sys.setprofile(None)


def their_cprofile() -> Iterator[Any]:
    profile = cProfile.Profile()
    profile.enable()

    def is_on() -> bool:
        if sys.version_info >= (3, 12):
            return sys.monitoring.get_tool(sys.monitoring.PROFILER_ID) == "cProfile"
        return sys.getprofile() is profile

    yield is_on
    profile.disable()


@pytest.mark.parametrize("other", [their_profiler, their_cprofile])
def test_another_profiler_is_told_of_and_left_alone(
    run: Run, other: Callable[[], Iterator[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    exact = ExactProfiles(1 << 20)

    async def work() -> None:
        only_a()
        await checkpoint()

    async def main() -> None:
        profiler = other()
        is_on = next(profiler)
        try:
            for _ in range(2):
                await profiled(exact, "A", work)
            assert is_on()
        finally:
            next(profiler, None)
        await profiled(exact, "B", work)

    run(main)
    told = exact.statistics()
    assert list(told["endpoints"]) == ["B"]
    assert told["unavailable_requests"] == 2
    assert "another profiler is active" in told["unavailable"]
    assert len(caplog.records) == 1
    assert "another profiler" in caplog.text


def test_a_profiler_that_comes_within_a_request_stays(run: Run) -> None:
    """What was recorded of that request is not all, so it is not told."""
    exact = ExactProfiles(1 << 20)

    def theirs(*_event: Any) -> None:
        pass

    async def work() -> None:
        sys.setprofile(theirs)

    async def main() -> None:
        try:
            await profiled(exact, "A", work)
            assert sys.getprofile() is theirs
        finally:
            sys.setprofile(None)

    run(main)
    told = exact.statistics()
    assert told["endpoints"] == {}
    assert told["unavailable_requests"] == 1


def test_a_request_within_a_request_has_its_own(run: Run) -> None:
    """The outer one goes on where it was, with no call of the inner one, nor one twice."""
    exact = ExactProfiles(1 << 20)

    async def inner() -> None:
        only_b()
        await checkpoint()
        only_b()

    async def outer() -> None:
        only_a()
        before = current_account.get()
        await profiled(exact, "inner", inner)
        current_account.set(before)
        only_a()
        await checkpoint()
        only_a()

    run(profiled, exact, "outer", outer)
    of_outer, of_inner = calls_of(exact, "outer"), calls_of(exact, "inner")
    assert of_outer["only_a"] == 3
    assert "only_b" not in of_outer
    assert "inner" not in of_outer
    assert of_inner["only_b"] == 2
    assert not {"only_a", "outer"} & set(of_inner)


def test_time_after_a_request_within_a_request_is_that_of_the_outer_one() -> None:
    exact = ExactProfiles(1 << 20)
    outer, inner = exact.request(), exact.request()

    def work() -> None:
        account = DrivenAccount(Owner(), perf_counter_ns())
        account.observers = (inner,)

        async def only() -> None:
            only_b()

        account.begin(only())
        for _ in range(300_000):  # no call
            pass

    outer.start()
    work()
    outer.stop()
    exact.add("outer", outer)
    exact.add("inner", inner)
    (calls,) = exact.calls("outer").values()
    own = {line.function: figures.own_ns for line, figures in calls.by_function().items()}
    (worked,) = [ns for name, ns in own.items() if name.endswith("work")]
    assert worked > 1_000_000
    assert worked > 0.5 * sum(own.values())


def test_it_is_off_after_a_cancellation_and_an_error(run_asyncio: Run) -> None:
    exact = ExactProfiles(1 << 20)

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            only_a()

    async def fails() -> None:
        only_b()
        raise Trouble

    async def main() -> None:
        task = asyncio.ensure_future(profiled(exact, "cancelled", waits))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sys.getprofile() is None
        with pytest.raises(Trouble):
            await profiled(exact, "failed", fails)
        assert sys.getprofile() is None

    run_asyncio(main)
    assert calls_of(exact, "cancelled")["only_a"] == 1
    assert calls_of(exact, "failed")["only_b"] == 1


def test_what_is_thrown_in_is_found_in_the_tree(run_asyncio: Run) -> None:
    """A coroutine that goes on because an exception is thrown into it has what it calls then."""
    exact = ExactProfiles(1 << 20)

    async def waits(future: asyncio.Future[None]) -> None:
        try:
            await future
        finally:
            only_b()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_exception, Trouble())
        try:
            await waits(future)
        except Trouble:
            divmod(7, 2)

    run_asyncio(profiled, exact, "A", work)
    (calls,) = exact.calls("A").values()
    callers = [
        by.function.rpartition(".")[2]
        for function, known in calls.by_caller().items()
        for by in known
        if "divmod" in function.function and by is not None
    ]
    assert callers == ["work"]
    assert calls_of(exact, "A")["only_b"] == 1


def test_closed_in_another_thread_it_is_off_there(run: Run) -> None:
    """A garbage collection may end a coroutine anywhere."""
    exact = ExactProfiles(1 << 20)
    seen: list[Any] = []

    class Suspended:
        def __await__(self) -> Iterator[None]:
            yield

    async def work() -> None:
        try:
            await Suspended()
        finally:
            only_a()

    request = exact.request()
    account = DrivenAccount(Owner(), perf_counter_ns())
    account.observers = (request,)
    rest: Any = account.begin(work())

    def close() -> None:
        rest.close()
        seen.append(sys.getprofile())

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    exact.add("A", request)
    assert seen == [None]
    assert calls_of(exact, "A")["only_a"] == 1


def test_steps_and_brackets_within_each_other_are_as_one() -> None:
    exact = ExactProfiles(1 << 20)
    request = exact.request()
    account = DrivenAccount(Owner(), 0)
    request.start()
    request.step_started(account)
    only_a()
    request.step_ended(account, 0)
    only_a()
    request.stop()
    assert sys.getprofile() is None
    request.stop()
    only_a()
    exact.add("A", request)
    assert calls_of(exact, "A")["only_a"] == 2


def test_ended_in_the_midst_it_is_off() -> None:
    exact = ExactProfiles(1 << 20)
    request = exact.request()
    request.start()
    request.start()
    only_a()
    exact.add("A", request)
    assert sys.getprofile() is None
    request.stop()
    assert calls_of(exact, "A")["only_a"] == 1


def test_a_request_that_is_chosen_in_a_step_is_recorded_from_there_on(run: Run) -> None:
    """As where the middleware stands inside of another: what is around it is none of the request's."""
    profiles = Profiles()

    async def work(scope: Any, receive: Any, send: Any) -> None:
        only_a()
        await checkpoint()
        only_a()

    async def around(scope: Any, receive: Any, send: Any) -> None:
        only_b()
        await ProfilingMiddleware(work, profiles=profiles, exact=1)(scope, receive, send)
        assert sys.getprofile() is not None  # the step goes on
        await checkpoint()

    async def main() -> None:
        app = PerformanceMiddleware(around, registry=Registry())
        await app({"type": "http", "method": "GET", "path": "/", "headers": []}, None, None)

    run(main)
    assert sys.getprofile() is None
    found = calls_of(profiles.exact, "GET /")
    assert found["only_a"] == 2
    assert "only_b" not in found


def test_a_tree_has_a_bound_and_time_is_not_lost() -> None:
    """What has no room is counted, and its time is that of its caller."""
    request = RequestCalls(lambda _why: None, max_nodes=3)
    request.start()
    for _ in range(50):
        only_a(depth=10)
    request.stop()
    calls = request.end()
    assert calls is not None
    assert len(calls) <= 3
    assert calls.cut >= 50
    assert sum(calls.own_ns) > 0
    merged = PackedCalls()
    merged.merge(calls, max_nodes=1)
    assert len(merged) == 1
    assert sum(merged.own_ns) == sum(calls.own_ns)


def test_memory_is_bounded_and_the_latest_requests_go_first() -> None:
    exact = ExactProfiles(6000)
    for endpoint in range(30):
        for _ in range(7):
            request = exact.request()
            request.start()
            only_a(depth=3)
            only_b()
            request.stop()
            exact.add(f"GET /{endpoint}", request)
    told = exact.statistics()
    assert told["dropped_endpoints"] > 0
    assert "GET /29" in told["endpoints"]
    assert told["endpoints"]["GET /29"]["requests"] == 7
    assert sum(exact._shelf.read(lambda kept: kept.size).values()) <= 6000
    exact.resize(1 << 20)
    exact.clear()
    assert exact.statistics()["endpoints"] == {}


def test_of_an_endpoint_the_latest_requests_are_kept() -> None:
    exact = ExactProfiles(1 << 20)
    for times in range(1, 9):
        request = exact.request()
        request.start()
        for _ in range(times):
            only_a()
        request.stop()
        exact.add("A", request)
    counts = [
        figures.calls
        for calls in exact.latest("A")
        for line, figures in calls.by_function().items()
        if line.function == "only_a"
    ]
    assert counts == [4, 5, 6, 7, 8]
    assert calls_of(exact, "A")["only_a"] == 36


def test_in_the_stack_the_first_step_is_in_it_too(run: Run) -> None:
    profiles = Profiles()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        only_a()
        await send(START)
        await checkpoint()
        only_a()
        await send(BODY)

    async def main() -> None:
        kit = PerfKit(app, profiling={"profiles": profiles, "exact": lambda scope: True})

        async def receive() -> Any:
            raise AssertionError

        async def send(_message: Any) -> None:
            pass

        await kit(http_scope("/a"), receive, send)

    run(main)
    ((name, told),) = get_profile_stats(profiles=profiles)["exact"]["endpoints"].items()
    assert name == "GET /a"
    assert told["requests"] == 1
    top = exact_profile(profiles=profiles).top(1000)
    (row,) = [row for row in top if row["function"] == "only_a"]
    assert row["calls"] == 2


SECRET = "correct horse battery"


@pytest.mark.parametrize(
    ("headers", "chosen"),
    [
        ([(b"x-profile", SECRET.encode())], True),
        ([(b"X-Profile", SECRET.encode())], True),
        ([(b"x-profile", b"no"), (b"x-profile", SECRET.encode())], True),
        ([(b"x-profile", SECRET.encode() + b"x")], False),
        ([(b"x-other", SECRET.encode())], False),
        ([(b"x-profile", "ü".encode())], False),
        ([], False),
    ],
)
def test_a_header_with_the_secret_chooses(headers: Any, chosen: bool) -> None:
    choose = exact_by_header("X-Profile", SECRET)
    assert choose({"type": "http", "headers": headers}) is chosen
    assert not choose({"type": "http"})


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        (5, SECRET),
        ("", SECRET),
        ("x profile", SECRET),
        ("x-profile", 5),
        ("x-profile", "short"),
        ("x-profile", SECRET + "\n"),
        ("x-profile", SECRET + "\x00x"),
    ],
)
def test_a_header_or_secret_that_cannot_be_is_refused(name: Any, secret: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        exact_by_header(name, secret)
    assert SECRET not in str(caught.value)


def nothing(*event: Any) -> None:
    """A profiler of somebody else."""


def test_what_another_profiler_puts_back_is_over(run_asyncio: Run) -> None:
    """One that saves what is set and restores it, across awaits: behind the end of the request it harms nobody."""
    saved: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        saved.append(sys.getprofile())
        sys.setprofile(nothing)
        await checkpoint()

    async def main() -> None:
        profiles = Profiles()
        wrapped = ProfilingMiddleware(app, profiles=profiles, exact=1)
        await wrapped({"type": "http", "method": "GET", "path": "/", "headers": []}, None, None)
        assert sys.getprofile() is nothing  # which is theirs
        sys.setprofile(saved[0])
        try:
            assert only_a() == 1
            assert sys.getprofile() is None
        finally:
            sys.setprofile(None)
        assert profiles.failures == 0

    run_asyncio(main)


def test_a_class_that_answers_for_its_own_name(run: Run) -> None:
    """Whatever comes of asking for it, the handler does not see it."""

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            if name == "__qualname__":
                raise Trouble
            return super().__getattribute__(name)

    class Kind(metaclass=Meta):
        pass

    request = RequestCalls(lambda _why: None)
    request.start()
    mro = Kind.mro()
    request.stop()
    assert mro == [Kind, object]
    assert request.end() is not None
