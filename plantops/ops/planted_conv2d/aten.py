"""planted_conv2d in ATen calls: one convolution forward; backward, the requested gradients from channel slices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plantops.ops._checks import compute_dtype
from plantops.ops._layout import empty, memory_format, or_empty, part_of, with_strides_of, zeros
from plantops.ops._strided import stepped
from plantops.ops.planted_conv2d import pooling, shapes

aten = torch.ops.aten
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]  # stride, padding, dilation


def joined_weight(
    weight: Tensor, weight_out: Tensor | None, weight_in: Tensor | None, in_start: int, layout: torch.memory_format
) -> Tensor:
    """All filters over all input channels in the input's order: [F_out + P_out, F_in + P_in, kH, kW]."""
    if weight_in is not None and weight_in.shape[1]:
        if in_start == weight.shape[1]:
            weight = torch.cat([weight, weight_in], 1)
        else:
            weight = torch.cat([weight[:, :in_start], weight_in, weight[:, in_start:]], 1)
    if weight_out is not None and weight_out.shape[0]:
        weight = torch.cat([weight, weight_out])
    return weight.contiguous(memory_format=layout)


def joined_bias(bias: Tensor | None, bias_out: Tensor | None, old: int, new: int, like: Tensor) -> Tensor | None:
    """The biases of all filters; a missing half is zero."""
    if bias is None and bias_out is None:
        return None
    old_bias = like.new_zeros(old) if bias is None else bias
    new_bias = like.new_zeros(new) if bias_out is None else bias_out
    return torch.cat([old_bias, new_bias]) if new else old_bias


def planted_last(x: Tensor, in_start: int, planted: int) -> Tensor:
    """The channels with the planted ones moved behind the trunk's; a copy when they are not there already."""
    end = in_start + planted
    if end == x.shape[1]:
        return x
    return torch.cat([x[:, :in_start], x[:, end:], x[:, in_start:end]], 1)


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
) -> tuple[Tensor, Tensor]:
    """max_pool(activation(conv + bias + addend)), and the positions of the maxima."""
    dtype, layout = input.dtype, memory_format(input)
    joined = joined_weight(weight, weight_out, weight_in, in_start, layout)
    biases = joined_bias(bias, bias_out, weight.shape[0], shapes.planted_out(weight_out), weight)
    x = input
    if groups > 1:
        x = planted_last(x, in_start, shapes.planted_in(weight, weight_out, weight_in, groups))
        groups += shapes.new_groups(weight, weight_out, groups)
    wide = dtype if addend is None else compute_dtype(dtype)
    if wide != dtype:
        # Half precision would round before the addition; one rounding only.
        x, joined, biases = x.to(wide), joined.to(wide), None if biases is None else biases.to(wide)
    y = _convolution(x, joined, biases, (stride, padding, dilation), groups)
    if addend is not None:
        y.add_(addend)
    indices = input.new_empty(0, dtype=torch.uint8)
    if max_pool > 1:
        y, indices = pooling.pool(y, max_pool, save_indices)
    if activation == "relu":
        # Behind the pooling, on fewer pixels: it keeps the maximum, and where all are negative the gradient is 0.
        y = y.relu_()
    if indices.dim() == 4:
        indices = indices.contiguous(memory_format=layout)
    return (y if wide == dtype else y.to(dtype)).contiguous(memory_format=layout), indices


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int) -> Tensor:
    if weight.numel() == 0 or x.shape[0] == 0:
        # No filter, no image, or no input channel, where ATen's result has no output channels.
        size = shapes.conv_size(x.shape[2:], weight.shape[2:], *geometry)
        y = x.new_zeros((x.shape[0], weight.shape[0], *size))
        return y if bias is None else y.add_(bias.view(-1, 1, 1))
    return aten.convolution(x, weight, bias, *geometry, False, [0, 0], groups)


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
) -> tuple[Tensor, ...]:
    """The requested ones of the gradients to input, weight_out, weight_in, bias_out, addend (see the reference)."""
    want_input, want_weight_out, want_weight_in, want_bias_out, want_addend = output_mask
    geometry, rows, layout = (stride, padding, dilation), weight.shape[0], memory_format(grad_output)
    first = 0 if want_input or want_weight_in or want_addend else rows
    grad = grad_output[:, first:] if first else grad_output
    count = grad.shape[1]
    if output is not None:
        grad = aten.threshold_backward(grad, output[:, output.shape[1] - count :], 0)
    grad_bias_out = grad[:, rows - first :].sum((0, 2, 3)) if want_bias_out else None
    if indices is not None and (want_input or want_weight_out or want_weight_in or want_addend):
        grad = pooling.unpool(grad, indices[:, indices.shape[1] - count :], max_pool, conv_size)

    grad_input = grad_weight_out = grad_weight_in = grad_addend = None
    new = grad[:, rows - first :]
    if want_input:
        channels = shapes.trunk_in(weight, groups) + planted_in
        shape = (grad.shape[0], channels, *input_size)
        compute = _planted_input_grad if input_grad == "planted" else _full_input_grad
        grad_input = compute(grad, weight, weight_out, weight_in, shape, geometry, groups, in_start, planted_in, layout)
    if want_weight_out:
        assert weight_out is not None
        assert input is not None
        x = part_of(input, in_start, planted_in) if groups > 1 else input
        k = shapes.new_groups(weight, weight_out, groups) if groups > 1 else 1
        grad_weight_out = _weight_grad(new, x, weight_out, geometry, k)
    if want_weight_in:
        assert weight_in is not None
        assert input is not None
        planted = part_of(input, in_start, planted_in)
        grad_weight_in = _weight_grad(grad[:, :rows], planted, weight_in, geometry, 1)
    if want_addend:
        # An op does not return what it was given.
        fresh = grad.clone() if activation == "none" and max_pool == 1 else grad
        grad_addend = fresh.contiguous(memory_format=layout)
    return or_empty((grad_input, grad_weight_out, grad_weight_in, grad_bias_out, grad_addend), grad_output)


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """The gradient to one block of filters."""
    if weight.numel() == 0 or grad.numel() == 0:
        return torch.zeros_like(weight)
    x, stride = stepped(x, weight.shape[2:], *geometry[:2])
    geometry = (stride, *geometry[1:])
    result = aten.convolution_backward(grad, x, weight, None, *geometry, False, [0, 0], groups, [False, True, False])[1]
    return with_strides_of(result, weight)


