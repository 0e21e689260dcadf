"""The gradient to one block of filters, and to its biases: an implicit matrix product over pixels, split over programs.

Each program sums its share of the pixels into a workspace; a second kernel adds the shares in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._triton_language import rounded
from plantops.ops.planted_conv2d.triton_common import (
    Gradient,
    accumulator,
    gradient_tile,
    index_type,
    multiply,
    strides,
    vector,
)
from plantops.ops.planted_conv2d.triton_config import Config, splits, tile

REDUCE_BLOCK = 128


@triton.jit
def weight_kernel(
    x_ptr, grad_ptr, output_ptr, position_ptr, share_ptr, pixels, share, channels, columns, outputs, height, width,
    conv_height, conv_width, x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w, pooled_height, pooled_width,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, KW: tl.constexpr, BIAS: tl.constexpr,
    WEIGHT: tl.constexpr, RELU: tl.constexpr, POOL: tl.constexpr, VECTOR: tl.constexpr, X_VECTOR: tl.constexpr,
    ACCUMULATE: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """M columns (tap, input channel) times N filters, summed over one share of the pixels, K at a time.

    Row `columns` of the workspace gets the sums of the gradient alone. Channels, columns and the input's strides of
    pixels count units of X_VECTOR elements, filters units of VECTOR.
    """
    channels, columns, outputs = channels * X_VECTOR, columns * X_VECTOR, outputs * VECTOR
    tiles_n = tl.cdiv(outputs, N)
    tile_id, part = tl.program_id(0), tl.program_id(1)
    column = tile_id // tiles_n * M + tl.arange(0, M)
    o = tile_id % tiles_n * N + tl.arange(0, N)
    live_column, live_o = column < columns, o < outputs
    tap, c = column // channels, column % channels
    down, across = tap // KW * dilation_h - padding_h, tap % KW * dilation_w - padding_w
    corner = c.to(INDEX) * x_c + (down.to(INDEX) * x_h + across.to(INDEX) * x_w) * X_VECTOR
    total, sums = tl.zeros((M, N), ACCUMULATE), tl.zeros((N,), ACCUMULATE)
    first = part.to(INDEX) * share
    for step in range(0, tl.cdiv(share, K)):
        pixel = first + step * K + tl.arange(0, K)
        live = pixel < pixels
        w, h, n = pixel % conv_width, pixel // conv_width % conv_height, pixel // conv_width // conv_height
        grad = gradient_tile(
            grad_ptr, output_ptr, position_ptr, n, o, h, w, live[:, None] & live_o[None, :], g_n, g_c, g_h, g_w, y_n,
            y_c, y_h, y_w, pooled_height, pooled_width, RELU, POOL, VECTOR, INDEX,
        )  # fmt: skip
        if BIAS:
            sums += tl.sum(grad.to(ACCUMULATE), 0)
        if WEIGHT:
            top, left = h * stride_h, w * stride_w
            row, col = top[None, :] + down[:, None], left[None, :] + across[:, None]
            inside = live_column[:, None] & live[None, :] & (row >= 0) & (row < height) & (col >= 0) & (col < width)
            pixels_at = (n.to(INDEX) * x_n + top.to(INDEX) * x_h + left.to(INDEX) * x_w) * X_VECTOR
            at = pixels_at[None, :] + corner[:, None]
            total = multiply(tl.load(x_ptr + at, mask=inside, other=0.0), grad, total, PRECISION)

    here = share_ptr + part.to(tl.int64) * (columns + 1) * outputs
    if WEIGHT:
        tl.store(here + column[:, None] * outputs + o[None, :], total, mask=live_column[:, None] & live_o[None, :])
    if BIAS and tile_id // tiles_n == 0:
        tl.store(here + columns * outputs + o, sums, mask=live_o)


@triton.jit
def reduce_kernel(
    share_ptr, weight_ptr, bias_ptr, parts, channels, columns, outputs, w_o, w_c, w_i, w_j, KW: tl.constexpr,
    BIAS: tl.constexpr, WEIGHT: tl.constexpr, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of all shares, first to last, in the weight's dtype and strides."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < (columns + 1) * outputs
    column, o = at // outputs, at % outputs
    total = tl.zeros((BLOCK,), ACCUMULATE)
    for part in range(0, parts):
        here = share_ptr + tl.cast(part, tl.int64) * (columns + 1) * outputs
        total += tl.load(here + at, mask=live & ((column < columns) | BIAS), other=0.0)
    tap, c = column // channels, column % channels
    if WEIGHT:
        to = weight_ptr + o * w_o + c * w_c + tap // KW * w_i + tap % KW * w_j
        tl.store(to, rounded(total, weight_ptr.dtype.element_ty), mask=live & (column < columns))
    if BIAS:
        tl.store(bias_ptr + o, rounded(total, bias_ptr.dtype.element_ty), mask=live & (column == columns))


def weight_gradient(
    gradient: Gradient,
    x: Tensor | None,
    weight: Tensor | None,
    bias: bool,
    geometry: tuple[int, ...],
    precision: str,
    config: Config | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients to a block of filters with the strides of `weight`, and to its biases; None where not asked for."""
    grad = gradient.grad
    outputs = gradient.channels
    grad_weight = None if weight is None else torch.empty_like(weight)
    grad_bias = grad.new_empty(outputs) if bias else None
    wanted = weight is not None and weight.numel() > 0
    pixels = grad.shape[0] * gradient.size[0] * gradient.size[1]
    if outputs == 0 or pixels == 0 or not (wanted or bias):
        return (None if g is None else g.zero_() for g in (grad_weight, grad_bias))  # type: ignore[return-value]
    if not wanted or x is None or weight is None:
        x, channels, kernel = grad, 1, (1, 1)
        columns = 0
    else:
        channels, kernel = weight.shape[1], (weight.shape[2], weight.shape[3])
        columns = channels * kernel[0] * kernel[1]
    units = vector(x, channels) if columns else 1
    config = config or tile(grad.dtype, precision, columns, outputs, pixels, gradient.gathered, units)
    parts = splits(config, max(1, columns), outputs, pixels)
    share = _triton.cdiv(_triton.cdiv(pixels, parts), config.block_k) * config.block_k
    parts = _triton.cdiv(pixels, share)
    sums = torch.float64 if grad.dtype == torch.float64 else torch.float32
    shares = torch.empty(parts, columns + 1, outputs, dtype=sums, device=grad.device)
    tiles = _triton.cdiv(max(1, columns), config.block_m) * _triton.cdiv(outputs, config.block_n)
    constants = {"KW": kernel[1], "BIAS": bias, "WEIGHT": columns > 0, "ACCUMULATE": accumulator(grad.dtype)}
    _triton.launch(
        weight_kernel, (tiles, parts), x, *gradient.pointers(), shares, pixels, share, channels // units,
        columns // units, outputs // gradient.vector, *x.shape[2:], *gradient.size, *strides(x, units),
        *gradient.numbers(), *geometry, **constants, **gradient.constants(), X_VECTOR=units, PRECISION=precision,
        INDEX=index_type(x, *gradient.pointers()), **config.options(),
    )  # fmt: skip
    to = (0, 0, 0, 0) if grad_weight is None else grad_weight.stride()
    _triton.launch(
        reduce_kernel, (_triton.cdiv((columns + 1) * outputs, REDUCE_BLOCK),), shares,
        shares if grad_weight is None else grad_weight, shares if grad_bias is None else grad_bias, parts, channels,
        columns, outputs, *to, **constants, BLOCK=REDUCE_BLOCK,
    )  # fmt: skip
    if grad_weight is not None and columns == 0:
        grad_weight.zero_()
    return grad_weight, grad_bias
