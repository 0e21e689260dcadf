"""group_sparsity in Triton: all layers of a model in one launch, which finds them through a table of pointers.

A program has some groups of one layer to itself and walks their members twice, for the group sums and then for
coefficients or gradients; the second time the weights come from the cache. Nothing is added up across programs but the
value, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from plantops.ops import _triton
from plantops.ops._checks import compute_dtype
from plantops.ops._layout import with_strides_of
from plantops.ops._row_kernels import ENOUGH_REGISTERS, fixed_order_sum, most_registers, triton_dtype
from plantops.ops._triton_language import rounded
from plantops.ops.group_sparsity.penalties import PENALTIES

TAPS = 16
"""Taps of a kernel at a time: one step for 3 x 3."""
TILES = {"feature": (8, 8), "neuron": (1, 64)}
"""Groups and members of a group at a time. Neighbours in memory are the members of a neuron, the groups of features."""
KERNELS = 64
"""Kernels of a program that only makes gradients from coefficients."""
COLUMNS = tl.constexpr(9)
"""Of the table, a row a layer: address of the weights, groups, members, taps, and their strides in the weights; where
the layer begins in the flat result and in the flat coefficients."""
HALF, TWO = tl.constexpr(1), tl.constexpr(4)
"""Powers in halves."""


@triton.jit
def _raised(x, POWER: tl.constexpr):
    """x^(POWER / 2)."""
    if POWER == HALF:
        return tl.sqrt(x)
    return x * x if POWER == TWO else x


@triton.jit
def _slope(x, POWER: tl.constexpr):
    """The derivative of `_raised`; 0 at 0, where that of the root is infinite."""
    if POWER == HALF:
        return tl.where(x == 0, 0.0, 0.5 / tl.sqrt(tl.where(x == 0, 1.0, x)))
    return x + x if POWER == TWO else tl.full(x.shape, 1.0, x.dtype)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _weights(pointer, kernels, live, first, taps, stride, COMPUTE: tl.constexpr, TAPS: tl.constexpr):
    """TAPS values of each kernel from tap `first` on, 0 where there are none; with offsets and mask."""
    at = first + tl.arange(0, TAPS)
    offsets = tl.expand_dims(kernels, -1) + at * stride
    inside = tl.expand_dims(live, -1) & (at < taps)
    return tl.load(pointer + offsets, mask=inside, other=0.0).to(COMPUTE), offsets, inside


@triton.jit
def _norms(
    pointer, kernels, live, taps, stride, SQUARES: tl.constexpr, COMPUTE: tl.constexpr, GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Of each kernel: the norm r of the penalty, and the sum of absolute values."""
    absolute, squares = tl.zeros((GROUPS, MEMBERS), COMPUTE), tl.zeros((GROUPS, MEMBERS), COMPUTE)
    for first in range(0, taps, TAPS):
        w, _, _ = _weights(pointer, kernels, live, first, taps, stride, COMPUTE, TAPS)
        absolute += tl.sum(tl.abs(w), 2)
        if SQUARES:
            squares += tl.sum(w * w, 2)
    return squares if SQUARES else absolute, absolute


