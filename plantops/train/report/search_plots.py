"""The figures about the search. Each takes a story and an empty figure's maker, and returns its panels.

Those that are as wide as the page (``widths``, ``candidates``) are drawn a second time by a maker of panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plantops.train.report.plots import PANEL, WIDE, MakeFigure, is_wide, legend_below, shared_log_x, whole_numbers
from plantops.train.report.story import Story, sites_of
from plantops.train.report.style import INK, LAYERS, MARKERS, PAPER, role_colour


def widths(story: Story, make: MakeFigure) -> list[Any]:
    """Channels of every layer after every round, stacked; the layer that grew is outlined."""
    rounds = [record for record in story.rounds if record.get("widths")]
    if not rounds:
        return []
    layers = list(rounds[-1]["widths"])
    figure = make(WIDE, 4.4)
    axis = figure.subplots()
    most = 30 if is_wide(figure) else 12
    numbers = [record["round"] for record in rounds]
    base = [0] * len(rounds)
    tallest = max(sum(record["widths"].values()) for record in rounds)
    for place, layer in enumerate(layers):
        heights = [record["widths"].get(layer, 0) for record in rounds]
        colour = LAYERS[place % len(LAYERS)]
        axis.bar(numbers, heights, 0.78, bottom=base, color=colour, edgecolor=PAPER, linewidth=1, label=layer)
        for record, height, before, bottom in zip(rounds, heights, [0, *heights], base, strict=False):
            if height >= tallest / 26 and len(rounds) <= most:
                grew = layer in sites_of(record)
                text = f"+{height - before} = {height}" if grew and len(rounds) <= most // 2 else str(height)
                weight = "bold" if grew else "normal"
                middle = bottom + height / 2
                axis.text(
                    record["round"], middle, text, ha="center", va="center", color="#ffffff", size=8, weight=weight
                )
        base = [bottom + height for bottom, height in zip(base, heights, strict=True)]
    axis.set_xlabel("round (0 = initial network)")
    axis.set_ylabel("channels")
    axis.grid(False, axis="x")
    axis.set_xlim(-0.7 + numbers[0], max(numbers[-1], numbers[0] + 3) + 0.7)
    whole_numbers(axis)
    legend_below(figure)
    return [figure]


def candidates(story: Story, make: MakeFigure) -> list[Any]:
    """Held-out loss of every candidate of every round, the winner ringed, beside the loss of not growing."""
    if not story.candidates:
        return []
    sites = list(dict.fromkeys(str(record["site"]) for records in story.candidates.values() for record in records))
    layers = list((story.rounds[0].get("widths") or {}) if story.rounds else {})
    order = [layer for layer in layers if layer in sites] + [site for site in sites if site not in layers]
    figure = make(WIDE, 4.6)
    axis = figure.subplots()
    for number, loss in story.grown_losses().items():
        if loss is not None:
            label = "do not grow" if number == min(story.candidates) else None
            axis.plot([number - 0.4, number + 0.4], [loss, loss], color=INK, linewidth=1.6, label=label)
    for site in order:
        place = (layers or order).index(site) if site in (layers or order) else order.index(site)
        found = [
            (number + 0.12 * (order.index(site) - (len(order) - 1) / 2), record["val_loss"])
            for number, records in story.candidates.items()
            for record in records
            if record["site"] == site and record.get("val_loss") is not None
        ]
        if found:
            across, up = zip(*found, strict=True)
            colour, marker = LAYERS[place % len(LAYERS)], MARKERS[place % len(MARKERS)]
            axis.plot(across, up, marker, color=colour, label=site, linestyle="none")
    _ring_winners(axis, story, order)
    axis.set_xlabel("round")
    axis.set_ylabel("held-out cross entropy (nats)")
    first, last = min(story.candidates), max(story.candidates)
    axis.set_xlim(first - 0.6, max(last, first + 2) + 0.6)
    axis.grid(False, axis="x")
    whole_numbers(axis)
    legend_below(figure)
    return [figure]


def _ring_winners(axis: Any, story: Story, order: Sequence[str]) -> None:
    label: str | None = "winner"
    for number, records in story.candidates.items():
        for record in records:
            if record["site"] in story.winners(number) and record.get("val_loss") is not None:
                across = number + 0.12 * (order.index(record["site"]) - (len(order) - 1) / 2)
                axis.plot(
                    across, record["val_loss"], "o", markersize=12, markerfacecolor="none", markeredgecolor=INK,
                    markeredgewidth=1.4, label=label,
                )  # fmt: skip
                label = None


def cost(story: Story, make: MakeFigure) -> list[Any]:
    """Held-out accuracy against multiply-accumulates, and the seconds of every round."""
    rounds = [record for record in story.rounds if record.get("macs")]
    timed = {
        number: sum(record.get("candidate_seconds") or 0.0 for record in records)
        for number, records in story.candidates.items()
    }
    if not rounds or not timed:
        return []
    figures = [make(PANEL, 3.8), make(PANEL, 3.8)]
    left, right = (figure.subplots() for figure in figures)
    colour = role_colour("planted")
    pairs = [(r["macs"], 100 * r["val_accuracy"]) for r in rounds if r.get("val_accuracy") is not None]
    if pairs:
        left.plot(*zip(*pairs, strict=True), "-o", color=colour, label="planting, round by round")
    uniform = [r for r in story.of_role("uniform") if r.get("macs") and r.get("val_accuracy") is not None]
    if uniform:
        across = [record["macs"] for record in uniform]
        up = [100 * record["val_accuracy"] for record in uniform]
        left.plot(across, up, "-s", color=role_colour("uniform"), label="uniform networks")
    left.set_title("Held-out accuracy and arithmetic")
    left.set_xlabel("multiply-accumulates per image")
    left.set_ylabel("accuracy (%)")
    shared_log_x([left])
    right.bar(list(timed), list(timed.values()), 0.7, color=colour)
    right.set_title("Time of every round")
    right.set_xlabel("round")
    right.set_ylabel("seconds for all candidates")
    right.set_xlim(min(timed) - 0.7, max(max(timed), min(timed) + 3) + 0.7)
    right.grid(False, axis="x")
    whole_numbers(right)
    legend_below(figures[0])
    return figures
