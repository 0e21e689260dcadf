"""qsne_kl in Triton: a program for some points against all others, sums in registers, no atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._checks import compute_dtype
from plantops.ops._row_kernels import ENOUGH_REGISTERS, fixed_order_sum, most_registers, triton_dtype
from plantops.ops.qsne_kl.reference import log_partition

ROWS, NEIGHBOURS = 16, 128
"""Points of a program; neighbours of a point at a time."""
BLOCK = {torch.float32: 64, torch.float64: 32}
"""Other points at a time, by the number type that is computed in: as many as registers hold."""
GAUSSIAN, CAUCHY, GENERAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _difference(y_ptr, rows, others, y_point, y_dimension, k: tl.constexpr, COMPUTE: tl.constexpr):
    """Coordinate k of y_i - y_j, [rows, others]."""
    own = tl.load(y_ptr + rows.to(tl.int64) * y_point + k * y_dimension).to(COMPUTE)
    other = tl.load(y_ptr + others.to(tl.int64) * y_point + k * y_dimension).to(COMPUTE)
    return own[:, None] - other[None, :]


@triton.jit
def _differences(
    y_ptr, rows, others, y_point, y_dimension, DIMENSIONS: tl.constexpr, COMPUTE: tl.constexpr
):  # fmt: skip
    """All coordinates (the first again where there are fewer than three) and the squared distances."""
    d0 = _difference(y_ptr, rows, others, y_point, y_dimension, 0, COMPUTE)
    d1, d2 = d0, d0
    squared = d0 * d0
    if DIMENSIONS > 1:
        d1 = _difference(y_ptr, rows, others, y_point, y_dimension, 1, COMPUTE)
        squared += d1 * d1
    if DIMENSIONS > 2:
        d2 = _difference(y_ptr, rows, others, y_point, y_dimension, 2, COMPUTE)
        squared += d2 * d2
    return d0, d1, d2, squared


@triton.jit
def _affinity(squared, spread, exponent, KERNEL: tl.constexpr):
    """1/s, u and -log u of squared distances; see reference.kernel."""
    if KERNEL == GAUSSIAN:
        surprise = squared * exponent
        return tl.full(squared.shape, 1.0, squared.dtype), tl.exp(-surprise), surprise
    x = squared * spread
    s = x + 1.0
    inverse = 1.0 / s
    # log(1 + x): with what the rounding of s lost put back.
    surprise = (tl.log(s) + (x - (s - 1.0)) * inverse) * exponent
    return inverse, inverse if KERNEL == CAUCHY else tl.exp(-surprise), surprise


@triton.jit
def _store_forces(forces_ptr, rows, live, f0, f1, f2, DIMENSIONS: tl.constexpr):
    """Sums over the columns, [points, dimensions]."""
    at = forces_ptr + rows.to(tl.int64) * DIMENSIONS
    tl.store(at, tl.sum(f0, 1), mask=live)
    if DIMENSIONS > 1:
        tl.store(at + 1, tl.sum(f1, 1), mask=live)
    if DIMENSIONS > 2:
        tl.store(at + 2, tl.sum(f2, 1), mask=live)


@triton.jit
def pairs_kernel(
    y_ptr, p_ptr, partition_ptr, cross_ptr, attraction_ptr, repulsion_ptr, points, y_point, y_dimension, p_row,
    p_column, spread: tl.float64, exponent: tl.float64, KERNEL: tl.constexpr, DENSE: tl.constexpr, VALUE: tl.constexpr,
    DIMENSIONS: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of ROWS points and all others: sum u, repulsion sum u (y_i - y_j) / s; with DENSE attraction and -sum p log u."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, at = rows < points, tl.minimum(rows, points - 1)
    spread, exponent = tl.full((), spread, COMPUTE), tl.full((), exponent, COMPUTE)
    zero = tl.zeros((ROWS, BLOCK), COMPUTE)
    partition, cross, a0, a1, a2, r0, r1, r2 = zero, zero, zero, zero, zero, zero, zero, zero
    for first in range(0, points, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        others = tl.minimum(columns, points - 1)
        wanted = (columns < points)[None, :] & (columns[None, :] != rows[:, None])
        d0, d1, d2, squared = _differences(y_ptr, at, others, y_point, y_dimension, DIMENSIONS, COMPUTE)
        inverse, u, surprise = _affinity(squared, spread, exponent, KERNEL)
        u = tl.where(wanted, u, 0.0)
        partition += u
        push = u * inverse
        r0 += push * d0
        r1 += push * d1
        r2 += push * d2
        if DENSE:
            offsets = at.to(tl.int64)[:, None] * p_row + others.to(tl.int64)[None, :] * p_column
            p = tl.load(p_ptr + offsets, mask=wanted, other=0.0).to(COMPUTE)
            pull = p * inverse
            a0 += pull * d0
            a1 += pull * d1
            a2 += pull * d2
            if VALUE:
                cross += p * surprise
    tl.store(partition_ptr + rows, tl.sum(partition, 1).to(tl.float64), mask=live)
    _store_forces(repulsion_ptr, rows, live, r0, r1, r2, DIMENSIONS)
    if DENSE:
        _store_forces(attraction_ptr, rows, live, a0, a1, a2, DIMENSIONS)
        if VALUE:
            tl.store(cross_ptr + rows, tl.sum(cross, 1).to(tl.float64), mask=live)


@triton.jit
def neighbours_kernel(
    y_ptr, p_ptr, crow_ptr, col_ptr, cross_ptr, attraction_ptr, y_point, y_dimension, spread: tl.float64,
    exponent: tl.float64, KERNEL: tl.constexpr, VALUE: tl.constexpr, DIMENSIONS: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Attraction and -sum p log u of one point over the neighbours that a sparse P has for it."""
    row = tl.program_id(0) + tl.arange(0, 1)
    spread, exponent = tl.full((), spread, COMPUTE), tl.full((), exponent, COMPUTE)
    begin, end = tl.load(crow_ptr + tl.program_id(0)), tl.load(crow_ptr + tl.program_id(0) + 1)
    zero = tl.zeros((1, BLOCK), COMPUTE)
    cross, a0, a1, a2 = zero, zero, zero, zero
    for first in range(begin, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < end
        p = tl.load(p_ptr + at, mask=inside, other=0.0).to(COMPUTE)[None, :]
        others = tl.load(col_ptr + at, mask=inside, other=0)
        d0, d1, d2, squared = _differences(y_ptr, row, others, y_point, y_dimension, DIMENSIONS, COMPUTE)
        inverse, _, surprise = _affinity(squared, spread, exponent, KERNEL)
        pull = p * inverse
        a0 += pull * d0
        a1 += pull * d1
        a2 += pull * d2
        if VALUE:
            cross += p * surprise
    _store_forces(attraction_ptr, row, row >= 0, a0, a1, a2, DIMENSIONS)
    if VALUE:
        tl.store(cross_ptr + row, tl.sum(cross, 1).to(tl.float64))


def _formula(q: float) -> tuple[float, float, int]:
    """The spread of s, the exponent of u, and which kernel that is."""
    if q == 1.0:
        return 0.0, 0.5, GAUSSIAN.value
    return (q - 1.0) / (3.0 - q), 1.0 / (q - 1.0), (CAUCHY if q == 2.0 else GENERAL).value


def forward(
    embedding: Tensor, p: Tensor, crow: Tensor | None, col: Tensor | None, q: float, exaggeration: float, value: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-sum p log u (empty unless `value`) and log Z in float64, and the gradient (see reference.forward)."""
    dtype, (points, dimensions) = compute_dtype(embedding.dtype), embedding.shape
    spread, exponent, kernel = _formula(q)
    partition = embedding.new_empty(points, dtype=torch.float64)
    cross = torch.empty_like(partition)
    attraction = embedding.new_empty(points, dimensions, dtype=dtype)
    repulsion = torch.empty_like(attraction)
    dense = crow is None or col is None
    about = {
        "KERNEL": kernel,
        "VALUE": value,
        "DIMENSIONS": dimensions,
        "COMPUTE": triton_dtype(dtype),
        "max_registers": most_registers(dtype) or ENOUGH_REGISTERS,
    }
    _triton.launch(
        pairs_kernel, (_triton.cdiv(points, ROWS),), embedding, p, partition, cross, attraction, repulsion, points,
        *embedding.stride(), *(p.stride() if dense else (0, 0)), spread, exponent, DENSE=dense, ROWS=ROWS,
        BLOCK=BLOCK[dtype],
        **about,
    )  # fmt: skip
    if crow is not None and col is not None:
        _triton.launch(
            neighbours_kernel, (points,), embedding, p.contiguous(), crow.contiguous(), col.contiguous(), cross,
            attraction, *embedding.stride(), spread, exponent, BLOCK=NEIGHBOURS, num_warps=1, **about,
        )  # fmt: skip
    total, log_z = log_partition(fixed_order_sum(partition, 1.0), dtype)
    grad = (attraction * exaggeration - repulsion / total.to(dtype)).mul_(4.0 / (3.0 - q))
    return fixed_order_sum(cross, 1.0) if value else cross.new_empty(0), log_z, grad.to(embedding.dtype)
