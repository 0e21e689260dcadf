"""Triton functions that the kernels of several ops use."""

import triton
import triton.language as tl

from plantops.ops import _triton

INTERPRETED = tl.constexpr(_triton.interpreted())


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in `dtype`, to nearest even. The interpreter cuts a float32 off to a bfloat16: there this rounds."""
    if INTERPRETED and dtype == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(dtype)
