"""The paper's networks on a CPU, each convolution with the ReLU and the pooling behind it as one call of our kernels.

Narrow convolutions over large images are where general libraries are slowest (`benchmarks/bench_training.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn

from plantops import functional
from plantops._extension import STATUS
from plantops.graph.following import call_problem
from plantops.models import PlantingNet

LAYERS = tuple(f"conv{layer}" for layer in range(1, 6))


def fused(model: nn.Module, precision: str = "float32") -> Callable[[Tensor], Tensor]:
    """What computes the logits of ``model`` fastest: the fused forward where it can stand in, else ``model`` itself.

    It stands in for a ``PlantingNet`` without batch norm whose layers are plain and without hooks, in float32 or
    float64 on a CPU, where the kernels are compiled. The values are those of the modules to rounding; what requires a
    gradient gets the same one.
    """
    return _Fused(model) if _can_fuse(model, precision) else model


def is_fused(forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether ``forward`` came from ``fused`` and is not the model itself."""
    return isinstance(forward, _Fused)


class _Fused:
    def __init__(self, model: PlantingNet) -> None:
        self.model = model

    def __call__(self, input: Tensor) -> Tensor:
        model, x = self.model, input.contiguous()
        for layer, name in enumerate(LAYERS, 1):
            conv = getattr(model, name)
            # No frozen filter: all of the layer is what the op calls planted.
            x = functional.planted_conv2d(
                x, conv.weight.detach()[:0], conv.weight, None, None, conv.bias, 1, 1,
                activation="relu", max_pool=2 if layer in model.pool_after else 1,
            )  # fmt: skip
        return model.fc2(torch.relu(model.fc1(torch.flatten(x, 1))))


def _can_fuse(model: nn.Module, precision: str) -> TypeGuard[PlantingNet]:
    if type(model) is not PlantingNet or model.batch_norm or precision != "float32" or not STATUS.loaded:
        return False
    if not _is_as_made(model):
        return False
    weight = model.get_parameter("conv1.weight")
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


def _is_as_made(model: PlantingNet) -> bool:
    """Whether the layers are those that ``PlantingNet`` makes, whatever their widths: nothing is put in their place."""
    kinds = {"relu": nn.ReLU, "pool": nn.MaxPool2d, "fc1": nn.Linear, "fc2": nn.Linear}
    kinds |= dict.fromkeys(LAYERS, nn.Conv2d)
    if any(type(getattr(model, name)) is not kind for name, kind in kinds.items()):
        return False
    if call_problem(model) is not None or any("forward" in vars(module) for module in model.modules()):
        return False
    pool = model.get_submodule("pool")
    window = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    return window == (2, 2, 0, 1, False, False) and all(_is_three_by_three(model.get_submodule(n)) for n in LAYERS)


def _is_three_by_three(conv: nn.Module) -> bool:
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and conv.bias is not None
