"""Planted layers in a block that is recomputed: ``torch.utils.checkpoint.checkpoint(..., use_reentrant=True)``.

Such a block runs without a graph, and again in the backward if one of its inputs requires a gradient. After a frozen
trunk none does, and what is planted inside would get no gradient, without a word. So a planted model looks out for it:
the first forward in which a planted layer runs there is run again with inputs that require a gradient, and so are all
later ones.
"""

from __future__ import annotations

import sys
from types import FrameType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from plantops.errors import ArgumentError
from plantops.graph.inputs import map_tensors, tensors_in


class Recomputed:
    """Hooks of a planted model and of its planted layers. ``needed``: its inputs have to require a gradient."""

    def __init__(self) -> None:
        self.needed = False
        self._seen = False

    def before_layer(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A planted layer runs."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.needed:
            return
        self._seen = self._seen or (layer.training and _is_recomputed())

    def before(self, model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The model runs."""
        if self.needed and torch.is_grad_enabled():
            return map_tensors(_requiring_gradient, inputs), map_tensors(_requiring_gradient, keywords)
        return None

    def after(self, model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        """The model has run."""
        if not self._seen:
            return None
        self._seen, self.needed = False, torch.is_grad_enabled()
        if not self.needed:
            return None
        if not any(tensor.is_floating_point() for tensor in tensors_in((inputs, keywords))):
            self.needed = False
            raise ArgumentError(
                "model runs a planted layer inside torch.utils.checkpoint with use_reentrant=True, whose inputs need "
                "no gradient, so its blocks would get none: use use_reentrant=False"
            )
        return model(*inputs, **keywords)


def watch(model: nn.Module, layers: list[nn.Module]) -> None:
    """Look out for recomputed blocks in ``model`` with these planted layers; ``unwatch`` ends it, also for a copy."""
    hooks = Recomputed()
    for layer in layers:
        layer.register_forward_pre_hook(hooks.before_layer)
    model.register_forward_pre_hook(hooks.before, with_kwargs=True)
    model.register_forward_hook(hooks.after, with_kwargs=True)


def unwatch(model: nn.Module) -> None:
    """Undo ``watch``."""
    for module in model.modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = getattr(module, kind)
            for key, hook in list(hooks.items()):
                if isinstance(hook, MethodType) and isinstance(hook.__self__, Recomputed):
                    del hooks[key]
                    getattr(module, f"{kind}_with_kwargs").pop(key, None)


def _requiring_gradient(tensor: Tensor) -> Tensor:
    if tensor.requires_grad or not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_().clone()  # no leaf: a forward may change its input in place


def _is_recomputed() -> bool:
    """Is this the forward of a reentrant checkpoint?"""
    code = CheckpointFunction.forward.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
