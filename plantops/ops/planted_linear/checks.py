"""What planted_linear requires of its arguments."""

from __future__ import annotations

from torch import Tensor

from plantops.errors import ArgumentError
from plantops.ops import _checks

ACTIVATIONS = ("none", "relu")
INPUT_GRADS = ("full", "planted", "none")


def check_blocks(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    bias: Tensor | None,
    bias_out: Tensor | None,
    in_start: int | None,
    addend: Tensor | None,
) -> int:
    """Checks shapes against each other and returns in_start, resolved to its default F_in."""
    _checks.check_dims("weight", weight, "[F_out, F_in]")
    _checks.check_dims("weight_out", weight_out, "[P_out, F_in + P_in]")
    _checks.check_dims("weight_in", weight_in, "[F_out, P_in]")
    rows, old = weight.shape
    new = 0 if weight_in is None else weight_in.shape[-1]
    planted_out = 0 if weight_out is None else weight_out.shape[0]
    if input.dim() == 0 or input.shape[-1] != old + new:
        raise ArgumentError(
            f"input: expected [*, {old} + {new}] features (of the trunk + planted), got {tuple(input.shape)}"
        )
    _checks.check_shape("weight_in", weight_in, (rows, new))
    _checks.check_shape("weight_out", weight_out, (planted_out, old + new))
    _checks.check_shape("bias", bias, (rows,))
    _checks.check_shape("bias_out", bias_out, (planted_out,))
    _checks.check_shape("addend", addend, (*input.shape[:-1], rows + planted_out))
    return _checks.check_in_start(in_start, old)
