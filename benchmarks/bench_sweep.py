"""One step of a round and a small search: all candidates in one pass, against loops over candidates.

    python benchmarks/bench_sweep.py                                   # w=16, 4 channels, batch 128, five sites
    python benchmarks/bench_sweep.py --parts steps --width 8,16,32 --sites 1,2,3,4,5 --csv FILE --plot FILE
    python benchmarks/bench_sweep.py --parts compiled --csv FILE       # takes the place of this part's rows in FILE
    python benchmarks/bench_sweep.py --parts crops --against DIR       # the build in that checkout, interleaved

The paper's network for CIFAR-10 under a teacher of w = 128, on random images (the time does not depend on what they
show). Every variant does all that a step needs: the batch is put together, the loss, the backward, the optimizer.
Parts: ``steps`` without augmentation, ``crops`` with crops and flips (all views known, and while they are filled: the
mean over an epoch of new views), ``compiled`` the loops under torch.compile,
``search`` two rounds of a search on few images, held-out scores included, ``search-compiled`` its loop compiled. On a
GPU the shared sweep is captured, and so are the loops with cached logits.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from against import CLOCKS, both_builds, ratio_rows, samplers_of
from harness import environment, table, write_csv
from sweep_memory import peak_bytes
from sweep_peers import Loop, endless, planted, split_cat
from sweep_report import plot, ratios
from torch import Tensor

from plantops.bench.ceilings import measure_ceilings
from plantops.bench.record import read_csv
from plantops.bench.timing import HostTimer, Timing, interleave, ready
from plantops.graph.forward import Forward
from plantops.models import planting_net
from plantops.planting import Planter, PlanterConfig, merge
from plantops.planting.candidate import Proposal, Student, plant_proposal, sweep_loop
from plantops.planting.search import wanted_growths
from plantops.planting.sweep.features import FeatureStore
from plantops.planting.sweep.graphs import CudaGraphs
from plantops.planting.sweep.program import make_program
from plantops.planting.sweep.replay import ReplayedTrainer
from plantops.planting.sweep.round import sweep_shared
from plantops.planting.sweep.train import Member, SweepTrainer
from plantops.planting.sweep.trunk import Trunk
from plantops.train.data import ImageData
from plantops.train.loop import Feed
from plantops.train.teacher_logits import TeacherLogits

PARTS = ("steps", "crops", "compiled", "search", "search-compiled")

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


class Told(TeacherLogits):
    """A teacher that costs nothing: what it says does not matter."""

    def logits(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 10)


def surroundings(case: Case, args: argparse.Namespace, told: bool = False, **changes: Any) -> Planter:
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
    asked = Told(teacher) if told else teacher
    return Planter(
        student, asked, data, data.subset(range(min(256, len(data)))), PlanterConfig(**{**fields, **changes})
    )


def proposals_of(planter: Planter, case: Case) -> list[Proposal]:
    return [Proposal.of(growth) for growth in wanted_growths(case.channels, planter.initial.plan)[: case.sites]]


def shared_step(planter: Planter, case: Case, captured: bool = False) -> Callable[[], None]:
    """One step of the sweep, as the search does it."""
    around, student = planter.around, planter.initial
    recipe = around.config.recipe()
    model = student.model.eval().requires_grad_(False)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    forward = Forward.of(model, around.example_inputs)
    members = []
    for proposal, candidate in zip(
        proposals_of(planter, case), planted(around, student, proposals_of(planter, case)), strict=True
    ):
        if recipe.channels_last:
            candidate.to(memory_format=torch.channels_last)
        members.append(Member(candidate, make_program(forward, [student.plan[proposal.name]], candidate)))
    trunk = Trunk(forward, [name for member in members for name in member.program.kept], recipe.precision)
    store = FeatureStore(trunk, None, around.config.sweep_memory)
    features = store.of(around.train, recipe.augment.variants, recipe.channels_last)
    feed = Feed(around.train, recipe, around.teacher, seed=0, keys=("bench",), batch_done=None)
    parts = (members, feed, recipe, features, None, features, store.close)
    if captured:
        trainer: SweepTrainer = ReplayedTrainer(*parts, graphs=CudaGraphs(feed.device), refused=print)
    else:
        trainer = SweepTrainer(*parts)
    return endless(trainer.steps, EPOCHS)


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


def on_gpu(args: argparse.Namespace) -> bool:
    return args.device.startswith("cuda")


def loops(planter: Planter, case: Case, compiled: bool) -> dict[str, Loop]:
    """The loops with cached logits, in the package's layers and in plain torch."""
    around, student, proposals = planter.around, planter.initial, proposals_of(planter, case)
    plain = [split_cat(student, proposal.growths[0]) for proposal in proposals]
    suffix = ", compiled" if compiled else ""
    return {
        f"loop, cached logits{suffix}": Loop(around, planted(around, student, proposals), compiled=compiled),
        f"split + cat, cached{suffix}": Loop(around, plain, compiled=compiled),
    }


