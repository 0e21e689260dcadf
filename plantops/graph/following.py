"""May a forward be followed step by step, in the place of calling the model? Answered here alone, with the reason.

A graph holds what a forward computes. What a call does beside that is not in it: hooks, a forward put in the place of
a layer's own, parts under ``torch.no_grad()`` or autocast, attributes that the forward changes. Whoever computes along
a graph asks first, and calls the model where the answer is no.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules import module as torch_module

FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
BACKWARD_HOOKS = ("_backward_pre_hooks", "_backward_hooks")
_DEVICES = ("cpu", "cuda")
_MODES = "plantops_modes"


class Modes(NamedTuple):
    """What of torch's state changes what a step computes, or what a backward through it gives."""

    gradients: bool
    inference: bool
    autocast: tuple[torch.dtype | None, ...]


def current_modes() -> Modes:
    """The modes now; ``autocast``: the dtype for each kind of device, None where it is off."""
    autocast = tuple(
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None for device in _DEVICES
    )
    return Modes(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)


def note_modes(node: fx.Node) -> None:
    """Keep the modes under which the forward came to ``node``."""
    node.meta[_MODES] = current_modes()


def call_problem(model: nn.Module, gradients: bool = True) -> str | None:
    """What a call of ``model`` does beside its forward; None where that is nothing.

    Args:
        gradients: a backward follows.
    """
    kinds = FORWARD_HOOKS + (BACKWARD_HOOKS if gradients else ())
    if any(getattr(torch_module, f"_global{kind}") for kind in kinds):
        return "hooks are registered for all modules"
    for name, module in model.named_modules():
        where = f"its layer {name}" if name else "it"
        for kind in kinds:
            if getattr(module, kind):
                return f"{where} has a hook ({_name_of(next(iter(getattr(module, kind).values())))})"
        if "forward" in vars(module) and not list(module.children()):
            return f"the forward of {where} was replaced by another"
    own_call = type(model).__call__ is not nn.Module.__call__ and not isinstance(model, fx.GraphModule)
    return "it has a __call__ of its own" if own_call else None


def graph_problem(graph: fx.Graph, gradients: bool = True) -> str | None:
    """The first step of a traced forward that runs under other modes than the forward; None where there is none."""
    noted = [node for node in graph.nodes if _MODES in node.meta and node.op != "output"]
    if not noted:
        return None
    outside: Modes = noted[0].meta[_MODES]  # a placeholder's
    for node in noted:
        modes: Modes = node.meta[_MODES]
        if modes.autocast != outside.autocast:
            return f"it changes autocast on its way (at {node.name})"
        if gradients and modes.inference != outside.inference:
            return f"a part of it runs under torch.inference_mode (at {node.name})"
        if gradients and modes.gradients != outside.gradients:
            return f"a part of it runs under torch.no_grad, or in an autograd.Function (at {node.name})"
    return None


def settings(model: nn.Module) -> dict[tuple[str, str], Any]:
    """What a forward could change of ``model`` for the next one, unseen by its graph: plain attributes, and whether
    parameters require a gradient."""
    found: dict[tuple[str, str], Any] = {}
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
        found |= {(name, key): value for key, value in plain.items() if key != "training"}
        found |= {(name, key): p.requires_grad for key, p in module._parameters.items() if p is not None}
    return found


def settings_problem(before: dict[tuple[str, str], Any], after: dict[tuple[str, str], Any]) -> str | None:
    """What of ``settings`` a forward has changed, in words."""
    for place in before.keys() | after.keys():
        if place not in before or place not in after or before[place] != after[place]:
            return f"it changes {'.'.join(part for part in place if part)} each time it runs"
    return None


def _name_of(hook: Any) -> str:
    function = getattr(hook, "func", hook)  # of a functools.partial
    return getattr(function, "__qualname__", type(function).__name__).rpartition(".")[2]
