"""Adversarial against plain distillation on CIFAR-10, at a size that a CPU can do.

    python benchmarks/adversarial_cifar10.py --data-root DIR --resume runs/adversarial-cifar10 --minutes 9

One small student learns from the labels alone (``ce``), by plain distillation (``kd-T``: alpha T^2 KL + (1 - alpha) CE
with alpha 0.9) at T = 1, 2, 5, 10, and by ``adversarial`` distillation: from the same teacher, with the same optimizer
and schedule, for several seeds (split, teacher, initial weights, order). Every training is a run of the command line in
a folder below ``--resume``, so the script can be stopped at any time and called again. At the end it prints the table
and writes CSV.
``--dataset digits`` is a toy that shows that this works.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import RESULTS, table, write_csv
from runs import Job, finish, row_of, script

PUBLISHED = {"teacher": 95.81, "ce": 92.54, "kd-5": 92.98, "adversarial": 93.91}
"""Test accuracy in percent, WRN-10-4 from WRN-40-10 after 200 epochs: Xu, Hsu, Huang, arXiv 1709.00513."""
TEMPERATURES = (1, 2, 5, 10)
SIZES: dict[str, dict[str, Any]] = {
    "cifar10": {"teacher_width": 32, "teacher_epochs": 8, "width": 8, "epochs": 8, "train_fraction": 0.2},
    "digits": {"teacher_width": 4, "teacher_epochs": 2, "width": 3, "epochs": 1, "train_fraction": 1.0},
}
RECIPE = (
    *("--batch-norm", "--lr", "0.1", "--schedule", "tenths", "--weight-decay", "1e-4", "--batch-size", "128"),
    *("--crop", "0", "--no-flip", "--val-fraction", "0.02"),
)
"""As published, where it does not cost time: no augmentation here, so the teacher's logits are computed once."""


def jobs(args: argparse.Namespace) -> list[Job]:
    """The teacher of every seed, then its students."""
    size = {name: getattr(args, name) or default for name, default in SIZES[args.dataset].items()}
    data = ["--data", args.dataset, *(["--data-root", args.data_root] if args.data_root else [])]
    data += ["--train-fraction", str(size["train_fraction"])]
    losses = {"ce": ["--loss", "ce"]}
    losses |= {f"kd-{t}": ["--loss", "kd", "--temperature", str(t), "--alpha", "0.9"] for t in TEMPERATURES}
    losses["adversarial"] = ["--loss", "adversarial"]
    found = []
    for seed in range(args.seeds):
        common = [
            *data,
            *RECIPE,
            "--crop",
            "0",
            "--no-flip",
            "--seed",
            str(seed),
            "--device",
            args.device,
            "--no-report",
        ]
        teacher = f"teacher-{seed}"
        own = ["--width", str(size["teacher_width"]), "--epochs", str(size["teacher_epochs"])]
        found.append(Job(teacher, "teacher", seed, ("teacher", *common, *own), "teacher"))
        own = ["--widths", str(size["width"]), "--epochs", str(size["epochs"])]
        for row, loss in losses.items():
            source = [] if row == "ce" else ["--teacher", str(Path(args.resume) / teacher)]
            found.append(Job(f"{row}-{seed}", row, seed, ("train", *common, *own, *loss, *source), "uniform"))
    return found


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each training: mean and range of the test accuracy over the seeds, beside the published one."""
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        accuracies = [100 * row["test_accuracy"] for row in own]
        lines.append({
            "training": name, "seeds": len(own), "parameters": own[0]["parameters"],
            "test loss": round(statistics.mean(row["test_loss"] for row in own), 4),
            "test accuracy": round(statistics.mean(accuracies), 2),
            "smallest": round(min(accuracies), 2), "largest": round(max(accuracies), 2),
            "published (other networks)": PUBLISHED.get(name, ""),
        })  # fmt: skip
    return lines


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10", choices=tuple(SIZES))
    parser.add_argument("--data-root", help="folder with the official files")
    parser.add_argument("--resume", required=True, help="folder of the runs; made if it is not there")
    parser.add_argument("--seeds", type=int, default=3)
    for name in ("teacher_width", "teacher_epochs", "width", "epochs"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--train-fraction", type=float)
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; call again to go on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="the CSV file; default: beside the other results")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    folder = Path(args.resume)
    folder.mkdir(parents=True, exist_ok=True)
    todo = jobs(args)
    status = finish(todo, folder, args.minutes)
    if status:
        return status
    rows = [row_of(job, folder / job.name, reduced=True) for job in todo]
    lines = summary(rows)
    path = write_csv(args.out or RESULTS / f"adversarial_{args.dataset}_{args.device}.csv", rows)
    print(f"\n{table(lines, list(lines[0]))}\n\n{path}")
    return 0


if __name__ == "__main__":
    script(main, "adversarial_cifar10.py")
