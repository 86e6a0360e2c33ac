"""What `drive` charges to an account, whom it tells, and that it holds on to nothing."""

from __future__ import annotations

import weakref

import pytest

from asgi_perfkit.steps import DONE, Account, DrivenAccount
from tests.steps.charging import drive, new_account
from tests.support import Clock, Trouble, ask, finish, no_collector


def test_each_step_is_charged(clock: Clock) -> None:
    """Time inside of the steps is charged, time between them is not; the longest step is kept."""
    account = new_account()

    async def work() -> None:
        clock.advance(1)
        await ask(None)
        clock.advance(5)
        await ask(None)
        clock.advance(2)

    coro = drive(work(), account, clock())
    coro.send(None)
    assert (account.loop_ns, account.longest_ns) == (1e9, 1e9)
    clock.advance(100)
    coro.send(None)
    assert (account.loop_ns, account.longest_ns) == (6e9, 5e9)
    clock.advance(100)
    with pytest.raises(StopIteration):
        coro.send(None)
    assert (account.loop_ns, account.longest_ns) == (8e9, 5e9)


def test_the_first_step_begins_where_the_caller_says(clock: Clock) -> None:
    """What the caller did to make the work counts as part of its first step."""
    account = new_account()
    started_ns = clock()
    clock.advance(3)

    async def work() -> None:
        clock.advance(1)

    finish(drive(work(), account, started_ns))
    assert account.loop_ns == 4e9


def test_steps_that_are_thrown_into_or_fail_are_charged(clock: Clock) -> None:
    """A step counts that begins with an exception, and one that ends with one."""
    account = new_account()

    async def work() -> None:
        try:
            await ask(None)
        finally:
            clock.advance(2)

    coro = drive(work(), account, clock())
    coro.send(None)
    with pytest.raises(Trouble):
        coro.throw(Trouble())
    assert (account.loop_ns, account.longest_ns, account.stepping) == (2e9, 2e9, False)


def test_closing_is_charged(clock: Clock) -> None:
    """The cleanups that run when work is closed are a step too, also when they fail."""
    account = new_account()

    async def work() -> None:
        try:
            await ask(None)
        finally:
            clock.advance(2)
            raise Trouble

    coro = drive(work(), account, clock())
    coro.send(None)
    with pytest.raises(Trouble):
        coro.close()
    assert (account.loop_ns, account.longest_ns, account.stepping) == (2e9, 2e9, False)


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self, name: str, log: list[object], clock: Clock | None = None) -> None:
        self.name = name
        self.log = log
        self.clock = clock

    def step_started(self, account: Account) -> None:
        if self.clock is not None:
            self.clock.advance(10)
        self.log.append(f"{self.name} started")

    def step_ended(self, account: Account, duration_ns: int) -> None:
        if self.clock is not None:
            self.clock.advance(10)
        self.log.append(f"{self.name} ended {duration_ns / 1e9:g}")


def test_observers_are_told_of_each_step_in_order(clock: Clock) -> None:
    """Every observer hears of the beginning and end of each step; their own time is not charged."""
    account = new_account()
    log: list[object] = []
    for name in "a", "b":
        account.join(Recorder(name, log, clock))

    async def work() -> None:
        log.append("work")
        clock.advance(1)
        await ask(None)
        log.append("work")
        clock.advance(2)

    coro = drive(work(), account, clock())
    coro.send(None)
    finish(coro)
    assert log == [
        *("a started", "b started", "work", "a ended 1", "b ended 1"),
        *("a started", "b started", "work", "a ended 2", "b ended 2"),
    ]
    assert account.loop_ns == 3e9


def test_observers_are_told_when_the_work_is_closed(clock: Clock) -> None:
    """The step in which work is closed is announced as any other."""
    account = new_account()
    log: list[object] = []
    account.join(Recorder("a", log))

    async def work() -> None:
        try:
            await ask(None)
        finally:
            log.append("closing")

    coro = drive(work(), account, clock())
    coro.send(None)
    coro.close()
    assert log == ["a started", "a ended 0", "a started", "closing", "a ended 0"]


def test_an_observer_that_joins_in_a_step_is_told_of_that(clock: Clock) -> None:
    """At once of its beginning, and then of its end; one that joins between two steps, of the next."""
    account = new_account()
    log: list[object] = []

    async def work() -> None:
        clock.advance(1)
        account.join(Recorder("a", log))
        clock.advance(1)
        await ask(None)
        log.append("work")

    coro = drive(work(), account, clock())
    coro.send(None)
    assert log == ["a started", "a ended 2"]
    account.join(Recorder("b", log))
    assert log == ["a started", "a ended 2"]
    finish(coro)
    assert log[2:] == ["a started", "b started", "work", "a ended 0", "b ended 0"]


