"""Names for endpoints, where they do not come from a router that leaves its route behind.

* :func:`fold_path` makes a name of a path;
* :func:`django_endpoint` and :func:`quart_endpoint` are set up in the app, in one line, and note the route that
  Django's and Quart's own router has found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from inspect import iscoroutinefunction
from typing import Any

from asgi_perfkit.metrics.registry import UNMATCHED
from asgi_perfkit.steps import current_account

__all__ = ["django_endpoint", "fold_path", "quart_endpoint", "template_of"]

_MAX_SEGMENTS = 8
_MAX_SEGMENT_LENGTH = 32
_MAX_DIGITS = 2
# Longer ones are folded each time anew: a cache of them would be a place for clients to fill.
_MAX_CACHED_LENGTH = 256


def fold_path(path: str) -> str:
    """Make the name of an endpoint of a `path`, with the segments that look like data as ``{id}``.

    A segment stands for itself if it reads like a word: letters, ``-``, ``_``, ``.``, ``~`` and at most two digits,
    though not digits alone, and no more than 32 characters. After eight segments the rest is ``{path}``.

        >>> fold_path("/v1/users/8137/orders/b51f7c9e")
        '/v1/users/{id}/orders/{id}'
    """
    return _fold_cached(path) if len(path) <= _MAX_CACHED_LENGTH else _fold(path)


def _fold(path: str) -> str:
    segments = path.split("/", _MAX_SEGMENTS + 1)
    folded = [
        "{id}" if segment and _is_data(segment) else segment
        for segment in segments[: _MAX_SEGMENTS + 1]
    ]
    if len(segments) > _MAX_SEGMENTS + 1:
        folded.append("{path}")
    return "/".join(folded)


_fold_cached = lru_cache(maxsize=2048)(_fold)


def _is_data(segment: str) -> bool:
    if len(segment) > _MAX_SEGMENT_LENGTH or segment.isdigit():
        return True
    digits = 0
    for character in segment:
        if character.isdigit():
            digits += 1
        elif not (character.isalpha() or character in "-_.~"):
            return True
    return digits > _MAX_DIGITS


@lru_cache(maxsize=4096)
def template_of(rule: str) -> str:
    """A rule of Django's or Quart's router in the form of the other frameworks: ``/items/{item_id}``.

    Known are converters (``<int:item_id>``) and, of Django's regular expressions, named groups; what else varies in
    these is ``{}``.
    """
    template = _template(rule, is_regex="^" in rule or "$" in rule or "(?" in rule)
    return template if template.startswith("/") else "/" + template


def _template(rule: str, is_regex: bool) -> str:
    parts = []
    position = 0
    while position < len(rule):
        character = rule[position]
        end = position + 1
        if character == "<":
            end = _end_of(rule, position, "<", ">")
            name = rule[position + 1 : end - 1].rpartition(":")[2]
            parts.append(f"{{{name}}}")
        elif not is_regex:
            parts.append(character)
        elif character == "(":
            end = _end_of(rule, position, "(", ")")
            parts.append(_group(rule[position + 1 : end - 1]))
        elif character == "[":
            end = _end_of_class(rule, position)
            parts.append("{}")
        elif character == "\\":
            end = position + 2
            escaped = rule[position + 1 : end]
            parts.append("" if escaped in "AZbB" else "{}" if escaped in "dDsSwW" else escaped)
        elif character not in "^$?*+":
            parts.append(character)
        position = end
    return "".join(parts)


def _group(inside: str) -> str:
    if inside.startswith("?P<"):
        return f"{{{inside[3:].partition('>')[0]}}}"
    if inside.startswith("?:") and "(?P<" in inside:
        return _template(inside[2:], is_regex=True)
    return "{}"


def _end_of(rule: str, start: int, opening: str, closing: str) -> int:
    """The index behind the bracket that closes the one at `start`, or behind the end if none does."""
    depth = 0
    position = start
    while position < len(rule):
        character = rule[position]
        if character == "\\":
            position += 1
        elif character == "[" and opening == "(":
            position = _end_of_class(rule, position) - 1
        elif character in "'\"":
            # The arguments of a converter may hold brackets in quotes.
            position = max(position, rule.find(character, position + 1))
        else:
            depth += (character == opening) - (character == closing)
            if depth == 0:
                break
        position += 1
    return position + 1


def _end_of_class(rule: str, start: int) -> int:
    """The index behind the character class that begins at `start`; a ``]`` that comes first in it is a member."""
    first = start + 2 if rule[start + 1 : start + 2] == "^" else start + 1
    position = first
    while position < len(rule) and (rule[position] != "]" or position == first):
        position += 2 if rule[position] == "\\" else 1
    return position + 1


def _note(rule: str | None) -> None:
    account = current_account.get()
    if account is not None:
        account.endpoint = UNMATCHED if rule is None else template_of(rule)


def django_endpoint(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A Django middleware that names the endpoint by the route of `urls.py` that Django has found.

    Put it first in the settings, so that it sees every response::

        MIDDLEWARE = ["asgi_perfkit.metrics.endpoints.django_endpoint", ...]

    Outside of a request that the kit watches it does nothing.
    """

    def note(request: Any) -> None:
        match = getattr(request, "resolver_match", None)
        _note(None if match is None else match.route)

    if iscoroutinefunction(get_response):

        async def middleware(request: Any) -> Any:
            try:
                return await get_response(request)
            finally:
                note(request)

        return middleware

    def sync_middleware(request: Any) -> Any:
        try:
            return get_response(request)
        finally:
            note(request)

    return sync_middleware


django_endpoint.sync_capable = True  # type: ignore[attr-defined]  # Django reads these from the factory
django_endpoint.async_capable = True  # type: ignore[attr-defined]


def quart_endpoint(app: Any) -> None:
    """Have a Quart `app` name its endpoints by the rules of its router.

    Call it once, before functions of your own are registered with ``before_request``: one that answers by itself
    keeps later ones from being called::

        app = Quart(__name__)
        quart_endpoint(app)

    Outside of a request that the kit watches it does nothing.
    """
    # Whoever has a Quart app has imported quart.
    quart = sys.modules["quart"]

    async def note_request() -> None:
        rule = quart.request.url_rule
        _note(None if rule is None else rule.rule)

    async def note_websocket() -> None:
        rule = quart.websocket.url_rule
        _note(None if rule is None else rule.rule)

    app.before_request(note_request)
    app.before_websocket(note_websocket)
