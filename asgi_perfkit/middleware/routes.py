"""Finds the template of the route that served a request, in what routers leave behind in the scope.

No framework is imported: the marks are read by name. What was read of whom:

* Starlette 1.10: `route` (its `path_format`), `path_params`, `router`; under a mount `root_path` is what the client
  sent (``/sub/t1`` for ``/sub/{t}``) and `app_root_path` is where the mounts begin. A mount is a route too, the last
  one that is set where the app below it has no router. No route is set for a 404 or a slash redirect.
* FastAPI 0.165: the same, but `route` of an included router lacks the prefixes of the inclusions; the whole template is
  ``scope["fastapi"]["effective_route_context"].path_format``.
* Litestar 2.25: `path_template`, empty under a mount and absent for a 404 and 405; `route_handler` with its `paths`.
"""

from __future__ import annotations

from typing import Any

from asgi_perfkit.metrics.endpoints import fold_path
from asgi_perfkit.metrics.registry import UNMATCHED
from asgi_perfkit.types import Scope

__all__ = ["route_template"]


def route_template(scope: Scope, path: str, status: int | None) -> str:
    """Name the route of a request that the app has answered.

    :param scope: as the app has left it.
    :param path: as it was when the request came.
    :param status: of the response.
    :return: the template with the mounts before it (``/sub/{t}/items/{item_id}``); `UNMATCHED` if a router has found
        no route, or nothing tells of a router and the response is a 404; else the folded path.
    """
    if "route" in scope:
        template = _of_starlette(scope, status)
    elif "litestar_app" in scope:
        template = _of_litestar(scope, status)
    elif status == 404 or "router" in scope:
        template = None
    else:
        return fold_path(path)
    return UNMATCHED if template is None else template


def _of_starlette(scope: Scope, status: int | None) -> str | None:
    route = scope["route"]
    template = None
    marks = scope.get("fastapi")
    if marks is not None:  # empty for websockets
        template = getattr(marks.get("effective_route_context"), "path_format", None)
    if not template:
        template = getattr(route, "path_format", None)
    if not isinstance(template, str):
        return None
    if "app_root_path" not in scope:
        return template
    if not hasattr(route, "routes"):
        return _mounts(scope, template) + template
    # A mount. The root path has its own part already.
    return None if status == 404 else _mounts(scope, "") + "/{path}"


def _mounts(scope: Scope, template: str) -> str:
    """The templates of the mounts that the request went through before the route of `template`."""
    concrete: str = scope.get("root_path", "")
    segments = concrete[len(scope["app_root_path"]) :].split("/")
    parameters: dict[str, Any] = scope.get("path_params") or {}
    position = 0
    for name, value in parameters.items():
        if f"{{{name}}}" in template:
            continue
        # Outer mounts' parameters come first, and a parameter is a whole segment nearly always.
        try:
            position = segments.index(str(value), position)
        except ValueError:
            continue
        segments[position] = f"{{{name}}}"
        position += 1
    # A parameter that was not found (a path of several segments, a number with leading zeros) must not become part
    # of a name: what looks like data is folded.
    return "/".join(
        segment if segment.startswith("{") else fold_path(segment) for segment in segments
    )


def _of_litestar(scope: Scope, status: int | None) -> str | None:
    template = scope.get("path_template")
    if template:
        return str(template)
    if template is None or status == 404:
        return None
    paths = getattr(scope.get("route_handler"), "paths", None)
    return min(paths) + "/{path}" if paths else None
