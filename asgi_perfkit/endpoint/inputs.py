"""What makes the values of parameters out of a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from asgi_perfkit.endpoint.intake import BodyStream, Intake
from asgi_perfkit.endpoint.models import Decode
from asgi_perfkit.endpoint.texts import FromText
from asgi_perfkit.exceptions import (
    BodyTooLargeError,
    ConfigurationValueError,
    InvalidRequestError,
    UnsupportedBodyError,
)
from asgi_perfkit.resources.markers import REQUIRED, Parameter

__all__ = ["BodyInput", "FileInput", "Input", "PathInput", "StreamInput", "TextInput", "Unfit"]

_REMEMBERED: Final = 16


class Unfit(Exception):  # noqa: N818  # it never gets out
    """The value of a parameter cannot be made; the message says why."""


class Input:
    """Makes the value of one parameter.

    As a dependency it finds what was made before the dependencies were: all that a request brings is read first, so
    that nothing is open while it is waited for.

    :ivar options: of the marker that it was made for.
    """

    __slots__ = ("__weakref__", "options", "parameter")

    options: tuple[object, ...]

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter

    def __call__(self, endpoint_intake: Intake) -> Any:
        return endpoint_intake.values[self]


class TextInput(Input):
    """A parameter that is made of text: of a query, a header, a form.

    :param part: of the request.
    :param name: there.
    :param convert: makes a value of a text.
    :param is_list: whether the value is a list of what is made.
    :ivar max_size: in a form, how many bytes each may have.
    :ivar max_count: in a form, how many there may be, if it is a list.
    """

    __slots__ = ("_convert", "_default", "is_list", "max_count", "max_size", "name", "part")

    is_file = False

    def __init__(
        self, parameter: Parameter, part: str, name: str, convert: FromText, is_list: bool
    ) -> None:
        super().__init__(parameter)
        self.part = part
        self.name = name
        self.is_list = is_list
        self.max_size = self.max_count = 1
        self._convert = convert
        self._default = parameter.default

    def take(self, intake: Intake) -> Any:
        """The value that a request has.

        :raises Unfit: it has none that can be used.
        :raises InvalidRequestError: none of the values in this part can be.
        """
        if self.part == "query":
            return self.value(intake.query().get(self.name))
        found = intake.headers().get(self.name)
        return self.value([", ".join(found)] if found and not self.is_list else found)

    def value(self, found: list[Any] | None) -> Any:
        """The value that is made of what was `found` under the name.

        :raises Unfit: there is none.
        """
        if not found:
            return self.missing()
        convert = self._convert
        try:
            if self.is_list:
                return [convert(each) for each in found]
            return convert(found[-1])
        except ValueError as error:
            raise Unfit(str(error)) from None

    def missing(self) -> Any:
        if self._default is REQUIRED:
            raise Unfit("it is missing")
        return self._default


class FileInput(TextInput):
    """A parameter that is a file in a form, or a list of these."""

    __slots__ = ()

    is_file = True

    def value(self, found: list[Any] | None) -> Any:
        if not found:
            return self.missing()
        return found if self.is_list else found[-1]


class PathInput(TextInput):
    """A parameter that comes from the path, as text or as what the router has made of that."""

    __slots__ = ()

    def take(self, intake: Intake) -> Any:
        found = intake.path().get(self.name, REQUIRED)
        if isinstance(found, str):
            return self.value([found])
        if found is REQUIRED and self.parameter.default is REQUIRED:
            raise ConfigurationValueError(
                f"{self.parameter.function}({self.parameter.name})",
                dict(intake.path()),
                f"the route of this endpoint has to have a {{{self.name}}} in its path.",
            )
        if found is REQUIRED:
            return self.parameter.default
        if isinstance(self.parameter.annotation, type) and isinstance(
            found, self.parameter.annotation
        ):
            return found
        return self.value([str(found)])


class BodyInput(Input):
    """A parameter that is the body.

    :param max_size: how many bytes that may have; None for any number.
    :param accepted: the content types.
    :param decode: makes the value of it; None for the bytes.
    """

    __slots__ = ("_accepted", "_decode", "_known", "_max_size")

    def __init__(
        self,
        parameter: Parameter,
        max_size: int | None,
        accepted: Sequence[str],
        decode: Decode | None,
    ) -> None:
        super().__init__(parameter)
        self._max_size = max_size
        self._accepted = accepted
        self._known: set[bytes] = set()
        self._decode = decode

    async def read(self, intake: Intake) -> Any:
        """The value that a request has.

        :raises RequestError: it cannot be used.
        :raises ClientDisconnectedError: the client has left.
        """
        content_type, length = intake.content()
        if content_type is not None and content_type not in self._known:
            self._check(content_type)
        body = await intake.body(self._max_size, length)
        if not body and self._decode is not None:
            if self.parameter.default is REQUIRED:
                raise InvalidRequestError([("body", "$", "it is missing")])
            return self.parameter.default
        if content_type is None:
            self._check(b"")
        return body if self._decode is None else self._decode(body)

    def _check(self, content_type: bytes) -> None:
        text = content_type.decode("latin-1")
        if not is_accepted(text, self._accepted):
            raise UnsupportedBodyError(text, self._accepted)
        if len(self._known) < _REMEMBERED:  # a client may make up any number
            self._known.add(content_type)


class StreamInput(BodyInput):
    """A parameter that is the body as it comes."""

    __slots__ = ()

    def __init__(self, parameter: Parameter, max_size: int | None, accepted: Sequence[str]) -> None:
        super().__init__(parameter, max_size, accepted, None)

    async def read(self, intake: Intake) -> Any:
        content_type, length = intake.content()
        self._check(content_type or b"")
        if self._max_size is not None and length is not None and length > self._max_size:
            raise BodyTooLargeError(self._max_size)
        return BodyStream(intake, self._max_size, length)


def is_accepted(content_type: str, accepted: Iterable[str]) -> bool:
    """Whether a content type, with whatever parameters it has, is one of those that are `accepted`."""
    name = content_type.partition(";")[0].strip().lower()
    for each in accepted:
        before, star, after = each.lower().partition("*")
        if name == before if not star else name.startswith(before) and name.endswith(after):
            return True
    return False
