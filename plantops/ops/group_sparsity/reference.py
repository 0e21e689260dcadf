"""The readable formula of group_sparsity, layer by layer, in the compute dtype.

With r the norm of a kernel, g = sum r^inner over the kernels of a group and R = sum g^outer over the groups,
dR/dr = outer g^(outer - 1) inner r^(inner - 1). A power below one has an infinite slope at zero; there the derivative
is taken as 0, so a kernel or a group that is all zero gets a zero gradient. dr/dw is sign(w) or 2 w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plantops.ops._checks import compute_dtype
from plantops.ops._layout import with_strides_of
from plantops.ops.group_sparsity.penalties import PENALTIES


def taps(weight: Tensor) -> list[int]:
    """The dimensions behind [out, in]."""
    return list(range(2, weight.dim()))


def slope(base: Tensor, power: float) -> Tensor:
    """The derivative of base^power; 0 at 0 where it would be infinite."""
    value = power * base.pow(power - 1.0)
    return value.masked_fill(base == 0, 0.0) if power < 1.0 else value


def power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent with a derivative of 0 at 0 where it would be infinite."""
    if exponent >= 1.0:
        return base.pow(exponent)
    zero = base == 0
    return base.masked_fill(zero, 1.0).pow(exponent).masked_fill(zero, 0.0)


def _kernel_sum(values: Tensor) -> Tensor:
    return values.sum(taps(values)) if values.dim() > 2 else values


def _layer(weight: Tensor, penalty: str, groups: str, strength: float, l1: float) -> tuple[Tensor, Tensor]:
    spec = PENALTIES[penalty]
    w = weight.to(compute_dtype(weight.dtype))
    absolute = _kernel_sum(w.abs())
    r = _kernel_sum(w * w) if spec.squares else absolute
    g = power(r, spec.inner).sum(0 if groups == "feature" else 1, keepdim=True)
    coefficients = strength * slope(g, spec.outer) * slope(r, spec.inner) * (2.0 if spec.squares else 1.0)
    return strength * power(g, spec.outer).sum() + l1 * absolute.sum(), coefficients


def forward(
    weights: Sequence[Tensor], penalty: str, groups: str, strength: float, l1: float
) -> tuple[Tensor, list[Tensor]]:
    """The value and, for each layer, coefficients [out, in]: dR/dw is coefficient x sign(w), or x w for squares."""
    layers = [_layer(weight, penalty, groups, strength, l1) for weight in weights]
    return torch.stack([value for value, _ in layers]).sum(), [coefficients for _, coefficients in layers]


def backward(
    grad: Tensor, weights: Sequence[Tensor], coefficients: Sequence[Tensor], penalty: str, l1: float
) -> list[Tensor]:
    """The gradients to the weights, from the coefficients that `forward` gave."""
    result = []
    for weight, coefficient in zip(weights, coefficients, strict=True):
        w = weight.to(coefficient.dtype)
        spread = coefficient.reshape(*coefficient.shape, *(1 for _ in taps(weight)))
        direction = w if PENALTIES[penalty].squares else w.sign()
        result.append(with_strides_of(grad * (spread * direction + l1 * w.sign()), weight))
    return result


def value_and_grad(
    weights: Sequence[Tensor], penalty: str, groups: str, strength: float, l1: float
) -> tuple[Tensor, list[Tensor]]:
    """The value and its gradients for an upstream gradient of one."""
    value, coefficients = forward(weights, penalty, groups, strength, l1)
    return value, backward(torch.ones_like(value), weights, coefficients, penalty, l1)
