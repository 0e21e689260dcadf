"""What planted_conv2d requires of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plantops._arguments import MOST
from plantops.errors import ArgumentError
from plantops.ops import _checks
from plantops.ops.planted_conv2d import shapes

ACTIVATIONS = ("none", "relu")
INPUT_GRADS = ("full", "planted", "none")
INTEGERS = (int, torch.SymInt)
MAX_POOL = 15  # a window's positions fit into uint8


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """An integer or a pair of them as a pair, in torch's order (height, width)."""
    if isinstance(value, INTEGERS):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(part, INTEGERS) for part in value):
        return value[0], value[1]
    raise ArgumentError(f"{name}: expected an integer or a pair of integers, got {_checks.described(value)}")


def check_geometry(stride: Sequence[int], dilation: Sequence[int], groups: int, max_pool: int) -> None:
    """ValueError unless the integers that describe the convolution are in range."""
    _checks.check_integer("groups", groups)
    _checks.check_integer("max_pool", max_pool)
    if groups < 1:
        raise ArgumentError(f"groups: expected an integer >= 1, got {groups}")
    for name, values in (("stride", stride), ("dilation", dilation)):
        if min(values) < 1 or max(values) > MOST:
            raise ArgumentError(f"{name}: expected integers >= 1, got {tuple(values)}")
    if not 1 <= max_pool <= MAX_POOL:
        raise ArgumentError(f"max_pool: expected an integer from 1 to {MAX_POOL}, got {max_pool}")


def check_padding(padding: Sequence[int]) -> None:
    """ValueError unless the borders are not negative."""
    if min(padding) < 0 or max(padding) > MOST:
        raise ArgumentError(f"padding: expected integers >= 0, got {tuple(padding)}")


def check_forward(*args: Any) -> None:
    """The integers among the forward op's arguments, whichever implementation is called."""
    stride, padding, dilation, groups, max_pool = args[6], args[7], args[8], args[9], args[13]
    check_geometry(stride, dilation, groups, max_pool)
    check_padding(padding)


def check_backward(*args: Any) -> None:
    """The same of the backward op's."""
    stride, padding, dilation, groups, max_pool = args[9], args[10], args[11], args[12], args[16]
    check_geometry(stride, dilation, groups, max_pool)
    check_padding(padding)


def resolve_padding(
    input: Tensor,
    padding: int | Sequence[int] | str,
    kernel: Sequence[int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Tensor, tuple[int, int]]:
    """Padding as a pair. "same" with an even kernel pads one more behind, as torch does: on a copy of the input."""
    if not isinstance(padding, str):
        if padding is None or isinstance(padding, Tensor):
            raise ArgumentError(
                f"padding: expected an integer, a pair of integers, 'valid' or 'same', got {_checks.described(padding)}"
            )
        numbers = pair("padding", padding)
        check_padding(numbers)
        return input, numbers
    _checks.check_choice("padding", padding, ("valid", "same"))
    if padding == "valid":
        return input, (0, 0)
    if stride != (1, 1):
        raise ArgumentError(f"padding: expected integers with a stride of {stride}, got 'same'")
    height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if height % 2 or width % 2:
        input = F.pad(input, (0, width % 2, 0, height % 2))
    return input, (height // 2, width // 2)


def check_blocks(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    bias: Tensor | None,
    bias_out: Tensor | None,
    groups: int,
    in_start: int | None,
) -> int:
    """Checks tensors against each other and returns in_start, resolved to its default F_in."""
    _checks.check_dims("weight", weight, "[F_out, F_in/groups, kH, kW]")
    _checks.check_dims("input", input, "[N, F_in + P_in, H, W]")
    _checks.check_dims("weight_out", weight_out, "[P_out, F_in + P_in, kH, kW]")
    _checks.check_dims("weight_in", weight_in, "[F_out, P_in, kH, kW]")
    if groups > 1:
        _check_groups(weight, weight_out, weight_in, groups)
    rows, inputs, *kernel = weight.shape
    old, new = inputs * groups, shapes.planted_in(weight, weight_out, weight_in, groups)
    filters, columns = shapes.planted_out(weight_out), inputs if groups > 1 else old + new
    _checks.check_shape("weight_in", weight_in, (rows, new, *kernel))
    _checks.check_shape("weight_out", weight_out, (filters, columns, *kernel))
    _checks.check_shape("bias", bias, (rows,))
    _checks.check_shape("bias_out", bias_out, (filters,))
    if input.shape[1] != old + new:
        raise ArgumentError(
            f"input: expected {old} + {new} channels (of the trunk + planted), got {tuple(input.shape)}"
        )
    return _checks.check_in_start(in_start, old)


def _check_groups(weight: Tensor, weight_out: Tensor | None, weight_in: Tensor | None, groups: int) -> None:
    rows = weight.shape[0]
    if rows == 0 or rows % groups or weight.shape[1] == 0:
        raise ArgumentError(
            f"weight: expected filters and inputs of {groups} groups (F_out a positive multiple of groups), "
            f"got {tuple(weight.shape)}"
        )
    if weight_in is not None:
        raise ArgumentError(
            f"weight_in: expected None with groups={groups} (old filters read no new group), "
            f"got {tuple(weight_in.shape)}"
        )
    if weight_out is not None and weight_out.shape[0] % (rows // groups):
        raise ArgumentError(
            f"weight_out: expected whole new groups of {rows // groups} filters with groups={groups}, "
            f"got {tuple(weight_out.shape)}"
        )


def check_result(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    addend: Tensor | None,
    max_pool: int,
) -> None:
    """ValueError unless the result has at least one pixel and the addend its shape before pooling."""
    count, _, *image = input.shape
    rows, _, *kernel = weight.shape
    size = shapes.conv_size(image, kernel, stride, padding, dilation)
    if size[0] < max_pool or size[1] < max_pool:
        raise ArgumentError(
            f"input: expected a height and width that leave at least {max_pool}x{max_pool} pixels behind the "
            f"convolution, got {tuple(input.shape)}, which leaves {size[0]}x{size[1]}"
        )
    if addend is not None:
        _checks.check_shape("addend", addend, (count, rows + shapes.planted_out(weight_out), *size))
