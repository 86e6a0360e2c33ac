"""The classes of libraries, none of which is imported: what a class is, is told by marks of its own.

A mark is an attribute that the library gives to its classes, or the module where a base was defined.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields as dataclass_fields
from datetime import date, datetime
from functools import partial
from operator import attrgetter
from typing import Any

import orjson

from asgi_perfkit.encoding.compiled import (
    Record,
    many_of_sequences,
    record_of_attributes,
    record_of_dict,
)
from asgi_perfkit.encoding.conversion import Conversion, Converter, Owner
from asgi_perfkit.encoding.models import prove

__all__ = ["BY_MARK", "BY_NAME", "by_pydantic", "exact_datetime"]


def _checked(record: Record, otherwise: Converter) -> Converter:
    """Take `record`, and `otherwise` for instances that are not as it expects."""
    one = record.one

    def convert(obj: Any) -> Any:
        try:
            found = one(obj)
        except Exception:
            found = None  # it is not as it should be
        return otherwise(obj) if found is None else found

    return convert


def _by_fields(cls: type, names: Sequence[str]) -> Conversion:
    slow = partial(_attributes, tuple(names))
    elsewhere = {  # slots, properties, descriptors: such a field is not in `__dict__`, or has another name there
        name
        for base in cls.__mro__
        for name, value in base.__dict__.items()
        if hasattr(type(value), "__set__")
    }
    if elsewhere.isdisjoint(names):
        record = record_of_dict(cls, names)
        return Conversion(_checked(record, slow), record)
    compiled = record_of_attributes(names)
    return Conversion(slow) if compiled is None else Conversion(compiled.one, compiled)


def _attributes(names: tuple[str, ...], obj: Any) -> dict[str, Any]:
    return {name: getattr(obj, name) for name in names}


def _dataclass(cls: Any, base: type, owner: Owner) -> Conversion:
    return _by_fields(cls, [field.name for field in dataclass_fields(cls)])


def _attrs(cls: Any, base: type, owner: Owner) -> Conversion:
    return _by_fields(cls, [field.name for field in cls.__attrs_attrs__])


def _pydantic(cls: Any, base: type, owner: Owner) -> Conversion:
    by_alias, fallback = owner.by_alias, owner.plain

    def fragment(obj: Any) -> orjson.Fragment:
        serializer = type(obj).__pydantic_serializer__
        return orjson.Fragment(serializer.to_json(obj, by_alias=by_alias, fallback=fallback))

    def many(objects: list[Any], cls: Any) -> list[orjson.Fragment]:
        if {*map(type, objects)} != {cls}:
            return []
        to_json = cls.__pydantic_serializer__.to_json
        made = orjson.Fragment
        return [made(to_json(obj, by_alias=by_alias, fallback=fallback)) for obj in objects]

    def plain(obj: Any) -> Any:
        serializer = type(obj).__pydantic_serializer__
        return serializer.to_python(obj, mode="json", by_alias=by_alias, fallback=fallback)

    dump = getattr(cls, "model_dump_json", None)
    if dump is not None and dump.__module__ != "pydantic.main":
        return Conversion(lambda obj: orjson.Fragment(obj.model_dump_json().encode()))
    record = None if by_alias or dump is None else prove(cls, owner.is_custom)
    if record is None:
        return Conversion(fragment, Record(fragment, many), plain)
    return Conversion(_checked(record, fragment), record, plain)


def _struct(cls: Any, base: type, owner: Owner) -> Conversion:
    msgspec = sys.modules["msgspec"]
    convert = owner.convert

    def hook(obj: Any) -> Any:
        found = convert(obj)
        return msgspec.Raw(orjson.dumps(found)) if type(found) is orjson.Fragment else found

    encode = msgspec.json.Encoder(enc_hook=hook).encode
    fragment = orjson.Fragment

    def one(obj: Any) -> orjson.Fragment:
        return fragment(encode(obj))

    def many(objects: list[Any], cls: type) -> Any:
        return one(objects) if {*map(type, objects)} == {cls} else []

    inspect = partial(msgspec.to_builtins, enc_hook=owner.plain, str_keys=True)
    return Conversion(one, Record(one, many), inspect)


def _mapped(cls: Any, base: type, owner: Owner) -> Conversion:
    """The columns of an object that SQLAlchemy maps; relationships are not followed."""
    columns = cls.__mapper__.column_attrs
    keys = tuple(column.key for column in columns)
    deferred = {column.key for column in columns if column.deferred}

    def convert(obj: Any) -> dict[str, Any]:
        state = obj._sa_instance_state
        loaded = state.dict
        stale = state.expired_attributes - deferred
        # A column that is deferred stays away: to load it here would be a query for each object. Another that a commit
        # has expired was loaded, and one of an object that is new has its default.
        return {
            key: loaded[key] if key in loaded else getattr(obj, key)
            for key in keys
            if key in loaded or key in stale or state.key is None
        }

    return Conversion(convert)


def _django_model(cls: Any, base: type, owner: Owner) -> Conversion | None:
    """The fields of a Django model that were loaded, a foreign key by its value, as `QuerySet.values()` has them."""
    if not hasattr(cls._meta, "concrete_fields"):
        return None  # others have a `_meta`, too
    names = tuple(field.attname for field in cls._meta.concrete_fields)

    def convert(obj: Any) -> dict[str, Any]:
        loaded = obj.__dict__
        return {name: loaded[name] for name in names if name in loaded}

    return Conversion(convert)


def by_pydantic(obj: Any) -> Any:
    return sys.modules["pydantic_core"].to_jsonable_python(obj)


def _numpy(value: Any) -> Any:
    """The numbers of numpy as orjson writes them, which is shorter for those of less than 64 bits; not its NaT."""
    kind = value.dtype.kind
    if kind in "mM":
        return _numpy_times(value)
    try:
        ordered = value if value.flags.c_contiguous else value.copy()
        return orjson.Fragment(orjson.dumps(ordered, None, orjson.OPT_SERIALIZE_NUMPY))
    except orjson.JSONEncodeError:
        return _numpy_python(value)


def _numpy_python(value: Any) -> Any:
    if value.dtype.kind in "mM":
        return _numpy_times(value)
    if value.dtype.kind == "f" and value.dtype.itemsize < 8:  # the digits that orjson writes
        value = value.astype("f4").astype("U").astype("f8")
    found = value.tolist()
    return float(found) if type(found) is type(value) else found  # a longdouble stays what it is


def _numpy_times(value: Any) -> Any:
    if value.ndim:
        return list(value)
    if str(value) == "NaT":
        return None
    found = value.astype(f"{value.dtype.kind}8[us]").item()
    return str(value) if type(found) is int and value.dtype.kind == "M" else found  # no such year


def exact_datetime(moment: datetime) -> datetime:
    return datetime.combine(
        date(moment.year, moment.month, moment.day), moment.timetz(), moment.tzinfo
    )


def _timestamp(moment: Any) -> Any:
    if not moment.nanosecond:
        return exact_datetime(moment)
    return moment.isoformat().replace("+00:00", "Z")


def _null(value: Any) -> None:
    return None


def _raw(value: Any) -> orjson.Fragment:
    return orjson.Fragment(bytes(value))


# SQLAlchemy's names of columns are strings of a class of its own, and orjson takes no such keys. `_asdict` and
# `_mapping` are public, but ten times as slow.


def _row(row: Any) -> dict[str, Any]:
    return _rows([row], type(row))[0]


def _rows(rows: list[Any], cls: Any) -> list[dict[str, Any]]:
    try:
        parent = rows[0]._parent
        many = many_of_sequences(tuple(map(str.__str__, parent._keys)))
        return many(rows, cls, parent)
    except (AttributeError, TypeError, ValueError):
        return [row._asdict() for row in rows if type(row) is cls]


BY_NAME: dict[tuple[str, str], Conversion] = {
    ("collections", "UserString"): Conversion(str),
    ("django.db.models.fields.files", "FieldFile"): Conversion(attrgetter("name")),
    ("django.db.models.query", "QuerySet"): Conversion(list),
    ("django.utils.functional", "Promise"): Conversion(str),
    ("msgspec", "Raw"): Conversion(_raw, inspect=lambda raw: orjson.loads(bytes(raw))),
    ("numpy", "generic"): Conversion(_numpy, inspect=_numpy_python),
    ("numpy", "ndarray"): Conversion(_numpy, inspect=_numpy_python),
    ("pandas._libs.missing", "C_NAType"): Conversion(_null),
    ("pandas._libs.tslibs.nattype", "_NaT"): Conversion(_null),
    ("pandas._libs.tslibs.timestamps", "_Timestamp"): Conversion(_timestamp),
    ("sqlalchemy.engine.row", "Row"): Conversion(_row, Record(_row, _rows)),
}

BY_MARK: dict[str, Callable[[Any, type, Owner], Conversion | None]] = {
    "__pydantic_serializer__": _pydantic,
    "__struct_fields__": _struct,
    "__attrs_attrs__": _attrs,
    "__mapper__": _mapped,
    "__dataclass_fields__": _dataclass,
    "_meta": _django_model,
}
