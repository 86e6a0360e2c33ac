"""What docs/frameworks.md shows of each framework answers as it says: the page's own code, asked by a client."""

from __future__ import annotations

import pytest

from tests.test_examples import ROOT, Example, groups_of, run_group

DOCUMENT = ROOT / "docs" / "frameworks.md"
SECTIONS = [
    group
    for group in groups_of(DOCUMENT)
    if any("NDJSON(" in example.code for example in group if not example.skip)
]

ASK = """
import httpx

bodies = {}
transport = httpx.ASGITransport(app)
async with httpx.AsyncClient(transport=transport, base_url="http://shop", headers=HEADERS) as client:
    for path in ("/price", "/rows", "/events"):
        response = await client.get(path)
        assert response.headers.get("content-encoding") == CODING[path], (path, response.headers)
        bodies[path] = response.status_code, response.headers["content-type"], response.text

status, content_type, text = bodies["/price"]
assert (status, content_type) == (200, "application/json")
assert text in ('{"price":"24.50"}', '{"price":24.5}')
rows = "".join('{"number":%d}\\n' % number for number in range(3))
assert bodies["/rows"] == (200, "application/x-ndjson", rows)
events = "".join('data: {"number":%d}\\n\\n' % number for number in range(3))
assert bodies["/events"] == (200, "text/event-stream; charset=utf-8", events)
"""


def test_there_is_a_section_for_each_framework_that_runs_here() -> None:
    """Starlette, FastAPI, Litestar, Quart and a bare app; Django's needs a project, and is the sample."""
    assert len(SECTIONS) == 5


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: str(section[0]))
def test_a_section_answers(section: list[Example]) -> None:
    """An object, rows and events, of the app that stands last in the section; compressed when nothing else will do."""
    plain = "HEADERS = {}\nCODING = dict.fromkeys(['/price', '/rows', '/events'])\n"
    compressed = (
        "HEADERS = {'accept-encoding': 'gzip, identity;q=0'}\n"
        "CODING = dict.fromkeys(['/price', '/rows', '/events'], 'gzip')\n"
    )
    asked = [Example(str(DOCUMENT), 1, way + ASK) for way in (plain, compressed)]
    assert run_group([*section, *asked]) == [""] * (len(section) + 2)
