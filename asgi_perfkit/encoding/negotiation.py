"""Which content coding a client gets: what it accepts, weighed (RFC 9110, sections 12.4 and 12.5.3).

The rules:

* The client's weights decide; among codings that it likes the same, the server's order of preference does. Browsers
  give no weights at all, so as a rule it is the server who chooses.
* A coding that is named nowhere has the weight of ``*``, or 0 without it. ``x-gzip`` is gzip.
* What is not coded at all, ``identity``, is the last resort, unless the client has weighed it higher than every coding
  that there is. ``identity;q=0``, or ``*;q=0`` without it, refuses it.
* A coding that is named twice has the lower weight: who refuses one anywhere does not want it.
* A field that is not made as the specification has it says nothing, and neither does one without an element.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from asgi_perfkit.encoding.compression import Coding

__all__ = ["Choice", "Negotiator", "weights"]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # `*` is one, too
_QVALUE = rb"(?P<weight>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)"
_ELEMENT = re.compile(rb"(?P<coding>%b)(?:[ \t]*;[ \t]*[qQ]=%b)?" % (_TOKEN, _QVALUE))
# Ten times what browsers say. What is longer is not read: no client makes it take long, or has it remembered.
_MAX_LENGTH = 1_000
# So many different fields are remembered with what was chosen for them; there are some dozen browsers.
_REMEMBERED = 256


class Choice(NamedTuple):
    """What a client gets.

    :ivar coding: None for the body as it is.
    :ivar refuses_identity: whether the client wants no body as it is, however small.
    """

    coding: Coding | None
    refuses_identity: bool


def weights(accepted: bytes) -> dict[bytes, int]:
    """What each coding weighs, in thousandths, by its name in lower case.

    :param accepted: the value of Accept-Encoding; where the field is repeated, the values with commas between.
    :return: empty also if it is malformed.
    """
    weighed: dict[bytes, int] = {}
    for element in accepted.split(b","):
        element = element.strip(b" \t")
        if not element:  # a list may have empty ones
            continue
        found = _ELEMENT.fullmatch(element)
        if found is None:
            return {}
        coding = found["coding"].lower()
        if coding == b"x-gzip":
            coding = b"gzip"
        weight = 1000 if found["weight"] is None else round(float(found["weight"]) * 1000)
        weighed[coding] = min(weight, weighed.get(coding, weight))
    return weighed


class Negotiator:
    """Chooses among the codings that a server has.

    :param codings: by name, the one that the server likes best first.
    """

    __slots__ = ("_codings", "_remembered")

    def __init__(self, codings: Mapping[bytes, Coding]) -> None:
        self._codings = dict(codings)
        self._remembered: Callable[[bytes], Choice] = lru_cache(_REMEMBERED)(self._choose)

    def choose(self, accepted: bytes) -> Choice:
        """Choose by the value of Accept-Encoding; where the field is repeated, the values with commas between."""
        return self._remembered(accepted if len(accepted) <= _MAX_LENGTH else b"")

    def _choose(self, accepted: bytes) -> Choice:
        weighed = weights(accepted)
        others = weighed.get(b"*", 0)
        best: Coding | None = None
        highest = 0
        for name, coding in self._codings.items():
            weight = weighed.get(name, others)
            if weight > highest:
                best, highest = coding, weight
        identity = weighed.get(b"identity", weighed.get(b"*"))
        if identity is not None and identity > highest:
            best = None
        return Choice(best, refuses_identity=identity == 0)
