"""Files of call trees, in the forms that other tools read.

Each form is a function of the trees, by the name of the endpoint or whatever else they are of, in the order in which
they are to be shown. The name of a file says which form it is to have.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.profiling.calls import CallTree
from asgi_perfkit.profiling.reports.collapsed import collapsed
from asgi_perfkit.profiling.reports.html import html
from asgi_perfkit.profiling.reports.pstats import pstats
from asgi_perfkit.profiling.reports.speedscope import speedscope

__all__ = ["SUFFIXES", "save", "write"]

Form: TypeAlias = Callable[[Iterable[tuple[str, CallTree]]], bytes]

_FORMS: dict[str, Form] = {
    ".speedscope.json": speedscope,
    ".collapsed": collapsed,
    ".pstats": pstats,
    ".html": html,
}
SUFFIXES = tuple(_FORMS)


def save(
    path: str | os.PathLike[str],
    trees: Iterable[tuple[str, CallTree]],
    subject: str = "report.save(path)",
) -> None:
    """Write call trees to a file, in the form that its suffix names.

    :param trees: each with its name.
    :param subject: what the user has called, for the error.
    :raises ConfigurationTypeError: `path` is none.
    :raises ConfigurationValueError: there is no form of this suffix.
    :raises OSError: the file cannot be written.
    """
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise ConfigurationTypeError(subject, path, "give the path of a file.") from None
    for suffix, form in _FORMS.items():
        if name.lower().endswith(suffix):
            write(name, form(trees))
            return
    raise ConfigurationValueError(
        subject, name, f"the suffix says the form of the file; it is one of {', '.join(SUFFIXES)}."
    )


def write(path: str, content: bytes) -> None:
    """Write a file so that whoever opens it finds all of it, or what was there before.

    :raises OSError: it cannot be written.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(content)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
