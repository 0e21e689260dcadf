"""What the Triton kernels of planted_conv2d share: pixels, the gradient behind ReLU and pooling, packed filters."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._triton_language import INTERPRETED
from plantops.ops.planted_conv2d import shapes

ALIGNED = 16  # elements: rows of packed filters begin where 16-byte accesses may
PACK_BLOCK = 256
WIDEST = 8  # channels that are read at once: 16 bytes in half precision
DOUBLES = _triton.interpreted() or tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)


@triton.jit
def multiply(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b. The interpreter does not know bfloat16 here; products of two are exact in float32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def gradient_tile(
    grad_ptr, output_ptr, position_ptr, n, channel, h, w, inside, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w, height,
    width, RELU: tl.constexpr, POOL: tl.constexpr, VECTOR: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The gradient at pixels (n, h, w) of the convolution's result, in rows, and channels, in columns.

    height x width is the size behind the pooling. A pixel gets its window's gradient where the window's maximum was,
    and none where the ReLU's output is not above zero (a NaN passes). Strides of pixels count units of VECTOR elements.
    """
    at_h, at_w = h // POOL, w // POOL
    if POOL > 1:
        inside = inside & ((at_h < height) & (at_w < width))[:, None]
    pixel_n, pixel_h, pixel_w, column = n.to(INDEX), at_h.to(INDEX), at_w.to(INDEX), channel.to(INDEX)
    offsets = ((pixel_n * g_n + pixel_h * g_h + pixel_w * g_w) * VECTOR)[:, None] + (column * g_c)[None, :]
    grad = tl.load(grad_ptr + offsets, mask=inside, other=0.0)
    saved = ((pixel_n * y_n + pixel_h * y_h + pixel_w * y_w) * VECTOR)[:, None] + (column * y_c)[None, :]
    if POOL > 1:
        here = (h - at_h * POOL) * POOL + (w - at_w * POOL)
        position = tl.load(position_ptr + saved, mask=inside, other=255).to(tl.int32)
        grad = tl.where(position == here[:, None], grad, 0.0)
    if RELU:
        output = tl.load(output_ptr + saved, mask=inside, other=0.0)
        grad = tl.where(output <= 0, 0.0, grad)
    return grad


def vector(tensor: Tensor, channels: int) -> int:
    """How many neighbouring channels of a pixel begin at a multiple of as many, up to 8: 1 where they lie apart.

    Triton reads several at once where it knows so. Of itself it knows multiples of 16 alone; 64 + 4 channels are none.
    """
    n, c, h, w = tensor.stride()
    return math.gcd(WIDEST, channels, n, h, w) if c == 1 else 1


def strides(tensor: Tensor, units: int) -> tuple[int, int, int, int]:
    """Strides, those of pixels in units of `units` elements: the kernels multiply, so that Triton sees the factor."""
    n, c, h, w = tensor.stride()
    return n // units, c, h // units, w // units


