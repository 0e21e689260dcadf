"""planted_linear in torch's own functions, one product for each block: what transforms of torch.func and forward-mode
derivatives take, in any order and to any depth (see `plantops.ops._transforms`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plantops.ops._checks import compute_dtype
from plantops.ops.planted_conv2d.composed import seen_input


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
    input_grad: str,
) -> Tensor:
    """activation(x w^T + bias + addend), rounded once."""
    wide = compute_dtype(input.dtype)

    def widened(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(wide)

    planted_in = 0 if weight_in is None else weight_in.shape[1]
    end = in_start + planted_in
    x = seen_input(input, in_start, planted_in, input_grad, -1).to(wide)
    trunk = x if not planted_in else torch.cat([x[..., :in_start], x[..., end:]], -1)
    y = F.linear(trunk, weight.to(wide), widened(bias))
    if weight_in is not None:
        y = y + F.linear(x[..., in_start:end], weight_in.to(wide))
    if weight_out is not None:
        y = torch.cat([y, F.linear(x, weight_out.to(wide), widened(bias_out))], -1)
    if addend is not None:
        y = y + addend.to(wide)
    if activation == "relu":
        y = y.relu()
    return y.to(input.dtype)
