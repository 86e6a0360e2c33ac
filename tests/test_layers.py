"""The house of asgi_perfkit: who may import whom, and who may know of ASGI."""

from __future__ import annotations

import ast
import importlib.util
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "asgi_perfkit"

# From the ground up. A room may use those below it and its neighbours on the same floor.
FLOORS = (
    {"types", "exceptions"},
    {"steps"},
    {"threads"},
    {"tasks"},
    {"encoding"},
    {"caching"},
    {"resources"},
    {"metrics"},
    {"profiling"},
    {"middleware"},
    {"endpoint", "responses", "stack"},
    {"web", "cli"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FIRST_ASGI_FLOOR = FLOOR_OF["middleware"]
EXCHANGE = f"{PACKAGE}.middleware.exchange"

AT_IMPORT_TIME = {*sys.stdlib_module_names, "asgiref", "hypercorn", "orjson", "psutil", PACKAGE}
FRAMEWORKS = {
    "aiohttp", "blacksheep", "bottle", "channels", "connexion", "django", "emmett", "falcon",
    "fastapi", "flask", "litestar", "quart", "rest_framework", "robyn", "sanic", "starlette",
    "strawberry", "tornado",
}  # fmt: skip


class Module:
    """One module of the package, parsed."""

    def __init__(self, root: Path, path: Path) -> None:
        parts = path.relative_to(root).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.path = parts[:-1] if self.is_package else parts
        self.name = ".".join((PACKAGE, *self.path))
        self.room = self.path[0] if self.path else ""
        self.tree = ast.parse(path.read_bytes(), path)

    def imports(self) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
        """Yield every import, however deep: its node, the module, and the name taken from that."""
        for node in ast.walk(self.tree):
            match node:
                case ast.Import():
                    for alias in node.names:
                        yield node, alias.name, ""
                        if alias.name.startswith(f"{PACKAGE}.") and not alias.asname:
                            yield node, PACKAGE, ""  # the name that this binds
                case ast.ImportFrom():
                    for alias in node.names:
                        yield node, self.absolute(node), alias.name
                case ast.Call(
                    ast.Name("import_module" | "__import__") | ast.Attribute(_, "import_module"),
                    [ast.Constant(str(name)), *_],
                ):
                    yield node, name, ""

    def absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        here = self.name.split(".")
        package = here[: len(here) - node.level + self.is_package]
        return ".".join((*package, node.module) if node.module else package)

    def run_at_import(self) -> Iterator[ast.AST]:
        """Yield the nodes that importing the module runs."""
        pending: list[ast.AST] = [self.tree]
        while pending:
            match node := pending.pop():
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    pass
                case ast.If(ast.Name("TYPE_CHECKING") | ast.Attribute(_, "TYPE_CHECKING")):
                    pending += node.orelse
                case _:
                    yield node
                    pending += ast.iter_child_nodes(node)

    def identifiers(self) -> Iterator[tuple[int, str]]:
        """Yield every identifier in the module's code with its line."""
        for node in ast.walk(self.tree):
            for field, value in ast.iter_fields(node):
                values = value if isinstance(value, list) else [value]
                if not isinstance(node, ast.Constant) and field not in {"module", "type_comment"}:
                    names = (each for each in values if isinstance(each, str))
                    yield from ((getattr(node, "lineno", 0), name) for name in names)


def violations(root: Path) -> list[str]:
    """Say what breaks the rules in the package whose directory is `root`."""
    parsed = [Module(root, path) for path in sorted(root.rglob("*.py"))]
    modules = {module.name: module for module in parsed}
    graph: dict[str, set[str]] = {}
    found: list[str] = []
    for module in parsed:
        if not module.path:
            found += beside_the_public_names(module)
            continue
        if module.room not in FLOOR_OF:
            found.append(f"{module.name}: has no floor in the house")
            continue
        targets = graph[module.name] = set()
        for node, base, name in module.imports():
            where = f"{module.name}:{node.lineno}"
            target = f"{base}.{name}" if f"{base}.{name}" in modules else base
            top = target.partition(".")[0]
            if top in FRAMEWORKS:
                found.append(f"{where}: imports the web framework {top}")
            elif target == PACKAGE:
                found.append(f"{where}: imports the package itself")
            elif top == PACKAGE:
                targets.add(target)
                found += out_of_order(module, where, target)
        if FLOOR_OF[module.room] < FIRST_ASGI_FLOOR:
            lines = [line for line, name in module.identifiers() if name == "scope"]
            found += [f"{module.name}:{line}: names scope below the ASGI layer" for line in lines]
    found += loaded_with_the_package(modules)
    return found + [f"imports in a circle: {' -> '.join(each)}" for each in circles(graph)]


def loaded_with_the_package(modules: Mapping[str, Module]) -> Iterator[str]:
    """Follow what `import asgi_perfkit` runs; yield the imports of what is no core dependency."""
    pending, seen = [PACKAGE], set()
    while pending:
        name = pending.pop()
        if name in seen or name not in modules:
            continue
        seen.add(name)
        pending.append(name.rpartition(".")[0])
        at_import = set(modules[name].run_at_import())
        for node, base, taken in modules[name].imports():
            if node in at_import:
                pending += [base, f"{base}.{taken}"]
                top = base.partition(".")[0]
                if top not in AT_IMPORT_TIME:
                    yield f"{name}:{node.lineno}: loads {top}, which is no core dependency"


def beside_the_public_names(module: Module) -> Iterator[str]:
    for node in module.tree.body:
        match node:
            case ast.Expr(ast.Constant(str())) | ast.ImportFrom(module="__future__"):
                pass
            case ast.ImportFrom() if module.absolute(node).startswith(f"{PACKAGE}."):
                pass
            case ast.Assign(targets=[ast.Name("__all__" | "__version__")]):
                pass
            case ast.FunctionDef("__getattr__" | "__dir__"):
                pass
            case _:
                yield f"{module.name}:{node.lineno}: holds more than the public names"


def out_of_order(module: Module, where: str, target: str) -> Iterator[str]:
    room = target.split(".")[1]
    if room not in FLOOR_OF:
        yield f"{where}: imports {target}, which has no floor in the house"
    elif FLOOR_OF[room] > FLOOR_OF[module.room]:
        yield f"{where}: imports {target}, which stands above it"
    elif room == "middleware" and within(EXCHANGE, module.name) and not within(EXCHANGE, target):
        yield f"{where}: imports {target}, but no middleware comes before the exchange"


def within(package: str, name: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def circles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield the ways through the imports that end where they began."""
    seen: set[str] = set()

    def walk(name: str, way: list[str]) -> Iterator[list[str]]:
        if name in way:
            yield [*way[way.index(name) :], name]
        elif name not in seen:
            for target in sorted(graph.get(name, ())):
                yield from walk(target, [*way, name])
            seen.add(name)

    for name in sorted(graph):
        yield from walk(name, [])


def test_the_package_keeps_the_rules() -> None:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    assert violations(Path(spec.origin).parent) == []


# ---- the rules themselves, on small packages that keep or break them

HOUSE = {
    "__init__.py": '''
        """The public names."""

        from __future__ import annotations

        from .metrics import observe
        from asgi_perfkit.stack import PerfKit

        __all__ = ["PerfKit", "observe"]

        def __getattr__(name): ...
    ''',
    "types.py": "Scope = dict",
    "exceptions.py": "from . import types",
    "steps.py": "import asyncio, typing",
    "metrics/__init__.py": "from .registry import observe",
    "metrics/on_trio.py": "import trio",
    "metrics/histogram.py": "import orjson\nfrom ..types import Scope\nfrom .. import steps",
    "metrics/registry.py": """
        from .histogram import Scope
        from . import histogram

        def on_trio():
            from . import on_trio
    """,
    "middleware/__init__.py": "",
    "middleware/exchange.py": "from asgi_perfkit.types import Scope\nscope = None",
    "middleware/performance.py": "from .exchange import scope\nfrom ..metrics import observe",
    "endpoint.py": "from .middleware.exchange import scope",
    "stack.py": "from .middleware import performance\nfrom .endpoint import endpoint",
    "web/__init__.py": "from .page import page",
    "web/page.py": "from ..stack import scope",
    "cli.py": "from .stack import scope\nfrom .web import page",
}

ALLOWED = [
    "def drive():\n    import trio",
    "if TYPE_CHECKING:\n    import trio",
    "if typing.TYPE_CHECKING:\n    import trio",
    "from asgi_perfkit import types",
    "import asgi_perfkit.types as t",
    "importlib.import_module(name)",
    "scope_type = 'scope'  # scope",
]

BROKEN = {
    "stands above it": [
        ("types.py", "from .steps import drive"),
        ("steps.py", "from . import metrics"),
        ("steps.py", "import_module('asgi_perfkit.cli')"),
        ("threads/pool.py", "from ..tasks import x"),
        ("metrics/__init__.py", "from ..profiling.cpu import x"),
        ("metrics/a.py", "def f():\n    from ..middleware import x"),
        ("metrics/a.py", "import asgi_perfkit.stack as s"),
        ("metrics/a/b.py", "from ...cli import main"),
        ("middleware/a.py", "if TYPE_CHECKING:\n    from ..stack import x"),
        ("stack.py", "from .web import page"),
    ],
    "imports the package itself": [
        ("metrics/a.py", "from asgi_perfkit import PerfKit"),
        ("metrics/a.py", "import asgi_perfkit"),
        ("metrics/a.py", "import asgi_perfkit.types"),
        ("cli.py", "from . import PerfKit"),
        ("web/page.py", "from .. import *"),
    ],
    "more than the public names": [
        ("__init__.py", "import sys"),
        ("__init__.py", "class PerfKit: ..."),
        ("__init__.py", "from . import stack"),
        ("__init__.py", "from starlette.applications import Starlette"),
        ("__init__.py", "default = make()"),
    ],
    "in a circle": [
        ("types.py", "from .exceptions import E"),
        ("metrics/histogram.py", "from .registry import x"),
        ("metrics/histogram.py", "def f():\n    from . import registry"),
        ("metrics/registry.py", "from . import observe"),
        ("endpoint.py", "from .stack import PerfKit"),
        ("web/page.py", "from ..cli import main"),
    ],
    "no middleware comes before the exchange": [
        ("middleware/exchange.py", "from .performance import x"),
        ("middleware/exchange.py", "from . import x"),
        ("middleware/exchange/wrap.py", "from ..performance import x"),
    ],
    "has no floor": [
        ("utils.py", ""),
        ("utils/__init__.py", ""),
        ("steps.py", "from .utils import x"),
    ],
    "imports the web framework": [
        ("cli.py", "def f():\n    import starlette.routing"),
        ("cli.py", "if TYPE_CHECKING:\n    from django import conf"),
        ("cli.py", "importlib.import_module('quart')"),
        ("cli.py", "__import__('fastapi.routing')"),
    ],
    "no core dependency": [
        ("steps.py", "import trio"),
        ("metrics/histogram.py", "try:\n    import zstandard\nexcept ImportError: ..."),
        ("stack.py", "class C:\n    from anyio import x"),
        ("metrics/registry.py", "from . import on_trio"),
        ("middleware/__init__.py", "if TYPE_CHECKING: ...\nelse:\n    import trio"),
    ],
    "names scope": [
        ("steps.py", "def f(scope): ..."),
        ("steps.py", "def f(*, scope): ..."),
        ("steps.py", "def f(**scope): ..."),
        ("steps.py", "f(scope=1)"),
        ("steps.py", "scope = 1"),
        ("steps.py", "x = request.scope"),
        ("steps.py", "def scope(): ..."),
        ("steps.py", "class scope: ..."),
        ("steps.py", "from typing import Any as scope"),
        ("steps.py", "from typing import scope"),
        ("steps.py", "def f():\n    global scope"),
        ("steps.py", "try: ...\nexcept E as scope: ..."),
        ("steps.py", "match x:\n    case {**scope}: ..."),
        ("steps.py", "match x:\n    case [*scope]: ..."),
        ("steps.py", "match x:\n    case Request(scope=1): ..."),
        ("profiling/a.py", "x = lambda scope: 1"),
    ],
}


def build(root: Path, changes: Mapping[str, str]) -> Path:
    for name, source in {**HOUSE, **changes}.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return root / PACKAGE


def test_a_house_in_order_passes(tmp_path: Path) -> None:
    assert violations(build(tmp_path, {})) == []


@pytest.mark.parametrize("source", ALLOWED)
def test_what_is_allowed_passes(tmp_path: Path, source: str) -> None:
    assert violations(build(tmp_path, {"steps.py": source})) == []


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [(rule, name, source) for rule, cases in BROKEN.items() for name, source in cases],
)
def test_a_broken_rule_is_found(tmp_path: Path, rule: str, name: str, source: str) -> None:
    found = violations(build(tmp_path, {name: source}))
    assert any(rule in violation for violation in found), found


def test_a_violation_says_where_and_what(tmp_path: Path) -> None:
    changes = {
        "metrics/registry.py": "import math\nfrom ..stack import PerfKit",
        "middleware/performance.py": "from . import exchange",
        "stack.py": "",
        "types.py": "from .exceptions import E",
    }
    assert violations(build(tmp_path, changes)) == [
        "asgi_perfkit.metrics.registry:2: imports asgi_perfkit.stack, which stands above it",
        "imports in a circle: asgi_perfkit.types -> asgi_perfkit.exceptions -> asgi_perfkit.types",
    ]
