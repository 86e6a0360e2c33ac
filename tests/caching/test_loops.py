"""One async function on several event loops: one after the other, at the same time, closed in the middle."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio
import uvloop

from asgi_perfkit import cached
from tests.conftest import EVERY_LOOP, Run
from tests.support import checkpoint
from tests.threads.gates import PATIENCE_SECONDS

NEW_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def test_a_value_made_on_one_loop_is_good_on_all() -> None:
    @cached(60)
    async def load() -> object:
        await checkpoint()
        return object()

    values = [run(load) for run in (*EVERY_LOOP.values(), *EVERY_LOOP.values())]
    assert {*values} == {values[0]}
    assert load.cache_info().misses == 1


def test_loops_at_the_same_time_make_a_call_each(run: Run) -> None:
    """The tasks of each share theirs; nobody waits for a call on another loop, which might never end."""
    meeting = threading.Barrier(len(EVERY_LOOP))
    calls: list[int] = []

    @cached(60)
    async def load() -> object:
        calls.append(threading.get_ident())
        # All loops are in their call now, and each blocks its own thread only.
        meeting.wait(PATIENCE_SECONDS)
        return object()

    async def ask() -> list[object]:
        return [await load() for _ in range(3)]

    with ThreadPoolExecutor(len(EVERY_LOOP)) as pool:
        futures = [pool.submit(each, ask) for each in EVERY_LOOP.values()]
        values = [future.result(PATIENCE_SECONDS) for future in futures]
    assert len(calls) == len({*calls}) == len(EVERY_LOOP)
    # The one that was kept last is what all get from then on.
    assert run(load) in [value for got in values for value in got]
    assert load.cache_info().size == 1
    assert len(calls) == len(EVERY_LOOP)


@pytest.mark.parametrize("waiter_first", [True, False])
@pytest.mark.parametrize("new_loop", NEW_LOOPS.values(), ids=NEW_LOOPS)
def test_a_loop_that_is_closed_in_the_middle_leaves_nothing(
    new_loop: Any, waiter_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """No warning about the call's task, which nobody knows of; the next loop does not wait for it."""
    ended: list[str] = []

    @cached(60)
    async def load(key: str = "") -> str:
        if not again:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append("closed")
        return "value"

    again = False

    async def ask() -> None:
        task: Any = asyncio.ensure_future(load())
        task._log_destroy_pending = False  # the warning about this one is right
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (call,) = asyncio.all_tasks() - {task, asyncio.current_task()}
        coros.extend([task.get_coro(), call.get_coro()])

    coros: list[Any] = []
    loop = new_loop()
    loop.run_until_complete(ask())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    # As the collector does, in no particular order.
    coros.pop(0 if waiter_first else 1).close()
    coros.pop().close()
    gc.collect()
    assert ended == ["closed"]
    assert gone() is None
    assert caplog.records == []
    again = True
    assert asyncio.run(load()) == "value"


def test_asyncio_run_ends_a_call_with_its_last_waiter(run_asyncio: Run) -> None:
    ended: list[str] = []

    @cached(60)
    async def load() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("cancelled")
        return "never"

    async def main() -> None:
        tasks.extend(asyncio.ensure_future(load()) for _ in range(3))
        for _ in range(3):
            await asyncio.sleep(0)

    tasks: list[asyncio.Future[str]] = []
    run_asyncio(main)
    assert ended == ["cancelled"]
    assert all(task.cancelled() for task in tasks)


def test_what_ends_the_process_ends_the_loop(run_asyncio: Run) -> None:
    @cached(60)
    async def stop() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_asyncio(stop)
    assert stop.cache_info().size == 0


def test_a_run_of_trio_ends_with_a_call_in_a_system_task() -> None:
    ended: list[str] = []

    @cached(60)
    async def load() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def main() -> None:
        trio.lowlevel.spawn_system_task(load)
        for _ in range(3):
            await trio.lowlevel.checkpoint()

    trio.run(main)
    assert ended == ["cancelled"]


def test_nothing_that_a_call_raises_crashes_trio() -> None:
    @cached(60)
    async def fail(error: BaseException) -> None:
        raise error

    async def main() -> None:
        for error in (ValueError(), SystemExit(), KeyboardInterrupt(), GeneratorExit()):
            with pytest.raises(type(error)) as caught:
                await fail(error)
            assert caught.value is error

    trio.run(main)


def test_trio_as_the_guest_of_asyncio() -> None:
    @cached(60)
    async def load(key: str) -> str:
        if key == "trio":
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)
        return key

    async def in_trio() -> str:
        return await load("trio")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            in_trio,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        assert await load("asyncio") == "asyncio"
        assert (await done).unwrap() == "trio"

    asyncio.run(main())
