"""An optimizer that still holds parameters from before ``plant`` or ``merge`` says so, instead of doing nothing.

``plant`` and ``merge`` note here which parameters they have replaced, and of which they have made copies. A hook on
``Optimizer.step`` looks its parameters up: two dictionary look-ups a parameter, nothing on the device. It is set when
the first parameter is noted, so importing plantops changes no optimizer.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

_REPLACED, _COPIED = WeakIdKeyDictionary(), WeakIdKeyDictionary()
_REMEDY = (
    "Make a new optimizer over the parameters that train now (plantops.planting.planted_parameters(model) after plant, "
    "model.parameters() after merge), or, to keep its state, call plantops.carry_state(optimizer, planted, merged) "
    "once the model is merged"
)


def note_replaced(parameters: Mapping[str, nn.Parameter], by: str) -> None:
    """These parameters are no longer part of the model that they were of; ``by``: what replaced them. Their gradients
    are dropped: one that comes later shows that something else uses them."""
    for parameter in parameters.values():
        parameter.grad = None
    _note(_REPLACED, parameters, by)


def note_copied(parameters: Mapping[str, nn.Parameter], by: str) -> None:
    """``by`` gave a copy of the model of these parameters, which may be trained further or not."""
    _note(_COPIED, parameters, by)


def _note(where: WeakIdKeyDictionary, parameters: Mapping[str, nn.Parameter], by: str) -> None:
    if not _REPLACED and not _COPIED and not _watching:
        _watching.append(register_optimizer_step_pre_hook(_check))
    for name, parameter in parameters.items():
        where[parameter] = (name, by)


_watching: list[Any] = []


def _check(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise ``RuntimeError`` where a step would move nothing that the model still uses.

    A parameter that was replaced is used no more, unless it has got a gradient since. Those of a model that was copied
    may well be: there it is an error only if no parameter at all has a gradient and no closure will compute one.
    """
    if torch.compiler.is_compiling():
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        if parameter.grad is None and parameter in _REPLACED:
            name, by = _REPLACED[parameter]
            raise RuntimeError(
                f"optimizer holds {name}, which {by} has replaced: stepping it would not train the model. {_REMEDY}."
            )
    if len(args) > 1 or kwargs or any(parameter.grad is not None for parameter in parameters):
        return
    for parameter in parameters:
        if parameter in _COPIED:
            name, by = _COPIED[parameter]
            raise RuntimeError(
                f"optimizer holds {name} of the model from before {by}, and none of its parameters has a gradient: "
                f"stepping it would not train the new model. {_REMEDY}."
            )
