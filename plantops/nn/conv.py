"""PlantedConv2d: an nn.Conv2d that has grown and of which only what has grown trains."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plantops import functional
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.nn import _blocks


class PlantedConv2d(_blocks.Planted):
    """A 2-d convolution with a frozen trunk, new filters and new input slices of the old filters.

    ``y = max_pool(activation(conv + addend))``, where the old filters compute
    ``conv(x_trunk, weight) + conv(x_planted, weight_in) + bias`` and the new ones ``conv(x, weight_out) + bias_out``;
    see `plantops.functional.planted_conv2d`. Made by `from_conv`.

    Attributes:
        weight, bias: the trunk, parameters that do not train: ``[F_out, F_in / groups, kH, kW]`` and ``[F_out]`` or
            None.
        weight_out: Parameter ``[P_out, F_in + P_in, kH, kW]`` (new groups: ``[P_out, F_in / groups, kH, kW]``), or
            None without new filters.
        bias_out: Parameter ``[P_out]``, or None without new filters or without a bias.
        weight_in: Parameter ``[F_out, P_in, kH, kW]``, or None without new inputs or with new groups.
        in_channels, out_channels: all channels, ``F_in + P_in`` and ``F_out + P_out``; planted_in and planted_out of
            them are new. kernel_size, stride, padding, padding_mode, dilation and groups (the trunk's) as in
            `nn.Conv2d`.
    """

    weight: Tensor
    bias: Tensor | None
    weight_out: nn.Parameter | None
    bias_out: nn.Parameter | None
    weight_in: nn.Parameter | None

    def __init__(
        self,
        conv: nn.Conv2d,
        new_out: int = 0,
        new_in: int = 0,
        *,
        in_start: int | None = None,
        init: str = "zero_in",
        generator: torch.Generator | None = None,
        activation: str = "none",
        max_pool: int = 1,
        input_grad: str = "full",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(conv, nn.Conv2d):
            raise ArgumentTypeError(f"conv: expected an nn.Conv2d, got {type(conv).__name__}")
        _blocks.check_init(init)
        _blocks.check_count("new_out", new_out)
        _blocks.check_count("new_in", new_in)
        self.in_start = _blocks.check_start("in_start", in_start, conv.in_channels)
        if conv.groups > 1:
            _check_new_groups(conv, new_out, new_in, self.in_start)
        self.planted_out, self.planted_in = new_out, new_in
        self.in_channels, self.out_channels = conv.in_channels + new_in, conv.out_channels + new_out
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.padding_mode, self.dilation, self.groups = conv.padding_mode, conv.dilation, conv.groups
        self.activation, self.max_pool, self.input_grad, self.impl = activation, max_pool, input_grad, impl
        self._border = list(conv._reversed_padding_repeated_twice)
        self._trained = _blocks.requires_grad(conv.weight), _blocks.requires_grad(conv.bias)
        self.register_parameter("weight", _blocks.frozen(conv.weight))
        self.register_parameter("bias", _blocks.frozen(conv.bias))
        self._plant(init, generator)
        self.train(conv.training)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, new_out: int = 0, new_in: int = 0, **options: Any) -> PlantedConv2d:
        """The layer with `new_out` new filters and `new_in` new input channels.

        Its trunk is the layer's own memory, not a copy. Dtype, device, memory format, padding mode and training mode
        are the layer's.

        Args:
            conv: the layer as trained so far. With groups > 1 whole new groups are planted behind the old ones:
                ``new_out`` and ``new_in`` are k times the filters and inputs of a group.
            in_start: where the new input channels lie in the input; default: behind the old ones.
            init: "zero_in": ``weight_in`` 0, so old outputs stay; new filters normal with He's variance for ReLU,
                ``2 / fan_in`` over all inputs; ``bias_out`` 0. "kaiming": ``weight_in`` He normal too. "zero_out":
                ``weight_in`` He normal, ``weight_out`` and ``bias_out`` 0.
            generator: where the random numbers come from; default: torch's.
            activation, max_pool, input_grad, impl: as in `plantops.functional.planted_conv2d`.

        Raises:
            TypeError: no nn.Conv2d. ValueError: a count, a position, an init, or groups that do not fit.
        """
        return cls(conv, new_out, new_in, **options)

    def _plant(self, init: str, generator: torch.Generator | None) -> None:
        kernel, rows = self.kernel_size, self.weight.shape[0]
        columns = self.in_channels if self.groups == 1 else self.weight.shape[1]
        fan_in = columns * kernel[0] * kernel[1]
        weight_out = weight_in = bias_out = None
        if self.planted_out:
            shape = (self.planted_out, columns, *kernel)
            weight_out = _blocks.block(self.weight, shape, fan_in, init == "zero_out", generator)
            bias_out = None if self.bias is None else _blocks.zeros(self.bias, self.planted_out)
        if self.planted_in and self.groups == 1:
            shape = (rows, self.planted_in, *kernel)
            weight_in = _blocks.block(self.weight, shape, fan_in, init == "zero_in", generator)
        self.register_parameter("weight_out", weight_out)
        self.register_parameter("bias_out", bias_out)
        self.register_parameter("weight_in", weight_in)

    def forward(self, input: Tensor, addend: Tensor | None = None) -> Tensor:
        """``[N, F_in + P_in, H, W]`` to ``[N, F_out + P_out, H', W']``; addend: that shape before pooling."""
        self.check_called(input)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._border, mode=self.padding_mode), 0
        return functional.planted_conv2d(
            input, self.weight, self.weight_out, self.weight_in, self.bias, self.bias_out, self.stride, padding,
            self.dilation, self.groups, in_start=self.in_start, addend=addend, activation=self.activation,
            max_pool=self.max_pool, input_grad=self.input_grad, impl=self.impl,
        )  # fmt: skip

    def whole_weight(self) -> Tensor:
        """``[F_out + P_out, (F_in + P_in) / groups, kH, kW]``: trunk and planted blocks joined as in `merge`,
        differentiable in the blocks."""
        return _blocks.join_rows(self.weight, self.weight_out, self.weight_in, self.in_start)

    def merge(self) -> nn.Module:
        """The plain layer with equal outputs: an `nn.Conv2d`, followed by `nn.ReLU` and `nn.MaxPool2d` in an
        `nn.Sequential` where the planted layer has them fused. Old filters come first; `requires_grad` is as it was
        in the layer that `from_conv` saw. The parameters are copies."""
        groups = self.groups
        if groups > 1:
            groups += self.planted_out // (self.weight.shape[0] // groups)
        conv = torch.nn.utils.skip_init(
            nn.Conv2d, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding,
            self.dilation, groups, self.bias is not None, self.padding_mode,
        )  # fmt: skip
        with torch.no_grad():
            weight = _blocks.join_weight(self.weight, self.weight_out, self.weight_in, self.in_start)
            bias = _blocks.join(self.bias, self.bias_out)
        conv.register_parameter("weight", _blocks.plain_parameter(weight, self._trained[0]))
        conv.register_parameter("bias", _blocks.plain_parameter(bias, self._trained[1]))
        fused: list[nn.Module] = []
        if self.activation == "relu":
            fused.append(nn.ReLU())
        if self.max_pool > 1:
            fused.append(nn.MaxPool2d(self.max_pool))
        return (nn.Sequential(conv, *fused) if fused else conv).train(self.training)

    def extra_repr(self) -> str:
        """Channels as old + new, then what differs from the defaults of nn.Conv2d."""
        old_in, old_out = self.in_channels - self.planted_in, self.out_channels - self.planted_out
        text = f"{old_in} + {self.planted_in}, {old_out} + {self.planted_out}"
        text += f", kernel_size={self.kernel_size}, stride={self.stride}"
        if self.in_start != old_in:
            text += f", in_start={self.in_start}"
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros", "activation": "none"}
        for name, default in {**defaults, "max_pool": 1, "input_grad": "full", "impl": "auto"}.items():
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value!r}"
        return text + ("" if self.bias is not None else ", bias=False")


def _check_new_groups(conv: nn.Conv2d, new_out: int, new_in: int, in_start: int) -> None:
    filters, inputs = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    if new_out % filters or new_in % inputs or new_out // filters != new_in // inputs:
        raise ArgumentError(
            f"new_out, new_in: expected k x {filters} and k x {inputs}, k whole new groups, for a layer with "
            f"groups={conv.groups}, got {new_out} and {new_in}"
        )
    if in_start != conv.in_channels:
        raise ArgumentError(
            f"in_start: expected {conv.in_channels} (new groups behind the old ones: elsewhere no plain grouped "
            f"convolution would equal it), got {in_start}"
        )
