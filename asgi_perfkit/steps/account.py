"""Where the figures of one piece of work are kept."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from threading import RLock
from time import perf_counter_ns
from typing import Any, Protocol

__all__ = ["Account", "Profile", "StepObserver", "current_account"]

_MANY = 256
_making = RLock()  # a garbage collection may run code of the user that observes something, too


class StepObserver(Protocol):
    """Is told of every step of an account, in the thread of the loop, just outside of the timed stretch.

    What an observer raises is not caught: it must not fail.
    """

    def step_started(self, account: Account) -> None:
        """The loop is about to run code of `account`."""

    def step_ended(self, account: Account, duration_ns: int) -> None:
        """The code of `account` has suspended or ended, `duration_ns` after it was resumed."""


class LateObserver(Protocol):
    """Takes what is observed when the work is over."""

    def observe_late(self, metric: str, value: int) -> None:
        """Note a `value`; may be called from any thread."""

    def observe_many(self, metric: str, values: Sequence[int]) -> None:
        """Note all `values`, of which there is one at least; may be called from any thread."""


class TaskTaker(Protocol):
    """Takes what is to be done after a piece of work."""

    @property
    def holds_tasks(self) -> bool:
        """Whether it has ever taken a task of this piece of work."""

    @property
    def supervisor(self) -> object:
        """Who has it done."""

    def add(
        self, account: Account, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Take a task that was added in the work of `account`; may be called from any thread."""

    def finish(self, account: Any, *, failed: bool) -> None:
        """The work is over; what was taken may be done, or, if it has `failed`, may not."""


class Profile(Protocol):
    """Takes what is to be known about a piece of work beside its figures."""

    def query(
        self,
        account: Account,
        statement: Any,
        started_ns: int,
        rows: int | None,
        times: int,
        failed: bool,
    ) -> None:
        """A query has been sent in the work of `account`, and answered just now; may be called from any thread.

        :param statement: its text.
        :param started_ns: when it was sent.
        :param rows: how many it has returned or changed; None if that is not known.
        :param times: how often it was executed, with other parameters each time; 0 for more time and rows of a query
            that was told of.
        :param failed: whether it has raised an error.
        """

    def settle(self, account: Any) -> None:
        """The work is over; note in `account` what is to be among its observations. More than once is as once."""

    def ended(self, account: Any, endpoint: str | None, error: BaseException | None) -> None:
        """The work is over and has returned, or has raised `error`. Called once.

        :param endpoint: the name of what has served it; None if who calls does not know.
        """


