"""The figures about networks. Each takes a story and an empty figure's maker, and returns its panels: drawn figures
that stand side by side where there is room and below each other on a telephone, each with its legend below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from plantops.train.report.story import OWN_PATH, Record, Story
from plantops.train.report.style import INK, MARKERS, OTHER, PAPER, role_colour

MakeFigure = Callable[[float, float], Any]
PANEL, WIDE = 4.8, 9.6
"""Inches: of a panel, and of a figure that is as wide as the page (it is drawn once more as a panel)."""


def against_parameters(story: Story, make: MakeFigure, quantity: str) -> list[Any]:
    """``accuracy`` or ``loss`` against parameters: held out (every round), and test (finished).

    Nothing where there are no two networks to compare.
    """
    if len(story.rounds) + len(story.networks) + sum(len(other.networks) for other in story.others) < 2:
        return []
    figures = [make(PANEL, 4.1), make(PANEL, 4.1)]
    axes = [figure.subplots() for figure in figures]
    drawn = [
        _against(axes[0], story, f"val_{quantity}", "Held-out part, every round"),
        _against(axes[1], story, f"test_{quantity}", "Test part, finished networks"),
    ]
    for axis, has_points in zip(axes, drawn, strict=True):
        if not has_points:
            axis.text(0.5, 0.5, "not yet: the run has not ended", transform=axis.transAxes, ha="center")
        axis.set_xlabel("parameters")
        axis.margins(y=0.09)
        axis.set_ylabel("accuracy (%)" if quantity == "accuracy" else "cross entropy (nats)")
    shared_log_x(axes)
    limits = [axis.get_ylim() for axis, has_points in zip(axes, drawn, strict=True) if has_points]
    for figure, axis in zip(figures, axes, strict=True):
        if limits:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        legend_below(figure)
    return figures


def legend_below(figure: Any, **style: Any) -> None:
    """One legend of all axes, below them, in as many columns as there is room for."""
    found = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    handles = {label: handle for pairs in found for handle, label in pairs}
    if handles:
        longest = max(map(len, handles))
        columns = max(1, min(len(handles), int(figure.get_figwidth() * 14 / (longest + 5))))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, **style)


def _against(axis: Any, story: Story, key: str, title: str) -> bool:
    axis.set_title(title)
    own = story.rounds if key.startswith("val") else []
    points = [_points(axis, own, key, "planting, round by round", role_colour("planted"), "o", "-")]
    if not own:
        path = [record for role in ("initial", "planted") for record in story.of_role(role)]
        points.append(_points(axis, path, key, "initial and planted network", role_colour("planted"), "o", "--"))
    for teller in (story, *story.others):
        uniform = teller.of_role("uniform")
        points.append(_points(axis, uniform, key, "uniform networks", role_colour("uniform"), "s", "-"))
        _name_points(axis, uniform, key)
    tuned = story.of_role("finetuned")
    points.append(_points(axis, tuned, key, "planted, then fine-tuned", role_colour("finetuned"), "D", ""))
    anew = story.of_role("retrained")
    points.append(_points(axis, anew, key, "its widths, from new weights", role_colour("retrained"), "P", ""))
    controls = story.of_role("control")
    points.append(_points(axis, controls, key, "controls", role_colour("control"), "^", ""))
    _name_points(axis, controls, key)
    for place, other in enumerate(story.others):
        marker = MARKERS[2 + place % (len(MARKERS) - 2)]
        path = other.rounds if key.startswith("val") else [r for role in OWN_PATH for r in other.of_role(role)]
        points.append(_points(axis, path, key, f"planting in {other.name}", OTHER, marker, ":"))
    _teacher_line(axis, story, key)
    return any(points)


def _points(axis: Any, records: Sequence[Record], key: str, label: str, colour: str, marker: str, line: str) -> bool:
    """The first of several points is hollow where they are one network's path: that is where it began."""
    pairs = [(record["parameters"], _scaled(key, record.get(key))) for record in records if record.get(key) is not None]
    if not pairs:
        return False
    across, up = zip(*pairs, strict=True)
    axis.plot(across, up, marker=marker, linestyle=line or "none", color=colour, label=label)
    if "planting" in label or "initial" in label:
        axis.plot(across[:1], up[:1], marker=marker, color=colour, markerfacecolor=PAPER, linestyle="none")
    return True


def _name_points(axis: Any, records: Sequence[Record], key: str) -> None:
    for record in records:
        up = _scaled(key, record.get(key))
        if up is not None:
            place = {"xytext": (6, -11 if key.endswith("accuracy") else 6), "textcoords": "offset points"}
            name = str(record["name"]).removeprefix("uniform-")
            axis.annotate(name, (record["parameters"], up), **place, size=8, color=role_colour(record["role"]))


