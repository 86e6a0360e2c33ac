"""From any object to the bytes of its JSON."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from enum import Enum
from time import perf_counter_ns
from typing import Any, Literal
from uuid import UUID

import orjson

from asgi_perfkit.encoding.conversion import Conversion, OneShotError, Owner, UnsupportedError
from asgi_perfkit.encoding.converters import conversion_of, unsupported
from asgi_perfkit.encoding.normalise import OPTION, Kept, iterator_in, keep, normalise, with_offset
from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.steps.account import current_account

__all__ = ["Encoder", "current_encoder", "default_encoder", "dumps"]

# From so many on, the objects of a list are made into dicts in one go; lists are looked for in dicts of so few items.
_MANY = 8
_FEW = 4
_JSON = frozenset([str, int, float, bool, type(None), list, tuple, dict])
_encode = orjson.dumps
_TIMES = frozenset([datetime, date, time])


class Encoder:
    """Make JSON of objects: what orjson knows at its speed, and much that it does not; docs/encoder.md has the table.

    It may be used by many threads at once.

    :param custom_encoders: functions by class. What one returns is encoded in place of an instance of the class, or of
        a subclass that has none of its own; it may be anything that can be encoded, None too. It may be called twice
        for the same object. One for :class:`object` is for what could not be encoded otherwise. Models of pydantic and
        Structs of msgspec are asked about whole: what is in them, they encode themselves.
    :param non_str_keys: ``"convert"`` makes strings of the keys of a dict that are none; ``"error"`` refuses them.
    :param nan: what NaN and the infinities are, for which JSON has no numbers: ``"null"``; ``"string"``, that is
        ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``; or an ``"error"``. The last two need a second look at what has a
        null in it.
    :param by_alias: whether pydantic's models are written with the aliases of their fields; None for what their
        configuration says.
    :raises ConfigurationError: an argument cannot be used.
    """

    def __init__(
        self,
        *,
        custom_encoders: Mapping[type, Callable[[Any], Any]] | None = None,
        non_str_keys: Literal["convert", "error"] = "convert",
        nan: Literal["null", "error", "string"] = "null",
        by_alias: bool | None = None,
    ) -> None:
        custom = self._custom = _checked_encoders(custom_encoders)
        for name, value, allowed in (
            ("non_str_keys", non_str_keys, ("convert", "error")),
            ("nan", nan, ("null", "error", "string")),
            ("by_alias", by_alias, (None, True, False)),
        ):
            if not any(type(value) is type(each) and value == each for each in allowed):
                raise ConfigurationValueError(
                    f"Encoder({name}=...)", value, f"give one of {', '.join(map(repr, allowed))}."
                )
        self.non_str_keys = non_str_keys
        self.nan = nan
        self._asking = orjson.OPT_PASSTHROUGH_DATACLASS
        # orjson takes members of an Enum and UUIDs without asking, so the walk has to.
        self._walks = False
        if custom.keys() - {object}:
            self._asking |= orjson.OPT_PASSTHROUGH_SUBCLASS
        if self._is_custom(date) or self._is_custom(time):
            self._asking |= orjson.OPT_PASSTHROUGH_DATETIME
        if self._is_custom(Enum) or self._is_custom(UUID):
            self._walks = True
        self._options = OPTION | self._asking
        self._finite_only = nan != "null"
        self._takes_keys = non_str_keys == "convert" and not custom
        self._owner = Owner(self._is_custom, by_alias, self._convert, self._plain)
        self._known: dict[int, tuple[weakref.ref[type], Conversion]] = {}
        # A dict finds a class five times as fast as weak references do, but holds on to it. So it is for classes that
        # their module holds on to, too; when others have come up, or new ones, it begins anew.
        self._table: dict[type, Callable[[Any], Any]] = {}
        self._passing = False
        self._ends_specially = self._finite_only
        self._default = _asked(self._table, self._look_up)

    def dumps(self, obj: Any) -> bytes:
        """Return the JSON of `obj`.

        :raises EncodeError: it, or something in it, has none.
        """
        if self._walks:
            return self._walked(obj, {})
        cls = type(obj)
        what = obj
        if cls is list:
            if len(obj) >= _MANY and type(obj[0]) not in _JSON:
                what = self._rows(obj)
        elif cls is dict and len(obj) <= _FEW:
            for value in obj.values():
                if type(value) is list:
                    if len(value) >= _MANY and type(value[0]) not in _JSON:
                        what = self._with_rows(obj)
                    break
        try:
            body = _encode(what, self._default, self._options)
        except orjson.JSONEncodeError as error:
            return self._after(error, obj)
        if self._ends_specially:
            return self._ended(body, obj, {})
        return body

    def _ended(self, body: bytes, obj: object, kept: Kept) -> bytes:
        """Let go of the classes that may go, and look for numbers that JSON has not: orjson makes them null."""
        if self._passing:
            self._forget()
        if self._finite_only and b"null" in body:
            return self._walked(obj, kept)
        return body

    def _forget(self) -> None:
        self._passing = False
        self._ends_specially = self._finite_only
        self._table.clear()

    def find(self, cls: type) -> Conversion:
        """Say how the instances of a class are converted; decided once for each class, as long as it lives."""
        key = id(cls)
        entry = self._known.get(key)
        if entry is not None and entry[0]() is cls:
            return entry[1]
        conversion = self._decide(cls)
        self._table.clear()
        known = self._known
        known[key] = (weakref.ref(cls, lambda _: known.pop(key, None)), conversion)
        return conversion

    def _look_up(self, cls: type) -> Callable[[Any], Any]:
        """Fill the table."""
        convert = self.find(cls).convert
        self._table[cls] = convert
        if not _is_lasting(
            cls
        ):  # said last: another thread that forgets meanwhile has had it, or is told of it
            self._passing = self._ends_specially = True
        return convert

    def _decide(self, cls: type) -> Conversion:
        custom = self._custom
        for base in cls.__mro__[:-1]:
            if base in custom:
                return Conversion(custom[base], custom=True)
        for base in custom:
            if base is not object and issubclass(cls, base):  # registered with an abstract class
                return Conversion(custom[base], custom=True)
        if cls in _TIMES and self._asking & orjson.OPT_PASSTHROUGH_DATETIME:
            return Conversion(_native)
        conversion = conversion_of(cls, self._owner)
        if conversion.convert is unsupported and object in custom:
            return Conversion(custom[object], custom=True)
        return conversion

    def _is_custom(self, cls: type) -> bool:
        """Whether an instance of `cls`, or of a subclass, may be given to a function of the user's."""
        return any(
            base is not object and (issubclass(cls, base) or issubclass(base, cls))
            for base in self._custom
        )

    def _with_rows(self, obj: dict[Any, Any]) -> dict[Any, Any]:
        return {
            key: self._rows(value) if type(value) is list and value else value
            for key, value in obj.items()
        }

    def _rows(self, objects: list[Any]) -> Any:
        cls = type(objects[0])
        try:
            record = self.find(cls).record
            if record is None:
                return objects
            rows = record.many(objects, cls)
        except Exception:
            return objects  # one is not as it should be: they are looked at one by one
        return rows if type(rows) is orjson.Fragment or len(rows) == len(objects) else objects

    def _after(self, error: TypeError, obj: object) -> bytes:
        """Try again, after a refusal."""
        kept: Kept = {}
        reason = _reason(error)
        keys = reason is orjson.JSONEncodeError and self._takes_keys
        if keys or reason is OneShotError:
            body = self._second(obj, kept, orjson.OPT_NON_STR_KEYS if keys else 0)
            if body is not None:
                return self._ended(body, obj, kept)
        return self._walked(obj, kept)

    def _second(self, obj: object, kept: Kept, option: int) -> bytes | None:
        """Let orjson try once more, which is ten times as fast as a walk; None if it needs that.

        :param option: with the one for keys, two keys may become the same. Reading the JSON back drops one of them.
        """
        try:
            body = _encode(obj, _keeping(self.find, kept), self._options | option)
        except orjson.JSONEncodeError as error:
            _reason(error)
            return None
        if not option:
            return body
        try:
            return body if _encode(orjson.loads(body)) == body else None
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            return None  # a fragment that orjson would not have written

    def _walked(self, obj: object, kept: Kept) -> bytes:
        self._forget()
        return _encode(normalise(obj, self, kept), None, OPTION)

    def _convert(self, obj: Any) -> Any:
        return self.find(type(obj)).convert(obj)

    def _plain(self, obj: Any) -> Any:
        return orjson.loads(self.dumps(obj))


