"""What a training minimises: one forward value and one backward through the student's logits per batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from plantops import functional
from plantops.train.adversarial import Adversarial
from plantops.train.recipe import Recipe

Objective = Callable[[Tensor, Tensor, Tensor | None, Callable[[Tensor], Tensor]], Tensor]
"""``objective(logits, labels, teacher_logits, scale)`` runs the backward of ``scale(mean loss over the batch)`` and
returns the unscaled loss, without a graph and without waiting for the device."""


def make_objective(recipe: Recipe, seed: int = 0) -> Objective:
    """The objective that ``recipe`` names; ``seed``: of what it draws."""
    if recipe.objective == "adversarial":
        return Adversarial(recipe.discriminator_lr, seed)
    if recipe.objective == "ce":
        return _cross_entropy(recipe.label_smoothing)
    if recipe.objective == "kl":
        return _kl_to_teacher(recipe.temperature)
    return _distillation(recipe.alpha, recipe.temperature, recipe.label_smoothing)


def _cross_entropy(label_smoothing: float) -> Objective:
    def objective(logits: Tensor, labels: Tensor, teacher: Tensor | None, scale: Callable[[Tensor], Tensor]) -> Tensor:
        loss = F.cross_entropy(full_precision(logits), labels, label_smoothing=label_smoothing)
        scale(loss).backward()
        return loss.detach()

    return objective


def _kl_to_teacher(temperature: float) -> Objective:
    """Value and gradient come from one fused pass over the logits; autograd begins at the logits."""

    def objective(logits: Tensor, labels: Tensor, teacher: Tensor | None, scale: Callable[[Tensor], Tensor]) -> Tensor:
        assert teacher is not None
        logits = full_precision(logits)  # a scaled gradient must not be rounded to half precision before it is scaled
        loss, gradient = functional.kl_div_logits_value_and_grad(logits.detach(), teacher, temperature)
        logits.backward(scale(gradient))
        return loss

    return objective


def _distillation(alpha: float, temperature: float, label_smoothing: float) -> Objective:
    def objective(logits: Tensor, labels: Tensor, teacher: Tensor | None, scale: Callable[[Tensor], Tensor]) -> Tensor:
        assert teacher is not None
        # No label of a part says to ignore its row: nothing has to look for one.
        loss = functional.distillation_loss(
            logits,
            teacher,
            labels,
            alpha=alpha,
            temperature=temperature,
            label_smoothing=label_smoothing,
            ignore_index=None,
        )
        scale(loss).backward()
        return loss.detach()

    return objective


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits in float32; others as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def make_optimizer(recipe: Recipe, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that ``recipe`` names, over ``parameters`` alone.

    Fused: one call updates all of them, instead of a handful for each.
    """
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True, capturable=parameters[0].is_cuda
    )
