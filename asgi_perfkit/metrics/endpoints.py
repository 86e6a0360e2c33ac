"""Names for endpoints, where they do not come from a router that leaves its route behind.

* :func:`fold_path` makes a name of a path;
* :func:`django_endpoint` and :func:`quart_endpoint` are set up in the app, in one line, and note the route that
  Django's and Quart's own router has found.
"""

from __future__ import annotations

import re
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


# <int:item_id>, <item_id> (Django, Quart), (?P<item_id>...) and its simple groups (Django's re_path).
_CONVERTER = re.compile(r"<(?:[^<>:]*:)?([^<>:]+)>")
_NAMED_GROUP = re.compile(r"\(\?P<(\w+)>(?:[^()\\]|\\.|\((?:[^()\\]|\\.)*\))*\)")
_GROUP = re.compile(r"\((?:[^()\\]|\\.)*\)")


@lru_cache(maxsize=4096)
def template_of(rule: str) -> str:
    """A rule of Django's or Quart's router in the form of the other frameworks: ``/items/{item_id}``."""
    template = _NAMED_GROUP.sub(r"{\1}", rule)
    template = _CONVERTER.sub(r"{\1}", template)
    template = _GROUP.sub("{}", template)
    template = template.replace("^", "").replace("$", "").replace("\\Z", "").replace("\\", "")
    return template if template.startswith("/") else "/" + template


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