def _teacher_line(axis: Any, story: Story, key: str) -> None:
    score = _scaled(key, story.teacher_score(key))
    if score is not None:
        axis.axhline(score, color=role_colour("teacher"), linestyle=(0, (6, 3)), label="teacher")


def _scaled(key: str, value: float | None) -> float | None:
    return 100 * value if value is not None and key.endswith("accuracy") else value


def shared_log_x(axes: Sequence[Any]) -> None:
    """A logarithmic axis where the sizes differ by more than a factor of three; plain numbers as labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    values = [value for axis in axes for line in axis.get_lines() for value in line.get_xdata() if value > 1]
    for axis in axes:
        if values and max(values) > 3 * min(values):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            axis.xaxis.set_major_locator(MaxNLocator(5))
        if values:
            axis.set_xlim(0.93 * min(values), 1.07 * max(values))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """``950``, ``20k``, ``1.2M``."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def overfitting(story: Story, make: MakeFigure) -> list[Any]:
    """Training, held-out and test loss of every finished network, one row each: a wide row has overfitted."""
    networks = [record for record in story.networks if record.get("train_loss") is not None]
    rounds = [record for record in story.rounds if record.get("train_loss") is not None]
    figures = []
    for records, draw in ((rounds, _loss_by_round), (networks, _loss_rows)):
        if records:
            figures.append(make(PANEL, max(3.4, 1.8 + 0.32 * len(networks))))
            draw(figures[-1].subplots(), records)
            legend_below(figures[-1])
    return figures


def _loss_by_round(axis: Any, rounds: Sequence[Record]) -> None:
    colour = role_colour("planted")
    numbers = [record["round"] for record in rounds]
    train, val = ([record.get(key) for record in rounds] for key in ("train_loss", "val_loss"))
    axis.plot(numbers, gaps(train), "--o", color=colour, markerfacecolor=PAPER, label="training part")
    axis.plot(numbers, gaps(val), "-o", color=colour, label="held-out part")
    axis.set_title("The network, round by round")
    axis.set_xlabel("round (0 = initial network)")
    axis.set_ylabel("cross entropy (nats)")
    whole_numbers(axis)


def _loss_rows(axis: Any, networks: Sequence[Record]) -> None:
    parts = (("train_loss", "o", False), ("val_loss", "o", True), ("test_loss", "D", True))
    for row, record in enumerate(reversed(networks)):
        colour = role_colour(str(record.get("role")))
        losses = [record[key] for key, _, _ in parts if record.get(key) is not None]
        axis.plot([min(losses), max(losses)], [row, row], color=colour, linewidth=2, alpha=0.45)
        for key, marker, filled in parts:
            if record.get(key) is not None:
                face = colour if filled else PAPER
                axis.plot(record[key], row, marker, color=colour, markerfacecolor=face, markersize=7)
    axis.set_yticks(range(len(networks)), [str(record["name"]) for record in reversed(networks)])
    axis.set_ylim(-0.6, len(networks) - 0.4)
    axis.set_title("Finished networks")
    axis.set_xlabel("cross entropy (nats)")
    for label, marker, face in (("training", "o", PAPER), ("held out", "o", INK), ("test", "D", INK)):
        axis.plot([], [], marker, color=INK, markerfacecolor=face, label=label, linestyle="none")


def learning_curves(story: Story, make: MakeFigure) -> list[Any]:
    """Loss against epochs of every network that was trained as a whole."""
    figures = []
    for name, records in story.curves.items():
        if len(records) < 2:
            continue
        figures.append(make(PANEL, 3.4))
        axis = figures[-1].subplots()
        colour = role_colour(str(records[0].get("phase")))
        epochs = [record["epoch"] for record in records]
        axis.plot(epochs, gaps([r.get("train_loss") for r in records]), "--", color=colour, label="training")
        axis.plot(epochs, gaps([r.get("val_loss") for r in records]), "-", color=colour, label="held out")
        axis.set_title(name)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss (nats)")
        whole_numbers(axis)
        legend_below(figures[-1])
    return figures


def gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = axis.get_xlim()
    most = 25 if is_wide(axis.figure) and last - first < 25 else 8
    axis.xaxis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))


def is_wide(figure: Any) -> bool:
    """Whether a figure is as wide as the page, and no panel."""
    return bool(figure.get_figwidth() > PANEL)
