"""What a plan does while it runs, beside the calls themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

from asgi_perfkit.exceptions import DependencyError, NoRequestError
from asgi_perfkit.resources.current import app_manager
from asgi_perfkit.resources.manager import ResourceManager
from asgi_perfkit.resources.plan import identity
from asgi_perfkit.resources.tickets import ABSENT, Ticket

__all__ = [
    "Attempt",
    "Ledger",
    "begin",
    "broken",
    "called",
    "failed",
    "key_of",
    "known_value",
    "need_app",
    "settle",
    "ttl_key_of",
]

METRIC = "dependency_resolution_time"

logger = logging.getLogger("asgi_perfkit")


class Attempt:
    """A resolution that opens resources: if it fails, these are closed, unless somebody else may have them.

    Somebody else may if another resolution of the same request has been running meanwhile.
    """

    __slots__ = ("_alone", "_depth", "_manager", "_number", "_size", "apart", "opened")

    def __init__(self, manager: ResourceManager) -> None:
        self._manager = manager
        self._number = manager.begun
        self._alone = not manager.active
        manager.active += 1
        self._depth = len(manager.exits)
        self._size = len(manager.solved)
        self.opened = 0
        self.apart = manager.is_apart()

    async def fail(self, error: BaseException) -> None:
        """Close what was opened, as an exception that leaves a ``with`` statement does.

        :raises: the cancellation that came meanwhile. What else is raised is logged: the first error is what counts.
        """
        manager = self._manager
        exits = manager.exits
        if (
            not self._alone
            or manager.begun != self._number
            or len(exits) != self._depth + self.opened
            or manager.closed
        ):
            return
        while len(manager.solved) > self._size:  # made of what is closed now, maybe
            manager.solved.popitem()
        if self.opened:
            try:
                await manager.leave(exits, self._depth, error)
            except Exception as failure:
                logger.error(
                    "Resources failed to close after a dependency had failed.", exc_info=failure
                )


# What the first resolution of a request has come to: a function that makes the keys, the values so far, what was given,
# and a list that it looks into after each call.
Ledger = tuple[Callable[[Any, Any], list[Hashable]], list[Any], Any, list[Ticket]]


def begin(manager: ResourceManager) -> None:
    """Begin a resolution that is not the first one, or not by itself.

    The first one of a request does without keeping a value for others, and without telling who makes it: as a rule
    there are no others. When there is one, all that is made up for.
    """
    manager.keep_values()
    manager.begun += 1
    ledger, manager.ledger = manager.ledger, None
    if ledger is not None:
        make_keys, made, values, shared = ledger
        ticket = Ticket() if manager.spare is None else manager.spare
        shared.append(ticket)
        solved = manager.solved
        for key, value in zip(make_keys(manager, values), made, strict=True):
            if value is ABSENT:  # that is the one which is being made
                solved[key] = ticket
                break
            solved[key] = value


def settle(manager: ResourceManager, ledger: Ledger, error: BaseException | None) -> None:
    """Tell those who wait for the value that was being made when the `ledger` was taken: it is there, or why not."""
    make_keys, made, values, shared = ledger
    for key, value in zip(make_keys(manager, values), made, strict=True):
        if value is ABSENT:
            if error is not None:
                shared[0].fail(manager.solved, key, error)
            break
        if manager.solved.get(key) is shared[0]:
            manager.solved[key] = value
    shared[0].wake()


def broken(manager: ResourceManager, ledger: Ledger, error: BaseException) -> None:
    """End the first resolution with an `error`."""
    if ledger[3]:
        settle(manager, ledger, error)
    elif manager.ledger is ledger:
        manager.ledger = None


def failed(
    manager: ResourceManager,
    app: ResourceManager | None,
    ticket: Ticket,
    key: Hashable,
    error: BaseException,
) -> None:
    """Tell those who wait for the value of `key` that there will be none."""
    ticket.fail(manager.solved, key, error)
    if app is not None:
        ticket.fail(app.solved, key, error)


def key_of(call: Hashable, *values: Any) -> Hashable:
    """What stands for a call with these `values`: 1 and True are not the same."""
    key = (call, *values, *map(type, values))
    try:
        hash(key)
    except TypeError:
        return (call, *map(identity, values))
    return key


def ttl_key_of(call: Hashable, *values: Any) -> Hashable:
    """The same for values that are kept beyond the request.

    :raises TypeError: one of them is not hashable.
    """
    key = (call, *values, *map(type, values))
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(
            f"Depends({getattr(call, '__qualname__', call)}, ttl=...) depends on a value that cannot be a key "
            f"({error}): leave out the ttl, or let it depend on a part of the value."
        ) from None
    return key


def known_value(manager: ResourceManager, name: str) -> Any:
    """The value that the request knows by that `name`.

    :raises DependencyError: it knows none.
    """
    if manager.request is not None:
        known = manager.request.known()
        if name in known:
            return known[name]
    raise DependencyError([name], None, "there was a value of that name, and there is none here.")


def need_app(manager: ResourceManager) -> ResourceManager:
    """The resources of the application.

    :raises NoRequestError: there are none here.
    """
    app = app_manager(manager)
    if app is None:
        raise NoRequestError("app_resources", "ResourceMiddleware")
    app.keep_values()
    return app


async def called(call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function on the loop, where something awaits it."""
    return call(*args, **kwargs)
