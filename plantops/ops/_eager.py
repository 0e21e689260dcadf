"""The ordinary call of an op in one step of C++: arguments, checks and autograd (`csrc/eager/`).

Each function takes the arguments of its namesake in `plantops.functional`, by position, and returns its result, or None
where the call is not ordinary (autocast, a mode, a transform, a subclass, a wrong argument) or where there is no
compiled module. The Python code behind it computes every call, with the same numbers, and says what is wrong with one.
Compiled autograd, an experiment of torch's, calls these backwards as they are; it does not trace into them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from plantops._extension import STATUS


def _none(*_: Any) -> None:
    return None


def _compiled(name: str) -> Callable[..., Any]:
    # A module that was compiled before the function was written still serves for its kernels.
    return getattr(importlib.import_module("plantops._C"), name, _none) if STATUS.loaded else _none


def _shortcut(name: str) -> Callable[..., Any]:
    compiled = _compiled(name)

    def unless_compiling(*args: Any) -> Any:
        return None if torch.compiler.is_compiling() else compiled(*args)

    return unless_compiling


planted_conv2d = _shortcut("planted_conv2d")
planted_linear = _shortcut("planted_linear")
kl_div_logits = _shortcut("kl_div_logits")
kl_div_logits_value_and_grad = _shortcut("kl_div_logits_value_and_grad")
distillation_loss = _shortcut("distillation_loss")
forget_choices = _compiled("forget_choices")