class Account:
    """What one piece of work has used so far, its child tasks included.

    Only the loop's own thread writes the step figures; :meth:`observe` may be called from any thread.

    :ivar loop_ns: time on the loop, the sum of all steps (nanoseconds, monotonic).
    :ivar longest_ns: the longest single step (nanoseconds).
    :ivar stepping: whether a step of this account is running now. A step inside a step (a task that starts eagerly)
        is part of the outer one and is not charged again.
    :ivar ending: whether the last that the work has to say is with who takes it: :meth:`held_up` is called behind each
        step meanwhile.
    :ivar closed: whether the work is over. Tasks that outlive it are no longer charged to it.
    :ivar observers: told of every step; see :meth:`join`.
    :ivar parent: the account within whose work this one was opened; its tasks are charged to both. None after the end.
    :ivar heir: what stands in for it with those who may outlive it; None if there are none.
    :ivar endpoint: the name of the route that serves this work, once something that knows it has said so.
    :ivar observations: ``(metric, value)`` pairs noted with :meth:`observe`; None before the first.
    :ivar late: takes what is observed after the work is over; None before.
    :ivar tasks: takes what is to be done after the work; None if nobody does that here.
    :ivar encoder: makes JSON of what the work answers; None for the default, or that of the account around.
    :ivar resources: what the work holds open, or, before the first use, who makes that (by `open(account)`); None if
        nobody does that here.
    :ivar profile: takes what is to be known of the work beside its figures; None if nobody asks.
    :ivar afterwards: the last part of the work, once there is something to close: takes what the work has raised, and
        raises it again unless that is suppressed.
    """

    __slots__ = (
        "__weakref__",
        "afterwards",
        "closed",
        "encoder",
        "ending",
        "endpoint",
        "heir",
        "late",
        "longest_ns",
        "loop_ns",
        "observations",
        "observers",
        "parent",
        "profile",
        "resources",
        "stepping",
        "tasks",
    )

    def __init__(self) -> None:
        self.loop_ns = 0
        self.longest_ns = 0
        self.stepping: bool | None = False
        self.ending = self.closed = False
        self.observers: tuple[StepObserver, ...] = ()
        self.parent: Account | None = None
        self.heir: _Around | _Remains | None = None
        self.endpoint: str | None = None
        self.observations: list[tuple[str, int]] | None = None
        self.late: LateObserver | None = None
        self.tasks: TaskTaker | None = None
        self.encoder: Any = None
        self.resources: Any = None
        self.profile: Profile | None = None
        self.afterwards: Callable[[BaseException | None], Coroutine[Any, Any, None]] | None = None

    def lineage(self) -> list[Account]:
        """This account and those it was opened in, as far as they are open."""
        accounts = []
        account: Account | None = self
        while account is not None:
            if not account.closed:
                accounts.append(account)
            account = account.parent
        return accounts

    def join(self, observer: StepObserver) -> None:
        """Tell `observer` of the steps from now on, of one that runs now too; on the loop that the work is on."""
        self.observers += (observer,)
        if self.stepping:
            observer.step_started(self)

    def enter_step(self) -> int:
        """Begin a step; give what comes back to :meth:`leave_step`."""
        self.stepping = True
        for observer in self.observers:
            observer.step_started(self)
        return perf_counter_ns()

    def leave_step(self, started_ns: int) -> None:
        """End the step that began at `started_ns` and charge it."""
        duration_ns = perf_counter_ns() - started_ns
        self.stepping = False
        if not self.loop_ns:
            self.loop_ns = self.longest_ns = duration_ns  # one number, as long as there is one step
        else:
            self.loop_ns += duration_ns
            if duration_ns > self.longest_ns:
                self.longest_ns = duration_ns
        for observer in self.observers:
            observer.step_ended(self, duration_ns)
        if self.ending:
            self.held_up()

    def held_up(self) -> None:
        """The end of the work waits for who takes it."""

    def observe(self, metric: str, value: int) -> None:
        """Note a `value` (nanoseconds, bytes or a number, as the metric has it) for this piece of work."""
        observations = self.observations
        if observations is None:
            with _making:  # two threads at once
                observations = self.observations
                if observations is None:
                    observations = self.observations = []
        observations.append((metric, value))
        if len(observations) >= _MANY:
            self.condense()
        if self.late is not None:
            self._hand_over()

    def observe_many(self, metric: str, values: Sequence[int]) -> None:
        """Note all `values`, of which there is one at least; each costs a fifth of what :meth:`observe` takes."""
        late = self.late
        if late is not None:
            late.observe_many(metric, values)
        else:
            for value in values:
                self.observe(metric, value)

    def condense(self) -> None:
        """Make little of many observations, those of a connection that lasts for days for one; called now and then."""

    def take_observations(self) -> list[tuple[str, int]]:
        """Take out what was observed so far. What another thread adds meanwhile stays for the next who takes it."""
        taken: list[tuple[str, int]] = []
        observations = self.observations
        while observations:
            try:
                # Popping is atomic: two threads that take at once neither lose nor double anything.
                taken.append(observations.pop())
            except IndexError:
                break
        taken.reverse()
        return taken

    def end(self, late: LateObserver | None) -> None:
        """End the work: no step is charged any more.

        :param late: takes what is observed from now on, or was and nobody has taken; None for the account around.
        """
        self.closed = True
        parent = self.parent
        if parent is not None:  # what comes late has them, too
            if self.tasks is None:
                self.tasks = parent.tasks
            if self.encoder is None:
                self.encoder = parent.encoder
            if late is None:
                late = parent._around()
        self.parent = None
        heir, self.heir = self.heir, None
        self.late = late = late or _NOBODY
        if type(heir) is _Around:
            heir.settle(late)
        if self.observations:
            self._hand_over()

    def outlasting(self) -> Account:
        """What stands in for an account that has ended, and holds nothing of its work; itself before the end."""
        heir = self.heir
        if type(heir) is _Remains:  # it is asked for by each of many tasks
            return heir
        if not self.closed or self.late is None:
            return self
        with _making:  # two threads at once
            heir = self.heir
            if type(heir) is not _Remains:
                heir = self.heir = _Remains(self)
            return heir

    def _around(self) -> LateObserver:
        """Who takes what is observed in the name of this account by one that was opened in it, and has ended."""
        late = self.late
        if late is None:
            heir = self.heir
            if type(heir) is not _Around:
                heir = self.heir = _Around(self)
            late = self.late or heir  # another thread may be ending it
        return late

    def _hand_over(self) -> None:
        late = self.late
        assert late is not None
        for metric, value in self.take_observations():
            late.observe_late(metric, value)


class _Remains(Account):
    """What is needed later of an account that has ended."""

    __slots__ = ()

    def __init__(self, account: Account) -> None:
        super().__init__()
        self.closed = True
        self.endpoint = account.endpoint
        self.late = account.late
        self.tasks = account.tasks
        self.encoder = account.encoder
        self.resources = None if account.resources is None else _OVER
        self.profile = account.profile

    def outlasting(self) -> Account:
        return self


class _Around:
    """The account around those that nobody records; when it has ended, too, who takes what is observed then."""

    __slots__ = ("_account", "_late")

    def __init__(self, account: Account) -> None:
        self._account: Account | None = account
        self._late: LateObserver = _NOBODY

    def settle(self, late: LateObserver) -> None:
        self._late = late
        self._account = None

    def observe_late(self, metric: str, value: int) -> None:
        account = self._account
        if account is not None:
            account.observe(metric, value)
        else:
            self._late.observe_late(metric, value)

    def observe_many(self, metric: str, values: Sequence[int]) -> None:
        account = self._account
        if account is not None:
            account.observe_many(metric, values)
        else:
            self._late.observe_many(metric, values)


class _Nobody:
    def observe_late(self, metric: str, value: int) -> None:
        pass

    def observe_many(self, metric: str, values: Sequence[int]) -> None:
        pass


_NOBODY = _Nobody()
_OVER = object()  # in the place of resources that were there

current_account: ContextVar[Account | None] = ContextVar(
    "asgi_perfkit.current_account", default=None
)
"""The account of the work that the running code belongs to, in its tasks and its worker threads too."""
