"""Controls of a search: what one would train instead, under the same teacher, for as many epochs.

A claim of a search is worth nothing without them: the uniform network just above the planted one's size, the found
widths from new weights, and a wider network pruned to the size.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import nn

from plantops.graph import Plan, trace
from plantops.models import count_parameters
from plantops.planting.networks import describe
from plantops.planting.pruned import SAMPLES
from plantops.pruning.cut import remove_channels
from plantops.pruning.prune import prune
from plantops.pruning.samples import draw_samples
from plantops.train.recipe import Recipe
from plantops.train.teacher_logits import TeacherLogits

if TYPE_CHECKING:
    from plantops.planting.experiment import Family, Stage

ROLE = "control"
WIDER = 2
"""How many times the planted network's parameters the network has that is pruned to its size."""


def uniform_width(family: Family, parameters: int) -> int:
    """The smallest width of a uniform network with at least so many parameters."""
    width = 1
    while count_parameters(family.build([width] * 5, 0, "size")) < parameters:
        width += 1
    return width


def train_controls(stage: Stage, family: Family, planted: Any, recipe: Recipe, teacher: TeacherLogits) -> None:
    """Train the three controls of ``planted`` by ``recipe``, each for all of its epochs.

    The pruned one trains for half of them, loses the channels that it misses least for what they cost, and trains for
    the rest.
    """
    size, seed = count_parameters(planted), stage.seed
    how: dict[str, Any] = {"teacher": teacher, "may_diverge": True}
    width = uniform_width(family, size)
    name = f"uniform-{width}"
    if name not in {entry.name for entry in stage.entries}:
        uniform = family.build([width] * 5, seed, name)
        stage.train(uniform, recipe, phase="uniform", name=name, **how)
    stage.train(family.build(describe(planted)["widths"], seed, "scratch"), recipe, phase=ROLE, name="scratch", **how)

    first = dataclasses.replace(recipe, epochs=max(1, recipe.epochs // 2))
    rest = dataclasses.replace(recipe, epochs=max(1, recipe.epochs - first.epochs))
    begin = family.build([uniform_width(family, WIDER * size)] * 5, seed, "wide")
    wide = stage.train(begin, first, phase=ROLE, name="wide", keep=False, **how)
    pruned = _pruned(stage, wide, size)
    stage.train(pruned, rest, phase=ROLE, name="pruned", earlier_epochs=first.epochs, **how)


def _pruned(stage: Stage, wide: nn.Module, size: int) -> nn.Module:
    """``wide`` without the channels that its loss misses least per parameter, down to ``size``."""
    images = stage.parts.train.normalise(stage.parts.train.images[:2])

    def decide() -> dict[str, Any]:
        batches = draw_samples(stage.parts.train, SAMPLES, stage.seed, 0)
        result = prune(wide, _plan(wide, images), batches, max_parameters=size, criterion="loss_per_parameter")
        return {"steps": [step.removed for step in result.steps]}

    pruned = wide
    for removed in stage.session.once("control/pruned", decide)["steps"]:
        pruned = remove_channels(pruned, _plan(pruned, images), removed)
    return pruned


def _plan(model: nn.Module, images: Any) -> Plan:
    return trace(model, (images,), grow_linear=False)
