"""Forward-mode derivatives and torch.func transforms: the right derivative, or NotImplementedError; never zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paths import by, without_shortcuts
from torch import Tensor
from torch.autograd import forward_ad

import plantops
from plantops import functional as PF
from plantops.ops import _registry

IMPLS = ("auto", "aten", "reference", "native", "triton")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


W, B = randn(4, 3, 3, 3), randn(4, seed=1)
V, C = randn(4, 3, seed=2), randn(4, seed=3)
T, LABELS = randn(3, 5, seed=4), torch.tensor([4, 0, 2])
SIMILAR = torch.tensor([[0, 0.2, 0.1, 0], [0.2, 0, 0, 0.1], [0.1, 0, 0, 0.1], [0, 0.1, 0.1, 0]], dtype=torch.float64)


def conv(
    x: Tensor, out: Tensor, inn: Tensor, bias: Tensor, addend: Tensor, *, impl: str, input_grad: str = "full"
) -> Tensor:
    return PF.planted_conv2d(
        x, W, out, inn, B, bias, 1, 1, addend=addend, in_start=1, activation="relu", max_pool=2, input_grad=input_grad,
        impl=impl,
    )  # fmt: skip


def plain_conv(x: Tensor, out: Tensor, inn: Tensor, bias: Tensor, addend: Tensor) -> Tensor:
    weight = torch.cat([torch.cat([W[:, :1], inn, W[:, 1:]], 1), out])
    return F.max_pool2d((F.conv2d(x, weight, torch.cat([B, bias]), 1, 1) + addend).relu(), 2)


def grouped(x: Tensor, out: Tensor, *, impl: str) -> Tensor:
    return PF.planted_conv2d(x, W, out, stride=2, groups=2, impl=impl)


def linear(
    x: Tensor, out: Tensor, inn: Tensor, bias: Tensor, addend: Tensor, *, impl: str, input_grad: str = "full"
) -> Tensor:
    return PF.planted_linear(
        x, V, out, inn, C, bias, addend=addend, in_start=1, activation="relu", input_grad=input_grad, impl=impl
    )


def plain_linear(x: Tensor, out: Tensor, inn: Tensor, bias: Tensor, addend: Tensor) -> Tensor:
    weight = torch.cat([torch.cat([V[:, :1], inn, V[:, 1:]], 1), out])
    return (F.linear(x, weight, torch.cat([C, bias])) + addend).relu()


def plain_kl(s: Tensor, reduction: str = "batchmean") -> Tensor:
    return F.kl_div((s / 2).log_softmax(-1), (T / 2).softmax(-1), reduction=reduction)


def plain_distillation(s: Tensor, reduction: str = "mean") -> Tensor:
    soft = plain_kl(s, "none").sum(-1)
    hard = F.cross_entropy(s, LABELS, reduction="none", label_smoothing=0.1)
    rows = 0.7 * 4 * soft + 0.3 * hard
    return rows if reduction == "none" else getattr(rows, reduction)()


def plain_sparsity(a: Tensor, b: Tensor, penalty: str) -> Tensor:
    total = 0.1 * (a.abs().sum() + b.abs().sum())
    for w in (a, b):
        squares, absolute = (f(w).reshape(*w.shape[:2], -1).sum(2) for f in (torch.square, torch.abs))
        if penalty == "group_lasso":
            total = total + 0.5 * squares.sum(0).sqrt().sum()
        else:
            total = total + 0.5 * absolute.sqrt().sum(0).square().sum()
    return total


def plain_qsne(y: Tensor, q: float) -> Tensor:
    squared = (y.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)
    off = ~torch.eye(len(y), dtype=torch.bool)
    log_u = -torch.log1p((q - 1) / (3 - q) * squared[off]) / (q - 1)
    p = SIMILAR[off]
    return torch.xlogy(p, p).sum() - (p * log_u).sum() + log_u.logsumexp(0)


@dataclass(frozen=True)
class Kind:
    """An op with its differentiable arguments, and the same in plain torch."""

    name: str
    planted: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]

    def __str__(self) -> str:
        return self.name


def sampled() -> list[Kind]:
    blocks = (randn(6, 5, 3, 3, seed=5), randn(4, 2, 3, 3, seed=6))
    conv_args = (randn(2, 5, 6, 4), *blocks[::-1], randn(4, seed=7)[:2], randn(2, 6, 6, 4, seed=8))
    conv_args = (conv_args[0], blocks[0][:2], blocks[1], conv_args[3], conv_args[4])
    linear_args = (randn(3, 5), randn(2, 5, seed=5), randn(4, 2, seed=6), randn(2, seed=7), randn(3, 6, seed=8))
    logits, layers = (randn(3, 5, seed=9),), (randn(3, 2, 3, 3, seed=10), randn(4, 3, seed=11))
    kinds = [
        Kind("conv", conv, plain_conv, conv_args),
        Kind("groups", grouped, lambda x, out: torch.cat([F.conv2d(x[:, :6], W, None, 2, groups=2),
             F.conv2d(x[:, 6:], out, None, 2)], 1), (randn(2, 9, 5, 5), randn(2, 3, 3, 3, seed=5))),
        Kind("linear", linear, plain_linear, linear_args),
    ]  # fmt: skip
    for reduction in ("batchmean", "none"):
        kinds.append(
            Kind(
                f"kl {reduction}",
                lambda s, impl, r=reduction: PF.kl_div_logits(s, T, 2.0, r, impl=impl),
                lambda s, r=reduction: plain_kl(s, r),
                logits,
            )
        )
    for reduction in ("mean", "none"):
        kinds.append(
            Kind(
                f"distillation {reduction}",
                lambda s, impl, r=reduction: PF.distillation_loss(
                    s, T, LABELS, alpha=0.7, temperature=2.0, label_smoothing=0.1, reduction=r, impl=impl
                ),
                lambda s, r=reduction: plain_distillation(s, r),
                logits,
            )
        )
    for penalty in ("group_lasso", "hierarchical_squared_group_l1_2"):
        kinds.append(
            Kind(
                penalty,
                lambda a, b, impl, p=penalty: PF.group_sparsity([a, b], p, strength=0.5, l1=0.1, impl=impl),
                lambda a, b, p=penalty: plain_sparsity(a, b, p),
                layers,
            )
        )
    for p in (SIMILAR, SIMILAR.to_sparse_csr()):
        kinds.append(
            Kind(
                f"qsne {p.layout}".replace("torch.", ""),
                lambda y, impl, p=p: PF.qsne_kl(y, p, 2.5, impl=impl),
                lambda y: plain_qsne(y, 2.5),
                (randn(4, 2, seed=12),),
            )
        )
    return kinds


KINDS = sampled()


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def tangents(kind: Kind, only: int | None = None) -> tuple[Tensor, ...]:
    return tuple(
        randn(*a.shape, seed=20 + i) if only in (None, i) else torch.zeros_like(a) for i, a in enumerate(kind.arguments)
    )


def computed_or_refused(impl: str, call: Callable[[], Any], right: Any) -> None:
    """A kernel of our own may refuse with NotImplementedError; torch's functions have to compute."""
    try:
        ours = call()
    except NotImplementedError as error:
        if impl not in ("native", "triton") or "impl=" not in str(error):
            raise
        return
    close(ours, right)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_forward_mode(kind: Kind, impl: str) -> None:
    for only in (None, *range(len(kind.arguments))):
        t = tangents(kind, only)
        right = torch.func.jvp(kind.plain, kind.arguments, t)
        assert right[1].norm() > 0
        computed_or_refused(
            impl,
            lambda: torch.func.jvp(lambda *a: kind.planted(*a, impl=impl), kind.arguments, t),  # noqa: B023
            right,
        )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_dual_tensors(kind: Kind, impl: str, requires_grad: bool) -> None:
    """Also under no_grad, and where there is no compiled module in the way."""
    t = tangents(kind)
    _, right = torch.func.jvp(kind.plain, kind.arguments, t)

    def tangent() -> Tensor:
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(a.clone().requires_grad_(requires_grad), v)
                for a, v in zip(kind.arguments, t, strict=True)
            ]
            return forward_ad.unpack_dual(kind.planted(*duals, impl=impl)).tangent

    def without_gradients() -> Tensor:
        with torch.no_grad():
            return tangent()

    for call in (tangent, without_gradients, lambda: by(without_shortcuts, tangent)):
        computed_or_refused(impl, call, right)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_plain_tensors_in_a_dual_level_are_ordinary(kind: Kind, impl: str) -> None:
    def compute() -> Tensor:
        return kind.planted(*kind.arguments, impl=impl)

    try:
        expected = compute()
    except NotImplementedError as error:
        pytest.skip(str(error))
    with forward_ad.dual_level():
        assert torch.equal(compute(), expected)
        assert torch.equal(by(without_shortcuts, compute), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_transform(kind: Kind) -> None:
    """jacfwd, jacrev, linearize, vmap, gradients per sample: in torch's own functions all of them are right."""
    planted, arguments = (lambda *a: kind.planted(*a, impl="auto")), kind.arguments
    every = tuple(range(len(arguments)))
    for jacobian in (torch.func.jacfwd, torch.func.jacrev):
        close(jacobian(planted, every)(*arguments), jacobian(kind.plain, every)(*arguments))
    t = tangents(kind)
    if kind.name != "qsne sparse_csr":  # torch does not trace with a sparse matrix
        _, push = torch.func.linearize(planted, *arguments)
        close(push(*t), torch.func.jvp(kind.plain, arguments, t)[1])
    many = tuple(torch.stack([a, v, a + v]) for a, v in zip(arguments, t, strict=True))
    close(torch.vmap(planted)(*many), torch.vmap(kind.plain)(*many))
    summed, plain_sum = (lambda *a: planted(*a).square().sum()), (lambda *a: kind.plain(*a).square().sum())
    close(torch.vmap(torch.func.grad(summed, every))(*many), torch.vmap(torch.func.grad(plain_sum, every))(*many))
    close(torch.func.hessian(summed)(*arguments), torch.func.hessian(plain_sum)(*arguments))
    for sides in ((0, *[None] * (len(arguments) - 1)), (*[None] * (len(arguments) - 1), 0)):
        mixed = tuple(a if side is None else m for a, m, side in zip(arguments, many, sides, strict=True))
        right = torch.vmap(torch.func.grad(plain_sum, every), sides)(*mixed)
        close(torch.vmap(torch.func.grad(summed, every), sides)(*mixed), right)

    def outer(f: Callable[..., Tensor]) -> Any:  # a gradient around a vmap
        return torch.func.grad(lambda *a: torch.vmap(f)(*a).sum(), every)(*many)

    close(outer(summed), outer(plain_sum))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_derivative_by_differentiating_twice_is_refused(kind: Kind) -> None:
    """torch.autograd.functional.jvp takes the derivative of a gradient with respect to the upstream gradient."""
    t = tangents(kind)
    for call in (lambda *a: kind.planted(*a, impl="auto"), lambda *a: kind.planted(*a, impl="aten")):
        with pytest.raises(NotImplementedError, match="double backward is not supported"):
            torch.autograd.functional.jvp(call, kind.arguments, t)
        with pytest.raises(NotImplementedError, match="double backward is not supported"):
            by(without_shortcuts, lambda: torch.autograd.functional.jvp(call, kind.arguments, t))  # noqa: B023


@pytest.mark.parametrize("input_grad", ["planted", "none"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k.name in ("conv", "linear")], ids=str)
def test_the_derivative_of_an_input_is_cut_in_both_modes(kind: Kind, input_grad: str) -> None:
    x, *rest = kind.arguments

    def planted(x: Tensor) -> Tensor:
        return kind.planted(x, *rest, impl="auto", input_grad=input_grad)

    leaf = x.clone().requires_grad_()
    y = planted(leaf)
    upstream = randn(*y.shape, seed=30)
    right = torch.zeros_like(x)
    if input_grad == "planted":
        right = torch.autograd.grad(y, leaf, upstream)[0]
        assert right.any()
    assert not y.requires_grad or input_grad == "planted"
    close(torch.func.vjp(planted, x)[1](upstream)[0], right)
    v = randn(*x.shape, seed=31)
    close((torch.func.jvp(planted, (x,), (v,))[1] * upstream).sum(), (v * right).sum())


def test_frozen_tensors_have_derivatives_too() -> None:
    """Nothing trains them, but along a tangent they are tensors like others: teacher, similarities, the trunk."""
    x, out = randn(2, 3, 5, 5), randn(2, 3, 3, 3, seed=1)
    for planted, plain, at in (
        (lambda w: PF.planted_conv2d(x, w, out), lambda w: F.conv2d(x, torch.cat([w, out])), W),
        (lambda b: PF.planted_conv2d(x, W, None, None, b), lambda b: F.conv2d(x, W, b), B),
        (lambda w: PF.planted_linear(T[:, :3], w), lambda w: F.linear(T[:, :3], w), V),
        (
            lambda t: PF.kl_div_logits(T, t),
            lambda t: F.kl_div(T.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="batchmean"),
            randn(3, 5, seed=2),
        ),
    ):
        close(torch.func.jvp(planted, (at,), (at,)), torch.func.jvp(plain, (at,), (at,)))


@pytest.mark.parametrize(
    ("fused", "value", "at"),
    [
        (lambda s: PF.kl_div_logits_value_and_grad(s, T, 2.0), plain_kl, KINDS[3].arguments[0]),
        (
            lambda a: (lambda v, g: (v, g[0]))(*PF.group_sparsity_value_and_grad([a], "l1", strength=0.5)),
            lambda a: 0.5 * a.abs().sum(),
            randn(3, 2, 3, 3),
        ),
        (lambda y: PF.qsne_kl_value_and_grad(y, SIMILAR, 2.5), lambda y: plain_qsne(y, 2.5), randn(4, 2, seed=12)),
    ],
    ids=["kl", "sparsity", "qsne"],
)
def test_value_and_gradient_in_one_pass(fused, value, at: Tensor) -> None:
    def both(a: Tensor) -> tuple[Tensor, Tensor]:
        return value(a), torch.func.grad(value)(a)

    v, many = randn(*at.shape, seed=40), torch.stack([at, 2 * at])
    close(torch.func.jvp(fused, (at,), (v,)), torch.func.jvp(both, (at,), (v,)))
    close(torch.vmap(fused)(many), torch.vmap(both)(many))


def test_half_precision_is_rounded_once() -> None:
    kind = KINDS[0]
    low = [a.bfloat16() for a in kind.arguments]
    _, tangent = torch.func.jvp(
        lambda x: PF.planted_conv2d(x, W.bfloat16(), low[1], low[2], in_start=1, addend=low[4][:, :, 2:, 2:]),
        (low[0],), (low[0],),
    )  # fmt: skip
    weight = torch.cat([torch.cat([W[:, :1].bfloat16(), low[2], W[:, 1:].bfloat16()], 1), low[1]]).double()
    exact = F.conv2d(low[0].double(), weight)
    assert (tangent.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_gradients_per_sample_of_a_planted_network() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, 5, 3)).double()
    images, teacher = randn(4, 3, 6, 6), randn(4, 5, seed=1)
    planted = plantops.plant(model, plantops.trace(model, images)["0"], 4)
    trained = {name: p for name, p in planted.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], image: Tensor, soft: Tensor) -> Tensor:
        logits = torch.func.functional_call(planted, parameters, (image[None],)).mean((2, 3))
        return PF.kl_div_logits(logits, soft[None], 3.0)

    detached = {name: p.detach() for name, p in trained.items()}
    ours = torch.vmap(torch.func.grad(loss), (None, 0, 0))(detached, images, teacher)
    for i in range(4):
        value = PF.kl_div_logits(planted(images[i : i + 1]).mean((2, 3)), teacher[i : i + 1], 3.0)
        for name, right in zip(trained, torch.autograd.grad(value, list(trained.values())), strict=True):
            close(ours[name][i], right)


