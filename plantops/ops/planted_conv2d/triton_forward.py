"""The forward pass as an implicit matrix product: pixels x channels times filters, with everything behind it fused."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._layout import empty
from plantops.ops._triton_language import rounded
from plantops.ops.planted_conv2d import shapes
from plantops.ops.planted_conv2d.triton_common import (
    accumulator,
    index_type,
    multiply,
    packed_filters,
    strides,
    vector,
)
from plantops.ops.planted_conv2d.triton_config import Config, tile


@triton.jit
def _larger(value, position, best, best_position):
    """The larger of two, the earlier at a tie; NaN is the largest."""
    take = (value > best) | ((value != value) & (best == best))
    return tl.where(take, value, best), tl.where(take, position, best_position)


@triton.jit
def _pool_windows(values, M: tl.constexpr, N: tl.constexpr):
    """[4 windows, channels], the pixels of a 2 x 2 window one below the other, to maxima and their positions."""
    windows = tl.permute(tl.reshape(values, (M // 4, 2, 2, N)), (0, 3, 1, 2))
    left, right = tl.split(windows)
    first, third = tl.split(left)
    second, fourth = tl.split(right)
    best, position = _larger(second, 1, first, tl.zeros((M // 4, N), tl.int32))
    best, position = _larger(third, 2, best, position)
    return _larger(fourth, 3, best, position)


@triton.jit
def forward_kernel(
    x_ptr, filters_ptr, bias_ptr, bias_out_ptr, addend_ptr, y_ptr, position_ptr, pixels, channels, outputs, old_rows,
    height, width, out_height, out_width, padded, x_n, x_c, x_h, x_w, a_n, a_c, a_h, a_w, y_n, y_c, y_h, y_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, KH: tl.constexpr, KW: tl.constexpr,
    BIAS: tl.constexpr, BIAS_OUT: tl.constexpr, ADDEND: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr,
    POSITIONS: tl.constexpr, X_VECTOR: tl.constexpr, Y_VECTOR: tl.constexpr, ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """M pixels of N filters. With POOL = 2 four consecutive pixels are a window, and out_height x out_width counts
    windows. Channels and the strides of pixels count units of X_VECTOR elements, filters and the strides of addend and
    result units of Y_VECTOR."""
    channels, outputs = channels * X_VECTOR, outputs * Y_VECTOR
    tiles_n = tl.cdiv(outputs, N)
    pid = tl.program_id(0).to(INDEX)
    m = pid // tiles_n * M + tl.arange(0, M)
    o = (pid % tiles_n * N + tl.arange(0, N)).to(tl.int32)
    live, live_o = m < pixels, o < outputs
    window = m // (POOL * POOL)
    out_w, out_h, n = window % out_width, window // out_width % out_height, window // out_width // out_height
    h = out_h * POOL + m % (POOL * POOL) // POOL
    w = out_w * POOL + m % POOL
    top, left = h * stride_h - padding_h, w * stride_w - padding_w
    corner = n.to(INDEX) * x_n + top.to(INDEX) * x_h + left.to(INDEX) * x_w
    total = tl.zeros((M, N), ACCUMULATE)
    blocks = tl.cdiv(channels, K)
    for step in range(0, KH * KW * blocks):
        tap = step // blocks
        c = step % blocks * K + tl.arange(0, K)
        down, across = tap // KW * dilation_h, tap % KW * dilation_w
        inside = live & (top + down >= 0) & (top + down < height) & (left + across >= 0) & (left + across < width)
        pixel = corner + down.to(INDEX) * x_h + across.to(INDEX) * x_w
        at = (pixel * X_VECTOR)[:, None] + (c.to(INDEX) * x_c)[None, :]
        x = tl.load(x_ptr + at, mask=inside[:, None] & (c < channels)[None, :], other=0.0)
        entry = (tap * outputs + o)[None, :] * padded + c[:, None]
        f = tl.load(filters_ptr + entry, mask=live_o[None, :] & (c < padded)[:, None], other=0.0)
        total = multiply(x, f, total, PRECISION)

    if BIAS:
        total += tl.load(bias_ptr + o, mask=o < old_rows, other=0.0).to(ACCUMULATE)[None, :]
    if BIAS_OUT:
        new = live_o & (o >= old_rows)
        total += tl.load(bias_out_ptr + o - old_rows, mask=new, other=0.0).to(ACCUMULATE)[None, :]
    column = o.to(INDEX)
    if ADDEND:
        pixel = n.to(INDEX) * a_n + h.to(INDEX) * a_h + w.to(INDEX) * a_w
        at = (pixel * Y_VECTOR)[:, None] + (column * a_c)[None, :]
        total += tl.load(addend_ptr + at, mask=live[:, None] & live_o[None, :], other=0.0).to(ACCUMULATE)
    if POOL == 2:
        total, position = _pool_windows(total, M, N)
        m = pid // tiles_n * (M // 4) + tl.arange(0, M // 4)
        live = m < pixels // 4
        out_w, out_h, n = m % out_width, m // out_width % out_height, m // out_width // out_height
    at = n.to(INDEX) * y_n + out_h.to(INDEX) * y_h + out_w.to(INDEX) * y_w
    to, mask = (at * Y_VECTOR)[:, None] + (column * y_c)[None, :], live[:, None] & live_o[None, :]
    if POSITIONS:
        tl.store(position_ptr + to, position.to(tl.uint8), mask=mask)
    if RELU:
        total = tl.where(total <= 0, 0.0, total)
    tl.store(y_ptr + to, rounded(total, y_ptr.dtype.element_ty), mask=mask)


def convolve(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    bias: Tensor | None,
    bias_out: Tensor | None,
    geometry: tuple[int, ...],
    in_start: int,
    addend: Tensor | None,
    relu: bool,
    pool: int,
    positions: bool,
    precision: str,
    layout: torch.memory_format,
    config: Config | None,
) -> tuple[Tensor, Tensor]:
    """The output and the positions of the maxima, for pool = 1 or 2. `geometry`: stride, padding, dilation;
    `precision`: how float32 products are rounded, "tf32" or "ieee"; `layout`: of the results."""
    kernel, rows = weight.shape[2:], weight.shape[0]
    height, width = shapes.conv_size(input.shape[2:], kernel, geometry[:2], geometry[2:4], geometry[4:])
    height, width = height // pool, width // pool
    count, channels = input.shape[:2]
    outputs = rows + shapes.planted_out(weight_out)
    y = empty(input, (count, outputs, height, width), layout)
    indices = torch.empty_like(y, dtype=torch.uint8) if positions else input.new_empty(0, dtype=torch.uint8)
    if y.numel() == 0:
        return y, indices
    pixels = count * height * width * pool * pool
    added = y if addend is None else addend
    x_vector, y_vector = vector(input, channels), min(vector(y, outputs), vector(added, outputs))
    config = config or tile(input.dtype, precision, pixels, outputs, channels, addend is not None, x_vector)
    filters = packed_filters(weight, weight_out, weight_in, in_start, (0, channels), channels_last=True)
    programs = _triton.cdiv(pixels, config.block_m) * _triton.cdiv(outputs, config.block_n)
    _triton.launch(
        forward_kernel, (programs,), input, filters, y if bias is None else bias.contiguous(),
        y if bias_out is None else bias_out.contiguous(),
        added, y, indices, pixels, channels // x_vector, outputs // y_vector, rows, *input.shape[2:], height, width,
        filters.shape[2], *strides(input, x_vector), *strides(added, y_vector), *strides(y, y_vector), *geometry,
        KH=kernel[0], KW=kernel[1], BIAS=bias is not None, BIAS_OUT=bias_out is not None, ADDEND=addend is not None,
        RELU=relu, POOL=pool, POSITIONS=positions, X_VECTOR=x_vector, Y_VECTOR=y_vector,
        ACCUMULATE=accumulator(input.dtype), PRECISION=precision, INDEX=index_type(input, y, addend),
        **config.options(),
    )  # fmt: skip
    return y, indices
