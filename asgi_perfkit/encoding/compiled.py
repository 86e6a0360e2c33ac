"""Functions that are compiled for one class, from the names of its fields.

What orjson does not know it asks a function about, one object at a time, and that call costs as much as encoding two
fields. In a list all of whose objects are of one class, one comprehension takes its place.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["Record", "many_of_sequences", "record_of_attributes", "record_of_dict"]


@dataclass(frozen=True, slots=True)
class Record:
    """How instances of one class are encoded. Neither function refers to the class: who has them may outlive it.

    :ivar one: what is encoded in place of an instance; None if this one has to be looked at more closely.
    :ivar many: what is encoded in place of a list of instances of exactly the class given: a list, which is shorter if
        some are not, or have to be looked at more closely; or a fragment.
    """

    one: Callable[[Any], Any]
    many: Callable[[list[Any], type], Any]


def record_of_attributes(names: Sequence[str]) -> Record | None:
    """Read the attributes one by one, as of a class with slots; None if they cannot be written in Python."""
    if not all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
        return None
    return _record("{" + ", ".join(f"{name!r}: o.{name}" for name in names) + "}", "")


def record_of_dict(
    cls: type,
    fields: Iterable[str],
    conditions: Sequence[str] = (),
    names: Mapping[str, object] | None = None,
) -> Record:
    """Take the instance's ``__dict__`` as it is, if it holds nothing but the fields.

    That is told by their number, which costs a fifth of what comparing the names does. They are compared where a
    property of the class may take the place of a field that is missing.

    :param conditions: expressions about the dict `d` that have to be true, too.
    :param names: what the conditions use.
    """
    known = frozenset(fields)
    conditions = [f"len(d := o.__dict__) == {len(known)}", *conditions]
    if any("cached" in type(value).__name__ for value in _attributes_of(cls)):
        conditions.append("d.keys() == known")
    return _record("d", " and ".join(conditions), {**(names or {}), "known": known})


def _attributes_of(cls: type) -> Iterator[object]:
    for base in cls.__mro__:
        yield from base.__dict__.values()


@lru_cache(maxsize=256)
def many_of_sequences(names: tuple[str, ...]) -> Callable[[list[Any], type, object], list[Any]]:
    """Return what makes dicts of the rows of a class and with a parent, which have a value for each of `names`."""
    variables = [f"v{number}" for number in range(len(names))]
    items = ", ".join(f"{name!r}: {each}" for name, each in zip(names, variables, strict=True))
    return eval(  # type: ignore[no-any-return]
        f"lambda rows, cls, parent: [{{{items}}} for row in rows if type(row) is cls and row._parent is parent"
        f" for [{', '.join(variables)}] in (row,)]"
    )


def _record(value: str, condition: str, names: Mapping[str, object] | None = None) -> Record:
    one = f"{value} if {condition} else None" if condition else value
    suffix = f" and {condition}" if condition else ""
    source = f"(lambda o: {one}, lambda objects, cls: [{value} for o in objects if type(o) is cls{suffix}])"
    return Record(*eval(source, dict(names or {})))
