"""Planted convolutions to test on, and the same thing in plain torch: everything joined, the gradient masked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plantops.functional import planted_conv2d

LAYOUTS = ("contiguous", "channels_last", "slice", "channels_last slice")


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call. `start` None: behind the trunk."""

    fi: int = 5
    pi: int = 2
    fo: int = 4
    po: int = 3
    start: int | None = 2
    kernel: tuple[int, int] = (3, 3)
    stride: Any = 1
    padding: Any = 1
    dilation: Any = 1
    groups: int = 1
    batch: int = 2
    size: tuple[int, int] = (7, 6)
    bias: bool = True
    bias_out: bool = True
    addend: bool = False
    activation: str = "none"
    max_pool: int = 1
    layout: str = "contiguous"

    def __str__(self) -> str:
        default = Case()
        names = [name for name in vars(default) if getattr(self, name) != getattr(default, name)]
        return " ".join(f"{name}={getattr(self, name)}" for name in names) or "plain"


GEOMETRIES = [
    Case(),
    Case(kernel=(1, 1), padding=0),
    Case(kernel=(1, 1), padding=0, stride=(3, 2), size=(9, 8)),
    Case(kernel=(2, 3), padding=(0, 1)),
    Case(kernel=(4, 4), padding=2, stride=(2, 1)),
    Case(kernel=(5, 5), padding=2, dilation=(1, 2), size=(9, 10)),
    Case(kernel=(6, 6), padding=3, stride=3),
    Case(kernel=(7, 7), padding=3, stride=2),
    Case(kernel=(3, 3), padding="same", dilation=2),
    Case(kernel=(2, 4), padding="same"),
    Case(kernel=(3, 3), padding="valid"),
    Case(kernel=(3, 2), padding=(2, 4), dilation=(2, 1)),
    Case(layout="channels_last"),
    Case(layout="slice"),
    Case(layout="channels_last slice", stride=2),
    Case(bias=False, bias_out=False),
    Case(bias=False),
    Case(bias_out=False),
    Case(start=0),
    Case(start=None),
    Case(fi=9, pi=1, fo=9, po=1, layout="channels_last", start=None),  # slices of a single channel
    Case(size=(1, 1)),
    Case(size=(1, 9), layout="channels_last"),
]
EMPTY = [
    Case(fi=0, start=0),
    Case(fi=0, start=0, po=0, addend=True),  # an `in` block alone, on an addend
    Case(fo=0),
    Case(fo=0, pi=0, start=None),
    Case(pi=0, start=None),
    Case(po=0),
    Case(pi=0, po=0, start=None),
    Case(fi=0, pi=0, start=0),
    Case(fo=0, po=0),
    Case(batch=0),
    Case(batch=0, layout="channels_last", max_pool=2, activation="relu"),
]
EPILOGUES = [
    Case(activation="relu"),
    Case(max_pool=2),
    Case(max_pool=3, activation="relu", size=(8, 7)),
    Case(max_pool=2, activation="relu", layout="channels_last", size=(8, 8)),
    Case(max_pool=5, activation="relu", layout="slice"),
    Case(addend=True),
    Case(addend=True, activation="relu"),
    Case(addend=True, max_pool=2, activation="relu", layout="channels_last slice"),
    Case(addend=True, max_pool=2, fi=0, start=0),
]
GROUPS = [
    Case(fi=6, fo=4, groups=2, pi=3, po=2, start=None),
    Case(fi=6, fo=4, groups=2, pi=6, po=4, start=3, activation="relu", max_pool=2),
    Case(fi=6, fo=4, groups=2, pi=3, po=2, start=1, layout="channels_last"),
    Case(fi=4, fo=4, groups=4, pi=2, po=2, start=None, stride=2),  # depthwise
    Case(fi=6, fo=4, groups=2, pi=0, po=0, start=None),
]
ALL = GEOMETRIES + EMPTY + EPILOGUES + GROUPS


