"""How long `import asgi_perfkit` takes beyond the core dependencies that it needs.

Each sample is a fresh interpreter that imports the dependencies first and then times the package
alone. Only those dependencies are imported first that the package itself loads, so that one which
it does not need cannot pay, in passing, for standard modules that it does need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .harness import Row, Settings, Spread, Table, Target, interleave

ROOT = Path(__file__).resolve().parent.parent
CORE_DEPENDENCIES = ("asgiref", "orjson", "psutil", "hypercorn")

# The modules themselves, not their top package alone: asgiref's and hypercorn's import next to
# nothing.
LOADED = f"""
import json, sys
import asgi_perfkit
core = {CORE_DEPENDENCIES!r}
print(json.dumps([name for name in sys.modules if name.partition(".")[0] in core]))
"""

TIMED = """
import importlib, sys, time
for name in {before!r}:
    importlib.import_module(name)
began = time.perf_counter()
for name in {timed!r}:
    importlib.import_module(name)
print(time.perf_counter() - began)
"""


def run(settings: Settings) -> Iterator[Table]:
    needed: list[str] = json.loads(python(LOADED))
    samples = {
        "asgi_perfkit, beyond its core dependencies": ([*needed], ["asgi_perfkit"]),
        "asgi_perfkit with them, in a bare interpreter": ([], ["asgi_perfkit"]),
        "those core dependencies alone": ([], [*needed]),
        "asyncio alone": ([], ["asyncio"]),
    }

    def sample(before: list[str], timed: list[str]) -> Callable[[], float]:
        script = TIMED.format(before=before, timed=timed)
        return lambda: float(python(script)) * 1000

    rounds = settings.pick(25, 3)
    figures = interleave({name: sample(*what) for name, what in samples.items()}, rounds=rounds)
    rows = [Row(name, Spread.of(values)) for name, values in figures.items()]
    first = rows[0]
    rows[0] = Row(first.name, first.value, target=Target("<", 60.0))
    packages = sorted({name.partition(".")[0] for name in needed})
    yield Table(
        "Import time, in fresh interpreters with compiled bytecode",
        "ms",
        rows,
        notes=[
            f"Core dependencies that the import loads: {', '.join(packages) or 'none'}. {rounds} rounds."
        ],
    )


def python(script: str) -> str:
    """Run a script in a fresh interpreter and return what it printed."""
    # Without its bytecode cache the interpreter would compile the package each time, and that would
    # be what is timed.
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout
