"""How a measured table for CUDA knows a call of planted_linear: its dtype, rows, and features old and planted."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plantops.ops import _tuned


def forward_key(*args: Any) -> _tuned.Key:
    """The key of the forward's arguments, without `impl`."""
    input, weight, weight_out, weight_in = args[:4]
    return (_tuned.dtype_trait(input),), _features(input, weight, weight_out, weight_in)


def backward_key(*args: Any) -> _tuned.Key:
    """The same of the backward's, and which part of the input gets a gradient."""
    grad, _, weight, weight_out, weight_in = args[:5]
    input_grad, mask = args[8], args[9]
    traits = (_tuned.dtype_trait(grad), input_grad if mask[0] else "none")
    return traits, _features(grad, weight, weight_out, weight_in)


def _features(x: Tensor, weight: Tensor, weight_out: Tensor | None, weight_in: Tensor | None) -> _tuned.Features:
    new_rows = 0 if weight_out is None else weight_out.shape[0]
    new_columns = 0 if weight_in is None else weight_in.shape[1]
    (old_rows, old_columns), count = weight.shape, x.shape[:-1].numel()
    return count, old_columns + new_columns, old_rows + new_rows, new_columns, new_rows
