"""What is installed with the wheel, and what an import of it brings along."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import asgi_perfkit

DISTRIBUTION = metadata.distribution("asgi_perfkit")
# Frameworks, and what would be as heavy: none of them may be loaded before somebody asks for it.
NEVER_LOADED = (
    "starlette", "fastapi", "django", "quart", "flask", "litestar", "sanic", "falcon", "anyio",
    "trio", "pydantic", "opentelemetry", "prometheus_client", "celery", "kombu", "redis", "taskiq",
)  # fmt: skip


def requirements(extra: str | None = None) -> set[str]:
    """Return the names that the core, or an extra, requires."""
    names = set()
    for requirement in DISTRIBUTION.requires or ():
        of_extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", requirement)
        if (of_extra and of_extra[1]) == extra:
            name = re.match(r"[\w.-]+", requirement)
            assert name is not None
            names.add(name[0].lower().replace("_", "-"))
    return names


def test_the_wheel_is_tested_not_the_source_tree(pytestconfig: pytest.Config) -> None:
    module = Path(asgi_perfkit.__file__)
    assert module.parent.parent.name in {"site-packages", "dist-packages"}
    assert module.parent != pytestconfig.rootpath / "asgi_perfkit"
    assert Path(str(DISTRIBUTION.locate_file("asgi_perfkit/__init__.py"))) == module
    assert '"editable": true' not in (DISTRIBUTION.read_text("direct_url.json") or "")


def test_every_source_file_is_in_the_wheel_and_nothing_else(pytestconfig: pytest.Config) -> None:
    source = pytestconfig.rootpath / "asgi_perfkit"
    expected = {
        path.relative_to(source.parent).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {path.as_posix() for path in DISTRIBUTION.files or () if path.suffix != ".pyc"}
    assert {name for name in files if not name.startswith("asgi_perfkit-")} == expected
    assert "asgi_perfkit/py.typed" in expected


def test_metadata() -> None:
    assert DISTRIBUTION.metadata["Name"] == "asgi_perfkit"
    assert DISTRIBUTION.metadata["License-Expression"] == "BSD-3-Clause"
    assert DISTRIBUTION.metadata["Requires-Python"] == ">=3.10"
    assert asgi_perfkit.__version__ == DISTRIBUTION.version


def test_core_dependencies_are_exactly_four() -> None:
    assert requirements() == {"asgiref", "orjson", "psutil", "hypercorn"}


def test_dev_is_every_extra() -> None:
    extras = set(DISTRIBUTION.metadata.get_all("Provides-Extra") or ())
    assert extras == {
        "bench", "celery", "compression", "dev", "forms", "lint", "samples", "taskiq", "test",
    }  # fmt: skip
    of_dev = re.compile(r"""asgi_perfkit\[([\w,-]+)\];.*extra\s*==\s*["']dev["']""")
    (listed,) = filter(None, map(of_dev.match, DISTRIBUTION.requires or ()))
    assert {*listed[1].split(",")} == extras - {"dev"}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `statement`."""
    program = f"{statement}; import sys; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in ran.stdout.split()}


def test_importing_loads_no_framework() -> None:
    loaded = loaded_by("import asgi_perfkit")
    assert "asgi_perfkit" in loaded
    assert loaded.isdisjoint(NEVER_LOADED), loaded & {*NEVER_LOADED}
    assert {"fastapi", "starlette", "pydantic"} <= loaded_by("import fastapi"), "would be seen"


def test_public_names_are_sorted() -> None:
    names = asgi_perfkit.__all__
    assert list(names) == sorted(set(names))


@pytest.mark.parametrize("name", asgi_perfkit.__all__)
def test_a_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(asgi_perfkit, name)
    if isinstance(value, type) or inspect.isroutine(value):
        assert value.__doc__, f"{name} has no docstring"
        assert value.__doc__.strip()
    else:
        assert type(value).__module__.startswith("asgi_perfkit"), f"{name} is no class or function"
        assert inspect.getdoc(value), f"the class of {name} has no docstring"


def test_public_names_are_what_star_import_gives() -> None:
    namespace: dict[str, object] = {}
    exec("from asgi_perfkit import *", namespace)
    del namespace["__builtins__"]
    assert set(namespace) == set(asgi_perfkit.__all__)
