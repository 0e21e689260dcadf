"""Schedule-free optimizers keep other weights in the model while they train than those they have averaged.

In training mode the model holds the point at which gradients are computed; ``optimizer.eval()`` puts the average in its
place, which is what is to be evaluated and stored. ``merge`` sees a model, not its optimizer: so those that have a
training mode are remembered when they step, from the first ``plant`` on.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

_SEEN: weakref.WeakSet[Optimizer] = weakref.WeakSet()
_watching: list[Any] = []


def watch() -> None:
    """Remember, from now on, optimizers with a training mode that make a step."""
    if not _watching:
        _watching.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if hasattr(optimizer, "train_mode") or any("train_mode" in group for group in optimizer.param_groups):
        _SEEN.add(optimizer)


def warn_in_training_mode(parameters: Iterable[nn.Parameter], by: str) -> None:
    """Warn if ``by`` takes ``parameters`` as they are, and an optimizer of them is in training mode."""
    wanted = {id(parameter) for parameter in parameters}
    for optimizer in list(_SEEN):
        for group in optimizer.param_groups:
            training = group.get("train_mode", getattr(optimizer, "train_mode", False))
            if training and not wanted.isdisjoint(map(id, group["params"])):
                warnings.warn(
                    f"{by}: {type(optimizer).__name__} is in training mode, so the weights that are taken are those at "
                    "which it computes gradients, not their average, which is to be evaluated and stored. Call "
                    "optimizer.eval() before. To train on from here, leave it in training mode: plantops.carry_state "
                    "then needs state and planted_state both in it.",
                    stacklevel=3,
                )
                return
