"""Multiplications and additions of planted_linear, counted as torch counts a product's: two for each weight and row.
The backward's are those of the gradients that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from plantops.ops._flops import Shape, size


def forward(input: Shape, weight: Shape, weight_out: Shape | None, weight_in: Shape | None, *_: Any, **__: Any) -> int:
    """Of the forward op's arguments."""
    return 2 * prod(input[:-1]) * (size(weight) + size(weight_out) + size(weight_in))


def backward(
    grad_output: Shape,
    input: Shape | None,
    weight: Shape,
    weight_out: Shape | None,
    weight_in: Shape | None,
    output: Shape | None,
    in_start: int,
    activation: str,
    input_grad: str,
    output_mask: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Of the backward op's arguments."""
    out, inn = size(weight_out), size(weight_in)
    weights = (out if output_mask[1] else 0) + (inn if output_mask[2] else 0)
    if output_mask[0]:
        planted = 0 if weight_in is None else weight_in[1]
        if input_grad == "full":
            weights += size(weight) + out + inn
        elif planted:
            weights += inn + out * planted // (weight[1] + planted)
    return 2 * prod(grad_output[:-1]) * weights
