"""group_sparsity and qsne_kl in Triton's interpreter, on small shapes that take every way through the kernels."""

from __future__ import annotations

import pytest
import torch
from bounds import assert_as_good_as_torch
from test_group_sparsity import GROUPS, PENALTIES, plain, weights, with_grad
from test_group_sparsity import assert_close as assert_all_close
from test_qsne_kl import QS, assert_close, formula, points, similarities, sparse_csr, value_and_grad

from plantops.functional import group_sparsity, group_sparsity_value_and_grad, qsne_kl, qsne_kl_value_and_grad
from plantops.ops import _triton

pytest.importorskip("triton")
if _triton.why_not("cpu"):
    pytest.skip(_triton.why_not("cpu"), allow_module_level=True)

from plantops.ops.group_sparsity import triton as sparsity
from plantops.ops.qsne_kl import triton as qsne

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")

# Taps in two steps and groups of features in two programs; members of a neuron in two steps, one tap.
SHAPES = ((3, 10, 5, 4), (2, 70, 1, 1))
each_groups = pytest.mark.parametrize("groups", GROUPS)


@each_groups
@pytest.mark.parametrize("penalty", PENALTIES)
def test_regulariser_matches_autograd_of_the_plain_formulas(groups: str, penalty: str):
    layers = weights(shapes=SHAPES)
    value, grads = with_grad(plain, layers, penalty, groups, 0.7, 0.25, upstream=1.5)
    ours, our_grads = with_grad(
        group_sparsity, layers, penalty, groups, strength=0.7, l1=0.25, impl="triton", upstream=1.5
    )
    assert_all_close([ours, *our_grads], [value, *grads], 1e-10)
    ours, our_grads = group_sparsity_value_and_grad(layers, penalty, groups, strength=0.7, l1=0.25, impl="triton")
    assert_all_close([ours, *(1.5 * grad for grad in our_grads)], [value, *grads], 1e-10)


@each_groups
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_regulariser_in_lower_precision_is_as_good_as_torch(groups: str, dtype: torch.dtype):
    layers = weights(dtype, SHAPES)
    arguments = ("hierarchical_squared_group_lasso", groups)
    exact = with_grad(plain, [w.double() for w in layers], *arguments, 0.7, 0.1)
    theirs_value, theirs = with_grad(plain, [w.float() for w in layers], *arguments, 0.7, 0.1)
    value, grads = with_grad(group_sparsity, layers, *arguments, strength=0.7, l1=0.1, impl="triton")
    assert value.dtype == torch.float32
    assert_as_good_as_torch(value, theirs_value, exact[0], "value")
    for index, (ours, their, right) in enumerate(zip(grads, theirs, exact[1], strict=True)):
        assert ours.dtype == dtype
        assert_as_good_as_torch(ours, their.to(dtype), right, f"gradient {index}")


@each_groups
@pytest.mark.parametrize("penalty", ["group_lasso", "hierarchical_square_rooted_group_l1_2"])
def test_regulariser_of_zero_kernels_and_groups(groups: str, penalty: str):
    (w,) = weights(shapes=((3, 4, 2, 2),))
    w[1, 2] = 0
    w[:, 3] = 0
    w[2] = 0
    arguments = {"groups": groups, "strength": 0.7, "l1": 0.2}
    expected = group_sparsity_value_and_grad([w], penalty, **arguments, impl="reference")
    value, grads = group_sparsity_value_and_grad([w], penalty, **arguments, impl="triton")
    assert_all_close([value, *grads], [expected[0], *expected[1]], 1e-12)
    assert (grads[0][w == 0] == 0).all()


@each_groups
def test_regulariser_reads_layouts_and_answers_in_them(groups: str, poisoned):
    (w,) = weights(shapes=((4, 9, 3, 1),))
    (deep,) = weights(shapes=((2, 3, 2, 1, 2),))
    base = w.new_full((8, 9, 3, 1), torch.nan)
    base[::2] = w
    layers = [
        w.contiguous(memory_format=torch.channels_last),
        deep.contiguous(memory_format=torch.channels_last_3d),
        base[::2],
        w.transpose(0, 1).contiguous().transpose(0, 1),
        w[:, :, 0, 0],
        w.new_empty(0, 4, 3, 3),
        w.new_empty(3, 0, 3, 3),
    ]
    arguments = ("hierarchical_squared_group_l1_2", groups)
    expected = with_grad(group_sparsity, layers, *arguments, l1=0.1, impl="reference")
    for value, grads in (
        with_grad(group_sparsity, layers, *arguments, l1=0.1, impl="triton"),
        group_sparsity_value_and_grad(layers, *arguments, l1=0.1, impl="triton"),
    ):
        assert_all_close([value, *grads[:5]], [expected[0], *expected[1][:5]], 1e-12)
        assert [grad.shape for grad in grads] == [layer.shape for layer in layers]
        assert [grad.stride() for grad in grads] == [torch.empty_like(layer).stride() for layer in layers]


