"""Speedscope's own file format: https://www.speedscope.app/file-format-schema.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from asgi_perfkit.profiling.calls import CallTree, Place

__all__ = ["speedscope"]


def speedscope(trees: Iterable[tuple[str, CallTree]]) -> bytes:
    """Each tree as a profile of its own, with the frames in common.

    The stacks of a profile are in the order of the tree, and not in that of the time: it is known how long was spent
    where, and not when.
    """
    frames: dict[Place, int] = {}
    profiles = []
    for name, tree in trees:
        samples: list[list[int]] = []
        weights: list[float] = []
        for stack, node in tree.stacks():
            if stack and node.seconds > 0:
                samples.append([frames.setdefault(place, len(frames)) for place in stack])
                weights.append(node.seconds)
        if samples:
            profiles.append(_sampled(name, samples, weights))
    if not profiles:  # speedscope refuses a file without any
        profiles.append(_sampled("<nothing>", [], []))
    return json.dumps(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "exporter": "asgi_perfkit",
            "name": "asgi_perfkit",
            "activeProfileIndex": 0,
            "shared": {"frames": [_frame(place) for place in frames]},
            "profiles": profiles,
        },
        separators=(",", ":"),
    ).encode()


def _sampled(name: str, samples: list[list[int]], weights: list[float]) -> dict[str, Any]:
    return {
        "type": "sampled",
        "name": name,
        "unit": "seconds",
        "startValue": 0,
        "endValue": sum(weights),
        "samples": samples,
        "weights": weights,
    }


def _frame(place: Place) -> dict[str, Any]:
    frame: dict[str, Any] = {"name": place.function}
    if place.file:
        frame["file"] = place.file
        frame["line"] = place.line
    return frame
