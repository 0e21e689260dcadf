"""planted_conv2d in Triton. Filters are packed in one small launch; input and gradient are read in place.

`precision`: how float32 products are rounded, "tf32" or "ieee"; without it as torch's flag of convolutions says.
`layout`: of the results; without it as the input, or the gradient that comes in, is laid out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plantops.ops import _precision
from plantops.ops._layout import empty, memory_format, or_empty, part_of, zeros
from plantops.ops.planted_conv2d import pooling
from plantops.ops.planted_conv2d.triton_common import check_supported, gradient_of, packed_filters
from plantops.ops.planted_conv2d.triton_config import Config
from plantops.ops.planted_conv2d.triton_forward import convolve
from plantops.ops.planted_conv2d.triton_input import addend_gradient, input_gradient
from plantops.ops.planted_conv2d.triton_weight import weight_gradient

FUSED_POOL = 2  # windows of other sizes are pooled behind the kernel


def forward(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    bias: Tensor | None,
    bias_out: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_start: int,
    addend: Tensor | None,
    activation: str,
    max_pool: int,
    save_indices: bool,
    precision: str | None = None,
    layout: torch.memory_format | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """max_pool(activation(conv + bias + addend)), and the positions of the maxima."""
    check_supported("planted_conv2d", input.dtype, groups)
    precision = precision or _precision.of_convolutions(input.dtype)
    layout = layout or memory_format(input)
    geometry, relu = (*stride, *padding, *dilation), activation == "relu"
    fused = max_pool in (1, FUSED_POOL)
    output, indices = convolve(
        input, weight, weight_out, weight_in, bias, bias_out, geometry, in_start, addend, relu and fused,
        max_pool if fused else 1, save_indices and max_pool == FUSED_POOL, precision, layout,
        config,
    )  # fmt: skip
    if fused:
        return output, indices
    output, indices = pooling.pool(output, max_pool, save_indices)
    if indices.dim() == 4:
        indices = indices.contiguous(memory_format=layout)
    output = output.contiguous(memory_format=layout)
    return output.relu_() if relu else output, indices


def backward(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    output: Tensor | None,
    indices: Tensor | None,
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
    precision: str | None = None,
    layout: torch.memory_format | None = None,
    config: Config | None = None,
) -> tuple[Tensor, ...]:
    """The requested ones of the gradients to input, weight_out, weight_in, bias_out, addend (see the reference)."""
    check_supported("planted_conv2d", grad_output.dtype, groups)
    precision = precision or _precision.of_convolutions(grad_output.dtype)
    layout = layout or memory_format(grad_output)
    want_input, want_weight_out, want_weight_in, want_bias_out, want_addend = output_mask
    geometry, size, rows = (*stride, *padding, *dilation), (conv_size[0], conv_size[1]), weight.shape[0]
    first = 0 if want_input or want_weight_in or want_addend else rows
    gradient = gradient_of(grad_output[:, first:], output, indices, max_pool, size)
    grad_input = grad_weight_out = grad_weight_in = grad_bias_out = grad_addend = None
    if want_addend:
        grad_addend = addend_gradient(gradient, layout)
        gradient = gradient_of(grad_addend, None, None, 1, size)
    if want_weight_out or want_bias_out:
        new = gradient.rows(rows - first, gradient.channels)
        block = weight_out if want_weight_out else None
        grad_weight_out, grad_bias_out = weight_gradient(new, input, block, want_bias_out, geometry, precision, config)
    if want_weight_in:
        assert input is not None
        planted = part_of(input, in_start, planted_in)
        old = gradient.rows(0, rows)
        grad_weight_in, _ = weight_gradient(old, planted, weight_in, False, geometry, precision, config)
    if want_input:
        channels = weight.shape[1] + planted_in
        wanted = (in_start, in_start + planted_in) if input_grad == "planted" else (0, channels)
        covers = wanted == (0, channels) and gradient.grad.numel() > 0
        shape = (grad_output.shape[0], channels, *input_size)
        grad_input = (empty if covers else zeros)(grad_output, shape, layout)
        dx = grad_input[:, wanted[0] : wanted[1]]
        if dx.numel() and gradient.grad.numel():
            filters = packed_filters(weight, weight_out, weight_in, in_start, wanted, channels_last=False)
            kernel = (weight.shape[2], weight.shape[3])
            input_gradient(gradient, filters, dx, kernel, geometry, precision, config)
    return or_empty((grad_input, grad_weight_out, grad_weight_in, grad_bias_out, grad_addend), grad_output)
