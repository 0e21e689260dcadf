"""Convolutions with a stride and kernels of one pixel on a CPU, computed as what they are: stride 1 over fewer pixels.

oneDNN 3.12 computes their weight gradient in channels_last from a copy of the pixels that are read, and writes past its
end where a vector (8 or 16 numbers) holds more than the input channels, on AVX2 and on AVX-512 (issue 6035 of its
repository). A planted block has few channels, so a weight gradient that is asked of torch goes through
`stepped` here, or through `stepped` of csrc/aten.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

VECTOR = 16  # float32 numbers of the widest instruction set


def is_stepped(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] | str) -> bool:
    """Whether a convolution reads single pixels, not all of them, and none of a border."""
    return max(kernel) == 1 and max(stride) > 1 and (isinstance(padding, str) or not any(padding))


def stepped(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] | str
) -> tuple[Tensor, Sequence[int]]:
    """The input [N, C, *] and stride to compute with, the sum being the same."""
    if x.device.type != "cpu" or not is_stepped(kernel, stride, padding):
        return x, stride
    for dim, step in enumerate(stride, 2):
        x = x[(slice(None),) * dim + (slice(None, None, step),)]
    return x, [1] * len(stride)


def has_narrow_steps(model: nn.Module) -> bool:
    """Whether torch's own layers of `model` would ask for such a weight gradient of fewer channels than a vector."""
    return any(
        isinstance(layer, (nn.Conv1d, nn.Conv2d))
        and layer.in_channels < VECTOR
        and layer.weight.requires_grad
        and layer.weight.device.type == "cpu"
        and is_stepped(layer.kernel_size, layer.stride, layer.padding)
        for layer in model.modules()
    )
