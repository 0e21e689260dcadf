"""The tables of the publication: teacher, uniform widths under cross entropy and under distillation, planted network.

    python benchmarks/paper.py --dataset cifar10 --data-root DIR --resume runs/paper-cifar10 --minutes 9

Every network is a run of ``plantops teacher``, ``train`` or ``plant`` in a folder of its own below ``--resume``, so the
script can be stopped at any time (Ctrl-C, ``--minutes``) and called again: finished runs are read, the one under way
goes on. When all have ended it prints the table and writes CSV and plot. ``--reduced`` shortens all trainings to what a
CPU can do; such rows are marked. ``--side-by-side N`` trains N runs at a time on one device, each with a log beside its
folder. Planting: ``default`` is this package's search, ``paper`` the published procedure.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import RESULTS, table, write_csv
from runs import Job, finish, row_of, script

from plantops.train.run import read_run

PUBLISHED: dict[str, dict[str, tuple[int, float, float]]] = {
    "cifar10": {
        "uniform-8-ce": (20_362, 0.8300, 71.55), "uniform-8-kl": (20_362, 0.8245, 71.69),
        "uniform-16-ce": (43_914, 0.6071, 79.42), "uniform-16-kl": (43_914, 0.6108, 79.23),
        "uniform-32-ce": (104_842, 0.4898, 84.03), "uniform-32-kl": (104_842, 0.4791, 84.02),
        "uniform-64-ce": (281_994, 0.4431, 86.83), "uniform-64-kl": (281_994, 0.4103, 86.80),
        "teacher": (857_482, 0.5007, 88.10), "uniform-128-kl": (857_482, 0.3823, 88.51),
        "planted-paper": (40_600, 0.4825, 84.35),
    },
    "cifar100": {
        "uniform-8-ce": (31_972, 2.5280, 36.53), "uniform-8-kl": (31_972, 2.5053, 36.90),
        "uniform-16-ce": (55_524, 2.1190, 45.45), "uniform-16-kl": (55_524, 2.0679, 46.66),
        "uniform-32-ce": (116_452, 1.9022, 52.15), "uniform-32-kl": (116_452, 1.7805, 53.72),
        "uniform-64-ce": (293_604, 1.9510, 55.74), "uniform-64-kl": (293_604, 1.6707, 57.71),
        "teacher": (869_092, 2.5010, 57.76), "uniform-128-kl": (869_092, 1.6232, 60.05),
        "planted-paper": (78_500, 1.7584, 54.31),
    },
    "stl10": {
        "uniform-8-ce": (40_842, 1.2776, 55.55), "uniform-8-kl": (40_842, 1.2682, 54.99),
        "uniform-16-ce": (84_874, 1.2924, 59.34), "uniform-16-kl": (84_874, 1.1998, 61.10),
        "uniform-32-ce": (186_762, 1.2213, 64.57), "uniform-32-kl": (186_762, 1.1712, 64.07),
        "teacher": (445_834, 1.5360, 66.33), "uniform-64-kl": (445_834, 1.1807, 66.47),
        "uniform-128-ce": (1_185_162, 1.7612, 67.04), "uniform-128-kl": (1_185_162, 1.1643, 67.71),
        "planted-paper": (82_600, 1.0772, 67.12),
    },
}  # fmt: skip
"""Parameters, test loss and test accuracy (percent): Mitsuno et al., arXiv 2011.02390, tables I to III."""

LIMITS = {"cifar10": 40_600, "cifar100": 78_500, "stl10": 82_600, "digits": 6_000}
TEACHER_WIDTHS = {"cifar10": 128, "cifar100": 128, "stl10": 64, "digits": 8}
WIDTHS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Size:
    """How long trainings are: options of the command line for each kind of run, behind those of every run."""

    widths: tuple[int, ...] = WIDTHS
    all: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    uniform: tuple[str, ...] = ()
    planted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    once: tuple[str, ...] = ()
    """Rows of which one seed has to do."""


def _options(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FULL = Size(uniform=_options("--epochs 100 --lr 0.05"))
REDUCED = Size(
    widths=(8, 15, 16, 32),
    all=_options("--crop 0 --threads 1"),
    teacher=_options("--width 64 --epochs 12 --lr 0.05 --crop 4"),
    uniform=_options("--epochs 20 --lr 0.1"),
    once=("uniform-15-ce", "uniform-32-ce", "uniform-32-kl", "planted-paper"),
    planted={
        "paper": _options("--initial-epochs 20 --epochs 2"),
        "default": _options("--initial-epochs 2 --epochs 1 --finetune-epochs 8 --path-epochs 20"),
    },
)
"""What a CPU can do: the students without crops, so that the teacher's logits are computed once. All rows but those of
the published procedure have as many epochs. A uniform network of width 15 has the planted network's size."""
REDUCED_SMALL = Size(
    widths=(8, 16, 32),
    all=REDUCED.all,
    teacher=_options("--width 64 --epochs 40 --lr 0.05 --crop 4"),
    uniform=_options("--epochs 60 --lr 0.1"),
    planted={
        "paper": _options("--initial-epochs 60 --epochs 6"),
        "default": _options("--initial-epochs 6 --epochs 3 --finetune-epochs 24 --path-epochs 60"),
    },
)
"""The same for a part of the images: more epochs, as an epoch is shorter."""
TOY = Size(
    widths=(3,),
    teacher=_options("--width 4 --epochs 2"),
    uniform=_options("--epochs 2"),
    planted=dict.fromkeys(("paper", "default"), _options("--initial-epochs 2 --epochs 1 --max-rounds 1")),
)


