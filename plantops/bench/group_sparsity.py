"""The group sparse regularisers and their gradients on convolutions, beside the formulas in plain PyTorch.

One step is strength (mix R + (1 - mix) l1) over the weights and its gradient to each. Variants: our implementations,
``value_and_grad`` of each (one pass, without autograd), ``eager`` (the formulas operation by operation: the baseline)
and ``compiled`` (torch.compile of them). Weights: the 17 convolutions of ResNet-18 without its shortcuts.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from plantops.bench.case import BASELINE, BOTH, OURS, PEER, Case, Problem, Values, Variant
from plantops.bench.live import implementations
from plantops.bench.record import dtype_name
from plantops.bench.runner import Settings
from plantops.bench.work import Work, counted
from plantops.functional import group_sparsity, group_sparsity_value_and_grad
from plantops.ops.group_sparsity import GROUPS, PENALTIES

SHAPE_HELP = "LAYERSxCHANNELS (so many 3x3 convolutions of so many channels)"
STRENGTH, MIX = 1e-3, 0.5
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
PEER_TOLERANCES = {**TOLERANCES, "bfloat16": 1e-1, "float16": 2e-2}
QUICK = ("hierarchical_squared_group_lasso", "hierarchical_squared_group_l1_2")

FORMULAS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "l1": lambda a, b, d: a.sum(),
    "group_lasso": lambda a, b, d: (b**2).sum(d).sqrt().sum(),
    "hierarchical_square_rooted_group_lasso": lambda a, b, d: b.sum(d).sqrt().sum(),
    "hierarchical_squared_group_lasso": lambda a, b, d: (b.sum(d) ** 2).sum(),
    "exclusive_sparsity": lambda a, b, d: (a.sum(d) ** 2).sum(),
    "hierarchical_square_rooted_exclusive_sparsity": lambda a, b, d: (a**2).sum(d).sqrt().sum(),
    "hierarchical_squared_exclusive_sparsity": lambda a, b, d: ((a**2).sum(d) ** 2).sum(),
    "group_l1_2": lambda a, b, d: a.sum(d).sqrt().sum(),
    "hierarchical_square_rooted_group_l1_2": lambda a, b, d: a.sqrt().sum(d).sqrt().sum(),
    "hierarchical_squared_group_l1_2": lambda a, b, d: (a.sqrt().sum(d) ** 2).sum(),
}
"""R of one layer, from a = sum |W| and b = (sum W^2)^(1/2) of its kernels and the dimension of the inner sum."""


def resnet18_convolutions() -> nn.Sequential:
    """The convolutions of ResNet-18 but the shortcuts, with torch's initial weights of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers, channels = [nn.Conv2d(3, 64, 7, bias=False)], 64
        for width in (64, 64, 128, 128, 256, 256, 512, 512):
            layers += [nn.Conv2d(channels, width, 3, bias=False), nn.Conv2d(width, width, 3, bias=False)]
            channels = width
    return nn.Sequential(*layers)


def plain(weights: list[Tensor], penalty: str, groups: str) -> Tensor:
    """The formulas as one would write them; what a penalty does not need is not computed."""
    dimension, squares = (0 if groups == "feature" else 1), PENALTIES[penalty].squares
    total = weights[0].new_zeros(())
    for weight in weights:
        a = weight.abs().sum((2, 3))
        b = (weight**2).sum((2, 3)).sqrt() if squares else a
        total = total + MIX * STRENGTH * FORMULAS[penalty](a, b, dimension) + (1 - MIX) * STRENGTH * a.sum()
    return total


def cases(settings: Settings) -> list[Case]:
    """Two penalties, or with "full" all of them over both kinds of groups."""
    shapes = settings.shapes or (("2x5",) if settings.size == "small" else ("",))
    pairs = [(penalty, groups) for penalty in PENALTIES for groups in GROUPS]
    if settings.size != "full":
        pairs = [(penalty, groups) for penalty, groups in pairs if penalty in QUICK and groups == "feature"]
    return [_case(settings, shape, *pair) for shape in shapes for pair in pairs]


