"""Files of call trees: what each form says, that other tools read it, and that nothing can break out of it."""

from __future__ import annotations

import functools
import html.parser
import http.server
import json
import os
import pstats
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_perfkit.exceptions import ConfigurationTypeError, ConfigurationValueError
from asgi_perfkit.profiling.calls import OVERFLOW, CallTree, Place
from asgi_perfkit.profiling.reports import SUFFIXES, save, write
from asgi_perfkit.profiling.reports.collapsed import collapsed
from asgi_perfkit.profiling.reports.html import html as html_page
from asgi_perfkit.profiling.reports.speedscope import speedscope
from tests.profiling.stacks import place, stack

SCHEMA = json.loads((Path(__file__).parent / "speedscope/file-format-schema.json").read_text())
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NPM = shutil.which("npm")
NASTY = "</script><script>document.title='broken'</script><!-- &amp; ' \" \u2028 \ud800"

names = st.text(max_size=12)
places = st.builds(Place, names, names, st.integers(0, 99), st.integers(0, 99))
trees = st.lists(
    st.tuples(names, st.lists(st.tuples(st.lists(places, max_size=4), st.integers(0, 50)))),
    max_size=3,
)


def tree(*added: tuple[list[Place], float]) -> CallTree:
    made = CallTree()
    for each, seconds in added:
        made.add(each, seconds)
    return made


SHOP = [
    ("GET /items", tree((stack("handler query"), 0.2), (stack("handler"), 0.05))),
    ("POST /orders", tree((stack("handler"), 0.01))),
]


def from_drawn(drawn: Any) -> list[tuple[str, CallTree]]:
    return [(name, tree(*((each, ms / 1000) for each, ms in added))) for name, added in drawn]


# ---- which form


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_suffix_says_the_form(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"a{suffix}", str(tmp_path / f"b{suffix.upper()}")]
    for path in paths:
        save(path, SHOP)
    first, second = (Path(path).read_bytes() for path in paths)
    assert first == second
    assert b"handler" in first


def test_another_suffix_is_refused_and_all_forms_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationValueError) as caught:
        save(tmp_path / "profile.svg", SHOP)
    assert "profile.svg" in str(caught.value)
    assert all(suffix in str(caught.value) for suffix in SUFFIXES)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(ConfigurationTypeError, match=r"report\.save"):
        save(12, SHOP)  # type: ignore[arg-type]


def test_a_file_is_replaced_when_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.collapsed"
    path.write_text("old")

    def full(self: Path, target: object) -> None:
        assert path.read_text() == "old"
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="no room"):
            write(str(path), b"new")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"a.collapsed": "old"}
    write(str(path), b"new")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"a.collapsed": "new"}


