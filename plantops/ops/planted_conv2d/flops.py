"""Multiplications and additions of planted_conv2d, counted as torch counts a convolution's: two for each weight, image
and pixel of the result. The backward's are those of the gradients that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from plantops.ops._flops import Shape, size
from plantops.ops.planted_conv2d import shapes


def forward(
    input: Shape,
    weight: Shape,
    weight_out: Shape | None,
    weight_in: Shape | None,
    bias: Shape | None,
    bias_out: Shape | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """Of the forward op's arguments."""
    pixels = prod(shapes.conv_size(input[2:], weight[2:], stride, padding, dilation))
    return 2 * input[0] * pixels * (size(weight) + size(weight_out) + size(weight_in))


def backward(
    grad_output: Shape,
    input: Shape | None,
    weight: Shape,
    weight_out: Shape | None,
    weight_in: Shape | None,
    output: Shape | None,
    indices: Shape | None,
    input_size: Sequence[int],
    conv_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_start: int,
    planted_in: int,
    activation: str,
    max_pool: int,
    input_grad: str,
    output_mask: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Of the backward op's arguments."""
    out, inn = size(weight_out), size(weight_in)
    weights = (out if output_mask[1] else 0) + (inn if output_mask[2] else 0)
    if output_mask[0]:
        if input_grad == "full":
            weights += size(weight) + out + inn
        elif groups > 1:
            weights += out
        elif planted_in:
            weights += inn + out * planted_in // (weight[1] + planted_in)
    return 2 * grad_output[0] * prod(conv_size) * weights
