"""The group sparse regulariser and its gradient on ResNet-18's convolutions, beside the formulas in plain PyTorch.

    python benchmarks/bench_group_sparsity.py [--threads N] [--rounds N] [--only TEXT] [--compile TEXT] [--busy]

One step is strength (mix R + (1 - mix) l1) over the 17 convolutions (11.0 million weights, float32; shortcuts left out)
and its gradient to every weight. Variants, all timed in turn in one run:
    native, aten     plantops.nn.GroupSparsity with that `impl`, backward by autograd
    value_and_grad   plantops' value and gradient in one pass, without autograd
    eager            the plain formulas, operation by operation, backward by autograd
    compile          torch.compile of the plain formulas (for the penalties that --compile names; it takes a while)
Every variant's value and gradient are compared with float64 before anything is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, environment, measure, table, write_csv
from torch import Tensor, nn

from plantops.bench.group_sparsity import MIX, STRENGTH, plain, resnet18_convolutions
from plantops.functional import group_sparsity_value_and_grad
from plantops.nn import GroupSparsity
from plantops.ops.group_sparsity import GROUPS, PENALTIES

COLUMNS = ("penalty", "groups", "variant", "p20_ms", "p50_ms", "p80_ms", "over_eager", "over_compile")
TOLERANCE = 1e-5

Result = tuple[Tensor, tuple[Tensor, ...]]


def step(loss: Callable[[], Tensor], weights: list[Tensor]) -> Result:
    value = loss()
    return value, torch.autograd.grad(value, weights)


def one_pass(weights: list[Tensor], penalty: str, groups: str) -> Result:
    value, grads = group_sparsity_value_and_grad(
        weights, penalty, groups, strength=STRENGTH * MIX, l1=STRENGTH * (1 - MIX), impl="native"
    )
    return value, tuple(grads)


def variants(model: nn.Module, penalty: str, groups: str, compiled: bool) -> dict[str, Callable[[], Result]]:
    weights = list(model.parameters())
    calls: dict[str, Callable[[], Result]] = {}
    for impl in ("native", "aten"):
        calls[impl] = partial(step, GroupSparsity(model, penalty, groups, STRENGTH, MIX, impl=impl), weights)
    calls["value_and_grad"] = partial(one_pass, weights, penalty, groups)
    calls["eager"] = partial(step, partial(plain, weights, penalty, groups), weights)
    if compiled:
        torch.compiler.reset()
        calls["compile"] = partial(step, partial(torch.compile(plain), weights, penalty, groups), weights)
    return calls


def check(model: nn.Module, penalty: str, groups: str, calls: dict[str, Callable[[], Result]]) -> None:
    """AssertionError when a variant does not compute the same thing."""
    exact_weights = [p.detach().double().requires_grad_() for p in model.parameters()]
    value, grads = step(partial(plain, exact_weights, penalty, groups), exact_weights)
    for name, call in calls.items():
        ours, our_grads = call()
        for what, mine, exact in zip(range(-1, len(grads)), (ours, *our_grads), (value, *grads), strict=True):
            error = float((mine.detach().double() - exact.detach()).norm() / exact.detach().norm())
            assert error <= TOLERANCE, (
                f"{penalty}, {groups}, {name}: relative error {error:.2e} (gradient {what}, -1: value)"
            )


def run(
    model: nn.Module, penalty: str, groups: str, compiled: bool, rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    calls = variants(model, penalty, groups, compiled)
    check(model, penalty, groups, calls)
    timings = measure(calls, rounds=rounds, clock=clock)
    rows = []
    for name, timing in timings.items():
        row = {"penalty": penalty, "groups": groups, "variant": name, **timing.milliseconds()}
        row["over_eager"] = round(timings["eager"].p50 / timing.p50, 3)
        row["over_compile"] = round(timings["compile"].p50 / timing.p50, 3) if compiled else ""
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="run the penalties whose name contains this text")
    parser.add_argument("--compile", default="hierarchical_squared_group_l", help="torch.compile for these penalties")
    parser.add_argument("--busy", action="store_true", help="for a machine in use: one thread, processor time")
    parser.add_argument("--out", type=Path, default=RESULTS / "regulariser_cpu.csv")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.busy else options.threads)
    clock = time.process_time if options.busy else time.perf_counter
    about = {"clock": "processor" if options.busy else "wall", **environment()}
    model, rows = resnet18_convolutions(), []
    for penalty in PENALTIES:
        for groups in GROUPS:
            if options.only not in penalty:
                continue
            compiled = bool(options.compile) and options.compile in penalty
            block = run(model, penalty, groups, compiled, options.rounds, clock)
            print(table(block, COLUMNS), flush=True)
            rows += [{**row, **about} for row in block]
    print(write_csv(options.out, rows))


if __name__ == "__main__":
    main()
