"""What orjson refuses, made into what it takes: the tree is walked once, and only after a refusal.

Keys become strings; integers of more than 64 bits and strings with lone surrogates become fragments of JSON; below a
certain depth each subtree is encoded by itself. What cannot be encoded at all is found here, with its path.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from enum import Enum
from math import isfinite, isnan
from typing import Any, Literal, NoReturn, Protocol
from uuid import UUID

import orjson

from asgi_perfkit.encoding.conversion import Conversion, OneShotError, UnsupportedError
from asgi_perfkit.exceptions import EncodeError

__all__ = [
    "OPTION",
    "Kept",
    "Rules",
    "iterator_in",
    "keep",
    "normalise",
    "type_name",
    "with_offset",
]

OPTION = orjson.OPT_UTC_Z
"""How orjson writes what it knows."""

# orjson goes 254 levels deep: at every hundredth the subtree is encoded by itself.
_DEPTH = 100
_MAX_PATH = 200
_NATIVE = (date, datetime, time, UUID, orjson.Fragment)
_TWO_63 = 2**63
_LEAVES = frozenset([str, int, float, bool, type(None), *_NATIVE])

Kept = dict[int, "tuple[object, list[Any] | Exception]"]
"""Iterators by their ids, with the items that they gave, or what they raised: they do it once."""


class Rules(Protocol):
    """What the walk asks the encoder."""

    nan: Literal["null", "error", "string"]
    non_str_keys: Literal["convert", "error"]

    def find(self, cls: type) -> Conversion:
        """Say how the instances of a class are converted."""


def normalise(obj: object, rules: Rules, kept: Kept) -> Any:
    """Return what orjson encodes as the JSON of `obj`.

    :param kept: what an earlier attempt has taken out of iterators.
    :raises EncodeError: there is a value in it that has no JSON.
    """
    walk = _Walk(rules, kept)
    try:
        return walk.walk(obj)
    except RecursionError as error:
        raise EncodeError(
            walk.where(),
            type_name(type(obj)),
            f"{len(walk.path)} levels are too many; or an encoder gives what it is asked for again and again.",
        ) from error


def keep(iterator: Any, kept: Kept) -> list[Any] | Exception:
    """Return the items of `iterator`, taken out now or before, or what it has raised."""
    entry = kept.get(id(iterator))
    if entry is None:
        found: list[Any] | Exception
        try:
            found = list(iterator)
        except Exception as error:
            found = error
        entry = kept[id(iterator)] = (iterator, found)
    return entry[1]


def type_name(cls: type) -> str:
    """The name of a class, with the module's if it is not a builtin one."""
    module = cls.__module__
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"


