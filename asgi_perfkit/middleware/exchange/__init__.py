"""One request, or one websocket connection: the facts about it, recorded once.

Whichever middleware of the kit is outermost opens an :class:`Exchange` and hands the exchange's own `receive` and
`send` to the app. A middleware further in knows by these that the exchange is open (:func:`exchange_of`) and reads the
same facts; it wraps nothing. Where something that is not of the kit stands between and has put its own `send` in
place, the messages may have changed on the way, and the inner middleware opens an exchange of its own.

The rules by which facts are noted:

* A message is passed on first and unchanged, whatever it is. What the kit cannot read in it is counted as malformed
  and left for the server to judge.
* What a message says is read before it is handed over: who gets it may change it.
* A byte counts as sent when the server's `send` has returned.
* The wait for a message of the request body is upload time; the wait for a disconnect behind the body is not.
* What the kit has read for the sake of the server counts as received when the app asks for it.
"""

from asgi_perfkit.middleware.exchange.base import Exchange, exchange_of
from asgi_perfkit.middleware.exchange.http import HTTPExchange
from asgi_perfkit.middleware.exchange.websocket import WebSocketExchange

__all__ = ["Exchange", "HTTPExchange", "WebSocketExchange", "exchange_of"]
