"""One step of a round: all candidates in one pass, against loops over candidates.

    python benchmarks/bench_sweep.py                      # w=16, 4 channels, batch 128, five sites
    python benchmarks/bench_sweep.py --width 8,16,32 --channels 1,4,8 --batch 128,1024 --compile --csv FILE --plot FILE

The paper's network for CIFAR-10 under a teacher of w = 128, on random images (the time does not depend on what they
show). Every variant does all that a step needs: the batch is put together, the loss, the backward, the optimizer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import environment, measure, table, write_csv
from sweep_peers import endless, loop_step, planted, split_cat
from torch import Tensor

from plantops.bench.ceilings import measure_ceilings
from plantops.graph.forward import Forward
from plantops.models import planting_net
from plantops.planting import Planter, PlanterConfig
from plantops.planting.candidate import Growth, Student, Surroundings, sweep_loop
from plantops.planting.search import wanted_growths
from plantops.planting.sweep.features import FeatureStore
from plantops.planting.sweep.program import make_program
from plantops.planting.sweep.round import sweep_shared
from plantops.planting.sweep.train import Member, SweepTrainer
from plantops.planting.sweep.trunk import Trunk
from plantops.train.data import ImageData
from plantops.train.loop import Feed, Tally

POOLED = (1, 2, 5)
EPOCHS = 1000


@dataclass(frozen=True)
class Case:
    """One shape: ``sites`` are the first so many of conv1 to conv5."""

    width: int
    channels: int
    batch: int
    sites: int


def images(count: int, device: str) -> ImageData:
    own = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=own)
    labels = torch.randint(0, 10, (count,), generator=own)
    return ImageData(pixels, labels, torch.full((3,), 120.0), torch.full((3,), 60.0), 10, "random").to(device)


def surroundings(case: Case, args: argparse.Namespace, **changes: Any) -> tuple[Planter, list[Growth], torch.nn.Module]:
    own = torch.Generator().manual_seed(1)
    student = planting_net("cifar10", case.width, generator=own).to(args.device)
    teacher = planting_net("cifar10", args.teacher_width, generator=own).to(args.device).eval()
    fields = {
        "channels": case.channels,
        "epochs": EPOCHS,
        "batch_size": case.batch,
        "channels_last": args.channels_last,
    }
    data = images(max(2 * case.batch, args.images), args.device)
    planter = Planter(student, teacher, data, data.subset(range(256)), PlanterConfig(**{**fields, **changes}))
    return planter, wanted_growths(case.channels, planter.initial.plan)[: case.sites], teacher


def shared_step(around: Surroundings, student: Student, growths: list[Growth]) -> Callable[[], None]:
    """One step of the sweep, as ``SweepTrainer`` does it."""
    recipe = around.config.recipe()
    model = student.model.eval().requires_grad_(False)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    forward = Forward.of(model, around.example_inputs)
    members = []
    for growth, candidate in zip(growths, planted(around, student, growths), strict=True):
        if recipe.channels_last:
            candidate.to(memory_format=torch.channels_last)
        members.append(Member(candidate, make_program(forward, student.plan[growth.site], candidate)))
    trunk = Trunk(forward, [name for member in members for name in member.program.kept], recipe.precision)
    store = FeatureStore(trunk, None, around.config.sweep_memory)
    features = store.of(around.train, recipe.augment.variants, recipe.channels_last)
    feed = Feed(around.train, recipe, around.teacher, seed=0, keys=("bench",), batch_done=None)
    trainer = SweepTrainer(members, feed, recipe, features, None, features, store.close)
    batches = endless(feed, EPOCHS)
    tallies = [Tally(around.train.device) for _ in members]
    return lambda: trainer.step(*next(batches), tallies)


def own_macs(case: Case) -> int:
    """Multiply-accumulates that a step of the candidates needs: blocks forward and backward, the trunk behind them
    forward and back through its inputs."""
    width, planted, total = case.width, case.channels, 0
    for site in range(1, case.sites + 1):
        own = _area(site) * 9 * (3 if site == 1 else width) * planted
        reader = _area(site + 1) * 9 * planted * width if site < 5 else 16 * planted * 128
        suffix = sum(_area(layer) * 9 * width * width for layer in range(site + 2, 6))
        suffix += (16 * width * 128 if site < 5 else 0) + 128 * 10
        total += 2 * own + 3 * reader + 2 * suffix
    return total * case.batch


def _area(layer: int) -> int:
    return (32 >> sum(pool < layer for pool in POOLED)) ** 2


def steps(case: Case, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The variants of one step without augmentation."""
    planter, growths, teacher = surroundings(case, args)
    around, student, recipe = planter.around, planter.initial, planter.config.recipe()
    plain = [split_cat(student, growth) for growth in growths]
    own = partial(planted, around, student, growths)
    variants = {"shared": shared_step(around, planter.initial, growths)}
    if not args.no_teacher_loop:
        variants["loop, teacher each"] = loop_step(around, own(), recipe, teacher, False)
    variants["loop, cached logits"] = loop_step(around, own(), recipe, None, False)
    variants["split + cat, cached"] = loop_step(around, plain, recipe, None, False)
    if args.compile:
        again = [split_cat(student, growth) for growth in growths]
        variants["loop, cached, compiled"] = loop_step(around, own(), recipe, None, True)
        variants["split + cat, cached, compiled"] = loop_step(around, again, recipe, None, True)
    return variants


