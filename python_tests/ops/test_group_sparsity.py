"""group_sparsity against float64 autograd of the plain formulas, its symmetries, zeros, and its behaviour in torch."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_as_good_as_torch
from loss_cases import implementations, saved_bytes
from torch import Tensor

from plantops.functional import group_sparsity, group_sparsity_value_and_grad
from plantops.ops.group_sparsity.penalties import PENALTIES

GROUPS = ("feature", "neuron")
# Fewer input channels than lanes, a 1x1 layer, an odd kernel, three spatial dimensions, a linear layer, many blocks.
SHAPES = ((6, 3, 7, 7), (5, 18, 1, 1), (4, 33, 3, 3), (3, 4, 2, 3, 2), (7, 19), (40, 36, 3, 3), (2, 3, 41, 41))
each_impl = pytest.mark.parametrize("impl", implementations("group_sparsity")[:3])  # Triton: test_triton_companions.py
each_penalty = pytest.mark.parametrize("penalty", PENALTIES)
each_groups = pytest.mark.parametrize("groups", GROUPS)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def weights(dtype: torch.dtype = torch.float64, shapes=SHAPES, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(s, dtype=torch.float64, generator=generator) * 0.3).to(dtype) for s in shapes]


def plain(layers: list[Tensor], penalty: str, groups: str, strength: float = 1.0, l1: float = 0.0) -> Tensor:
    """The table of the paper as it is printed, one line a penalty."""
    total = torch.zeros((), dtype=layers[0].dtype)
    for w in layers:
        w = w if groups == "feature" else w.transpose(0, 1)
        kernels = w.reshape(w.shape[0], w.shape[1], -1)
        a, b = kernels.abs().sum(2), kernels.pow(2).sum(2).sqrt()
        r = {
            "l1": lambda a, b: a.sum(0),
            "group_lasso": lambda a, b: (b**2).sum(0) ** 0.5,
            "hierarchical_square_rooted_group_lasso": lambda a, b: b.sum(0) ** 0.5,
            "hierarchical_squared_group_lasso": lambda a, b: b.sum(0) ** 2,
            "exclusive_sparsity": lambda a, b: a.sum(0) ** 2,
            "hierarchical_square_rooted_exclusive_sparsity": lambda a, b: (a**2).sum(0) ** 0.5,
            "hierarchical_squared_exclusive_sparsity": lambda a, b: (a**2).sum(0) ** 2,
            "group_l1_2": lambda a, b: a.sum(0) ** 0.5,
            "hierarchical_square_rooted_group_l1_2": lambda a, b: (a**0.5).sum(0) ** 0.5,
            "hierarchical_squared_group_l1_2": lambda a, b: (a**0.5).sum(0) ** 2,
        }[penalty](a, b)
        total = total + strength * r.sum() + l1 * w.abs().sum()
    return total


def with_grad(function, layers: list[Tensor], *args, upstream: float = 1.0, **kwargs) -> tuple[Tensor, list[Tensor]]:
    layers = [w.detach().requires_grad_() for w in layers]
    value = function(layers, *args, **kwargs)
    grads = torch.autograd.grad(value, layers, torch.tensor(upstream, dtype=value.dtype))
    return value.detach(), list(grads)


def assert_close(ours: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    for index, (a, b) in enumerate(zip(ours, exact, strict=True)):
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error <= tolerance, f"tensor {index}: relative error {error:.2e}"


@each_impl
@each_groups
@each_penalty
@pytest.mark.parametrize("l1", [0.0, 0.25])
def test_float64_matches_autograd_of_the_plain_formulas(impl: str, groups: str, penalty: str, l1: float):
    layers = weights()
    value, grads = with_grad(plain, layers, penalty, groups, 0.7, l1, upstream=1.5)
    ours, our_grads = with_grad(group_sparsity, layers, penalty, groups, strength=0.7, l1=l1, impl=impl, upstream=1.5)
    assert_close([ours, *our_grads], [value, *grads], 1e-10)


@each_impl
@each_groups
@each_penalty
def test_value_and_grad_is_the_same_in_one_pass(impl: str, groups: str, penalty: str):
    layers = weights()
    value, grads = with_grad(plain, layers, penalty, groups, 0.7, 0.1)
    ours, our_grads = group_sparsity_value_and_grad(layers, penalty, groups, strength=0.7, l1=0.1, impl=impl)
    assert not ours.requires_grad
    assert_close([ours, *our_grads], [value, *grads], 1e-10)


@each_impl
@each_groups
@each_penalty
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision_is_as_good_as_torch(impl: str, groups: str, penalty: str, dtype: torch.dtype):
    layers = weights(dtype)
    if impl == "native" and dtype == torch.bfloat16:
        with pytest.raises(NotImplementedError, match="float32 and float64"):
            group_sparsity(layers, penalty, groups, impl=impl)
        return
    exact = with_grad(plain, [w.double() for w in layers], penalty, groups, 0.7, 0.1)
    theirs_value, theirs = with_grad(plain, [w.float() for w in layers], penalty, groups, 0.7, 0.1)
    value, grads = with_grad(group_sparsity, layers, penalty, groups, strength=0.7, l1=0.1, impl=impl)
    assert value.dtype == torch.float32
    assert_as_good_as_torch(value, theirs_value, exact[0], "value")
    for index, (ours, their, right) in enumerate(zip(grads, theirs, exact[1], strict=True)):
        assert ours.dtype == dtype
        assert_as_good_as_torch(ours, their.to(dtype), right, f"gradient {index}")


@each_impl
@each_groups
@each_penalty
def test_gradcheck(impl: str, groups: str, penalty: str):
    layers = [w.sign() * (w.abs() + 0.3) for w in weights(shapes=((3, 2, 2, 2), (2, 4, 1, 1)))]
    layers = [w.requires_grad_() for w in layers]
    torch.autograd.gradcheck(lambda *ws: group_sparsity(ws, penalty, groups, strength=0.7, l1=0.3, impl=impl), layers)


@each_impl
@each_penalty
def test_degree_of_homogeneity(impl: str, penalty: str):
    layers, factor = weights(), 1.7
    degree = {
        "l1": 1, "group_lasso": 1, "hierarchical_square_rooted_group_lasso": 0.5,
        "hierarchical_squared_group_lasso": 2, "exclusive_sparsity": 2,
        "hierarchical_square_rooted_exclusive_sparsity": 1, "hierarchical_squared_exclusive_sparsity": 4,
        "group_l1_2": 0.5, "hierarchical_square_rooted_group_l1_2": 0.25, "hierarchical_squared_group_l1_2": 1,
    }[penalty]  # fmt: skip
    value, grads = group_sparsity_value_and_grad(layers, penalty, impl=impl)
    scaled = group_sparsity([w * factor for w in layers], penalty, impl=impl)
    torch.testing.assert_close(scaled, value * factor**degree, rtol=1e-12, atol=0)
    # Euler: sum of w dR/dw = degree R.
    euler = sum((w * g).sum() for w, g in zip(layers, grads, strict=True))
    torch.testing.assert_close(euler, degree * value, rtol=1e-12, atol=0)


@each_impl
@each_penalty
def test_feature_groups_of_a_weight_are_neuron_groups_of_its_transpose(impl: str, penalty: str):
    layers = weights()
    value, grads = group_sparsity_value_and_grad(layers, penalty, "feature", impl=impl)
    transposed = [w.transpose(0, 1).contiguous() for w in layers]
    value_t, grads_t = group_sparsity_value_and_grad(transposed, penalty, "neuron", impl=impl)
    torch.testing.assert_close(value_t, value, rtol=1e-12, atol=0)
    assert_close([g.transpose(0, 1) for g in grads_t], grads, 1e-12)


@each_impl
@each_groups
@each_penalty
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_zero_kernels_and_groups_have_a_zero_gradient(impl: str, groups: str, penalty: str, dtype: torch.dtype):
    (w,) = weights(dtype, ((4, 5, 3, 3),))
    w[1, 2] = 0  # a kernel
    w[:, 3] = 0  # a feature group
    w[2] = 0  # a neuron group
    zero = w.abs().sum((2, 3)) == 0
    value, (grad,) = with_grad(group_sparsity, [w], penalty, groups, strength=0.7, l1=0.2, impl=impl)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert (grad[zero] == 0).all()
    assert (grad[~zero].abs().sum((1, 2)) > 0).all()
    # What is not zero is treated as if the zero kernels were infinitely small ones.
    tiny = w.double().clone()
    tiny[zero] = 1e-60
    _, (expected,) = with_grad(plain, [tiny], penalty, groups, 0.7, 0.2)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert_close([grad[~zero]], [expected[~zero]], tolerance)
    _, (grad,) = with_grad(group_sparsity, [torch.zeros_like(w)], penalty, groups, impl=impl)
    assert (grad == 0).all()


@each_impl
@each_groups
@pytest.mark.parametrize("penalty", ["hierarchical_squared_group_lasso", "group_l1_2"])
def test_layouts_are_read_and_answered(impl: str, groups: str, penalty: str):
    (w,) = weights(shapes=((20, 37, 3, 5),))
    (deep,) = weights(shapes=((5, 6, 2, 3, 2),))
    base = w.new_full((40, 37, 3, 5), torch.nan)
    base[::2] = w
    variants = {
        "channels last": (w.contiguous(memory_format=torch.channels_last), w),
        "channels last 3d": (deep.contiguous(memory_format=torch.channels_last_3d), deep),
        "every second channel": (base[::2], w),
        "transposed": (w.transpose(0, 1).contiguous().transpose(0, 1), w),
        "last dimension first": (w.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0), w),
    }
    for name, (variant, same) in variants.items():
        value, (grad,) = group_sparsity_value_and_grad([same], penalty, groups, l1=0.1, impl="reference")
        ours, (our_grad,) = group_sparsity_value_and_grad([variant], penalty, groups, l1=0.1, impl=impl)
        torch.testing.assert_close(ours, value, rtol=1e-12, atol=0, msg=name)
        assert_close([our_grad], [grad], 1e-12)
        assert our_grad.stride() == torch.empty_like(variant).stride(), name


@pytest.mark.parametrize("impl", implementations("group_sparsity")[2:3])
@each_groups
def test_native_repeats_bit_for_bit_for_any_number_of_threads(impl: str, groups: str, set_threads):
    layers = weights(torch.float32, (*SHAPES, (70, 90, 3, 3)))
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(group_sparsity_value_and_grad(layers, "group_lasso", groups, l1=0.1, impl=impl))
    for value, grads in results[1:]:
        assert torch.equal(value, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))


@pytest.mark.parametrize("impl", implementations("group_sparsity")[2:3])
@each_groups
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_weights_larger_than_the_caches(impl: str, groups: str, dtype: torch.dtype):
    """Several batches of layers, and gradients written past the caches: aligned rows, and rows that are not."""
    layers = weights(dtype, ((500, 512, 3, 3), (12, 7, 3, 3), (400, 500, 3, 3), (300, 300, 1, 1)))
    for penalty in ("hierarchical_squared_group_lasso", "group_l1_2"):
        exact = with_grad(plain, [w.double() for w in layers], penalty, groups, 0.7, 0.1)
        for ours in (
            with_grad(group_sparsity, layers, penalty, groups, strength=0.7, l1=0.1, impl=impl),
            group_sparsity_value_and_grad(layers, penalty, groups, strength=0.7, l1=0.1, impl=impl),
        ):
            assert_close([ours[0], *ours[1]], [exact[0], *exact[1]], 1e-10 if dtype == torch.float64 else 2e-5)


@each_impl
@each_groups
def test_writes_everything(impl: str, groups: str, poisoned):
    layers = weights(shapes=(*SHAPES, (70, 90, 3, 3)))
    value, grads = with_grad(group_sparsity, layers, "exclusive_sparsity", groups, l1=0.1, impl=impl)
    assert value.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@each_impl
def test_empty_layers_add_nothing(impl: str):
    (w,) = weights(shapes=((3, 4, 3, 3),))
    alone = group_sparsity_value_and_grad([w], "exclusive_sparsity", impl=impl)
    empty = [w.new_empty(0, 4, 3, 3), w, w.new_empty(3, 0, 3, 3)]
    value, grads = group_sparsity_value_and_grad(empty, "exclusive_sparsity", impl=impl)
    assert torch.equal(value, alone[0])
    assert [g.shape for g in grads] == [e.shape for e in empty]
    assert torch.equal(grads[1], alone[1][0])


def test_keeps_one_number_a_kernel():
    layers = [w.requires_grad_() for w in weights(torch.float32, ((16, 8, 3, 3), (8, 16, 5, 5)))]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        group_sparsity(layers, "group_lasso")
    assert saved_bytes(saved, tuple(layers)) == 4 * (16 * 8 + 8 * 16)


def test_double_backward_raises():
    layers = [w.requires_grad_() for w in weights()]
    grads = torch.autograd.grad(group_sparsity(layers, "group_lasso"), layers, create_graph=True)
    with pytest.raises(RuntimeError, match="group_sparsity: double backward"):
        grads[0].sum().backward()


def test_compiles_without_a_graph_break():
    layers = [w.requires_grad_() for w in weights(torch.float32, ((6, 5, 3, 3), (4, 6, 1, 1)))]

    def loss(ws: list[Tensor]) -> Tensor:
        return group_sparsity(ws, "exclusive_sparsity", "neuron", l1=0.5) * 2

    expected = torch.autograd.grad(loss(layers), layers)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(layers), layers)
    assert all(torch.equal(a, b) for a, b in zip(expected, compiled, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"penalty": "l2"}, ValueError, "penalty: expected one of 'l1', .* got 'l2'"),
        ({"groups": "channel"}, ValueError, "groups: expected one of 'feature', 'neuron', got 'channel'"),
        ({"weights": []}, ValueError, "weights: expected a sequence of at least one tensor, got none"),
        ({"weights": torch.ones(2, 2)}, ValueError, "wrap it in a list"),
        ({"weights": [torch.ones(3)]}, ValueError, r"weights\[0\]: expected \[out, in, \*kernel\], got shape \(3,\)"),
        ({"weights": [torch.ones(2, 2, dtype=torch.int32)]}, TypeError, r"weights\[0\]: .* got torch.int32"),
        ({"weights": [torch.ones(2, 2), torch.ones(2, 2).double()]}, TypeError, r"weights\[1\]: .*float32.*float64"),
        ({"strength": -1.0}, ValueError, "strength: expected a finite number >= 0, got -1.0"),
        ({"l1": float("nan")}, ValueError, "l1: expected a finite number >= 0, got nan"),
        ({"impl": "fast"}, ValueError, "impl: expected one of"),
    ],
)
def test_errors_name_the_argument(change: dict, error: type[Exception], message: str):
    arguments = {"weights": [torch.ones(2, 2, 1, 1)], "penalty": "l1", **change}
    with pytest.raises(error, match=message):
        group_sparsity(**arguments)
