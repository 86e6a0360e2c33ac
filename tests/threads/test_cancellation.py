"""What a cancellation does to a call, natively and by scopes, on every loop."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from asgi_perfkit import ThreadLimiter, run_in_threadpool
from tests.conftest import Run
from tests.support import Trouble, checkpoint
from tests.threads.conftest import Form
from tests.threads.gates import Gate, Signal, Task, spawn, turns


async def queued(limiter: ThreadLimiter, number: int) -> None:
    """Wait until so many wait for a token."""
    while limiter.statistics().tasks_waiting != number:
        await checkpoint()


def test_who_waits_for_a_token_leaves_at_once(form: Form, limiter: ThreadLimiter) -> None:
    """While the token is still taken; the function is never called, and who queued behind is next."""
    called: list[int] = []

    async def main() -> None:
        with Gate() as gate:
            first = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            second = form.spawn(lambda: run_in_threadpool(called.append, 2, limiter=limiter))
            await queued(limiter, 1)
            third = spawn(lambda: run_in_threadpool(called.append, 3, limiter=limiter))
            await queued(limiter, 2)
            second.cancel()
            await second.join()
            assert isinstance(second.error, form.cancelled)
            assert (gate.inside, limiter.borrowed_tokens) == (1, 1)
            assert limiter.statistics().tasks_waiting == 1
            gate.open()
            await first.result()
            await third.result()
            assert called == [3]

    form.run(main)


def test_who_is_cancelled_while_it_runs_learns_of_it_afterwards(
    form: Form, limiter: ThreadLimiter
) -> None:
    """The token stays taken until the function has returned, and nobody else gets in before that."""

    async def main() -> None:
        with Gate() as gate, Gate() as next_gate:
            task = form.spawn(lambda: then_checkpoint(gate, limiter))
            await gate.reached()
            other = spawn(lambda: run_in_threadpool(next_gate, limiter=limiter))
            await queued(limiter, 1)
            task.cancel()
            await turns()
            assert not task.ended.is_set()
            assert (gate.inside, next_gate.inside, limiter.borrowed_tokens) == (1, 0, 1)
            gate.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert gate.passed == 1
            next_gate.open()
            await other.result()

    form.run(main)


async def then_checkpoint(function: Any, limiter: ThreadLimiter) -> Any:
    """A call, and the checkpoint behind it at which trio raises a cancellation."""
    value = await run_in_threadpool(function, limiter=limiter)
    await checkpoint()
    return value


def test_on_trio_the_value_is_not_lost(limiter: ThreadLimiter, run_trio: Run) -> None:
    """A call that was made returns what it has to, and the cancellation is raised at the next checkpoint."""

    async def main() -> None:
        with Gate() as gate, trio.CancelScope() as scope:
            trio.lowlevel.spawn_system_task(cancel_and_open, gate, scope)
            assert await run_in_threadpool(gate, "value", limiter=limiter) == "value"
            assert scope.cancel_called
            await checkpoint()
        assert scope.cancelled_caught

    async def cancel_and_open(gate: Gate, scope: trio.CancelScope) -> None:
        await gate.reached()
        scope.cancel()
        gate.open()

    run_trio(main)


def test_to_cancel_again_changes_nothing(form: Form, limiter: ThreadLimiter) -> None:
    """A second and a third cancellation neither free the token nor wake the task."""

    async def main() -> None:
        with Gate() as gate:
            task = form.spawn(lambda: then_checkpoint(gate, limiter))
            await gate.reached()
            for _ in range(3):
                task.cancel()
                await turns()
                assert not task.ended.is_set()
                assert limiter.borrowed_tokens == 1
            gate.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert gate.passed == 1

    form.run(main)


def test_cancelled_twice_in_the_queue(form: Form, limiter: ThreadLimiter) -> None:
    """Who waits for a token leaves once."""

    async def main() -> None:
        with Gate() as gate:
            first = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            task = form.spawn(lambda: run_in_threadpool(int, limiter=limiter))
            await queued(limiter, 1)
            task.cancel()
            task.cancel()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert limiter.statistics().tasks_waiting == 0
            gate.open()
            await first.result()

    form.run(main)


def test_the_error_of_the_function_wins(asyncio_form: Form, limiter: ThreadLimiter) -> None:
    """It is raised in place of the cancellation, which is its context."""
    trouble = Trouble("after the cancellation")
    contexts = []

    async def call(gate: Gate) -> None:
        try:
            await run_in_threadpool(gate, trouble, limiter=limiter)
        except Trouble as error:
            contexts.append(error.__context__)  # to which `asyncio.timeout` adds its own
            raise

    async def main() -> None:
        with Gate() as gate:
            task = asyncio_form.spawn(lambda: call(gate))
            await gate.reached()
            task.cancel()
            await turns()
            task.cancel()
            await turns()
            gate.open()
            await task.join()
            assert task.error is trouble
            assert [type(context) for context in contexts] == [asyncio.CancelledError]
            assert trouble.__cause__ is None

    asyncio_form.run(main)


def test_the_error_of_the_function_wins_on_trio(limiter: ThreadLimiter, run_trio: Run) -> None:
    """There the cancellation has not been raised yet when it is, so it has no context."""
    trouble = Trouble("after the cancellation")

    async def main() -> None:
        with Gate() as gate:
            task = spawn(lambda: run_in_threadpool(gate, trouble, limiter=limiter))
            await gate.reached()
            task.cancel()
            await turns()
            gate.open()
            await task.join()
            assert task.error is trouble

    run_trio(main)


def test_the_context_that_an_error_has_is_kept(asyncio_form: Form, limiter: ThreadLimiter) -> None:
    """What the function was handling when it failed is not replaced by the cancellation."""

    def function(gate: Gate) -> None:
        try:
            raise Trouble("first")
        except Trouble:
            gate(Trouble("second"))

    async def main() -> None:
        with Gate() as gate:
            task = asyncio_form.spawn(lambda: run_in_threadpool(function, gate, limiter=limiter))
            await gate.reached()
            task.cancel()
            await turns()
            gate.open()
            await task.join()
            assert isinstance(task.error, Trouble)
            assert str(task.error) == "second"
            assert str(task.error.__context__) == "first"

    asyncio_form.run(main)


def test_who_is_cancelled_before_and_has_a_token_gives_it_back(
    form: Form, limiter: ThreadLimiter
) -> None:
    """A cancellation that comes in the same turn of the loop as the token loses neither."""

    async def main() -> None:
        for _ in range(20):
            gate = Gate()
            with gate:
                first = spawn(lambda gate=gate: run_in_threadpool(gate, limiter=limiter))
                await gate.reached()
                second = form.spawn(lambda: then_checkpoint(int, limiter))
                await queued(limiter, 1)
                gate.open()
                second.cancel()
                await first.result()
                await second.join()
                assert second.value == 0 or isinstance(second.error, form.cancelled)
            assert await run_in_threadpool(int, limiter=limiter) == 0
            assert limiter.borrowed_tokens == 0

    form.run(main)


def test_a_task_can_go_on_after_its_cancellation(form: Form, limiter: ThreadLimiter) -> None:
    """Who catches it makes further calls as ever, with nothing of the cancellation left (native), or in a shield."""
    values = []

    async def main() -> None:
        with Gate() as gate:

            async def stubborn() -> None:
                try:
                    await then_checkpoint(gate, limiter)
                finally:
                    with anyio.CancelScope(shield=True):
                        values.append(await run_in_threadpool(str, 1, limiter=limiter))
                        await checkpoint()
                        values.append(await run_in_threadpool(str, 2, limiter=limiter))

            task = form.spawn(stubborn)
            await gate.reached()
            task.cancel()
            await turns()
            gate.open()
            await task.join()
            assert isinstance(task.error, form.cancelled)
            assert values == ["1", "2"]

    form.run(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
def test_a_timeout_is_told_when_the_call_is_over(run_asyncio: Run, limiter: ThreadLimiter) -> None:
    """`asyncio.timeout` raises TimeoutError then, and leaves no cancellation behind it."""

    async def main() -> None:
        with Gate() as gate:
            opened = False

            def open_it() -> None:
                nonlocal opened
                opened = True
                gate.open()

            async def call() -> None:
                async with asyncio.timeout(0.005):
                    asyncio.get_running_loop().call_later(0.02, open_it)
                    await run_in_threadpool(gate, limiter=limiter)

            with pytest.raises(TimeoutError):
                await call()
            assert opened
            task: Any = asyncio.current_task()
            assert task.cancelling() == 0
            await run_in_threadpool(int, limiter=limiter)

    run_asyncio(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
@pytest.mark.parametrize("first", ["inner", "outer"])
def test_nested_timeouts(run_asyncio: Run, limiter: ThreadLimiter, first: str) -> None:
    """Both expire while the function runs, in either order: each does what it does without a thread."""

    async def main() -> None:
        with Gate() as gate:
            outer = asyncio.timeout(0.02 if first == "inner" else 0.005)
            inner = asyncio.timeout(0.005 if first == "inner" else 0.02)
            inner_raised = False

            async def call() -> None:
                nonlocal inner_raised
                async with outer:
                    asyncio.get_running_loop().call_later(0.04, gate.open)
                    try:
                        async with inner:
                            await run_in_threadpool(gate, limiter=limiter)
                    except TimeoutError:
                        inner_raised = True
                        raise

            with pytest.raises(TimeoutError):
                await call()
            assert outer.expired()
            assert inner.expired()
            assert not inner_raised  # it was the outer one's cancellation as well
            task: Any = asyncio.current_task()
            assert task.cancelling() == 0
            assert gate.passed == 1

    run_asyncio(main)


def test_wait_for_waits_for_the_call(run_asyncio: Run, limiter: ThreadLimiter) -> None:
    """`asyncio.wait_for` raises TimeoutError when the function has returned; in the queue, at once."""

    async def main() -> None:
        with Gate() as gate:
            loop = asyncio.get_running_loop()
            loop.call_later(0.02, gate.open)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(run_in_threadpool(gate, limiter=limiter), 0.005)
            assert gate.passed == 1
            assert limiter.borrowed_tokens == 0
        with Gate() as gate:
            task = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(run_in_threadpool(int, limiter=limiter), 0.005)
            assert gate.inside == 1
            gate.open()
            await task.result()

    run_asyncio(main)


def test_scopes_of_anyio_that_end_one_in_another(run: Run, limiter: ThreadLimiter) -> None:
    """The outer one is cancelled while the inner one's cancellation is held up: the outer one takes the task."""

    async def main() -> None:
        with Gate() as gate:
            scopes = []

            async def nested() -> None:
                with anyio.CancelScope() as outer:
                    with anyio.CancelScope() as inner:
                        scopes.extend([outer, inner])
                        await then_checkpoint(gate, limiter)
                    await anyio.lowlevel.checkpoint()
                    raise AssertionError("goes on inside of a cancelled scope")

            task = spawn(nested)
            await gate.reached()
            outer, inner = scopes
            inner.cancel()
            await turns()
            outer.cancel()
            await turns()
            assert not task.ended.is_set()
            gate.open()
            await task.result()
            assert outer.cancelled_caught
            assert gate.passed == 1

    run(main)


