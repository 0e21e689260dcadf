"""planted_linear, forward + backward and backward alone, beside its peers.

Variants: our implementations; ``split + cat`` (one product a block) and ``masked`` (the whole weight gradient times a
mask: the baseline), each eager and under torch.compile. Shapes: hidden layers of transformers' blocks, a classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plantops.bench.case import BACKWARD, BASELINE, BOTH, OURS, PEER, Case, Problem, Values, Variant, differentiated
from plantops.bench.ceilings import arithmetic
from plantops.bench.live import implementations
from plantops.bench.planted_conv2d import TOLERANCES
from plantops.bench.record import dtype_name
from plantops.bench.runner import Settings
from plantops.bench.work import Convolution
from plantops.functional import planted_linear
from plantops.ops._precision import of_matrix_products

SHAPE_HELP = "ROWS,F_in,P_in,F_out,P_out[,full|planted|none]"
Shape = tuple[int, int, int, int, int]  # rows, trunk in, planted in, trunk out, planted out
QUICK: list[Shape] = [(512, 256, 16, 256, 16), (2048, 128, 8, 128, 8)]
SMALL: list[Shape] = [(7, 5, 3, 9, 2), (16, 32, 8, 32, 8)]
ON_CPU: list[Shape] = [(1024, 768, 48, 768, 48), (1024, 512, 64, 512, 64), (128, 4096, 128, 128, 16)]
ON_CUDA: list[Shape] = [(16384, c, c // part, c, c // part) for part in (16, 8, 4) for c in (384, 768, 3072)]


@dataclass(frozen=True)
class Tensors:
    """The tensors of one planted layer; the planted inputs lie behind the trunk's."""

    input: Tensor
    weight: Tensor
    weight_out: Tensor
    weight_in: Tensor
    bias: Tensor
    bias_out: Tensor
    upstream: Tensor

    @staticmethod
    def of(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensors:
        generator = torch.Generator().manual_seed(0)
        rows, old, new, old_out, new_out = shape
        scale = (old + new) ** -0.5

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator).to(device, dtype)

        return Tensors(
            random(rows, old + new), random(old_out, old) * scale, random(new_out, old + new) * scale,
            random(old_out, new) * scale, random(old_out), random(new_out), random(rows, old_out + new_out),
        )  # fmt: skip

    def double(self) -> Tensors:
        """The same numbers in float64."""
        return Tensors(*(tensor.detach().double() for tensor in vars(self).values()))

    def trained(self, input_grad: str) -> list[Tensor]:
        """What gets a gradient."""
        found = [self.weight_out, self.bias_out, self.weight_in, *([self.input] if input_grad != "none" else [])]
        return [tensor.requires_grad_() for tensor in found]

    def parameters(self) -> list[Tensor]:
        """What lives anyway."""
        return [self.weight, self.weight_out, self.weight_in, self.bias, self.bias_out]


def cases(settings: Settings) -> list[Case]:
    """The cases of the settings: bf16 on CUDA, float32 on a CPU, unless a dtype is asked for."""
    if settings.shapes:
        return [_own(settings, text) for text in settings.shapes]
    full = ON_CUDA if settings.device.type == "cuda" else ON_CPU
    shapes = {"quick": QUICK, "small": SMALL, "full": full}[settings.size]
    return [_case(settings, settings.size, shape, kind) for shape in shapes for kind in ("planted", "full")]


def _own(settings: Settings, text: str) -> Case:
    parts = [part.strip() for part in text.split(",")]
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    kinds = [part for part in parts if not part.isdecimal()]
    if len(numbers) != 5 or min(numbers) < 1 or len(kinds) > 1 or set(kinds) - {"full", "planted", "none"}:
        raise ValueError(f"--shape of planted_linear must be {SHAPE_HELP}, all above 0, got {text!r}")
    return _case(settings, "own", numbers, kinds[0] if kinds else "full")


def _case(settings: Settings, group: str, shape: Shape, input_grad: str) -> Case:
    dtype = settings.dtype or (torch.bfloat16 if settings.device.type == "cuda" else torch.float32)
    rows, old, new, old_out, new_out = shape
    columns = {
        "op": "planted_linear", "group": group, "shape": f"{old} + {new} to {old_out} + {new_out}", "batch": rows,
        "dtype": dtype_name(dtype), "input_grad": input_grad,
    }  # fmt: skip
    how = arithmetic(settings.device, dtype, of_matrix_products)
    return Case(columns, lambda: prepare(settings, shape, dtype, input_grad, TOLERANCES[how]), how)


