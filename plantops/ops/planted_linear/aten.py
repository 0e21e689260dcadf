"""planted_linear in ATen calls: one product forward; backward, the requested gradients from column slices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plantops.ops._checks import compute_dtype
from plantops.ops._layout import as_own, or_empty, part_of, with_strides_of
from plantops.ops.planted_conv2d.aten import joined_bias

aten = torch.ops.aten
NARROW = range(2, 16)  # columns
LARGE = 1 << 16  # products of two numbers


def joined_weight(weight: Tensor, weight_out: Tensor | None, weight_in: Tensor | None, in_start: int) -> Tensor:
    """All rows over all input features in the input's order: [F_out + P_out, F_in + P_in]."""
    if weight_in is not None:
        weight = torch.cat([weight[:, :in_start], weight_in, weight[:, in_start:]], 1)
    return weight if weight_out is None else torch.cat([weight, weight_out])


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a @ b. In float32 on a CPU a result of 2 to 15 columns is computed as its transpose: with one thread MKL takes a
    half to a ninth of the time, for matrices from 128 x 128 to 1024 x 768. Smaller products are not worth it."""
    large = a.shape[0] * a.shape[1] * b.shape[1] >= LARGE
    if large and b.shape[1] in NARROW and a.dtype == torch.float32 and a.device.type == "cpu":
        return (b.t() @ a.t()).t()
    return a @ b


def rows(x: Tensor) -> Tensor:
    """[*, C] as a matrix [rows, C]."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


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
    dtype = input.dtype
    old, new = weight.shape[0], 0 if weight_out is None else weight_out.shape[0]
    joined = joined_weight(weight, weight_out, weight_in, in_start)
    biases = joined_bias(bias, bias_out, old, new, weight)
    x = rows(input)
    if addend is not None:
        # Half precision would round before the addition; one rounding only.
        wide = compute_dtype(dtype)
        x, joined = x.to(wide), joined.to(wide)
        biases = None if biases is None else biases.to(wide)
    y = F.linear(x, joined, biases)
    if addend is not None:
        y.add_(rows(addend))
    if activation == "relu":
        y.relu_()
    return as_own(y.to(dtype).contiguous(), (*input.shape[:-1], old + new))


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
    want_input, want_weight_out, want_weight_in, want_bias_out, want_addend = output_mask
    planted, trunk_out = 0 if weight_in is None else weight_in.shape[1], weight.shape[0]
    first = 0 if want_input or want_weight_in or want_addend else trunk_out
    grad = rows(grad_output)[:, first:]
    if output is not None:
        grad = aten.threshold_backward(grad, rows(output)[:, output.shape[-1] - grad.shape[1] :], 0)
    old, new = grad[:, : trunk_out - first], grad[:, trunk_out - first :]

    grad_input = grad_weight_out = grad_weight_in = grad_bias_out = grad_addend = None
    leading = grad_output.shape[:-1]
    if want_input:
        full = input_grad == "full"
        product = _input_grad(grad, weight, weight_out, weight_in, in_start, planted, full)
        grad_input = as_own(product, (*leading, product.shape[1]))
    if want_weight_out:
        assert weight_out is not None
        assert input is not None
        grad_weight_out = with_strides_of(multiply(new.t(), rows(input)), weight_out)
    if want_weight_in:
        assert weight_in is not None
        assert input is not None
        x = rows(part_of(input, in_start, planted, -1))
        grad_weight_in = with_strides_of(multiply(old.t(), x), weight_in)
    if want_bias_out:
        grad_bias_out = new.sum(0)
    if want_addend:
        # An op does not return what it was given.
        fresh = grad.clone(memory_format=torch.contiguous_format) if activation == "none" else grad.contiguous()
        grad_addend = as_own(fresh, grad_output.shape)
    return or_empty((grad_input, grad_weight_out, grad_weight_in, grad_bias_out, grad_addend), grad_output)


def _input_grad(
    grad: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    in_start: int,
    planted: int,
    full: bool,
) -> Tensor:
    """The gradient to all input features, or to the planted ones with zeros elsewhere; [rows, F_in + P_in]."""
    if full:
        return grad @ joined_weight(weight, weight_out, weight_in, in_start)
    result = grad.new_zeros(grad.shape[0], weight.shape[1] + planted)
    if weight_in is not None:
        end = in_start + planted
        columns = weight_in if weight_out is None else torch.cat([weight_in, weight_out[:, in_start:end]])
        result[:, in_start:end] = multiply(grad, columns)
    return result
