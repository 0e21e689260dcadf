"""Triton functions of the losses: rows of any width in blocks, with an online log-sum-exp."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._checks import compute_dtype

# A log-sum-exp up to here is exact to 2^-21 in float32, less than what the arithmetic around it costs. Beyond, the
# softmax is normalised again with a pass more over the row.
EXACT_LSE = tl.constexpr(16.0)


@dataclass(frozen=True)
class RowConfig:
    """How a kernel walks the rows: `rows` at a time, `block` classes at a time."""

    rows: int
    block: int
    num_warps: int

    def whole(self, classes: int) -> bool:
        """Whether a row is one block, which then stays on chip."""
        return classes <= self.block


# The widest rows of a class, with the number of warps; a block is the power of two above the width.
WHOLE_ROWS = ((1024, 4), (4096, 8))
ELEMENTS = 1024  # of one program, for narrow rows
SUMMED_AT_ONCE = 8192  # losses: few iterations for the one program that adds them
ENOUGH_REGISTERS = 240  # of a thread, for kernels that spill a word to fit 64 when nothing is said
STREAMED = RowConfig(rows=1, block=2048, num_warps=8)


def row_config(rows: int, classes: int, dtype: torch.dtype) -> RowConfig:
    """The configuration for so many rows of so many classes; `dtype` is the one that is computed in."""
    width = classes * (2 if dtype == torch.float64 else 1)  # so many registers a thread
    for widest, num_warps in WHOLE_ROWS:
        if width <= widest:
            block = max(16, _triton.power_of_two(classes))
            together = max(1, min(ELEMENTS * classes // (width * block), _triton.power_of_two(rows), 32))
            return RowConfig(together, block, num_warps)
    return STREAMED


def most_registers(dtype: torch.dtype) -> int | None:
    """How many registers a thread may take: in float64 more than the assembler would give it without being told."""
    return 240 if dtype == torch.float64 else None


def matrix(tensor: Tensor) -> Tensor:
    """[rows, classes] over the tensor's memory; a copy where leading dimensions have no one stride."""
    return tensor.reshape(-1, tensor.shape[-1])


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """What is computed in for logits of a dtype."""
    return tl.float64 if compute_dtype(dtype) == torch.float64 else tl.float32


@triton.jit
def load_block(pointer, rows, stride_row, stride_class, classes, columns, COMPUTE: tl.constexpr, WIDE: tl.constexpr):
    """A block of classes of some rows in the compute dtype; minus infinity behind the last class."""
    inside = (columns < classes)[None, :]
    at = columns.to(tl.int64) if WIDE else columns
    offsets = rows.to(tl.int64)[:, None] * stride_row + (at * stride_class)[None, :]
    return tl.load(pointer + offsets, mask=inside, other=float("-inf")).to(COMPUTE)


@triton.jit
def finite(maximum):
    """The maximum as what is subtracted: a row that is all minus infinity has nothing to subtract."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def start(ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Nothing seen yet: maxima, sums of exponentials of student and teacher, and the divergence's sum."""
    lowest = tl.full((ROWS,), float("-inf"), COMPUTE)
    zero = tl.zeros((ROWS, BLOCK), COMPUTE)
    return lowest, lowest, zero, zero, zero


@triton.jit
def add_block(s, t, inverse, max_s, max_t, sum_s, sum_t, terms):
    """One block more: each lane sums exp(d_s), exp(d_t), exp(d_t) (d_t - d_s), where d = (logit - maximum so far) / T.

    A class with exp(d_t) = 0 adds nothing, whatever its d_s.
    """
    new_s, new_t = tl.maximum(max_s, tl.max(s, 1)), tl.maximum(max_t, tl.max(t, 1))
    at_s, at_t = finite(new_s), finite(new_t)
    scale_s, scale_t = tl.exp((max_s - at_s) * inverse)[:, None], tl.exp((max_t - at_t) * inverse)[:, None]
    shift = (((finite(max_t) - at_t) - (finite(max_s) - at_s)) * inverse)[:, None]
    d_s, d_t = (s - at_s[:, None]) * inverse, (t - at_t[:, None]) * inverse
    p = tl.exp(d_t)
    terms = tl.where(scale_t == 0, 0.0, scale_t * (terms + sum_t * shift)) + tl.where(p == 0, 0.0, p * (d_t - d_s))
    return new_s, new_t, sum_s * scale_s + tl.exp(d_s), sum_t * scale_t + p, terms


@triton.jit
def sum_kernel(partial_ptr, loss_ptr, count, scale: tl.float64, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """loss = scale times the sum of `count` partial sums, in a fixed order."""
    total = tl.zeros((BLOCK,), COMPUTE)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + at, mask=at < count, other=0.0)
    tl.store(loss_ptr, tl.sum(total, 0) * tl.full((), scale, COMPUTE))


def fixed_order_sum(partial: Tensor, scale: float) -> Tensor:
    """scale * partial.sum(), bit for bit the same each time."""
    loss = partial.new_empty(())
    block = min(SUMMED_AT_ONCE, max(16, _triton.power_of_two(partial.numel())))
    _triton.launch(
        sum_kernel, (1,), partial, loss, partial.numel(), scale, COMPUTE=triton_dtype(partial.dtype), BLOCK=block,
        num_warps=8 if block > ELEMENTS else 4,
    )  # fmt: skip
    return loss
