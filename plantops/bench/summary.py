"""What the CSV files of a folder say together: geometric means, the shapes that lose, what has no figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plantops.bench import host
from plantops.bench.case import OURS
from plantops.bench.plots import case_of
from plantops.bench.record import Row, read_csv, table
from plantops.bench.runner import GREEN

KIND = ("op", "group", "dtype", "device", "direction", "call", "variant")
LOSING = 0.95
COLUMNS = (
    *KIND,
    "shapes",
    "over best peer",
    "worst",
    "over baseline",
    "by count",
    "floor / time",
    "kept / best peer's",
)


def results(path: Path) -> list[Row]:
    """The rows of a results file, or of all in a folder; none of a CSV file of another kind."""
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    found = [row for file in files for row in read_csv(file)]
    return [row for row in found if "status" in row and "variant" in row]


def geometric_mean(values: Iterable[float]) -> float:
    """exp(mean(log)).

    Raises:
        ValueError: no values.
    """
    logs = [math.log(value) for value in values]
    if not logs:
        raise ValueError("geometric mean of no values")
    return math.exp(sum(logs) / len(logs))


def summarise(rows: Sequence[Mapping[str, str]]) -> list[Row]:
    """One row for each of our implementations, group of shapes, direction and way of calling."""
    timed = [row for row in rows if row["status"] == GREEN]
    kept = {(_place(row), row["variant"]): float(row["kept_bytes"]) for row in timed if row.get("kept_bytes")}
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in timed:
        if row["role"] == OURS and row.get("best_peer_over_this"):
            groups.setdefault(tuple(row.get(name, "") for name in KIND), []).append(row)
    summary = []
    for kind, members in groups.items():
        peers = [float(row["best_peer_over_this"]) for row in members]
        line: Row = {**dict(zip(KIND, kind, strict=True)), "shapes": len(members)}
        line |= {"over best peer": _x(geometric_mean(peers)), "worst": _x(min(peers))}
        line |= {"over baseline": _mean(members, "baseline_over_this")}
        line |= {"by count": _mean(members, "baseline_over_this_by_count")}
        line |= {"floor / time": f"{100 * geometric_mean(float(row['floor_over_this']) for row in members):.0f} %"}
        ratios = [
            mine / theirs
            for row in members
            if (mine := kept.get((_place(row), row["variant"]))) is not None
            and (theirs := kept.get((_place(row), row["best_peer"])))
        ]
        line |= {"kept / best peer's": f"at most {max(ratios):.2f}" if ratios else ""}
        summary.append(line)
    return summary


def losing(rows: Sequence[Mapping[str, str]], variant: str = "auto") -> list[str]:
    """The shapes at which `variant` takes longer than the best peer, by more than 5 %."""
    return [
        f"{' '.join(filter(None, case_of(row)))}, {row['direction']}, {row['call']} call: "
        f"{float(row['best_peer_over_this']):.2f}x of {row['best_peer']}"
        for row in rows
        if row["status"] == GREEN and row["variant"] == variant and float(row["best_peer_over_this"] or 1) < LOSING
    ]


def without_figure(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Why which variant has no figure, and in how many rows."""
    count: dict[tuple[str, str, str], int] = {}
    for row in rows:
        if row["status"] != GREEN:
            key = (row["op"], row["variant"], row["status"])
            count[key] = count.get(key, 0) + 1
    return [f"{op}, {variant}: {why} ({number} rows)" for (op, variant, why), number in count.items()]


def text(folder: Path) -> str:
    """The summary of a folder as a person reads it.

    Raises:
        ValueError: no results there.
    """
    rows, of_the_host = results(folder), sorted(folder.glob("host_*.csv"))
    tables = ["microseconds of the host:\n" + table(read_csv(path), host.COLUMNS) for path in of_the_host]
    if not rows and tables:
        return "\n\n".join(tables)
    if not rows:
        raise ValueError(f"no results of plantops bench in {folder}.")
    first = rows[0]
    where = f"{first['hardware']}, torch {first['torch']}, triton {first['triton']}, CUDA {first['cuda']}, " + (
        f"driver {first['driver']}, commit {first['commit']}, {first['date']}"
    )
    parts = [where, table(summarise(rows), COLUMNS)]
    lost, missing = losing(rows), without_figure(rows)
    parts.append("\n  ".join(["auto loses at:", *(lost or ["no shape"])]))
    if missing:
        parts.append("\n  ".join(["no figure:", *missing]))
    return "\n\n".join([*parts, *tables])


def _place(row: Mapping[str, str]) -> tuple[str, ...]:
    return (*case_of(row), row["direction"], row["call"])


def _mean(members: Sequence[Mapping[str, str]], name: str) -> str:
    values = [float(row[name]) for row in members if row.get(name)]
    return _x(geometric_mean(values)) if values else ""


def _x(value: float) -> str:
    return f"{value:.2f}x"
