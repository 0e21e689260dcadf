"""An average of the weights (``AveragedModel``) of a model from before it grew says so, instead of averaging others.

torch pairs the parameters of the average and of the model in their order, as far as the shorter list goes. Once the
model has grown these are other parameters: an error about shapes, or none where the shapes happen to fit.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

_watching: list[Any] = []


def watch_averages() -> None:
    """Look at what ``AveragedModel.update_parameters`` is given, from now on."""
    if _watching:
        return
    update = AveragedModel.update_parameters

    @functools.wraps(update)
    def checked(self: AveragedModel, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _check(self, model)
        return update(self, model, *args, **kwargs)

    AveragedModel.update_parameters = checked  # type: ignore[method-assign]
    _watching.append(checked)


def _check(average: AveragedModel, model: nn.Module) -> None:
    pairs = itertools.zip_longest(average.module.named_parameters(), model.named_parameters())
    for own, other in pairs:
        shapes = [None if one is None else list(one[1].shape) for one in (own, other)]
        if shapes[0] != shapes[1]:
            names = ["nothing" if one is None else f"{one[0]} {list(one[1].shape)}" for one in (own, other)]
            raise RuntimeError(
                f"AveragedModel holds {names[0]} where the model has {names[1]}: it is an average of the model from "
                "before it was planted, merged or pruned. Make a new one, or, to keep what it has averaged, call "
                "plantops.carry_state(average, planted, merged) once the model is merged."
            )