def arrange(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    last = layout.startswith("channels_last")
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if not layout.endswith("slice"):
        return x
    n, c, h, w = x.shape
    wide = x.new_full((n, c + 3, h, w), float("nan"))
    wide = wide.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    wide[:, 1 : 1 + c] = x
    return wide[:, 1 : 1 + c]


@dataclass
class Problem:
    """The tensors of a case. `trained`: input, weight_out, weight_in, bias_out, addend, by name, where they exist."""

    case: Case
    trained: dict[str, Tensor]
    weight: Tensor
    bias: Tensor | None
    start: int

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> Problem:
        g = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu")
            return values.to(torch.get_default_device(), dtype)

        c = case
        scale = 1 / max(1, (c.fi + c.pi) // c.groups * c.kernel[0] * c.kernel[1]) ** 0.5
        columns = c.fi // c.groups if c.groups > 1 else c.fi + c.pi
        trained = {
            "input": arrange(randn(c.batch, c.fi + c.pi, *c.size), c.layout),
            "weight_out": randn(c.po, columns, *c.kernel) * scale,
        }
        if c.groups == 1:
            trained["weight_in"] = randn(c.fo, c.pi, *c.kernel) * scale
        weight = randn(c.fo, c.fi // c.groups, *c.kernel) * scale
        bias = randn(c.fo) if c.bias else None
        if c.bias_out:
            trained["bias_out"] = randn(c.po)
        problem = cls(case, trained, weight, bias, c.fi if c.start is None else c.start)
        if c.addend:
            trained["addend"] = randn(*problem.joined(before="addend").shape)
        for tensor in trained.values():
            tensor.requires_grad_()
        return problem

    def to(self, dtype: torch.dtype) -> Problem:
        """The same values, rounded to another dtype."""
        trained = {}
        for name, tensor in self.trained.items():
            rounded = tensor.detach().to(dtype)
            trained[name] = (arrange(rounded, self.case.layout) if name == "input" else rounded).requires_grad_()
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, trained=trained, weight=self.weight.to(dtype), bias=bias)

    def planted(self, impl: str, **options: Any) -> Tensor:
        """What is tested."""
        c, t = self.case, self.trained
        return planted_conv2d(
            t["input"], self.weight, t["weight_out"], t.get("weight_in"), self.bias, t.get("bias_out"), c.stride,
            c.padding, c.dilation, c.groups, in_start=c.start, addend=t.get("addend"), activation=c.activation,
            max_pool=c.max_pool, impl=impl, **options,
        )  # fmt: skip

    def joined(self, before: str = "") -> Tensor:
        """The same in plain torch, all blocks joined; `before="addend"`: the convolution alone."""
        c, t = self.case, self.trained
        out, end = t["weight_out"], self.start + c.pi
        bias = self.bias if self.bias is not None else out.new_zeros(c.fo)
        bias_out = t.get("bias_out", out.new_zeros(c.po))
        x = t["input"]
        if c.groups > 1:
            x = torch.cat([x[:, : self.start], x[:, end:], x[:, self.start : end]], 1)
            weight, groups = torch.cat([self.weight, out]), c.groups + c.po * c.groups // c.fo
        else:
            rows = torch.cat([self.weight[:, : self.start], t["weight_in"], self.weight[:, self.start :]], 1)
            weight, groups = torch.cat([rows, out]), 1
        y = self._convolve(x, weight, torch.cat([bias, bias_out]), groups)
        if before == "addend":
            return y
        if "addend" in t:
            y = y + t["addend"]
        if c.activation == "relu":
            y = y.relu()
        return y if c.max_pool == 1 else F.max_pool2d(y, c.max_pool)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        c = self.case
        if x.shape[1] == 0 or weight.shape[0] == 0:
            # ATen is wrong without input channels: let one channel of zeros stand in.
            n, o = x.shape[0], weight.shape[0]
            x = x.new_zeros(n, 1, *x.shape[2:]) + x.sum() * 0
            weight = weight.new_zeros(max(1, o), 1, *c.kernel) + weight.sum() * 0
            wide = torch.cat([bias, bias.new_zeros(1)])[: max(1, o)]
            return F.conv2d(x, weight, wide, c.stride, c.padding, c.dilation)[:, :o]
        return F.conv2d(x, weight, bias, c.stride, c.padding, c.dilation, groups)

    def gradients(self, y: Tensor, upstream: Tensor) -> dict[str, Tensor | None]:
        """By name, with None where there is none."""
        grads = torch.autograd.grad(y, list(self.trained.values()), upstream, allow_unused=True)
        return dict(zip(self.trained, grads, strict=True))