def _checked_encoders(encoders: object) -> dict[type, Callable[[Any], Any]]:
    subject = "Encoder(custom_encoders=...)"
    if encoders is None:
        return {}
    if not isinstance(encoders, Mapping):
        raise ConfigurationTypeError(subject, encoders, "give a dict of functions by class.")
    for cls, encode in encoders.items():
        if not isinstance(cls, type):
            raise ConfigurationTypeError(f"{subject} key", cls, "give a class.")
        if cls in _JSON:
            remedy = (
                "JSON has this type itself, and it is never asked about: give a subclass of it."
            )
            raise ConfigurationValueError(f"{subject} key", cls, remedy)
        if not callable(encode):
            remedy = "give a function of one argument, the object."
            raise ConfigurationTypeError(f"{subject}[{cls.__qualname__}]", encode, remedy)
    return dict(encoders)


def _asked(
    table: dict[type, Callable[[Any], Any]], look_up: Callable[[type], Callable[[Any], Any]]
) -> Callable[[Any], Any]:
    """Return the function that orjson asks about what it does not know."""

    def default(obj: Any) -> Any:
        try:
            convert = table[type(obj)]
        except KeyError:
            convert = look_up(type(obj))
        return convert(obj)

    return default


def _is_lasting(cls: type) -> bool:
    """Whether its module has it under its name."""
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found is cls


