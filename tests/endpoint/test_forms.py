"""Forms, urlencoded and of many parts, with files."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import hypothesis
import hypothesis.strategies as st
import pytest

from asgi_perfkit import ConfigurationError, Form, PerfKit, UploadFile, endpoint, run_in_threadpool
from asgi_perfkit.endpoint import forms, uploads
from tests.conftest import ASYNCIO, Run
from tests.endpoint.driver import ask
from tests.support import Trouble

BOUNDARY = "a-boundary"
MULTIPART = ((b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode()),)
URLENCODED = ((b"content-type", b"application/x-www-form-urlencoded"),)
Part = tuple[str, bytes] | tuple[str, bytes, str]


def multipart(*parts: Part) -> bytes:
    """The body of a form: names and values, and file names of files."""
    body = b""
    for name, value, *filename in parts:
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        if filename:
            body += f'; filename="{filename[0]}"\r\nContent-Type: image/x-tea'.encode()
        body += b"\r\n\r\n" + value + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def pieces(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


@endpoint
async def fields(
    name: Annotated[str, Form()],
    numbers: Annotated[list[int], Form(alias="n", max_count=3)] = [],  # noqa: B006
    note: Annotated[str | None, Form(max_size=10)] = None,
) -> Any:
    return [name, numbers, note]


def test_a_urlencoded_form(run: Run) -> None:
    """Of a name that is repeated the last counts, and a list has all; other names are passed over."""
    body = b"name=a&n=1&n=2&name=%C3%A9+b&other=x"
    assert run(lambda: ask(fields, body, headers=URLENCODED)).json() == ["é b", [1, 2], None]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_form_of_parts(run: Run, size: int) -> None:
    body = multipart(
        ("name", b"a"), ("n", b"1"), ("n", b"2"), ("name", "é b".encode()), ("x", b"y")
    )
    answer = run(lambda: ask(fields, *pieces(body, size), headers=MULTIPART))
    assert answer.json() == ["é b", [1, 2], None]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"n=x&note=", URLENCODED),
        (multipart(("n", b"x"), ("note", b"", "f")), MULTIPART),
        (b"", ()),
    ],
)
def test_what_does_not_fit(run: Run, body: bytes, headers: Any) -> None:
    problems = run(lambda: ask(fields, body, headers=headers)).problems
    assert problems[0] == ("form", "name", "it is missing")
    expected = {b"": []}.get(body, [("form", "n", "it has to be a whole number")])
    if headers is MULTIPART:
        expected.append(("form", "note", "it cannot be a file"))
    assert problems[1:] == expected


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"name=" + b"x" * (5 << 20), URLENCODED),
        (b"name=a&note=" + b"x" * 11, URLENCODED),
        (b"name=a&n=1&n=2&n=3&n=4", URLENCODED),
        (b"a=1&" * 1001, URLENCODED),
        (multipart(("note", b"x" * 11)), MULTIPART),
        (multipart(*[("n", b"1")] * 4), MULTIPART),
        (multipart(*[("other", b"")] * 1001), MULTIPART),
        (multipart(("other", b"x" * (1 << 20)), ("another", b"y")), MULTIPART),
        (multipart(("x" * 4097, b"")), MULTIPART),
        (b"", (*MULTIPART, (b"content-length", b"%d" % (1 << 30)))),
        (
            b"x",
            (
                (b"content-type", b"application/x-www-form-urlencoded"),
                (b"content-length", b"99999999"),
            ),
        ),
    ],
)
def test_more_than_is_declared_is_refused(run_asyncio: Run, body: bytes, headers: Any) -> None:
    answer = run_asyncio(lambda: ask(fields, *pieces(body, 65_536), headers=headers))
    assert answer.status == 413, answer.body


def test_a_preamble_without_end_is_refused(run_asyncio: Run, monkeypatch: Any) -> None:
    """What belongs to no part counts, too."""
    monkeypatch.setattr(forms, "_MAX_PARTS", 0)
    monkeypatch.setattr(forms, "_OTHER_BYTES", 0)

    @endpoint
    async def app(name: Annotated[str, Form(max_size=10)]) -> str:
        return name

    answer = run_asyncio(lambda: ask(app, b"\r\n" * 6, headers=MULTIPART))
    assert answer.status == 413


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"name=%FF", URLENCODED),
        (b"no boundary", MULTIPART),
        (multipart(("name", b"a"))[:-20], MULTIPART),
        (multipart(("name", b"\xff")), MULTIPART),
        (multipart(("name", b"a")).replace(b"form-data", b"attachment"), MULTIPART),
        (multipart(("name", b"a")), ((b"content-type", b"multipart/form-data"),)),
    ],
)
def test_a_form_that_is_none(run_asyncio: Run, body: bytes, headers: Any) -> None:
    answer = run_asyncio(lambda: ask(fields, body, headers=headers))
    assert answer.status == 400
    assert answer.json()["error"].startswith("The body is malformed: ")


def test_another_content_type(run_asyncio: Run) -> None:
    assert run_asyncio(lambda: ask(fields, b"{}")).status == 415
    assert run_asyncio(lambda: ask(fields, b"{}", headers=())).status == 415


async def fails(a: Annotated[UploadFile, Form()]) -> None:
    raise Trouble


class TestFiles:
    seen: list[UploadFile]

    def app(self) -> Any:
        self.seen = []

        @endpoint
        async def app(
            file: Annotated[UploadFile, Form()],
            more: Annotated[list[UploadFile], Form(max_size=4)] = [],  # noqa: B006
        ) -> Any:
            self.seen += [file, *more]
            assert not file.file.closed
            begin = await file.read(4)
            rest = await file.read()
            await file.seek(1)
            assert (begin + rest)[1:] == await file.read()
            return [
                file.filename,
                file.content_type,
                file.size,
                begin.decode(),
                [each.filename for each in more],
            ]

        return app

    @pytest.mark.parametrize("size", [10, (1 << 20) + 1])
    def test_a_file_is_there_until_the_request_is_over(self, run: Run, size: int) -> None:
        """In memory, or on the disk if it is large."""
        data = (b"kettle" * (size // 6 + 1))[:size]
        body = multipart(("file", data, "té.png"), ("more", b"1", "b"), ("more", b"2", "c"))
        for around in (PerfKit, lambda app: app):
            app = around(self.app())
            answer = run(lambda app=app: ask(app, *pieces(body, 65_536), headers=MULTIPART))
            assert answer.json() == ["té.png", "image/x-tea", size, "kett", ["b", "c"]]
            assert all(each.file.closed for each in self.seen)

    def test_the_disk_is_the_business_of_threads(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And memory is not."""
        called = []

        async def run_in_thread(func: Any, *args: Any) -> Any:
            called.append(func.__name__)
            return await run_in_threadpool(func, *args)

        monkeypatch.setattr(uploads, "run_in_threadpool", run_in_thread)
        body = multipart(("file", bytes(1 << 20), "a"))
        assert run(lambda: ask(self.app(), *pieces(body, 65_536), headers=MULTIPART)).status == 200
        assert called == []
        body = multipart(("file", bytes((1 << 20) + 1), "a"))
        assert run(lambda: ask(self.app(), *pieces(body, 65_536), headers=MULTIPART)).status == 200
        assert called[0] == "write"
        assert set(called) == {"write", "seek", "read", "close"}

    def test_it_can_be_closed_before(self, run: Run) -> None:
        @endpoint
        async def app(file: Annotated[UploadFile, Form()]) -> Any:
            await file.close()
            return [repr(file), file.file.closed]

        for size in (3, (1 << 20) + 1):
            body = multipart(("file", bytes(size), "a"))
            expected = [f"<UploadFile 'a', {size} bytes>", True]
            answer = run(lambda body=body: ask(app, body, headers=MULTIPART))
            assert answer.json() == expected

    @pytest.mark.parametrize("failure", ["too large", "hang up", "malformed", "of the function"])
    def test_it_is_closed_whatever_happens(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, failure: str
    ) -> None:
        made: list[UploadFile] = []

        class Watched(UploadFile):
            __slots__ = ()

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                made.append(self)

        monkeypatch.setattr(forms, "UploadFile", Watched)
        app = self.app()
        body = multipart(("file", b"tea", "a"), ("more", b"12345", "b"))
        if failure == "too large":
            assert run(lambda: ask(app, body, headers=MULTIPART)).status == 413
        elif failure == "hang up":
            sent = [body[:150]]
            assert not run(lambda: ask(app, *sent, headers=MULTIPART, hangs_up=True)).messages
        elif failure == "malformed":
            assert run(lambda: ask(app, body[:150], headers=MULTIPART)).status == 400
        else:
            with pytest.raises(Trouble):
                run(lambda: ask(endpoint(fails), multipart(("a", b"tea", "a")), headers=MULTIPART))
        assert made
        assert all(each.file.closed for each in made)

    def test_a_text_is_no_file(self, run_asyncio: Run) -> None:
        body = multipart(("file", b"tea"))
        assert run_asyncio(lambda: ask(self.app(), body, headers=MULTIPART)).problems == [
            ("form", "file", "it has to be a file")
        ]

    def test_no_file_was_chosen(self, run_asyncio: Run) -> None:
        """A browser sends one without a name and content then."""
        body = multipart(("file", b"", ""))
        assert run_asyncio(lambda: ask(self.app(), body, headers=MULTIPART)).problems == [
            ("form", "file", "it is missing")
        ]


names = st.text(st.characters(exclude_characters='"\\\r\n\x00%;', exclude_categories=["Cs", "Cc"]))


@hypothesis.given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.integers(), max_size=3),
    st.integers(1, 50),
)
def test_a_form_comes_back(name: str, numbers: list[int], size: int) -> None:
    run = ASYNCIO["asyncio"]
    pairs = [("name", name), *(("n", str(number)) for number in numbers)]
    body = urlencode(pairs).encode()
    assert run(lambda: ask(fields, *pieces(body, size), headers=URLENCODED)).json() == [
        name,
        numbers,
        None,
    ]
    body = multipart(*((key, value.encode()) for key, value in pairs))
    assert run(lambda: ask(fields, *pieces(body, size), headers=MULTIPART)).json() == [
        name,
        numbers,
        None,
    ]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.raises(ConfigurationError, match=r"asgi_perfkit\[forms\]"):
        Form()
