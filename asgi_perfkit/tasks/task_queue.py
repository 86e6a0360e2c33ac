"""The tasks of one request, until they have run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from threading import RLock
from typing import Any, Literal, Protocol

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.steps import Account
from asgi_perfkit.tasks.handoff import Handoff
from asgi_perfkit.tasks.item import Item, TaskList

__all__ = ["Entry", "Group", "TaskQueue", "items_of"]

Group = list[Item]  # of tasks that run at the same time
Entry = Item | list[Group]  # the groups of a list of tasks, the last one first


class Unclaimed(Protocol):
    """Queues that nobody runs by themselves."""

    queues: list[TaskQueue]


class QueueOwner(Protocol):
    """Who runs queues; :class:`~asgi_perfkit.tasks.supervisor.Supervisor` says what each of these is."""

    lock: RLock
    run_on_error: bool
    handoff: Handoff | None

    @property
    def unclaimed(self) -> Unclaimed: ...
    def expect(self, number: int) -> None: ...
    def schedule(self, queue: TaskQueue) -> None: ...
    def runs_here(self) -> bool: ...
    def account_for(self, items: Iterable[Item], reason: Literal["discarded"]) -> None: ...


class TaskQueue:
    """The tasks of one request.

    :ivar supervisor: who runs them.
    """

    holds_tasks = True

    __slots__ = ("_added", "_light", "_next", "_scheduled", "_state", "supervisor")

    def __init__(self, supervisor: QueueOwner) -> None:
        self.supervisor = supervisor
        # Lists, as most requests have few tasks, and an empty deque takes 600 bytes.
        self._added: list[Entry] = []
        self._next: list[Entry] | None = None  # come before `_added`, and are in reverse order
        self._state: Literal["filling", "released", "discarded"] = "filling"
        self._scheduled = False  # whether it is running, or will be without further ado
        self._light = False  # whether all of them have let go of the request

    def add(
        self, account: Account | None, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Queue a task, or a list of them; from any thread.

        :param account: is not asked for here.
        :raises QueueFullError: too many tasks wait for their turn.
        """
        supervisor = self.supervisor
        entry: Entry
        if isinstance(function, TaskList):
            if args or kwargs:
                raise ConfigurationTypeError(
                    "add_task(tasks)", args or kwargs, "a list of tasks has its arguments already."
                )
            function.direct(supervisor.handoff)
            supervisor.expect(len(function))
            entry = list(function.take(partial(self.add, None)))  # the list may outlive `account`
            entry.reverse()
        else:
            entry = Item(function, args, kwargs)
            if entry.handoff is not None or supervisor.handoff is not None:
                entry.direct(supervisor.handoff)
            supervisor.expect(1)
        with supervisor.lock:
            state = self._state
            if state == "released" and self._light:
                _let_go(entry)
            if state != "discarded":
                self._added.append(entry)
            late = state == "released" and not self._scheduled
            if late:
                self._scheduled = True
        if state == "discarded":
            supervisor.account_for(items_of([entry]), "discarded")
        elif late:
            supervisor.schedule(self)

    def finish(self, account: Account, *, failed: bool) -> None:
        """The request is over: its tasks may run, or, if it has `failed`, are discarded. A second time is nothing."""
        supervisor = self.supervisor
        with supervisor.lock:
            if self._state != "filling":
                return
            discarded = failed and not supervisor.run_on_error
            self._state = "discarded" if discarded else "released"
            # From here on who adds the first one schedules it.
            scheduled = self._scheduled = bool(self._added) and not discarded
        if discarded:
            supervisor.account_for(items_of(self.take_all()), "discarded")
        elif scheduled:
            if supervisor.runs_here():
                supervisor.schedule(self)
            else:
                supervisor.unclaimed.queues.append(self)

    def finish_late(self) -> None:
        """The request is over, and was when the queue was made."""
        with self.supervisor.lock:
            if self._state != "filling":
                return
            self._state = "released"
            self._scheduled = True
        self.supervisor.schedule(self)

    def let_go(self) -> None:
        """Hold nothing of the request any more: it is over, and there is something to wait for.

        Those that run at once let go of it one by one: contexts that differ from each other are more for the garbage
        collector to look at, and where many wait, that takes as long as to run them.
        """
        if not self._light:
            with self.supervisor.lock:
                self._light = True
                entries = [*(self._next or ()), *self._added]
            for entry in entries:
                _let_go(entry)

    def take(self) -> Entry | None:
        """The next one; after None it has to be scheduled again."""
        entries = self._next
        if not entries:
            with self.supervisor.lock:  # `add` looks at both
                entries = self._added
                if not entries:
                    self._scheduled = False
                    return None
                self._added = []
                entries.reverse()
                self._next = entries
        entry = entries.pop()
        if not self._light:
            _let_go(entry)
        return entry

    def take_all(self) -> list[Entry]:
        """All that are there, none of which will run."""
        with self.supervisor.lock:
            entries = [*reversed(self._next or ()), *self._added]
            self._next = None
            self._added = []
            self._scheduled = False
            return entries


def _let_go(entry: Entry) -> None:
    if type(entry) is Item:
        entry.let_go()
    else:
        for item in items_of([entry]):
            item.let_go()


def items_of(entries: Iterable[Entry]) -> Iterator[Item]:
    """The tasks in them."""
    for entry in entries:
        if isinstance(entry, Item):
            yield entry
        else:
            for group in reversed(entry):
                yield from group
