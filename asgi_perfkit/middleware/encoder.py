"""Carries an app's encoder to what makes JSON in it, and compresses what goes out."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from asgi_perfkit.encoding.compression import find_codings
from asgi_perfkit.encoding.encoder import Encoder
from asgi_perfkit.encoding.negotiation import Negotiator
from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.middleware.compressor import Compressor, Policy
from asgi_perfkit.middleware.exchange import Exchange, HTTPExchange, WebSocketExchange, exchange_of
from asgi_perfkit.steps import DONE, current_account
from asgi_perfkit.threads.limiter import ThreadLimiter
from asgi_perfkit.types import ASGIApp, Receive, Scope, Send, single_callable

__all__ = ["ResponseEncoderMiddleware"]


_EXCHANGES: dict[str, type[Exchange]] = {"http": HTTPExchange, "websocket": WebSocketExchange}


class ResponseEncoderMiddleware:
    """Make JSON with an encoder of the app's own, and compress the responses of `app`.

    With its defaults it does neither, and costs nothing.

    Compressed is what the client accepts compressed, and what gets smaller by it: whole bodies, and streams, chunk by
    chunk, so that an event stream arrives at once. A response stays as it is if it has a Content-Encoding already, says
    `Cache-Control: no-transform`, is a part or the digest of something, has no body, or is of a type that has a
    compression of its own. Strong validators become weak ones, and `Vary: Accept-Encoding` tells caches of it.

    :param app: an ASGI app, single or double callable.
    :param encoder: what :func:`dumps` and all that is made with it take in requests and connections of `app`.
    :param custom_encoders: the same, for an :class:`Encoder` with these and nothing else that is not default.
    :param compression: True for the best of the codings that the client accepts and that are installed; a sequence of
        ``"zstd"``, ``"br"`` and ``"gzip"`` in the order of preference; None for none.
    :param minimum_size: bytes of a body below which it is not compressed.
    :raises ConfigurationTypeError: an argument of the wrong type, or both `encoder` and `custom_encoders`.
    :raises ConfigurationValueError: a coding that does not exist, or whose package is not installed.
    """

    def __init__(
        self,
        app: Any,
        *,
        encoder: Encoder | None = None,
        custom_encoders: Mapping[type, Callable[[Any], Any]] | None = None,
        compression: bool | Sequence[str] | None = None,
        minimum_size: int = 500,
    ) -> None:
        _check(app, encoder, custom_encoders, minimum_size)
        self.app: ASGIApp = single_callable(app)
        if custom_encoders is not None:
            encoder = Encoder(custom_encoders=custom_encoders)
        self.encoder = encoder
        codings = find_codings(f"{type(self).__name__}(compression=...)", compression)
        self._policy: Policy | None = None
        if codings:
            # More threads than processors would not compress any faster.
            limiter = ThreadLimiter(os.cpu_count() or 1)
            self._policy = Policy(Negotiator(codings), minimum_size, limiter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rest = self.serve(scope, receive, send)
        if rest is not DONE:
            await rest

    @property
    def idle(self) -> bool:
        """Whether it does nothing, as with its defaults."""
        return self.encoder is None and self._policy is None

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """What calling the middleware awaits, to be awaited at once and in the same task."""
        kind = scope["type"]
        opened: Exchange | None = None
        if self.encoder is not None and kind in _EXCHANGES:
            exchange = exchange_of(send)
            if exchange is None or exchange.closed:
                exchange = _EXCHANGES[kind](self, current_account.get(), scope, receive, send)
                opened = exchange
                current_account.set(exchange)
                receive, send = exchange.receive_message, exchange.send_message
            exchange.encoder = self.encoder
        if kind == "http" and self._policy is not None and scope.get("method") != "HEAD":
            send = Compressor(self._policy, scope, send).send_message
        if opened is None:
            return self.app(scope, receive, send)
        try:
            work = self.app(scope, receive, send)
        except BaseException as error:
            self.work_ended(opened, error)
            raise
        return opened.begin(work)

    def work_ended(self, account: Exchange, error: BaseException | None) -> None:
        """End an exchange that this middleware has opened."""
        account.conclude(error)


def _check(app: object, encoder: object, custom_encoders: object, minimum_size: object) -> None:
    """Refuse arguments that cannot be used."""
    name = ResponseEncoderMiddleware.__name__
    if not callable(app):
        raise ConfigurationTypeError(f"{name}(app)", app, "an ASGI application is a callable.")
    if encoder is not None and not isinstance(encoder, Encoder):
        raise ConfigurationTypeError(
            f"{name}(encoder=...)", encoder, "give an Encoder, or None for the default."
        )
    if encoder is not None and custom_encoders is not None:
        raise ConfigurationTypeError(
            f"{name}(custom_encoders=...)",
            custom_encoders,
            "there is an encoder, too; give them to that: Encoder(custom_encoders=...).",
        )
    if not isinstance(minimum_size, int) or isinstance(minimum_size, bool):
        raise ConfigurationTypeError(
            f"{name}(minimum_size=...)", minimum_size, "give a whole number of bytes."
        )
    if minimum_size < 0:
        raise ConfigurationValueError(
            f"{name}(minimum_size=...)", minimum_size, "give 0 bytes or more."
        )
