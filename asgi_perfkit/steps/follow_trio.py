"""The trio side of :mod:`asgi_perfkit.steps.follow`; imported only where trio runs."""

from __future__ import annotations

import trio

from asgi_perfkit.steps.account import Account, current_account

__all__ = ["FollowingInstrument", "follow_children_on_trio"]

_instrument: trio.lowlevel.RunVar[FollowingInstrument] = trio.lowlevel.RunVar(
    "asgi_perfkit.instrument"
)


def follow_children_on_trio() -> None:
    """Follow the child tasks of all accounts in this run of trio; once is enough, more does nothing."""
    try:
        _instrument.get()
    except LookupError:
        instrument = FollowingInstrument()
        _instrument.set(instrument)
        trio.lowlevel.add_instrument(instrument)


class FollowingInstrument(trio.abc.Instrument):
    """Charges each step of a child task to the account in whose context it was spawned.

    The task that opened the account is driven by that account (`DrivenAccount`) and is not in here: it was
    spawned before its account existed.
    """

    def __init__(self) -> None:
        self._accounts: dict[trio.lowlevel.Task, list[Account]] = {}
        self._steps: list[tuple[Account, int]] = []

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        account = task.context.get(current_account)
        if account is not None and not account.closed:
            self._accounts[task] = account.lineage()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        accounts = self._accounts.get(task)
        if accounts is None:
            return
        for account in accounts:
            if not account.closed:
                self._steps.append((account, account.enter_step()))
        if not self._steps:
            del self._accounts[
                task
            ]  # a task may live for as long as the process: let go of the request

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        while self._steps:
            account, started_ns = self._steps.pop()
            account.leave_step(started_ns)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._accounts.pop(task, None)
