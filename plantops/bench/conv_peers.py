"""The strongest easy ways to a planted convolution in plain PyTorch, and the weak one: masking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plantops.bench.work import Convolution

aten = torch.ops.aten
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Tensors:
    """The tensors of one planted convolution, `out` and (with planted input channels) `in` block, padding k // 2."""

    def __init__(self, sizes: Convolution, dtype: torch.dtype, layout: str, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        memory_format = LAYOUTS[layout]

        def random(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator).to(device, dtype)
            return values.contiguous(memory_format=memory_format) if len(shape) == 4 else values

        k, size = sizes.kernel, sizes.size
        scale = (k * k * sizes.fan_in) ** -0.5
        self.trunk_in, self.planted_in, self.trunk_out = sizes.trunk_in, sizes.planted_in, sizes.trunk_out
        self.padding = k // 2
        self.input = random(sizes.batch, sizes.fan_in, size, size)
        self.weight, self.bias = random(sizes.trunk_out, sizes.trunk_in, k, k) * scale, random(sizes.trunk_out)
        self.weight_out = random(sizes.planted_out, sizes.fan_in, k, k) * scale
        self.weight_in = random(sizes.trunk_out, sizes.planted_in, k, k) * scale if sizes.planted_in else None
        self.bias_out = random(sizes.planted_out)
        self.upstream = random(sizes.batch, sizes.fan_out, size, size)

    def double(self) -> Tensors:
        """The same numbers in float64."""
        other = object.__new__(Tensors)
        for name, value in vars(self).items():
            setattr(other, name, value.detach().double() if isinstance(value, Tensor) else value)
        return other

    def trained(self, input_grad: str) -> list[Tensor]:
        """What gets a gradient: weight_out, bias_out, weight_in (if any), input (unless "none")."""
        found = [self.weight_out, self.bias_out, self.weight_in, self.input if input_grad != "none" else None]
        return [tensor.requires_grad_() for tensor in found if tensor is not None]

    def parameters(self) -> list[Tensor]:
        """What lives anyway."""
        found = (self.weight, self.bias, self.weight_out, self.weight_in, self.bias_out)
        return [tensor for tensor in found if tensor is not None]

    def joined(self) -> tuple[Tensor, Tensor]:
        """All blocks as one weight and one bias."""
        rows = self.weight if self.weight_in is None else torch.cat([self.weight, self.weight_in], 1)
        return torch.cat([rows, self.weight_out]), torch.cat([self.bias, self.bias_out])


def split(t: Tensors, input_grad: str) -> Callable[[Tensor], Tensor]:
    """One convolution a block; old and new filters side by side."""

    def forward(x: Tensor) -> Tensor:
        trunk = x[:, : t.trunk_in]
        if input_grad == "planted":
            trunk = trunk.detach()
        old = F.conv2d(trunk, t.weight, t.bias, padding=t.padding)
        if t.weight_in is not None:
            planted = x[:, t.trunk_in :]
            old = old + F.conv2d(planted, t.weight_in, padding=t.padding)
            if input_grad == "planted":
                x = torch.cat([trunk, planted], 1)
        return torch.cat([old, F.conv2d(x, t.weight_out, t.bias_out, padding=t.padding)], 1)

    return forward


class _Slices(torch.autograd.Function):
    """A full convolution whose backward looks at slices only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, out: Tensor, bias_out: Tensor, into: Tensor | None, t: Tensors, kind: str
    ) -> Tensor:
        weight, bias = t.joined()
        ctx.save_for_backward(x, weight)
        ctx.t, ctx.kind = t, kind
        return F.conv2d(x, weight, bias, padding=t.padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        (x, weight), t, grad = ctx.saved_tensors, ctx.t, grads[0]
        old, fan_in = t.trunk_out, t.trunk_in

        def partial(g: Tensor, x: Tensor, w: Tensor, bias: list[int] | None, mask: list[bool]) -> tuple:
            pad = [t.padding, t.padding]
            return aten.convolution_backward(g, x, w, bias, [1, 1], pad, [1, 1], False, [0, 0], 1, mask)

        planted_out = weight.shape[0] - old
        _, out, bias_out = partial(grad[:, old:], x, weight[old:], [planted_out], [False, True, True])
        into = dx = None
        if t.planted_in:
            blocks = (grad[:, :old], x[:, fan_in:], weight[:old, fan_in:])
            into = partial(*blocks, None, [False, True, False])[1]
        if ctx.kind == "full":
            dx = partial(grad, x, weight, None, [True, False, False])[0]
        elif ctx.kind == "planted":
            dx = torch.zeros_like(x)
            dx[:, fan_in:] = partial(grad, x[:, fan_in:], weight[:, fan_in:], None, [True, False, False])[0]
        return dx, out, bias_out, into, None, None


def slices(t: Tensors, input_grad: str) -> Callable[[Tensor], Tensor]:
    """A full convolution forward, ATen's convolution_backward on channel slices."""
    return lambda x: _Slices.apply(x, t.weight_out, t.bias_out, t.weight_in, t, input_grad)


class Masked:
    """All parameters in one trained tensor, whose gradient is multiplied by a mask."""

    def __init__(self, t: Tensors, input_grad: str) -> None:
        self.t, self.input_grad = t, input_grad
        self.weight, self.bias = (tensor.detach().requires_grad_() for tensor in t.joined())
        mask = torch.ones_like(self.weight)
        mask[: t.trunk_out, : t.trunk_in] = 0
        self.weight.register_hook(lambda grad: grad * mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.t.padding)

    def trained(self) -> list[Tensor]:
        return [self.weight, self.bias] + ([self.t.input] if self.input_grad != "none" else [])

    def comparable(self, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The planted parts, in the order of `Tensors.trained`."""
        t, (weight, bias, *dx) = self.t, grads
        parts = [weight[t.trunk_out :], bias[t.trunk_out :]]
        if t.weight_in is not None:
            parts.append(weight[: t.trunk_out, t.trunk_in :])
        if dx and self.input_grad == "planted":
            dx = [torch.cat([torch.zeros_like(dx[0][:, : t.trunk_in]), dx[0][:, t.trunk_in :]], 1)]
        return (*parts, *dx)
