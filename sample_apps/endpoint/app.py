"""A place to put files, built from `endpoint` alone: no framework, and a dict for a router.

hypercorn app:app
curl -T picture.raw -H 'Content-Type: image/x-raw' http://127.0.0.1:8000/uploads/picture
curl http://127.0.0.1:8000/uploads/picture       how far it is, meanwhile
curl -F files=@picture.raw -F comment=hello http://127.0.0.1:8000/forms
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

from asgi_perfkit import (
    JSON,
    Body,
    BodyStream,
    Depends,
    Form,
    Path,
    PerfKit,
    Query,
    UploadFile,
    endpoint,
    get_performance_stats,
    run_in_threadpool,
)

ITEMS = {1: "kettle", 2: "teapot", 3: "cup"}


@dataclass
class Upload:
    """A file that comes, or has come."""

    name: str
    state: str = "uploading"
    received: int = 0
    length: int | None = None
    digest: str | None = None


@dataclass
class Note:
    """What somebody says of an upload."""

    text: str
    stars: int | None = None


UPLOADS: dict[str, Upload] = {}
Name = Annotated[str, Path()]


async def known_upload(name: Name) -> Upload | None:
    return UPLOADS.get(name)


async def put_upload(name: Name, body: Annotated[BodyStream, Body(max_size=1 << 30)]) -> Any:
    """Take a file as it comes, and note how far it is; nothing of it is kept but its digest."""
    upload = UPLOADS[name] = Upload(name, length=body.length)
    digest = hashlib.sha256()
    try:
        async for chunk in body:
            digest.update(chunk)
            upload.received = body.size
        upload.state, upload.digest = "complete", digest.hexdigest()
    finally:
        if upload.state == "uploading":
            upload.state = "broken off"
    return JSON(upload, 201)


async def get_upload(upload: Annotated[Upload | None, Depends(known_upload)]) -> Any:
    """Tell how far an upload is."""
    return JSON({"error": "There is no such upload."}, 404) if upload is None else upload


async def post_form(
    files: Annotated[list[UploadFile], Form(max_size=16 << 20, max_count=10)],
    comment: Annotated[str, Form()] = "",
) -> Any:
    """Take the files of a form."""
    found = []
    for each in files:
        digest = await run_in_threadpool(hashlib.sha256, await each.read())
        found.append({"name": each.filename, "size": each.size, "digest": digest.hexdigest()})
    return {"comment": comment, "files": found}


async def post_note(
    note: Annotated[Note, Body(max_size=65_536)],
    upload: Annotated[Upload | None, Depends(known_upload)],
) -> Any:
    """Say something of an upload."""
    return {"note": note, "upload": upload}


def get_item(item_id: Annotated[int, Path()], loud: Annotated[bool, Query()] = False) -> Any:
    """Look something up; in a thread, for this is no async function."""
    if item_id not in ITEMS:
        return JSON({"error": "There is no such item."}, 404)
    name = ITEMS[item_id]
    return {"id": item_id, "name": name.upper() if loud else name}


async def get_outcomes() -> Any:
    """How the requests ended so far."""
    return get_performance_stats()["outcomes"]


async def not_found() -> JSON:
    return JSON({"error": "There is nothing here."}, 404)


# By the method and the first part of the path; the name of the second one.
ROUTES = {
    ("PUT", "uploads"): (endpoint(put_upload), "name"),
    ("GET", "uploads"): (endpoint(get_upload), "name"),
    ("POST", "notes"): (endpoint(post_note), "name"),
    ("POST", "forms"): (endpoint(post_form), ""),
    ("GET", "items"): (endpoint(get_item), "item_id"),
    ("GET", "outcomes"): (endpoint(get_outcomes), ""),
}
NOT_FOUND = endpoint(not_found), ""


async def route(scope: Any, receive: Any, send: Any) -> None:
    first, _, second = scope.get("path", "/")[1:].partition("/")
    found, parameter = ROUTES.get((scope.get("method"), first), NOT_FOUND)
    scope["path_params"] = {parameter: second}
    await found(scope, receive, send)


app = PerfKit(route)
