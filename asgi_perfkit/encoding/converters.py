"""What orjson does not know, made of what it does: which way a class is converted."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from io import IOBase
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from operator import attrgetter
from pathlib import PurePath
from re import Pattern
from types import AsyncGeneratorType, CoroutineType, FunctionType, MethodType
from typing import Any
from uuid import UUID

from asgi_perfkit.encoding.conversion import (
    Conversion,
    Converter,
    OneShotError,
    Owner,
    UnsupportedError,
)
from asgi_perfkit.encoding.libraries import BY_MARK, BY_NAME, by_pydantic, exact_datetime

__all__ = ["conversion_of", "unsupported"]


def conversion_of(cls: type, owner: Owner) -> Conversion:
    """Decide how instances of `cls` are encoded: by the nearest of its bases that says so, then by what it can do."""
    if issubclass(cls, BaseException):
        return Conversion(unsupported)
    for base in cls.__mro__:
        convert = _BY_CLASS.get(base)
        if convert is not None:
            return Conversion(convert)
        for mark, make in BY_MARK.items():
            if mark in base.__dict__:
                conversion = make(cls, base, owner)
                if conversion is not None:
                    return conversion
        conversion = BY_NAME.get((base.__module__, base.__qualname__))
        if conversion is not None:
            return conversion
    if issubclass(cls, Mapping):
        return Conversion(dict)
    if issubclass(cls, AbstractSet | Sequence | ValuesView):
        return Conversion(list)
    if issubclass(cls, Iterator) and not issubclass(cls, IOBase):
        return Conversion(_one_shot)
    if any(base.__module__.startswith(("pydantic.", "pydantic_core.")) for base in cls.__mro__):
        return Conversion(by_pydantic)
    return Conversion(unsupported)


def _iso_duration(duration: timedelta) -> str:
    """The duration as ISO 8601 has it; days are not made into months, whose length is not known."""
    duration = timedelta.__pos__(duration)  # subclasses count days and seconds in ways of their own
    sign = ""
    if duration.days < 0:
        sign, duration = "-", -duration
    minutes, seconds = divmod(duration.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}H" * bool(hours) + f"{minutes}M" * bool(minutes)
    if duration.microseconds:
        text += f"{seconds}.{duration.microseconds:06}".rstrip("0") + "S"
    elif seconds or not duration:
        text += f"{seconds}S"
    return f"{sign}P{f'{duration.days}D' * bool(duration.days)}{f'T{text}' * bool(text)}"


def _base64(data: Any) -> str:
    return base64.b64encode(data).decode("ascii")


def _exact_date(day: date) -> date:
    return date(day.year, day.month, day.day)


def _exact_time(moment: time) -> time:
    return time(
        moment.hour,
        moment.minute,
        moment.second,
        moment.microsecond,
        moment.tzinfo,
        fold=moment.fold,
    )


def _one_shot(iterator: Any) -> Any:
    raise OneShotError("it is an iterator inside of what another library encodes: make it a list.")


def unsupported(obj: Any) -> Any:
    cls = type(obj)
    name = cls.__qualname__
    if isinstance(obj, CoroutineType):
        remedy = f"it is a coroutine that was not awaited: await {obj.__qualname__}(...)."
    elif isinstance(obj, AsyncGeneratorType):
        remedy = "it is asynchronous: collect its items ([x async for x in ...]), or stream them."
    elif isinstance(obj, FunctionType | MethodType):
        remedy = f"it is a function: call it ({obj.__qualname__}(...))."
    elif isinstance(obj, type):
        remedy = "it is a class, not an instance of one: give its name, or an instance."
    elif isinstance(obj, BaseException):
        remedy = "what an exception may tell a client is for the app to say: give str(error), or a dict of one's own."
    elif isinstance(obj, IOBase):
        remedy = "it is a file: read it."
    else:
        remedy = (
            f"there is no JSON for it; say what it is: Encoder(custom_encoders={{{name}: ...}})."
        )
    raise UnsupportedError(remedy)


_BY_CLASS: dict[type, Converter] = {
    # What has subclasses of its own that orjson knows, or not, comes as it is.
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    dict: dict.copy,
    list: list.copy,
    tuple: list,
    Enum: attrgetter("value"),
    datetime: exact_datetime,
    date: _exact_date,
    time: _exact_time,
    timedelta: _iso_duration,
    Decimal: str,
    bytes: _base64,
    bytearray: _base64,
    memoryview: lambda view: _base64(view.tobytes()),
    set: list,
    frozenset: list,
    deque: list,
    range: list,
    Pattern: attrgetter("pattern"),
    PurePath: str,
    UUID: str,
    IPv4Address: str,
    IPv4Interface: str,
    IPv4Network: str,
    IPv6Address: str,
    IPv6Interface: str,
    IPv6Network: str,
}
