"""What one more channel costs, and what it does to the layer that reads it while it is still 0."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from plantops.graph import rules
from plantops.graph.layers import widths


@dataclass(frozen=True)
class Use:
    """A call of a layer of a site: ``kind``, ``repeat`` and ``again`` as in ``Event``, shapes of what it reads and
    gives, or None. ``step``: filters of a producer that ``repeat`` entries of a reader belong to."""

    kind: str
    name: str
    repeat: int = 1
    reads: Sequence[int] | None = None
    gives: Sequence[int] | None = None
    again: bool = False
    step: int = 1


def cost(uses: Sequence[Use], modules: Mapping[str, nn.Module], samples: int, step: int = 1) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for one sample, that one more channel adds in the layers of a site, whose
    channels are counted as filters of a producer with this ``step``.

    Where channels come in blocks (grouped convolutions, group norm) it is the share of one channel in a block. Layers
    of unknown shapes count no multiply-accumulates.
    """
    parameters = macs = 0.0
    produced = {use.name: use.step for use in uses if use.kind == "producer"}
    for use in uses:
        module = modules[use.name]
        own = sum(parameter.numel() for parameter in module._parameters.values() if parameter is not None)
        if use.kind == "producer":
            parameters += 0 if use.again else own / widths(module)[1] * use.step
            macs += _weights(module) / widths(module)[1] * use.step * _positions(use, module)
        elif use.kind == "consumer":
            column = _weights(module) / widths(module)[0] * use.repeat
            if use.name in produced:  # the new filters read the new channels, too
                column += column / widths(module)[1] * produced[use.name]
            parameters += 0 if use.again else column
            macs += column * _positions(use, module)
        elif use.kind == "conv":
            parameters += 0 if use.again else own / widths(module)[0] * use.repeat
            macs += _weights(module) / widths(module)[0] * use.repeat * _positions(use, module)
        else:
            parameters += 0 if use.again else own / features(module) * use.repeat
    return round(parameters / step), round(macs / step) // samples


def _weights(module: nn.Module) -> int:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.numel()


def features(module: nn.Module) -> int:
    """Channels of a norm or of an activation with slopes."""
    for name in ("num_features", "num_channels", "num_parameters"):
        if hasattr(module, name):
            return int(getattr(module, name))
    raise AssertionError(type(module))


def _positions(use: Use, module: nn.Module) -> int:
    """Places, over all samples, at which the layer applies its weight."""
    if use.reads is None or use.gives is None:
        return 0
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return math.prod(use.reads) // widths(module)[0]
    return math.prod(use.gives) // widths(module)[1]


def at_zero(model: nn.Module, path: Sequence[fx.Node]) -> tuple[float, float]:
    """Value and slope of pointwise functions, one after the other, for an input of 0."""
    start = torch.zeros(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        value = start.clone()
        for node in path:
            value = _apply(node, value, model)
        (slope,) = torch.autograd.grad(value, start, allow_unused=True)
    return float(value.detach()), 0.0 if slope is None else float(slope)


def _apply(node: fx.Node, value: torch.Tensor, model: nn.Module) -> torch.Tensor:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        module = module.act if rules.is_norm_act(module) else module  # type: ignore[assignment]
        if rules.is_stochastic_depth(module):
            return value
        return copy.deepcopy(module).to("cpu", torch.float64).eval().forward(value)
    if node.op == "call_method":
        return getattr(value, str(node.target))(*node.args[1:], **node.kwargs)
    assert callable(node.target)
    return node.target(value, *node.args[1:], **node.kwargs)
