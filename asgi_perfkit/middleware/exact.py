"""Chooses the requests that are to be profiled exactly by a header with a secret."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.types import Scope

__all__ = ["exact_by_header"]

MIN_LENGTH = 16


def exact_by_header(name: str, secret: str | bytes) -> Callable[[Scope], bool]:
    """For ``ProfilingMiddleware(exact=...)``: the requests that have the header `name` with the value `secret`.

    How long the comparison takes says nothing about the secret but its length.

    :param name: in upper or lower case.
    :param secret: 16 bytes or more, that a client can send as the value of a header.
    :raises ConfigurationTypeError: an argument of the wrong type.
    :raises ConfigurationValueError: the name is none of a header, or the secret is too short or cannot be sent.
    """
    wanted_name, wanted = _check(name, secret)

    def is_chosen(scope: Scope) -> bool:
        chosen = False
        for header, value in scope.get("headers", ()):
            if header.lower() == wanted_name and compare_digest(value, wanted):
                chosen = True
        return chosen

    return is_chosen


def _check(name: object, secret: object) -> tuple[bytes, bytes]:
    """Refuse arguments that cannot be used. The secret is in no message."""
    subject = f"{exact_by_header.__name__}(name)"
    if not isinstance(name, str):
        raise ConfigurationTypeError(subject, name, 'give the name of a header ("x-profile").')
    if not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigurationValueError(subject, name, 'give the name of a header ("x-profile").')
    subject = f"{exact_by_header.__name__}(secret)"
    if not isinstance(secret, (str, bytes)):
        raise ConfigurationTypeError(subject, type(secret), "give a string or bytes.")
    value = secret if isinstance(secret, bytes) else secret.encode()
    if len(value) < MIN_LENGTH:
        raise ConfigurationValueError(
            subject, f"{len(value)} bytes", f"give {MIN_LENGTH} or more, that nobody can guess."
        )
    if value != value.strip() or any(byte < 0x20 or byte == 0x7F for byte in value):
        raise ConfigurationValueError(
            subject,
            "a value with control characters, or blanks at its ends",
            "no header can have it.",
        )
    return name.lower().encode("ascii"), value