def test_an_ensemble_of_planted_layers() -> None:
    """Stacked states, the frozen trunk too, under autocast as well: its copy is not one that may be kept."""
    layers = [plantops.nn.PlantedConv2d.from_conv(torch.nn.Conv2d(3, 4, 3), 2, 0) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = torch.randn(2, 3, 6, 6)

    def one(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layers[0], (p, b), (x,))

    torch.testing.assert_close(torch.vmap(one)(parameters, buffers), torch.stack([layer(x) for layer in layers]))
    with torch.autocast("cpu", torch.bfloat16):
        low = torch.vmap(one)(parameters, buffers)
        expected = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(low, expected)


@pytest.mark.parametrize("kind", KINDS[:7:2], ids=str)
def test_transforms_compile(kind: Kind) -> None:
    torch._dynamo.reset()
    t = tangents(kind)

    def pushed(*a: Tensor) -> Tensor:
        return torch.func.jvp(lambda *b: kind.planted(*b, impl="auto"), a, t)[1]

    def gradient(*a: Tensor) -> Tensor:
        return torch.func.grad(lambda *b: kind.planted(*b, impl="auto").square().sum())(*a)

    for function in (pushed, gradient):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        close(compiled(*kind.arguments), function(*kind.arguments))


def test_labels_are_checked_inside_a_transform() -> None:
    wrong = torch.tensor([4, 5, 0])

    def loss(s: Tensor, y: Tensor) -> Tensor:
        return PF.distillation_loss(s, T[0], y, alpha=0.5, temperature=1.0)

    with pytest.raises(ValueError, match="target: expected class indices"):
        torch.vmap(loss)(T, wrong)


def test_all_ops_are_here() -> None:
    stems = {stem for stem in _registry.stems() if "_backward" not in stem and "value_and_grad" not in stem}
    assert len(stems) == len({kind.name.split()[0] for kind in KINDS} - {"groups", "hierarchical_squared_group_l1_2"})
