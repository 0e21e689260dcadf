"""Bring an optimizer, or an average of the weights, from a model before it grew to the one after."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from plantops._arguments import check_type
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.planting.blocks import PLANTED
from plantops.planting.carry_optimizer import carry_optimizer
from plantops.planting.merge import merge
from plantops.planting.trunk import trunk_state


def carry_state(state: Any, planted: nn.Module, merged: nn.Module, planted_state: Any = None) -> Any:
    """Make ``state``, which belongs to the model before it grew, the state of the grown model.

    For those who train everything jointly after a growth::

        planted = plantops.plant(model, site, 8)
        ...                                             # train the planted blocks alone, or not at all
        merged = plantops.merge(planted)
        plantops.carry_state(optimizer, planted, merged, planted_optimizer)

    An **optimizer** is changed in place, so schedulers and scripts that hold it go on. Every parameter of the model
    before (or of its trunk) becomes the parameter of ``merged`` with this name, in the same group, with the same
    settings. A tensor of its state that lies along the parameter (momentum buffers, Adam's moments, sums of squares,
    copies and averages of the weights, also in lists and dictionaries) is put together as the parameter is: old slices
    keep theirs bit for bit, planted slices bring theirs from ``planted_state`` or from ``state`` itself, if it holds
    the planted blocks, too. Slices that nothing has trained begin with what this optimizer makes for a new parameter:
    a twin of it makes a step without gradient over copies of them, so that sums begin at 0 or their initial value, step
    sizes at theirs, and copies of the weights at the weights. Optimizers that it wraps (``Lookahead``) come along.

    A count such as ``step`` stays the old slices', in the state or in the group. Averages that are divided by
    ``1 - beta^step`` come along with the factor ``(1 - beta^step_old) / (1 - beta^step_planted)``, so that the
    corrected values are those that they were; RAdam's rectification is made good in the second moment. Which averages
    those are is found by trying on a small parameter, not by their names.

    What is not understood is refused, naming the optimizer and what it keeps: factors and matrices (Adafactor, SOAP,
    Shampoo), objects and packed tensors, parameters or tensors in attributes or groups.

    Planted blocks held by ``state`` without the layer's old parameters become the whole parameter. Other parameters
    that it holds stay as they are; parameters of ``merged`` that it never held are not added.

    An **average** (``torch.optim.swa_utils.AveragedModel``) gets a grown ``module`` in place: its own averages for the
    old slices and buffers, those of ``planted_state``, an average of ``planted``, for the new ones, or else the
    planted values themselves. An average of ``planted`` is merged.

    A **gradient scaler** (``torch.amp.GradScaler``) needs nothing: its scale belongs to the loss. It is given back as
    it is.

    Args:
        state: a ``torch.optim.Optimizer``, an ``AveragedModel`` or a ``GradScaler``.
        planted: what ``plant`` returned, trained or not, not merged in place.
        merged: ``merge(planted)``.
        planted_state: the same kind of thing over the planted blocks of ``planted``.

    Returns:
        ``state``.

    Raises:
        TypeError: ``state`` or ``planted_state`` is of another kind, or they are optimizers of two kinds; an LBFGS,
            whose state is one vector.
        ValueError: ``planted`` has no planted layers; ``merged`` is of another structure; ``state`` holds nothing of
            the model, or keeps what does not lie along a parameter; what it begins a slice with is not known; a
            schedule-free ``state`` in training mode and ``planted_state`` in evaluation mode, or the other way round.
    """
    for name, model in (("planted", planted), ("merged", merged)):
        check_type(name, model, nn.Module, "a torch.nn.Module")
    if not any(isinstance(module, PLANTED) for module in planted.modules()):
        raise ArgumentError("planted has no planted layers: give the model that plant returned, merged without inplace")
    if isinstance(state, torch.amp.GradScaler):
        return state
    _check_kinds(state, planted_state)
    if isinstance(state, AveragedModel):
        _carry_average(state, planted, planted_state)
    else:
        carry_optimizer(state, planted, merged, planted_state)
    return state


def _check_kinds(state: Any, planted_state: Any) -> None:
    kind = next((kind for kind in (Optimizer, AveragedModel) if isinstance(state, kind)), None)
    if kind is None or isinstance(state, torch.optim.LBFGS):
        expected = "an optimizer (not LBFGS, whose state is one vector), an AveragedModel or a GradScaler"
        raise ArgumentTypeError(f"state must be {expected}, got {type(state).__name__}")
    if planted_state is not None and not isinstance(planted_state, kind):
        raise ArgumentTypeError(
            f"planted_state must be an {kind.__name__}, as state is, got {type(planted_state).__name__}"
        )


def _carry_average(average: AveragedModel, planted: nn.Module, other: AveragedModel | None) -> None:
    before = average.module
    if any(isinstance(module, PLANTED) for module in before.modules()):
        # An average of what never moves is the same to rounding; here to the bit.
        _copy(trunk_state(planted), trunk_state(before))
        average.module = merge(before)
        return
    grown = copy.deepcopy(planted if other is None else other.module)
    old = before.state_dict()
    _copy(old, trunk_state(grown))
    device = next((value.device for value in old.values()), None)
    average.module = merge(grown, inplace=True, check_trunk=False).to(device).train(before.training)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], trunk: Mapping[str, Tensor]) -> None:
    if {key: value.shape for key, value in source.items()} != {key: value.shape for key, value in trunk.items()}:
        raise ArgumentError("state is an average of another model than the one that was planted")
    for key, value in trunk.items():
        value.copy_(source[key])
