"""Measures the implementations of every op that a case calls, and writes the table that impl="auto" follows on CUDA.

The case itself says which ops are called with which arguments: it is run once, its calls are recorded, and each is
timed with every implementation that computes the case right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plantops.bench.case import OURS, Case, verified
from plantops.bench.record import Row, environment
from plantops.bench.runner import Settings
from plantops.bench.timing import Call, Sampler, Timer, Timing, interleave, ready
from plantops.ops import _registry

TIE = 1.02
"""ATen must be this much faster than ours to be chosen: ours keeps less memory."""


@dataclass(frozen=True)
class OpCall:
    """One call of an op, without `impl`."""

    stem: str
    arguments: tuple[Any, ...]

    def bound(self, impl: str) -> Call:
        """The call with an implementation."""
        op = getattr(torch.ops.plantops, self.stem).default
        return lambda: op(*self.arguments, impl)


class _Recorder(TorchDispatchMode):
    """Keeps the calls of plantops' ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OpCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "plantops":
            self.calls.append(OpCall(func.overloadpacket.__name__, tuple(args[:-1])))
        return func(*args, **(kwargs or {}))


def recorded(call: Callable[[], Any]) -> list[OpCall]:
    """The ops that a call calls, one of each stem."""
    with _Recorder() as recorder:
        call()
    return list({found.stem: found for found in recorder.calls}.values())


def tune(
    cases: Iterable[Case], settings: Settings, timer: Timer, report: Callable[[str, Sequence[Row]], None]
) -> list[Row]:
    """The rows of a table: for each case and each op that it calls, which implementation is fastest."""
    rows: list[Row] = []
    for case in cases:
        good, _ = verified(case.prepare())
        ours = {variant.name: variant for variant in good if variant.role == OURS and variant.name != "auto"}
        if "aten" not in ours:
            continue
        block = [
            row
            for variant in ours.values()
            if variant.name.endswith("aten")
            for call in recorded(variant.call)
            if (row := tuned_row(call, _names(ours, variant.name), settings, timer)) is not None
        ]
        report(case.name, block)
        rows += block
    return rows


def _names(ours: Iterable[str], aten: str) -> list[str]:
    """The implementations of what the variant ``[value_and_grad ]aten`` computes."""
    prefix = aten.removesuffix("aten")
    found = [name.removeprefix(prefix) for name in ours if name.startswith(prefix)]
    return [name for name in found if name in ("native", "triton", "aten")]


def tuned_row(call: OpCall, impls: Sequence[str], settings: Settings, timer: Timer) -> Row | None:
    """The row of one call; None for an op that the tables do not know."""
    key = _registry.key(call.stem, call.arguments)
    if key is None:
        return None
    samplers: dict[str, Sampler] = {}
    with torch.no_grad():
        for impl in impls:
            try:
                samplers[impl] = timer.sampler(ready(call.bound(impl)))
            except (NotImplementedError, RuntimeError):
                continue
        timings = interleave(samplers, settings.rounds)
    traits, features = key
    return {
        "op": call.stem,
        "traits": list(traits),
        "features": list(features),
        "impl": fastest(timings),
        "ms": {impl: round(timing.p50 * 1e3, 5) for impl, timing in timings.items()},
    }


def fastest(timings: dict[str, Timing]) -> str:
    """The implementation with the smallest median; "aten" only where it is ahead by more than `TIE`."""
    ours = min((name for name in timings if name != "aten"), key=lambda name: timings[name].p50, default=None)
    if ours is None:
        return "aten"
    if "aten" in timings and timings["aten"].p50 * TIE < timings[ours].p50:
        return "aten"
    return ours


def write_table(path: Path, rows: Sequence[Row], device: torch.device) -> Path:
    """Adds the rows to a table, in the place of those with the same op, traits and features; returns the path."""
    before = json.loads(path.read_text())["rule"] if path.exists() else []
    merged = {(row["op"], *row["traits"], *row["features"]): row for row in (*before, *rows)}
    lines = ",\n  ".join(json.dumps(row) for row in merged.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'{{"machine": {json.dumps(environment(device))},\n "rule": [\n  {lines}\n ]}}\n'
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
    return path
