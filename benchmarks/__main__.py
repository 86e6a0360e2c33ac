"""Run the benchmarks and show the results: ``python -m benchmarks [topic ...]``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from .harness import Settings, render

ROOT = Path(__file__).resolve().parent.parent

# A topic is a module of this package with `run(settings) -> Iterator[Table]`; the first line of its
# docstring says what it measures. To add one, write the module and name it here.
TOPICS = (
    "caches",
    "cost",
    "dependencies",
    "memory",
    "profiling",
    "stats",
    "streams",
    "threads",
    "background",
    "encoder",
    "endpoint",
    "compression",
    "throughput",
    "import_time",
)

# What the results depend on and what they are compared with. Absent ones are left out.
DISTRIBUTIONS = (
    "aiocache",
    "anyio",
    "asgi-prometheus",
    "asgiref",
    "async-lru",
    "asyncache",
    "cachetools",
    "backports.zstd",
    "brotli",
    "brotli-asgi",
    "cashews",
    "attrs",
    "dishka",
    "Django",
    "fast-depends",
    "fastapi",
    "Hypercorn",
    "litestar",
    "msgspec",
    "opentelemetry-instrumentation-asgi",
    "opentelemetry-sdk",
    "orjson",
    "prometheus-client",
    "prometheus-fastapi-instrumentator",
    "psutil",
    "quart",
    "pydantic",
    "SQLAlchemy",
    "starlette",
    "starlette-compress",
    "starlette-exporter",
    "svcs",
    "timing-asgi",
    "trio",
    "uvicorn",
    "uvloop",
    "zstd-asgi",
    "wireup",
)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if len(options.topics) > 1:
        results = in_own_interpreters(options)
    else:
        results = in_this_interpreter(options)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    missed = [
        f"{table['title']}: {row['name']}"
        for tables in results["topics"].values()
        for table in tables
        for row in table["rows"]
        if row.get("met") is False and not row["aim"]
    ]
    if missed:
        say("", "Missed targets:", *(f"  {name}" for name in missed))
    return 1 if missed and options.check else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure asgi_perfkit and its peers, side by side in one run.",
        epilog="\n".join(["topics:", *(f"  {name:12} {summary(name)}" for name in TOPICS)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "topics", nargs="*", metavar="topic", help="what to measure (default: everything)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
    parser.add_argument(
        "--quick", action="store_true", help="a short run, whose figures are not for quoting"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target was missed")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.topics if name not in TOPICS]
    if unknown:
        parser.error(f"there is no topic {unknown[0]!r}; choose from {', '.join(TOPICS)}")
    options.topics = list(dict.fromkeys(options.topics)) or list(TOPICS)
    return options


def summary(topic: str) -> str:
    """Return the first line of a topic's docstring, without importing what the topic needs."""
    source = Path(__file__).with_name(f"{topic}.py").read_text(encoding="utf-8")
    return source.splitlines()[0].strip('"')


def in_this_interpreter(options: argparse.Namespace) -> dict[str, Any]:
    facts = machine()
    kit = facts["asgi_perfkit"]
    say(
        f"asgi_perfkit {kit['version']} ({kit['origin']}), {facts['python']}, {facts['platform']}, {facts['cpus']} CPUs"
        + (", quick run: not for quoting" if options.quick else "")
    )
    topics: dict[str, list[dict[str, Any]]] = {}
    for name in options.topics:
        topic = importlib.import_module(f"{__package__}.{name}")
        tables = topics[name] = []
        for table in topic.run(Settings(quick=options.quick)):
            say("", render(table))
            tables.append(table.as_json())
    return {"machine": facts, "quick": options.quick, "topics": topics}


def in_own_interpreters(options: argparse.Namespace) -> dict[str, Any]:
    """Run each topic in a fresh interpreter, so that none inherits another's heap, imports or
    hooks.
    """
    merged: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.topics:
            say("", f"== {name}: {summary(name)}", "")
            path = Path(folder, f"{name}.json")
            command = [sys.executable, "-m", __package__ or "benchmarks", name, "--json", str(path)]
            if options.quick:
                command.append("--quick")
            subprocess.run(command, cwd=ROOT, check=True)
            result = json.loads(path.read_text(encoding="utf-8"))
            if merged:
                merged["topics"].update(result["topics"])
            else:
                merged = result
    return merged


def machine() -> dict[str, Any]:
    """Return what a reader needs to place the figures; nothing that names the machine or a folder
    on it.
    """
    import asgi_perfkit

    origin = (
        "the source tree" if Path(asgi_perfkit.__file__ or "").is_relative_to(ROOT) else "installed"
    )
    packages = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "asgi_perfkit": {"version": kit_version(), "origin": origin},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": packages,
    }


def kit_version() -> str:
    import asgi_perfkit

    declared = getattr(asgi_perfkit, "__version__", None)
    if declared is not None:
        return str(declared)
    try:
        return metadata.version("asgi_perfkit")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def say(*lines: str) -> None:
    # Flushed at once: a topic in its own interpreter writes to the same place.
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
