"""The gradient to the input, all channels or the planted ones alone, and the gradient to the addend."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._layout import empty
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
from plantops.ops.planted_conv2d.triton_config import Config, tile

ADDEND_TILE = (64, 16)  # pixels, channels


@triton.jit
def input_kernel(
    filters_ptr, grad_ptr, output_ptr, position_ptr, dx_ptr, pixels, channels, outputs, padded, height, width,
    conv_height, conv_width, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w, pooled_height, pooled_width, dx_n, dx_c, dx_h,
    dx_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, KH: tl.constexpr, KW: tl.constexpr,
    RELU: tl.constexpr, POOL: tl.constexpr, VECTOR: tl.constexpr, X_VECTOR: tl.constexpr, ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """M input pixels of N channels: for each tap the output pixels that read them, times the tap's filters.

    Channels and the strides of input pixels count units of X_VECTOR elements, filters units of VECTOR.
    """
    channels, outputs = channels * X_VECTOR, outputs * VECTOR
    tiles_n = tl.cdiv(channels, N)
    pid = tl.program_id(0).to(INDEX)
    m = pid // tiles_n * M + tl.arange(0, M)
    c = (pid % tiles_n * N + tl.arange(0, N)).to(tl.int32)
    live, live_c = m < pixels, c < channels
    w, h, n = m % width, m // width % height, m // width // height
    total = tl.zeros((M, N), ACCUMULATE)
    blocks = tl.cdiv(outputs, K)
    for step in range(0, KH * KW * blocks):
        tap = step // blocks
        o = step % blocks * K + tl.arange(0, K)
        down, across = h + padding_h - tap // KW * dilation_h, w + padding_w - tap % KW * dilation_w
        conv_h, conv_w = down // stride_h, across // stride_w
        inside = live & (down >= 0) & (across >= 0) & (conv_h < conv_height) & (conv_w < conv_width)
        inside = inside & (conv_h * stride_h == down) & (conv_w * stride_w == across)
        grad = gradient_tile(
            grad_ptr, output_ptr, position_ptr, n, o, conv_h, conv_w, inside[:, None] & (o < outputs)[None, :], g_n,
            g_c, g_h, g_w, y_n, y_c, y_h, y_w, pooled_height, pooled_width, RELU, POOL, VECTOR, INDEX,
        )  # fmt: skip
        entry = (tap * channels + c)[None, :] * padded + o[:, None]
        f = tl.load(filters_ptr + entry, mask=live_c[None, :] & (o < padded)[:, None], other=0.0)
        total = multiply(grad, f, total, PRECISION)
    at = (n.to(INDEX) * dx_n + h.to(INDEX) * dx_h + w.to(INDEX) * dx_w) * X_VECTOR
    to = dx_ptr + at[:, None] + (c.to(INDEX) * dx_c)[None, :]
    tl.store(to, rounded(total, dx_ptr.dtype.element_ty), mask=live[:, None] & live_c[None, :])


def input_gradient(
    gradient: Gradient, filters: Tensor, dx: Tensor, kernel: tuple[int, int], geometry: tuple[int, ...],
    precision: str, config: Config | None,
) -> None:  # fmt: skip
    """Writes the gradient to the channels that `dx` holds, which are those of `filters` [taps, C, F_out + P_out]."""
    channels, outputs = dx.shape[1], gradient.channels
    pixels = dx.shape[0] * dx.shape[2] * dx.shape[3]
    config = config or tile(dx.dtype, precision, pixels, channels, outputs, gradient.gathered, gradient.vector)
    programs = _triton.cdiv(pixels, config.block_m) * _triton.cdiv(channels, config.block_n)
    units = vector(dx, channels)
    _triton.launch(
        input_kernel, (programs,), filters, *gradient.pointers(), dx, pixels, channels // units,
        outputs // gradient.vector, filters.shape[2], *dx.shape[2:], *gradient.size, *gradient.numbers(),
        *strides(dx, units), *geometry, KH=kernel[0], KW=kernel[1], **gradient.constants(), X_VECTOR=units,
        ACCUMULATE=accumulator(dx.dtype), PRECISION=precision, INDEX=index_type(dx, *gradient.pointers()),
        **config.options(),
    )  # fmt: skip


@triton.jit
def addend_kernel(
    grad_ptr, output_ptr, position_ptr, out_ptr, pixels, outputs, conv_height, conv_width, g_n, g_c, g_h, g_w, y_n,
    y_c, y_h, y_w, pooled_height, pooled_width, a_n, a_c, a_h, a_w, RELU: tl.constexpr, POOL: tl.constexpr,
    VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr, INDEX: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The gradient of M pixels and N channels before ReLU and pooling. Channels count units of VECTOR, the result's
    strides of pixels units of OUT_VECTOR."""
    outputs = outputs * VECTOR
    tiles_n = tl.cdiv(outputs, N)
    pid = tl.program_id(0).to(INDEX)
    m = pid // tiles_n * M + tl.arange(0, M)
    o = (pid % tiles_n * N + tl.arange(0, N)).to(tl.int32)
    w, h, n = m % conv_width, m // conv_width % conv_height, m // conv_width // conv_height
    inside = (m < pixels)[:, None] & (o < outputs)[None, :]
    grad = gradient_tile(
        grad_ptr, output_ptr, position_ptr, n, o, h, w, inside, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w, pooled_height,
        pooled_width, RELU, POOL, VECTOR, INDEX,
    )  # fmt: skip
    at = (n.to(INDEX) * a_n + h.to(INDEX) * a_h + w.to(INDEX) * a_w) * OUT_VECTOR
    tl.store(out_ptr + at[:, None] + (o.to(INDEX) * a_c)[None, :], grad, mask=inside)


def addend_gradient(gradient: Gradient, layout: torch.memory_format) -> Tensor:
    """The gradient before ReLU and pooling."""
    grad, (m, n) = gradient.grad, ADDEND_TILE
    out = empty(grad, (*grad.shape[:2], *gradient.size), layout)
    pixels, units = out.shape[0] * out.shape[2] * out.shape[3], vector(out, out.shape[1])
    _triton.launch(
        addend_kernel, (_triton.cdiv(pixels, m) * _triton.cdiv(out.shape[1], n),), *gradient.pointers(), out, pixels,
        out.shape[1] // gradient.vector, *gradient.size, *gradient.numbers(), *strides(out, units),
        **gradient.constants(), OUT_VECTOR=units, INDEX=index_type(out, *gradient.pointers()), M=m, N=n,
    )  # fmt: skip
    return out
