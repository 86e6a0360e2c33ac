"""How much memory is in use: what a leak adds to, and nothing else does for long."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from time import perf_counter_ns

from asgi_perfkit.metrics.monitor import rss_reader

__all__ = ["heap_reader"]

SMALL_BYTES = 64  # an object of Python that is no larger than 512 bytes has about so many
DEAR_NS = 5_000_000


class _Mallinfo(ctypes.Structure):
    """As mallinfo2(3) has it."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def heap_reader() -> Callable[[], int]:
    """A function that tells how many bytes of this process are in use, about.

    With the GNU C library that is what it has given out, and the small objects of Python, which it knows nothing of.
    Elsewhere it is the resident memory, which grows by leaps: what was freed stays with the process. It belongs to the
    process that made it: after a fork, make another.
    """
    if sys.platform == "linux":
        try:
            # One that keeps the interpreter's lock: to let go of it and wait for it takes longer than the call.
            mallinfo = ctypes.PyDLL(None).mallinfo2  # glibc 2.33
        except (OSError, AttributeError):
            return rss_reader()
        mallinfo.argtypes = []
        mallinfo.restype = _Mallinfo

        def read() -> int:
            known = mallinfo()
            return int(known.uordblks) + int(known.hblkhd) + SMALL_BYTES * sys.getallocatedblocks()

        started_ns = perf_counter_ns()
        # Another allocator in its place (jemalloc) says nothing; among very many holes it takes long to add them up.
        if mallinfo().uordblks and perf_counter_ns() - started_ns < DEAR_NS:
            return read
    return rss_reader()
