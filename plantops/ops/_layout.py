"""Memory formats: the planted ops answer in the layout of what they were given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format(tensor: Tensor) -> torch.memory_format:
    """channels_last when a 4-d tensor, dense or a slice, is laid out that way and is not plain contiguous."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    n, c, h, w = tensor.stride()
    _, channels, height, width = tensor.shape
    dense_or_sliced = c == 1 and w >= channels and h >= w * width and n >= h * height
    return torch.channels_last if dense_or_sliced else torch.contiguous_format


def empty(like: Tensor, shape: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    """An uninitialised tensor of `like`'s dtype and device."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def zeros(like: Tensor, shape: tuple[int, ...], layout: torch.memory_format) -> Tensor:
    """A tensor of zeros of `like`'s dtype and device."""
    return empty(like, shape, layout).zero_()


def as_own(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """`tensor`, dense, in another shape and not as a view, which autograd would not let anyone change in place behind
    an op: ``nn.ReLU(inplace=True)`` does."""
    return torch.ops.aten._unsafe_view(tensor, shape)


def with_strides_of(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor` with the dtype and strides that `torch.empty_like(parameter)` has: what a gradient should have."""
    if tensor.dtype == parameter.dtype and tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter).copy_(tensor)


def compact(tensor: Tensor, start: int, length: int, dim: int = 1) -> Tensor:
    """What is saved of `tensor` when only a slice is needed: a compact copy of at most a quarter, else `tensor`."""
    if 4 * length > tensor.shape[dim]:
        return tensor
    part = tensor.narrow(dim, start, length)
    layout = memory_format(tensor) if tensor.dim() == 4 else torch.contiguous_format
    return part.clone(memory_format=layout)


def part_of(tensor: Tensor, start: int, length: int, dim: int = 1) -> Tensor:
    """The slice, from a tensor that `compact` returned."""
    return tensor if tensor.shape[dim] == length else tensor.narrow(dim, start, length)


def or_empty(results: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """An op returns a tensor for each result: an empty one of its own for each that was not asked for."""
    return tuple(like.new_empty(0) if result is None else result for result in results)
