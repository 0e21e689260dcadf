"""qsne_kl against float64 autograd of the formula, finite differences, scikit-learn's and openTSNE's objective."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bounds import assert_as_good_as_torch
from loss_cases import implementations, saved_bytes
from torch import Tensor

from plantops.functional import qsne_kl, qsne_kl_value_and_grad

QS = (1.0, 1.0001, 1.1, 1.5, 2.0, 2.5, 2.9)
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
each_impl = pytest.mark.parametrize("impl", implementations("qsne_kl")[:3])  # Triton: test_triton_companions.py
native = pytest.mark.parametrize("impl", implementations("qsne_kl")[2:3])
each_q = pytest.mark.parametrize("q", QS)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def points(n: int, dimensions: int, spread: float = 2.0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimensions, dtype=torch.float64, generator=generator) * spread


def similarities(n: int, density: float = 1.0, seed: int = 2) -> Tensor:
    """Symmetric, zero diagonal, sum 1."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(n, n, dtype=torch.float64, generator=generator) ** 4
    p *= torch.rand(n, n, dtype=torch.float64, generator=generator) < density
    p = (p + p.T).fill_diagonal_(0)
    return p / p.sum()


def sparse_csr(p: Tensor) -> Tensor:
    return p.to_sparse_csr()


def formula(y: Tensor, p: Tensor, q: float, exaggeration: float = 1.0) -> Tensor:
    """a sum p log(p/u) + log sum u as it is printed, for autograd."""
    squared = (y.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)
    log_u = -squared / 2 if q == 1 else -torch.log1p((q - 1) / (3 - q) * squared) / (q - 1)
    other = ~torch.eye(len(y), dtype=torch.bool)
    return exaggeration * (torch.xlogy(p, p) - p * log_u).sum() + torch.logsumexp(log_u[other], 0)


def value_and_grad(function, y: Tensor, *args, upstream: float = 1.0, **kwargs) -> tuple[Tensor, Tensor]:
    y = y.detach().requires_grad_()
    value = function(y, *args, **kwargs)
    (grad,) = torch.autograd.grad(value, y, torch.tensor(upstream, dtype=value.dtype))
    return value.detach(), grad


