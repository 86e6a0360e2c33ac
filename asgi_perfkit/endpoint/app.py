"""A plain function as an ASGI app: what a request brings, dependencies, call, encode, clean up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Final, overload

from asgi_perfkit.encoding.encoder import dumps
from asgi_perfkit.endpoint.intake import Intake
from asgi_perfkit.endpoint.reading import INTAKE, Reading
from asgi_perfkit.endpoint.refusal import refuse, refuse_method, send_last
from asgi_perfkit.endpoint.uploads import UploadFile
from asgi_perfkit.exceptions import (
    ClientDisconnectedError,
    ConfigurationTypeError,
    ConfigurationValueError,
    RequestError,
)
from asgi_perfkit.resources.current import current_resources, has_resources
from asgi_perfkit.resources.manager import Mark, ResourceManager, innermost
from asgi_perfkit.resources.signatures import ASYNC, GENERATORS, kind_of, name_of
from asgi_perfkit.resources.solver import has_overrides, prepared, resolve
from asgi_perfkit.steps import current_account
from asgi_perfkit.threads.functions import run_in_threadpool
from asgi_perfkit.types import Receive, Scope, Send

__all__ = ["Endpoint", "endpoint"]

_GIVEN: Final[dict[str, type]] = {
    "scope": dict,
    "receive": type(lambda: None),
    "send": type(lambda: None),
    INTAKE: Intake,
}
_MISSING: Final = (
    "nobody provides it: mark it with Body(), Form(), Query(), Path(), Header() or Depends(...), "
    "or give it a default."
)
_NOTHING: Final[Mark] = (0, 0, 0)
_JSON: Final = (b"content-type", b"application/json")


class Endpoint:
    """An ASGI app that is made of a function; see :func:`endpoint`.

    :ivar func: the function.
    :ivar methods: those that are answered; None for all.
    """

    def __init__(
        self, func: Callable[..., Any], methods: Collection[str] | None, status: int
    ) -> None:
        self.func = func
        self.methods = methods
        self.__name__: str = name_of(func)
        self.__doc__ = func.__doc__
        self._status = status
        self._is_async = kind_of(func, True) == ASYNC
        self._has_no_content = _returns_none(func)
        self._reading = Reading.of(prepared(func, _GIVEN, _MISSING))

    def __repr__(self) -> str:
        return f"<endpoint {self.__name__}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _answer_other(scope, receive, send)
        elif self.methods is not None and scope["method"] not in self.methods:
            await refuse_method(scope, receive, send, self.methods)
        elif has_resources(current_account.get()):
            # They may be those of more than this endpoint.
            manager = innermost(current_account.get(), makes=False)
            before = _NOTHING if manager is None else manager.mark()
            await self._serve(scope, receive, send, before)
        else:
            async with ResourceManager():
                await self._serve(scope, receive, send, _NOTHING)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, before: Mark) -> None:
        intake = Intake(scope, receive)
        reading = self._reading
        answering = False
        try:
            if has_overrides():
                reading = Reading.of(prepared(self.func, _GIVEN, _MISSING))
            if reading.reads:
                await (_read_files(reading, intake) if reading.has_files else reading.read(intake))
            if reading.solves:
                value = await resolve(
                    self.func, scope=scope, receive=receive, send=send, endpoint_intake=intake
                )
            else:
                value = await self._call(reading, intake, send)
            answering = True
            if callable(value):  # an answer that is an app itself
                await value(scope, receive, send)
            else:
                await self._answer(value, intake, send)
        except (RequestError, ClientDisconnectedError) as error:
            # Nobody further out is to see it, but what was opened for the function is.
            manager = innermost(current_account.get(), makes=False)
            if manager is not None:
                await manager.undo(before, error)
            if isinstance(error, RequestError):
                if answering:
                    raise
                await refuse(intake, send, error.status, error.answer())

    def _call(self, reading: Reading, intake: Intake, send: Send) -> Awaitable[Any]:
        values = intake.values
        if reading.given:
            values |= {"scope": intake.scope, "receive": intake.receive, "send": send}
        args = [values[key] for key in reading.positional]
        kwargs = {name: values[key] for name, key in reading.named}
        if self._is_async:
            found: Awaitable[Any] = self.func(*args, **kwargs)
            return found
        return run_in_threadpool(partial(self.func, **kwargs) if kwargs else self.func, *args)

    async def _answer(self, value: Any, intake: Intake, send: Send) -> None:
        headers: list[tuple[bytes, bytes]]
        if value is None and self._has_no_content:
            status, headers, body = 204, [], b""
        else:
            body = dumps(value)
            status, headers = self._status, [_JSON, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        method = intake.scope["method"]
        if method == "HEAD":
            body = b""
        if method in ("GET", "HEAD") or intake.whole:
            await send({"type": "http.response.body", "body": body, "more_body": False})
        else:
            await send_last(intake, send, body)


@overload
def endpoint(
    func: Callable[..., Any], /, *, methods: Collection[str] | None = None, status: int = 200
) -> Endpoint: ...
@overload
def endpoint(
    *, methods: Collection[str] | None = None, status: int = 200
) -> Callable[[Callable[..., Any]], Endpoint]: ...
def endpoint(
    func: Callable[..., Any] | None = None,
    /,
    *,
    methods: Collection[str] | None = None,
    status: int = 200,
) -> Endpoint | Callable[[Callable[..., Any]], Endpoint]:
    """Make an ASGI app of a function; also a decorator, with and without arguments.

    What the request brings is read and checked first: a parameter says where it comes from, with :class:`Body`,
    :class:`Form`, :class:`Query`, :class:`Path` or :class:`Header`; `scope`, `receive` and `send` are known by name.
    What does not fit is answered with 400, 413, 415 or 422. Then the dependencies are made (:class:`Depends`), which
    may have such parameters, too, and the function is called: in a worker thread if it is not asynchronous.

    What it returns is answered as JSON by the ambient encoder (:func:`dumps`), None as ``null``; but a function that is
    annotated to return None has no content to answer (204). An ASGI app that it returns answers by itself:
    :class:`JSON`, :class:`NDJSON`, a response of Starlette. What was opened is closed behind that. An exception of the
    function goes on to the server.

    :param methods: those that are answered, others get a 405; GET brings HEAD along. None for all.
    :param status: of a response that is made of what the function returns.
    :raises ConfigurationError: `func`, a parameter or an argument cannot be used.
    :raises DependencyError: a parameter gets no value.
    :raises DependencyCycleError: a function depends on itself.
    """
    if methods is not None:
        methods = _checked_methods(methods)
    _check_status(status)
    if func is None:
        return lambda func: endpoint(func, methods=methods, status=status)
    if not callable(func):
        raise ConfigurationTypeError("endpoint(func)", func, "give a function.")
    if kind_of(func, True) in GENERATORS:
        raise ConfigurationTypeError(
            "endpoint(func)",
            func,
            "a generator is no answer: let a function return NDJSON, JSONArray or EventStream of it.",
        )
    return Endpoint(func, methods, status)


def _check_status(status: object) -> None:
    subject = "endpoint(status=...)"
    if not isinstance(status, int) or isinstance(status, bool):
        raise ConfigurationTypeError(subject, status, "a status is an integer.")
    if not 200 <= status <= 599 or status in (204, 205, 304):
        raise ConfigurationValueError(
            subject, status, "it is one from 200 to 599 whose response has a body."
        )


def _checked_methods(methods: object) -> frozenset[str]:
    if (
        isinstance(methods, str)
        or not isinstance(methods, Collection)
        or not methods
        or not all(isinstance(each, str) for each in methods)
    ):
        raise ConfigurationTypeError(
            "endpoint(methods=...)", methods, 'give names of methods, such as ["GET", "POST"].'
        )
    found = {each.upper() for each in methods}
    return frozenset(found | {"HEAD"} if "GET" in found else found)


def _returns_none(func: Callable[..., Any]) -> bool:
    annotations = getattr(func, "__annotations__", {})
    return "return" in annotations and annotations["return"] in (None, "None")


async def _read_files(reading: Reading, intake: Intake) -> None:
    """Read what a request brings. Its files are closed with it, behind all that is opened from now on."""
    uploads: list[UploadFile] = intake.uploads
    try:
        await reading.read(intake)
    except BaseException:
        for upload in uploads:
            upload.file.close()
        raise
    if uploads:
        current_resources().push_async_callback(_close, uploads)


async def _close(uploads: list[UploadFile]) -> None:
    for upload in uploads:
        await upload.close()


async def _answer_other(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what is no request: there is nothing to start, and no websocket."""
    kind = scope["type"]
    if kind == "websocket":
        await send({"type": "websocket.close"})
    elif kind == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
    else:
        raise ConfigurationValueError(
            "endpoint(func) as an app", kind, "it answers http requests and nothing else."
        )