def test_regulariser_is_one_launch_for_all_layers():
    layers = [torch.empty(shape, device="meta") for shape in ((64, 3, 7, 7), (64, 64, 3, 3), (128, 64, 1, 1))]
    with _triton.recording() as launches:
        value, coefficients = sparsity.forward(layers, "group_lasso", "feature", 1.0, 0.5)
        sparsity.backward(value, layers, coefficients, "group_lasso", 0.5)
        sparsity.value_and_grad(layers, "group_lasso", "neuron", 1.0, 0.5)
    names = [launch.kernel.__name__ for launch in launches]
    assert names == ["groups_kernel", "sum_kernel", "gradient_kernel", "groups_kernel", "sum_kernel"]
    assert launches[0].grid == (1 + 8 + 8,)  # eight groups of features a program
    assert launches[3].grid == (64 + 64 + 128,)


def test_results_share_no_memory():
    layers = weights(shapes=SHAPES)
    value, coefficients = sparsity.forward(layers, "group_lasso", "feature", 0.7, 0.1)
    gradients = sparsity.backward(torch.ones_like(value), layers, coefficients, "group_lasso", 0.1)
    _, together = sparsity.value_and_grad(layers, "group_lasso", "feature", 0.7, 0.1)
    storages = {t.untyped_storage().data_ptr() for t in (*layers, *coefficients, *gradients, *together)}
    assert len(storages) == 4 * len(layers)


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_embedding_matches_autograd_of_the_formula(q: float, dimensions: int, density: float):
    y, p = points(37, dimensions), similarities(37, density)
    value, grad = value_and_grad(formula, y, p, q, 3.0, upstream=1.5)
    given = p if density == 1.0 else sparse_csr(p)
    ours, our_grad = value_and_grad(qsne_kl, y, given, q, exaggeration=3.0, impl="triton", upstream=1.5)
    assert_close(ours, value, 1e-12)
    assert_close(our_grad, grad, 1e-10)


def test_embedding_with_more_neighbours_than_a_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(qsne, "NEIGHBOURS", 16)
    y, p = points(37, 2), similarities(37, 0.95)
    expected = qsne_kl_value_and_grad(y, p, 1.5, impl="reference")
    value, grad = qsne_kl_value_and_grad(y, sparse_csr(p), 1.5, impl="triton")
    assert_close(value, expected[0], 1e-12)
    assert_close(grad, expected[1], 1e-10)


@pytest.mark.parametrize("q", [1.0, 1.0001, 1.5, 2.0, 2.9])
def test_embedding_in_float32_is_as_good_as_torch(q: float):
    y, p = points(70, 2, 5.0).float(), similarities(70).float()
    exact = value_and_grad(formula, y.double(), p.double(), q)
    theirs = value_and_grad(formula, y, p, q)
    value, grad = value_and_grad(qsne_kl, y, p, q, impl="triton")
    assert_as_good_as_torch(value, theirs[0], exact[0], "value")
    assert_as_good_as_torch(grad, theirs[1], exact[1], "gradient")


def test_embedding_in_bfloat16_and_any_strides(poisoned):
    y, p = points(21, 2), similarities(21)
    wide = torch.full((21, 50), torch.nan, dtype=torch.float64)
    wide[:, 5:26] = p
    tall = torch.full((42, 4), torch.nan, dtype=torch.float64)
    tall[::2, 1:3] = y
    expected = qsne_kl_value_and_grad(y, p, 1.5, impl="reference")
    value, grad = qsne_kl_value_and_grad(tall[::2, 1:3], wide[:, 5:26], 1.5, impl="triton")
    assert_close(value, expected[0], 1e-12)
    assert_close(grad, expected[1], 1e-10)
    value, grad = qsne_kl_value_and_grad(y.bfloat16(), p.bfloat16(), 1.5, impl="triton")
    assert grad.dtype == torch.bfloat16
    assert_close(value, expected[0], 1e-2)
    assert_close(grad, expected[1], 2e-2)


@pytest.mark.parametrize("q", [1.0, 1.5, 2.0])
def test_embedding_at_its_edges_is_finite(q: float):
    p = similarities(6).float()
    for y in (torch.zeros(6, 2), torch.arange(12.0).view(6, 2) * 1e4):
        value, grad = qsne_kl_value_and_grad(y, p, q, impl="triton")
        assert value.isfinite()
        assert grad.isfinite().all()
    y = points(6, 2).float()
    y[2, 1] = torch.nan
    value, grad = qsne_kl_value_and_grad(y, p, q, impl="triton")
    assert value.isnan()
    assert grad.isnan().any(1).all()


def test_the_same_bits_each_time():
    y, p = points(37, 2).float(), similarities(37).float()
    (value, grad), again = (qsne_kl_value_and_grad(y, p, 1.5, impl="triton") for _ in range(2))
    assert torch.equal(value, again[0])
    assert torch.equal(grad, again[1])
