"""What is observed reaches whoever keeps it: before, at and after the end of the work."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence

import pytest

from asgi_perfkit.steps import Account


class Late:
    """Keeps what is observed when the work is over."""

    def __init__(self) -> None:
        self.observed: list[tuple[str, int]] = []

    def observe_late(self, metric: str, value: int) -> None:
        self.observed.append((metric, value))

    def observe_many(self, metric: str, values: Sequence[int]) -> None:
        self.observed += [(metric, value) for value in values]


def observe_as_many(account: Account, metric: str, value: int) -> None:
    account.observe_many(metric, [value])


def test_observations_are_kept_until_they_are_taken() -> None:
    """Taking empties the account."""
    account = Account()
    account.observe("a", 1)
    account.observe("b", 2)
    assert sorted(account.take_observations()) == [("a", 1), ("b", 2)]
    assert account.take_observations() == []


def test_another_thread_may_take_the_last_observation() -> None:
    """Who finds the last observation gone between looking and taking has taken all there was."""

    class Raced(list):  # type: ignore[type-arg]
        def pop(self, index: int = -1) -> tuple[str, int]:
            if len(self) == 1:
                self.clear()
            return super().pop(index)

    account = Account()
    account.observations = Raced([("a", 1), ("b", 2)])
    assert account.take_observations() == [("b", 2)]


def test_what_is_observed_late_is_handed_over() -> None:
    """From the end of the work on, each observation goes where `end` says, what was left behind as well."""
    account = Account()
    late = Late()
    account.observe("left", 1)
    account.end(late)
    assert account.closed
    account.observe("late", 2)
    assert late.observed == [("left", 1), ("late", 2)]
    assert account.take_observations() == []


def test_what_is_observed_late_may_go_nowhere() -> None:
    """Without anybody to take it, a late observation is dropped, not kept."""
    account = Account()
    account.observe("left", 1)
    account.end(None)
    account.observe("late", 2)
    assert account.take_observations() == []


@pytest.mark.parametrize("observe", [Account.observe, observe_as_many])
@pytest.mark.parametrize("levels", [1, 2])
def test_what_outlives_an_account_that_nobody_records_holds_none_around(
    observe: Callable[[Account, str, int], None], levels: int
) -> None:
    """It observes for the account around; when that has ended, too, for who takes what is late there."""
    late = Late()
    outermost = account = Account()
    accounts = weakref.WeakSet([outermost])
    for _ in range(levels):
        inner = Account()
        inner.parent = account
        accounts.add(inner)
        account = inner
    lasting = []
    while account.parent is not None:
        around = account.parent
        observe(account, "open", 1)
        account.end(None)
        lasting.append(account.outlasting())
        observe(account, "ended", 2)
        observe(lasting[-1], "lasting", 3)
        account = around
    observed = [("open", 1), ("ended", 2), ("lasting", 3)] * levels
    assert outermost.take_observations() == observed
    outermost.observe("left", 4)
    outermost.end(late)
    assert outermost.outlasting() is outermost.outlasting()
    del account, around, inner, outermost
    assert not accounts
    for account in lasting:
        observe(account, "late", 5)
    assert late.observed == [("left", 4), *[("late", 5)] * levels]


def test_one_that_ends_behind_that_around_it_leaves_its_observations_there() -> None:
    """And what stands in for that stays the same."""
    late = Late()
    outer, inner = Account(), Account()
    inner.parent = outer
    outer.end(late)
    lasting = outer.outlasting()
    inner.observe("left", 1)
    inner.end(None)
    inner.outlasting().observe("late", 2)
    assert late.observed == [("left", 1), ("late", 2)]
    assert outer.outlasting() is lasting


def test_before_its_end_nothing_stands_in_for_an_account() -> None:
    """Nor while it is being ended: its late observations have nowhere to go yet."""
    account = Account()
    assert account.outlasting() is account
    account.closed = True
    assert account.outlasting() is account
    account.end(None)
    assert account.outlasting() is not account


def test_work_that_observes_much_is_relieved() -> None:
    """Work that goes on for long does not pile up what it observes: `condense` takes it away, and loses nothing."""
    taken: list[tuple[str, int]] = []

    class Condensing(Account):
        def condense(self) -> None:
            taken.extend(self.take_observations())

    account = Condensing()
    most = 0
    for number in range(10_000):
        account.observe("a", number)
        most = max(most, len(account.observations))
    assert most < 1000
    assert sorted(taken + account.take_observations()) == [
        ("a", number) for number in range(10_000)
    ]


def test_an_account_that_condenses_nothing_keeps_everything() -> None:
    """An account by itself loses nothing, however much there is."""
    account = Account()
    for number in range(1000):
        account.observe("a", number)
    assert len(account.take_observations()) == 1000


def test_the_lineage_of_an_account_is_what_is_open() -> None:
    """An account and those it was opened in, from the inside out, without those that are over."""
    outermost, middle, inner = Account(), Account(), Account()
    middle.parent = outermost
    inner.parent = middle
    assert inner.lineage() == [inner, middle, outermost]
    outermost.end(None)
    assert inner.lineage() == [inner, middle]
    inner.end(None)
    assert inner.lineage() == []
    assert middle.lineage() == [middle]


def test_threads_that_observe_while_the_work_ends_lose_nothing() -> None:
    """Each observation of any thread is handed over exactly once, whenever it is made."""
    for _ in range(20):
        account = Account()
        late = Late()
        barrier = threading.Barrier(4)

        def observe(
            start: int, account: Account = account, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            for number in range(start, start + 50):
                account.observe("a", number)

        threads = [threading.Thread(target=observe, args=(start,)) for start in (0, 100, 200)]
        for thread in threads:
            thread.start()
        barrier.wait()
        taken = [value for _, value in account.take_observations()]
        account.end(late)
        for thread in threads:
            thread.join()
        expected = [start + number for start in (0, 100, 200) for number in range(50)]
        assert sorted(taken + [value for _, value in late.observed]) == expected