def jobs(args: argparse.Namespace) -> list[Job]:
    """Everything that the table needs, the teacher of a seed before those whom it teaches."""
    reduced = REDUCED if args.train_fraction == 1 else REDUCED_SMALL
    size = TOY if args.dataset == "digits" else reduced if args.reduced else FULL
    widths = [int(width) for width in args.widths.split(",")] if args.widths else size.widths
    data = ["--data", args.dataset, *(["--data-root", args.data_root] if args.data_root else []), *size.all]
    data += ["--train-fraction", str(args.train_fraction), "--device", args.device, "--no-report"]
    found = []
    for seed in range(args.seeds):
        common = [*data, "--seed", str(seed)]
        teacher, after = args.teacher, None
        if teacher is not None:  # its training part is that of all
            common += ["--split-seed", str(read_run(teacher).split_seed)]
        else:
            after = f"teacher-{seed}"
            own = ["teacher", *common, "--width", str(TEACHER_WIDTHS[args.dataset]), *size.teacher]
            found.append(Job(after, "teacher", seed, tuple(own), "teacher"))
            teacher = str(Path(args.resume) / after)
        taught = ["--teacher", teacher]
        for width in widths:
            for loss, source in (("ce", []), ("kl", taught)):
                row = f"uniform-{width}-{loss}"
                own = ["train", *common, "--widths", str(width), "--loss", loss, *source, *size.uniform]
                found.append(Job(f"{row}-{seed}", row, seed, tuple(own), "uniform", after if source else None))
        for preset in args.presets.split(","):
            row = f"planted-{preset}"
            own = ["plant", *common, *taught, "--preset", preset, "--max-params", str(LIMITS[args.dataset])]
            found.append(Job(f"{row}-{seed}", row, seed, (*own, *size.planted.get(preset, ())), "planted", after))
    return [job for job in found if job.seed == 0 or job.row not in size.once]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each row of the table: medians over the seeds, beside the published figures."""
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        whole = own[-1]["train_fraction"] == 1
        published = PUBLISHED.get(own[0]["dataset"], {}).get(name, ("", "", "")) if whole else ("", "", "")
        accuracies = [100 * row["test_accuracy"] for row in own]
        lines.append({
            "network": name + (" (reduced)" if own[0]["reduced"] else ""), "seeds": len(own),
            "parameters": int(statistics.median(row["parameters"] for row in own)),
            "epochs": int(statistics.median(row["epochs"] or 0 for row in own)),
            "training loss": round(statistics.median(row["train_loss"] for row in own), 4),
            "test loss": round(statistics.median(row["test_loss"] for row in own), 4),
            "test accuracy": round(statistics.median(accuracies), 2),
            "spread": round(max(accuracies) - min(accuracies), 2),
            "published parameters": published[0], "published loss": published[1], "published accuracy": published[2],
        })  # fmt: skip
    return lines


def numbers(row: Mapping[str, str]) -> dict[str, Any]:
    """What ``summary`` computes with, from the text of a CSV row."""
    names = ("test_accuracy", "test_loss", "train_loss", "parameters", "train_fraction")
    return {**{name: float(row[name]) for name in names}, "epochs": int(row["epochs"] or 0), "reduced": False}


def plot(lines: Sequence[dict[str, Any]], title: str, published: Mapping[str, Sequence[float]], path: Path) -> None:
    """Test accuracy and loss against parameters, ours (medians over seeds) and the published ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for axes, what, place in zip(panels, ("test accuracy", "test loss"), (2, 1), strict=True):
        for name, values in published.items():
            axes.plot(values[0], values[place], "x", color="grey")
            axes.annotate(
                name, (values[0], values[place]), fontsize=6, color="grey", xytext=(3, -8), textcoords="offset points"
            )
        for line in lines:
            axes.plot(line["parameters"], line[what], "o")
            name = line["network"].removesuffix(" (reduced)")
            axes.annotate(name, (line["parameters"], line[what]), fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xlabel("parameters")
        axes.set_ylabel(f"{what} (%)" if what == "test accuracy" else f"{what} (nats)")
        axes.grid(alpha=0.3)
    figure.suptitle(title + (": this package (dots) and the publication (grey)" if published else ""))
    figure.tight_layout()
    figure.savefig(path)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", choices=sorted(LIMITS), default="cifar10", help="digits: a toy, for the bookkeeping"
    )
    parser.add_argument("--data-root")
    parser.add_argument("--resume", required=True, help="folder of the runs; made when it is not there")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--widths", default="", help="uniform widths; default: the published ones")
    parser.add_argument("--presets", default="paper,default")
    parser.add_argument("--teacher", help="run of a teacher that is there already; it then teaches all seeds")
    parser.add_argument("--train-fraction", type=float, default=1.0, help="0.1: the case of small data")
    parser.add_argument("--side-by-side", type=int, default=1, help="so many runs at the same time on this device")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; call again to go on")
    parser.add_argument("--reduced", action="store_true", help="short trainings, for a CPU; the rows say so")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and plot go")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    folder = Path(args.resume)
    folder.mkdir(parents=True, exist_ok=True)
    todo = jobs(args)
    status = finish(todo, folder, args.minutes, args.side_by_side)
    if status:
        return status
    places = [(job, folder / job.name) for job in todo]
    if args.teacher is not None:
        places.insert(0, (Job("teacher", "teacher", 0, (), "teacher"), Path(args.teacher)))
    rows = [row_of(job, place, args.reduced) for job, place in places]
    lines = summary(rows)
    share = "" if args.train_fraction == 1 else f"_{args.train_fraction:g}"
    name = f"paper_{args.dataset}{share}{'_reduced' if args.reduced else ''}"
    csv = write_csv(args.out / f"{name}.csv", rows)
    published = {} if share else PUBLISHED.get(args.dataset, {})
    title = args.dataset + (", reduced" if args.reduced else "")
    title += f", {args.train_fraction:.0%} of the training images" if share else ""
    plot(lines, title, published, args.out / f"{name}.svg")
    columns = list(lines[0])
    print(f"\n{table(lines, columns)}\n\n{csv}")
    return 0


if __name__ == "__main__":
    script(main, "paper.py")
