"""Runs work with its children followed, and says what was charged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgi_perfkit.steps import Account, current_account, drive, follow_children
from tests.support import Clock

Run = Callable[..., Any]


async def charge(
    work: Awaitable[Any], account: Account | None = None, started_ns: int = 0
) -> Account:
    """Drive `work` as a middleware does, its children followed; the account, closed."""
    account = Account() if account is None else account
    token = current_account.set(account)
    follow_children()
    try:
        await drive(work, account, started_ns)
    finally:
        account.close(None)
        current_account.reset(token)
    return account


def charged(run: Run, clock: Clock, work: Callable[[], Awaitable[Any]]) -> float:
    """Run `work` on a loop; the seconds that were charged."""
    return run(lambda: charge(work(), started_ns=clock())).loop_ns / 1e9
