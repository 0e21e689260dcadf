"""The rows of one case as a table on a terminal: rich where it is installed, else aligned text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from plantops.bench.record import Row, table
from plantops.bench.runner import GREEN

IDENTITY = ("direction", "call", "variant")


def show(rows: Sequence[Row], title: str) -> None:
    """Print the rows of one case: what was timed as a table, what was not with its reason below."""
    timed = [cells(row) for row in rows if row["status"] == GREEN]
    if timed:
        _table(title, timed)
    else:
        print(title)
    for row in rows:
        if row["status"] != GREEN:
            print(f"  no figure for {row['variant']}: {row['status']}")
    print(flush=True)


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """What a person reads of a timed row."""
    shown = {name: str(row[name]) for name in IDENTITY}
    shown |= {"p20 ms": _time(row["p20_ms"]), "p50 ms": _time(row["p50_ms"]), "p80 ms": _time(row["p80_ms"])}
    if "kept_bytes" in row:
        shown["kept MiB"] = f"{int(row['kept_bytes']) / 2**20:.2f}"
    if "launches" in row:
        shown["launches"] = str(row["launches"])
    shown["GB/s (of copy)"] = f"{float(row['gb_per_s']):.4g} ({_percent(row['of_copy'])})"
    if row.get("tflop_per_s"):
        shown["TFLOP/s (of ceiling)"] = f"{float(row['tflop_per_s']):.3g} ({_percent(row['of_matmul'])})"
    if row.get("baseline"):
        shown[f"{row['baseline']} / this (by count)"] = _ratio(row, "baseline_over_this", "baseline_over_this_by_count")
    if row.get("best_peer"):
        shown["best peer / this (/ floor)"] = _ratio(row, "best_peer_over_this", "best_peer_over_floor")
    return shown


def _time(value: Any) -> str:
    return f"{float(value):.4g}"


def _percent(value: Any) -> str:
    return f"{100 * float(value):.0f} %"


def _ratio(row: Mapping[str, Any], reached: str, attainable: str) -> str:
    return f"{float(row[reached]):.2f}x ({float(row[attainable]):.2f}x)"


def _table(title: str, lines: Sequence[Mapping[str, str]]) -> None:
    columns = list(dict.fromkeys(name for line in lines for name in line))
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title, table(lines, columns), sep="\n")
        return
    grid = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        grid.add_column(column, justify="left" if column in IDENTITY else "right")
    last = lines[0]
    for line in lines:
        if any(line[name] != last[name] for name in ("direction", "call")):
            grid.add_section()
        best = line.get("best peer / this (/ floor)", "").startswith("1.00x")
        grid.add_row(*(line.get(column, "") for column in columns), style="dim" if best else None)
        last = line
    console = Console()
    if not sys.stdout.isatty():  # a file or a pipe takes whole lines
        console = Console(width=200)
    console.print(grid)
