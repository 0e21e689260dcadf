"""Planted layers that treat every channel, or every group of channels, for itself: norms and PReLU."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plantops.errors import ArgumentError
from plantops.nn import _blocks
from plantops.nn.norm import PlantedBatchNorm2d


class PlantedBatchNorm3d(PlantedBatchNorm2d):
    """`PlantedBatchNorm2d` for inputs ``[N, C, D, H, W]``. Made by ``PlantedBatchNorm3d.from_bn``."""

    _plain = nn.BatchNorm3d  # type: ignore[assignment]
    _dims = (5,)


class PlantedBatchNormAct2d(PlantedBatchNorm2d):
    """`PlantedBatchNorm2d` for a batch norm that applies its children ``drop`` and ``act`` to the result, as timm's
    ``BatchNormAct2d`` does. ``merge`` gives the same class back. Made by ``PlantedBatchNormAct2d.from_bn``."""

    def __init__(self, bn: nn.BatchNorm2d, new_features: int, *, start: int | None = None) -> None:
        super().__init__(bn, new_features, start=start)
        self.drop, self.act = bn.drop, bn.act
        self._source = (bn,)  # in a tuple: its tensors are not this module's

    def forward(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return self.act(self.drop(super().forward(input)))  # type: ignore[operator]

    def merge(self) -> nn.Module:
        """The grown norm, of the class that `from_bn` saw, with equal outputs in ``eval()``."""
        norm = _regrown(self._source[0], super().merge(), "num_features")
        norm.drop, norm.act = self.drop, self.act
        return norm


class _Planted(_blocks.Planted):
    """A layer with one weight (and bias) a channel, of which ``[start, start + P)`` are new.

    Attributes:
        weight, bias: the trunk's, parameters that do not train (None as in the source).
        weight_out, bias_out: Parameters ``[P]`` of the new channels, which start as in a new layer; None as in the
            source.
        planted_features: P; the new channels are ``[start, start + P)`` of the input's dimension 1.
    """

    weight: Tensor | None
    bias: Tensor | None
    weight_out: nn.Parameter | None
    bias_out: nn.Parameter | None
    _width = ""

    def __init__(self, layer: nn.Module, new_features: int, *, start: int | None = None) -> None:
        super().__init__()
        _blocks.check_count("new_features", new_features)
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        self.features = int(getattr(layer, self._width))
        self.start = _blocks.check_start("start", start, self.features)
        self.planted_features = new_features
        self._source = (layer,)  # in a tuple: its tensors are not this module's
        self._trained = _blocks.requires_grad(weight), _blocks.requires_grad(bias)
        self.register_parameter("weight", _blocks.frozen(weight))
        self.register_parameter("bias", _blocks.frozen(bias))
        self.weight_out = None if weight is None else nn.Parameter(weight.new_full((new_features,), self._first(layer)))
        self.bias_out = None if bias is None else nn.Parameter(bias.new_zeros(new_features))
        self.train(layer.training)

    def _first(self, layer: nn.Module) -> float:
        return 1.0

    def _apply_to(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """``[N, F + P, *]`` to the same shape."""
        self.check_called(input)
        if input.shape[1] != self.features + self.planted_features:
            raise ArgumentError(
                f"input: expected {self.features + self.planted_features} channels, got {tuple(input.shape)}"
            )
        end = self.start + self.planted_features
        parts = [
            self._part(input[:, : self.start], self.weight, self.bias, slice(0, self.start)),
            self._part(input[:, self.start : end], self.weight_out, self.bias_out, slice(None)),
            self._part(input[:, end:], self.weight, self.bias, slice(self.start, None)),
        ]
        return torch.cat([part for part in parts if part.shape[1]], 1)

    def _part(self, input: Tensor, weight: Tensor | None, bias: Tensor | None, part: slice) -> Tensor:
        if input.shape[1] == 0:
            return input
        return self._apply_to(input, *(None if tensor is None else tensor[part] for tensor in (weight, bias)))

    def merge(self) -> nn.Module:
        """The plain layer with equal outputs; `requires_grad` is as it was, the parameters are copies."""
        grown = nn.Module()
        for name, trained in zip(("weight", "bias"), self._trained, strict=True):
            with torch.no_grad():
                joined = _blocks.join(getattr(self, name), getattr(self, f"{name}_out"), self.start)
            grown.register_parameter(name, _blocks.plain_parameter(joined, trained))
        merged = _regrown(self._source[0], grown, None)
        setattr(merged, self._width, self.features + self.planted_features)
        return merged.train(self.training)

    def extra_repr(self) -> str:
        """Channels as old + new."""
        where = "" if self.start == self.features else f", start={self.start}"
        return f"{self.features} + {self.planted_features}{where}"


def _regrown(source: nn.Module, grown: nn.Module, width: str | None) -> nn.Module:
    """A layer of ``source``'s class and settings with the tensors of ``grown``."""
    merged = copy.copy(source)
    for name in ("_parameters", "_buffers", "_modules"):
        vars(merged)[name] = dict(vars(source)[name])
    for name, value in vars(source).items():
        if "_hooks" in name and isinstance(value, dict):
            vars(merged)[name] = type(value)()
    for name in merged._parameters:
        merged._parameters[name] = grown._parameters[name]
    for name, buffer in grown._buffers.items():
        merged._buffers[name] = buffer
    if width is not None:
        setattr(merged, width, getattr(grown, width))
    return merged.train(grown.training)


class PlantedGroupNorm(_Planted):
    """Group norm with new groups of the old size: ``P = k C / groups`` channels, between old groups or behind them.

    Old groups normalise over the channels they always had. Made from an `nn.GroupNorm`.

    Raises:
        ValueError: a number or position of new channels that is no multiple of the size of a group.
    """

    _width = "num_channels"

    def __init__(self, layer: nn.GroupNorm, new_features: int, *, start: int | None = None) -> None:
        super().__init__(layer, new_features, start=start)
        self.eps, self.size = layer.eps, layer.num_channels // layer.num_groups
        if new_features % self.size or self.start % self.size:
            raise ArgumentError(
                f"new_features, start: expected multiples of {self.size}, the channels of a group, got {new_features} "
                f"and {self.start}"
            )

    def _apply_to(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.group_norm(input, input.shape[1] // self.size, weight, bias, self.eps)

    def merge(self) -> nn.Module:
        """The plain `nn.GroupNorm` with equal outputs; `requires_grad` is as it was, the parameters are copies."""
        merged = super().merge()
        vars(merged)["num_groups"] = (self.features + self.planted_features) // self.size
        return merged


class PlantedInstanceNorm(_Planted):
    """Instance norm with new channels, for any number of dimensions. Without running statistics. Made from an
    `nn.InstanceNorm1d`, 2d or 3d."""

    _width = "num_features"

    def __init__(self, layer: Any, new_features: int, *, start: int | None = None) -> None:
        super().__init__(layer, new_features, start=start)
        if layer.track_running_stats:
            raise ArgumentError("layer: expected an instance norm without running statistics")
        self.eps = layer.eps

    def _apply_to(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.instance_norm(input, None, None, weight, bias, True, 0.0, self.eps)


class PlantedPReLU(_Planted):
    """PReLU with a slope for every channel; new slopes start at torch's 0.25. Made from an `nn.PReLU`."""

    _width = "num_parameters"

    def _first(self, layer: nn.Module) -> float:
        return 0.25

    def _apply_to(self, input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert weight is not None
        return F.prelu(input, weight)
