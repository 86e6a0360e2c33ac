"""Runs work with its children followed, and says what was charged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgi_perfkit.steps import DONE, DrivenAccount, current_account, follow_children
from tests.support import Clock

Run = Callable[..., Any]


class Nobody:
    """An owner that is told of the end and does nothing."""

    def work_ended(self, account: DrivenAccount, error: BaseException | None) -> None:
        pass


def new_account() -> DrivenAccount:
    return DrivenAccount(Nobody(), 0)


async def drive(work: Awaitable[Any], account: DrivenAccount, started_ns: int) -> Any:
    """Have `account` drive `work`, as what is awaited in place of it."""
    account.started_ns = started_ns
    rest = account.begin(work)
    return account.first if rest is DONE else await rest


async def charge(
    work: Awaitable[Any], account: DrivenAccount | None = None, started_ns: int = 0
) -> DrivenAccount:
    """Drive `work` as a middleware does, its children followed; the account, closed."""
    account = new_account() if account is None else account
    token = current_account.set(account)
    follow_children()
    try:
        await drive(work, account, started_ns)
    finally:
        account.end(None)
        current_account.reset(token)
    return account


def charged(run: Run, clock: Clock, work: Callable[[], Awaitable[Any]]) -> float:
    """Run `work` on a loop; the seconds that were charged."""
    return run(lambda: charge(work(), started_ns=clock())).loop_ns / 1e9
