"""The examples in README.md and docs/ do what they show, and the links lead somewhere.

CONTRIBUTING.md says how an example is written. The examples of a document share a namespace in an
interpreter of their own: what it executes is this file, run as a script.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import functools
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import traceback
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted(ROOT.glob("docs/**/*.md"))]
LINKING = sorted({*DOCUMENTS, *ROOT.glob("*.md"), *ROOT.glob("*/README.md")})
TIMEOUT_SECONDS = 15

FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w.+-]*)")
DIRECTIVE = re.compile(r"\s*<!-- example: (?P<word>\w+)(: (?P<reason>.*\S))? -->\s*")
LINK = re.compile(r"\]\((?P<inline>[^)\s]+)[^)]*\)|^\[[^\]]+\]:\s*(?P<reference>\S+)", re.MULTILINE)


class DocumentError(Exception):
    """A document breaks the rules for examples."""


@dataclass
class Example:
    """A Python block: where it stands, its code, and what its author says about it."""

    document: str
    line: int
    code: str
    skip: bool = False
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(text: str) -> Iterator[tuple[int, str, str, str, str]]:
    """Yield each fenced block: first line, language, code; word and reason of the directive."""
    lines = iter(enumerate(text.splitlines(), start=1))
    word = reason = ""
    for number, line in lines:
        if fence := FENCE.match(line):
            mark = fence["fence"]
            code = []
            for _, inside in lines:
                if inside.strip().startswith(mark) and not inside.strip().strip(mark[0]):
                    break
                code.append(inside.removeprefix(fence["indent"]))
            else:
                raise DocumentError(f"line {number}: this block has no end")
            yield number + 1, fence["language"].lower(), "\n".join((*code, "")), word, reason
            word = reason = ""
        elif word and line.strip():
            raise DocumentError(f"line {number}: expected the block that the comment above is for")
        elif directive := DIRECTIVE.fullmatch(line):
            word, reason = directive["word"], directive["reason"] or ""
        elif re.search(r"<!--\W*examples?\W", line):
            raise DocumentError(f"line {number}: expected <!-- example: WORD -->, not {line!r}")
    if word:
        raise DocumentError(f"the last comment, {word!r}, has no block after it")


def parse(document: str, text: str) -> list[list[Example]]:
    """Return a document's examples in their order, grouped by the namespace that they share."""
    groups: list[list[Example]] = [[]]
    for line, language, code, word, reason in blocks(text):
        if language in {"py", "python3", "pycon", "python-repl"}:
            raise DocumentError(f"line {line}: name the language `python`, not `{language}`")
        match language, word:
            case "python", "":
                groups[-1].append(Example(document, line, code))
            case "python", "fresh":
                groups.append([Example(document, line, code)])
            case "python", "skip" if reason:
                groups[-1].append(Example(document, line, code, skip=True))
            case "text", "output" if groups[-1] and groups[-1][-1].output is None:
                groups[-1][-1].output = code
            case _ if word:
                raise DocumentError(f"line {line}: {word!r} does not go with this block")
    return groups


