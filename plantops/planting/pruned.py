"""Pruning between two rounds of a search: the trunk without the channels that nobody misses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from plantops.graph import Plan, trace
from plantops.planting.candidate import Student, Surroundings
from plantops.pruning.cut import remove_channels
from plantops.pruning.prune import prune
from plantops.pruning.samples import draw_samples
from plantops.train.session import finite

GIVEN_BACK = 0.1
"""Share of what the growths since the last pruning gained in held-out loss that pruning may cost."""
SAMPLES = 1024
"""Training images that channels are scored on."""
HOW: dict[str, Any] = {"criterion": "loss", "share": 0.1}
"""As in ``plantops.prune``."""

Removal = dict[str, list[int]]
"""Channels by site, numbered as the network is when they go."""


@dataclass(frozen=True)
class Pruned:
    """What pruning took after a round. Losses are cross entropies (nats), before and after.

    Attributes:
        round: the round behind which it was.
        max_loss_increase: what it was allowed to cost; None where it was pruned to a size.
        removed: how many channels went, by site; empty where each is missed.
        widths, parameters, macs: of the network that the search goes on from.
        sample_loss: over the training images that channels were scored on.
        val_loss: over the held-out part.
        val_accuracy: of the network that the search goes on from.
    """

    round: int
    max_loss_increase: float | None
    removed: dict[str, int]
    widths: dict[str, int]
    parameters: int
    macs: int
    sample_loss: tuple[float | None, float | None]
    val_loss: tuple[float | None, float | None]
    val_accuracy: float | None


def prune_student(
    around: Surroundings,
    student: Student,
    round: int,
    sites: Iterable[str],
    losses: tuple[float | None, float | None],
    score: Callable[[nn.Module], dict[str, Any]],
) -> tuple[Student, Pruned]:
    """``student`` without the channels of ``sites`` that its losses miss least, and what that was.

    Channels go as ``plantops.prune`` takes them, as long as the loss over training images drawn by (seed, round) grows
    by no more than a tenth of what the growths since the last pruning gained; of these steps as many are kept as cost
    no more than that in held-out loss either. So a pruning never costs what was gained before it.

    Args:
        losses: held-out, of the network behind the last pruning (or the initial one) and of ``student``.
        score: held-out ``loss`` and ``accuracy`` of a network.
    """
    names = set(sites)
    before, val_loss = losses
    allowed = 0.0 if before is None or val_loss is None else GIVEN_BACK * max(before - val_loss, 0.0)

    def decide() -> dict[str, Any]:
        return _decided(around, student, round, names, allowed, score)

    decision = around.session.once(f"pruned/{round}", decide)
    return _after(around, student, round, names, decision, allowed, val_loss)


def shrink_student(
    around: Surroundings,
    student: Student,
    round: int,
    sites: Iterable[str],
    max_parameters: int,
    val_loss: float | None,
    score: Callable[[nn.Module], dict[str, Any]],
) -> tuple[Student, Pruned]:
    """``student`` without the channels of ``sites`` that its loss misses least for what they cost, down to
    ``max_parameters``, and what that was. ``val_loss``: of ``student``."""
    names = set(sites)

    def decide() -> dict[str, Any]:
        batches = draw_samples(around.train, SAMPLES, around.config.seed, round)
        plan = _sites(around, student.model, names)
        result = prune(student.model, plan, batches, max_parameters=max_parameters, criterion="loss_per_parameter")
        return {
            "steps": [step.removed for step in result.steps],
            "sample_loss": [finite(loss) for loss in result.loss],
            "val": score(result.model),
        }

    decision = around.session.once(f"shrunk/{round}", decide)
    return _after(around, student, round, names, decision, math.inf, val_loss)


def _decided(
    around: Surroundings,
    student: Student,
    round: int,
    names: set[str],
    allowed: float,
    score: Callable[[nn.Module], dict[str, Any]],
) -> dict[str, Any]:
    """The removals, and the losses before and after them: JSON values."""
    batches = draw_samples(around.train, SAMPLES, around.config.seed, round)
    plan = _sites(around, student.model, names)
    result = prune(student.model, plan, batches, max_loss_increase=allowed, **HOW)
    networks = [student.model]
    for step in result.steps:
        networks.append(remove_channels(networks[-1], _sites(around, networks[-1], names), step.removed))
    vals = [score(network) for network in networks]
    # The student's own score competes: measured in the same way, it is no victim of rounding.
    limit = math.inf if vals[0]["loss"] is None else vals[0]["loss"] + allowed
    fits = [n for n, val in enumerate(vals) if n == 0 or (val["loss"] is not None and val["loss"] <= limit)]
    kept = fits[-1]
    sample_losses = [result.loss[0], *(step.loss for step in result.steps)]
    return {
        "steps": [step.removed for step in result.steps[:kept]],
        "sample_loss": [finite(sample_losses[0]), finite(sample_losses[kept])],
        "val": vals[kept],
    }


def _after(
    around: Surroundings,
    student: Student,
    round: int,
    names: set[str],
    decision: dict[str, Any],
    allowed: float,
    val_loss: float | None,
) -> tuple[Student, Pruned]:
    """The network that is left, and what was taken from ``student``."""
    model = student.model
    for removal in decision["steps"]:
        model = remove_channels(model, _sites(around, model, names), removal)
    after = student if model is student.model else Student.of(model, around)
    removed = {
        name: site.width - after.plan[name].width
        for name, site in student.plan.items()
        if site.width > after.plan[name].width
    }
    pruned = Pruned(
        round,
        finite(allowed),
        removed,
        after.widths,
        after.parameters,
        after.macs,
        tuple(decision["sample_loss"]),
        (val_loss, decision["val"]["loss"]),
        decision["val"]["accuracy"],
    )
    return after, pruned


def _sites(around: Surroundings, model: nn.Module, names: set[str]) -> Plan:
    plan = trace(model, around.example_inputs, grow_linear=around.config.grows_linear(model))
    return Plan([site for site in plan.values() if site.name in names])
