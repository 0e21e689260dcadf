"""What a search was worth, in one sentence: its network beside those that one would train instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

FOUND = ("retrained", "finetuned", "planted")
"""Roles of what a search hands out, the last training first."""
CLEARLY = 2.0
"""Standard errors that make a difference clear."""
NAMES = {"scratch": "the same widths from scratch", "pruned": "a wider network pruned to its size"}


def found(networks: Sequence[Record]) -> Record | None:
    """The network that the search hands out."""
    for role in FOUND:
        for record in networks:
            if record["role"] == role:
                return record
    return None


def rivals(networks: Sequence[Record]) -> list[Record]:
    """What the search has to beat: the smallest uniform network that is no smaller (the largest, where all are), and
    the controls."""
    planted = found(networks)
    if planted is None:
        return []
    uniform = sorted((r for r in networks if r["role"] == "uniform"), key=lambda record: record["parameters"])
    above = [record for record in uniform if record["parameters"] >= planted["parameters"]]
    return [*(above[:1] or uniform[-1:]), *(record for record in networks if record["role"] == "control")]


def verdict(networks: Sequence[Record], samples: int) -> str | None:
    """Whether the planted network beats its rivals on ``samples`` test images, and by how much; None without rivals.

    A difference of two accuracies ``p``, ``q`` is clear from two standard errors on, where one is
    ``sqrt((p (1 - p) + q (1 - q)) / samples)``: the spread over images. That over seeds comes on top.
    """
    networks = [record for record in networks if record.get("test_accuracy") is not None]
    planted, others = found(networks), rivals(networks)
    if planted is None or not others or samples < 1:
        return None
    groups: dict[str, list[str]] = {"beats": [], "is level with": [], "loses to": []}
    widest = 0.0
    for record in others:
        p, q = planted["test_accuracy"], record["test_accuracy"]
        clear = CLEARLY * math.sqrt((p * (1 - p) + q * (1 - q)) / samples)
        widest = max(widest, clear)
        verb = "is level with" if abs(p - q) <= clear else "beats" if p > q else "loses to"
        name = NAMES.get(record["name"], record["name"])
        groups[verb].append(f"{name} ({record['parameters']:,}, {100 * q:.2f} %, {100 * (p - q):+.2f} points)")
    told = "; it ".join(f"{verb} {' and '.join(names)}" for verb, names in groups.items() if names)
    accuracy = f"{100 * planted['test_accuracy']:.2f} %"
    return (
        f"The planted network ({planted['parameters']:,} parameters, {accuracy} on the test part) {told}. A difference "
        f"is clear from {100 * widest:.2f} points on: two standard errors over {samples:,} images, of one seed."
    )