def _keeping(find: Callable[[type], Conversion], kept: Kept) -> Callable[[Any], Any]:
    """Return a `default` for a second attempt: it keeps what iterators give, and takes none that was used up."""

    def default(obj: Any) -> Any:
        conversion = find(type(obj))
        if conversion.inspect is not None and iterator_in(obj) is not None:
            raise UnsupportedError
        try:
            return conversion.convert(obj)
        except OneShotError:
            found = keep(obj, kept)
            if isinstance(found, Exception):
                raise found from None
            return found

    return default


def _reason(error: BaseException) -> type[BaseException]:
    """Return the class of what a conversion has raised; raise it if it must not be caught, as a KeyboardInterrupt."""
    while error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, Exception) or isinstance(error, MemoryError):
        raise error
    return type(error)


def _native(obj: Any) -> Any:
    """Encode a date or a time for which orjson has to ask, because there is a custom encoder for another of them."""
    return with_offset(obj) if type(obj) is time else orjson.Fragment(_encode(obj, None, OPTION))


default_encoder = Encoder()
"""What `dumps` takes where no other is set."""


_dumps = default_encoder.dumps
_current = current_account.get


def current_encoder() -> Encoder:
    """The encoder that is set around the running code, or :data:`default_encoder`."""
    account = current_account.get()
    while account is not None:
        encoder: Encoder | None = account.encoder
        if encoder is not None:
            return encoder
        account = account.parent
    return default_encoder


def dumps(obj: object) -> bytes:
    """Return the JSON of `obj`, made by the encoder that is set around the app, or the default one.

    In a request, the time that it takes is noted as ``serialization_time``.

    :raises EncodeError: it, or something in it, has none.
    """
    account = _current()
    if account is None:
        return _dumps(obj)
    started_ns = perf_counter_ns()
    body = current_encoder().dumps(obj)
    account.observe("serialization_time", perf_counter_ns() - started_ns)
    return body