@triton.jit
def groups_kernel(
    table_ptr, programs_ptr, result_ptr, partial_ptr, strength: tl.float64, l1: tl.float64, ELEMENT: tl.constexpr,
    COMPUTE: tl.constexpr, SQUARES: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr, GRADIENT: tl.constexpr,
    FEATURE: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Value of GROUPS groups, and with GRADIENT the gradient to their weights, else their kernels' coefficients."""
    layer = tl.load(programs_ptr + 2 * tl.program_id(0))
    g = tl.load(programs_ptr + 2 * tl.program_id(0) + 1) + tl.arange(0, GROUPS).to(tl.int64)
    row = table_ptr + layer * COLUMNS
    weight_ptr = tl.load(row).to(tl.pointer_type(ELEMENT))
    groups, members, taps = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    group_stride, member_stride, tap_stride = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    strength, l1 = tl.full((), strength, COMPUTE), tl.full((), l1, COMPUTE)
    sums, absolutes = tl.zeros((GROUPS, MEMBERS), COMPUTE), tl.zeros((GROUPS, MEMBERS), COMPUTE)
    for first in range(0, members, MEMBERS):
        m = first + tl.arange(0, MEMBERS).to(tl.int64)
        live = (g < groups)[:, None] & (m < members)[None, :]
        kernels = g[:, None] * group_stride + m[None, :] * member_stride
        r, absolute = _norms(weight_ptr, kernels, live, taps, tap_stride, SQUARES, COMPUTE, GROUPS, MEMBERS, TAPS)
        sums += _raised(r, INNER)
        absolutes += absolute
    total = tl.sum(sums, 1)
    value = strength * tl.sum(_raised(total, OUTER), 0) + l1 * tl.sum(tl.sum(absolutes, 1), 0)
    tl.store(partial_ptr + tl.program_id(0), value)
    factor = strength * _slope(total, OUTER)
    if SQUARES:
        factor += factor
    for first in range(0, members, MEMBERS):
        m = first + tl.arange(0, MEMBERS).to(tl.int64)
        live = (g < groups)[:, None] & (m < members)[None, :]
        kernels = g[:, None] * group_stride + m[None, :] * member_stride
        r, _ = _norms(weight_ptr, kernels, live, taps, tap_stride, SQUARES, COMPUTE, GROUPS, MEMBERS, TAPS)
        coefficient = factor[:, None] * _slope(r, INNER)
        if GRADIENT:
            out = result_ptr + tl.load(row + 7)
            for tap in range(0, taps, TAPS):
                w, offsets, inside = _weights(weight_ptr, kernels, live, tap, taps, tap_stride, COMPUTE, TAPS)
                direction = w if SQUARES else _sign(w)
                gradient = coefficient[:, :, None] * direction + l1 * _sign(w)
                tl.store(out + offsets, rounded(gradient, result_ptr.dtype.element_ty), mask=inside)
        else:
            # [out, in]: the groups are rows, or columns for features.
            flat = m[None, :] * groups + g[:, None] if FEATURE else g[:, None] * members + m[None, :]
            tl.store(result_ptr + tl.load(row + 8) + flat, coefficient, mask=live)


@triton.jit
def gradient_kernel(
    grad_ptr, table_ptr, programs_ptr, coefficient_ptr, result_ptr, l1: tl.float64, ELEMENT: tl.constexpr,
    COMPUTE: tl.constexpr, SQUARES: tl.constexpr, KERNELS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """The gradient to the weights of KERNELS kernels from their coefficients; groups are output channels here."""
    layer = tl.load(programs_ptr + 2 * tl.program_id(0))
    k = tl.load(programs_ptr + 2 * tl.program_id(0) + 1) + tl.arange(0, KERNELS).to(tl.int64)
    row = table_ptr + layer * COLUMNS
    weight_ptr = tl.load(row).to(tl.pointer_type(ELEMENT))
    outputs, inputs, taps = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    live = k < outputs * inputs
    kernels = (k // inputs) * tl.load(row + 4) + (k % inputs) * tl.load(row + 5)
    upstream = tl.load(grad_ptr)
    coefficient = upstream * tl.load(coefficient_ptr + tl.load(row + 8) + k, mask=live, other=0.0)
    l1 = upstream * tl.full((), l1, COMPUTE)
    for tap in range(0, taps, TAPS):
        w, offsets, inside = _weights(weight_ptr, kernels, live, tap, taps, tl.load(row + 6), COMPUTE, TAPS)
        direction = w if SQUARES else _sign(w)
        gradient = coefficient[:, None] * direction + l1 * _sign(w)
        at = result_ptr + tl.load(row + 7) + offsets
        tl.store(at, rounded(gradient, result_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class _Shape:
    """A layer as it lies in memory: [out, in, taps] with these strides."""

    address: int
    outputs: int
    inputs: int
    taps: int
    strides: tuple[int, int, int]

    @property
    def kernels(self) -> int:
        return self.outputs * self.inputs

    @property
    def values(self) -> int:
        return self.kernels * self.taps


_Tables = tuple[Tensor, Tensor]
_captured: dict[tuple[object, ...], _Tables] = {}
"""The tables that CUDA graphs read: a replay does not ask for them, so they stay."""


def _tables(shapes: tuple[_Shape, ...], groups: str, per_program: int, device: torch.device) -> _Tables:
    """The table of the layers, and for each program its layer and where it begins: for `groups`, or kernels ("").

    Kept, so that a training that calls again and again with the same weights copies nothing to the device. Contiguous
    and channels-last weights can be captured in a CUDA graph once the same call has run.
    """
    key = (shapes, groups, per_program, device)
    tables = _made_tables(*key)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured[key] = tables
    return tables


@lru_cache(maxsize=64)
def _made_tables(shapes: tuple[_Shape, ...], groups: str, per_program: int, device: torch.device) -> _Tables:
    rows, programs = [], []
    values = kernels = 0
    for index, shape in enumerate(shapes):
        sides = (shape.outputs, shape.inputs), shape.strides[:2]
        if groups == "feature":
            sides = sides[0][::-1], sides[1][::-1]
        rows.append([shape.address, *sides[0], shape.taps, *sides[1], shape.strides[2], values, kernels])
        values, kernels = values + shape.values, kernels + shape.kernels
        if shape.values:
            programs += [[index, first] for first in range(0, sides[0][0] if groups else shape.kernels, per_program)]
    return torch.tensor(rows, device=device), torch.tensor(programs, dtype=torch.int64, device=device).view(-1, 2)


def _readable(weight: Tensor) -> Tensor:
    """The weight, copied where it is neither contiguous nor channels last."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.dim())
    if weight.is_contiguous() or (last is not None and weight.is_contiguous(memory_format=last)):
        return weight
    return weight.contiguous()


def _shape(weight: Tensor) -> _Shape:
    outputs, inputs = weight.shape[:2]
    taps = weight[0, 0].numel() if outputs * inputs else 0
    address = 0 if weight.is_meta else weight.data_ptr()
    if weight.is_contiguous():
        return _Shape(address, outputs, inputs, taps, (inputs * taps, taps, 1))
    return _Shape(address, outputs, inputs, taps, (inputs * taps, 1, inputs))


def _apart(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Pieces of one tensor in memory of their own, by one launch: the results of an op may not share any."""
    if len(pieces) == 1:
        return list(pieces)
    own = [torch.empty_like(piece) for piece in pieces]
    torch._foreach_copy_(own, list(pieces))
    return own


def _gradients(flat: Tensor, weights: Sequence[Tensor], readable: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that lie in `flat` one behind the other, each laid out as `torch.empty_like` does."""
    pieces, begin = [], 0
    for own in readable:
        pieces.append(flat.as_strided(own.shape, own.stride(), begin))
        begin += own.numel()
    return [with_strides_of(piece, weight) for piece, weight in zip(_apart(pieces), weights, strict=True)]


def _element(weight: Tensor) -> tl.dtype:
    return getattr(tl, str(weight.dtype).removeprefix("torch."))


def _groups(
    weights: Sequence[Tensor], penalty: str, groups: str, strength: float, l1: float, gradient: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The value, gradients or coefficients in one piece, and the weights as they were read."""
    spec, dtype = PENALTIES[penalty], compute_dtype(weights[0].dtype)
    readable = [_readable(weight) for weight in weights]
    shapes = tuple(_shape(weight) for weight in readable)
    together, members = TILES[groups]
    table, programs = _tables(shapes, groups, together, weights[0].device)
    if gradient:
        result = weights[0].new_empty(sum(shape.values for shape in shapes))
    else:
        result = weights[0].new_zeros(sum(shape.kernels for shape in shapes), dtype=dtype)
    partial = weights[0].new_empty(len(programs), dtype=dtype)
    _triton.launch(
        groups_kernel, (len(programs),), table, programs, result, partial, strength, l1,
        ELEMENT=_element(weights[0]),
        COMPUTE=triton_dtype(dtype), SQUARES=spec.squares, INNER=round(2 * spec.inner), OUTER=round(2 * spec.outer),
        GRADIENT=gradient, FEATURE=groups == "feature", GROUPS=together, MEMBERS=members, TAPS=TAPS,
        max_registers=most_registers(dtype) or ENOUGH_REGISTERS,
    )  # fmt: skip
    return fixed_order_sum(partial, 1.0), result, readable


def forward(
    weights: Sequence[Tensor], penalty: str, groups: str, strength: float, l1: float
) -> tuple[Tensor, list[Tensor]]:
    """The value and, for each layer, [out, in] coefficients (see reference.forward)."""
    value, flat, _ = _groups(weights, penalty, groups, strength, l1, False)
    sizes = [weight.shape[0] * weight.shape[1] for weight in weights]
    pieces = _apart(flat.split(sizes))
    return value, [piece.view(weight.shape[:2]) for piece, weight in zip(pieces, weights, strict=True)]


def value_and_grad(
    weights: Sequence[Tensor], penalty: str, groups: str, strength: float, l1: float
) -> tuple[Tensor, list[Tensor]]:
    """The value and its gradients for an upstream gradient of one."""
    value, flat, readable = _groups(weights, penalty, groups, strength, l1, True)
    return value, _gradients(flat, weights, readable)


def backward(
    grad: Tensor, weights: Sequence[Tensor], coefficients: Sequence[Tensor], penalty: str, l1: float
) -> list[Tensor]:
    """The gradients to the weights (see reference.backward)."""
    dtype = compute_dtype(weights[0].dtype)
    readable = [_readable(weight) for weight in weights]
    shapes = tuple(_shape(weight) for weight in readable)
    table, programs = _tables(shapes, "", KERNELS, weights[0].device)
    flat = weights[0].new_empty(sum(shape.values for shape in shapes))
    together = torch.cat([each.reshape(-1) for each in coefficients])
    _triton.launch(
        gradient_kernel, (len(programs),), grad, table, programs, together, flat, l1,
        ELEMENT=_element(weights[0]), COMPUTE=triton_dtype(dtype), SQUARES=PENALTIES[penalty].squares, KERNELS=KERNELS,
        TAPS=TAPS, max_registers=most_registers(dtype) or ENOUGH_REGISTERS,
    )  # fmt: skip
    return _gradients(flat, weights, readable)
