"""Shapes of planted_conv2d: which channels are planted, and how large the results are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def conv_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """Height and width of the convolution's result, before pooling."""
    (height, width), (kernel_h, kernel_w), (pad_h, pad_w), (dilation_h, dilation_w) = size, kernel, padding, dilation
    return (
        (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride[0] + 1,
        (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride[1] + 1,
    )


def trunk_in(weight: Tensor, groups: int) -> int:
    """F_in, the input channels that the trunk's filters read."""
    return weight.shape[1] * groups


def planted_in(weight: Tensor, weight_out: Tensor | None, weight_in: Tensor | None, groups: int) -> int:
    """P_in: the width of weight_in, or with groups > 1 the input channels of the new groups."""
    if groups == 1:
        return 0 if weight_in is None else weight_in.shape[1]
    return new_groups(weight, weight_out, groups) * weight.shape[1]


def new_groups(weight: Tensor, weight_out: Tensor | None, groups: int) -> int:
    """k, the number of groups that weight_out adds to a trunk of several groups."""
    return 0 if weight_out is None else weight_out.shape[0] // (weight.shape[0] // groups)


def planted_out(weight_out: Tensor | None) -> int:
    """P_out, the number of new filters."""
    return 0 if weight_out is None else weight_out.shape[0]
