"""Any of the samples, below the name of a coding compressed with that; and a page in which a browser reads it.

/zstd/items/, /br/items/ and /gzip/items/ are the sample's /items/. /zstd/events and so on are event streams of one
event, which stay open. The page asks for all of it and shows what it has read; it is loaded once all of the events
are there.
"""

from __future__ import annotations

from typing import Any

import anyio

import app as sample
from asgi_perfkit import PerfKit, ResponseEncoderMiddleware

CODINGS = ("zstd", "br", "gzip")

PAGE = """<!doctype html>
<title>Compressed</title>
<pre id="read"></pre>
<script>
"use strict";
const read = {};

function checksum(text) {
  let a = 1, b = 0;
  for (let i = 0; i < text.length; i++) {
    a = (a + text.charCodeAt(i)) % 65521;
    b = (b + a) % 65521;
  }
  return b * 65536 + a;
}

for (const coding of ["zstd", "br", "gzip"]) {
  for (const path of ["/items/", "/sales/"]) {
    const request = new XMLHttpRequest();
    request.open("GET", "/" + coding + path, false);
    request.send();
    const encoding = request.getResponseHeader("content-encoding");
    read["/" + coding + path] = [request.status, encoding, checksum(request.responseText)];
  }
  const path = "/" + coding + "/events";
  const events = new EventSource(path);
  events.onmessage = (event) => {
    events.close();
    read[path] = [event.lastEventId, event.data];
    fetch("/seen" + path);
  };
}
</script>
<script src="/when-all-are-seen"></script>
"""

# The sample without its kit, which has codings of its own; Quart's app has the kit inside.
kit = sample.app if isinstance(sample.app, PerfKit) else sample.app.asgi_app
shop = kit.app
seen: set[str] = set()
all_seen: list[anyio.Event] = []


async def events(scope: Any, receive: Any, send: Any) -> None:
    """One event; then nothing, until the client leaves."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    event = b"id: 7\ndata: kettle\n\n"
    await send({"type": "http.response.body", "body": event, "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def routed(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["path"] == "/events":
        await events(scope, receive, send)
    else:
        await shop(scope, receive, send)


compressed = {
    coding: ResponseEncoderMiddleware(routed, compression=(coding,), minimum_size=1)
    for coding in CODINGS
}


async def respond(send: Any, body: str, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return await shop(scope, receive, send)
    path = scope["path"]
    coding, _, rest = path[1:].partition("/")
    if coding in compressed:
        scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
        return await compressed[coding](scope, receive, send)
    if path == "/page":
        seen.clear()
        all_seen[:] = [anyio.Event()]
        return await respond(send, PAGE, b"text/html; charset=utf-8")
    if path.startswith("/seen/"):
        seen.add(path)
        if len(seen) == len(CODINGS):
            all_seen[0].set()
        return await respond(send, "", b"text/plain")
    if path == "/when-all-are-seen":
        await all_seen[0].wait()
        show = 'document.getElementById("read").textContent = JSON.stringify(read);'
        return await respond(send, show, b"text/javascript")
    return await routed(scope, receive, send)


app = PerfKit(application)