def _case(settings: Settings, shape: str, penalty: str, groups: str) -> Case:
    make = _layers(shape)
    dtype = settings.dtype or torch.float32
    columns = {
        "op": "group_sparsity", "group": shape or "ResNet-18", "penalty": penalty, "groups": groups,
        "dtype": dtype_name(dtype),
    }  # fmt: skip
    return Case(columns, lambda: prepare(settings, make(), penalty, groups, dtype), dtype_name(dtype))


def _layers(shape: str) -> Callable[[], nn.Sequential]:
    """What makes the convolutions of a `--shape`.

    Raises:
        ValueError: it does not have the form of `SHAPE_HELP`.
    """
    if not shape:
        return resnet18_convolutions
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape)
    if not found:
        raise ValueError(f"--shape of group_sparsity must be {SHAPE_HELP}, got {shape!r}")
    count, channels = int(found[1]), int(found[2])
    return lambda: nn.Sequential(*(nn.Conv2d(channels, channels, 3, bias=False) for _ in range(count)))


def prepare(settings: Settings, layers: nn.Sequential, penalty: str, groups: str, dtype: torch.dtype) -> Problem:
    """The weights of one case and everything that computes it."""
    weights = [w.detach().to(settings.device, dtype).requires_grad_() for w in layers.parameters()]
    live, refused = implementations("group_sparsity", settings)
    fused, also_refused = implementations("group_sparsity_value_and_grad", settings)
    refused |= {f"value_and_grad {impl}": why for impl, why in also_refused.items()}
    size = float(sum(weight.nbytes for weight in weights))
    least = [Work(0.0, size), Work(0.0, 2 * size)]  # forward: read; backward: read, and write the gradient

    def loss(impl: str) -> Callable[[], Tensor]:
        return lambda: group_sparsity(
            weights, penalty, groups, strength=STRENGTH * MIX, l1=STRENGTH * (1 - MIX), impl=impl
        )

    variants = [_variant(impl, OURS, loss(impl), weights, least) for impl in live]
    variants += [_value_and_grad(impl, weights, penalty, groups, size) for impl in fused]
    shapes = [weight.detach().to("meta").requires_grad_() for weight in weights]
    moved = [counted(lambda: torch.autograd.grad(plain(shapes, penalty, groups), shapes))]
    variants.append(_variant("eager", BASELINE, lambda: plain(weights, penalty, groups), weights, moved))
    if settings.compiled:
        compiled = torch.compile(plain)
        variants.append(_variant("compiled", PEER, lambda: compiled(weights, penalty, groups), weights, least))
    name = dtype_name(dtype)
    exact = [weight.detach().double().requires_grad_() for weight in weights]
    return Problem(
        variants,
        lambda: _gradient(plain(exact, penalty, groups), exact),
        TOLERANCES[name],
        PEER_TOLERANCES[name],
        refused,
    )


def _gradient(value: Tensor, weights: list[Tensor]) -> Values:
    return (value.detach(), *torch.autograd.grad(value, weights))


def _variant(name: str, role: str, loss: Callable[[], Tensor], weights: list[Tensor], passes: list[Work]) -> Variant:
    def call() -> Values:
        return _gradient(loss(), weights)

    def forward(_: Tensor) -> Tensor:
        return loss()

    return Variant(name, role, call, call, {BOTH: passes}, None, forward, weights[0], weights)


def _value_and_grad(impl: str, weights: list[Tensor], penalty: str, groups: str, size: float) -> Variant:
    """Least traffic: every weight read once, its gradient written."""

    def call() -> Values:
        value, gradients = group_sparsity_value_and_grad(
            weights, penalty, groups, strength=STRENGTH * MIX, l1=STRENGTH * (1 - MIX), impl=impl
        )
        return (value, *gradients)

    return Variant(f"value_and_grad {impl}", OURS, call, call, {BOTH: [Work(0.0, 2 * size)]})