def run(example: Example, namespace: dict[str, object]) -> str:
    """Run an example; return what is wrong with it, which is nothing if it is empty."""
    printed = io.StringIO()
    try:
        # As many lines in front as in the document, so that tracebacks tell where it went wrong.
        code = compile(
            "\n" * (example.line - 1) + example.code,
            ROOT / example.document,
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        if example.skip:
            return ""
        with contextlib.redirect_stdout(printed):
            coroutine = eval(code, namespace)
            if coroutine is not None:
                asyncio.run(coroutine)
    except BaseException:
        return traceback.format_exc()
    wanted, got = example.output, printed.getvalue()
    checker = doctest.OutputChecker()
    if wanted is None or checker.check_output(wanted, got, doctest.ELLIPSIS):
        return ""
    return checker.output_difference(doctest.Example("", wanted), got, doctest.ELLIPSIS)


def run_from_stdin() -> None:
    """Run the examples that come as JSON on stdin; write what is wrong with each to stdout."""
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a child process of an example prints is not the answer
    # What looks up annotations finds them through the module's name.
    module = sys.modules["example"] = types.ModuleType("example")
    wrong = [run(Example(**fields), module.__dict__) for fields in json.load(sys.stdin)]
    with stdout:
        json.dump(wrong, stdout)


def run_group(group: list[Example]) -> list[str]:
    """Run examples that share a namespace; return for each what is wrong with it."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            ran = subprocess.run(
                [sys.executable, "-I", __file__],
                check=False,
                input=json.dumps([asdict(example) for example in group]),
                capture_output=True,
                cwd=directory,
                text=True,
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            late = f"{group[0]} and those that share its names took more than {TIMEOUT_SECONDS} s"
            return [late] * len(group)
    return json.loads(ran.stdout) if ran.stdout else [ran.stderr] * len(group)


# ---- the documents


@functools.cache
def groups_of(document: Path) -> list[list[Example]]:
    name = document.relative_to(ROOT).as_posix()
    try:
        return parse(name, document.read_text(encoding="utf-8"))
    except DocumentError as error:
        raise DocumentError(f"{name}: {error}") from None


@functools.cache
def results_of(document: Path, group: int) -> list[str]:
    return run_group(groups_of(document)[group])


@pytest.mark.parametrize(
    ("document", "group", "number"),
    [
        pytest.param(document, group, number, id=str(example))
        for document in DOCUMENTS
        for group, in_group in enumerate(groups_of(document))
        for number, example in enumerate(in_group)
    ],
)
def test_example(document: Path, group: int, number: int) -> None:
    wrong = results_of(document, group)[number]
    assert not wrong, wrong


def test_the_readme_has_examples_that_run() -> None:
    assert any(not example.skip for group in groups_of(README) for example in group)


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def broken_links(document: Path) -> list[str]:
    broken = []
    for link in LINK.finditer(document.read_text(encoding="utf-8")):
        target = link["inline"] or link["reference"]
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", LINKING, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links(document: Path) -> None:
    assert broken_links(document) == []


# ---- the rules for examples, on small documents that keep or break them


def outcomes(text: str) -> list[str]:
    return [wrong for group in parse("docs/x.md", text) if group for wrong in run_group(group)]


def test_examples_share_a_namespace_until_a_fresh_one() -> None:
    text = """
```python
import sys
total = 1
sys.marked = True
```

```python
assert total == 1
```

<!-- example: fresh -->
```python
import sys
assert not hasattr(sys, "marked")
total
```
"""
    first, second, third = outcomes(text)
    assert (first, second) == ("", "")
    assert 'docs/x.md", line 16, in <module>' in third
    assert "NameError: name 'total' is not defined" in third


def test_output_is_compared() -> None:
    block = "```python\nimport os\nos.system('echo x')\nprint('took', 12, 'ms')\n```\n"
    expect = "<!-- example: output -->\n\n```text\n{}\n```\n"
    assert outcomes(block + expect.format("took ... ms")) == [""]
    (wrong,) = outcomes(block + expect.format("took ... s"))
    assert "took ... s" in wrong
    assert "took 12 ms" in wrong


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import asyncio\nawait asyncio.sleep(0)", ""),
        ("import typing\nclass A: x: 'B'\nclass B: ...\ntyping.get_type_hints(A)['x'].y", "'B'"),
        ("raise SystemExit", "SystemExit"),
        ("async def f(): raise KeyError\nawait f()", "KeyError"),
        ("import", "SyntaxError"),
        ("import asgi_perfkit.nothing", "ModuleNotFoundError"),
        ("import test_examples", "ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_what_an_example_may_do(code: str, error: str) -> None:
    (wrong,) = outcomes("- In a list:\n\n" + textwrap.indent(f"```python\n{code}\n```", "  "))
    assert error in wrong
    assert bool(wrong) == bool(error)


def test_a_skipped_example_is_compiled() -> None:
    text = "<!-- example: skip: serves forever -->\n```python\n{}\n```\n"
    assert outcomes(text.format("raise KeyError")) == [""]
    assert "SyntaxError" in outcomes(text.format("raise raise"))[0]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nx", "line 1: this block has no end"),
        ("````python\n```\nx", "line 1: this block has no end"),
        ("```py\nx\n```", "line 2: name the language `python`"),
        ("```pycon\n>>> x\n```", "line 2: name the language `python`"),
        ("<!-- example: fresh -->\nText.\n```python\n```", "line 2: expected the block"),
        ("<!-- example: fresh -->", "the last comment, 'fresh', has no block"),
        ("<!-- example: skip -->\n```python\n```", "line 3: 'skip' does not go with this block"),
        ("<!-- example: never -->\n```python\n```", "line 3: 'never' does not go with"),
        ("<!-- example: fresh -->\n```sh\n```", "line 3: 'fresh' does not go with this block"),
        ("<!-- example: output -->\n```text\n```", "line 3: 'output' does not go with"),
        ("<!-- example fresh -->\n```python\n```", "line 1: expected <!-- example: WORD -->"),
        ("<!--examples: fresh-->\n```python\n```", "line 1: expected <!-- example: WORD -->"),
    ],
)
def test_a_document_written_wrongly_is_refused(text: str, error: str) -> None:
    with pytest.raises(DocumentError, match=re.escape(error)):
        parse("docs/x.md", text)


def test_broken_links_are_found(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(
        "# What it's for\n[a](x.md) [b](#what-its-for) [c](x.md#what-its-for 'title') "
        "[d](https://example.org/x) [e](y.md) [f](#what-for)\n\n[g]: z.md\n"
    )
    assert broken_links(document) == ["y.md", "#what-for", "z.md"]


if __name__ == "__main__":
    run_from_stdin()
