"""A limiter against a plain model of one, in any order of events."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asgi_perfkit import ThreadLimiter
from asgi_perfkit.threads.limiter import CALL, ENTER, EXIT, INNER_CALL, INNER_ENTER

kinds = st.sampled_from([CALL, ENTER, INNER_CALL, INNER_ENTER, EXIT])
totals = st.integers(1, 4)
numbers = st.integers(0, 1000)


class Asker:
    """Asks for one token."""

    def __init__(self, kind: int, machine: LimiterMachine) -> None:
        self.kind = kind
        self._machine = machine

    def proceed(self) -> None:
        self._machine.told.append(self)


class LimiterMachine(RuleBasedStateMachine):
    """The model: who runs, who waits in the order of arrival, and the rules in words.

    :ivar told: who was told to proceed, since the last rule.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 1
        self.limiter = ThreadLimiter(1)
        self.running: list[Asker] = []
        self.waiting: list[Asker] = []
        self.told: list[Asker] = []
        self.seen = list(self.limiter._moves)  # how many moves there were at some time
        self.moved: set[int] = set()  # of which kinds something has moved since
        self.rescued = 0
        self.lowered = False  # whether there may be more plain calls than the limit

    # ---- the model's rules

    def count(self, *which: int) -> int:
        return sum(asker.kind in which for asker in self.running)

    def has_token(self, kind: int) -> bool:
        if kind == EXIT:
            return self.count(EXIT) < self.total
        if kind == INNER_CALL:
            return self.count(CALL, INNER_CALL) < self.total
        if kind == INNER_ENTER:
            return self.count(CALL, INNER_CALL, INNER_ENTER) < self.total
        return self.count(CALL, ENTER, INNER_CALL, INNER_ENTER) < self.total

    def admit_all(self) -> list[Asker]:
        """Who gets the tokens that have come free: one after the other the oldest of those for whom there is one."""
        admitted = []
        while able := [asker for asker in self.waiting if self.has_token(asker.kind)]:
            self.admit(able[0])
            admitted.append(able[0])
        return admitted

    def admit(self, asker: Asker) -> None:
        self.waiting.remove(asker)
        self.running.append(asker)

    # ---- what happens

    @rule(kind=kinds)
    def ask(self, kind: int) -> None:
        asker = Asker(kind, self)
        expected = self.has_token(kind)
        assert self.limiter._acquire(asker) == expected
        (self.running if expected else self.waiting).append(asker)

    @precondition(lambda self: self.running)
    @rule(number=numbers)
    def give_back(self, number: int) -> None:
        asker = self.running.pop(number % len(self.running))
        self.moved.add(asker.kind)
        assert list(self.limiter._release(asker.kind)) == self.admit_all()

    @precondition(lambda self: self.waiting)
    @rule(number=numbers)
    def leave(self, number: int) -> None:
        asker = self.waiting.pop(number % len(self.waiting))
        assert self.limiter._withdraw(asker)

    @precondition(lambda self: self.running)
    @rule(number=numbers)
    def leave_too_late(self, number: int) -> None:
        assert not self.limiter._withdraw(self.running[number % len(self.running)])

    @rule(total=totals)
    def resize(self, total: int) -> None:
        self.lowered |= total < self.total
        self.total = total
        self.limiter.total_tokens = total
        assert self.told == self.admit_all()
        self.told.clear()

    @rule()
    def look(self) -> None:
        self.seen = list(self.limiter._moves)
        self.moved.clear()

    @precondition(lambda self: any(asker.kind in {EXIT, INNER_ENTER} for asker in self.waiting))
    @rule(number=numbers)
    def rescue(self, number: int) -> None:
        able = [asker for asker in self.waiting if asker.kind in {EXIT, INNER_ENTER}]
        asker = able[number % len(able)]
        seen = self.seen[asker.kind]
        result = self.limiter._rescue(asker, seen)
        if asker.kind in self.moved:
            assert result not in {None, seen}
            assert self.told == []
        else:
            assert result is None
            assert self.told == [asker]
            self.told.clear()
            self.admit(asker)
            self.rescued += 1
            self.moved.add(asker.kind)

    # ---- what always holds

    @invariant()
    def tells_the_truth(self) -> None:
        stats = self.limiter.statistics()
        exits = self.count(EXIT)
        assert stats.total_tokens == self.total == self.limiter.total_tokens
        assert stats.borrowed_tokens == self.limiter.borrowed_tokens == len(self.running) - exits
        assert stats.exits == exits
        assert stats.tasks_waiting == len(self.waiting)
        assert stats.rescued == self.rescued
        assert self.told == []

    @invariant()
    def keeps_the_limit(self) -> None:
        plain = self.count(CALL, INNER_CALL)
        self.lowered = self.lowered and plain > self.total
        assert plain <= self.total or self.lowered

    @invariant()
    def leaves_no_token_lying(self) -> None:
        assert not any(self.has_token(asker.kind) for asker in self.waiting)

    def teardown(self) -> None:
        """All who have a token give it back, and all who wait get one: then nothing is left of them."""
        while self.running:
            self.give_back(0)
        assert self.waiting == []
        self.tells_the_truth()


TestLimiter = LimiterMachine.TestCase
TestLimiter.__doc__ = LimiterMachine.__doc__
TestLimiter.settings = hypothesis.settings(max_examples=150, stateful_step_count=40)
