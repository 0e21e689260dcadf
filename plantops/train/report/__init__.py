"""``report.html``: what a run did, in plots and numbers, from ``config.json`` and ``metrics.jsonl`` alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plantops.train.files import atomic_write_text
from plantops.train.report import plots, search_plots
from plantops.train.report.features import Features, scatter
from plantops.train.report.page import card, cards, document, either, escape, figure, pairs, paragraph, section, table
from plantops.train.report.story import (
    OWN_PATH,
    Record,
    Story,
    headline,
    number,
    percent,
    read_story,
    seconds,
    warnings,
)
from plantops.train.report.style import drawing, role_colour, to_svg

__all__ = ["REPORT", "write_report"]

REPORT = "report.html"


def write_report(
    run_path: str | os.PathLike[str],
    compare: Sequence[str | os.PathLike[str]] = (),
    features: Features | str | None = None,
) -> Path:
    """Write ``report.html`` into a run's folder; a run that still goes on, or was interrupted, is told as far as it is.

    The file needs no network and no other file. The test part appears only where a finished network was measured on it.

    Args:
        compare: other runs whose networks are drawn beside this one's.
        features: embeddings of the networks' features, or in words why there are none; None: not spoken of.

    Returns:
        The path of the report.

    Raises:
        RunError: no run there, or a damaged one; the disk is full. MissingExtra (a RunError): matplotlib is missing.
    """
    story = read_story(Path(run_path), [Path(other) for other in compare])
    target = Path(run_path) / REPORT
    atomic_write_text(target, render(story, features))
    return target


def render(story: Story, features: Features | str | None = None) -> str:
    """The page as text."""
    with drawing() as make:

        def draw(key: str, plot: Callable[..., Any], description: str, caption: str, *more: str) -> str:
            panels = []
            for place, drawn in enumerate(plot(story, make, *more), 1):
                svg = to_svg(drawn, f"{key}-{place}")
                if plots.is_wide(drawn):
                    (again,) = plot(story, lambda _, height: make(plots.PANEL, height), *more)
                    svg = either(svg, to_svg(again, f"{key}-narrow"))
                panels.append(svg)
            return figure(panels, description, caption) if panels else ""

        body = [
            *_top(story),
            section("Accuracy and loss against size", _sizes(draw)),
            section("Finished networks", [_network_table(story)]),
            section("Training and held-out loss", _overfitting(draw)),
            section("The search, round by round", _search(story, draw)),
            section("What the networks see", _features(features, make)),
            section("Cost", _costs(story, draw)),
            section("How it was made", _making(story)),
        ]
    return document(f"{story.name}: plantops on {story.data}", body)


Draw = Callable[..., str]


def _top(story: Story) -> list[str]:
    kind = "Channel planting" if story.searches else "Training"
    samples = ", ".join(
        f"{record['samples']:,} {word}"
        for part, word in (("train", "training"), ("val", "held-out"), ("test", "test"))
        if (record := story.parts.get(part))
    )
    about = f"Run {story.name}" + (f" · {samples} images" if samples else "")
    state = story.state()
    return [
        f"<header>\n<h1>{kind} on {escape(story.data)}</h1>",
        paragraph(about, "soft"),
        *(paragraph(text, "notice") for text in (state, *warnings(story)) if text),
        paragraph(" ".join(headline(story)), "lead"),
        cards(_summary_cards(story)),
        "</header>",
    ]


def _summary_cards(story: Story) -> list[str]:
    shown = [record for role in ("teacher", *OWN_PATH) for record in story.of_role(role)]
    shown += [*story.of_role("uniform"), *story.of_role("control")]
    return [
        card(
            f"{record['name']}",
            percent(record.get("test_accuracy")),
            [
                "test accuracy",
                f"test loss {number(record.get('test_loss'))}",
                f"{record['parameters']:,} parameters",
                f"{plots.short(record['macs'])} MACs an image" if record.get("macs") else "",
            ],
            role_colour(str(record.get("role"))),
        )
        for record in shown
    ]


def _sizes(draw: Draw) -> list[str]:
    return [
        draw(
            "accuracy",
            plots.against_parameters,
            "Accuracy against the number of parameters, for every round of planting and for uniform networks",
            "Accuracy against parameters. Each round of planting adds one point (hollow: the initial network). The "
            "dashed line is the teacher. Rounds are chosen on the held-out part, so the test part, which is read once "
            "at the end, is the fair comparison.",
            "accuracy",
        ),
        draw(
            "loss",
            plots.against_parameters,
            "Cross entropy against the number of parameters, for every round of planting and for uniform networks",
            "Cross entropy against parameters, of the same networks. Lower is better.",
            "loss",
        ),
    ]


def _overfitting(draw: Draw) -> list[str]:
    return [
        draw(
            "overfitting",
            plots.overfitting,
            "Training, held-out and test loss of the network in every round and of every finished network",
            "Cross entropy of one and the same network on the images it was trained on and on images it never saw. The "
            "distance between the marks is the overfitting.",
        ),
        draw(
            "curves",
            plots.learning_curves,
            "Training and held-out loss of every network against epochs",
            "Epoch by epoch. Held out: cross entropy. Training: the loss that was minimised, under augmentation and "
            "while the weights changed; where it is the distillation loss its level is not comparable.",
        ),
    ]


def _search(story: Story, draw: Draw) -> list[str]:
    parts = [
        draw(
            "candidates",
            search_plots.candidates,
            "Held-out loss of every candidate in every round, with the winner and the loss of not growing",
            "Held-out loss of every candidate. The bar is the network before the round: a candidate above it is worse "
            "than not growing. The ring marks the winner; a round without one ended the search or has not ended yet.",
        ),
        draw(
            "widths",
            search_plots.widths,
            "Channels of every layer after every round",
            "Channels per layer after every round; the layer that grew is in bold.",
        ),
        _pruning_table(story),
    ]
    if story.searches and not any(parts):
        return [paragraph("No round of the search is finished yet.", "soft")]
    return parts


def _features(features: Features | str | None, make: plots.MakeFigure) -> list[str]:
    if features is None:
        return []
    if isinstance(features, str):
        return [paragraph(f"Not shown: {features}.", "soft")]
    caption = (
        f"{len(features.labels):,} held-out images as each network's last linear layer gets them, embedded by q-SNE "
        f"(q = {features.q:g}, perplexity {features.perplexity:g}); colours are the true classes. Distances between "
        "groups mean little. Below: the share of images whose nearest neighbour among the features is of their class, "
        "and what the embedding could not keep."
    )
    description = f"Features of held-out images in {', '.join(panel.name for panel in features.panels)}"
    panels = [to_svg(drawn, f"features-{place}") for place, drawn in enumerate(scatter(features, make), 1)]
    return [figure(panels, description, caption)]


def _pruning_table(story: Story) -> str:
    """What was pruned between rounds."""
    if not story.prunings:
        return ""
    sizes = {record["round"]: record["parameters"] for record in story.rounds}
    rows = [
        [
            str(after),
            ", ".join(f"{site} -{count}" for site, count in record["removed"].items()) or "nothing",
            f"{sizes.get(after, 0):,} \u2192 {record['parameters']:,}",
            *(" \u2192 ".join(map(number, record[key])) for key in ("sample_loss", "val_loss")),
        ]
        for after, record in story.prunings.items()
    ]
    columns = ["after round", "pruned channels", "parameters", "loss on training samples", "held-out loss"]
    about = (
        "Between rounds the network was pruned: channels went as long as neither the loss over drawn training samples "
        "nor the held-out loss grew by more than a tenth of the held-out loss that the growths before had gained."
    )
    return paragraph(about) + table(columns, rows, text_columns=2)


def _costs(story: Story, draw: Draw) -> list[str]:
    return [
        draw(
            "cost",
            search_plots.cost,
            "Held-out accuracy against multiply-accumulates, and the seconds of every round",
            "What the network costs to use, and what each round cost to find.",
        ),
        _round_table(story),
    ]


def _round_table(story: Story) -> str:
    columns = [
        "round", "grew", "channels", "parameters", "MACs", "training loss", "held-out loss",
        "held-out accuracy", "time",
    ]  # fmt: skip
    rows = [
        [
            str(record["round"]),
            str(record.get("grown") or "-"),
            f"+{record['channels']}" if record.get("channels") else "-",
            f"{record['parameters']:,}",
            f"{record['macs']:,}" if record.get("macs") else "-",
            number(record.get("train_loss")),
            number(record.get("val_loss")),
            percent(record.get("val_accuracy")),
            seconds(record.get("round_seconds")) if record["round"] else "-",
        ]
        for record in story.rounds
    ]
    return table(columns, rows, text_columns=2)


def _network_table(story: Story) -> str:
    tellers = (story, *story.others)
    columns = [
        "network", *(["run"] if story.others else []), "widths", "parameters", "MACs", "loss", "epochs",
        "training loss", "held\u2011out loss", "test loss", "held\u2011out accuracy", "test accuracy", "time",
    ]  # fmt: skip
    rows: list[list[str]] = []
    marked: list[int] = []
    for teller in tellers:
        for record in teller.networks:
            if record.get("role") in ("planted", "finetuned", "retrained") and teller is story:
                marked.append(len(rows))
            rows.append(
                [
                    str(record["name"]),
                    *([teller.name] if story.others else []),
                    _widths(record),
                    f"{record['parameters']:,}",
                    plots.short(record["macs"]) if record.get("macs") else "-",
                    str(record.get("loss") or "-"),
                    str(record["epochs"]) if record.get("epochs") is not None else "-",
                    *(number(record.get(f"{part}_loss")) for part in ("train", "val", "test")),
                    *(percent(record.get(f"{part}_accuracy")) for part in ("val", "test")),
                    seconds(_time(record)),
                ]
            )
    return table(columns, rows, text_columns=3 if story.others else 2, marked=marked)


def _widths(record: Record) -> str:
    """``5 x 16``, or ``8-24-16-8-8`` where they differ."""
    widths = list((record.get("widths") or {}).values())
    if len(widths) > 1 and len(set(widths)) == 1:
        return f"{len(widths)} \u00d7 {widths[0]}"
    return "-".join(map(str, widths)) or "-"


def _time(record: Record) -> float | None:
    """The record's seconds, whatever they are called."""
    found = [value for name, value in record.items() if name.endswith("_seconds") and value]
    return sum(found) if found else None


def _making(story: Story) -> list[str]:
    fingerprints = {
        f"{part} part": f"{record['samples']:,} samples, SHA-256 {str(record.get('fingerprint'))[:16]}"
        for part, record in story.parts.items()
    }
    return [
        "<details open><summary>Configuration</summary>" + pairs(story.config) + "</details>" if story.config else "",
        "<details><summary>Machine and software</summary>" + pairs(story.environment) + "</details>",
        "<details><summary>Data</summary>" + pairs(fingerprints) + "</details>" if fingerprints else "",
    ]
