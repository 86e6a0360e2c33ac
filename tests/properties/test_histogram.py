"""The laws of histograms: how near quantiles are, and that adding and subtracting lose nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from math import ceil
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_perfkit.metrics.histogram import (
    EMPTY,
    Histogram,
    PageBudget,
    Snapshot,
    merge,
    observe_row,
)

Number = TypeVar("Number", int, float)

HOUR_NS = 3_600 * 10**9
TEBIBYTE = 2**40

# Each octave as likely as any other: evenly drawn integers are nearly all of the largest ones.
magnitudes = st.integers(0, 47).flatmap(lambda octave: st.integers(0, 2**octave))
values = st.one_of(
    magnitudes,
    magnitudes.map(lambda value: -value),
    st.integers(-200, 200),
    st.integers(1_000, HOUR_NS),
    st.integers(1, TEBIBYTE),
)
lists = st.lists(values, max_size=60)
full_lists = st.lists(values, min_size=1, max_size=60)
crowded = st.integers(0, 12).flatmap(
    lambda shift: st.lists(
        st.integers(-300, 300).map(lambda value: value << shift), min_size=1, max_size=200
    )
)
beyond = st.lists(
    st.one_of(values, st.integers(2**48, 2**80), st.integers(-(2**80), -(2**48))), min_size=1
)
quantiles = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0]), st.floats(0, 1))


def histogram_of(values: Iterable[int], budget: PageBudget | None = None) -> Histogram:
    histogram = Histogram(budget)
    for value in values:
        histogram.observe(value)
    return histogram


def snapshot_of(values: Iterable[int]) -> Snapshot:
    return histogram_of(values).snapshot()


def nearest_rank(values: Iterable[Number], quantile: float) -> Number:
    ordered = sorted(values)
    return ordered[max(1, ceil(quantile * len(ordered))) - 1]


def buckets_of(snapshot: Snapshot) -> Counter[tuple[int, int]]:
    return Counter({(lowest, highest): count for lowest, highest, count in snapshot.buckets()})


@given(full_lists, st.lists(quantiles, min_size=1, max_size=6))
def test_a_quantile_is_within_one_percent_of_the_nearest_rank(
    values: list[int], asked: list[float]
) -> None:
    """Whatever the values, each quantile is within 1 % of the value at its rank, in the order that was asked."""
    found = snapshot_of(values).quantiles(asked)
    assert len(found) == len(asked)
    for quantile, value in zip(asked, found, strict=True):
        exact = nearest_rank(values, quantile)
        assert abs(value - exact) <= abs(exact) * 0.01
        assert min(values) <= value <= max(values)


@given(
    st.one_of(full_lists, crowded, beyond),
    st.lists(quantiles, min_size=1, max_size=6),
    st.one_of(st.none(), st.integers(0, 4)),
)
def test_a_quantile_is_the_middle_of_the_bucket_at_its_rank(
    values: list[int], asked: list[float], pages: int | None
) -> None:
    """A quantile is no bucket off, also where neighbouring buckets are full and when there is no room for more."""
    snapshot = histogram_of(values, None if pages is None else PageBudget(pages)).snapshot()
    middles = [
        (lowest + highest) / 2
        for lowest, highest, count in snapshot.buckets()
        for _ in range(count)
    ]
    assert snapshot.quantiles(asked) == [
        min(max(values), max(min(values), nearest_rank(middles, quantile))) for quantile in asked
    ]


@given(st.lists(st.integers(-127, 127), min_size=1), quantiles)
def test_small_values_are_told_exactly(values: list[int], quantile: float) -> None:
    """Below 128 every whole number has its own bucket, so its quantiles are exact."""
    assert snapshot_of(values).quantiles([quantile]) == [nearest_rank(values, quantile)]


@given(lists)
def test_count_sum_least_and_greatest_are_exact(values: list[int]) -> None:
    """All figures but the quantiles are exact."""
    snapshot = snapshot_of(values)
    assert snapshot.count == len(values)
    assert snapshot.total == sum(values)
    assert snapshot.least == min(values, default=None)
    assert snapshot.greatest == max(values, default=None)


@given(lists)
def test_every_value_lies_in_its_bucket(values: list[int]) -> None:
    """Buckets ascend without overlap, hold all values, and are at most a 64th of their values wide."""
    buckets = list(snapshot_of(values).buckets())
    assert all(one[1] < other[0] for one, other in pairwise(buckets))
    for lowest, highest, count in buckets:
        assert count == sum(lowest <= value <= highest for value in values)
        assert highest - lowest <= max(0, min(abs(lowest), abs(highest)) / 64)
    assert sum(count for _, _, count in buckets) == len(values)


@given(st.lists(lists, max_size=6))
def test_merging_is_as_one_histogram_that_saw_all(parts: list[list[int]]) -> None:
    """The snapshots of several histograms add up to the snapshot of one that saw the values of all."""
    merged = merge(map(snapshot_of, parts))
    everything = [value for part in parts for value in part]
    assert merged == snapshot_of(everything)
    if everything:
        asked = [0.01, 0.5, 0.99]
        assert merged.quantiles(asked) == snapshot_of(everything).quantiles(asked)


@given(lists, lists, lists)
def test_adding_is_associative_and_commutative(a: list[int], b: list[int], c: list[int]) -> None:
    """Snapshots can be added up in any order and grouping; an empty one changes nothing."""
    one, two, three = map(snapshot_of, (a, b, c))
    assert (one + two) + three == one + (two + three)
    assert one + two == two + one
    assert one + EMPTY == one == EMPTY + one


@given(lists, lists)
def test_subtracting_an_older_snapshot_leaves_what_came_between(
    before: list[int], between: list[int]
) -> None:
    """A snapshot minus an older one has exactly the counts and the sum of what came between."""
    histogram = histogram_of(before)
    older = histogram.snapshot()
    for value in between:
        histogram.observe(value)
    window = histogram.snapshot() - older
    assert window.count == len(between)
    assert window.total == sum(between)
    assert buckets_of(window) == buckets_of(snapshot_of(between))
    if between:
        assert window.least is not None
        assert window.greatest is not None
        assert abs(window.least - min(between)) <= abs(min(between)) * 0.01
        assert abs(window.greatest - max(between)) <= abs(max(between)) * 0.01
        for quantile in (0.0, 0.5, 0.99, 1.0):
            exact = nearest_rank(between, quantile)
            assert abs(window.quantiles([quantile])[0] - exact) <= abs(exact) * 0.01
    else:
        assert window == EMPTY


@given(lists, lists)
def test_windows_add_up(first: list[int], second: list[int]) -> None:
    """Two windows that follow each other add up to the counts of the one that spans both."""
    histogram = Histogram()
    start = histogram.snapshot()
    for value in first:
        histogram.observe(value)
    middle = histogram.snapshot()
    for value in second:
        histogram.observe(value)
    end = histogram.snapshot()
    together = (middle - start) + (end - middle)
    assert buckets_of(together) == buckets_of(end - start)
    assert together.total == (end - start).total


@given(lists, lists)
def test_only_an_older_snapshot_can_be_subtracted(newer: list[int], other: list[int]) -> None:
    """What holds more than the other in any bucket is not older than it, and subtracting it raises."""
    if buckets_of(snapshot_of(other)) <= buckets_of(snapshot_of(newer)):
        assert (snapshot_of(newer) - snapshot_of(other)).count == len(newer) - len(other)
    else:
        with pytest.raises(ValueError, match="not an older one"):
            snapshot_of(newer) - snapshot_of(other)


@given(full_lists)
def test_newer_cannot_be_subtracted_from_older(more: list[int]) -> None:
    """The two snapshots of a subtraction cannot be swapped once something came between."""
    histogram = histogram_of([1, 10**6, -5])
    older = histogram.snapshot()
    for value in more:
        histogram.observe(value)
    with pytest.raises(ValueError, match="not an older one"):
        older - histogram.snapshot()


@given(
    st.lists(st.tuples(*[st.one_of(st.none(), values, st.integers(2**47, 2**60))] * 3), max_size=30)
)
def test_a_row_is_observed_as_its_values_are(rows: list[tuple[int | None, ...]]) -> None:
    """Observing a row does what observing each of its values does, and nothing for None."""
    at_once = [Histogram() for _ in range(3)]
    for row in rows:
        observe_row(at_once, row)
    for histogram, column in zip(at_once, zip(*rows, strict=True), strict=False):
        expected = snapshot_of(value for value in column if value is not None)
        assert histogram.snapshot() == expected


@given(beyond)
def test_values_beyond_the_scale_are_counted(values: list[int]) -> None:
    """Values from 2**48 on share a bucket, and are exact in everything but the quantiles."""
    snapshot = snapshot_of(values)
    assert (snapshot.count, snapshot.total) == (len(values), sum(values))
    assert (snapshot.least, snapshot.greatest) == (min(values), max(values))
    assert all(min(values) <= value <= max(values) for value in snapshot.quantiles([0, 0.5, 1]))


@given(st.integers(0, 6), st.lists(values, min_size=1, max_size=80))
def test_a_budget_bounds_the_pages_and_nothing_else(pages: int, values: list[int]) -> None:
    """A histogram takes one page for each sign, and those of its budget; what is refused is counted nearby."""
    budget = PageBudget(pages)
    made: set[tuple[bool, int]] = set()
    beyond = refused = 0
    for value in values:
        page = value < 0, max(0, abs(value).bit_length() - 7)
        if page not in made:
            if not any(sign == page[0] for sign, _ in made):
                made.add(page)
            elif beyond < pages:
                beyond += 1
                made.add(page)
            else:
                refused += 1
    snapshot = histogram_of(values, budget).snapshot()
    assert budget.refused == refused
    assert budget.left == pages - beyond
    assert (snapshot.count, snapshot.total) == (len(values), sum(values))
    assert (snapshot.least, snapshot.greatest) == (min(values), max(values))
    assert all(min(values) <= value <= max(values) for value in snapshot.quantiles([0, 0.5, 1]))


@given(lists, lists)
def test_a_snapshot_stays_as_it_was(before: list[int], after: list[int]) -> None:
    """What is observed later, a snapshot does not have."""
    histogram = histogram_of(before)
    snapshot = histogram.snapshot()
    for value in after:
        histogram.observe(value)
    assert snapshot == snapshot_of(before)
    assert histogram.snapshot() == snapshot_of(before + after)


@given(lists, lists, lists)
def test_absorbing_is_observing_what_the_other_has_seen(
    own: list[int], others: list[int], later: list[int]
) -> None:
    """A histogram that absorbs another counts its values too; the two stay apart afterwards."""
    histogram, other = histogram_of(own), histogram_of(others)
    histogram.absorb(other)
    for value in later:
        other.observe(value)
    assert histogram.snapshot() == snapshot_of(own + others)
    assert other.snapshot() == snapshot_of(others + later)


@given(st.integers(0, 5), full_lists)
def test_absorbing_keeps_to_the_budget(pages: int, values: list[int]) -> None:
    """What is absorbed takes no more pages than what is observed, and nothing of it is lost."""
    budget = PageBudget(pages)
    histogram = Histogram(budget)
    histogram.absorb(snapshot_of(values))
    # The first page of each sign is not part of it; below 128 there is one page for all.
    octaves = {
        (lowest < 0, max(abs(lowest), abs(highest), 64).bit_length())
        for lowest, highest, _ in histogram.buckets()
    }
    assert budget.left == pages - len(octaves) + len({negative for negative, _ in octaves})
    assert budget.left >= 0
    assert histogram.count == len(values)
    assert (histogram.total, histogram.least, histogram.greatest) == (
        sum(values),
        min(values),
        max(values),
    )
