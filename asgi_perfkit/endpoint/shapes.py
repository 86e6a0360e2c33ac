"""Makes of the values that JSON has those that a function is annotated with: strictly, and with what does not fit.

A number is not a string, nor True a number; a whole number does for a float. What JSON has no type for is a string:
times as ISO 8601, UUIDs, decimals (which may be numbers, too). Names in an object that a dataclass does not have are
left out, as pydantic and msgspec do it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from asgi_perfkit.endpoint.texts import from_text

__all__ = ["MAX_REASONS", "Misfit", "Shape", "UnknownShapeError", "path_of", "shape_of"]

Shape = Callable[[Any], Any]
"""Makes a value of one of JSON; raises a :class:`Misfit`."""

Steps = tuple[str | int, ...]

_NONE: Final = type(None)

MAX_REASONS: Final = 100
"""How many of the places that do not fit are told: a small body can have very many."""


class Misfit(Exception):  # noqa: N818  # it never gets out
    """A value is not of the shape that is wanted.

    :ivar reasons: what does not fit, up to some number: where, from this value on, and why.
    """

    def __init__(self, reasons: Sequence[tuple[Steps, str]]) -> None:
        self.reasons = reasons

    def below(self, step: str | int) -> list[tuple[Steps, str]]:
        """The reasons as the value has them that this one is in."""
        return [((step, *steps), reason) for steps, reason in self.reasons]


class UnknownShapeError(Exception):
    """An annotation is none that a value can be made for."""


def path_of(steps: Sequence[object]) -> str:
    """A place in JSON as :class:`EncodeError` tells it."""
    return "$" + "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in steps)


def shape_of(annotation: Any, known: dict[Any, Shape] | None = None) -> Shape:
    """What makes values for an `annotation`.

    :param known: those of the dataclasses around it, for those that are in themselves.
    :raises UnknownShapeError: there is none.
    """
    known = {} if known is None else known
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return shape_of(typing.get_args(annotation)[0], known)
    if annotation is Any or annotation is object:
        return _anything
    if annotation is None or annotation is _NONE:
        return _exactly(_NONE, "null")
    if origin in (typing.Union, types.UnionType):
        return _any_of(annotation, known)
    if origin is typing.Literal:
        return _literal(typing.get_args(annotation))
    if annotation is list or origin is list:
        element, *_ = (*typing.get_args(annotation), Any)
        return _list(shape_of(element, known))
    if annotation is dict or origin is dict:
        key, value, *_ = (*typing.get_args(annotation), str, Any)
        if key is not str:
            raise UnknownShapeError(f"{annotation!r}: the keys of a dict are strings in JSON")
        return _dict(shape_of(value, known))
    if isinstance(annotation, type):
        if annotation in known:
            return lambda value: known[annotation](value)  # noqa: PLW0108  # it is not there yet
        if dataclasses.is_dataclass(annotation):
            return _dataclass(annotation, known)
        if issubclass(annotation, Enum):
            return _enum(annotation)
        found = _SHAPES.get(annotation)
        if found is not None:
            return found
    raise UnknownShapeError(repr(annotation))


def _misfit(reason: str) -> Misfit:
    return Misfit([((), reason)])


def _anything(value: Any) -> Any:
    return value


def _exactly(kind: type, name: str) -> Shape:
    reason = f"it has to be {name}"

    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise _misfit(reason)
        return value

    return check


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise _misfit("it has to be a number")


def _text(kind: type) -> Shape:
    convert = from_text(kind)
    assert convert is not None

    def make(value: Any) -> Any:
        if type(value) is not str:
            # The shortest text that means this float, which is what the client has sent, as a rule.
            if kind is not Decimal or type(value) not in (int, float):
                value = ""
            value = str(value)
        try:
            return convert(value)
        except ValueError as error:
            raise _misfit(str(error)) from None

    return make


def _literal(choices: tuple[Any, ...]) -> Shape:
    by_value = {(type(each), each): each for each in choices}
    reason = f"it has to be one of {', '.join(map(repr, choices))}"

    def choose(value: Any) -> Any:
        try:
            return by_value[type(value), value]
        except (KeyError, TypeError):
            raise _misfit(reason) from None

    return choose


def _enum(annotation: type[Enum]) -> Shape:
    members = {(type(each.value), each.value): each for each in annotation}
    reason = f"it has to be one of {', '.join(repr(each.value) for each in annotation)}"

    def choose(value: Any) -> Any:
        try:
            return members[type(value), value]
        except (KeyError, TypeError):
            raise _misfit(reason) from None

    return choose


def _list(element: Shape) -> Shape:
    if element is _anything:
        return _exactly(list, "an array")

    def make(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _misfit("it has to be an array")
        try:
            return [element(each) for each in value]
        except Misfit:
            reasons: list[tuple[Steps, str]] = []
            for number, each in enumerate(value):
                try:
                    element(each)
                except Misfit as misfit:
                    reasons += misfit.below(number)
                    if len(reasons) >= MAX_REASONS:
                        break
            raise Misfit(reasons) from None

    return make


def _dict(element: Shape) -> Shape:
    if element is _anything:
        return _exactly(dict, "an object")

    def make(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _misfit("it has to be an object")
        found = {}
        reasons: list[tuple[Steps, str]] = []
        for key, each in value.items():
            try:
                found[key] = element(each)
            except Misfit as misfit:
                reasons += misfit.below(key)
                if len(reasons) >= MAX_REASONS:
                    break
        if reasons:
            raise Misfit(reasons)
        return found

    return make


def _any_of(annotation: Any, known: dict[Any, Shape]) -> Shape:
    kinds = typing.get_args(annotation)
    shapes = [shape_of(each, known) for each in kinds]

    def first(value: Any) -> Any:
        reasons: list[tuple[Steps, str]] = []
        for shape in shapes:
            try:
                return shape(value)
            except Misfit as misfit:
                reasons += misfit.reasons
        deep = [each for each in reasons if each[0]]  # it was meant to be that one, as it seems
        if deep:
            raise Misfit(deep)
        raise _misfit(" or ".join(dict.fromkeys(reason for _, reason in reasons)))

    if _NONE not in kinds:
        return first
    return lambda value: None if value is None else first(value)


def _dataclass(cls: Any, known: dict[Any, Shape]) -> Shape:
    known[cls] = _anything  # until it is there: what is in itself looks it up when it is called
    try:
        hints = typing.get_type_hints(cls)
    except Exception as error:
        raise UnknownShapeError(
            f"{cls.__qualname__}, whose annotations cannot be read: {error}"
        ) from error
    fields: list[tuple[str, Shape, bool]] = []
    for field in dataclasses.fields(cls):
        if field.init:
            required = (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            )
            try:
                fields.append((field.name, shape_of(hints[field.name], known), required))
            except UnknownShapeError as error:
                raise UnknownShapeError(f"{cls.__qualname__}.{field.name}: {error}") from None

    def make(value: Any) -> Any:
        if type(value) is not dict:
            raise _misfit("it has to be an object")
        found = {}
        reasons: list[tuple[Steps, str]] = []
        for name, shape, required in fields:
            if name in value:
                try:
                    found[name] = shape(value[name])
                except Misfit as misfit:
                    reasons += misfit.below(name)
            elif required:
                reasons.append(((name,), "it is missing"))
        if reasons:
            raise Misfit(reasons)
        try:
            return cls(**found)
        except ValueError as error:  # of its own __post_init__
            raise _misfit(str(error)) from error

    known[cls] = make
    return make


_SHAPES: Final[dict[type, Shape]] = {
    str: _exactly(str, "a string"),
    int: _exactly(int, "a whole number"),
    float: _float,
    bool: _exactly(bool, "true or false"),
    datetime: _text(datetime),
    date: _text(date),
    Decimal: _text(Decimal),
    UUID: _text(UUID),
}