@dataclass(frozen=True)
class Gradient:
    """The gradient of some output channels as it came in, with what ReLU and pooling need to undo themselves."""

    grad: Tensor
    output: Tensor | None
    positions: Tensor | None
    pool: int
    size: tuple[int, int]  # of the convolution's result

    @property
    def channels(self) -> int:
        return self.grad.shape[1]

    @property
    def gathered(self) -> bool:
        """Whether an entry takes more than one load."""
        return self.output is not None or self.pool > 1

    def rows(self, start: int, end: int) -> "Gradient":
        """The same of channels [start, end)."""
        output, positions = (None if t is None else t[:, start:end] for t in (self.output, self.positions))
        return replace(self, grad=self.grad[:, start:end], output=output, positions=positions)

    def pointers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Three tensors for a kernel; what is not there is not read."""
        return self.grad, self._or_grad(self.output), self._or_grad(self.positions)

    @property
    def saved(self) -> Tensor:
        """What has the strides of output and positions."""
        return self.output if self.output is not None else self._or_grad(self.positions)

    @cached_property
    def vector(self) -> int:
        """How many channels of a pixel can be read at once."""
        return min(vector(self.grad, self.channels), vector(self.saved, self.channels))

    def numbers(self) -> tuple[int, ...]:
        """Strides of the gradient and of what was saved, and the size behind the pooling."""
        return *strides(self.grad, self.vector), *strides(self.saved, self.vector), *self.grad.shape[2:]

    def constants(self) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {"RELU": self.output is not None, "POOL": self.pool, "VECTOR": self.vector}

    def _or_grad(self, tensor: Tensor | None) -> Tensor:
        return self.grad if tensor is None else tensor


def gradient_of(
    grad: Tensor, output: Tensor | None, positions: Tensor | None, pool: int, size: tuple[int, int]
) -> Gradient:
    """Output and positions, which may hold the last channels only, beside the gradient of as many."""
    count = grad.shape[1]
    output, positions = (None if t is None else t[:, t.shape[1] - count :] for t in (output, positions))
    if output is not None and positions is not None and output.stride() != positions.stride():
        positions = torch.empty_strided(output.shape, output.stride(), dtype=positions.dtype, device=grad.device).copy_(
            positions
        )
    return Gradient(grad, output, positions, 1 if positions is None else pool, size)


@triton.jit
def pack_kernel(
    weight_ptr, out_block_ptr, in_block_ptr, packed_ptr, total, columns, padded, old_rows, in_start, in_end, first,
    w_o, w_c, w_i, w_j, o_o, o_c, o_i, o_j, p_o, p_c, p_i, p_j, outputs, inputs, KW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Filters of all blocks as [tap, filter, channel], or [tap, channel, filter] with CHANNELS_LAST=False; channels
    from `first`. The last dimension is filled up to `padded` with zeros."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    last, line, tap = at % padded, at // padded % columns, at // padded // columns
    live = at < total
    if CHANNELS_LAST:
        o, c = line, last
    else:
        o, c = last, line
    there = live & (o < outputs) & (c < inputs)
    c = c + first
    i, j = tap // KW, tap % KW
    old, planted = o < old_rows, (c >= in_start) & (c < in_end)
    behind = tl.where(c >= in_end, c - (in_end - in_start), c)
    trunk = tl.load(weight_ptr + o * w_o + behind * w_c + i * w_i + j * w_j, mask=there & old & ~planted, other=0.0)
    new_row = tl.load(out_block_ptr + (o - old_rows) * o_o + c * o_c + i * o_i + j * o_j, mask=there & ~old,
                      other=0.0)  # fmt: skip
    new_column = tl.load(in_block_ptr + o * p_o + (c - in_start) * p_c + i * p_i + j * p_j,
                         mask=there & old & planted, other=0.0)  # fmt: skip
    tl.store(packed_ptr + at, tl.where(old, tl.where(planted, new_column, trunk), new_row), mask=live)


def packed_filters(
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    in_start: int,
    channels: tuple[int, int],
    channels_last: bool,
) -> Tensor:
    """All filters over input channels [start, end): [taps, F_out + P_out, C] or [taps, C, F_out + P_out], zero-padded
    in the last dimension to a multiple of 16, in one launch."""
    rows, planted = weight.shape[0], 0 if weight_in is None else weight_in.shape[1]
    outputs, inputs = rows + shapes.planted_out(weight_out), channels[1] - channels[0]
    line, last = (outputs, inputs) if channels_last else (inputs, outputs)
    padded = _triton.cdiv(last, ALIGNED) * ALIGNED
    packed = weight.new_empty(weight.shape[2] * weight.shape[3], line, padded)
    out_block, in_block = weight if weight_out is None else weight_out, weight if weight_in is None else weight_in
    _triton.launch(
        pack_kernel, (_triton.cdiv(packed.numel(), PACK_BLOCK),), weight, out_block, in_block, packed, packed.numel(),
        line, padded, rows, in_start, in_start + planted, channels[0], *weight.stride(), *out_block.stride(),
        *in_block.stride(), outputs, inputs, KW=weight.shape[3], CHANNELS_LAST=channels_last, BLOCK=PACK_BLOCK,
    )  # fmt: skip
    return packed


def index_type(*tensors: Tensor | None) -> tl.dtype:
    """The dtype of offsets into the tensors."""
    return tl.int64 if _triton.needs_int64(*tensors) else tl.int32


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The dtype that products are summed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def check_supported(op: str, dtype: torch.dtype, groups: int = 1) -> None:
    """NotImplementedError of `op`, with the reason, for what these kernels do not compute."""
    if groups > 1:
        raise NotImplementedError(
            f"{op}: impl='triton' computes groups=1, got groups={groups}, where its tiles would be mostly "
            "empty; use impl='auto' or 'aten'"
        )
    if dtype == torch.float64 and not DOUBLES:
        raise NotImplementedError(
            f"{op}: impl='triton' computes float64 with Triton 3.9 or newer (3.6 fails to compile it), got "
            f"Triton {triton.__version__}; use impl='auto' or 'aten'"
        )
