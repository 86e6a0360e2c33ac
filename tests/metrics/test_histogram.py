"""Histograms at their bounds: what is full, what is empty, what is refused."""

from __future__ import annotations

from array import array

import pytest

from asgi_perfkit.metrics.histogram import EMPTY, Histogram, PageBudget, merge, observe_row

FULL = 2**32 - 1  # the most that a bucket of a small page can hold


def test_equal_values_have_exact_quantiles() -> None:
    """A size that never changes is told as it is, not as the middle of its bucket."""
    histogram = Histogram()
    for _ in range(3):
        histogram.observe(1_000_003)
    assert histogram.quantiles([0, 0.5, 1]) == [1_000_003] * 3


def test_the_error_is_smaller_than_a_128th_everywhere() -> None:
    """The middle of a bucket is off by at most 0.78 % at both of its ends, in every octave."""
    for octave in range(48):
        for value in (2**octave, 2 ** (octave + 1) - 1, 2**octave + 2**octave // 3):
            histogram = Histogram()
            for each in (0, value, 2**48 - 1):
                histogram.observe(each)
            (median,) = histogram.quantiles([0.5])
            assert abs(median - value) <= value / 128


def test_an_empty_histogram_has_no_quantiles() -> None:
    """No values, no quantile: an error that says so, not a number that is none."""
    assert EMPTY.count == Histogram().count == 0
    with pytest.raises(ValueError, match="no values"):
        EMPTY.quantiles([0.5])


@pytest.mark.parametrize("quantile", [-0.01, 1.01, 99])
def test_a_quantile_is_from_0_to_1(quantile: float) -> None:
    """A percentile given in percent is refused, with what was given."""
    histogram = Histogram()
    histogram.observe(1)
    with pytest.raises(ValueError, match=rf"from 0 to 1, not \[{quantile}\]"):
        histogram.quantiles([quantile])


def test_a_snapshot_is_compared_by_its_values_and_only_to_its_like() -> None:
    """Snapshots of equal values are equal, of other values not, and cannot be hashed."""
    one, other = Histogram(), Histogram()
    one.observe(1_000)
    other.observe(1_001)  # in the same bucket
    assert one.snapshot() == one.snapshot()
    assert one.snapshot() != other.snapshot()
    assert one.snapshot() != 1_000
    with pytest.raises(TypeError):
        hash(one.snapshot())


def test_merging_nothing_is_empty() -> None:
    """The sum of no snapshots, or of empty ones, is empty."""
    assert merge([]) == merge([EMPTY, EMPTY]) == EMPTY


@pytest.mark.parametrize("number", [1, 2])
def test_a_sum_of_histograms_stays_as_it_was(number: int) -> None:
    """Histograms can be merged while they count; what they count later, the sum does not have."""
    histograms = [Histogram() for _ in range(number)]
    for histogram in histograms:
        for value in (3, 1_000, -7):
            histogram.observe(value)
    merged = merge(histograms)
    expected = merge([histogram.snapshot() for histogram in histograms])
    for histogram in histograms:
        for value in (3, 1_000, -7, 10**6):
            histogram.observe(value)
    assert merged == expected
    assert merged.count == 3 * number


@pytest.mark.parametrize("row", [False, True], ids=["observe", "observe_row"])
@pytest.mark.parametrize("value", [0, 63, 64, 127, 5_000, 2**47, 2**50])
def test_a_full_bucket_goes_on_counting(value: int, row: bool) -> None:
    """Past 2**32 - 1 values in one bucket, neither it nor its neighbours lose a count."""
    histogram = Histogram()
    observe_row([histogram], [value])
    # What four billion observations would take too long for.
    (page,) = [page for page in histogram._pages if page is not None]
    page[page.index(1)] = FULL
    histogram._counts[histogram._counts.index(1)] = FULL
    neighbour = value + value // 32 + 1
    for each in (value, value, neighbour):
        if row:
            observe_row([histogram], [each])
        else:
            histogram.observe(each)
    snapshot = histogram.snapshot()
    assert snapshot.count == FULL + 3
    assert max(count for _, _, count in snapshot.buckets()) in {FULL + 2, FULL + 3}
    assert abs(snapshot.quantiles([0.5])[0] - value) <= value * 0.01 or value >= 2**48


def test_merged_counts_pass_32_bits() -> None:
    """Doubled 40 times, a snapshot counts as many and still subtracts exactly."""
    histogram = Histogram()
    for value in (3, 70, 1_000_000, -12):
        histogram.observe(value)
    half = sum_ = histogram.snapshot()
    for _ in range(40):
        half, sum_ = sum_, sum_ + sum_
    assert sum_.count == 4 * 2**40
    assert sum_.total == 1_000_061 * 2**40
    assert [count for _, _, count in sum_.buckets()] == [2**40] * 4
    assert sum_.quantiles([0.25, 0.5, 0.75]) == [-12, 3, 70]
    window = sum_ - half
    assert (window.count, window.total) == (half.count, half.total)
    assert list(window.buckets()) == list(half.buckets())


@pytest.mark.parametrize("times", [2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32])
def test_merged_buckets_do_not_spill_into_their_neighbours(times: int) -> None:
    """However full a bucket is, adding to it leaves those beside it alone."""
    values = {100: times, 101: 1, 5_000: 1, 5_120: times, 5_248: times}
    full, other = Histogram(), Histogram()
    for value in values:
        full.observe(value)
        other.observe(value)
    # What billions of observations would take too long for.
    for shift, page in enumerate(full._pages):
        if page is not None:
            full._pages[shift] = page = array("Q", page)
            for value, count in values.items():
                if (value | 64).bit_length() - 7 == shift:
                    page[(value >> shift) - 64] = count
            full._counts[shift] = sum(page)
    merged = merge([full, other])
    assert [count for _, _, count in merged.buckets()] == [n + 1 for n in values.values()]
    assert merged.count == sum(values.values()) + len(values)


def test_histograms_share_one_budget() -> None:
    """A budget holds for all histograms together, yet each may count something, and none loses a value."""
    budget = PageBudget(4)
    histograms = [Histogram(budget) for _ in range(5)]
    for histogram in histograms:
        for octave in range(48):
            histogram.observe(2**octave)
    assert budget.left == 0  # the first took all
    # So it has pages for the values below 2**11, the others only their first, for those below 2**7.
    assert budget.refused == (48 - 11) + 4 * (48 - 7)
    for histogram in histograms:
        assert histogram.count == 48
        assert histogram.total == 2**48 - 1
        assert (histogram.least, histogram.greatest) == (1, 2**47)


def test_a_refused_value_is_counted_in_the_nearest_bucket() -> None:
    """Without room, a value goes to the bucket nearest to it, so quantiles keep their order."""
    histogram = Histogram(PageBudget(0))
    histogram.observe(100_000)  # the page of [65536, 131071]
    histogram.observe(5)
    histogram.observe(10**9)
    lowest, _, highest = histogram.buckets()
    assert (lowest[0], highest[1]) == (65_536, 131_071)
    assert histogram.quantiles([0, 0.5, 1]) == sorted(histogram.quantiles([0, 0.5, 1]))
