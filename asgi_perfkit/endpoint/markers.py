"""What a parameter says of the part of the request that it comes from."""

from __future__ import annotations

import collections.abc
import typing
from abc import abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Final
from weakref import WeakSet

from asgi_perfkit.endpoint.inputs import (
    BodyInput,
    FileInput,
    Input,
    PathInput,
    StreamInput,
    TextInput,
)
from asgi_perfkit.endpoint.intake import BodyStream
from asgi_perfkit.endpoint.models import decoder_of
from asgi_perfkit.endpoint.shapes import UnknownShapeError
from asgi_perfkit.endpoint.texts import element_of, from_text, without_none
from asgi_perfkit.endpoint.uploads import UploadFile
from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.resources.markers import Dependency, Marker, Parameter

__all__ = ["Body", "Form", "Header", "Path", "Query"]

_MIB: Final = 1 << 20
_STREAMS: Final = (collections.abc.AsyncIterator, collections.abc.AsyncIterable)


# By the function and the parameter. Each plan asks anew, of another marker if the annotation is a string, and the plans
# of one function have to mean the same.
_known: Final[dict[tuple[str, str], WeakSet[Input]]] = {}


class _FromRequest(Marker):
    """A parameter that comes from the request."""

    __slots__ = ("_options",)

    def __init__(self, *options: object) -> None:
        self._options = (type(self), *options)

    def dependency(self, parameter: Parameter) -> Dependency:
        alike = _known.setdefault((parameter.function, parameter.name), WeakSet())
        for known in alike:
            if known.options == self._options and known.parameter == parameter:
                break
        else:
            known = self._input(parameter)
            known.options = self._options
            alike.add(known)
        return Dependency(known, thread=False)

    @abstractmethod
    def _input(self, parameter: Parameter) -> Input:
        """What makes the values of `parameter`."""

    def _unfit(self, parameter: Parameter, remedy: str) -> ConfigurationTypeError:
        return ConfigurationTypeError(
            f"{parameter.function}({parameter.name}: {type(self).__name__}())",
            parameter.annotation,
            remedy,
        )


class _Named(_FromRequest):
    __slots__ = ("_alias",)

    _part = ""
    _lists = True

    def __init__(self, alias: str | None = None, *options: object) -> None:
        super().__init__(alias, *options)
        if alias is not None and not isinstance(alias, str):
            raise ConfigurationTypeError(
                f"{type(self).__name__}(alias=...)", alias, "give the name in the request."
            )
        self._alias = alias

    def _name(self, parameter: Parameter) -> str:
        return self._alias or parameter.name

    def _text(self, parameter: Parameter, kind: type[TextInput] = TextInput) -> TextInput:
        annotation = without_none(parameter.annotation)
        element = element_of(annotation) if self._lists else None
        convert = from_text(annotation if element is None else without_none(element))
        if convert is None:
            raise self._unfit(
                parameter,
                "it is made of text, so it is a str, int, float, bool, Decimal, datetime, date, UUID, Enum or Literal"
                + (", one of these or None, or a list of them." if self._lists else "."),
            )
        return kind(parameter, self._part, self._name(parameter), convert, element is not None)


class Query(_Named):
    """A parameter that comes from the query string.

    It is a str, int, float, bool, Decimal, datetime, date, UUID, Enum or Literal; one of these or None; or a list of
    them, of a name that is repeated. Without a list the last one counts.

    :param alias: the name in the query; that of the parameter if None.
    """

    __slots__ = ()
    _part = "query"

    def _input(self, parameter: Parameter) -> Input:
        return self._text(parameter)


class Header(_Named):
    """A parameter that comes from a header; of the types of :class:`Query`.

    The values of several lines are one, joined by commas (RFC 9110, section 5.3); a list has one for each.

    :param alias: the name of the header; that of the parameter, with hyphens in place of underscores, if None.
    """

    __slots__ = ()
    _part = "header"

    def _name(self, parameter: Parameter) -> str:
        return (self._alias or parameter.name.replace("_", "-")).lower()

    def _input(self, parameter: Parameter) -> Input:
        return self._text(parameter)


class Path(_Named):
    """A parameter that comes from the path, where the router has put it into ``scope["path_params"]``.

    It is of one of the types of :class:`Query` but a list, or what the router has made of it.

    :param alias: the name in the route; that of the parameter if None.
    """

    __slots__ = ()
    _part = "path"
    _lists = False

    def _input(self, parameter: Parameter) -> Input:
        return self._text(parameter, PathInput)


