"""Reads forms: urlencoded ones, and those of many parts, whose files go to the disk when they are large.

What the parameters of the function declare is what is kept, and the limit of it. Other fields are passed over; they
may have a megabyte together, and a form so many parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from asgi_perfkit.endpoint.inputs import TextInput, Unfit, is_accepted
from asgi_perfkit.endpoint.intake import Intake, parse_pairs
from asgi_perfkit.endpoint.uploads import UploadFile
from asgi_perfkit.exceptions import (
    BodyTooLargeError,
    MalformedBodyError,
    Problem,
    UnsupportedBodyError,
)

__all__ = ["FormReader"]

_MAX_PARTS: Final = 1000
_OTHER_BYTES: Final = 1 << 20
_HEADER_BYTES: Final = 4096  # of a part
_URLENCODED: Final = "application/x-www-form-urlencoded"
_MULTIPART: Final = "multipart/form-data"

Found = dict[str, list[Any]]


class FormReader:
    """Reads the form of a request.

    :param inputs: what takes its fields.
    """

    def __init__(self, inputs: Sequence[TextInput]) -> None:
        self._inputs = inputs
        self._by_name = {each.name: each for each in inputs}
        self._max_size = (
            sum(each.max_size * each.max_count for each in inputs)
            + _OTHER_BYTES
            + _MAX_PARTS * _HEADER_BYTES
        )

    async def read(self, intake: Intake) -> list[Problem]:
        """Read the form into the values of a request, and tell what does not fit.

        :raises RequestError: it is none, or larger than it may be.
        :raises ClientDisconnectedError: the client has left.
        """
        content_type, length = intake.content()
        text = (content_type or b"").decode("latin-1")
        if is_accepted(text, (_MULTIPART,)):
            found = await self._read_parts(text, intake, length)
        elif is_accepted(text, (_URLENCODED,)):
            found = await self._read_pairs(intake, length)
        elif text or await intake.body(self._max_size, length):
            raise UnsupportedBodyError(text, (_URLENCODED, _MULTIPART))
        else:
            found = {}
        problems = []
        for each in self._inputs:
            values = found.get(each.name)
            try:
                kind = UploadFile if each.is_file else str
                if values and any(type(value) is not kind for value in values):
                    raise Unfit("it has to be a file" if each.is_file else "it cannot be a file")
                intake.values[each] = each.value(values)
            except Unfit as error:
                problems.append(Problem("form", each.name, str(error)))
        return problems

    async def _read_pairs(self, intake: Intake, length: int | None) -> Found:
        # Each byte of a value may be percent-encoded.
        limit = _OTHER_BYTES + 3 * sum(
            each.max_size * each.max_count for each in self._inputs if not each.is_file
        )
        body = await intake.body(limit, length)
        if body.count(b"&") >= _MAX_PARTS:  # before they are taken apart
            raise BodyTooLargeError(_MAX_PARTS, "The form", "fields")
        try:
            found = parse_pairs(body)
        except UnicodeDecodeError:
            raise MalformedBodyError("it is not UTF-8") from None
        for name, values in found.items():
            field = self._by_name.get(name)
            if field is None:
                continue
            for value in values:
                if len(value.encode()) > field.max_size:
                    raise BodyTooLargeError(field.max_size, f"The form's {name!r}")
            if field.is_list and len(values) > field.max_count:
                raise BodyTooLargeError(field.max_count, f"The form's {name!r}", "values")
        return dict(found)

    async def _read_parts(self, content_type: str, intake: Intake, length: int | None) -> Found:
        if length is not None and length > self._max_size:
            raise BodyTooLargeError(self._max_size)
        parts = _Parts(self._by_name, content_type, intake.uploads)
        size = 0
        while not intake.whole:
            chunk = await intake.chunk()
            size += len(chunk)
            if size > self._max_size:
                raise BodyTooLargeError(self._max_size)
            for upload, data in parts.feed(chunk):
                await upload.add(data)
        parts.finish()
        for upload in intake.uploads:
            await upload.seek(0)
        return parts.found


class _Parts:
    """The parts of a form, as they come.

    :param by_name: what takes the fields.
    :param uploads: takes each file, at once, so that it is closed whatever happens.
    :ivar found: the values of the fields, by name.
    """

    def __init__(
        self, by_name: dict[str, TextInput], content_type: str, uploads: list[UploadFile]
    ) -> None:
        self.found: Found = {}
        self._by_name = by_name
        self._uploads = uploads
        self._module: Any = import_module("python_multipart.multipart")
        self._error: type[Exception] = import_module("python_multipart.exceptions").FormParserError
        _, options = self._module.parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise MalformedBodyError("its content type names no boundary")
        callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_end": self._end_all,
        }
        try:
            self._parser = self._module.MultipartParser(boundary, callbacks)
        except self._error as error:
            raise _malformed(error) from None
        self._count = 0
        self._other_bytes = 0
        self._over = False
        self._writes: list[tuple[UploadFile, bytes]] = []

    def feed(self, chunk: bytes) -> list[tuple[UploadFile, bytes]]:
        """Take a `chunk`; what is to be written to which file now."""
        self._writes = []
        try:
            self._parser.write(chunk)
        except self._error as error:
            raise _malformed(error) from None
        return self._writes

    def finish(self) -> None:
        """Take note that there is no more.

        :raises MalformedBodyError: there should be.
        """
        if not self._over:
            raise MalformedBodyError("it ends before its last boundary")

    # What the parser calls, in this order.

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MAX_PARTS:
            raise BodyTooLargeError(_MAX_PARTS, "The form", "parts")
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._name = self._value = b""

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._count_header(end - start)

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count_header(end - start)

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _HEADER_BYTES:
            raise BodyTooLargeError(_HEADER_BYTES, "The head of a part")

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        kind, options = self._module.parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise MalformedBodyError("a part of it has no name")
        name = self._field_name = _decoded(options[b"name"])
        self._field = self._by_name.get(name)
        self._size = 0
        self._text = bytearray()
        self._upload: UploadFile | None = None
        filename = options.get(b"filename")
        self._is_file = filename is not None
        if filename and self._field is not None and self._field.is_file:
            content_type = self._headers.get(b"content-type")
            self._upload = UploadFile(
                _decoded(filename), None if content_type is None else content_type.decode("latin-1")
            )
            self._uploads.append(self._upload)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        field = self._field
        if field is None:
            self._other_bytes += end - start
            if self._other_bytes > _OTHER_BYTES:
                raise BodyTooLargeError(_OTHER_BYTES, "What is not asked for in the form")
            return
        self._size += end - start
        if self._size > field.max_size:
            raise BodyTooLargeError(field.max_size, f"The form's {field.name!r}")
        if self._upload is not None:
            self._writes.append((self._upload, data[start:end]))
        elif not self._is_file:
            self._text += data[start:end]

    def _end(self) -> None:
        field = self._field
        # A browser sends a file without a name where none was chosen.
        if field is None or (self._is_file and self._upload is None and field.is_file):
            return
        values = self.found.setdefault(field.name, [])
        if len(values) >= field.max_count:
            if field.is_list:
                raise BodyTooLargeError(field.max_count, f"The form's {field.name!r}", "values")
            values.clear()
        if self._is_file:
            values.append(self._upload)  # None where no file is wanted
        else:
            values.append(_decoded(bytes(self._text)))

    def _end_all(self) -> None:
        self._over = True


def _malformed(error: Exception) -> MalformedBodyError:
    return MalformedBodyError(str(error).rstrip("."))


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise MalformedBodyError("a text in it is not UTF-8") from None