def both_ways(found: dict[str, Loop], args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Each loop run, and on a GPU captured too."""
    variants = {name: loop.step() for name, loop in found.items()}
    if on_gpu(args):
        graphs = CudaGraphs(torch.device(args.device))
        variants |= {f"{name}, captured": loop.captured_step(graphs) for name, loop in found.items()}
    return variants


def shared(
    planter: Planter, case: Case, args: argparse.Namespace, name: str = "shared"
) -> dict[str, Callable[[], Any]]:
    """The sweep as the search does it; on a GPU also without graphs."""
    if not on_gpu(args):
        return {name: shared_step(planter, case)}
    return {name: shared_step(planter, case, captured=True), f"{name}, run": shared_step(planter, case)}


def plain_steps(case: Case, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Without augmentation."""
    planter = surroundings(case, args)
    variants = shared(planter, case, args)
    # The loop that asks the teacher is only slower where more candidates or more images ask.
    if case.sites == 5 and case.batch <= 128:
        models = planted(planter.around, planter.initial, proposals_of(planter, case))
        variants["loop, teacher each"] = Loop(planter.around, models, teacher_of(planter)).step()
    return variants | both_ways(loops(planter, case, False), args)


def compiled_steps(case: Case, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The loops under torch.compile."""
    planter = surroundings(case, args)
    return shared(planter, case, args) | both_ways(loops(planter, case, True), args)


def crops_steps(case: Case, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """With crops and flips: every view is known, or none; what the teacher takes alone, and the sweep without it."""
    planter, told = (surroundings(case, args, told, crop=4, flip=True) for told in (False, True))
    around, teacher = planter.around, teacher_of(planter)
    # Few views of an image, so that they are soon known.
    known = surroundings(case, args, crop=4, flip=True, teacher_views=2)
    views = known.around.teacher.views(known.around.train, known.config.recipe().augment, known.config.seed)
    assert views is not None
    views.fill()
    batch = around.train.normalise(around.train.images[: case.batch])
    models = planted(around, planter.initial, proposals_of(planter, case))

    def asked() -> Tensor:
        with torch.no_grad():
            return teacher(batch)

    return shared(known, case, args, "shared, crops") | {
        FILLING: epoch_of(shared_step(planter, case, on_gpu(args)), len(around.train) // case.batch),
        "sweep without teacher, crops": shared_step(told, case, on_gpu(args)),
        "teacher alone": partial(around.teacher.logits, batch),
        "teacher alone, its modules": asked,
        "loop, teacher each, crops": Loop(around, models, teacher).step(),
    }


FILLING = "shared, crops, an epoch of new views"


def epoch_of(step: Callable[[], Any], steps: int) -> Callable[[], None]:
    """So many steps."""

    def run() -> None:
        for _ in range(steps):
            step()

    return run


def teacher_of(planter: Planter) -> torch.nn.Module:
    teacher = planter.around.teacher.teacher
    assert isinstance(teacher, torch.nn.Module)
    return teacher


def finished(step: Callable[[], Any]) -> None:
    """A step until the GPU has done it."""
    step()
    torch.cuda.synchronize()


STEPS = {"steps": plain_steps, "crops": crops_steps, "compiled": compiled_steps}


def measure_steps(part: str, case: Case, args: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    variants = STEPS[part](case, args)
    if on_gpu(args):
        variants = {name: partial(finished, step) for name, step in variants.items()}
    memory: dict[str, Any] = {}
    if args.against is None:
        memory = {name: peak_bytes(step, args.device) for name, step in variants.items()}
    if args.against is None:
        timer = HostTimer(CLOCKS[args.clock], 2e-3, 1)
        timings = interleave({name: timer.sampler(ready(step)) for name, step in variants.items()}, args.rounds)
    else:
        options = {"part": part, "case": vars(case), "variants": list(variants), "arguments": shape_of(args)}
        with both_builds(args.against, "sweep", options, args.clock, args.threads) as builds:
            memory = {f"{name}{mark}": build.peak_bytes(name) for mark, build in builds.items() for name in build.names}
            timings = interleave(samplers_of(builds), args.rounds)
    first = next(iter(variants))
    steps = len(images(max(2 * case.batch, args.images), "cpu")) // case.batch
    if FILLING in timings:
        timings[FILLING] = per_call(timings[FILLING], steps)
    rows = []
    for name, timing in timings.items():
        row = {**vars(case), "part": part, "variant": name, **timing.milliseconds()}
        row["ratio"] = round(timing.p50 / timings[first].p50, 3)
        row["peak_bytes"] = memory[name]
        if name == first and part != "crops":
            row["own_gmacs"], row["share_of_peak"] = own_macs(case) / 1e9, own_macs(case) * 2 / timing.p50 / peak
        rows.append(row)
    return rows


def shape_of(args: argparse.Namespace) -> list[str]:
    """The options that the older build has, too."""
    own = ["--teacher-width", str(args.teacher_width), "--images", str(args.images), "--threads", str(args.threads)]
    return own + (["--channels-last"] if args.channels_last else [])


def per_call(timing: Timing, calls: int) -> Timing:
    """Of one of ``calls`` calls that were timed as one."""
    return dataclasses.replace(timing, **{name: getattr(timing, name) / calls for name in ("p20", "p50", "p80")})


def measure_search(part: str, case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds of a search that grows at one site after the other; the loops train the same candidates."""
    rows: list[dict[str, Any]] = []
    for name, sweep in searches(part, case).items():
        planter = surroundings(case, args, epochs=args.search_epochs)
        student, spent, peak = planter.initial, 0.0, 0
        for round in range(1, args.search_rounds + 1):
            proposals = proposals_of(planter, case)
            run = partial(sweep, planter, student, round, proposals)
            began = time.perf_counter()
            peak = max(peak, peak_bytes(run, args.device))
            spent += time.perf_counter() - began
            around = planter.around
            student = Student.of(
                merge(plant_proposal(around, student, round, proposals[round % len(proposals)])), around
            )
        row = {**vars(case), "part": part, "variant": name, "seconds": round_to(spent), "peak_bytes": peak}
        row |= {"images": args.images, "epochs": args.search_epochs, "rounds": args.search_rounds}
        row["ratio"] = round_to(spent / (rows[0]["seconds"] if rows else spent))
        rows.append(row)
    return rows


def round_to(value: float) -> float:
    return round(value, 3)


Sweep = Callable[[Planter, Student, int, list[Proposal]], Any]


def searches(part: str, case: Case) -> dict[str, Sweep]:
    """What trains the candidates of a round."""

    def package(sweep: Callable[..., Any]) -> Sweep:
        return lambda planter, student, round, proposals: sweep(planter.around, student, round, proposals)

    def loop(teacher: bool, plain: bool, compiled: bool) -> Sweep:
        def run(planter: Planter, student: Student, round: int, proposals: list[Proposal]) -> None:
            around = planter.around
            models = (
                [split_cat(student, p.growths[0]) for p in proposals] if plain else planted(around, student, proposals)
            )
            Loop(around, models, teacher_of(planter) if teacher else None, compiled).train()

        return run

    found = {"shared": package(sweep_shared)}
    if part == "search-compiled":
        return found | {"split + cat, cached, compiled": loop(False, True, True)}
    return found | {
        "loop, teacher each": loop(True, False, False),
        "loop, cached logits": package(sweep_loop),
        "split + cat, cached": loop(False, True, False),
    }


def numbers(text: str) -> list[int]:
    """``8,16`` as a list."""
    return [int(part) for part in text.split(",")]


def parts(text: str) -> list[str]:
    """``steps,crops`` as a list."""
    found = text.split(",")
    for part in found:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(PARTS)}")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=parts, default=["steps", "crops", "search"])
    parser.add_argument("--width", type=numbers, default=[16])
    parser.add_argument("--channels", type=numbers, default=[4])
    parser.add_argument("--batch", type=numbers, default=[128])
    parser.add_argument("--sites", type=numbers, default=[5])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--teacher-width", type=int, default=128)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15, help="samples of each variant")
    parser.add_argument("--search-rounds", type=int, default=2)
    parser.add_argument("--search-epochs", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="processor: a busy machine, one thread")
    parser.add_argument("--against", type=Path, help="a checkout of an older commit with its build")
    parser.add_argument("--csv", type=Path, help="rows of the same part and case are replaced, others stay")
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    # The candidates are one class with layers of many shapes: more graphs than the eight that are kept by default.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
    peak = measure_ceilings(torch.device(args.device), ["float32"]).matmul["float32"]
    print(f"peak measured here: {peak / 1e9:.0f} GFLOP/s", flush=True)
    here = {"peak_gflops": round(peak / 1e9, 1), **environment(args.device)}
    rows: list[dict[str, Any]] = []
    for part in args.parts:
        for case in itertools.starmap(Case, itertools.product(args.width, args.channels, args.batch, args.sites)):
            found = measure_steps(part, case, args, peak) if part in STEPS else measure_search(part, case, args)
            print(table(found, ["part", "width", "channels", "batch", "sites", "variant", "p20_ms", "p50_ms", "p80_ms",
                                "seconds", "ratio", "share_of_peak", "peak_bytes"]), flush=True)  # fmt: skip
            rows += [{**row, **here, "clock": args.clock} for row in found]
            if args.against is not None:
                for line in ratio_rows(found, {FILLING: "shared, crops"}):
                    print(line, flush=True)
            if args.csv:
                write_csv(args.csv, in_order(kept_rows(args.csv, rows) + rows))
    every = in_order((kept_rows(args.csv, rows) if args.csv else []) + rows)
    if args.plot:
        plot(every, args.plot)
    print()
    for line in ratios(rows):
        print(line)


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: PARTS.index(row["part"]))


def kept_rows(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier rows of ``path`` that ``rows`` do not replace."""

    def name(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[key]) for key in ("part", "width", "channels", "batch", "sites"))

    new = {name(row) for row in rows}
    old: list[dict[str, Any]] = [dict(row) for row in read_csv(path)] if path.exists() else []
    return [row for row in old if "part" in row and name(row) not in new]


if __name__ == "__main__":
    main()
