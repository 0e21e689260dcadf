"""planted_linear in Triton: a planted convolution with kernels of one pixel, over one image whose pixels are the rows.

The images are views: [*, C] is channels_last already. Products of float32 follow torch's flag of matrix products.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plantops.ops import _precision
from plantops.ops._layout import as_own, with_strides_of
from plantops.ops.planted_conv2d import triton as conv
from plantops.ops.planted_conv2d.triton_common import check_supported
from plantops.ops.planted_linear.aten import rows

GEOMETRY = ((1, 1), (0, 0), (1, 1), 1)  # stride, padding, dilation, groups
LAYOUT = torch.channels_last  # of results, whose rows then are dense


def image(x: Tensor) -> Tensor:
    """[*, C] as one image [1, C, rows, 1] in channels_last."""
    matrix = rows(x)
    (count, channels), (row, channel) = matrix.shape, matrix.stride()
    # Not by transpose and unsqueeze: they give the sides of one pixel strides that no vector access divides.
    return matrix.as_strided((1, channels, count, 1), (row * count, channel, row, row))


def filters(block: Tensor | None) -> Tensor | None:
    """[F, C] as filters of one pixel."""
    return None if block is None else block[:, :, None, None]


def features(result: Tensor, leading: Sequence[int]) -> Tensor:
    """The inverse of `image`."""
    return as_own(result[0, :, :, 0].t(), (*leading, result.shape[1]))


def forward(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    bias: Tensor | None,
    bias_out: Tensor | None,
    in_start: int,
    addend: Tensor | None,
    activation: str,
) -> Tensor:
    """activation(x w^T + bias + addend)."""
    check_supported("planted_linear", input.dtype)
    output, _ = conv.forward(
        image(input), weight[:, :, None, None], filters(weight_out), filters(weight_in), bias, bias_out, *GEOMETRY,
        in_start, None if addend is None else image(addend), activation, 1, False,
        _precision.of_matrix_products(input.dtype), LAYOUT,
    )  # fmt: skip
    return features(output, input.shape[:-1])


def backward(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    output: Tensor | None,
    in_start: int,
    activation: str,
    input_grad: str,
    output_mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The requested ones of the gradients to input, weight_out, weight_in, bias_out, addend (see the reference)."""
    check_supported("planted_linear", grad_output.dtype)
    grad, leading = image(grad_output), grad_output.shape[:-1]
    size, planted = grad.shape[2:], 0 if weight_in is None else weight_in.shape[1]
    saved_input, saved_output = (None if x is None else image(x) for x in (input, output))
    dx, out, into, bias_out, addend = conv.backward(
        grad, saved_input, weight[:, :, None, None], filters(weight_out), filters(weight_in), saved_output, None, size,
        size, *GEOMETRY, in_start, planted, activation, 1, input_grad, output_mask,
        _precision.of_matrix_products(grad.dtype), LAYOUT,
    )  # fmt: skip
    blocks = ((out, weight_out), (into, weight_in))
    out, into = (g if g.dim() < 4 or w is None else with_strides_of(g[:, :, 0, 0], w) for g, w in blocks)
    dx, addend = (g if g.dim() < 4 else features(g, leading) for g in (dx, addend))
    return dx, out, into, bias_out, addend
