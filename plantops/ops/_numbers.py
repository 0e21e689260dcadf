"""Factors of an op (temperatures, strengths) as the op takes them, also those that change between compiled calls."""

from __future__ import annotations

import torch
from torch import Tensor


def settled(*numbers: float) -> tuple[float | Tensor, ...]:
    """Floats; or tensors of one float64 each where a number changes between the calls of what is being compiled.

    torch.compile makes such a number a symbol. As an op's argument of type float it would be a constant of the graph
    again, and each new value would compile anew.
    """
    if torch.compiler.is_compiling() and not all(_constant(number) for number in numbers):
        one = torch.ones((), dtype=torch.float64, device="cpu")
        return tuple(one * number for number in numbers)
    return tuple(float(number) for number in numbers)


def _constant(number: float) -> bool:
    # Of a symbol it is not known whether it is this or another value: 2 can be a whole one, 0.5 one in [0, 1].
    from torch.fx.experimental.symbolic_shapes import statically_known_true as known

    return all(known(number == value) or known(number != value) for value in (2, 0.5))