def test_a_scope_of_anyio_leaves_nothing_behind(run: Run, limiter: ThreadLimiter) -> None:
    """The task goes on behind it, and is not cancelled once more."""

    async def main() -> None:
        with Gate() as gate:
            scopes = []

            async def go_on() -> str:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    await then_checkpoint(gate, limiter)
                assert scope.cancelled_caught
                await turns()
                if asyncio._get_running_loop() is not None and sys.version_info >= (3, 11):
                    current: Any = asyncio.current_task()
                    assert current.cancelling() == 0
                return await run_in_threadpool(str, 1, limiter=limiter)

            task = spawn(go_on)
            await gate.reached()
            scopes[0].cancel()
            await turns()
            gate.open()
            assert await task.result() == "1"

    run(main)


def test_a_deadline_of_anyio(run: Run, limiter: ThreadLimiter) -> None:
    """`move_on_after` moves on when the function has returned; in the queue, at once."""

    async def main() -> None:
        with Gate() as gate:
            expired = Signal()

            async def open_when_expired() -> None:
                await expired.wait()
                await turns()
                gate.open()

            task = spawn(open_when_expired)
            with anyio.move_on_after(0.005) as scope:
                watcher = spawn(lambda: set_when_cancelled(scope, expired))
                await then_checkpoint(gate, limiter)
            assert scope.cancelled_caught
            assert gate.passed == 1
            await task.result()
            await watcher.result()
        with Gate() as gate:
            task = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            with anyio.move_on_after(0.005) as scope:
                await run_in_threadpool(int, limiter=limiter)
            assert scope.cancelled_caught
            assert gate.inside == 1
            gate.open()
            await task.result()

    async def set_when_cancelled(scope: anyio.CancelScope, expired: Signal) -> None:
        while not scope.cancel_called:
            await checkpoint()
        expired.set()

    run(main)


