"""Who is cancelled, at whichever of its awaits, leaves no call running and takes no value from others."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_perfkit import RequestScopedCache, cached
from tests.conftest import Run
from tests.resources.driver import cancel_everywhere, cancelled_at
from tests.support import checkpoint, together


class Maker:
    """Makes a value, and knows whether it does so just now."""

    def __init__(self) -> None:
        self.began = self.ended = 0

    async def __call__(self) -> str:
        self.began += 1
        try:
            for _ in range(3):
                await checkpoint()
            return "value"
        finally:
            self.ended += 1


def asker(form: str, maker: Maker) -> Any:
    """A function that asks for what `maker` makes, and keeps it."""
    if form == "cached":
        return cached(60)(maker.__call__)
    cache = RequestScopedCache()
    return lambda: cache.aget_or_create("key", maker)


FORMS = pytest.mark.parametrize("form", ["cached", "of the request"])


@FORMS
def test_alone_it_takes_the_call_along(run: Run, form: str) -> None:
    """And is told when that is over."""
    makers: list[Maker] = []

    async def work(step: int) -> None:
        makers.append(Maker())
        try:
            await asker(form, makers[-1])()
        finally:
            assert makers[-1].began == makers[-1].ended

    assert run(cancel_everywhere, work) >= 3
    assert makers[-1].ended == 1


@FORMS
@pytest.mark.parametrize("is_first", [True, False])
def test_others_get_the_value(run: Run, form: str, is_first: bool) -> None:
    """Of one call, whoever has begun it."""

    async def main() -> None:
        reached = True
        step = 0
        while reached:
            maker = Maker()
            ask = asker(form, maker)

            async def leaves(ask: Any = ask, step: int = step) -> None:
                nonlocal reached
                reached = await cancelled_at(step, ask)

            async def stays(ask: Any = ask) -> None:
                assert await ask() == "value"

            await together(*([leaves, stays] if is_first else [stays, leaves]))
            # On trio whose turn is first is a matter of chance: the call may be over before the other one asks.
            assert maker.began == maker.ended <= 2
            step += 1
        assert step > 3

    run(main)