def _input_grad(
    grad: Tensor, weight: Tensor, shape: tuple[int, ...], geometry: Geometry, groups: int, layout: torch.memory_format
) -> Tensor:
    """The gradient to all inputs that `weight` reads."""
    if weight.numel() == 0 or grad.numel() == 0:
        return zeros(grad, shape, layout)
    like = empty(grad, shape, layout)  # only its shape and layout are read
    weight = weight.contiguous(memory_format=layout)
    result = aten.convolution_backward(
        grad, like, weight, None, *geometry, False, [0, 0], groups, [True, False, False]
    )[0]
    return result.contiguous(memory_format=layout)


def _full_input_grad(
    grad: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    shape: tuple[int, ...],
    geometry: Geometry,
    groups: int,
    in_start: int,
    planted_in: int,
    layout: torch.memory_format,
) -> Tensor:
    joined = joined_weight(weight, weight_out, weight_in, in_start, layout)
    if groups == 1:
        return _input_grad(grad, joined, shape, geometry, 1, layout)
    groups += shapes.new_groups(weight, weight_out, groups)
    result = _input_grad(grad, joined, shape, geometry, groups, layout)
    trunk = shape[1] - planted_in
    if in_start == trunk:
        return result
    parts = [result[:, :in_start], result[:, trunk:], result[:, in_start:trunk]]
    return torch.cat(parts, 1).contiguous(memory_format=layout)


def _planted_input_grad(
    grad: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    shape: tuple[int, ...],
    geometry: Geometry,
    groups: int,
    in_start: int,
    planted_in: int,
    layout: torch.memory_format,
) -> Tensor:
    """Only the planted input channels get a gradient; the others' is zero by definition."""
    result = zeros(grad, shape, layout)
    rows, end = weight.shape[0], in_start + planted_in
    k = 1
    if groups > 1:
        k = shapes.new_groups(weight, weight_out, groups)
        columns, grad = weight_out, grad[:, rows:]
    elif weight_out is not None and weight_in is not None:
        columns = torch.cat([weight_in, weight_out[:, in_start:end]])
    else:
        columns = weight_in
    if planted_in and columns is not None:
        part = (shape[0], planted_in, *shape[2:])
        result[:, in_start:end] = _input_grad(grad, columns, part, geometry, k, layout)
    return result
