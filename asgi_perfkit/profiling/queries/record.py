"""What all hooks of drivers call."""

from __future__ import annotations

from typing import Any

from asgi_perfkit.steps import Account, current_account

__all__ = ["profiled_account", "record_query", "times_of"]


def profiled_account() -> Account | None:
    """The account whose `profile` takes the queries of the running code; None if nobody wants to know of them."""
    account = current_account.get()
    while account is not None and account.profile is None:
        account = account.parent
    return account


def record_query(
    statement: Any,
    started_ns: int,
    rows: int | None = None,
    times: int = 1,
    failed: bool = False,
) -> None:
    """Tell of a query that has just been answered, if it was sent in the work of an account that is profiled.

    :param statement: its text, or whatever its driver takes.
    :param started_ns: when it was sent, on the monotonic clock.
    :param rows: how many it has returned or changed; None if that is not known.
    :param times: how often it was executed, with other parameters each time; 0 for more time and rows of a query that
        was told of.
    :param failed: whether it has raised an error.
    """
    account = profiled_account()
    if account is not None:
        profile = account.profile
        if profile is not None:
            profile.query(account, statement, started_ns, rows, times, failed)


def times_of(parameters: Any = ()) -> int:
    """How many sets of parameters there are; 1 where only who takes them out would know."""
    try:
        return len(parameters) or 1
    except Exception:  # of a `__len__` that the driver does not ask
        return 1