def augmented_steps(case: Case, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """With crops and flips: the teacher runs once a batch; what it alone takes is measured beside it."""
    planter, growths, teacher = surroundings(case, args, crop=4, flip=True)
    around, student, recipe = planter.around, planter.initial, planter.config.recipe()
    batch = around.train.normalise(around.train.images[: case.batch])
    if recipe.channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
        teacher.to(memory_format=torch.channels_last)

    def alone() -> Tensor:
        with torch.no_grad():
            return teacher(batch)

    return {
        "shared, crops": shared_step(around, student, growths),
        "loop, teacher each, crops": loop_step(around, planted(around, student, growths), recipe, teacher, False),
        "teacher alone": alone,
    }


def finished(step: Callable[[], Any]) -> None:
    """A step until the GPU has done it."""
    step()
    torch.cuda.synchronize()


def measure_case(case: Case, args: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    variants = steps(case, args)
    if args.augment:
        variants |= augmented_steps(case, args)
    if args.device.startswith("cuda"):
        variants = {name: partial(finished, step) for name, step in variants.items()}
    timings = measure(variants, rounds=args.rounds, min_seconds=2e-3, warmup=2)
    shared = timings["shared"].p50
    rows = []
    for name, timing in timings.items():
        share = own_macs(case) * 2 / timing.p50 / peak if name == "shared" else ""
        ratio = round(timing.p50 / shared, 3)
        rows.append({**vars(case), "variant": name, **timing.milliseconds(), "ratio": ratio, "share_of_peak": share})
    return rows


def measure_round(case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A whole round on few images: features and logits computed, all epochs, held-out scores."""
    rows = []
    for name, sweep in (("shared", sweep_shared), ("loop", sweep_loop)):
        planter, growths, _ = surroundings(case, args, epochs=args.round_epochs)
        began = time.perf_counter()
        sweep(planter.around, planter.initial, 1, growths)
        rows.append({**vars(case), "variant": f"round, {name}", "seconds": time.perf_counter() - began})
    rows[1]["ratio"] = round(rows[1]["seconds"] / rows[0]["seconds"], 3)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds of a step of every variant, by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["variant"] for row in rows if "p50_ms" in row))
    cases = list(dict.fromkeys((r["width"], r["channels"], r["batch"], r["sites"]) for r in rows if "p50_ms" in r))
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for name in names:
        points = {
            (r["width"], r["channels"], r["batch"], r["sites"]): r["p50_ms"] for r in rows if r["variant"] == name
        }
        places = [place for place, case in enumerate(cases) if case in points]
        axes.plot(places, [points[cases[place]] for place in places], "o-", label=name)
    axes.set_yscale("log")
    axes.set_ylabel("ms a step, all candidates")
    axes.set_xticks(range(len(cases)), [f"w={w}\n{c} ch\nb={b}\n{s} sites" for w, c, b, s in cases], fontsize=7)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def numbers(text: str) -> list[int]:
    """``8,16`` as a list."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=numbers, default=[16])
    parser.add_argument("--channels", type=numbers, default=[4])
    parser.add_argument("--batch", type=numbers, default=[128])
    parser.add_argument("--sites", type=numbers, default=[5])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--teacher-width", type=int, default=128)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="the loops under torch.compile, too")
    parser.add_argument("--augment", action="store_true", help="a step with crops and flips, too")
    parser.add_argument("--round-epochs", type=int, default=0, help="a whole round of so many epochs, too")
    parser.add_argument("--no-teacher-loop", action="store_true", help="leave out the loop that asks the teacher")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # The candidates are one class with layers of many shapes: more graphs than the eight that are kept by default.
    torch._dynamo.config.recompile_limit = 256
    peak = measure_ceilings(torch.device(args.device), ["float32"]).matmul["float32"]
    rows = []
    for width in args.width:
        for channels in args.channels:
            for batch in args.batch:
                for sites in args.sites:
                    case = Case(width, channels, batch, sites)
                    rows += measure_case(case, args, peak)
                    if args.round_epochs:
                        rows += measure_round(case, args)
    print(table(rows, ["width", "channels", "batch", "sites", "variant", "p20_ms", "p50_ms", "p80_ms", "seconds",
                       "ratio", "share_of_peak"]))  # fmt: skip
    print(f"\npeak measured here: {peak / 1e9:.0f} GFLOP/s; ratio: time over that of the shared sweep")
    if args.csv:
        here = environment(args.device)
        write_csv(args.csv, [{**row, "peak_gflops": round(peak / 1e9, 1), **here} for row in rows])
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
