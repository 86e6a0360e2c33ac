"""pydantic: for which classes the instance's ``__dict__`` gives the same JSON as ``model_dump_json``.

The serializer of a model costs several times what orjson takes for the same values, so it is gone around where the
class's own schema proves that it makes no difference. The proof is a list of what is known to make none: a kind of
field, or an option, that is not in it, such as one that a later pydantic brings, leaves the model to its serializer.

What a schema cannot tell is looked at in each instance, in the function that is compiled for the class: that it has
the fields of the class and no other attribute (`model_construct`, a cached property); that a field that is a model
holds no subclass, whose fields pydantic would leave out; that a time zone's offset is one of whole minutes, where
pydantic cuts and orjson rounds; that a `time` is none of those that orjson writes wrong (3.11.6 to 3.13.0).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timezone
from decimal import Decimal
from itertools import cycle
from typing import Any
from uuid import UUID

from asgi_perfkit.encoding.compiled import Record, record_of_dict

__all__ = ["prove"]

Schema = Mapping[str, Any]

_NATIVE: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "date": (date,),
    "decimal": (Decimal,),
    "float": (float,),
    "int": (int,),
    "none": (type(None),),
    "str": (str,),
    "uuid": (UUID,),
}
"""Kinds of values whose JSON is the same, and their classes."""

_KEYS = {
    "model": {
        "cls", "config", "custom_init", "extra_behavior", "frozen", "generic_origin", "metadata", "post_init", "ref",
        "revalidate_instances", "root_model", "schema", "strict", "type",
    },
    "model-fields": {
        "computed_fields", "extra_behavior", "fields", "from_attributes", "metadata", "model_name", "ref", "strict",
        "type",
    },
    "model-field": {"frozen", "metadata", "schema", "type", "validation_alias"},
    "config": {
        "allow_inf_nan", "cache_strings", "coerce_numbers_to_str", "extra_fields_behavior", "from_attributes",
        "hide_input_in_errors", "loc_by_alias", "populate_by_name", "regex_engine", "revalidate_instances",
        "str_max_length", "str_min_length", "str_strip_whitespace", "str_to_lower", "str_to_upper", "strict", "title",
        "val_json_bytes", "val_temporal_unit", "validate_by_alias", "validate_by_name", "validate_default",
        "validation_error_cause",
    },
}  # fmt: skip
"""What may be in a schema without being seen in the JSON."""

_VALIDATORS = {"function-after", "function-before", "function-wrap"}
_SCALARS = (str, int, type(None))
_OF_NUMBERS = {"dict", "float", "frozenset", "int", "list", "set", "tuple"}
"""Kinds that are, or may hold, numbers, by the names of their classes."""


class _UnprovedError(Exception):
    """It may make a difference."""


def prove(cls: Any, is_custom: Callable[[type], bool]) -> Record | None:
    """Return how instances of `cls` become dicts whose JSON is that of its serializer; None if nobody can tell.

    :param is_custom: whether a class is encoded in a way of its own.
    """
    try:
        return _Proof(cls, is_custom).record()
    except _UnprovedError:
        return None


class _Proof:
    """The proof for one class; those of the models inside are made along with it."""

    def __init__(
        self, cls: Any, is_custom: Callable[[type], bool], outer: _Proof | None = None
    ) -> None:
        self._cls = cls
        self._is_custom = is_custom
        self._proving: frozenset[type] = (outer._proving if outer else frozenset()) | {cls}
        self._proven: set[type] = outer._proven if outer else set()
        self._definitions: dict[str, Schema] = {}
        self._conditions: list[str] = []
        self._names: dict[str, object] = {"UTC": timezone.utc, "whole": whole_minutes}

    def record(self) -> Record:
        cls = self._cls
        if not cls.__dict__.get("__pydantic_complete__"):
            raise _UnprovedError
        schema = self._resolved(cls.__pydantic_core_schema__)
        if schema.get("cls") != cls:
            raise _UnprovedError
        fields = self._fields_of(schema)
        for name, field in fields.items():
            self._prove_field(f"d[{name!r}]", field["schema"])
        return record_of_dict(cls, fields, self._conditions, self._names)

    def _resolved(self, schema: Schema) -> Schema:
        """What is behind references and validators."""
        while True:
            kind = schema.get("type")
            if "serialization" in schema:
                raise _UnprovedError
            if kind == "definitions":
                self._definitions.update({each["ref"]: each for each in schema["definitions"]})
            elif kind == "definition-ref":
                found = self._definitions.get(schema["schema_ref"])
                if found is None:
                    raise _UnprovedError
                schema = found
                continue
            elif kind == "default":
                if not self._is_exact(schema.get("default"), schema["schema"]):
                    raise _UnprovedError
            elif kind not in _VALIDATORS:
                return schema
            schema = schema["schema"]

    def _is_exact(self, default: Any, schema: Schema) -> bool:
        """Whether the numbers in a default are of the class that the field says; nobody has validated them.

        pydantic writes ``0`` as ``0.0`` where the field is a float.
        """
        schema = self._resolved(schema)
        kind = schema["type"]
        if kind == "nullable":
            return self._is_exact(default, schema["schema"])
        if default is None or kind not in _OF_NUMBERS:
            return True
        if type(default).__name__ != kind:
            return False
        if kind in {"float", "int"}:
            return True
        if kind == "tuple":
            return all(map(self._is_exact, default, cycle(schema["items_schema"])))
        key, values = (
            ("values_schema", default.values()) if kind == "dict" else ("items_schema", default)
        )
        inner = schema.get(key, {"type": "any"})
        return all(self._is_exact(value, inner) for value in values)

    def _fields_of(self, schema: Schema) -> Mapping[str, Schema]:
        self._only(schema, "model")
        self._only(schema.get("config", {}), "config")
        inner = self._resolved(schema["schema"])
        self._only(inner, "model-fields")
        behaviors = [
            schema.get("config", {}).get("extra_fields_behavior"),
            schema.get("extra_behavior"),
            inner.get("extra_behavior"),
        ]
        if inner.get("computed_fields") or "allow" in behaviors:
            raise _UnprovedError
        fields: Mapping[str, Schema] = inner["fields"]
        for field in fields.values():
            self._only(field, "model-field")
        return fields

    @staticmethod
    def _only(schema: Schema, kind: str) -> None:
        if not schema.keys() <= _KEYS[kind] or (kind != "config" and schema.get("type") != kind):
            raise _UnprovedError

    def _prove_field(self, value: str, schema: Schema) -> None:
        """Prove a field, with conditions on `value`, the expression for what it holds, where they are needed."""
        schema = self._resolved(schema)
        nullable = schema["type"] == "nullable"
        if nullable:
            schema = self._resolved(schema["schema"])
        kind = schema["type"]
        or_none = f"{value} is None or " if nullable else ""
        if kind == "datetime":
            self._native(datetime)
            self._conditions.append(
                f"({or_none}(t := {value}.tzinfo) is UTC or t is None or whole({value}))"
            )
        elif kind == "time":
            self._native(time)
            self._conditions.append(f"({or_none}not 9_999 < {value}.microsecond < 100_000)")
        elif kind == "model":
            self._conditions.append(f"({or_none}type({value}) is {self._model(schema)}())")
        elif kind in {"list", "dict"} and (inner := self._model_inside(schema)):
            values = f"{value}.values()" if kind == "dict" else value
            self._conditions.append(f"({or_none}{{{inner}()}}.issuperset(map(type, {values})))")
        else:
            self._prove_plain(schema)

    def _model_inside(self, schema: Schema) -> str | None:
        key = "items_schema" if schema["type"] == "list" else "values_schema"
        inner = self._resolved(schema.get(key, {"type": "any"}))
        if inner["type"] != "model":
            return None
        if schema["type"] == "dict":
            self._prove_key(schema)
        return self._model(inner)

    def _model(self, schema: Schema) -> str:
        """Prove the model of a field, by what the field says of it and by what it says itself; return its name."""
        cls = schema["cls"]
        if self._is_custom(cls) or cls.model_dump_json.__module__ != "pydantic.main":
            raise _UnprovedError
        if cls not in self._proving:
            if cls not in self._proven:
                _Proof(cls, self._is_custom, self).record()
                self._proven.add(cls)
            here = _Proof(cls, self._is_custom, self)
            here._definitions = self._definitions
            for field in here._fields_of(schema).values():
                here._prove_field("", field["schema"])
        name = f"model_{len(self._names)}"
        self._names[name] = weakref.ref(cls)
        return name

    def _prove_plain(self, schema: Schema) -> None:
        """Prove what needs no look at the value."""
        schema = self._resolved(schema)
        kind = schema["type"]
        if kind in _NATIVE:
            for cls in _NATIVE[kind]:
                self._native(cls)
        elif kind == "nullable":
            self._prove_plain(schema["schema"])
        elif kind in {"list", "set", "frozenset"}:
            self._native({"list": list, "set": set, "frozenset": frozenset}[kind])
            self._prove_plain(schema.get("items_schema", {"type": "any"}))
        elif kind == "tuple":
            for each in schema["items_schema"]:
                self._prove_plain(each)
        elif kind == "dict":
            self._prove_key(schema)
            self._prove_plain(schema.get("values_schema", {"type": "any"}))
        elif kind == "literal":
            if not all(type(each) in _SCALARS for each in schema["expected"]):
                raise _UnprovedError
        elif kind == "enum":
            self._native(schema["cls"])
            if not all(type(each.value) in _SCALARS for each in schema["members"]):
                raise _UnprovedError
        else:
            raise _UnprovedError

    def _prove_key(self, schema: Schema) -> None:
        if self._resolved(schema.get("keys_schema", {"type": "any"}))["type"] != "str":
            raise _UnprovedError

    def _native(self, cls: type) -> None:
        if self._is_custom(cls):
            raise _UnprovedError


def whole_minutes(moment: datetime) -> bool:
    """Whether the offset of `moment` has no seconds."""
    offset = moment.utcoffset()
    return offset is not None and not offset.seconds % 60 and not offset.microseconds
