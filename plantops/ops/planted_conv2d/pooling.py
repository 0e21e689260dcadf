"""max_pool of planted_conv2d in ATen calls: kernel = stride = m, positions inside the window kept in one byte."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plantops.ops._layout import empty, memory_format

aten = torch.ops.aten


def pool(y: Tensor, m: int, save_indices: bool) -> tuple[Tensor, Tensor]:
    """The maxima, and when asked for the row-major position of each in its window as uint8."""
    if y.numel() == 0:  # no channel, which ATen refuses
        none = y.new_empty((*y.shape[:2], y.shape[2] // m, y.shape[3] // m))
        return none, none.to(torch.uint8) if save_indices else y.new_empty(0, dtype=torch.uint8)
    maxima, flat = aten.max_pool2d_with_indices(y, [m, m], [m, m])
    if not save_indices:
        return maxima, y.new_empty(0, dtype=torch.uint8)
    width = y.shape[3]
    # flat = corner + dy * width + dx. Comparisons are far cheaper than integer division.
    offset = flat.to(torch.int32).sub_(_corners(maxima.shape, m, width, y.device))
    below = [offset >= dy * width for dy in range(1, m)]
    for rows in below:
        offset.add_(rows, alpha=m - width)
    return maxima, offset.to(torch.uint8)


def unpool(grad: Tensor, indices: Tensor, m: int, size: Sequence[int]) -> Tensor:
    """The gradient before pooling, in the memory format of `indices`: each window's at its maximum, else zero."""
    layout = memory_format(indices)
    width = size[1]
    before = empty(grad, (*grad.shape[:2], *size), layout)
    if before.numel() == 0:  # no channel, which ATen refuses
        return before
    flat = indices.to(torch.int32)
    for dy in range(1, m):
        flat.add_(indices >= dy * m, alpha=width - m)
    flat.add_(_corners(indices.shape, m, width, grad.device))
    return aten.max_pool2d_with_indices_backward(
        grad.contiguous(memory_format=layout), before, [m, m], [m, m], [0, 0], [1, 1], False, flat.to(torch.int64)
    )


def _corners(shape: torch.Size, m: int, width: int, device: torch.device) -> Tensor:
    """The flat position of each window's first pixel, [H', W']."""
    rows = torch.arange(shape[2], dtype=torch.int32, device=device).mul_(m * width).unsqueeze(1)
    return rows + torch.arange(shape[3], dtype=torch.int32, device=device).mul_(m)
