"""What the texts of a query, a path, a header or a form stand for.

Nothing is guessed: `True` is one of a few words, `1_000` is no number, nor is a number what JSON has no number for.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Final
from uuid import UUID

from asgi_perfkit.resources.markers import REQUIRED

__all__ = ["FromText", "element_of", "from_text", "instant", "without_none"]

FromText = Callable[[str], Any]
"""Makes a value of a text; raises a ValueError that says what is wanted."""

_INT: Final = re.compile(r"[+-]?[0-9]{1,4000}")  # Python takes up to 4,300 digits by default
_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUE: Final = frozenset(("1", "true", "on", "yes"))
_FALSE: Final = frozenset(("0", "false", "off", "no"))
_NONE: Final = type(None)


def without_none(annotation: Any) -> Any:
    """What an annotation allows beside None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [each for each in typing.get_args(annotation) if each is not _NONE]
        if len(rest) == 1:
            return rest[0]
    return annotation


def element_of(annotation: Any) -> Any:
    """What the elements of a ``list[...]`` are, which is what may be repeated; None if it is no list."""
    if annotation is list:
        return str
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0]
    return None


def from_text(annotation: Any) -> FromText | None:
    """What makes values of the type `annotation`; None if there is nothing that does."""
    if annotation is REQUIRED or annotation is Any:
        return str
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        return _one_of({_text_of(each): each for each in choices}, choices)
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, Enum):
        members = list(annotation)
        return _one_of(
            {_text_of(each.value): each for each in members}, [each.value for each in members]
        )
    return _KNOWN.get(annotation)


def _text_of(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _one_of(by_text: dict[str, Any], choices: typing.Iterable[Any]) -> FromText:
    reason = f"it has to be one of {', '.join(map(repr, choices))}"

    def choose(text: str) -> Any:
        try:
            return by_text[text]
        except KeyError:
            raise ValueError(reason) from None

    return choose


def _int(text: str) -> int:
    if _INT.fullmatch(text) is None:
        raise ValueError("it has to be a whole number")
    return int(text)


def _float(text: str) -> float:
    if _FLOAT.fullmatch(text) is None or math.isinf(found := float(text)):
        raise ValueError("it has to be a number")
    return found


def _bool(text: str) -> bool:
    word = text.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("it has to be true or false")


def _decimal(text: str) -> Decimal:
    try:
        if _FLOAT.fullmatch(text) is not None and (found := Decimal(text)).is_finite():
            return found
    except InvalidOperation:  # its exponent is none that a Decimal can have
        pass
    raise ValueError("it has to be a decimal number")


def instant(text: str) -> datetime:
    """The time that an ISO 8601 `text` tells, with both date and time in it."""
    if len(text) > 10:
        # Python 3.10 does not know that Z is UTC.
        text = f"{text[:-1]}+00:00" if text[-1] in "Zz" else text
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass
    raise ValueError("it has to be a date and a time as 2026-01-31T12:00:00Z")


def _date(text: str) -> date:
    try:
        if len(text) == 10:
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise ValueError("it has to be a date as 2026-01-31")


def _uuid(text: str) -> UUID:
    try:
        if len(text) in (32, 36):  # UUID() takes braces and more, too
            return UUID(text)
    except ValueError:
        pass
    raise ValueError("it has to be a UUID")


_KNOWN: Final[dict[type, FromText]] = {
    str: str,
    int: _int,
    float: _float,
    bool: _bool,
    Decimal: _decimal,
    datetime: instant,
    date: _date,
    UUID: _uuid,
}
