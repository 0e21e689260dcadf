"""What impl="auto" stands for: on a CPU the faster of ATen and native at the nearest measured shape.

The measurements are data, `auto_cpu.json`, written by `benchmarks/tune_planted_conv2d.py`; nothing is timed here. For
CUDA there are the keys of a call in the tables of `plantops.ops._tuned`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plantops.ops import _registry, _tuned
from plantops.ops._layout import memory_format
from plantops.ops.planted_conv2d import shapes

NATIVE_DTYPES = (torch.float32, torch.float64)

# Features of a shape in the order of `Shape.features`; distances are between logarithms.
Features = tuple[int, ...]
Category = tuple[str, str, str, str]  # direction, dtype, layout, input_grad


@dataclass(frozen=True)
class Shape:
    """The integers that decide which implementation is faster."""

    trunk_in: int
    planted_in: int
    trunk_out: int
    planted_out: int
    kernel: tuple[int, int]
    size: tuple[int, int]

    def features(self) -> Features:
        return (
            self.trunk_in + self.planted_in,
            self.trunk_out + self.planted_out,
            self.planted_in,
            self.planted_out,
            self.kernel[0] * self.kernel[1],
            self.size[1],
        )


@lru_cache(maxsize=1)
def _table() -> dict[Category, list[tuple[Features, str]]]:
    table: dict[Category, list[tuple[Features, str]]] = {}
    path = Path(__file__).parent / "auto_cpu.json"
    for row in json.loads(path.read_text())["rule"] if path.exists() else []:
        category = (row["direction"], row["dtype"], row["layout"], row["input_grad"])
        table.setdefault(category, []).append((tuple(row["features"]), row["impl"]))
    return table


def _distance(a: Features, b: Features) -> float:
    return sum((math.log2(x + 1) - math.log2(y + 1)) ** 2 for x, y in zip(a, b, strict=True))


@lru_cache(maxsize=4096)
def choose(direction: str, dtype: torch.dtype, layout: torch.memory_format, input_grad: str, shape: Shape) -> str:
    """ "native" or "aten" for direction "forward" | "backward"; `input_grad` is "none" forward.

    Without a measured row of the category: "native" for what it computes.
    """
    name = str(dtype).removeprefix("torch.")
    where = "channels_last" if layout == torch.channels_last else "contiguous"
    rows = _table().get((direction, name, where, input_grad))
    if not rows:
        return "native"
    features = shape.features()
    return min(rows, key=lambda row: _distance(row[0], features))[1]


def _available(stem: str, tensor: Tensor, stride: Sequence[int], groups: int) -> bool:
    return (
        tensor.device.type == "cpu"  # the table's
        and tensor.dtype in NATIVE_DTYPES
        and groups == 1
        and tuple(stride) == (1, 1)
        and _registry.has_native(stem, "cpu")
    )


def _forward_shape(args: Sequence[Any]) -> Shape:
    input, weight, weight_out, weight_in = args[:4]
    planted_in = 0 if weight_in is None else weight_in.shape[1]
    return _shape(weight, weight_out, planted_in, input.shape[2:])


def _backward_shape(args: Sequence[Any]) -> Shape:
    weight, weight_out, size, planted_in = args[2], args[3], args[7], args[14]
    return _shape(weight, weight_out, int(planted_in), size)


def _shape(weight: Tensor, weight_out: Tensor | None, planted_in: int, size: Sequence[int]) -> Shape:
    kernel = (weight.shape[2], weight.shape[3])
    sides = (int(size[0]), int(size[1]))
    return Shape(weight.shape[1], planted_in, weight.shape[0], shapes.planted_out(weight_out), kernel, sides)


def choose_forward(*args: Any) -> str:
    """The implementation for the arguments of the forward op, without `impl`."""
    input, stride, groups = args[0], args[6], args[9]
    if not _available("planted_conv2d", input, stride, groups):
        return "aten"
    return choose("forward", input.dtype, memory_format(input), "none", _forward_shape(args))


def choose_backward(*args: Any) -> str:
    """The implementation for the arguments of the backward op, without `impl`."""
    grad, stride, groups, input_grad, mask = args[0], args[9], args[12], args[17], args[18]
    if not _available("planted_conv2d_backward", grad, stride, groups):
        return "aten"
    kind = input_grad if mask[0] else "none"
    return choose("backward", grad.dtype, memory_format(grad), kind, _backward_shape(args))


def forward_key(*args: Any) -> _tuned.Key:
    """How a table for CUDA knows the forward: dtype, layout, stride, groups and pool; batch and `Shape.features`."""
    input, stride, groups, max_pool = args[0], args[6], args[9], args[13]
    return _traits(input, stride, groups, max_pool), (input.shape[0], *_forward_shape(args).features())


def backward_key(*args: Any) -> _tuned.Key:
    """The same for the backward, and which part of the input gets a gradient."""
    grad, stride, groups, max_pool, input_grad, mask = args[0], args[9], args[12], args[16], args[17], args[18]
    kind = input_grad if mask[0] else "none"
    return (*_traits(grad, stride, groups, max_pool), kind), (grad.shape[0], *_backward_shape(args).features())


def _traits(tensor: Tensor, stride: Sequence[int], groups: int, max_pool: int) -> _tuned.Traits:
    layout = "channels_last" if memory_format(tensor) == torch.channels_last else "contiguous"
    return _tuned.dtype_trait(tensor), layout, f"stride {stride[0]}x{stride[1]}", f"groups {groups}", f"pool {max_pool}"
