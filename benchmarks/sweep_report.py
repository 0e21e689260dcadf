"""What the rows of bench_sweep.py say: ratios to each baseline, growth, a plot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
CASE = ("width", "channels", "batch", "sites")


def ratios(rows: Iterable[Row]) -> Iterator[str]:
    """One line for each part and case: the time of every baseline over that of the shared sweep; then growth."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row["part"], *(int(row[name]) for name in CASE)), {})[row["variant"]] = row
    for (part, width, channels, batch, sites), found in groups.items():
        first = next(iter(found))
        others = [f"{name} {float(row['ratio']):.2f}x" for name, row in found.items() if name != first]
        where = f"{part}, w={width}, {channels} channels, batch {batch}, {sites} sites"
        yield f"{where}: {first} {_time(found[first])}; {', '.join(others)}"
        compiled = [row for name, row in found.items() if "compiled" in name or "captured" in name]
        if compiled:
            best = min(compiled, key=lambda row: float(row["ratio"]))
            yield f"  best of compiled and captured loops: {best['variant']} {float(best['ratio']):.2f}x"
        if part == "crops":
            yield f"  {_teacher_and_sweep(found)}"
    yield from _growth(groups)


def _time(row: Row) -> str:
    return f"{float(row['p50_ms']):.2f} ms" if row.get("p50_ms") else f"{float(row['seconds']):.2f} s"


def _teacher_and_sweep(found: dict[str, Row]) -> str:
    whole, alone, sweep = (
        float(found[name]["p50_ms"]) for name in ("shared, crops", "teacher alone", "sweep without teacher, crops")
    )
    return f"shared over teacher ({alone:.1f} ms) plus sweep ({sweep:.1f} ms): {whole / (alone + sweep):.3f}x"


def _growth(groups: dict[tuple[Any, ...], dict[str, Row]]) -> Iterator[str]:
    """The fifth site against what its arithmetic is of the four others'."""
    for (part, *case), found in groups.items():
        four = groups.get((part, *case[:3], 4))
        if part == "steps" and case[3] == 5 and four is not None:
            time, macs = (
                float(found["shared"][name]) / float(four["shared"][name]) for name in ("p50_ms", "own_gmacs")
            )
            yield (
                f"growth, w={case[0]}, {case[1]} channels, batch {case[2]}: the fifth site adds "
                f"{100 * (time - 1):.1f} % to the time of four, {100 * (macs - 1):.1f} % to their arithmetic"
            )


def plot(rows: list[Row], path: Path) -> None:
    """Milliseconds of a step without augmentation, by case; seconds of a small search."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (axes, bars) = pyplot.subplots(1, 2, figsize=(12, 4.8), width_ratios=[3, 1])
    steps = [row for row in rows if row["part"] in ("steps", "compiled")]
    cases = list(dict.fromkeys(tuple(int(row[name]) for name in CASE) for row in steps))
    for name in dict.fromkeys(row["variant"] for row in steps):
        points = {tuple(int(row[key]) for key in CASE): float(row["p50_ms"]) for row in steps if row["variant"] == name}
        places = [place for place, case in enumerate(cases) if case in points]
        axes.plot(places, [points[cases[place]] for place in places], "o-", label=name)
    axes.set_yscale("log")
    axes.set_ylabel("ms a step, all candidates")
    axes.set_xticks(range(len(cases)), [f"w={w}\n{c} ch\nb={b}\n{s} sites" for w, c, b, s in cases], fontsize=7)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    seconds = {row["variant"]: float(row["seconds"]) for row in rows if row["part"].startswith("search")}
    bars.barh(list(seconds), list(seconds.values()))
    bars.set_xscale("log")
    bars.set_xlabel("s, a small search")
    bars.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path)
