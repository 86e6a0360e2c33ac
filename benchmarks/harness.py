"""How the benchmarks measure, and how they show what they found.

The method, the same for every topic:

1. **One run, interleaved rounds.** What is compared runs in the same process in the same minutes. A
   round gives every contender one short batch; a slow moment of the machine falls on neighbours,
   not on one contender's whole run.
2. **The order turns.** Each round starts with another contender, and every second round runs
   backwards, so nobody always follows the one that leaves the caches or the allocator in a mess.
3. **Pairs first, medians last.** A difference or a ratio is taken inside a round, between batches
   that ran next to each other; the median over the rounds is what is reported, with the quartiles
   as its spread. Means are never used: one descheduled batch would decide them.
4. **Warm-up is thrown away.** The first rounds run like the others and are not counted: they
   specialise the bytecode, fill the caches and the free lists, create the series.
5. **The garbage collector stays on.** It is run before each batch, so nobody pays for the rubbish
   of another, and what lives for the whole run is frozen, so a collection costs what the contender
   itself made. A contender that leaves reference cycles behind pays for them inside its own batch,
   as it would in service.

A target is a number from the project's own promises. A table says of each whether this run met it.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Row",
    "Settings",
    "Spread",
    "Table",
    "Target",
    "interleave",
    "pair",
    "render",
    "settled_heap",
]


@dataclass(frozen=True)
class Settings:
    """What the command line decides for every topic.

    :param quick: a short run that shows the machinery works; its figures are not for quoting.
    """

    quick: bool = False

    def pick(self, full: int, quick: int) -> int:
        """Return the size for this run: `full`, or `quick` for a short one."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Spread:
    """The median of some samples and the quartiles around it."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise `samples`.

        :raises ValueError: there are none.
        """
        if not samples:
            raise ValueError("A spread of no samples does not exist: the topic ran no round.")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, len(samples))


@dataclass(frozen=True)
class Target:
    """A promise about one row: its value, or its ratio, stays on the right side of `limit`.

    :param aim: not promised yet: a run that does not reach it has missed nothing.
    """

    relation: Literal["<=", "<", ">="]
    limit: float
    of: Literal["value", "ratio"] = "value"
    aim: bool = False

    def met_by(self, row: Row) -> bool:
        spread = row.value if self.of == "value" else row.ratio
        if spread is None:
            raise ValueError(
                f"The target of {row.name!r} is on its ratio, and the row has none: give the row one."
            )
        if self.relation == "<=":
            return spread.median <= self.limit
        if self.relation == "<":
            return spread.median < self.limit
        return spread.median >= self.limit


@dataclass(frozen=True)
class Row:
    """One line of a table.

    :param value: what was measured, in the table's unit; None for a row that only compares.
    :param ratio: against the table's reference, or against `against` when that is given.
    """

    name: str
    value: Spread | None
    ratio: Spread | None = None
    target: Target | None = None
    against: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without a target."""
        return None if self.target is None else self.target.met_by(self)

    def as_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"name": self.name}
        for key, spread in (("value", self.value), ("ratio", self.ratio)):
            if spread is not None:
                row[key] = {
                    "median": spread.median,
                    "low": spread.low,
                    "high": spread.high,
                    "samples": spread.samples,
                }
        if self.against is not None:
            row["against"] = self.against
        if self.target is not None:
            row["target"] = {
                "of": self.target.of,
                "relation": self.target.relation,
                "limit": self.target.limit,
            }
            row["met"] = self.met
            row["aim"] = self.target.aim
        return row


@dataclass
class Table:
    """What a topic hands back: rows of one unit, and how they came about.

    :param reference: the name that the rows' ratios are against.
    :param notes: sentences for the reader, printed under the table.
    """

    title: str
    unit: str
    rows: list[Row]
    reference: str | None = None
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "unit": self.unit,
            "reference": self.reference,
            "rows": [row.as_json() for row in self.rows],
            "notes": self.notes,
        }


@contextlib.contextmanager
def settled_heap() -> Iterator[None]:
    """Keep everything that exists now out of the collections of the block."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def interleave(
    contenders: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Run `rounds` rounds of one batch for each contender and return their figures, one a round, by
    name.

    :param contenders: each call runs one batch and returns the batch's figure, measured inside the
        call, so that preparing the batch costs nothing.
    :param warm_up: rounds run before those that count.
    """
    names = list(contenders)
    figures: dict[str, list[float]] = {name: [] for name in names}
    with settled_heap():
        for number in range(-warm_up, rounds):
            start = number % len(names)
            order = names[start:] + names[:start]
            if number % 2:
                order.reverse()
            for name in order:
                gc.collect()
                figure = contenders[name]()
                if number >= 0:
                    figures[name].append(figure)
    return figures


def pair(
    left: Sequence[float], right: Sequence[float], how: Callable[[float, float], float]
) -> list[float]:
    """Combine two contenders' figures round by round.

    :raises ValueError: they are not from the same rounds.
    """
    return [how(one, other) for one, other in zip(left, right, strict=True)]


def render(table: Table) -> str:
    """Lay a table out for a terminal."""
    compared = any(row.ratio is not None for row in table.rows)
    promised = any(row.target is not None for row in table.rows)
    head = ["", table.unit, "quartiles"]
    if compared:
        head += [f"x {table.reference}" if table.reference else "ratio", "quartiles"]
    if promised:
        head += ["target", ""]
    lines = [head]
    for row in table.rows:
        name = row.name if row.against is None else f"{row.name} : {row.against}"
        line = [name, *_cells(row.value)]
        if compared:
            line += _cells(row.ratio, digits=3)
        if promised:
            line += _promise(row)
        lines.append(line)

    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [table.title, ""]
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  " + "  ".join(cells).rstrip())
        if number == 0:
            text.append("  " + "  ".join("-" * width for width in widths))
    if table.notes:
        text.append("")
        text += [f"  {note}" for note in table.notes]
    return "\n".join(text)


def _cells(spread: Spread | None, digits: int | None = None) -> list[str]:
    if spread is None:
        return ["", ""]
    if digits is None:
        # One precision for the three numbers of a row, set by the middle one: small figures keep
        # two decimals, thousands keep none.
        size = abs(spread.median)
        digits = 0 if size >= 1000 else 1 if size >= 100 else 2
    if spread.samples == 1:
        return [f"{spread.median:,.{digits}f}", ""]
    return [
        f"{spread.median:,.{digits}f}",
        f"{spread.low:,.{digits}f} .. {spread.high:,.{digits}f}",
    ]


def _promise(row: Row) -> list[str]:
    target = row.target
    if target is None:
        return ["", ""]
    limit = f"{target.relation} {target.limit:,g}{'x' if target.of == 'ratio' else ''}"
    if target.aim:
        return [f"aim {limit}", "met" if row.met else "not yet"]
    return [limit, "met" if row.met else "MISSED"]
