"""The figure of a results table: every case a row, every variant a mark, faster to the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plantops.bench.case import OURS
from plantops.bench.record import Row
from plantops.bench.runner import GREEN

STYLE: dict[str, tuple[str, str]] = {
    "auto": ("#2f7ed8", "o"),
    "native": ("#2f7ed8", "D"),
    "triton": ("#8a4fd0", "o"),
    "aten": ("#6f9a1f", "s"),
    "reference": ("#5f7f95", "P"),
    "split + cat": ("#d9601a", "v"),
    "ATen slice": ("#b08012", "^"),
    "masked": ("#7d7d85", "X"),
    "eager": ("#7d7d85", "X"),
    "compiled": ("#d9601a", "v"),
    "liger": ("#b08012", "^"),
}
"""Colour and marker; a compiled peer is drawn hollow, so is value_and_grad."""
OTHERS = ("#1d9a8a", "P")
INK = "#26262b"
FLOOR = "floor by counted work"


def case_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns before `direction` name the case."""
    names = list(row)
    return tuple(str(row[name]) for name in names[: names.index("direction")])


def labels(cases: Sequence[tuple[str, ...]]) -> tuple[str, dict[tuple[str, ...], str]]:
    """What all cases share, and for each case the rest of its name."""
    parts = list(zip(*cases, strict=True))
    shared = [values[0] for values in parts if len(set(values)) == 1 and len(cases) > 1]
    own = [place for place, values in enumerate(parts) if len(set(values)) > 1 or len(cases) == 1]
    return ", ".join(filter(None, shared)), {case: "  ".join(case[place] for place in own) for case in cases}


def draw(rows: Sequence[Row], folder: Path, name: str) -> list[Path]:
    """``name`` with direction and way of calling as SVG and PNG files, one figure each.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    kinds = dict.fromkeys((row["direction"], row["call"]) for row in rows if row["status"] == GREEN)
    written = []
    for direction, call in kinds:
        chosen = [
            row for row in rows if row["status"] == GREEN and (row["direction"], row["call"]) == (direction, call)
        ]
        short = {"forward + backward": "both", "backward": "backward"}.get(direction, direction)
        stem = folder / f"{name}_{short}_{call}"
        written += _save(chosen, f"{direction}, {call} call, {rows[0]['hardware']}", stem)
    return written


def _save(rows: Sequence[Row], title: str, stem: Path) -> list[Path]:
    from plantops.train.report.style import drawing

    with drawing(ink=INK, grid="#dddde2") as make:
        figure = figure_of(rows, title, make)
        svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
        figure.savefig(svg, metadata={"Date": None, "Creator": None}, facecolor="white")
        figure.savefig(png, dpi=110, facecolor="white")
    return [svg, png]


def figure_of(rows: Sequence[Row], title: str, make: Any) -> Any:
    """Speed over the best peer (p20 to p80 as a line) with the floor as the end of what can be reached."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    cases = list(dict.fromkeys(map(case_of, rows)))
    shared, names = labels(cases)
    places = {case: len(cases) - 1 - place for place, case in enumerate(cases)}
    variants = list(dict.fromkeys(str(row["variant"]) for row in rows))
    best = {
        row: min(times)
        for row in cases
        if (times := [_p50(r) for r in rows if case_of(r) == row and r["role"] != OURS])
    }
    figure = make(11, 1.9 + 0.52 * len(cases))
    axis = figure.subplots()
    axis.axvline(1, color="#7d7d85", linewidth=1.2)
    for order, variant in enumerate(variants):
        colour, marker, hollow = style_of(variant)
        shift = 0.32 - 0.64 * (order + 0.5) / len(variants)
        points = [(best[case_of(row)], row) for row in rows if row["variant"] == variant and case_of(row) in best]
        heights = [places[case_of(row)] + shift for _, row in points]
        for height, (reference, row) in zip(heights, points, strict=True):
            ends = [reference / float(row[f"{q}_ms"]) for q in ("p80", "p20")]
            axis.plot(ends, [height, height], color=colour, linewidth=1.2, alpha=0.6)
        across = [reference / _p50(row) for reference, row in points]
        face = "white" if hollow else colour
        axis.plot(across, heights, marker, color=colour, markerfacecolor=face, markersize=6, label=variant)
    _floors(axis, rows, best, places)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(LogLocator(base=2))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yticks(list(places.values()), [names[case] for case in places])
    axis.set_ylim(-0.6, len(cases) - 0.4)
    axis.set_xlabel("speed, best peer of each row = 1 (p50; lines from p20 to p80)")
    axis.set_title(f"{shared}: {title}" if shared else title)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def _p50(row: Mapping[str, Any]) -> float:
    return float(row["p50_ms"])


def style_of(variant: str) -> tuple[str, str, bool]:
    """Colour, marker and whether it is hollow."""
    if variant in STYLE:
        return (*STYLE[variant], False)
    plain = variant.removesuffix(", compiled").removeprefix("value_and_grad ")
    return (*STYLE.get(plain, OTHERS), True)


def _floors(axis: Any, rows: Sequence[Row], best: Mapping[Any, float], places: Mapping[Any, int]) -> None:
    """Where the least time of our result would lie."""
    marked = {}
    for row in rows:
        case = case_of(row)
        if row["role"] == OURS and case in best and not str(row["variant"]).startswith("value_and_grad"):
            marked[places[case]] = best[case] / float(row["floor_ms"])
    if marked:
        axis.plot(list(marked.values()), list(marked), "|", color=INK, markersize=22, label=FLOOR)