class Form(_Named):
    """A parameter that is a field of a form, urlencoded or multipart; or a file in it.

    It is of one of the types of :class:`Query`, or an :class:`UploadFile`, or a list of these. Needs the extra
    ``asgi_perfkit[forms]``.

    What is declared is the limit of what is taken: a form is refused that has more.

    :param alias: the name in the form; that of the parameter if None.
    :param max_size: how many bytes each may have: if None, 1 MiB, and files 16 MiB.
    :param max_count: of a list, how many there may be.
    :raises ConfigurationError: an argument cannot be used, or the package `python-multipart` is missing.
    """

    __slots__ = ("_max_count", "_max_size")
    _part = "form"

    def __init__(
        self, alias: str | None = None, *, max_size: int | None = None, max_count: int = 100
    ) -> None:
        super().__init__(alias, max_size, max_count)
        if max_size is not None:
            _check_size("Form(max_size=...)", max_size)
        _check_size("Form(max_count=...)", max_count)
        self._max_size = max_size
        self._max_count = max_count
        try:
            import_module("python_multipart")
        except ImportError:
            raise ConfigurationValueError(
                "Form()",
                "python_multipart",
                "there is no such package here: install asgi_perfkit[forms].",
            ) from None

    def _input(self, parameter: Parameter) -> Input:
        annotation = without_none(parameter.annotation)
        element = element_of(annotation)
        found: TextInput
        if UploadFile in (annotation, element):
            found = FileInput(
                parameter, self._part, self._name(parameter), str, element is not None
            )
            found.max_size = 16 * _MIB
        else:
            found = self._text(parameter)
            found.max_size = _MIB
        if self._max_size is not None:
            found.max_size = self._max_size
        if found.is_list:
            found.max_count = self._max_count
        return found


class Body(_FromRequest):
    """The parameter that is the body of the request.

    Of JSON it is made by what it is annotated with: a model of pydantic, a Struct of msgspec, a dataclass, types of
    JSON, or what these are made of. ``bytes`` is the body as it is, and ``AsyncIterator[bytes]`` the same as it comes,
    a :class:`BodyStream`.

    :param max_size: how many bytes it may have; None for any number.
    :param content_types: those that are taken, a ``*`` in them for anything. If None, that of JSON
        (``"application/json"`` and ``"*+json"``); of bytes, any.
    :raises ConfigurationError: an argument cannot be used.
    """

    __slots__ = ("_content_types", "_max_size")

    def __init__(
        self, *, max_size: int | None = _MIB, content_types: Sequence[str] | None = None
    ) -> None:
        if max_size is not None:
            _check_size("Body(max_size=...)", max_size)
        if content_types is not None:
            _check_content_types(content_types)
            content_types = tuple(content_types)
        super().__init__(max_size, content_types)
        self._max_size = max_size
        self._content_types = content_types

    def _input(self, parameter: Parameter) -> Input:
        annotation = without_none(parameter.annotation)
        accepted = self._content_types
        if annotation is BodyStream or typing.get_origin(annotation) in _STREAMS:
            if typing.get_args(annotation) not in ((), (bytes,)):
                raise self._unfit(parameter, "what comes are bytes: AsyncIterator[bytes].")
            return StreamInput(parameter, self._max_size, accepted or ("*",))
        if annotation is bytes:
            return BodyInput(parameter, self._max_size, accepted or ("*",), None)
        try:
            decode = decoder_of(parameter.annotation)
        except UnknownShapeError as error:
            remedy = f"no value is made for {error}: give a model, a dataclass or types of JSON."
            raise self._unfit(parameter, remedy) from error
        return BodyInput(
            parameter, self._max_size, accepted or ("application/json", "*+json"), decode
        )


def _check_size(subject: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationTypeError(subject, value, "give a whole number.")
    if value < 1:
        raise ConfigurationValueError(subject, value, "give 1 or more.")


def _check_content_types(value: object) -> None:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(each, str) and each.count("*") < 2 for each in value)
    ):
        raise ConfigurationTypeError(
            "Body(content_types=...)",
            value,
            'give a list of content types, such as ["application/json", "*+json"].',
        )