def prepare(settings: Settings, shape: Shape, dtype: torch.dtype, input_grad: str, tolerance: float) -> Problem:
    """The tensors of one case and everything that computes it."""
    t = Tensors.of(shape, dtype, settings.device)
    sizes = Convolution(*shape, kernel=1, size=1, itemsize=dtype.itemsize)  # of one pixel: the same work
    passes = [sizes.forward(), sizes.planted_backward(input_grad)]
    live, refused = implementations("planted_linear", settings)

    def variant(name: str, role: str, forward: Callable[[Tensor], Tensor]) -> Variant:
        return differentiated(
            name, role, forward, t.input, t.trained(input_grad), upstream=t.upstream,
            passes={BOTH: passes, BACKWARD: passes[1:]}, parameters=t.parameters(),
        )  # fmt: skip

    variants = [variant(impl, OURS, ours(t, input_grad, impl)) for impl in live]
    variants.append(variant("split + cat", PEER, split(t, input_grad)))
    masked = Masked(t, input_grad)
    variants.append(masked.variant("masked", BASELINE, masked.forward, sizes))
    if settings.compiled:
        variants.append(variant("split + cat, compiled", PEER, torch.compile(split(t, input_grad))))
        variants.append(masked.variant("masked, compiled", PEER, torch.compile(masked.forward), sizes))
    return Problem(variants, lambda: _exact(t, input_grad), tolerance, refused=refused)


def ours(t: Tensors, input_grad: str, impl: str) -> Callable[[Tensor], Tensor]:
    """`planted_linear` with one `impl`."""
    blocks = (t.weight, t.weight_out, t.weight_in, t.bias, t.bias_out)
    return lambda x: planted_linear(x, *blocks, input_grad=input_grad, impl=impl)


def split(t: Tensors, input_grad: str) -> Callable[[Tensor], Tensor]:
    """One product a block; old and new rows side by side."""

    def forward(x: Tensor) -> Tensor:
        old, new = x.split([t.weight.shape[1], t.weight_in.shape[1]], -1)
        if input_grad == "planted":
            old = old.detach()
            x = torch.cat([old, new], -1)
        rows = F.linear(old, t.weight, t.bias) + F.linear(new, t.weight_in)
        return torch.cat([rows, F.linear(x, t.weight_out, t.bias_out)], -1)

    return forward


class Masked:
    """All parameters in one trained tensor, whose gradient is multiplied by a mask."""

    def __init__(self, t: Tensors, input_grad: str) -> None:
        self.t, self.input_grad = t, input_grad
        whole = torch.cat([torch.cat([t.weight, t.weight_in], 1), t.weight_out])
        self.weight = whole.detach().requires_grad_()
        self.bias = torch.cat([t.bias, t.bias_out]).detach().requires_grad_()
        mask = torch.ones_like(whole)
        mask[: t.weight.shape[0], : t.weight.shape[1]] = 0
        self.weight.register_hook(lambda grad: grad * mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def variant(self, name: str, role: str, forward: Callable[[Tensor], Tensor], sizes: Convolution) -> Variant:
        """Differentiated, its gradients brought into the order of the others'."""
        passes = [sizes.forward(), sizes.masked_backward(self.input_grad)]
        trained = [self.weight, self.bias, *([self.t.input] if self.input_grad != "none" else [])]
        return differentiated(
            name, role, forward, self.t.input, trained, upstream=self.t.upstream,
            passes={BOTH: passes, BACKWARD: passes[1:]}, parameters=[self.weight, self.bias],
            comparable=self._comparable,
        )  # fmt: skip

    def _comparable(self, grads: Values) -> Values:
        (rows, columns), (weight, bias, *dx) = self.t.weight.shape, grads
        if self.input_grad == "planted":
            dx = [dx[0].clone()]
            dx[0][:, :columns] = 0
        return weight[rows:], bias[rows:], weight[:rows, columns:], *dx


def _exact(t: Tensors, input_grad: str) -> Values:
    """Output and gradients in float64: a product for each block."""
    exact = t.double()
    trained = exact.trained(input_grad)
    output = split(exact, input_grad)(exact.input)
    return (output.detach(), *torch.autograd.grad(output, trained, exact.upstream))
