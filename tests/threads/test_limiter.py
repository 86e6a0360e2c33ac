"""Who may be in a worker thread, and who is next."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asgi_perfkit import ThreadLimiter, default_limiter, run_in_threadpool
from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.threads.limiter import CALL, ENTER, EXIT, INNER_CALL, INNER_ENTER
from tests.conftest import EVERY_LOOP, Run
from tests.support import checkpoint
from tests.threads.gates import Gate, Signal, spawn

KINDS = [CALL, ENTER, INNER_CALL, INNER_ENTER, EXIT]


class Asker:
    """Asks for a token, and notes when it is given one that it had to wait for."""

    def __init__(self, kind: int = CALL) -> None:
        self.kind = kind
        self.proceeded = 0

    def proceed(self) -> None:
        self.proceeded += 1


def ask(limiter: ThreadLimiter, *kinds: int) -> list[Asker]:
    """Ask for a token of each kind; all of them have to wait."""
    askers = [Asker(kind) for kind in kinds]
    assert [limiter._acquire(asker) for asker in askers] == [False] * len(askers)
    return askers


def take(limiter: ThreadLimiter, *kinds: int) -> None:
    """Take a token of each kind, which there is."""
    assert all(limiter._acquire(Asker(kind)) for kind in kinds)


def give_back(limiter: ThreadLimiter, *kinds: int) -> list[Any]:
    """Give tokens back; who gets each of them."""
    admitted = [limiter._release(kind) for kind in kinds]
    assert all(len(askers) <= 1 for askers in admitted)
    return [next(iter(askers), None) for askers in admitted]


@pytest.mark.parametrize("total", [0, -1, True, False, 1.0, 1.5, float("inf"), "4", None])
def test_a_limit_is_a_whole_number_from_one_on(total: Any) -> None:
    """Anything else is refused at construction and when it is set, and changes nothing."""
    with pytest.raises(ConfigurationValueError, match=r"total_tokens\) got .*whole number from 1"):
        ThreadLimiter(total)
    limiter = ThreadLimiter(3)
    with pytest.raises(ValueError, match="whole number"):
        limiter.total_tokens = total
    assert limiter.total_tokens == 3


@pytest.mark.parametrize("name", ["before", "after"])
def test_a_hook_is_callable(name: str) -> None:
    """Anything else is refused, by its name."""
    with pytest.raises(ConfigurationTypeError, match=rf"{name}=\.\.\.\) got 'close'"):
        ThreadLimiter(1, **{name: "close"})  # type: ignore[arg-type]


def test_the_default_limiter_is_one_of_forty_tokens() -> None:
    """There is one for the whole process."""
    assert default_limiter() is default_limiter()
    assert default_limiter().total_tokens == 40


def test_statistics_are_of_one_moment() -> None:
    """What they tell does not change with the limiter, nor by hand."""
    limiter = ThreadLimiter(1)
    take(limiter, CALL, EXIT)
    ask(limiter, CALL, ENTER, EXIT)
    stats = limiter.statistics()
    expected = {
        "total_tokens": 1,
        "borrowed_tokens": 1,
        "tasks_waiting": 3,
        "exits": 1,
        "rescued": 0,
    }
    assert dataclasses.asdict(stats) == expected
    give_back(limiter, EXIT)
    limiter.total_tokens = 9
    assert dataclasses.asdict(stats) == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.exits = 5  # type: ignore[misc]


def test_its_repr_tells_how_it_stands() -> None:
    """One sees in a debugger how many tokens are taken."""
    limiter = ThreadLimiter(2)
    take(limiter, CALL)
    assert repr(limiter) == "<ThreadLimiter 1 of 2 tokens borrowed>"


def test_a_token_is_never_free_between_two_holders() -> None:
    """It goes to the next in one step: somebody new who comes in between has to wait."""
    limiter = ThreadLimiter(1)
    take(limiter, CALL)
    (first,) = ask(limiter, CALL)
    assert give_back(limiter, CALL) == [first]
    assert limiter.borrowed_tokens == 1
    (second,) = ask(limiter, CALL)
    assert give_back(limiter, CALL, CALL) == [second, None]
    assert limiter.borrowed_tokens == 0
    assert (first.proceeded, second.proceeded) == (0, 0)  # that is for who gave the token back


def test_calls_and_enters_queue_together() -> None:
    """The first to come is the first to be served, whichever of the two it is."""
    limiter = ThreadLimiter(1)
    take(limiter, CALL)
    askers = ask(limiter, ENTER, CALL, CALL, ENTER)
    assert give_back(limiter, CALL, ENTER, CALL, CALL, ENTER) == [*askers, None]


def test_an_exit_does_not_queue_behind_calls_and_enters() -> None:
    """There are as many tokens for exits as for all others."""
    limiter = ThreadLimiter(2)
    take(limiter, CALL, ENTER)
    ask(limiter, CALL, ENTER)
    take(limiter, EXIT, EXIT)
    stats = limiter.statistics()
    assert (stats.borrowed_tokens, stats.exits, stats.tasks_waiting) == (2, 2, 2)


def test_exits_have_a_limit_too() -> None:
    """A mass of exits does not start a mass of threads; they queue among themselves."""
    limiter = ThreadLimiter(2)
    take(limiter, EXIT, EXIT)
    first, second = ask(limiter, EXIT, EXIT)
    take(limiter, CALL)
    assert give_back(limiter, CALL, EXIT, EXIT) == [None, first, second]


@pytest.mark.parametrize("enter", [ENTER, INNER_ENTER])
def test_a_call_from_inside_a_manager_does_not_queue_behind_enters(enter: int) -> None:
    """Those may wait for what it holds; so it runs beside them, as many as there are tokens, and no more."""
    limiter = ThreadLimiter(2)
    take(limiter, enter, enter)
    take(limiter, INNER_CALL, INNER_CALL)
    (third,) = ask(limiter, INNER_CALL)
    assert limiter.borrowed_tokens == 4
    assert give_back(limiter, INNER_CALL) == [third]


def test_an_enter_from_inside_a_manager_does_not_queue_behind_outer_enters() -> None:
    """Those may wait for what it holds; beside them there are as many such enters as tokens, and no more."""
    limiter = ThreadLimiter(2)
    take(limiter, ENTER, ENTER)
    take(limiter, INNER_ENTER, INNER_ENTER)
    (third,) = ask(limiter, INNER_ENTER)
    take(limiter, INNER_CALL)  # which could be what an enter waits for
    assert give_back(limiter, ENTER, INNER_CALL, INNER_ENTER) == [None, None, third]


def test_an_enter_from_inside_a_manager_waits_for_calls() -> None:
    """Calls end by themselves."""
    limiter = ThreadLimiter(1)
    take(limiter, CALL)
    (inner,) = ask(limiter, INNER_ENTER)
    assert give_back(limiter, CALL) == [inner]


def test_a_call_from_inside_a_manager_waits_for_calls() -> None:
    """Other calls end by themselves."""
    limiter = ThreadLimiter(1)
    take(limiter, CALL)
    (inner,) = ask(limiter, INNER_CALL)
    assert give_back(limiter, CALL) == [inner]


def test_who_is_inside_a_manager_does_not_go_ahead_of_others() -> None:
    """Many calls in the body of one manager do not keep those from elsewhere waiting: who came first is first."""
    limiter = ThreadLimiter(1)
    take(limiter, CALL)
    inner, outer, later = ask(limiter, INNER_CALL, CALL, INNER_CALL)
    assert give_back(limiter, CALL, INNER_CALL, CALL) == [inner, outer, later]


def test_a_token_for_an_enter_is_one_for_who_is_inside_a_manager_too() -> None:
    """Beside an enter that runs, an enter and a call from inside of managers may run as well."""
    limiter = ThreadLimiter(1)
    take(limiter, CALL)
    call, *others = ask(limiter, CALL, ENTER, INNER_ENTER, INNER_CALL)
    assert give_back(limiter, CALL) == [call]
    assert limiter._release(CALL) == others


def test_a_token_beyond_the_limit_is_not_handed_on() -> None:
    """What calls from inside of managers took beside enters is not there for others afterwards."""
    limiter = ThreadLimiter(1)
    take(limiter, ENTER, INNER_CALL)
    (call,) = ask(limiter, CALL)
    assert give_back(limiter, INNER_CALL) == [None]
    assert give_back(limiter, ENTER) == [call]


@pytest.mark.parametrize("kind", KINDS)
def test_who_leaves_the_queue_gets_no_token(kind: int) -> None:
    """The next gets it in his place; who is in the queue no more cannot leave it."""
    limiter = ThreadLimiter(1)
    take(limiter, EXIT if kind == EXIT else CALL)
    first, second = ask(limiter, kind, kind)
    assert limiter._withdraw(first)
    assert not limiter._withdraw(first)
    assert limiter.statistics().tasks_waiting == 1
    assert give_back(limiter, EXIT if kind == EXIT else CALL) == [second]
    assert not limiter._withdraw(second)
    assert limiter.statistics().tasks_waiting == 0


def test_raising_the_limit_lets_in_who_waits() -> None:
    """As many as there are new tokens, in their order; they are told so."""
    limiter = ThreadLimiter(1)
    take(limiter, CALL, EXIT)
    askers = ask(limiter, CALL, EXIT, CALL, CALL, EXIT, EXIT)
    limiter.total_tokens = 3
    assert [asker.proceeded for asker in askers] == [1, 1, 1, 0, 1, 0]
    stats = limiter.statistics()
    assert (stats.borrowed_tokens, stats.exits, stats.tasks_waiting) == (3, 3, 2)


def test_lowering_the_limit_stops_nobody() -> None:
    """Who runs goes on; a token that is given back is gone until there are fewer than the limit."""
    limiter = ThreadLimiter(3)
    take(limiter, CALL, CALL, CALL)
    (waiter,) = ask(limiter, CALL)
    limiter.total_tokens = 1
    assert limiter.borrowed_tokens == 3
    assert give_back(limiter, CALL, CALL, CALL) == [None, None, waiter]


@pytest.mark.parametrize("kind", [EXIT, INNER_ENTER])
def test_who_could_be_waited_for_is_let_in_when_nothing_moves(kind: int) -> None:
    """It gets a token beyond the limit, is told so, and is counted."""
    limiter = ThreadLimiter(1)
    take(limiter, kind)
    first, second = ask(limiter, kind, kind)
    assert limiter._rescue(first, limiter._moves[first.kind]) is None
    assert (first.proceeded, second.proceeded) == (1, 0)
    stats = limiter.statistics()
    assert stats.rescued == 1
    assert stats.borrowed_tokens + stats.exits == 2
    assert stats.tasks_waiting == 1


def test_nobody_is_let_in_beyond_the_limit_while_something_moves() -> None:
    """A token that was given back, or one who was let in, since the last look: wait for as long again."""
    limiter = ThreadLimiter(2)
    take(limiter, EXIT, EXIT)
    seen = limiter._moves[EXIT]
    first, second, third = ask(limiter, EXIT, EXIT, EXIT)
    assert give_back(limiter, EXIT) == [first]
    moved = limiter._rescue(second, seen)
    assert moved is not None
    assert moved != seen
    assert second.proceeded == 0
    assert limiter._rescue(second, moved) is None
    assert limiter._rescue(third, moved) not in {None, moved}  # one at a time
    assert third.proceeded == 0


@pytest.mark.parametrize("kind", [EXIT, INNER_ENTER])
def test_what_others_do_does_not_keep_anybody_waiting(kind: int) -> None:
    """Only who could be waited for counts: ordinary traffic goes on while all exits wait for the one in the queue."""
    limiter = ThreadLimiter(1)
    take(limiter, kind)
    (waiting,) = ask(limiter, kind)
    seen = limiter._moves[kind]
    if kind == EXIT:
        take(limiter, CALL)
        give_back(limiter, CALL)
    take(limiter, INNER_CALL)
    give_back(limiter, INNER_CALL)
    assert limiter._rescue(waiting, seen) is None
    assert waiting.proceeded == 1


def test_who_waits_no_more_is_not_let_in() -> None:
    """Neither who has his token by now, nor who has left."""
    limiter = ThreadLimiter(1)
    take(limiter, EXIT)
    first, second = ask(limiter, EXIT, EXIT)
    limiter._release(EXIT)
    limiter._withdraw(second)
    assert limiter._rescue(first, limiter._moves[first.kind]) is None
    assert limiter._rescue(second, limiter._moves[second.kind]) is None
    assert (first.proceeded, second.proceeded) == (0, 0)
    assert limiter.statistics().rescued == 0


def test_calls_run_in_the_order_they_came(run: Run, limiter: ThreadLimiter) -> None:
    """With one token, first come is first served, on every loop."""
    order: list[int] = []

    async def main() -> None:
        with Gate() as gate:
            first = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            others = []
            for number in range(20):
                others.append(
                    spawn(
                        lambda number=number: run_in_threadpool(
                            order.append, number, limiter=limiter
                        )
                    )
                )
                while limiter.statistics().tasks_waiting != number + 1:
                    await checkpoint()
            gate.open()
            for task in [first, *others]:
                await task.result()

    run(main)
    assert order == list(range(20))


def test_as_many_calls_run_at_once_as_there_are_tokens(run: Run, limiter: ThreadLimiter) -> None:
    """Not one more, and not one less; raising the limit starts more at once, lowering it lets them all end."""
    limiter.total_tokens = 3

    async def main() -> None:
        with Gate() as gate:
            tasks = [spawn(lambda: run_in_threadpool(gate, limiter=limiter)) for _ in range(12)]
            await gate.reached(3)
            while limiter.statistics().tasks_waiting != 9:
                await checkpoint()
            assert (gate.inside, limiter.borrowed_tokens) == (3, 3)
            limiter.total_tokens = 7
            await gate.reached(7)
            assert (gate.inside, limiter.borrowed_tokens) == (7, 7)
            limiter.total_tokens = 1
            assert (gate.inside, limiter.borrowed_tokens) == (7, 7)
            gate.open()
            for task in tasks:
                await task.result()
            assert gate.most == 7
            assert gate.passed == 12

    run(main)


def test_a_limit_that_was_lowered_holds(run: Run, limiter: ThreadLimiter) -> None:
    """Once those that ran have ended, no more than the new number run."""
    limiter.total_tokens = 4

    async def main() -> None:
        with Gate() as gate, Gate() as later:
            tasks = [spawn(lambda: run_in_threadpool(gate, limiter=limiter)) for _ in range(4)]
            await gate.reached(4)
            limiter.total_tokens = 2
            tasks += [spawn(lambda: run_in_threadpool(later, limiter=limiter)) for _ in range(6)]
            while limiter.statistics().tasks_waiting != 6:
                await checkpoint()
            gate.open()
            await later.reached(2)
            for task in tasks[:4]:
                await task.result()
            assert (later.inside, limiter.borrowed_tokens) == (2, 2)
            later.open()
            for task in tasks:
                await task.result()
            assert later.most == 2

    run(main)


@pytest.mark.parametrize("other", EVERY_LOOP.values(), ids=EVERY_LOOP)
def test_one_limiter_serves_several_loops(run: Run, other: Run, limiter: ThreadLimiter) -> None:
    """The limit holds for all together, and a token goes from a call on one loop to one on another."""
    first_is_in = Signal()
    gate = Gate()
    threads: list[Any] = []

    async def one() -> None:
        task = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
        await gate.reached()
        first_is_in.set()
        await task.result()

    async def two() -> None:
        await first_is_in.wait()
        task = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
        while limiter.statistics().tasks_waiting != 1:
            await checkpoint()
        assert gate.inside == 1
        gate.open()
        await task.result()

    def in_thread(loop: Callable[..., Any], main: Any) -> None:
        try:
            loop(main)
        except BaseException as error:
            threads.append(error)

    with gate:
        thread = threading.Thread(target=in_thread, args=(other, one))
        thread.start()
        run(two)
        thread.join()
    assert threads == []
    assert (gate.passed, gate.most) == (2, 1)


def test_a_coroutine_that_is_dropped_leaves_the_queue(
    run_asyncio: Run, limiter: ThreadLimiter
) -> None:
    """A coroutine that waits for a token and that nobody runs any more takes none, and its function is not called."""
    called = []

    async def main() -> None:
        with Gate() as gate:
            task = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            dropped = run_in_threadpool(called.append, 1, limiter=limiter)
            dropped.send(None)
            assert limiter.statistics().tasks_waiting == 1
            dropped.close()
            assert limiter.statistics().tasks_waiting == 0
            gate.open()
            await task.result()
            assert limiter.borrowed_tokens == 0

    run_asyncio(main)
    assert called == []


def test_a_garbage_collection_may_come_while_a_limiter_is_locked(limiter: ThreadLimiter) -> None:
    """What it frees leaves the queue, in the thread that holds the lock: that must not wait for itself."""

    async def main() -> None:
        with Gate() as gate:
            task = spawn(lambda: run_in_threadpool(gate, limiter=limiter))
            await gate.reached()
            dropped: Any = [run_in_threadpool(int, limiter=limiter)]
            dropped[0].send(None)
            dropped.append(dropped)
            del dropped  # now it is in a cycle
            with limiter._lock:
                gc.collect()
            assert limiter.statistics().tasks_waiting == 0
            gate.open()
            await task.result()

    asyncio.run(main())
