"""PlantedConv: the convolutions that `PlantedConv2d` is not made for, computed block by block with torch's own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.nn import _blocks
from plantops.ops._strided import stepped

_CONVOLUTIONS: dict[tuple[bool, int], Any] = {
    (False, 1): F.conv1d, (False, 2): F.conv2d, (False, 3): F.conv3d,
    (True, 1): F.conv_transpose1d, (True, 2): F.conv_transpose2d, (True, 3): F.conv_transpose3d,
}  # fmt: skip


class PlantedConv(_blocks.Planted):
    """A 1-d, 2-d or 3-d convolution, transposed or not, with a frozen trunk, new filters and new input slices.

    With the input's channels split into trunk and planted ones, ``x = (x_trunk, x_planted)``, the old filters compute
    ``conv(x_trunk, weight) + conv(x_planted, weight_in) + bias`` and the new ones ``conv(x, weight_out) + bias_out``,
    each a call of torch's convolution: only the blocks that train get a weight gradient. A grouped convolution gets
    whole new groups: of these new inputs alone, anywhere between the old groups; their outputs lie at the same place.

    Attributes:
        weight, bias: the trunk, parameters that do not train, in torch's shapes.
        weight_out, bias_out: Parameters, new filters over all inputs (grouped: over the inputs of their group); None
            without new filters or without a bias.
        weight_in: Parameter, new input slices of the old filters; None without new inputs or with groups.
        in_channels, out_channels: all channels, planted_in and planted_out of them new, the inputs from in_start on.
    """

    weight: Tensor
    bias: Tensor | None
    weight_out: nn.Parameter | None
    bias_out: nn.Parameter | None
    weight_in: nn.Parameter | None

    def __init__(
        self,
        conv: _ConvNd,
        new_out: int = 0,
        new_in: int = 0,
        *,
        in_start: int | None = None,
        init: str = "zero_in",
        generator: torch.Generator | None = None,
    ) -> None:
        """See `PlantedConv2d.from_conv` for the arguments.

        Raises:
            TypeError: no convolution. ValueError: a count, a position, an init, or groups that do not fit.
        """
        super().__init__()
        if not isinstance(conv, _ConvNd):
            raise ArgumentTypeError(f"conv: expected a convolution of torch.nn, got {type(conv).__name__}")
        _blocks.check_init(init)
        _blocks.check_count("new_out", new_out)
        _blocks.check_count("new_in", new_in)
        self.in_start = _blocks.check_start("in_start", in_start, conv.in_channels)
        self.planted_out, self.planted_in, self.groups = new_out, new_in, conv.groups
        self.in_channels, self.out_channels = conv.in_channels + new_in, conv.out_channels + new_out
        self.transposed = isinstance(conv, _ConvTransposeNd)
        self._settings = {
            name: getattr(conv, name)
            for name in ("kernel_size", "stride", "padding", "output_padding", "dilation", "padding_mode")
            if self.transposed or name != "output_padding"
        }
        self._border = list(conv._reversed_padding_repeated_twice) if conv.padding_mode != "zeros" else None
        self._plain = type(conv)
        self._check_groups()
        self._trained = _blocks.requires_grad(conv.weight), _blocks.requires_grad(conv.bias)
        self.register_parameter("weight", _blocks.frozen(conv.weight))
        self.register_parameter("bias", _blocks.frozen(conv.bias))
        self._plant(init, generator)
        self.train(conv.training)

    def _check_groups(self) -> None:
        inputs = (self.in_channels - self.planted_in) // self.groups
        outputs = (self.out_channels - self.planted_out) // self.groups
        if self.groups == 1:
            return
        if self.planted_in % inputs or self.planted_in // inputs * outputs != self.planted_out:
            raise ArgumentError(
                f"new_out, new_in: expected k x {outputs} and k x {inputs}, k whole new groups, got {self.planted_out} "
                f"and {self.planted_in}"
            )
        if self.in_start % inputs:
            raise ArgumentError(
                f"in_start: expected a multiple of {inputs}, the inputs of a group, got {self.in_start}"
            )

    def _plant(self, init: str, generator: torch.Generator | None) -> None:
        columns = self.in_channels if self.groups == 1 else (self.in_channels - self.planted_in) // self.groups
        rows = (self.out_channels - self.planted_out) // (1 if self.groups == 1 else self.groups)
        fan_in = columns * math.prod(self._settings["kernel_size"])
        weight_out = weight_in = bias_out = None
        if self.planted_out:
            if self.groups == 1:
                shape = self._shape(self.planted_out, columns)
            elif self.transposed:  # torch keeps [all inputs, outputs of a group]
                shape = (self.planted_in, rows, *self._settings["kernel_size"])
            else:
                shape = (self.planted_out, columns, *self._settings["kernel_size"])
            weight_out = _blocks.block(self.weight, shape, fan_in, init == "zero_out", generator)
            bias_out = None if self.bias is None else _blocks.zeros(self.bias, self.planted_out)
        if self.planted_in and self.groups == 1:
            shape = self._shape(rows, self.planted_in)
            weight_in = _blocks.block(self.weight, shape, fan_in, init == "zero_in", generator)
        self.register_parameter("weight_out", weight_out)
        self.register_parameter("bias_out", bias_out)
        self.register_parameter("weight_in", weight_in)

    def _shape(self, rows: int, columns: int) -> tuple[int, ...]:
        first, second = (columns, rows) if self.transposed else (rows, columns)
        return (first, second, *self._settings["kernel_size"])

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        """``[N, F_in + P_in, *]`` to ``[N, F_out + P_out, *]``."""
        self.check_called(input)
        if output_size is not None:
            raise ArgumentError("output_size: not supported while planted; merge first")
        if self._border is not None:
            input = F.pad(input, self._border, mode=self._settings["padding_mode"])
        end = self.in_start + self.planted_in
        before, planted, behind = input[:, : self.in_start], input[:, self.in_start : end], input[:, end:]
        if self.groups > 1:
            return self._by_groups(before, planted, behind)
        trunk = (
            torch.cat([before, behind], 1)
            if before.shape[1] and behind.shape[1]
            else (before if before.shape[1] else behind)
        )
        old = self._convolve(trunk, self.weight, self.bias)
        if self.weight_in is not None:
            old = old + self._convolve(planted, self.weight_in, None)
        if self.weight_out is None:
            return old
        return torch.cat([old, self._convolve(input, self.weight_out, self.bias_out)], 1)

    def _by_groups(self, before: Tensor, planted: Tensor, behind: Tensor) -> Tensor:
        inputs = (self.in_channels - self.planted_in) // self.groups
        outputs = (self.out_channels - self.planted_out) // self.groups
        done = before.shape[1] // inputs
        rows = done * (inputs if self.transposed else outputs)
        parts = []
        for part, weight, bias in (
            (before, self.weight[:rows], None if self.bias is None else self.bias[: done * outputs]),
            (planted, self.weight_out, self.bias_out),
            (behind, self.weight[rows:], None if self.bias is None else self.bias[done * outputs :]),
        ):
            if part.shape[1]:
                parts.append(self._convolve(part, weight, bias, part.shape[1] // inputs))
        return torch.cat(parts, 1)

    def _convolve(self, input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int = 1) -> Tensor:
        settings = self._settings
        stride, padding = settings["stride"], (0,) if self._border is not None else settings["padding"]
        if weight is not None and weight.requires_grad and not self.transposed:
            input, stride = stepped(input, settings["kernel_size"], stride, padding)
        function = _CONVOLUTIONS[self.transposed, len(settings["kernel_size"])]
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": settings["dilation"]}
        if self.transposed:
            options["output_padding"] = settings["output_padding"]
        return function(input, weight, bias, groups=groups, **options)

    def whole_weight(self) -> Tensor:
        """Trunk and planted blocks joined as in `merge`, but for memory format and the order of channels that are
        planted in several places; differentiable in the blocks."""
        if self.groups > 1:
            done = self.in_start // ((self.in_channels - self.planted_in) // self.groups)
            rows = self.in_channels - self.planted_in if self.transposed else self.out_channels - self.planted_out
            weight = _blocks.join(self.weight, self.weight_out, done * (rows // self.groups))
            assert weight is not None
            return weight
        blocks = [
            None if t is None else t.transpose(0, 1) if self.transposed else t
            for t in (self.weight, self.weight_out, self.weight_in)
        ]
        assert blocks[0] is not None
        weight = _blocks.join_rows(blocks[0], blocks[1], blocks[2], self.in_start)
        return weight.transpose(0, 1) if self.transposed else weight

    def merge(self) -> nn.Module:
        """The plain convolution with equal outputs. Old filters come first, but for a grouped one, whose new groups
        stay where they are; `requires_grad` is as it was, the parameters are copies."""
        inputs = (self.in_channels - self.planted_in) // self.groups
        outputs = (self.out_channels - self.planted_out) // self.groups
        groups = self.groups + (self.planted_in // inputs if self.groups > 1 else 0)
        conv = torch.nn.utils.skip_init(
            self._plain,
            self.in_channels,
            self.out_channels,
            groups=groups,
            bias=self.bias is not None,
            **self._settings,
        )
        with torch.no_grad():
            weight = self.whole_weight().clone(memory_format=_blocks.layout(self.weight))
            behind = None if self.groups == 1 else self.in_start // inputs * outputs
            bias = _blocks.join(self.bias, self.bias_out, behind)
        conv.register_parameter("weight", _blocks.plain_parameter(weight, self._trained[0]))
        conv.register_parameter("bias", _blocks.plain_parameter(bias, self._trained[1]))
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """Channels as old + new, and the layer that `merge` gives."""
        old_in, old_out = self.in_channels - self.planted_in, self.out_channels - self.planted_out
        text = f"{self._plain.__name__}, {old_in} + {self.planted_in}, {old_out} + {self.planted_out}"
        return text + ("" if self.groups == 1 else f", groups={self.groups}")
