"""Whoever is cancelled, or hangs up, and at whichever await: files and resources are closed, and nobody is answered."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

import asgi_perfkit as kit
from asgi_perfkit import Body, Depends, Form, PerfKit, UploadFile, endpoint
from asgi_perfkit.endpoint import forms
from tests.conftest import Run
from tests.endpoint.driver import JSON, Answer, ask
from tests.endpoint.test_forms import MULTIPART, URLENCODED, multipart, pieces
from tests.resources.driver import Log, cancel_everywhere
from tests.support import checkpoint

AROUND = pytest.mark.parametrize("around", [PerfKit, lambda app: app], ids=["in PerfKit", "bare"])


@dataclass
class Item:
    name: str


class Desk:
    """Endpoints, and what is open for them."""

    def __init__(self) -> None:
        self.log = Log()

    def app(self, kind: str) -> Any:
        async def database() -> AsyncIterator[str]:
            async with self.log.thing("database") as value:
                yield value

        async def of_json(
            item: Annotated[Item, Body()], database: Annotated[str, Depends(database)]
        ) -> str:
            await checkpoint()
            return item.name

        async def of_stream(
            body: Annotated[AsyncIterator[bytes], Body()],
            database: Annotated[str, Depends(database)],
        ) -> int:
            return sum([len(chunk) async for chunk in body])

        async def of_fields(
            note: Annotated[str, Form()], database: Annotated[str, Depends(database)]
        ) -> str:
            return note

        async def of_files(
            file: Annotated[UploadFile, Form()],
            note: Annotated[str, Form()],
            database: Annotated[str, Depends(database)],
        ) -> str:
            await checkpoint()
            return (await file.read()).decode() + note

        async def refused(
            item: Annotated[Item, Body(max_size=4)], database: Annotated[str, Depends(database)]
        ) -> None:
            raise AssertionError("it is not called")

        async def refuses(
            item: Annotated[Item, Body()], database: Annotated[str, Depends(database)]
        ) -> None:
            await checkpoint()
            raise kit.InvalidRequestError([("body", "$", "no")])

        found = (of_json, of_stream, of_fields, of_files, refused, refuses)
        return endpoint(next(each for each in found if each.__name__ == kind))


def parts_of(body: bytes) -> list[bytes]:
    return pieces(body, len(body) // 3 + 1)


KINDS: dict[str, tuple[bytes, Any, int]] = {
    "of_json": (b'{"name":"tea"}', JSON, 200),
    "of_stream": (b"kettle", (), 200),
    "of_fields": (b"note=hot&x=1", URLENCODED, 200),
    "of_files": (multipart(("file", b"tea", "a.txt"), ("note", b"hot")), MULTIPART, 200),
    "refused": (b'{"name":"tea"}', JSON, 413),
    "refuses": (b'{"name":"tea"}', JSON, 422),
}
EACH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[UploadFile]:
    """All that were begun."""
    made: list[UploadFile] = []

    class Watched(UploadFile):
        __slots__ = ()

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(forms, "UploadFile", Watched)
    return made


@AROUND
@EACH
def test_a_cancellation_anywhere_leaves_nothing_open(
    run: Run, around: Any, kind: str, files: list[UploadFile]
) -> None:
    """In the upload, in a dependency, in the function, in the answer, in the closing."""
    body, headers, status = KINDS[kind]
    headers = (*headers, (b"content-length", b"%d" % len(body)))
    desks: list[Desk] = []
    answers: list[Answer] = []

    async def work(step: int) -> None:
        desks.append(Desk())
        answers.append(await ask(around(desks[-1].app(kind)), *parts_of(body), headers=headers))

    assert run(cancel_everywhere, work) >= 6
    assert answers[-1].status == status
    for desk in desks:
        desk.log.balance()
    if kind != "refused":
        assert "database opened" in desks[-1].log
    assert bool(files) is (kind == "of_files")
    assert all(each.file.closed for each in files)


@AROUND
@EACH
def test_who_hangs_up_at_any_message_is_not_answered(
    run: Run, around: Any, kind: str, files: list[UploadFile]
) -> None:
    """But for a body that is over its limit before."""
    body, headers, _ = KINDS[kind]
    for number in range(len(parts_of(body))):
        desk = Desk()
        chunks = parts_of(body)[:number] or [b""]
        answer = run(
            lambda desk=desk, chunks=chunks: ask(
                around(desk.app(kind)), *chunks, hangs_up=True, headers=headers, method="POST"
            )
        )
        if kind != "refused" or not number:
            assert answer.messages == []
        desk.log.balance()
    assert all(each.file.closed for each in files)


def test_a_file_is_there_as_long_as_what_was_opened_for_it(run: Run) -> None:
    """It came before the dependencies, and so it is closed behind them."""
    read = []

    async def archive(file: Annotated[UploadFile, Form()]) -> AsyncIterator[UploadFile]:
        yield file
        await file.seek(0)
        read.append(await file.read())

    @endpoint
    async def app(file: Annotated[UploadFile, Depends(archive)]) -> str | None:
        return file.filename

    for around in (PerfKit, lambda app: app):
        body = multipart(("file", b"tea", "a.txt"))
        answer = run(lambda around=around, body=body: ask(around(app), body, headers=MULTIPART))
        assert answer.json() == "a.txt"
    assert read == [b"tea"] * 2
