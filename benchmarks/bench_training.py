"""One training step of the paper's networks on a CPU: the fused forward of ``plantops.train``, beside the modules.

    python benchmarks/bench_training.py [--width 8,16,32,64,128] [--batch 128] [--threads 1] [--rounds 9] [--busy]
    python benchmarks/bench_training.py --against DIR      # the build in that checkout, interleaved; prints the ratios

A step is forward, cross entropy, backward and SGD with momentum, on random images. Variants, timed in turn in one run:
    fused            what ``plantops train``, ``teacher`` and the joint trainings of ``plant`` run on a CPU
    modules          the network's own layers one by one
    channels_last    the same in channels_last memory format
    compiled         torch.compile of the modules, contiguous; not with --no-compile
Every variant's gradients are compared with float64 before anything is timed. ``--busy`` counts processor seconds, for a
machine that does other work (with one thread).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from against import CLOCKS, both_builds, ratio_rows, samplers_of
from harness import RESULTS, environment, table, write_csv
from torch import Tensor, nn

from plantops.bench.timing import HostTimer, interleave, ready
from plantops.models import PlantingNet, planting_net
from plantops.train.fused import fused, is_fused

COLUMNS = ("width", "batch", "variant", "p20_ms", "p50_ms", "p80_ms", "over_fused")
TOLERANCE = 5e-3
"""Relative L2 error of all gradients together. One ReLU or pool whose values are near flips between float32 and float64
and moves them by 1e-3; in float64 the fused ones are tested to 1e-11 (python_tests/train/test_fused.py)."""


def variants(model: PlantingNet, compiled: bool) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """The network whose parameters train, and its forward."""
    found: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {}
    for name in ("fused", "modules", "channels_last", *(["compiled"] if compiled else [])):
        own = copy.deepcopy(model)
        forward: Callable[[Tensor], Tensor] = own
        if name == "fused":
            forward = fused(own)
            if not is_fused(forward):
                raise SystemExit("bench_training.py: the compiled module is needed; plantops info says how to get it.")
        elif name == "channels_last":
            own.to(memory_format=torch.channels_last)
        elif name == "compiled":
            forward = torch.compile(own)
        found[name] = (own, forward)
    return found


def check(
    model: PlantingNet, own: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> None:
    """Gradients against float64.

    Raises:
        SystemExit: they differ by more than the tolerance.
    """
    exact = copy.deepcopy(model).double()
    nn.functional.cross_entropy(exact(images.double()), labels).backward()
    nn.functional.cross_entropy(forward(images), labels).backward()
    pairs = list(zip(own.parameters(), exact.parameters(), strict=True))
    error, size = (
        sum(float(part(p.grad.double(), e.grad).square().sum()) for p, e in pairs) ** 0.5
        for part in (lambda a, b: a - b, lambda _, b: b)
    )
    if not error <= TOLERANCE * size:
        raise SystemExit(f"bench_training.py: gradients are wrong, relative error {error / size:.2g}")


def step(own: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return run


def case(width: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one width."""
    own = torch.Generator().manual_seed(0)
    model = planting_net("cifar10", width, generator=own)
    images = torch.randn(args.batch, 3, 32, 32, generator=own)
    labels = torch.randint(10, (args.batch,), generator=own)
    steps = {}
    for name, (network, forward) in variants(model, args.compile).items():
        laid = images.contiguous(memory_format=torch.channels_last) if name == "channels_last" else images
        check(model, network, forward, laid, labels)
        steps[name] = step(network, forward, laid, labels)
    clock = "processor" if args.busy else "wall"
    if args.against is None:
        timer = HostTimer(CLOCKS[clock])
        timings = interleave({name: timer.sampler(ready(step)) for name, step in steps.items()}, args.rounds)
    else:
        options = {"width": width, "batch": args.batch}
        with both_builds(args.against, "training", options, clock, args.threads) as builds:
            timings = interleave(samplers_of(builds), args.rounds)
    rows = []
    for name, timing in timings.items():
        over = f"{timing.p50 / timings['fused'].p50:.2f}"
        rows.append({
            "width": width, "batch": args.batch, "variant": name, **timing.milliseconds(), "over_fused": over,
            "clock": clock, **environment(),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", default="8,16,32,64,128")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--against", type=Path, help="a checkout of an older commit with its build")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for width in args.width.split(","):
        rows += case(int(width), args)
        own = [row for row in rows if row["width"] == int(width)]
        for line in ratio_rows(own):
            print(f"w = {width}, {line}", flush=True)
    print(table(rows, COLUMNS))
    print(write_csv(RESULTS / ("training_cpu.csv" if args.against is None else "training_cpu_against.csv"), rows))


if __name__ == "__main__":
    main()
