"""Registries filled as months of traffic, or an enemy of the kit, would fill them.

The figures are put in where the middleware puts them, at `Registry.record`: a hundred thousand real
requests that take as long as real ones would take hours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from asgi_perfkit import Registry

__all__ = ["MAX_SERIES", "adversarial", "fill", "typical"]

MAX_SERIES = 1000
PAGE = 4096
METRICS = (
    "processing_time",
    "response_time",
    "total_time",
    "receive_time",
    "send_time",
    "loop_time",
    "longest_step",
    "request_size",
    "response_size",
    "memory_delta",
)
INVENTED = tuple(f"invented_{number}" for number in range(100))


class Figures(NamedTuple):
    """What one request comes to.

    :ivar values: of `METRICS`, in their order.
    :ivar observations: what the app itself has measured.
    """

    values: tuple[int, ...]
    observations: tuple[tuple[str, int], ...] = ()


def fill(registry: Registry, series: int, requests: Iterable[Figures], first: int = 0) -> None:
    """Record the same `requests` for each of so many endpoints, numbered from `first`."""
    requests = list(requests)
    for number in range(first, first + series):
        endpoint = f"/things/{number}/{{thing_id}}"
        for values, observations in requests:
            registry.record(
                method="GET",
                endpoint=endpoint,
                metrics=METRICS,
                values=values,
                observations=observations,
                condensed=None,
                outcome="ok",
                status=200,
                max_series=MAX_SERIES,
            )


def typical(requests: int, seed: int = 1) -> Iterator[Figures]:
    """Yield the figures of requests to an endpoint that queries a database and answers some JSON.

    Times and sizes are log-normal, as they are in service: most near the median, some far above.
    """
    dice = random.Random(seed)

    def around(median: float, sigma: float) -> int:
        return int(dice.lognormvariate(math.log(median), sigma))

    for _ in range(requests):
        processing = around(12e6, 0.6)
        send = around(30e3, 0.5)
        loop = min(around(1.5e6, 0.5), processing)
        yield Figures(
            (
                processing,
                processing + send,
                processing + send + around(20e3, 0.3),
                around(5e3, 0.5),
                send,
                loop,
                int(loop * dice.uniform(0.3, 0.9)),
                around(400, 1.0),
                around(3000, 1.0),
                dice.choice((0, 0, 0, 0, 1, -1)) * dice.randint(1, 64) * PAGE,
            )
        )


def adversarial(seed: int = 2) -> Iterator[Figures]:
    """Yield figures that take all the room there is.

    Every metric gets values of every magnitude that fits in 64 bits, the one that can be negative
    of both signs, and as many names are measured as anybody cares to invent.
    """
    dice = random.Random(seed)

    def about(magnitude: int) -> int:
        return dice.getrandbits(magnitude) | 1 << magnitude

    magnitudes = list(range(64)) * 2
    dice.shuffle(magnitudes)
    for number, magnitude in enumerate(magnitudes):
        values = [about(magnitude) for _ in METRICS]
        if number % 2:
            values[-1] = -values[-1]
        yield Figures(tuple(values), tuple((name, about(magnitude)) for name in INVENTED))
