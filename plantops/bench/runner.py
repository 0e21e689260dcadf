"""Runs the cases of a benchmark: check, time, count, and one row for every variant."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from plantops.bench.case import BACKWARD, BASELINE, BOTH, OURS, Case, Variant, verified
from plantops.bench.ceilings import measure_ceilings
from plantops.bench.gpu import GpuTimer, launches
from plantops.bench.memory import kept_bytes
from plantops.bench.record import Row, environment
from plantops.bench.timing import HostTimer, Make, Sampler, Timer, Timing, interleave, ready
from plantops.bench.work import Ceilings, floor_seconds, total

GREEN = "ok"


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run.

    Attributes:
        device: where.
        dtype: None for the benchmark's own choice on this device.
        rounds: samples of every variant.
        compiled: peers under torch.compile, too.
        impls: our implementations to run.
        processor_time: one thread and its own processor time, for a machine that is shared with others.
        size: "quick" cases, the "full" published tables, or "small" cases for checkers that slow everything down.
        only: cases whose name contains this text.
        shapes: cases of the user's own instead.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    rounds: int = 15
    compiled: bool = True
    impls: tuple[str, ...] = ("auto", "native", "triton", "aten")
    processor_time: bool = False
    size: str = "quick"
    only: str = ""
    shapes: tuple[str, ...] = ()

    def timers(self) -> list[Timer]:
        """A clock on a CPU; on CUDA a captured graph and the eager call."""
        if self.device.type == "cuda":
            return [GpuTimer(self.device, graph=True), GpuTimer(self.device, graph=False)]
        return [HostTimer(self.clock())]

    def clock(self) -> Callable[[], float]:
        """Seconds of the wall, or of this process."""
        return time.process_time if self.processor_time else time.perf_counter


def run(cases: Iterable[Case], settings: Settings, report: Callable[[Case, list[Row]], None]) -> list[Row]:
    """All rows of the cases; `report` gets each case's rows when they are there."""
    cases = [case for case in cases if settings.only in case.name]
    about = {**environment(settings.device), "clock": "processor" if settings.processor_time else "wall"}
    ceilings = measure_ceilings(settings.device, [case.arithmetic for case in cases], clock=settings.clock())
    timers, rows = settings.timers(), []
    for case in cases:
        with _repeatable_backward():
            block = [{**row, **about} for row in run_case(case, settings, timers, ceilings)]
        report(case, block)
        rows += block
        torch.compiler.reset()
        gc.collect()
    return rows


def _repeatable_backward() -> AbstractContextManager[None]:
    """Compiled functions whose backward can be called again: the backward alone is timed over one forward."""
    from torch._functorch import config

    return config.patch(donated_buffer=False)


def run_case(case: Case, settings: Settings, timers: Sequence[Timer], ceilings: Ceilings) -> list[Row]:
    """The rows of one case: every right variant timed in each direction and way of calling; the others say why not."""
    problem = case.prepare()
    variants, reasons = verified(problem)
    roles = {variant.name: variant.role for variant in problem.variants}
    facts = {variant.name: _facts(variant, settings.device) for variant in variants}
    rows: list[Row] = []
    for direction in (BOTH, BACKWARD):
        makes: dict[str, Make] = {}
        for variant in variants:
            make = ready(variant.call) if direction == BOTH else variant.backward
            if make is not None and direction in variant.passes:
                makes[variant.name] = make
        for timer in timers:
            samplers, failures = _samplers(makes, timer)
            timings = interleave(samplers, settings.rounds) if samplers else {}
            about = {"direction": direction, "call": timer.call, "cache": timer.cache}
            rows += [
                {**case.columns, **about, **row, **facts[row["variant"]]}
                for row in measured(variants, timings, direction, ceilings, case.arithmetic)
            ]
            rows += [{**case.columns, **about, **_dropped(name, roles, why)} for name, why in failures.items()]
    about = {"direction": BOTH, "call": "", "cache": ""}
    return rows + [{**case.columns, **about, **_dropped(name, roles, why)} for name, why in reasons.items()]


def _samplers(makes: Mapping[str, Make], timer: Timer) -> tuple[dict[str, Sampler], dict[str, str]]:
    """What times each call; a call that cannot be captured (it waits for the device) is named with the reason."""
    samplers, failures = {}, {}
    for name, make in makes.items():
        try:
            samplers[name] = timer.sampler(make)
        except (RuntimeError, NotImplementedError) as error:
            failures[name] = f"failed: {' '.join(str(error).split())[:200]}"
    return samplers, failures


def _dropped(name: str, roles: Mapping[str, str], why: str) -> Row:
    return {"variant": name, "role": roles.get(name, OURS), "status": why}


def _facts(variant: Variant, device: torch.device) -> Row:
    """What is counted, not timed."""
    facts: Row = {}
    if variant.forward is not None and variant.source is not None:
        facts["kept_bytes"] = kept_bytes(variant.forward, variant.source, variant.parameters)
    if device.type == "cuda":
        facts["launches"] = launches(variant.call) or ""  # none were seen: the profiler does not see this device
    return facts


def measured(
    variants: Sequence[Variant], timings: Mapping[str, Timing], direction: str, ceilings: Ceilings, arithmetic: str
) -> list[Row]:
    """Rates, shares of the ceilings and ratios of every timed variant.

    ``floor_ms`` is the least time for the work that the variant's result needs, at the ceilings; GB/s and TFLOP/s
    count that work alone. A ratio to the baseline stands beside the one that counting the work allows, the ratio to
    the best peer beside the one that the floor allows.
    """
    roles = {variant.name: variant.role for variant in variants}
    floors = {v.name: floor_seconds(v.passes[direction], ceilings, arithmetic) for v in variants if v.name in timings}
    baseline = next((name for name in timings if roles[name] == BASELINE), None)
    peers = {name: timing.p50 for name, timing in timings.items() if roles[name] != OURS}
    best = min(peers, key=peers.__getitem__, default=None)
    rows = []
    for variant in variants:
        if variant.name not in timings:
            continue
        timing, floor = timings[variant.name], floors[variant.name]
        work = total(variant.passes[direction])
        row: Row = {"variant": variant.name, "role": variant.role, "status": GREEN, **timing.milliseconds()}
        row |= {"rounds": timing.rounds, "calls": timing.calls, "floor_ms": round(floor * 1e3, 5)}
        row |= {"floor_over_this": round(floor / timing.p50, 4)}
        row |= {"gb_per_s": round(work.bytes / timing.p50 / 1e9, 3)}
        row |= {"of_copy": round(work.bytes / timing.p50 / ceilings.copy, 4)}
        if work.flops:
            rate = work.flops / timing.p50
            row |= {"tflop_per_s": round(rate / 1e12, 4), "of_matmul": round(rate / ceilings.matmul[arithmetic], 4)}
        if baseline is not None:
            row |= {"baseline": baseline, "baseline_over_this": round(timings[baseline].p50 / timing.p50, 3)}
            row |= {"baseline_over_this_by_count": round(floors[baseline] / floor, 3)}
        if best is not None:
            row |= {"best_peer": best, "best_peer_over_this": round(peers[best] / timing.p50, 3)}
            row |= {"best_peer_over_floor": round(peers[best] / floor, 3)}
        rows.append({**row, **ceilings.columns(arithmetic)})
    return rows