def assert_close(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    error = (ours.double() - exact).abs().max() / exact.abs().max()
    assert error <= tolerance, f"relative error {error:.2e}"


@each_impl
@each_q
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_float64_matches_autograd_of_the_formula(impl: str, q: float, dimensions: int, density: float):
    # Fewer points than lanes, a whole number of vectors, more; past one run of 64 vectors.
    for n in (2, 5, 16, 37, 600):
        y, p = points(n, dimensions), similarities(n, density if n > 5 else 1.0)
        value, grad = value_and_grad(formula, y, p, q, 3.0, upstream=1.5)
        given = p if density == 1.0 else sparse_csr(p)
        ours, our_grad = value_and_grad(qsne_kl, y, given, q, exaggeration=3.0, impl=impl, upstream=1.5)
        assert_close(ours, value, 1e-12)
        assert_close(our_grad, grad, 1e-10)
        ours, our_grad = qsne_kl_value_and_grad(y, given, q, exaggeration=3.0, impl=impl)
        assert not our_grad.requires_grad
        assert_close(ours, value, 1e-12)
        assert_close(our_grad * 1.5, grad, 1e-10)


@each_impl
@pytest.mark.parametrize("q", [1.0, 1.1, 1.5, 2.0, 2.5, 2.9])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_gradient_by_finite_differences(impl: str, q: float, dimensions: int):
    """Central differences of fourth order of the op's own value, to 1e-8."""
    n, h = 12, 1e-3
    y, p = points(n, dimensions, 1.0), similarities(n)
    _, grad = qsne_kl_value_and_grad(y, p, q, impl=impl)
    for i in range(n):
        for k in range(dimensions):
            at = []
            for steps in (-2, -1, 1, 2):
                moved = y.clone()
                moved[i, k] += steps * h
                at.append(float(qsne_kl(moved, p, q, impl=impl)))
            difference = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
            assert abs(difference - float(grad[i, k])) < 1e-8


@each_impl
@pytest.mark.parametrize("q", [1.0, 1.5, 2.0, 2.9])
def test_gradcheck(impl: str, q: float):
    y, p = points(7, 2).requires_grad_(), similarities(7)
    torch.autograd.gradcheck(lambda y: qsne_kl(y, p, q, exaggeration=2.0, impl=impl), y)


@each_impl
@each_q
def test_float32_is_as_good_as_torch(impl: str, q: float):
    y, p = points(300, 2, 5.0).float(), similarities(300).float()
    exact = value_and_grad(formula, y.double(), p.double(), q)
    theirs = value_and_grad(formula, y, p, q)
    value, grad = value_and_grad(qsne_kl, y, p, q, impl=impl)
    assert_as_good_as_torch(value, theirs[0], exact[0], "value")
    assert_as_good_as_torch(grad, theirs[1], exact[1], "gradient")


def test_half_precision_goes_through_aten():
    y, p = points(20, 2).bfloat16(), similarities(20).bfloat16()
    value, grad = qsne_kl_value_and_grad(y, p)
    exact = value_and_grad(formula, y.double(), p.double(), 2.0)
    assert grad.dtype == torch.bfloat16
    assert_close(value, exact[0], 1e-2)
    assert_close(grad, exact[1], 1e-2)


@native
def test_native_refuses_half_precision(impl: str):
    with pytest.raises(NotImplementedError, match="float32 and float64"):
        qsne_kl(points(20, 2).bfloat16(), similarities(20).bfloat16(), impl=impl)


@each_impl
@pytest.mark.parametrize("q", [1.2, 1.5, 2.0, 2.7])
def test_value_is_that_of_scikit_learn(impl: str, q: float):
    """scikit-learn's degrees of freedom are (3-q)/(q-1); its gradient is right at q = 2 only."""
    tsne = pytest.importorskip("sklearn.manifold._t_sne", reason="scikit-learn is not installed")
    distance = pytest.importorskip("scipy.spatial.distance")
    y, p = points(40, 2), similarities(40)
    condensed = distance.squareform(p.numpy(), checks=False)
    value, grad = tsne._kl_divergence(y.numpy().ravel(), condensed, (3 - q) / (q - 1), 40, 2)
    ours, our_grad = qsne_kl_value_and_grad(y, p, q, impl=impl)
    assert abs(value - float(ours)) < 1e-9
    if q == 2.0:
        assert_close(our_grad, torch.from_numpy(grad).view(40, 2), 1e-10)


def q_of_opentsne(y: Tensor, dof: float) -> Tensor:
    """openTSNE's kernel, (1 + d^2/dof)^-dof, normalised over all pairs."""
    squared = (y.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)
    w = (1 + squared / dof) ** -dof
    w.fill_diagonal_(0)
    return w / w.sum()


@each_impl
@pytest.mark.parametrize("q", [1.1, 1.5, 2.0, 2.5, 2.9])
def test_same_q_as_the_kernel_of_opentsne(impl: str, q: float):
    """With dof = 1/(q-1) and the embedding divided by sqrt(3-q), (q-1)/(3-q) d^2 is d^2/dof: the kernels are one."""
    y, p = points(30, 2), similarities(30)
    theirs = q_of_opentsne(y / math.sqrt(3 - q), 1 / (q - 1))
    kl = torch.xlogy(p, p).sum() - torch.xlogy(p, theirs).sum()
    torch.testing.assert_close(qsne_kl(y, p, q, impl=impl), kl, rtol=1e-12, atol=0)


@each_impl
@pytest.mark.parametrize("q", [1.5, 2.0, 2.5])
def test_same_objective_as_opentsne_computes(impl: str, q: float):
    opentsne = pytest.importorskip("openTSNE.tsne", reason="openTSNE is not installed (optional)")
    from scipy.sparse import csr_matrix

    y, p = points(30, 2), similarities(30)
    scaled = np.ascontiguousarray((y / math.sqrt(3 - q)).numpy())
    theirs, _ = opentsne.kl_divergence_bh(
        scaled, csr_matrix(p.numpy()), 1 / (q - 1), {"theta": 0.0}, should_eval_error=True
    )
    assert abs(theirs - float(qsne_kl(y, p, q, impl=impl))) < 1e-6


@each_impl
def test_q_is_continuous_at_one(impl: str):
    y, p = points(30, 2), similarities(30)
    at_one, near = (qsne_kl_value_and_grad(y, p, q, impl=impl) for q in (1.0, 1.0 + 1e-9))
    assert_close(near[0], at_one[0], 1e-7)
    assert_close(near[1], at_one[1], 1e-7)


@each_impl
def test_strides_are_read(impl: str):
    y, p = points(37, 2), similarities(37)
    expected = qsne_kl_value_and_grad(y, p, 1.5, impl="reference")
    wide = torch.full((37, 50), torch.nan, dtype=torch.float64)
    wide[:, 5:42] = p
    tall = torch.full((74, 4), torch.nan, dtype=torch.float64)
    tall[::2, 1:3] = y
    for embedding, given in ((tall[::2, 1:3], wide[:, 5:42]), (y.T.contiguous().T, p.T)):
        value, grad = qsne_kl_value_and_grad(embedding, given, 1.5, impl=impl)
        assert_close(value, expected[0], 1e-12)
        assert_close(grad, expected[1], 1e-10)


@each_impl
@each_q
def test_edges_are_finite(impl: str, q: float):
    p = similarities(6).float()
    for y in (torch.zeros(6, 2), torch.arange(12.0).view(6, 2) * 1e4, torch.tensor([[0.0, 0.0]] * 5 + [[1e5, 0.0]])):
        value, grad = qsne_kl_value_and_grad(y, p, q, impl=impl)
        assert value.isfinite()
        assert grad.isfinite().all()
    value, grad = qsne_kl_value_and_grad(torch.ones(1, 2), torch.zeros(1, 1), q, impl=impl)
    assert (grad == 0).all()
    y = points(6, 2).float()
    y[2, 1] = torch.nan
    value, grad = qsne_kl_value_and_grad(y, p, q, impl=impl)
    assert value.isnan()
    assert grad.isnan().any(1).all()


@native
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_native_repeats_bit_for_bit_for_any_number_of_threads(impl: str, density: float, set_threads):
    p = similarities(700, density).float()
    p = p if density == 1.0 else sparse_csr(p)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(qsne_kl_value_and_grad(points(700, 2).float(), p, 1.5, impl=impl))
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


@each_impl
def test_writes_everything(impl: str, poisoned):
    value, grad = qsne_kl_value_and_grad(points(37, 3), similarities(37), 1.5, impl=impl)
    assert value.isfinite()
    assert grad.isfinite().all()


@native
def test_native_refuses_indices_outside(impl: str):
    y, values = points(3, 2), torch.full((2,), 0.5, dtype=torch.float64)
    for crow, col, message in (
        ([0, 1, 1, 2], [0, 3], r"col: expected column indices in \[0, 3\)"),
        ([0, 1, 1, 2], [0, -1], "col: "),
        ([0, 2, 1, 2], [0, 1], "crow: expected ascending offsets from 0 to 2"),
        ([0, 1, 1, 5], [0, 1], "crow: "),
        ([0, 1, 2], [0, 1], r"crow: expected shape \[4\], got \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.plantops.qsne_kl(y, values, torch.tensor(crow), torch.tensor(col), 2.0, 1.0, True, impl)


def test_keeps_the_gradient_and_nothing_else():
    y, p = points(50, 2).float().requires_grad_(), similarities(50).float()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        qsne_kl(y, p)
    assert saved_bytes(saved, (y, p)) == 4 * 50 * 2


def test_double_backward_raises():
    y = points(5, 2).requires_grad_()
    (grad,) = torch.autograd.grad(qsne_kl(y, similarities(5)), y, create_graph=True)
    with pytest.raises(RuntimeError, match="qsne_kl: double backward"):
        grad.sum().backward()


def test_compiles_without_a_graph_break():
    y, p = points(9, 2).requires_grad_(), similarities(9)

    def loss(y: Tensor) -> Tensor:
        return qsne_kl(y * 2, p, 1.5) * 3

    (expected,) = torch.autograd.grad(loss(y), y)
    (compiled,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(y), y)
    torch.testing.assert_close(compiled, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": 3.0}, ValueError, r"q: expected a number in \[1, 3\), got 3.0"),
        ({"q": 0.9}, ValueError, r"q: expected a number in \[1, 3\), got 0.9"),
        ({"q": float("nan")}, ValueError, "q: .* got nan"),
        ({"exaggeration": 0.0}, ValueError, "exaggeration: .* got 0.0"),
        (
            {"embedding": torch.ones(4, 4)},
            ValueError,
            r"embedding: expected \[points, 1 to 3 dimensions\], got \(4, 4\)",
        ),
        ({"embedding": torch.ones(4)}, ValueError, "embedding: "),
        ({"p": torch.ones(4, 3)}, ValueError, r"p: expected shape \(4, 4\), got \(4, 3\)"),
        ({"p": torch.ones(4, 4).double()}, TypeError, "p: .*float32.*float64"),
        ({"p": torch.ones(4, 4).to_sparse()}, ValueError, "p: expected a dense or a sparse CSR tensor"),
        ({"p": torch.ones(4, 4).requires_grad_()}, ValueError, "p: expected a tensor without gradient"),
        ({"impl": "fast"}, ValueError, "impl: expected one of"),
    ],
)
def test_errors_name_the_argument(change: dict, error: type[Exception], message: str):
    arguments = {"embedding": torch.ones(4, 2), "p": torch.ones(4, 4), **change}
    with pytest.raises(error, match=message):
        qsne_kl(**arguments)
