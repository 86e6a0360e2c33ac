"""A file that has come in a form."""

from __future__ import annotations

from tempfile import SpooledTemporaryFile
from typing import Final

from asgi_perfkit.threads.functions import run_in_threadpool

__all__ = ["UploadFile"]

_IN_MEMORY_BYTES: Final = 1 << 20


class UploadFile:
    """A file that a client has sent in a form. It is closed, and gone, when its request is over.

    Up to a megabyte is in memory, and what is more in a temporary file, which is read and written in worker threads.

    :ivar filename: as the client tells it: not a path to write to.
    :ivar content_type: as the client tells it; None if it does not.
    :ivar size: in bytes.
    :ivar file: the file itself, for code that wants one; reading it may block.
    """

    __slots__ = ("content_type", "file", "filename", "size")

    def __init__(self, filename: str, content_type: str | None) -> None:
        self.filename = filename
        self.content_type = content_type
        self.size = 0
        self.file = SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # closed with the request

    def __repr__(self) -> str:
        return f"<UploadFile {self.filename!r}, {self.size} bytes>"

    async def read(self, size: int = -1) -> bytes:
        """Read `size` bytes from where the file stands; all that are left, if it is negative."""
        if self._is_in_memory:
            return self.file.read(size)
        return await run_in_threadpool(self.file.read, size)

    async def seek(self, offset: int, whence: int = 0) -> None:
        """Go to an `offset`, as :meth:`io.IOBase.seek` has it."""
        if self._is_in_memory:
            self.file.seek(offset, whence)
        else:
            await run_in_threadpool(self.file.seek, offset, whence)

    async def close(self) -> None:
        """Close the file before its request is over; more than once does nothing."""
        if self._is_in_memory:
            self.file.close()
        else:
            await run_in_threadpool(self.file.close)

    async def add(self, data: bytes) -> None:
        """Write at the end what has come."""
        self.size += len(data)
        if self._is_in_memory:
            self.file.write(data)
        else:
            await run_in_threadpool(self.file.write, data)

    @property
    def _is_in_memory(self) -> bool:
        return self.size <= _IN_MEMORY_BYTES