class _Walk:
    """One walk. A level of nesting takes two frames of the interpreter's stack, a converted object one more."""

    def __init__(self, rules: Rules, kept: Kept) -> None:
        self.path: list[str | int] = []
        self._rules = rules
        self._kept = kept
        self._depth_around: dict[int, int] = {}
        self._finite_only = rules.nan != "null"
        self._native = {cls for cls in _NATIVE if not rules.find(cls).custom}

    def walk(self, obj: Any) -> Any:
        cls = type(obj)
        if cls is str:
            return obj if obj.isascii() or _is_utf8(obj) else _escaped(obj)
        if cls is bool or obj is None:
            return obj
        if cls is int:
            return obj if -_TWO_63 <= obj < 2 * _TWO_63 else self._long(obj)
        if cls is float:
            return self._not_finite(obj) if self._finite_only and not isfinite(obj) else obj
        if cls is dict:
            return self._dict(obj)
        if cls is list or cls is tuple:
            return self._list(obj)
        if cls in self._native:
            if cls is datetime:
                return obj if obj.tzinfo is None else self._moment(obj)
            if cls is time:
                return self._moment(obj)
            return self._encoded(obj) if cls is orjson.Fragment else obj
        return self._converted(obj)

    def where(self) -> str:
        """The path of what is walked now."""
        path = "$" + "".join(map(_step, self.path))
        return path if len(path) <= _MAX_PATH else f"{path[:100]}...{path[-97:]}"

    def _refuse(self, obj: object, remedy: str, cause: BaseException | None = None) -> NoReturn:
        raise EncodeError(self.where(), type_name(type(obj)), remedy) from cause

    # What holds other values

    def _enter(self, obj: object) -> None:
        around = self._depth_around
        if id(obj) in around:
            del self.path[around[id(obj)] :]
            self._refuse(obj, "it contains itself: put a reference in its place, such as its id.")
        around[id(obj)] = len(self.path)

    def _leave(self, obj: object, found: Any) -> Any:
        del self._depth_around[id(obj)]
        deep = len(self.path) % _DEPTH == _DEPTH - 1
        return self._encoded(found) if deep else found

    def _list(self, items: Sequence[Any]) -> Any:
        self._enter(items)
        found = []
        path, walk = self.path, self.walk
        path.append(0)
        for number, item in enumerate(items):
            path[-1] = number
            found.append(item if type(item) is str and item.isascii() else walk(item))
        path.pop()
        return self._leave(items, found)

    def _dict(self, mapping: dict[Any, Any]) -> Any:
        self._enter(mapping)
        found: dict[str, Any] = {}
        path, walk = self.path, self.walk
        surrogates = False
        for key, value in mapping.items():
            name = key if type(key) is str else self._key(mapping, key)
            if not name.isascii() and not _is_utf8(name):
                surrogates = True
            if name in found:
                twice = json.dumps(name)
                self._refuse(mapping, f"two of its keys are {twice} in JSON: rename one of them.")
            if type(value) is str and value.isascii():
                found[name] = value
                continue
            path.append(name)
            found[name] = walk(value)
            path.pop()
        return self._leave(mapping, self._by_hand(found) if surrogates else found)

    def _by_hand(self, found: dict[str, Any]) -> orjson.Fragment:
        """Write a dict with a lone surrogate in a key: orjson takes no such key, and no fragments for keys."""
        items = [
            json.dumps(name).encode() + b":" + orjson.dumps(value, None, OPTION)
            for name, value in found.items()
        ]
        return orjson.Fragment(b"{" + b",".join(items) + b"}")

    def _key(self, mapping: object, key: Any) -> str:
        """The string that a key is in JSON; a value that is no string gets the text that it has as a value."""
        if isinstance(key, str) and not isinstance(key, Enum):
            return str.__str__(key)
        if self._rules.non_str_keys == "error" and not isinstance(key, str):
            remedy = "make it one, or let the encoder do it (non_str_keys='convert')."
            self._refuse(mapping, f"its key {_shown(key)} is no string: {remedy}")
        try:
            text = orjson.dumps(self.walk(key), None, OPTION)
        except EncodeError as error:
            self._refuse(mapping, f"its key {_shown(key)} cannot be encoded: {error.remedy}", error)
        if text[:1] == b'"':
            return str(json.loads(text) if b"\\ud" in text else orjson.loads(text))
        if text[:1] in b"[{":
            self._refuse(mapping, f"its key {_shown(key)} is not a single value: make it a string.")
        return text.decode()

    def _converted(self, obj: Any) -> Any:
        self._enter(obj)
        try:
            conversion = self._rules.find(type(obj))
            inspect = conversion.inspect
            name = None if inspect is None else iterator_in(obj)
            if name is not None:
                raise UnsupportedError(f"its {name} an iterator, which is used up: make it a list.")
            found = (inspect if inspect and self._finite_only else conversion.convert)(obj)
        except OneShotError as error:
            if not isinstance(obj, Iterator):
                self._refuse(obj, str(error))
            found = keep(obj, self._kept)
            if isinstance(found, Exception):
                self._refuse(obj, f"it raised {_told(found)}", found)
        except UnsupportedError as error:
            self._refuse(obj, str(error))
        except RecursionError:
            raise
        except Exception as error:
            self._refuse(obj, f"its encoder raised {_told(error)}", error)
        return self._leave(obj, self.walk(found))

    # Single values

    def _encoded(self, obj: Any) -> orjson.Fragment:
        try:
            return orjson.Fragment(orjson.dumps(obj, None, OPTION))
        except orjson.JSONEncodeError as error:
            self._refuse(obj, f"orjson says: {error}.", error)

    def _moment(self, moment: datetime | time) -> Any:
        """orjson takes no time with a zone, and drops a zero of some fractions (3.11.6 to 3.13.0)."""
        try:
            offset = moment.utcoffset()
        except Exception as error:  # orjson does not survive that
            self._refuse(moment, f"its time zone raised {_told(error)}", error)
        if type(moment) is time:
            return with_offset(moment)
        return self._encoded(moment) if offset is None else moment

    def _long(self, number: int) -> orjson.Fragment:
        try:
            return orjson.Fragment(str(number).encode())
        except ValueError as error:  # the interpreter's limit for such conversions
            self._refuse(number, f"{error}.", error)

    def _not_finite(self, number: float) -> str:
        if self._rules.nan == "error":
            self._refuse(
                number, f"JSON has no {number}: give None, or let the encoder (nan='null')."
            )
        return "NaN" if isnan(number) else "Infinity" if number > 0 else "-Infinity"


def iterator_in(obj: object) -> str | None:
    """Say which field of a model is or holds an iterator: the attempt before has used it up, and nobody has its items.

    :returns: ``"items is"``, ``"pages holds"``; None if there is no such field.
    """
    if getattr(type(obj), "__pydantic_serializer__", None) is None:
        return None
    for name, value in _fields_of(obj):
        if isinstance(value, Iterator):
            return f"{name} is"
        if _holds_iterator(value, {id(obj)}):
            return f"{name} holds"
    return None


def _fields_of(obj: object) -> Iterator[tuple[str, object]]:
    yield from getattr(obj, "__dict__", {}).items()
    yield from (getattr(obj, "__pydantic_extra__", None) or {}).items()
    for name in getattr(obj, "__dataclass_fields__", ()):  # those with slots have no __dict__
        yield name, getattr(obj, name, None)


def _holds_iterator(value: object, around: set[int]) -> bool:
    """Look through what pydantic looks through."""
    cls = type(value)
    inside: Iterable[object]
    if cls in _LEAVES or id(value) in around:
        return False
    if isinstance(value, Iterator):
        return True
    if isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        inside = value
    elif hasattr(cls, "__pydantic_serializer__") or hasattr(cls, "__dataclass_fields__"):
        inside = [each for _, each in _fields_of(value)]
    else:
        return False
    around.add(id(value))
    return any(_holds_iterator(each, around) for each in inside)


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if step.isidentifier() else f"[{json.dumps(step)}]"


def _shown(key: object) -> str:
    shown = repr(key)
    return shown if len(shown) <= 50 else f"{shown[:47]}..."


def _told(error: Exception) -> str:
    return f"{type(error).__qualname__}: {error}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(text: str) -> orjson.Fragment:
    return orjson.Fragment(json.dumps(text).encode())


def with_offset(moment: datetime | time) -> str:
    """The text of an aware moment; of an offset the whole minutes, as RFC 3339 has it."""
    text = moment.replace(tzinfo=None).isoformat()
    offset = moment.utcoffset()
    if offset is None:
        return text
    if not offset:
        return f"{text}Z"
    hours, minutes = divmod(abs(offset) // timedelta(minutes=1), 60)
    return f"{text}{'-' if offset < timedelta(0) else '+'}{hours:02}:{minutes:02}"
