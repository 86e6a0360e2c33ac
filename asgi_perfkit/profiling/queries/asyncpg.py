"""asyncpg_query_logger: the connections of asyncpg."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from asgi_perfkit.profiling.queries.record import record_query, times_of

__all__ = ["asyncpg_query_logger"]


class _Nothing(Coroutine[Any, Any, None]):
    """A coroutine that has nothing to do, for as many tasks as there may be."""

    def send(self, value: object) -> Any:
        raise StopIteration

    def throw(self, *exception: Any) -> Any:
        raise exception[0]

    def close(self) -> None:
        pass

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


_NOTHING = _Nothing()


async def _of_a_coroutine_function(record: Any) -> None:
    """What :class:`inspect` looks at."""


if TYPE_CHECKING:
    _Base = partial[Coroutine[Any, Any, None]]
else:
    _Base = partial


class _QueryLogger(_Base):
    """Counts the queries of asyncpg's connections for the requests that send them.

    asyncpg calls a function when the loop comes round the next time, and then it is too late to see which line has sent
    the query. A coroutine function it calls at once, and makes a task of what that returns. So this is one, as far as
    asyncpg can tell, which has done its work when it returns.
    """

    def __call__(self, record: Any, /) -> Coroutine[Any, Any, None]:
        args = record.args
        record_query(
            record.query,
            perf_counter_ns() - round(record.elapsed * 1e9),
            None,
            # Those of `executemany` are what the user has given for all, those of any other query were his arguments.
            1 if isinstance(args, tuple) else times_of(args),
            record.exception is not None,
        )
        return _NOTHING


asyncpg_query_logger = _QueryLogger(_of_a_coroutine_function)
"""Given to `connection.add_query_logger`."""
