"""Who wants samples, of which requests, and until when."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import RLock
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from asgi_perfkit.profiling.calls import CallsByEndpoint, Place
from asgi_perfkit.tasks.running import running_loop

if TYPE_CHECKING:
    from asgi_perfkit.steps import Account

__all__ = ["OUTSIDE", "Feed"]

OUTSIDE: Final = "<outside>"
"""In place of an endpoint: what belongs to no request."""


class Feed:
    """Takes samples for somebody, until it is stopped.

    :param stopped: called when it is; takes it away from who gives it samples.
    :param calls: where they are added.
    :param hz: how many times a second it wants them at least.
    :param seconds: after which it is to be stopped; None if it is not.
    :param slower_than: seconds; nothing is kept but requests whose clients have waited for so long. 0 for all there is.
    :param requests: after how many requests it is to be stopped; None if it is not.
    :ivar began: in seconds on the monotonic clock.
    :ivar ended: when it was stopped; None before.
    :ivar taken: how many of the requests that it wants have ended.
    :ivar full: whether these are as many as it was to take: of what is in flight then nothing is kept.
    """

    __slots__ = (
        "__weakref__",
        "_ends",
        "_lock",
        "_outside",
        "_requests",
        "_seconds",
        "_slower_than",
        "_stopped",
        "_waiting",
        "began",
        "calls",
        "ended",
        "full",
        "hz",
        "taken",
    )

    def __init__(
        self,
        stopped: Callable[[Feed], object],
        calls: CallsByEndpoint,
        hz: float,
        seconds: float | None = None,
        *,
        slower_than: float = 0.0,
        requests: int | None = None,
    ) -> None:
        self._stopped = stopped
        self.calls = calls
        self.hz = hz
        self._slower_than = slower_than
        self._outside = None if slower_than else OUTSIDE
        self._requests = requests
        self._seconds = seconds
        self.began = perf_counter()
        self.ended: float | None = None
        self.taken = 0
        self.full = False
        self._lock = RLock()  # a garbage collection may end a request, too
        self._waiting: list[Callable[[], object]] = []

    @property
    def is_bounded(self) -> bool:
        """Whether it is stopped at some time in any case, or by some request."""
        return self._seconds is not None or self._requests is not None

    def is_due(self, now: float) -> bool:
        """Whether it has all that it was to take."""
        return self.full or (self._seconds is not None and now >= self.began + self._seconds)

    def stop(self) -> None:
        """Take no more, and let go on who waits for that; more than once is as once."""
        self._stopped(self)
        self._end()

    def finish(self) -> None:
        """Stop it, and have all that is pending under the name that is known by now."""
        self._stopped(self)
        self.calls.freeze()
        self._end()

    def _end(self) -> None:
        with self._lock:
            if self.ended is None:
                self.ended = perf_counter()
            waiting, self._waiting = self._waiting, []
        for go_on in waiting:
            go_on()

    async def wait(self) -> None:
        """Wait until it is stopped; on any loop."""
        loop = running_loop()
        flag = loop.flag()
        go_on = partial(loop.call_soon, flag.set)
        with self._lock:
            if self.ended is not None:
                return
            self._waiting.append(go_on)
        try:
            await flag.wait()
        finally:
            with self._lock:
                if go_on in self._waiting:
                    self._waiting.remove(go_on)

    def add(self, account: Any, profiler: Any, stack: list[Place], seconds: float) -> None:
        """Take a sample.

        :param account: that of the request; None if it belongs to none.
        :param profiler: who knows the request.
        """
        if self.full:
            return
        if account is None:
            if self._outside is not None:
                self.calls.add(self._outside, stack, seconds)
            return
        self.calls.add_pending(account, partial(self._label, profiler, account), stack, seconds)

    def withdraw(self, account: Account | None) -> None:
        """Keep nothing pending for an `account` that may have ended before that was."""
        self.calls.withdraw(account, self._outside)

    def request_ended(
        self, profiler: Any, account: Account, label: str, error: BaseException | None
    ) -> None:
        """The work of an `account` is over, and has raised `error` if that is not None."""
        calls = self.calls
        if not calls.keeps(label) or (
            self._slower_than and not profiler.has_lasted(account, self._slower_than, error)
        ):
            if account in calls.pending:
                calls.ended(account, None)
            return
        with self._lock:
            if self.full:
                return
            self.taken += 1
            if account in calls.pending:
                calls.ended(account, label)
            self.full = self.taken == self._requests

    def _label(self, profiler: Any, account: Account) -> str | None:
        """The endpoint of a request in flight, as far as it is known; None if, by now, it is not to be kept."""
        if self.full:
            return None
        if account not in profiler.open:  # see `withdraw`
            return self._outside
        if self._slower_than and not profiler.has_lasted(account, self._slower_than):
            return None
        label: str = profiler.label(account, None)
        return label