def test_a_native_cancellation_in_a_scope_of_anyio(
    run_asyncio: Run, limiter: ThreadLimiter
) -> None:
    """First the scope is cancelled and then the task, or the other way: neither frees the token."""

    async def main(scope_first: bool) -> None:
        with Gate() as gate:
            scopes = []

            async def inside() -> None:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    await then_checkpoint(gate, limiter)

            task = spawn(inside)
            await gate.reached()
            for cancel in [scopes[0].cancel, task.cancel][:: 1 if scope_first else -1]:
                cancel()
                await turns()
                assert not task.ended.is_set()
                assert limiter.borrowed_tokens == 1
            gate.open()
            await task.join()
            assert gate.passed == 1

    run_asyncio(main, True)
    run_asyncio(main, False)


def test_the_loop_sleeps_meanwhile(
    run_asyncio: Run, limiter: ThreadLimiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """anyio cancels a task again at each turn of the loop; while a call is waited for, it does not."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with Gate() as gate:
            task = scoped = None

            async def inside() -> None:
                nonlocal scoped
                with anyio.CancelScope() as scoped:
                    await then_checkpoint(gate, limiter)

            task = spawn(inside)
            await gate.reached()
            assert scoped is not None
            cancellations = 0
            deliver: Any = type(scoped)._deliver_cancellation  # type: ignore[attr-defined]

            def count(scope: anyio.CancelScope, origin: Any) -> Any:
                nonlocal cancellations
                cancellations += 1
                return deliver(scope, origin)

            monkeypatch.setattr(type(scoped), "_deliver_cancellation", count)
            scoped.cancel()
            waited: asyncio.Future[None] = loop.create_future()
            loop.call_later(0.05, waited.set_result, None)
            await waited
            assert cancellations <= 3
            gate.open()
            await task.result()
            assert scoped.cancelled_caught

    run_asyncio(main)


def test_a_loop_that_ends_waits_for_the_call(run_asyncio: Run, limiter: ThreadLimiter) -> None:
    """At its end the loop cancels all tasks that are left: each ends when its function has returned."""

    async def main(gate: Gate, ends: list[BaseException]) -> None:
        async def left_alone() -> None:
            try:
                await run_in_threadpool(gate, limiter=limiter)
            except asyncio.CancelledError as error:
                ends.append(error)
                raise

        holding.append(asyncio.ensure_future(left_alone()))
        await gate.reached()
        asyncio.get_running_loop().call_later(0.02, gate.open)

    holding: list[Any] = []
    ends: list[BaseException] = []
    with Gate() as gate:
        run_asyncio(main, gate, ends)
        assert gate.passed == 1
    assert len(ends) == 1


@pytest.mark.parametrize("total", [1, 3])
def test_a_thousand_cancellations_at_random(form: Form, limiter: ThreadLimiter, total: int) -> None:
    """The limit is never exceeded, each function that was begun ends, and all tokens are there in the end."""
    dice = random.Random(total)
    limiter.total_tokens = total
    gate = Gate()
    gate.open()

    async def cancelled_at_random() -> None:
        tasks: list[Task] = []
        for _ in range(20):
            tasks.append(form.spawn(lambda: then_checkpoint(gate, limiter)))
            for _ in range(dice.randrange(3)):
                await checkpoint()
            for _ in range(dice.randrange(3)):
                dice.choice(tasks).cancel()
        for task in tasks:
            await task.join()
            assert task.error is None or isinstance(task.error, form.cancelled)

    async def main() -> None:
        for _ in range(50):
            await cancelled_at_random()
        assert limiter.borrowed_tokens == 0
        assert gate.inside == 0

    form.run(main)
    assert gate.most <= total
    assert gate.passed == len(gate.threads) > 100
