"""Finds the template of the route that served a request, in what routers leave behind in the scope.

No framework is imported: the marks are read by name. What was read of whom:

* Starlette 1.10: `app` from the beginning; `router`, the outermost; `route` (its `path_format`) and `endpoint`. Under
  a mount `root_path` is what the client has sent (``/sub/t1`` for ``/sub/{t}``) and `app_root_path` is where the mounts
  begin. A mount is a route too, the last that is set where what is below has no router. No route is set for a 404 or
  a slash redirect.
* FastAPI 0.165: the same, but `route` of an included router lacks the prefixes of the inclusions; the whole template is
  ``scope["fastapi"]["effective_route_context"].path_format``, or, of a Starlette route in it, that of the context's
  `starlette_route`. No route is set for plain routes and mounts.
* Litestar 2.25: `path_template`, empty under a mount and absent for a 404 and 405; `route_handler` with its `paths`.
"""

from __future__ import annotations

from collections.abc import Callable

from asgi_perfkit.exceptions import ConfigurationTypeError
from asgi_perfkit.metrics.endpoints import fold_path
from asgi_perfkit.metrics.registry import UNMATCHED
from asgi_perfkit.middleware.exchange import Exchange
from asgi_perfkit.types import Scope

__all__ = ["EndpointNames", "route_template"]


class EndpointNames:
    """Names the endpoints of requests.

    :param subject: the argument, as the user has written it.
    :param endpoint: the user's own way to name them: takes the scope of a request, and returns the name, or None for
        the one that the kit finds itself. If it raises, or returns anything else, the folded path is used.
    :param report: told of what fails: a message and the exception.
    :raises ConfigurationTypeError: `endpoint` is neither callable nor None.
    """

    def __init__(
        self,
        subject: str,
        endpoint: Callable[[Scope], str | None] | None,
        report: Callable[[str, Exception], object],
    ) -> None:
        if endpoint is not None and not callable(endpoint):
            raise ConfigurationTypeError(
                subject, endpoint, "give a function of the scope, or None."
            )
        self._endpoint = endpoint
        self._report = report

    def name(self, exchange: Exchange) -> str:
        """The endpoint of a request, as far as it can be told by now: best when the app has returned."""
        if self._endpoint is not None:
            try:
                name = self._endpoint(exchange.scope)
                if isinstance(name, str):
                    return name
                if name is not None:
                    raise TypeError(f"endpoint returned {name!r}; it returns a string, or None.")
            except Exception as failure:
                self._report("endpoint could not name a request", failure)
                return _folded(exchange.path)
        if exchange.endpoint is not None:
            return exchange.endpoint
        try:
            return route_template(exchange.scope, exchange.path, exchange.status)
        except Exception as failure:
            self._report("The route of a request could not be read", failure)
            return _folded(exchange.path)


def route_template(scope: Scope, path: object, status: int | None) -> str:
    """Name the route of a request that the app has answered.

    :param scope: as the app has left it.
    :param path: as it was when the request came.
    :param status: of the response.
    :return: the template with the mounts before it (``/sub/{t}/items/{item_id}``); `UNMATCHED` if a framework has
        answered without a route, or nothing tells of a framework and the response is a 404; else the folded path.
    """
    if "route" in scope or "router" in scope:
        template = _of_starlette(scope, status)
    elif "litestar_app" in scope:
        template = _of_litestar(scope, status)
    elif status == 404 or "app" in scope:
        template = None  # a middleware of the framework has answered
    else:
        return _folded(path)
    return UNMATCHED if template is None else template


def _folded(path: object) -> str:
    """The folded path, for want of a route."""
    return fold_path(path) if isinstance(path, str) else UNMATCHED


def _of_starlette(scope: Scope, status: int | None) -> str | None:
    route = scope.get("route")
    marks = scope.get("fastapi")
    template: str | None = None
    if marks is not None:  # empty for websockets
        context = marks.get("effective_route_context")
        template = getattr(context, "path_format", None) or getattr(
            getattr(context, "starlette_route", None), "path_format", None
        )
    if not template:
        template = getattr(route, "path_format", None)
    if "app_root_path" not in scope:
        if template is None and "endpoint" in scope:
            template = _template_of_endpoint(scope)
        return template
    if template is not None and not hasattr(route, "routes"):
        return _mounts(scope) + template
    # A mount was the last to match: what is below has no router, or has found nothing.
    return None if status in (404, 307) or "endpoint" not in scope else _mounts(scope) + "/{path}"


def _template_of_endpoint(scope: Scope) -> str | None:
    """The template of a plain route in a router that does not leave its route behind."""
    for route in getattr(scope.get("router"), "routes", ()):
        if getattr(route, "endpoint", None) is scope["endpoint"]:
            template = getattr(route, "path_format", None)
            return template if isinstance(template, str) else None
    return None


def _mounts(scope: Scope) -> str:
    """The templates of the mounts that the request went through.

    `root_path` is what the client has sent; the mounts are found again by descending into them as the routers did.
    """
    concrete: str = scope.get("root_path", "")[len(scope["app_root_path"]) :]
    template = ""
    routes = getattr(scope.get("router"), "routes", ())
    while concrete:
        for mount in routes:
            pattern = getattr(mount, "path_regex", None)
            match = pattern and hasattr(mount, "routes") and pattern.match(concrete + "/")
            if match:
                template += mount.path_format.removesuffix("/{path}")
                routes = mount.routes
                concrete = match["path"].rstrip("/") and "/" + match["path"].rstrip("/")
                break
        else:
            return template + "/{path}"  # below a mount that does not show its routes
    return template


def _of_litestar(scope: Scope, status: int | None) -> str | None:
    template = scope.get("path_template")
    if template:
        return str(template)
    if template is None or status == 404:
        return None
    paths = getattr(scope.get("route_handler"), "paths", None)
    return min(paths) + "/{path}" if paths else None
