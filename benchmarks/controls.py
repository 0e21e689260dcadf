"""A planted network beside its controls, seed by seed: what one would train instead under the same teacher.

    python benchmarks/controls.py --resume runs/controls                       # the digits, five seeds
    python benchmarks/controls.py --dataset cifar10 --data-root DIR --teacher RUN --resume DIR --seeds 3 \\
        --max-parameters 40600

Every seed is a run of ``plantops plant --controls`` in a folder of its own below ``--resume``: stopped at any time and
called again, it goes on. Everything is chosen by the held-out part; the test part is read once, at the end of each run.
Ends in a table of medians and spreads and in benchmarks/results/controls_DATASET.csv.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import RESULTS, table, write_csv
from runs import Job, finish, network_row, script

from plantops.train.report.verdict import FOUND, rivals
from plantops.train.run import read_run

BUDGETS = {"digits": 4200, "cifar10": 40600, "cifar100": 78500}


def jobs(args: argparse.Namespace) -> list[Job]:
    """One search a seed."""
    words = ["--data", args.dataset, "--controls", "--threads", "1", "--progress", "plain", "--no-report"]
    words += ["--max-parameters", str(args.max_parameters or BUDGETS[args.dataset])]
    words += ["--data-root", args.data_root] if args.data_root else []
    words += ["--teacher", args.teacher, "--split-seed", "0"] if args.teacher else []
    words += args.more.split()
    return [
        Job(f"seed-{seed}", "planted", seed, ("plant", "--seed", str(seed), *words), "planted")
        for seed in range(args.seeds)
    ]


def rows_of(job: Job, folder: Path) -> list[dict[str, Any]]:
    """The planted network as it is handed out, and its rivals."""
    run = read_run(folder)
    networks = run.of("network")
    handed_out = next(record for role in FOUND for record in networks if record["role"] == role)
    shown = [("planted", handed_out)]
    for record in rivals(networks):
        shown.append(("uniform of its size" if record["role"] == "uniform" else str(record["name"]), record))
    return [{**network_row(run, record, job, folder, False), "row": name} for name, record in shown]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over seeds, and how far the seeds lie apart."""
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        accuracies = [100 * row["test_accuracy"] for row in own]
        lines.append(
            {
                "network": name,
                "seeds": len(own),
                "parameters": round(statistics.median(row["parameters"] for row in own)),
                "held-out loss": round(statistics.median(row["val_loss"] for row in own), 4),
                "test loss": round(statistics.median(row["test_loss"] for row in own), 4),
                "test accuracy": round(statistics.median(accuracies), 2),
                "spread": round(max(accuracies) - min(accuracies), 2),
            }
        )
    return lines


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=tuple(BUDGETS))
    parser.add_argument("--data-root", help="folder with the official files")
    parser.add_argument("--teacher", help="run or network folder; default: trained in each run")
    parser.add_argument("--max-parameters", type=int, help="default: the published sizes, 4,200 for the digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--more", default="", help="further options of plantops plant, in quotes")
    parser.add_argument("--resume", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--minutes", type=float, help="stop after so many; call again to go on")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    args = parser.parse_args(given)
    args.resume.mkdir(parents=True, exist_ok=True)
    todo = jobs(args)
    status = finish(todo, args.resume, args.minutes)
    if status:
        return status
    rows = [row for job in todo for row in rows_of(job, args.resume / job.name)]
    csv = write_csv(args.out / f"controls_{args.dataset}.csv", rows)
    lines = summary(rows)
    print(f"\n{table(lines, list(lines[0]))}\n\n{csv}")
    return 0


if __name__ == "__main__":
    script(main, "controls.py")