def test_a_step_is_marked_while_it_runs() -> None:
    """`stepping` is true inside of a step and false outside."""
    account = new_account()
    inside = []

    async def work() -> None:
        inside.append(account.stepping)
        await ask(None)
        inside.append(account.stepping)

    assert not account.stepping
    coro = drive(work(), account, 0)
    coro.send(None)
    assert not account.stepping
    finish(coro)
    assert not account.stepping
    assert inside == [True, True]


def test_work_that_never_waits_leaves_nothing_to_await(clock: Clock) -> None:
    """It has run when `begin` returns; what is returned may be awaited all the same."""
    account = new_account()
    account.started_ns = clock()

    async def work() -> None:
        clock.advance(1)

    async def main() -> None:
        rest = account.begin(work())
        assert (rest is DONE, account.loop_ns) == (True, 1e9)
        assert await rest is None

    finish(main())
    assert account.loop_ns == 1e9


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("ending", ["returned", "raised", "thrown", "closed"])
def test_the_owner_is_told_once_of_the_end(ending: str, steps: int) -> None:
    """Behind the last step, before anybody else learns of the end; with the very exception."""
    told: list[tuple[object, object, object]] = []

    class Owner:
        def work_ended(self, account: DrivenAccount, error: BaseException | None) -> None:
            told.append((account, error, account.stepping))

    async def work() -> None:
        if steps == 2:
            await ask(None)
        if ending == "returned":
            return
        if ending == "raised":
            raise error
        await ask(None)

    error = Trouble()
    account = DrivenAccount(Owner(), 0)
    coro = drive(work(), account, 0)
    if ending in ("thrown", "closed") or steps == 2:
        coro.send(None)
        assert told == []
    if ending == "returned":
        finish(coro)
        assert told == [(account, None, False)]
    elif ending == "raised":
        with pytest.raises(Trouble):
            coro.send(None)
        assert told == [(account, error, False)]
    elif ending == "thrown":
        with pytest.raises(Trouble):
            coro.throw(error)
        assert told == [(account, error, False)]
    else:
        coro.close()
        ((ended, closing, stepping),) = told
        assert (ended, type(closing), stepping) == (account, GeneratorExit, False)


# References


class Thing:
    """Something that can be seen to be freed."""


@pytest.mark.parametrize("ending", ["returned", "raised", "thrown", "closed", "dropped"])
def test_nothing_is_left_of_driven_work(ending: str) -> None:
    """However work ends, no cycle keeps its account, its locals or its result alive."""

    def one() -> list[weakref.ref[object]]:
        account, thing, result = new_account(), Thing(), Thing()
        traces = [weakref.ref(account), weakref.ref(thing), weakref.ref(result)]

        async def work(local: Thing, result: Thing) -> Thing:
            await ask(result)
            if ending == "raised":
                raise Trouble
            await ask(None)
            return result

        coro = drive(work(thing, result), account, 0)
        coro.send(None)
        if ending == "returned":
            coro.send(None)
            finish(coro)
        elif ending == "raised":
            with pytest.raises(Trouble):
                coro.send(None)
        elif ending == "thrown":
            with pytest.raises(Trouble):
                coro.throw(Trouble())
        elif ending == "closed":
            coro.close()
        return traces

    with no_collector():
        assert [trace() for trace in one()] == [None, None, None]


def test_what_was_yielded_and_sent_in_is_let_go(clock: Clock) -> None:
    """While the work waits, neither what it yielded before nor what it was sent is held."""

    async def work() -> None:
        await ask(Thing())
        await ask(None)

    coro = drive(work(), new_account(), 0)
    with no_collector():
        yielded = weakref.ref(coro.send(None))
        assert yielded() is not None
        thing = Thing()
        sent = weakref.ref(thing)
        coro.send(thing)
        del thing
        assert yielded() is None
        assert sent() is None
    coro.close()


def test_what_was_yielded_is_let_go_before_the_next_step() -> None:
    """A future that holds a large result is not kept while the work goes on with that."""
    traces = []
    alive = []

    def thing() -> Thing:
        made = Thing()
        traces.append(weakref.ref(made))
        return made

    async def work() -> None:
        await ask(thing())
        alive.append(traces[0]())

    coro = drive(work(), new_account(), 0)
    with no_collector():
        coro.send(None)
        finish(coro)
    assert alive == [None]


def test_what_was_thrown_in_and_handled_is_let_go() -> None:
    """While the work waits again, an exception that it has handled is not held, nor are its frames."""

    async def work() -> None:
        try:
            await ask(None)
        except Trouble:
            pass
        await ask(None)

    coro = drive(work(), new_account(), 0)
    coro.send(None)
    with no_collector():
        error = Trouble()
        trace = weakref.ref(error)
        coro.throw(error)
        del error
        assert trace() is None
    coro.close()
