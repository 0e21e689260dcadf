"""PlantedLinear: an nn.Linear that has grown and of which only what has grown trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plantops import functional
from plantops.errors import ArgumentTypeError
from plantops.nn import _blocks


class PlantedLinear(_blocks.Planted):
    """A linear layer with a frozen trunk, new rows and new input slices of the old rows.

    ``y = activation(linear + addend)``, where the old rows compute
    ``x_trunk weight^T + x_planted weight_in^T + bias`` and the new ones ``x weight_out^T + bias_out``; see
    `plantops.functional.planted_linear`. Made by `from_linear`.

    Attributes:
        weight, bias: the trunk, parameters that do not train: ``[F_out, F_in]`` and ``[F_out]`` or None.
        weight_out: Parameter ``[P_out, F_in + P_in]``, or None without new rows.
        bias_out: Parameter ``[P_out]``, or None without new rows or without a bias.
        weight_in: Parameter ``[F_out, P_in]``, or None without new inputs.
        in_features, out_features: all of them; planted_in and planted_out of them are new.
    """

    weight: Tensor
    bias: Tensor | None
    weight_out: nn.Parameter | None
    bias_out: nn.Parameter | None
    weight_in: nn.Parameter | None

    def __init__(
        self,
        linear: nn.Linear,
        new_out: int = 0,
        new_in: int = 0,
        *,
        in_start: int | None = None,
        init: str = "zero_in",
        generator: torch.Generator | None = None,
        activation: str = "none",
        input_grad: str = "full",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise ArgumentTypeError(f"linear: expected an nn.Linear, got {type(linear).__name__}")
        _blocks.check_init(init)
        _blocks.check_count("new_out", new_out)
        _blocks.check_count("new_in", new_in)
        self.in_start = _blocks.check_start("in_start", in_start, linear.in_features)
        self.planted_out, self.planted_in = new_out, new_in
        self.in_features, self.out_features = linear.in_features + new_in, linear.out_features + new_out
        self.activation, self.input_grad, self.impl = activation, input_grad, impl
        self._trained = _blocks.requires_grad(linear.weight), _blocks.requires_grad(linear.bias)
        self.register_parameter("weight", _blocks.frozen(linear.weight))
        self.register_parameter("bias", _blocks.frozen(linear.bias))
        self._plant(init, generator)
        self.train(linear.training)

    @classmethod
    def from_linear(cls, linear: nn.Linear, new_out: int = 0, new_in: int = 0, **options: Any) -> PlantedLinear:
        """The layer with `new_out` new rows and `new_in` new input features.

        Its trunk is the layer's own memory, not a copy. Dtype, device and training mode are the layer's.

        Args:
            linear: the layer as trained so far.
            in_start: where the new features lie in the input; default: behind the old ones.
            init: "zero_in": ``weight_in`` 0, so old outputs stay; new rows normal with He's variance for ReLU,
                ``2 / (F_in + P_in)``; ``bias_out`` 0. "kaiming": ``weight_in`` He normal too. "zero_out":
                ``weight_in`` He normal, ``weight_out`` and ``bias_out`` 0.
            generator: where the random numbers come from; default: torch's.
            activation, input_grad, impl: as in `plantops.functional.planted_linear`.

        Raises:
            TypeError: no nn.Linear. ValueError: a count, a position or an init.
        """
        return cls(linear, new_out, new_in, **options)

    def _plant(self, init: str, generator: torch.Generator | None) -> None:
        weight_out = weight_in = bias_out = None
        if self.planted_out:
            weight_out = _blocks.block(
                self.weight, (self.planted_out, self.in_features), self.in_features, init == "zero_out", generator
            )
            bias_out = None if self.bias is None else _blocks.zeros(self.bias, self.planted_out)
        if self.planted_in:
            weight_in = _blocks.block(
                self.weight, (self.weight.shape[0], self.planted_in), self.in_features, init == "zero_in", generator
            )
        self.register_parameter("weight_out", weight_out)
        self.register_parameter("bias_out", bias_out)
        self.register_parameter("weight_in", weight_in)

    def forward(self, input: Tensor, addend: Tensor | None = None) -> Tensor:
        """``[*, F_in + P_in]`` to ``[*, F_out + P_out]``; addend: the output's shape."""
        self.check_called(input)
        return functional.planted_linear(
            input, self.weight, self.weight_out, self.weight_in, self.bias, self.bias_out, in_start=self.in_start,
            addend=addend, activation=self.activation, input_grad=self.input_grad, impl=self.impl,
        )  # fmt: skip

    def merge(self) -> nn.Module:
        """The plain layer with equal outputs: an `nn.Linear`, followed by `nn.ReLU` in an `nn.Sequential` where the
        planted layer has it fused. Old rows come first; `requires_grad` is as it was in the layer that `from_linear`
        saw. The parameters are copies."""
        linear = torch.nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, self.bias is not None)
        with torch.no_grad():
            weight = _blocks.join_weight(self.weight, self.weight_out, self.weight_in, self.in_start)
            bias = _blocks.join(self.bias, self.bias_out)
        linear.register_parameter("weight", _blocks.plain_parameter(weight, self._trained[0]))
        linear.register_parameter("bias", _blocks.plain_parameter(bias, self._trained[1]))
        merged = nn.Sequential(linear, nn.ReLU()) if self.activation == "relu" else linear
        return merged.train(self.training)

    def extra_repr(self) -> str:
        """Features as old + new, then what differs from the defaults."""
        old_in, old_out = self.in_features - self.planted_in, self.out_features - self.planted_out
        text = f"{old_in} + {self.planted_in}, {old_out} + {self.planted_out}, bias={self.bias is not None}"
        if self.in_start != old_in:
            text += f", in_start={self.in_start}"
        for name, default in {"activation": "none", "input_grad": "full", "impl": "auto"}.items():
            value = getattr(self, name)
            if value != default:
                text += f", {name}={value!r}"
        return text
