"""How the instances of a class are encoded, and what decides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgi_perfkit.encoding.compiled import Record

__all__ = ["Conversion", "Converter", "OneShotError", "Owner", "UnsupportedError"]

Converter = Callable[[Any], Any]


class UnsupportedError(TypeError):
    """There is no conversion; the message says what to do instead."""


class OneShotError(TypeError):
    """An iterator, which gives its items once: who encodes it has to keep them."""


class Conversion:
    """How the instances of one class are encoded. It does not refer to the class, so that the class may go.

    :ivar convert: makes of an instance what orjson knows, or what is converted in turn.
    :ivar custom: whether the user has given it.
    :ivar record: takes many at once; None if there is no such way.
    :ivar inspect: makes what is to be looked through, where `convert` makes bytes; None if it does not.
    """

    __slots__ = ("convert", "custom", "inspect", "record")

    def __init__(
        self,
        convert: Converter,
        record: Record | None = None,
        inspect: Converter | None = None,
        *,
        custom: bool = False,
    ) -> None:
        self.convert = convert
        self.custom = custom
        self.record = record
        self.inspect = inspect


class Owner:
    """What conversions need to know of the encoder that they are for.

    :ivar is_custom: whether a class is encoded in a way of its own.
    :ivar by_alias: as pydantic's serializers take it.
    :ivar convert: converts what is inside of what another library encodes.
    :ivar plain: likewise, down to what JSON itself knows.
    """

    def __init__(
        self,
        is_custom: Callable[[type], bool],
        by_alias: bool | None,
        convert: Converter,
        plain: Converter,
    ) -> None:
        self.is_custom = is_custom
        self.by_alias = by_alias
        self.convert = convert
        self.plain = plain
