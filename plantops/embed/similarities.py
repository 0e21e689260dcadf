"""The similarities P of q-SNE: a Gaussian around every point, as wide as the perplexity asks, symmetrised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-10
MAX_STEPS = 200
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Similarities:
    """Symmetric, sum 1. Dense ``values [points, points]``, or the values, row offsets and columns of a sparse CSR."""

    values: Tensor
    crow: Tensor | None = None
    col: Tensor | None = None


def conditional(distances: Tensor, perplexity: float) -> Tensor:
    """p_(j|i) = exp(-b_i d_ij) / sum_j, with the precision b_i that gives row i the perplexity.

    The precision is searched by bisection, with Newton's step (the slope of the entropy in log b is -b^2 var(d))
    wherever that stays inside the bracket.

    Args:
        distances: squared distances ``[rows, others]`` in float64, without the point itself.
        perplexity: the exponential of the wanted entropy. A row that cannot have it (more equally near neighbours than
            that, or fewer neighbours) comes as near as it can.
    """
    distances = distances - distances.amin(1, keepdim=True)
    nearest = (distances == 0).sum(1, keepdim=True).double()
    target = torch.full_like(nearest, math.log(perplexity)).clamp(min=nearest.log())
    target = target.clamp(max=math.log(distances.shape[1]))
    mean = distances.mean(1, keepdim=True)
    precision = torch.where(mean > 0, 1.0 / mean, 1.0)
    low, high = torch.zeros_like(precision), torch.full_like(precision, torch.inf)
    for _ in range(MAX_STEPS):
        weights = torch.exp(-precision * distances)
        weights /= weights.sum(1, keepdim=True)
        mean = (weights * distances).sum(1, keepdim=True)
        variance = (weights * (distances - mean).square()).sum(1, keepdim=True)
        excess = -torch.xlogy(weights, weights).sum(1, keepdim=True) - target
        open_rows = excess.abs() > TOLERANCE
        if not bool(open_rows.any()):
            break
        low = torch.where(excess > 0, precision, low)
        high = torch.where(excess > 0, high, precision)
        newton = precision * torch.exp((excess / (precision.square() * variance)).clamp(-3.0, 3.0))
        middle = torch.where(high.isinf(), precision * 2.0, (low + high) / 2.0)
        step = torch.where((newton > low) & (newton < high), newton, middle)
        precision = torch.where(open_rows & step.isfinite(), step, precision)
    return weights


def rows_at_once(others: int) -> int:
    """So many rows of ``others`` entries are a block that fits a cache."""
    return max(1, _BLOCK_ELEMENTS // max(1, others))


def dense(
    squared_distances: Callable[[slice], Tensor], points: int, perplexity: float, dtype: torch.dtype
) -> Similarities:
    """P over all pairs. `squared_distances(rows)` gives ``[rows, points]``."""
    p = torch.zeros(points, points, dtype=dtype)
    step = rows_at_once(points)
    for begin in range(0, points, step):
        rows = slice(begin, min(points, begin + step))
        block = squared_distances(rows).double()
        other = torch.ones(block.shape, dtype=torch.bool)
        other.diagonal(begin).fill_(False)
        weights = conditional(block[other].view(len(block), points - 1), perplexity)
        p[rows].masked_scatter_(other, weights.to(dtype))
    return Similarities(_symmetrise(p))


def _symmetrise(p: Tensor) -> Tensor:
    """(P + P^T) / (2 points), in place, tile by tile."""
    points, step = len(p), 1024
    for i in range(0, points, step):
        for j in range(i, points, step):
            upper, lower = p[i : i + step, j : j + step], p[j : j + step, i : i + step]
            both = (upper + lower.T).div_(2.0 * points)
            upper.copy_(both)
            lower.copy_(both.T)
    return p


def sparse(squared_distances: Tensor, neighbours: Tensor, perplexity: float, dtype: torch.dtype) -> Similarities:
    """P over the nearest neighbours.

    Args:
        squared_distances, neighbours: ``[points, k]``, the distances and the indices of each point's nearest others.
    """
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    points, k = neighbours.shape
    values = torch.empty(points, k, dtype=dtype)
    step = rows_at_once(k)
    for begin in range(0, points, step):
        rows = slice(begin, begin + step)
        values[rows] = conditional(squared_distances[rows].double(), perplexity).to(dtype)
    offsets = torch.arange(0, points * k + 1, k)
    p = csr_array((values.flatten().numpy(), neighbours.flatten().numpy(), offsets.numpy()), shape=(points, points))
    p = p + p.T
    p.sort_indices()
    p.data /= 2.0 * points
    return Similarities(torch.from_numpy(p.data), torch.from_numpy(p.indptr).long(), torch.from_numpy(p.indices).long())
