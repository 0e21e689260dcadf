"""What the publication leaves open, one factor at a time from a sound base: the held-out loss at the end.

    python benchmarks/study.py --data-root DIR --teacher RUN --resume runs/study --minutes 9

Every search is a run of ``plantops plant`` in a folder of its own below ``--resume``: stopped at any time and called
again, it goes on. All have the same budget of parameters and, unless a factor says otherwise, of epochs on the
network's own path. The base is run for ``--seeds`` seeds, which shows what differs by chance; the other levels for
one, or as many as ``--seeds-of-levels`` says; ``--together`` adds levels that change several things at once. Decided on
the held-out part alone: the test part is not in the results.
Ends in a table, benchmarks/results/study_DATASET.csv and .svg. ``--dataset digits`` is a toy.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import RESULTS, table, write_csv
from runs import Job, finish, row_of, script

from plantops.train.run import read_run

BASE = {
    "cifar10": "--train-fraction 0.4 --threads 1 --crop 0 --flip --max-params 40600 --initial-epochs 2 "
    "--channels 16 --epochs 1 --sites-per-round 3 --select loss_per_parameter --finetune-epochs 8 --finetune-lr 0.05 "
    "--path-epochs 20 --weight-decay 5e-4",
    "digits": "--max-rounds 1 --width 2 --initial-epochs 4 --epochs 3 --max-params 6000 --lr 0.05 --select loss "
    "--joint-epochs 0 --retrain-epochs 2",
}
"""A search that a CPU does in minutes; what is not named here is the default of the command line."""

FACTORS: Mapping[str, Mapping[str, str]] = {
    "joint training": {
        "never": "--finetune-epochs 0 --path-epochs 0 --initial-epochs 16",
        "after each round": "--joint-epochs 2",
    },
    "rate of joint training": {rate: f"--finetune-lr {rate}" for rate in ("0.02", "0.05", "0.1", "0.2")},
    "temperature": {
        "2": "--temperature 2",
        "2, times T^2": "--loss kd --alpha 1 --temperature 2",
        "4, times T^2": "--loss kd --alpha 1 --temperature 4",
    },
    "choice": {"held-out loss": "--select loss"},
    "channels": {str(number): f"--channels {number}" for number in (1, 2, 4, 8, 32)},
    "sites a round": {"1": "--sites-per-round 1", "5": "--sites-per-round 5"},
    "initial epochs": {"6": "--initial-epochs 6"},
    "epochs of a candidate": {"3": "--epochs 3"},
    "initial width": {"4": "--width 4"},
    "initialisation": {"kaiming": "--init kaiming", "copy pairs": "--init copy_pairs"},
    "objective": {"kd, alpha 0.9, T 2": "--loss kd --alpha 0.9 --temperature 2"},
    "weight decay": {value: f"--weight-decay {value}" for value in ("0", "2e-3", "5e-3")},
    "augmentation": {"none": "--no-flip", "crops and flips": "--crop 4"},
    "fc1": {"grows": "--grow-linear"},
    "schedule": {"cosine": "--schedule cosine"},
    "optimizer": {"adamw": "--optimizer adamw --lr 0.003 --initial-lr 0.003 --finetune-lr 0.003"},
    "initial loss": {"kl": "--initial-loss kl"},
}
"""Levels of each factor: what they change in the base. A level that the base has already is not run again."""

TOY = {
    "channels": {"1": "--channels 1", "4": "--channels 4"},
    "choice": {"loss per parameter": "--select loss_per_parameter"},
}


def jobs(args: argparse.Namespace) -> dict[tuple[str, str], list[Job]]:
    """The runs of each (factor, level); ("base", "") is the base."""
    base = [*BASE[args.dataset].split(), *args.base.split()]
    data = ["--data", args.dataset, *(["--data-root", args.data_root] if args.data_root else [])]
    data += ["--device", args.device, "--no-report", "--split-seed", str(read_run(args.teacher).split_seed)]
    factors = TOY if args.dataset == "digits" else FACTORS
    wanted = args.factors.split(",") if args.factors else list(factors)
    unknown = [name for name in wanted if name not in factors]
    if unknown:
        raise SystemExit(f"study.py: --factors must be of {', '.join(factors)}; got {unknown[0]!r}")
    levels = {("base", ""): ""} | {(name, level): factors[name][level] for name in wanted for level in factors[name]}
    levels |= {("together", changes): changes for changes in args.together}
    found: dict[tuple[str, str], list[Job]] = {}
    for (factor, level), changes in levels.items():
        own = changes.split()
        if own and _is_in(own, base):
            continue
        name = "-".join(re.findall(r"[\w.]+", f"{factor} {level}"))
        seeds = args.seeds if factor == "base" else args.seeds_of_levels
        found[factor, level] = [
            Job(
                f"{name}-{seed}", name, seed,
                ("plant", *data, "--teacher", args.teacher, *_replaced(base, own), "--seed", str(seed)), "planted",
            )
            for seed in range(seeds)
        ]  # fmt: skip
    return found


def _pairs(options: Sequence[str]) -> dict[str, list[str]]:
    """Options by name, with their value where they have one."""
    found: dict[str, list[str]] = {}
    for word in options:
        if word.startswith("--"):
            name = word
            found[name] = [word]
        else:
            found[name].append(word)
    return found


def _is_in(own: Sequence[str], base: Sequence[str]) -> bool:
    known = _pairs(base)
    return all(known.get(name) == words for name, words in _pairs(own).items())


def _replaced(base: Sequence[str], own: Sequence[str]) -> list[str]:
    changed = {**_pairs(base), **_pairs(own)}
    changed = {name: words for name, words in changed.items() if f"--no-{name[2:]}" not in changed}
    return [word for words in changed.values() for word in words]


def row(factor: str, level: str, job: Job, folder: Path) -> dict[str, Any]:
    """The result of one search, without its test scores."""
    result = {name: value for name, value in row_of(job, folder, True).items() if not name.startswith("test_")}
    run = read_run(folder)
    planted = next(record for record in run.of("network") if record["role"] == "planted")
    return {
        "factor": factor, "level": level, **result, "rounds": run.of("round")[-1]["round"],
        "planted_val_loss": planted["val_loss"], "stop": run.of("stop")[-1]["reason"],
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each level: means over its seeds, and the difference to the base."""
    base = [row for row in rows if row["factor"] == "base"]
    lines = []
    for factor, level in dict.fromkeys((row["factor"], row["level"]) for row in rows):
        own = [row for row in rows if (row["factor"], row["level"]) == (factor, level)]
        both = {row["seed"] for row in own} & {row["seed"] for row in base}
        losses = [[row["val_loss"] for row in some if row["seed"] in both] for some in (own, base)]
        change = f"{statistics.mean(losses[0]) - statistics.mean(losses[1]):+.4f}" if both else "-"
        loss = statistics.mean(row["val_loss"] for row in own)
        lines.append({
            "factor": factor, "level": level, "seeds": len(own),
            "parameters": int(statistics.mean(row["parameters"] for row in own)),
            "widths": own[0]["widths"], "rounds": own[0]["rounds"], "epochs": own[0]["epochs"],
            "held-out loss": round(loss, 4), "to the base": change,
            "held-out accuracy": round(100 * statistics.mean(row["val_accuracy"] for row in own), 2),
            "minutes": round(statistics.mean(row["seconds"] for row in own) / 60, 1),
        })  # fmt: skip
    return lines


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """What ``summary`` computes with, from the text of a CSV row."""
    return {name: float(row[name]) for name in ("val_loss", "val_accuracy", "parameters", "seconds")}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Held-out loss of every level, the base's range over its seeds behind them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base = [row["val_loss"] for row in rows if row["factor"] == "base"]
    levels = list(dict.fromkeys((row["factor"], row["level"]) for row in rows if row["factor"] != "base"))
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.24 * len(levels)))
    axes.axvspan(min(base), max(base), color="tab:green", alpha=0.15, label=f"base, range of {len(base)} seeds")
    axes.axvline(statistics.mean(base), color="tab:green", linewidth=1)
    for place, key in enumerate(levels):
        losses = [row["val_loss"] for row in rows if (row["factor"], row["level"]) == key]
        better = statistics.mean(losses) < min(base)
        axes.plot(losses, [place] * len(losses), "o", color="tab:blue" if better else "tab:grey")
    axes.set_yticks(range(len(levels)), [f"{factor}: {level}" for factor, level in levels], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("held-out loss of the final network (nats)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=tuple(BASE), default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--teacher", required=True, help="run of plantops teacher; it teaches all")
    parser.add_argument("--resume", required=True, help="folder of the runs; made when it is not there")
    parser.add_argument("--base", default="", help="options that change the base")
    parser.add_argument("--factors", default="", help="these factors only, between commas")
    parser.add_argument(
        "--together",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="one level more, which changes all this at once: '--lr 0.05 --init copy_pairs'; may be given again",
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the base")
    parser.add_argument("--seeds-of-levels", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; call again to go on")
    parser.add_argument("--side-by-side", type=int, default=1, help="so many runs at the same time on this device")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and plot go")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    folder = Path(args.resume)
    folder.mkdir(parents=True, exist_ok=True)
    found = jobs(args)
    status = finish([job for own in found.values() for job in own], folder, args.minutes, args.side_by_side)
    if status:
        return status
    rows = [row(*key, job, folder / job.name) for key, own in found.items() for job in own]
    lines = summary(rows)
    csv = write_csv(args.out / f"study_{args.dataset}.csv", rows)
    plot(rows, args.out / f"study_{args.dataset}.svg")
    print(f"\n{table(lines, list(lines[0]))}\n\n{csv}")
    return 0


if __name__ == "__main__":
    script(main, "study.py")
