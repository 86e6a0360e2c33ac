"""Both kinds of cache against a plain model of one, in any order of events, with a clock that is moved by hand."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asgi_perfkit import RequestScopedCache
from asgi_perfkit.caching.cache import Cache
from asgi_perfkit.caching.shared import SharedCache
from tests.support import Clock, Trouble

keys = st.integers(0, 6) | st.sampled_from(["a", None, ("a", 1)])
values = st.sampled_from([None, False, 0, "", 1, "b", ()])


class CacheMachine(RuleBasedStateMachine):
    """The model: a list of what is there, the least recently used first, and the three counts."""

    cache: Cache

    @initialize(max_size=st.integers(1, 4), ttl=st.none() | st.integers(1, 3))
    def make(self, max_size: int, ttl: int | None) -> None:
        self.clock = Clock()
        if ttl is None:
            self.cache = RequestScopedCache(max_size)
        else:
            self.cache = SharedCache("values", max_size, ttl, self.clock)
        self.max_size = max_size
        self.ttl = ttl
        self.now = 0
        self.kept: list[tuple[object, object, int]] = []  # key, value, when it was stored
        self.hits = self.misses = self.evictions = 0

    # ---- the model's rules

    def expire(self) -> None:
        if self.ttl is not None:
            self.kept = [each for each in self.kept if each[2] + self.ttl > self.now]

    def use(self, key: object) -> tuple[bool, object]:
        """Whether there is a value, and which; it is the most recently used one then."""
        self.expire()
        for number, (kept, value, _) in enumerate(self.kept):
            if kept == key:
                self.kept.append(self.kept.pop(number))
                self.hits += 1
                return True, value
        self.misses += 1
        return False, None

    def keep(self, key: object, value: object) -> None:
        self.expire()
        self.kept = [each for each in self.kept if each[0] != key]
        self.kept.append((key, value, self.now))
        if len(self.kept) > self.max_size:
            del self.kept[0]
            self.evictions += 1

    # ---- what happens

    @rule(seconds=st.sampled_from([1, 1, 2, 5]))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.clock.advance(seconds)

    @rule(key=keys)
    def get(self, key: object) -> None:
        found, value = self.use(key)
        default = object()
        assert self.cache.get(key, default) is (value if found else default)

    @rule(key=keys, value=values)
    def set(self, key: object, value: object) -> None:
        self.keep(key, value)
        self.cache.set(key, value)

    @rule(key=keys, value=values)
    def get_or_create(self, key: object, value: object) -> None:
        calls: list[object] = []
        found, expected = self.use(key)
        if not found:
            self.keep(key, value)
            expected = value
        assert self.cache.get_or_create(key, lambda: calls.append(key) or value) is expected
        assert len(calls) == (not found)

    @rule(key=keys)
    def fail(self, key: object) -> None:
        def factory() -> None:
            raise Trouble

        found, value = self.use(key)
        if found:
            assert self.cache.get_or_create(key, factory) is value
        else:
            with pytest.raises(Trouble):
                self.cache.get_or_create(key, factory)

    @rule(key=keys)
    def delete(self, key: object) -> None:
        self.expire()
        before = len(self.kept)
        self.kept = [each for each in self.kept if each[0] != key]
        assert self.cache.delete(key) == (len(self.kept) < before)

    @rule(key=keys)
    def look(self, key: object) -> None:
        """Looking whether a value is there uses and counts nothing."""
        self.expire()
        assert (key in self.cache) == any(each[0] == key for each in self.kept)

    @rule()
    def clear(self) -> None:
        self.kept.clear()
        self.cache.clear()

    @invariant()
    def figures_are_right(self) -> None:
        self.expire()
        figures = self.cache.statistics()
        assert (figures.hits, figures.misses) == (self.hits, self.misses)
        assert (figures.evictions, figures.size) == (self.evictions, len(self.kept))
        assert len(self.cache) == len(self.kept) <= figures.max_size == self.max_size

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            assert list(self.cache._values.items()) == [(key, value) for key, value, _ in self.kept]


class QuietCacheMachine(CacheMachine):
    """The same, where nobody asks for figures, which would throw out what is too old."""

    figures_are_right = None  # type: ignore[assignment]

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            CacheMachine.figures_are_right(self)  # type: ignore[misc]
            super().teardown()


limits = hypothesis.settings(max_examples=40, stateful_step_count=30)
TestCache = CacheMachine.TestCase
TestCache.settings = limits
TestQuietCache = QuietCacheMachine.TestCase
TestQuietCache.settings = limits
