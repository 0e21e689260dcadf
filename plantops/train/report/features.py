"""What networks make of the same images, side by side: embeddings of their features, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plantops.train.report.plots import PANEL, MakeFigure, legend_below
from plantops.train.report.style import LAYERS, MARKERS, ROLES

COLOURS = (*LAYERS, ROLES["uniform"], ROLES["teacher"])
"""Of classes; those behind the tenth have another marker."""
MOST_NAMED = 20


@dataclass(frozen=True)
class Panel:
    """One network's features of all images.

    Attributes:
        name: of the network.
        points: one (x, y) an image.
        kl: what the embedding could not keep, in nats.
        agreement: share of the images whose nearest neighbour among the features has their class.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kl: float
    agreement: float


@dataclass(frozen=True)
class Features:
    """Panels of the same images, with their classes."""

    panels: Sequence[Panel]
    labels: Sequence[int]
    class_names: Sequence[str]
    q: float
    perplexity: float


def scatter(features: Features, make: MakeFigure) -> list[Any]:
    """One scatter plot a network, the classes in the same colours in all of them."""
    classes = sorted(set(features.labels))
    figures = []
    for panel in features.panels:
        figures.append(make(PANEL, 5.0))
        axis = figures[-1].subplots()
        for place in classes:
            chosen = [point for point, label in zip(panel.points, features.labels, strict=True) if label == place]
            marker = MARKERS[place // len(COLOURS) % len(MARKERS)]
            axis.plot(
                *zip(*chosen, strict=True), marker, color=COLOURS[place % len(COLOURS)], markersize=2.6, alpha=0.8,
                markeredgewidth=0, linestyle="none", label=_name(features, place),
            )  # fmt: skip
        axis.set_title(panel.name)
        axis.set_xlabel(f"neighbours of one class {100 * panel.agreement:.0f} %, KL {panel.kl:.2f}")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        axis.set_aspect("equal", adjustable="datalim")
        if len(classes) <= MOST_NAMED:
            legend_below(figures[-1], markerscale=2.2)
    return figures


def _name(features: Features, place: int) -> str:
    return features.class_names[place] if place < len(features.class_names) else str(place)
