"""Which way the weight gradients of strided kernels of one pixel take: stride 1 over the pixels that are read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from paths import by, without_the_module
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from plantops.nn import PlantedConv, PlantedConv2d
from plantops.ops._strided import has_narrow_steps


def compiled(call: Callable[[], None]) -> None:
    call()


def in_python(call: Callable[[], None]) -> None:
    by(without_the_module, call)


def planted_conv2d(**options) -> nn.Module:
    layer = PlantedConv2d.from_conv(nn.Conv2d(12, 8, 1, **options), 4, 4, init="kaiming")
    layer.impl = "aten"
    return layer


def one_group_more() -> nn.Module:
    layer = PlantedConv2d.from_conv(nn.Conv2d(12, 6, 1, stride=2, groups=3), 2, 4, init="kaiming")
    layer.impl = "aten"
    return layer


DOORS = {
    "op": lambda: planted_conv2d(stride=(2, 3)),
    "valid": lambda: planted_conv2d(stride=2, padding="valid"),
    "groups": one_group_more,
    "any 2d": lambda: PlantedConv(nn.Conv2d(12, 8, 1, stride=(2, 3), padding_mode="reflect"), 4, 4, init="kaiming"),
    "any 1d": lambda: PlantedConv(nn.Conv1d(12, 8, 1, stride=3), 4, 4, init="kaiming"),
    "any 3d": lambda: PlantedConv(nn.Conv3d(12, 8, 1, stride=(1, 2, 1)), 4, 4, init="kaiming"),
}


@pytest.mark.parametrize("way", [compiled, in_python])
@pytest.mark.parametrize("door", DOORS)
def test_they_are_asked_for_with_stride_one(door: str, way: Callable[[Callable[[], None]], None]) -> None:
    layer = DOORS[door]()
    dims = layer.weight.dim() - 2
    x = torch.randn(3, layer.in_channels, *(9, 12, 5)[:dims])
    upstream = torch.randn(layer(x).shape)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        way(lambda: layer(x).backward(upstream))
    calls = [event for event in recorded.events() if event.name == "aten::convolution_backward"]
    assert len(calls) == sum(p.dim() > 1 and p.requires_grad for p in layer.parameters())
    for call in calls:
        gradient, read = call.input_shapes[:2]
        assert read[2:] == gradient[2:] == list(upstream.shape[2:])
    check_values(layer, x, upstream)


def check_values(layer: nn.Module, x: Tensor, upstream: Tensor) -> None:
    """The gradients against those of the plain layer in float64, to the roundings of float32 sums."""
    plain = layer.merge().double()
    plain.requires_grad_()
    sums = plain(x.double())
    sums.backward(upstream.double())
    count = upstream.numel() / upstream.shape[1]
    bound = 4 * count**0.5 * torch.finfo(torch.float32).eps
    for name, parameter in layer.named_parameters():
        if not parameter.requires_grad:
            continue
        norm = plain.weight.grad.norm() if "weight" in name else plain.bias.grad.norm()
        want = {
            "weight_out": lambda: plain.weight.grad[-layer.weight_out.shape[0] :],
            "weight_in": lambda: plain.weight.grad[: layer.weight.shape[0], layer.weight.shape[1] :],
            "bias_out": lambda: plain.bias.grad[-layer.bias_out.shape[0] :],
        }[name]()
        assert (parameter.grad - want).norm() <= bound * norm, name


@pytest.mark.parametrize(
    ("layer", "narrow"),
    [
        (nn.Conv2d(15, 4, 1, stride=2), True),
        (nn.Conv1d(3, 4, 1, stride=(2,), padding="valid"), True),
        (nn.Conv2d(16, 4, 1, stride=2), False),
        (nn.Conv2d(3, 4, 1), False),
        (nn.Conv2d(3, 4, 1, stride=2, padding=1), False),
        (nn.Conv2d(3, 4, 3, stride=2), False),
        (nn.Conv2d(3, 4, 1, stride=2).requires_grad_(False), False),
    ],
)
def test_layers_of_torch_that_would_not(layer: nn.Module, narrow: bool) -> None:
    assert has_narrow_steps(nn.Sequential(nn.ReLU(), layer)) == narrow