@pytest.mark.skipif(os.name == "nt", reason="modes of files are POSIX's")
def test_others_may_read_it_as_any_file_of_this_process(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write(str(tmp_path / "a.html"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a.html").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_a_report_too(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"a{suffix}", [])
    assert (tmp_path / f"a{suffix}").exists()


# ---- speedscope


def test_speedscope() -> None:
    found = json.loads(speedscope(SHOP))
    jsonschema.validate(found, SCHEMA)
    assert found["shared"]["frames"] == [
        {"name": "handler", "file": "/app/shop.py", "line": 1},
        {"name": "query", "file": "/app/shop.py", "line": 1},
    ]
    assert [(each["name"], each["unit"], each["endValue"]) for each in found["profiles"]] == [
        ("GET /items", "seconds", pytest.approx(0.25)),
        ("POST /orders", "seconds", 0.01),
    ]
    first = found["profiles"][0]
    weights = dict(zip(map(tuple, first["samples"]), first["weights"], strict=True))
    assert weights == {(0,): 0.05, (0, 1): 0.2}


@settings(max_examples=40)
@given(trees)
def test_speedscope_is_valid_and_whole(drawn: Any) -> None:
    made = from_drawn(drawn)
    found = json.loads(speedscope(made))
    jsonschema.validate(found, SCHEMA)
    told = sum(sum(each["weights"]) for each in found["profiles"])
    spent = sum(node.seconds for _, each in made for way, node in each.stacks() if way)
    assert told == pytest.approx(spent)
    frames = range(len(found["shared"]["frames"]))
    assert all(
        index in frames for each in found["profiles"] for way in each["samples"] for index in way
    )


@pytest.fixture
def speedscope_app(pytestconfig: pytest.Config, tmp_path: Path) -> Path:
    """The directory of speedscope's own web app, with room for a file beside it."""
    if NPM is None or CHROMIUM is None:
        pytest.skip("npm and Chromium are needed to open it")
    cache = getattr(pytestconfig, "cache", None)
    packed = tmp_path if cache is None else cache.mkdir("speedscope")
    archive = packed / "speedscope-1.25.0.tgz"
    if not archive.exists():
        try:
            subprocess.run(
                [NPM, "pack", "speedscope@1.25.0", "--pack-destination", str(packed)],
                check=True,
                capture_output=True,
                timeout=10,
            )
        except (subprocess.SubprocessError, OSError) as failure:
            pytest.skip(f"npm has not got speedscope: {failure}")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    return tmp_path / "package/dist/release"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and the address at which it is served."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def document(address: str, directory: Path, *options: str) -> str:
    """What Chromium makes of a page once its scripts have run."""
    assert CHROMIUM is not None
    ran = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--user-data-dir={directory / 'profile'}",
            "--virtual-time-budget=4000",
            "--dump-dom",
            *options,
            address,
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=18,
    )
    assert "Uncaught" not in ran.stderr, ran.stderr
    return ran.stdout


def test_speedscope_opens_it(
    speedscope_app: Path, served: tuple[Path, str], tmp_path: Path
) -> None:
    directory, address = served
    save(speedscope_app / "shop.speedscope.json", SHOP)
    app = f"{address}/{speedscope_app.relative_to(directory).as_posix()}"
    shown = document(
        f"{app}/index.html#profileURL={app}/shop.speedscope.json&view=sandwich", tmp_path
    )
    assert "<title>asgi_perfkit - speedscope</title>" in shown
    assert "GET /items" in shown
    assert "handler" in shown
    assert "query" in shown
    assert "Something went wrong" not in shown


# ---- collapsed


def test_collapsed() -> None:
    lines = collapsed(SHOP).decode().splitlines()
    assert sorted(lines) == [
        "GET_/items;handler@/app/shop.py:1 50000",
        "GET_/items;handler@/app/shop.py:1;query@/app/shop.py:1 200000",
        "POST_/orders;handler@/app/shop.py:1 10000",
    ]


@settings(max_examples=40)
@given(trees)
def test_collapsed_is_read_as_it_was_written(drawn: Any) -> None:
    """Whatever is in the names: a line is a stack, a semicolon ends a frame, the last space ends the stack."""
    made = from_drawn(drawn)
    expected = [
        (1 + len(way), round(node.seconds * 1e6))
        for _, each in made
        for way, node in each.stacks()
        if node.seconds
    ]
    found = []
    for line in collapsed(made).decode().splitlines():
        frames, _, microseconds = line.rpartition(" ")
        assert " " not in frames
        assert all(frames.split(";"))
        found.append((len(frames.split(";")), int(microseconds)))
    assert found == expected


# ---- pstats


def load(path: Path, made: list[tuple[str, CallTree]]) -> dict[Any, Any]:
    save(path, made)
    return pstats.Stats(str(path)).stats  # type: ignore[attr-defined]


def test_pstats(tmp_path: Path) -> None:
    found = load(tmp_path / "a.pstats", SHOP)
    handler, query = ("/app/shop.py", 1, "handler"), ("/app/shop.py", 1, "query")
    items, orders = ("~", 0, "GET /items"), ("~", 0, "POST /orders")
    calls, _, own, total, callers = found[handler]
    assert (calls, own, total) == (3, pytest.approx(0.06), pytest.approx(0.26))
    assert callers[items] == (2, 2, pytest.approx(0.05), pytest.approx(0.25))
    assert callers[orders] == (1, 1, 0.01, 0.01)
    assert found[query] == (1, 1, 0.2, 0.2, {handler: (1, 1, 0.2, 0.2)})
    assert found[items] == (2, 2, 0.0, pytest.approx(0.25), {})


def test_pstats_counts_a_function_that_calls_itself_once(tmp_path: Path) -> None:
    found = load(tmp_path / "a.pstats", [("GET /", tree((stack("a a a"), 1.0)))])
    function = ("/app/shop.py", 1, "a")
    assert found[function][:4] == (1, 1, 1.0, 1.0)
    assert found[function][4][function] == (1, 1, 1.0, 1.0)


def test_pstats_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.pstats", SHOP)
    pstats.Stats(str(tmp_path / "a.pstats")).sort_stats("cumtime").print_callees("GET /items")
    assert "handler" in capsys.readouterr().out


# ---- HTML


class Page(html.parser.HTMLParser):
    """What a browser would make of the source: its elements, and the text of those that matter here."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in {"src", "href"}]

    def handle_data(self, text: str) -> None:
        if self.tags:
            self.texts.setdefault(self.tags[-1], []).append(text)


def test_html_needs_no_script_for_its_tables() -> None:
    page = Page(html_page(SHOP).decode())
    assert page.tags.count("table") == 2
    assert page.texts["code"] == ["query", "handler", "handler"]
    assert "GET /items" in page.texts["h2"]


def test_html_needs_no_network() -> None:
    source = html_page(SHOP).decode()
    assert Page(source).links == ["data:,"]
    assert "http://" not in source
    assert "https://" not in source
    assert "default-src 'none'" in source


def test_html_holds_names_that_would_break_out() -> None:
    plain, nasty = (
        Page(html_page([(name, tree(([Place(name, name, 1, 2)], 1.0)))]).decode())
        for name in ("plain", NASTY)
    )
    assert nasty.tags == plain.tags
    (data,) = (text for text in nasty.texts["script"] if text.startswith('{"functions"'))
    assert "<" not in data  # "<!--<script" would do, too
    assert json.loads(data)["functions"][0][:3] == [NASTY, NASTY, 1]


def test_html_joins_the_lines_of_a_function() -> None:
    made = tree(
        ([place("a", 3), place("b")], 1.0),
        ([place("a", 4)], 2.0),
        ([place("a", 5), place("b")], 4.0),
    )
    source = html_page([("GET /", made)]).decode()
    (data,) = (text for text in Page(source).texts["script"] if text.startswith('{"functions"'))
    (graph,) = json.loads(data)["endpoints"]
    assert graph["parent"] == [-1, 0, 1]
    assert graph["self"] == [0, 2.0, 5.0]
    assert graph["lines"][1] == [[4, 2.0]]


@settings(max_examples=40)
@given(trees)
def test_html_has_all_the_time_in_its_graph(drawn: Any) -> None:
    made = from_drawn(drawn)
    source = html_page(made).decode()
    (data,) = (text for text in Page(source).texts["script"] if text.startswith('{"functions"'))
    graphs = json.loads(data)["endpoints"]
    assert [sum(each["self"]) for each in graphs] == [
        pytest.approx(each.total()[1]) for _, each in made
    ]
    assert all(parent < index for each in graphs for index, parent in enumerate(each["parent"]))


DRIVER = """
<script>
addEventListener("load", () => {
  const press = (on, key) => on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const box = name => [...document.querySelectorAll(".box")].find(
    each => each.getAttribute("aria-label").startsWith(name + ","));
  const said = [document.querySelectorAll(".box").length];
  document.querySelector(".box[tabindex='0']").focus();
  press(document.activeElement, "ArrowDown");
  said.push(document.activeElement.getAttribute("aria-label"));
  press(document.activeElement, "ArrowDown");
  press(document.activeElement, "Enter");
  said.push(box("query").style.width, box("handler").classList.contains("above"));
  press(document.activeElement, "Escape");
  said.push(box("query").style.width);
  const search = document.getElementById("search");
  search.value = "QUERY";
  search.dispatchEvent(new Event("input"));
  said.push(document.querySelectorAll(".box.hit").length, document.getElementById("sum").textContent);
  document.getElementById("reset").click();
  const chooser = document.getElementById("endpoint");
  chooser.value = "1";
  chooser.dispatchEvent(new Event("change"));
  said.push(document.querySelectorAll(".box").length);
  said.push([...document.querySelectorAll("section.table")].map(each => each.hidden));
  const out = document.createElement("pre");
  out.id = "said";
  out.textContent = JSON.stringify(said);
  document.body.append(out);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_html_in_a_browser(tmp_path: Path) -> None:
    """Zoom, search and the choice of an endpoint, by keys; a nasty name stays a name."""
    nasty = ("GET /nasty", tree(([Place(NASTY, NASTY, 1, 2)], 0.001)))
    page = tmp_path / "shop.html"
    page.write_bytes(html_page([*SHOP, nasty]).replace(b"</body>", DRIVER.encode() + b"</body>"))
    shown = document(page.as_uri(), tmp_path)
    assert "<title>Profile · asgi_perfkit</title>" in shown
    said = json.loads(shown.partition('<pre id="said">')[2].partition("</pre>")[0])
    assert said == [
        3,
        "handler, 250.0 ms, 100.0 %",
        "100%",
        True,
        "80%",
        1,
        "250.0 ms, seen 2 times; 200.0 ms (80.0 %) in what matches",
        2,
        [True, False, True],
    ]


def test_what_had_no_room_is_shown() -> None:
    made = [("GET /", tree(([OVERFLOW], 1.0)))]
    assert "&lt;overflow&gt;" in html_page(made).decode()
    assert collapsed(made) == b"GET_/;<overflow> 1000000\n"
    assert json.loads(speedscope(made))["shared"]["frames"] == [{"name": "<overflow>"}]
