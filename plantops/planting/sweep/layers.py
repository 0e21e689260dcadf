"""What a candidate computes of its planted layers, when the old channels' part is kept from the trunk's pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plantops import functional
from plantops._extension import STATUS
from plantops.nn import PlantedBatchNorm2d, PlantedConv2d, PlantedLinear
from plantops.planting.blocks import present


def out_block(layer: PlantedConv2d | PlantedLinear, activation: str, max_pool: int) -> Callable[[Tensor], Tensor]:
    """The new channels of a producer alone, from its whole input."""
    if isinstance(layer, PlantedLinear):
        return lambda input: F.linear(input, present(layer.weight_out), layer.bias_out)
    no_filters = layer.weight[:0]
    geometry, pad = _geometry(layer)

    def run(input: Tensor) -> Tensor:
        return functional.planted_conv2d(
            pad(input), no_filters, layer.weight_out, None, None, layer.bias_out, *geometry,
            activation=activation, max_pool=max_pool, impl=layer.impl,
        )  # fmt: skip

    return run


def in_block(
    layer: PlantedConv2d | PlantedLinear, activation: str, max_pool: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The output of a consumer from the new channels alone and what the old ones give it (its bias included).

    Under autocast the sum is formed in float32, from operands rounded as autocast rounds them: one rounding, as in the
    layer itself.
    """
    if isinstance(layer, PlantedLinear):

        def linear(new: Tensor, old: Tensor) -> Tensor:
            with _full(new) as rounded:
                weight = rounded(present(layer.weight_in))
                new = rounded(new)
                if new.dim() == 2:
                    return torch.addmm(old, new, weight.t())
                return old + F.linear(new, weight)

        return linear
    no_inputs = layer.weight[:, :0]
    geometry, pad = _geometry(layer)

    def conv(new: Tensor, old: Tensor) -> Tensor:
        with _full(new) as rounded:
            return functional.planted_conv2d(
                pad(rounded(new)), rounded(no_inputs), None, rounded(present(layer.weight_in)), None, None, *geometry,
                addend=old, activation=activation, max_pool=max_pool, impl=layer.impl,
            )  # fmt: skip

    return conv


def is_plain(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether ``whole`` can do the layer."""
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def whole(layer: nn.Conv2d, activation: str, max_pool: int, impl: str = "auto") -> Callable[[Tensor], Tensor]:
    """A frozen convolution with what follows it, in one call."""
    assert isinstance(layer.padding, tuple)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    weight, bias = layer.weight, layer.bias

    def run(input: Tensor) -> Tensor:
        return functional.planted_conv2d(
            input, weight, None, None, bias, None, *geometry, activation=activation, max_pool=max_pool, impl=impl
        )

    return run


def is_native(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether the compiled kernels for the CPU do the layer, whose sums are the same whatever is done behind them."""
    if not is_plain(layer) or not STATUS.loaded:
        return False
    weight = layer.weight
    simple = layer.stride == (1, 1) and layer.groups == 1 and weight.is_contiguous()
    return simple and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)


def behind(layer: nn.Conv2d, activation: str, max_pool: int) -> Callable[[Tensor], Tensor]:
    """What follows a frozen convolution, on its kept output: a convolution of no channels that adds it."""
    no_inputs = layer.weight[:, :0]
    kernel = layer.kernel_size

    def run(kept: Tensor) -> Tensor:
        batch, _, height, width = kept.shape
        nothing = kept.new_empty((batch, 0, height + kernel[0] - 1, width + kernel[1] - 1))
        return functional.planted_conv2d(
            nothing, no_inputs, addend=kept, activation=activation, max_pool=max_pool, impl="native"
        )

    return run


def before_activation(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer of the trunk; in float32 under autocast, too, since more may be added to what it gives."""

    plain = whole(layer, "none", 1) if is_plain(layer) else layer

    def run(input: Tensor) -> Tensor:
        with _full(input) as rounded:
            if rounded is _as_is:
                return plain(input)
            weight, bias = rounded(layer.weight), layer.bias
            bias = None if bias is None else rounded(bias)
            if isinstance(layer, nn.Linear):
                return F.linear(rounded(input), weight, bias)
            assert isinstance(layer, nn.Conv2d)
            return layer._conv_forward(rounded(input), weight, bias)

    return run


def new_norm(layer: PlantedBatchNorm2d) -> Callable[[Tensor], Tensor]:
    """The new channels of a batch norm alone."""
    return layer.planted_part


def _geometry(layer: PlantedConv2d) -> tuple[tuple[Any, ...], Callable[[Tensor], Tensor]]:
    """Stride, padding, dilation and groups of a layer, and the padding that is not zeros."""
    if layer.padding_mode == "zeros":
        return (layer.stride, layer.padding, layer.dilation, 1), _as_is
    return (layer.stride, 0, layer.dilation, 1), lambda input: F.pad(input, layer._border, mode=layer.padding_mode)


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


@contextlib.contextmanager
def _full(like: Tensor) -> Any:
    """Under autocast: without it, and a function that rounds to its dtype and back to float32."""
    device = like.device.type
    if not torch.is_autocast_enabled(device):
        yield _as_is
        return
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        yield lambda tensor: tensor.to(dtype).float()
