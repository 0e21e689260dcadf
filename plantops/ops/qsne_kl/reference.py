"""The readable formula of qsne_kl, on full [points, points] matrices.

With d_ij the distance of two embedded points, s = 1 + (q-1)/(3-q) d^2 and u = s^(-1/(q-1)) (s = 1 and
u = exp(-d^2/2) at q = 1), q_ij = u_ij / Z, Z = sum of u over all pairs i != j:

    KL(P || Q) = sum p log p - sum p log u + log Z
    gradient_i = 4/(3-q) sum_j (exaggeration p_ij - q_ij) (y_i - y_j) / s_ij
"""

from __future__ import annotations

import torch
from torch import Tensor

from plantops.ops._checks import compute_dtype


def kernel(squared: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """1/s and -log u of squared distances."""
    if q == 1.0:
        return torch.ones_like(squared), squared / 2.0
    x = squared * ((q - 1.0) / (3.0 - q))
    return 1.0 / (1.0 + x), torch.log1p(x) / (q - 1.0)


def pairs(p: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """Row of every value of a sparse P."""
    return torch.repeat_interleave(crow.diff(), output_size=p.numel())


def log_partition(total: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Z, kept above zero where every u underflows, and its logarithm."""
    total = total.clamp_min(torch.finfo(dtype).tiny)
    return total, total.log()


def _dense(p: Tensor, crow: Tensor | None, col: Tensor | None, points: int) -> Tensor:
    if crow is None or col is None:
        return p
    return p.new_zeros(points, points).index_put_((pairs(p, crow, col), col), p, accumulate=True)


def forward(
    embedding: Tensor, p: Tensor, crow: Tensor | None, col: Tensor | None, q: float, exaggeration: float, value: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-sum p log u (empty unless `value`) and log Z in float64, and the gradient."""
    dtype = compute_dtype(embedding.dtype)
    y = embedding.to(dtype)
    p = _dense(p.to(dtype), crow, col, len(y))
    difference = y.unsqueeze(1) - y.unsqueeze(0)
    inverse, surprise = kernel(difference.square().sum(-1), q)
    u = torch.exp(-surprise).masked_fill(torch.eye(len(y), dtype=torch.bool, device=y.device), 0.0)
    total, log_z = log_partition(u.sum(dtype=torch.float64), dtype)
    cross = (p * surprise).sum(dtype=torch.float64) if value else log_z.new_empty(0)
    force = (exaggeration * p - u / total.to(dtype)) * inverse
    grad = 4.0 / (3.0 - q) * (force.unsqueeze(-1) * difference).sum(1)
    return cross, log_z, grad.to(embedding.dtype)


def negative_entropy(p: Tensor) -> Tensor:
    """sum p log p in float64 over the values of P, dense or sparse; 0 log 0 is 0."""
    total = torch.zeros((), dtype=torch.float64, device=p.device)
    for part in p.split(256):
        part = part.to(compute_dtype(p.dtype))
        total = total + torch.xlogy(part, part).sum(dtype=torch.float64)
    return total
