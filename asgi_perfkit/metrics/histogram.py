"""A log-linear histogram of fixed size.

The rules:

* Values are whole numbers (nanoseconds, bytes, a count), of either sign.
* Each octave ``[2**k, 2**(k+1))`` has 64 buckets of equal width, so a bucket is at most 1/64 = 1.56 % wide and its
  middle is off by at most 0.78 % from any value in it. Below 128 each whole number has its own bucket.
* All histograms have the same buckets, whatever they measure. Adding them bucket by bucket therefore gives exactly
  what one histogram would have held that had seen all values, and subtracting an older state of a histogram gives
  exactly what came since.
* An octave takes memory when the first value falls into it (a page, 320 bytes). Values from 2**48 on (78 hours,
  256 TiB) share the last bucket of the last page: so a histogram has 42 pages for each sign, and not one more.

The layout is that of G. Tene's HdrHistogram, with octaves made on demand.

Neither writing nor reading is atomic; who does either from several threads holds a lock (the registry does).
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import ceil
from operator import sub

__all__ = ["EMPTY", "Histogram", "PageBudget", "Snapshot", "merge", "observe_row"]

_SUB_BUCKETS = 64
_LAST = 2 * _SUB_BUCKETS - 1  # `value >> shift` of the values in the last bucket of a page
_PAGES = 42
_CEILING = (1 << (_PAGES + 6)) - 1  # the largest value with a bucket of its own

# A page is `array("I")`, and `array("Q")` once one of its buckets has passed 2**32 - 1.
# Page 0 has 128 buckets: 64 to 127 at the indices 0 to 63, and 0 to 63 behind them, where the index `value - 64`,
# which is negative, finds them without a special case.


class PageBudget:
    """How many pages a group of histograms may take beyond the first of each.

    :ivar left: pages that may still be made.
    :ivar refused: values that had to go to another page because there were none left.
    """

    __slots__ = ("left", "refused")

    def __init__(self, pages: int) -> None:
        self.left = pages
        self.refused = 0


class Snapshot:
    """The state of one or more histograms at one moment.

    Snapshots of different histograms add up to the snapshot of all; a snapshot minus an older one of the same
    histogram is what came between.

    :ivar total: the exact sum of all values.
    :ivar least: the least value, None if there is none. Exact, but after a subtraction the middle of its bucket.
    :ivar greatest: likewise, the greatest.
    """

    __slots__ = ("_counts", "_negative", "_pages", "greatest", "least", "total")

    def __init__(self) -> None:
        self._pages: list[array[int] | None] = [None] * _PAGES
        self._counts = [0] * _PAGES  # how many values each page holds
        self._negative: Snapshot | None = None  # of the values below zero, by magnitude
        self.total = 0
        self.least: int | None = None
        self.greatest: int | None = None

    @property
    def count(self) -> int:
        """How many values there are."""
        count = sum(self._counts)
        return count if self._negative is None else count + self._negative.count

    def quantiles(self, quantiles: Sequence[float]) -> list[float]:
        """The values at the given `quantiles`, each within 0.78 % of the exact one.

        The exact one is the least value that at least that share of all values does not exceed (the inverse of the
        distribution function; nothing is interpolated between two values).

        :param quantiles: each from 0 to 1.
        :raises ValueError: a quantile outside of that, or there are no values.
        """
        if min(quantiles) < 0 or max(quantiles) > 1:
            raise ValueError(f"Quantiles go from 0 to 1, not {list(quantiles)}.")
        return self.summary(quantiles)[1]

    def summary(self, quantiles: Sequence[float]) -> tuple[int, list[float]]:
        """The count, and the values at the given `quantiles`, which are not checked.

        :raises ValueError: there are no values.
        """
        least, greatest = self.least, self.greatest
        if least is None or greatest is None:
            raise ValueError("There are no values, so there is no quantile of them.")
        negative = self._negative
        running = self._running()
        below = 0
        if negative is not None:
            running_below = negative._running()
            below = running_below[-1]
        count = below + running[-1]
        if least == greatest:  # frequent: a size that never changes
            return count, [least] * len(quantiles)
        values: list[float] = []
        for quantile in quantiles:
            rank = ceil(quantile * count) or 1
            if rank > below:
                value = self._at_rank(rank - below, running)
            else:  # the least magnitude is the greatest value
                assert negative is not None
                value = -negative._at_rank(below + 1 - rank, running_below)
            values.append(greatest if value > greatest else least if value < least else value)
        return count, values

    def _running(self) -> list[int]:
        """How many values not below zero there are in each page and those before it, up to the greatest's."""
        greatest = self.greatest
        if greatest is None or greatest < 0:
            return [0]
        return list(accumulate(self._counts[: (greatest | 64).bit_length() - 6]))

    def _at_rank(self, rank: int, running: list[int]) -> float:
        """The middle of the bucket of the value at this `rank`, counted from 1, of those not below zero.

        It steps from bucket to bucket, from that end of the page that has fewer values before the rank, and leaves
        out what is beyond the least and the greatest value. Adding up whole pages would take longer, even in C.
        """
        shift = bisect_left(running, rank)
        page: array[int] = self._pages[shift]  # type: ignore[assignment]  # it holds the rank
        from_top = running[shift] - rank
        if shift:
            first = _SUB_BUCKETS
            rank -= running[shift - 1]
        else:
            first = 0
            page = _ascending(page)
        if rank <= from_top:
            index = self.least >> shift  # type: ignore[operator]  # there are values
            if index < first:
                index = first
            elif index > _LAST:
                index = _LAST
            for count in page[index - first :]:
                rank -= count
                if rank <= 0:
                    break
                index += 1
        else:
            index = self.greatest >> shift  # type: ignore[operator]  # there are values
            if index > _LAST:
                index = _LAST
            for count in page[index - first :: -1]:
                from_top -= count
                if from_top < 0:
                    break
                index -= 1
        return ((2 * index + 1 << shift) - 1) / 2

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """``(lowest, highest, count)`` of each bucket that has a value in it, ascending, bounds inclusive."""
        if self._negative is not None:
            for lowest, highest, count in reversed(list(self._negative.buckets())):
                yield -highest, -lowest, count
        yield from self._buckets_from_zero()

    def _buckets_from_zero(self) -> Iterator[tuple[int, int, int]]:
        for shift, page in enumerate(self._pages):
            if page is not None:
                first = _SUB_BUCKETS if shift else 0
                last = (1 << shift) - 1
                for index, count in enumerate(page if shift else _ascending(page), first):
                    if count:
                        yield index << shift, (index << shift) + last, count

    def __add__(self, other: Snapshot) -> Snapshot:
        return merge((self, other))

    def __sub__(self, older: Snapshot) -> Snapshot:
        """What came after `older`, a former snapshot of the same histogram.

        :raises ValueError: `older` holds values that this one does not.
        """
        window = Snapshot()
        for shift, (page, old) in enumerate(zip(self._pages, older._pages, strict=True)):
            if page is not None and old is not None:
                page = array("q", map(sub, page, old))
            elif page is None and old is not None:
                raise ValueError(_NOT_OLDER)
            if page is not None:
                if min(page) < 0:
                    raise ValueError(_NOT_OLDER)
                window._pages[shift] = page
                window._counts[shift] = sum(page)
        if self._negative is not None or older._negative is not None:
            window._negative = (self._negative or EMPTY) - (older._negative or EMPTY)
        window.total = self.total - older.total
        buckets = list(window.buckets())
        if buckets:
            assert self.least is not None and self.greatest is not None
            window.least = max(sum(buckets[0][:2]) // 2, self.least)
            window.greatest = min(sum(buckets[-1][:2]) // 2, self.greatest)
        return window

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot):
            return NotImplemented
        return (
            (self.total, self.least, self.greatest) == (other.total, other.least, other.greatest)
            and list(self.buckets()) == list(other.buckets())
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]  # it is equal by its content, which is long


class Histogram(Snapshot):
    """Counts values in log-linear buckets; keeps their sum, least and greatest exactly.

    :param budget: shared by histograms that together may take so much memory and not more. When it is used up, a
        value whose page does not exist is counted in the nearest bucket of a page that does. The first page of
        each is not part of it: without one a histogram could not count at all.
    """

    __slots__ = ("_budget",)

    def __init__(self, budget: PageBudget | None = None) -> None:
        super().__init__()
        self._budget = budget

    def observe(self, value: int) -> None:
        """Count one `value`."""
        if value >= 0:
            shift = (value | 64).bit_length() - 7
            try:
                self._pages[shift][(value >> shift) - 64] += 1  # type: ignore[index]  # no page: below
                self._counts[shift] += 1
            except (TypeError, IndexError, OverflowError):
                self._count_slowly(value)
        else:
            self._below_zero().observe(-value)
        self.total += value
        greatest = self.greatest
        if greatest is None:
            self.greatest = self.least = value
        elif value > greatest:
            self.greatest = value
        elif value < self.least:  # type: ignore[operator]  # set with `greatest`
            self.least = value

    def observe_many(self, values: Sequence[int]) -> None:
        """Count all `values`; there is one at least."""
        least, greatest = min(values), max(values)
        if least < 0:
            for value in values:
                self.observe(value)
            return
        pages, counts = self._pages, self._counts
        for value in values:
            shift = (value | 64).bit_length() - 7
            try:
                pages[shift][(value >> shift) - 64] += 1  # type: ignore[index]  # no page: below
                counts[shift] += 1
            except (TypeError, IndexError, OverflowError):
                self._count_slowly(value)
        self.total += sum(values)
        if self.greatest is None or greatest > self.greatest:
            self.greatest = greatest
        if self.least is None or least < self.least:
            self.least = least

    def snapshot(self) -> Snapshot:
        """What has been counted so far, as a value that no longer changes."""
        copy = Snapshot()
        # In the reverse order of `observe`: of a value that is observed meanwhile (by a garbage collection, say) there
        # may be the page and not yet the rest, but never the rest without the page.
        copy.total, copy.least, copy.greatest = self.total, self.least, self.greatest
        copy._counts = self._counts[:]
        copy._pages = [None if page is None else page[:] for page in self._pages]
        if self._negative is not None:
            assert isinstance(self._negative, Histogram)
            copy._negative = self._negative.snapshot()
        return copy

    def absorb(self, other: Snapshot) -> None:
        """Count all that `other` has counted, within this histogram's own budget."""
        if other.least is None or other.greatest is None:
            return
        for lowest, _, count in other._buckets_from_zero():
            self._count_slowly(lowest, count)
        if other._negative is not None:
            self._below_zero().absorb(other._negative)
        self.total += other.total
        self.least = other.least if self.least is None else min(self.least, other.least)
        self.greatest = (
            other.greatest if self.greatest is None else max(self.greatest, other.greatest)
        )

    def _count_slowly(self, value: int, times: int = 1) -> None:
        """Count a value, `times` over, that may have no page yet, no bucket of its own, or one that is full."""
        value = min(value, _CEILING)
        shift = (value | 64).bit_length() - 7
        index = (value >> shift) - 64
        page = self._pages[shift]
        if page is None:
            budget = self._budget
            if budget is None or not any(self._counts):
                page = self._pages[shift] = _new_page(shift)
            elif budget.left > 0:
                budget.left -= 1
                page = self._pages[shift] = _new_page(shift)
            else:
                budget.refused += 1
                shift, index = self._nearest_bucket(shift)
                page = self._pages[shift]
        assert page is not None
        if page.typecode == "I" and page[index] + times > 0xFFFF_FFFF:
            page = self._pages[shift] = array("Q", page)
        page[index] += times
        self._counts[shift] += times

    def _nearest_bucket(self, wanted: int) -> tuple[int, int]:
        """The page and, in it, the bucket that is nearest to the page `wanted`, which does not exist."""
        existing = [shift for shift, page in enumerate(self._pages) if page is not None]
        nearest = min(existing, key=lambda shift: abs(shift - wanted))
        if nearest < wanted:
            return nearest, _SUB_BUCKETS - 1
        return nearest, 0

    def _below_zero(self) -> Histogram:
        if self._negative is None:
            self._negative = Histogram(self._budget)
        assert isinstance(self._negative, Histogram)
        return self._negative


def observe_row(histograms: Iterable[Histogram], values: Iterable[int | None]) -> None:
    """Count each value in the histogram at its place; None stands for no value.

    The same as :meth:`Histogram.observe` for each, in line: this runs for every request, and the calls alone would
    cost half as much as the counting.
    """
    for histogram, value in zip(histograms, values):  # noqa: B905  # `strict` costs, and both come from one place
        if value is None:
            continue
        if value < 0:
            histogram.observe(value)
            continue
        shift = (value | 64).bit_length() - 7
        try:
            histogram._pages[shift][(value >> shift) - 64] += 1  # type: ignore[index]
        except (TypeError, IndexError, OverflowError):
            histogram.observe(value)
            continue
        histogram._counts[shift] += 1
        histogram.total += value
        if value > histogram.greatest:  # type: ignore[operator]  # a page means that there is a value
            histogram.greatest = value
        elif value < histogram.least:  # type: ignore[operator]
            histogram.least = value


EMPTY = Snapshot()

_NOT_OLDER = "The snapshot to subtract is not an older one of the same histogram."


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Add `snapshots` up: exactly what one histogram would hold that had seen the values of all.

    They may be histograms that go on counting: the sum shares nothing with them.
    """
    full = [snapshot for snapshot in snapshots if snapshot.least is not None]
    if not full:
        return EMPTY
    merged = Snapshot()
    # In the same order as in `Histogram.snapshot`, for the same reason.
    merged.total = sum(snapshot.total for snapshot in full)
    merged.least = min(snapshot.least for snapshot in full if snapshot.least is not None)
    merged.greatest = max(snapshot.greatest for snapshot in full if snapshot.greatest is not None)
    merged._counts = [*map(sum, zip(*(snapshot._counts for snapshot in full), strict=True))]
    for shift, count in enumerate(merged._counts):
        if count:
            pages = [page for snapshot in full if (page := snapshot._pages[shift]) is not None]
            merged._pages[shift] = _add_pages(pages, count)
    negatives = [snapshot._negative for snapshot in full if snapshot._negative is not None]
    if negatives:
        merged._negative = merge(negatives)
    return merged


def _add_pages(pages: list[array[int]], count: int) -> array[int]:
    """Add up pages of one octave that together hold `count` values."""
    if count >= 1 << 31:
        return array("Q", map(sum, zip(*pages, strict=True)))
    # No bucket of the sum can overflow, so a page can be taken for one number, of which every 32 bits are a bucket.
    # Adding such numbers takes half the time of adding buckets.
    summed = sum(
        int.from_bytes(page if page.typecode == "I" else array("I", page), sys.byteorder)
        for page in pages
    )
    return array("I", summed.to_bytes(4 * len(pages[0]), sys.byteorder))


def _new_page(shift: int) -> array[int]:
    buckets = _SUB_BUCKETS if shift else 2 * _SUB_BUCKETS
    return (
        array("I", [0]) * buckets
    )  # which takes no more memory than it needs, as building it up would


def _ascending(page: array[int]) -> array[int]:
    """Page 0 in the order of its values."""
    return page[_SUB_BUCKETS:] + page[:_SUB_BUCKETS]
