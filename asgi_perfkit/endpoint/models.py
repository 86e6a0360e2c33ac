"""Makes of the bytes of JSON what a parameter is annotated with; what does not fit is told the same way by all.

pydantic and msgspec read the bytes themselves, in one go. Neither is imported: whoever has a class of theirs has
imported it.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from asgi_perfkit.endpoint.shapes import MAX_REASONS, Misfit, path_of, shape_of
from asgi_perfkit.exceptions import InvalidRequestError, MalformedBodyError
from asgi_perfkit.resources.markers import REQUIRED

__all__ = ["Decode", "decoder_of"]

Decode = Callable[[bytes], Any]
"""Makes a value of a body; raises a :class:`RequestError`."""

_PYDANTIC: Final = "__pydantic_validator__"
_MSGSPEC: Final = "__struct_fields__"
_MISSING: Final = re.compile("Object missing required field `(.*)`")


def decoder_of(annotation: Any) -> Decode:
    """What makes values for an `annotation`.

    :raises UnknownShapeError: there is nothing that does.
    """
    if annotation in (REQUIRED, Any, object):
        return _json
    if isinstance(annotation, type) and _PYDANTIC in vars(annotation):
        return _by_pydantic(getattr(annotation, _PYDANTIC), annotation)
    marks = _marks_in(annotation, set())
    if _PYDANTIC in marks:
        adapter = sys.modules["pydantic"].TypeAdapter(annotation)
        return _by_pydantic(adapter.validator, None)
    if _MSGSPEC in marks:
        return _by_msgspec(annotation)
    shape = shape_of(annotation)

    def decode(body: bytes) -> Any:
        value = _json(body)
        try:
            return shape(value)
        except Misfit as misfit:
            raise _invalid(misfit.reasons) from None
        except RecursionError:
            raise MalformedBodyError("it is nested too deeply") from None

    return decode


def _marks_in(annotation: Any, seen: set[Any]) -> set[str]:
    """The marks of libraries that classes in an annotation have, and the fields of dataclasses among them."""
    found: set[str] = set()
    inner: Sequence[Any] = typing.get_args(annotation)
    if isinstance(annotation, type) and annotation not in seen:
        seen.add(annotation)
        found |= {mark for mark in (_PYDANTIC, _MSGSPEC) if hasattr(annotation, mark)}
        if not found and dataclasses.is_dataclass(annotation):
            try:
                inner = (*inner, *typing.get_type_hints(annotation).values())
            except Exception:  # what is wrong with them is told by who needs them
                pass
    for each in inner:
        found |= _marks_in(each, seen)
    return found


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = error.msg.partition(": line")[0]
        raise MalformedBodyError(reason, (error.lineno, error.colno, error.pos)) from None


def _malformed(body: bytes, reason: str) -> MalformedBodyError:
    """What is wrong with a body that is no JSON, as `orjson` tells it; the `reason`, if that takes it."""
    try:
        _json(body)
    except MalformedBodyError as error:
        return error
    return MalformedBodyError(reason)


def _invalid(reasons: Sequence[tuple[Sequence[object], str]]) -> InvalidRequestError:
    told = reasons[:MAX_REASONS]
    return InvalidRequestError(("body", path_of(steps), reason) for steps, reason in told)


def _by_pydantic(validator: Any, cls: Any) -> Decode:
    invalid: type[Exception] = sys.modules["pydantic_core"].ValidationError

    def decode(body: bytes) -> Any:
        if b"NaN" in body or b"Infinity" in body:  # which pydantic takes for JSON, and nobody else
            _json(body)
        # A model may be completed only when what it refers to is defined, and has another validator then.
        validate = (validator if cls is None else cls.__pydantic_validator__).validate_json
        try:
            return validate(body)
        except invalid as error:
            found: Any = error
            errors = found.errors(include_url=False, include_context=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise _malformed(body, errors[0]["msg"])
        raise _invalid([(each["loc"], each["msg"]) for each in errors[:MAX_REASONS]])

    return decode


def _by_msgspec(annotation: Any) -> Decode:
    msgspec = sys.modules["msgspec"]
    decode_json = msgspec.json.Decoder(annotation).decode

    def decode(body: bytes) -> Any:
        try:
            return decode_json(body)
        except msgspec.ValidationError as error:
            reason, _, place = str(error).partition(" - at `")
            place = place.rstrip("`") or "$"
            # The others tell the place that is empty, and not the object around it.
            if missing := _MISSING.fullmatch(reason):
                place += f".{missing[1]}"
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _malformed(body, str(error)) from None
        # It tells what does not fit before it has read what comes behind, which may be no JSON.
        _json(body)
        raise InvalidRequestError([("body", place, reason)])

    return decode
