"""planted_conv2d in torch's own functions, one convolution for each block: what transforms of torch.func and
forward-mode derivatives take, in any order and to any depth (see `plantops.ops._transforms`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from plantops.ops._checks import compute_dtype
from plantops.ops.planted_conv2d import shapes


def seen_input(input: Tensor, in_start: int, planted_in: int, input_grad: str, dim: int) -> Tensor:
    """The input with its derivative cut off where `input_grad` says that there is none."""
    if input_grad == "full":
        return input
    if input_grad == "none" or not planted_in:
        return input.detach()
    end, size = in_start + planted_in, input.shape[dim]
    before, after = input.narrow(dim, 0, in_start), input.narrow(dim, end, size - end)
    return torch.cat([before.detach(), input.narrow(dim, in_start, planted_in), after.detach()], dim)


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
    input_grad: str,
) -> Tensor:
    """max_pool(activation(conv + bias + addend)), rounded once."""
    wide, geometry = compute_dtype(input.dtype), (stride, padding, dilation)
    planted_in = shapes.planted_in(weight, weight_out, weight_in, groups)
    end = in_start + planted_in
    x = seen_input(input, in_start, planted_in, input_grad, 1).to(wide)
    planted = x[:, in_start:end]
    trunk = x if not planted_in else torch.cat([x[:, :in_start], x[:, end:]], 1)
    y = _convolution(trunk, weight, bias, wide, geometry, groups)
    if weight_in is not None:
        y = y + _convolution(planted, weight_in, None, wide, geometry, 1)
    if weight_out is not None:
        # A new filter reads every channel; a new group reads the new channels alone.
        k = shapes.new_groups(weight, weight_out, groups) if groups > 1 else 1
        new = _convolution(planted if groups > 1 else x, weight_out, bias_out, wide, geometry, k)
        y = torch.cat([y, new], 1)
    if addend is not None:
        y = y + addend.to(wide)
    if activation == "relu":
        y = y.relu()
    if max_pool > 1 and y.shape[1]:
        y = F.max_pool2d(y, max_pool)
    elif max_pool > 1:
        y = y[..., ::max_pool, ::max_pool][..., : y.shape[2] // max_pool, : y.shape[3] // max_pool]
    return y.to(input.dtype)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    groups: int,
) -> Tensor:
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if weight.shape[0] == 0 or weight.shape[1] == 0 or x.shape[0] == 0:  # ATen gets these wrong
        size = shapes.conv_size(x.shape[2:], weight.shape[2:], *geometry)
        y = x.new_zeros((x.shape[0], weight.shape[0], *size))
        return y if bias is None else y + bias.view(-1, 1, 1)
    return F.conv2d(x, weight, bias, *geometry, groups)
