"""An optimizer that still holds parameters from before ``plant`` or ``merge`` says so, instead of doing nothing.

``plant``, ``merge`` and ``prune`` note here which parameters they have replaced, of which they have made copies, and
which parameters came in their place. A hook on every optimizer's ``step`` looks its parameters up by identity: one
pass over a dictionary, nothing on the device. Whether a parameter is still used is told by its next gradient: a hook on
the parameter, which takes itself away when one arrives, not by what its ``grad`` holds, since that may be left from
before, zeroed, or scaled. The hooks are set when the first parameter is noted, so importing plantops changes no
optimizer.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.weak import TensorWeakRef

_REMEDY = (
    "Make a new optimizer over the parameters that train now (plantops.planting.planted_parameters(model) after plant, "
    "model.parameters() after merge), or, to keep its state, call plantops.carry_state(optimizer, planted, merged) "
    "once the model is merged"
)


class _Left:
    """A parameter that a model has left behind, until it gets a gradient again."""

    def __init__(self, parameter: nn.Parameter, name: str, note: _Note) -> None:
        self.parameter, self.name, self.note = weakref.ref(parameter, lambda _: self.forget()), name, note
        self.key = id(parameter)
        self.grad = None if parameter.grad is None else TensorWeakRef(parameter.grad)
        self.hook = None
        if parameter.requires_grad and parameter.is_leaf:
            self.hook = parameter.register_post_accumulate_grad_hook(lambda _: self.used())

    def look(self, parameter: Tensor) -> None:
        """A gradient that somebody put there is another tensor than the one before."""
        if parameter.grad is not None and (self.grad is None or self.grad() is not parameter.grad):
            self.used()

    def used(self) -> None:
        """It is part of something that trains: with it the whole model that was copied."""
        for left in [self] if self.note.replaced else list(self.note.lefts):
            left.forget()

    def forget(self) -> None:
        if self.hook is not None:
            self.hook.remove()
        if _LEFT.get(self.key) is self:
            del _LEFT[self.key]
        self.note.lefts.discard(self)


class _Note:
    """One call of ``by``, after which parameters were no longer those of the model it gave back."""

    def __init__(self, by: str, replaced: bool) -> None:
        self.by, self.replaced = by, replaced
        self.lefts: set[_Left] = set()


_LEFT: dict[int, _Left] = {}
_HEIRS: dict[int, weakref.ref[nn.Parameter]] = {}
_watching: list[Any] = []


def note_left(before: Mapping[str, nn.Parameter], after: nn.Module, by: str, inplace: bool) -> None:
    """``by`` turned a model with the parameters ``before`` into ``after``: the same model, or one made from a copy, so
    that the model itself may be trained further or not."""
    if not _watching:
        _watching.append(register_optimizer_step_pre_hook(_before_step))
        _watching.append(register_optimizer_step_post_hook(_after_step))
        _watching.append(_watch_gradient_scalers())
    note = _Note(f"{by}(..., inplace=True)" if inplace else by, inplace)
    known, kept = {id(parameter) for parameter in before.values()}, {id(parameter) for parameter in after.parameters()}
    for name, parameter in before.items():
        if id(parameter) in kept:
            continue
        if inplace:
            parameter.grad = None
        earlier = _LEFT.get(id(parameter))
        if earlier is not None:
            earlier.forget()
        left = _LEFT[id(parameter)] = _Left(parameter, name, note)
        note.lefts.add(left)
    for parameter in after.parameters():
        key = id(parameter)
        if key not in known:
            _HEIRS[key] = weakref.ref(parameter, lambda _, key=key: _HEIRS.pop(key, None))  # type: ignore[misc]


def _watch_gradient_scalers() -> Any:
    """``GradScaler.step`` looks at the gradients before it calls the optimizer's ``step``, and has no hook: where it
    finds none its assertion would come instead of our message."""
    step = torch.amp.GradScaler.step

    @functools.wraps(step)
    def checked(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        check(optimizer)
        return step(self, optimizer, *args, **kwargs)

    torch.amp.GradScaler.step = checked  # type: ignore[method-assign]
    return checked


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not torch.compiler.is_compiling() and not _closure(args, kwargs):
        check(optimizer)


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A closure computes the gradients inside of the step."""
    if not torch.compiler.is_compiling() and _closure(args, kwargs):
        check(optimizer)


def _closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(callable(value) for value in (*args[1:], *kwargs.values()))


def check(optimizer: Optimizer) -> None:
    """Raise ``RuntimeError`` where a step of ``optimizer`` would move nothing that the model still uses.

    It does if it holds a parameter that was replaced, or parameters of a model that was copied, none of which has got
    a gradient since. Not if it was given the new parameters, too (``optimizer.add_param_group``): it trains them.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if _LEFT.keys().isdisjoint(map(id, parameters)):
        return
    left = _unused(parameters)
    if not left:
        return
    unused = {one.key for one in left}
    for parameter in parameters:
        heir = _HEIRS.get(id(parameter))
        if parameter.requires_grad and heir is not None and heir() is parameter and id(parameter) not in unused:
            return
    first = next((one for one in left if one.note.replaced), left[0])
    if first.note.replaced:
        holds = f"{first.name}, which {first.note.by} has replaced"
        why = "stepping it would not train the model"
    else:
        holds = f"{first.name} of the model from before {first.note.by}, which has had no gradient since"
        why = "stepping it would not train the new model"
    raise RuntimeError(f"optimizer holds {holds}: {why}. {_REMEDY}.")


def _unused(parameters: Iterable[Tensor]) -> list[_Left]:
    """What of ``parameters`` was left behind and is not used. One that does not train was copied for no optimizer's
    sake."""
    found = [(_LEFT[id(parameter)], parameter) for parameter in parameters if id(parameter) in _LEFT]
    found = [
        (left, one) for left, one in found if left.parameter() is one and (left.note.replaced or one.requires_grad)
    ]
    for left, parameter in found:
        left.look(parameter)
    return [left for left, _ in found if _LEFT.get(left.key) is left]
