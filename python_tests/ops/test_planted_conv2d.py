"""planted_conv2d computes what torch computes with all blocks joined, and the same gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_as_good_as_torch, assert_close_in_norm
from conv_cases import ALL, Case, Problem, arrange

import plantops.functional as PF

F64 = torch.float64
STEM = "planted_conv2d"
pytestmark = pytest.mark.usefixtures("device", "few_tiles")
TINY = Case(fi=2, pi=1, fo=2, po=1, start=1, batch=1, size=(3, 4))


def implementations():
    return pytest.mark.parametrize("impl", ["reference", "aten", "native", "triton", "auto"])


@contextmanager
def computed() -> Iterator[None]:
    """Skips what an implementation says it does not compute."""
    try:
        yield
    except NotImplementedError as error:
        pytest.skip(str(error))


def planted(problem: Problem, impl: str, **options) -> torch.Tensor:
    with computed():
        return problem.planted(impl, **options)


def upstream_like(y: torch.Tensor) -> torch.Tensor:
    values = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=F64, device="cpu")
    return values.to(y.device, y.dtype)


@implementations()
@pytest.mark.parametrize("case", ALL, ids=str)
def test_equals_the_joined_convolution(case: Case, impl: str, poisoned):
    problem = Problem.of(case)
    y, expected = planted(problem, impl), problem.joined()
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
    upstream = upstream_like(y)
    ours, theirs = problem.gradients(y, upstream), problem.gradients(expected, upstream)
    for name, grad in ours.items():
        assert grad is not None, name
        wanted = theirs[name] if theirs[name] is not None else torch.zeros_like(grad)
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@implementations()
@pytest.mark.parametrize("case", [Case(), Case(start=0), Case(fi=0, start=0), Case(pi=0, start=None), Case(po=0),
                                  Case(activation="relu", max_pool=2, addend=True, layout="channels_last"),
                                  Case(fi=6, fo=4, groups=2, pi=6, po=4, start=3)], ids=str)  # fmt: skip
def test_input_grad(case: Case, impl: str, poisoned):
    problem = Problem.of(case)
    y = planted(problem, impl)
    upstream = upstream_like(y)
    full = problem.gradients(y, upstream)
    partly = problem.gradients(planted(problem, impl, input_grad="planted"), upstream)
    end = problem.start + case.pi
    by_definition = full["input"].clone()
    by_definition[:, : problem.start] = 0
    by_definition[:, end:] = 0
    torch.testing.assert_close(partly["input"], by_definition, rtol=0, atol=1e-12)
    none = problem.gradients(planted(problem, impl, input_grad="none"), upstream)
    assert none["input"] is None
    for name in full.keys() - {"input"}:
        assert torch.equal(partly[name], full[name]), name
        assert torch.equal(none[name], full[name]), name


@pytest.mark.parametrize("impl", ["reference", "aten", "native", "auto"])
@pytest.mark.parametrize("case", [replace(TINY, dilation=2, padding=2), replace(TINY, fi=0, start=0, stride=2),
                                  replace(TINY, activation="relu", max_pool=2, addend=True),
                                  replace(TINY, groups=2, pi=1, start=None)], ids=str)  # fmt: skip
def test_gradcheck(case: Case, impl: str):
    problem = Problem.of(case)
    planted(problem, impl)
    names = list(problem.trained)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        problem.trained = dict(zip(names, tensors, strict=True))
        return problem.planted(impl)

    again = 0.0 if problem.weight.device.type == "cpu" else 1e-12  # cuDNN may add up in another order
    assert torch.autograd.gradcheck(function, tuple(problem.trained.values()), nondet_tol=again)


@implementations()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [Case(fi=24, pi=5, fo=20, po=4, start=None, size=(9, 8)),
                                  Case(fi=24, pi=5, fo=20, po=4, addend=True, size=(9, 8), layout="channels_last"),
                                  Case(fi=24, pi=5, fo=20, po=4, activation="relu", max_pool=2, size=(9, 8))],
                         ids=str)  # fmt: skip
def test_error_is_bounded_by_torchs(case: Case, dtype: torch.dtype, impl: str):
    low = Problem.of(case, dtype)
    exact = low.to(F64)
    y, torchs, truth = planted(low, impl), low.joined(), exact.joined()
    assert_as_good_as_torch(y, torchs, truth, "output")
    upstream = upstream_like(y)
    mine, theirs = low.gradients(y, upstream), low.gradients(torchs, upstream)
    true = exact.gradients(truth, upstream.double())
    smooth = case.activation == "none" and case.max_pool == 1
    for name, grad in mine.items():
        compare = assert_as_good_as_torch if smooth else assert_close_in_norm
        compare(grad, theirs[name], true[name], name)
        assert grad.dtype == dtype


@implementations()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype: torch.dtype, impl: str):
    # The addend cancels the convolution's leading bits: a rounding in between would be seen.
    case = Case(addend=True, fi=24, pi=5, size=(9, 8), start=None)
    low = Problem.of(case, dtype)
    with torch.no_grad():
        low.trained["addend"].copy_(-low.to(F64).joined(before="addend"))
        exact = low.to(F64).joined()
        y = planted(low, impl)
        noise = 4 * float((low.to(torch.float32).joined().double() - exact).abs().max())  # other orders of the sum
    if y.device.type != "cpu":
        noise = max(noise, 2.0**-17)  # tensor cores cut the sum off
    assert float((y.double() - exact).abs().max()) <= float(exact.abs().max()) * torch.finfo(dtype).eps / 2 + noise


@implementations()
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_ties_and_zeros_and_nan(layout: str, impl: str):
    # A 1x1 convolution that copies its input: the values of a window are what is written here.
    windows = [[1.0, 1, 1, 1], [0, 2, 2, 1], [-1, -1, -1, -1], [0, 0, 0, 0], [-1, 0, -2, 0]]
    x = torch.tensor(windows, dtype=F64).reshape(5, 1, 2, 2).repeat(1, 2, 1, 1)
    x = arrange(x, layout).requires_grad_()
    weight, weight_in, weight_out = (
        torch.tensor(w, dtype=F64) for w in ([[[[1.0]]]], [[[[0.0]]]], [[[[0.0]], [[1.0]]]])
    )

    def copied(**options) -> torch.Tensor:
        with computed():
            return PF.planted_conv2d(x, weight, weight_out, weight_in, max_pool=2, impl=impl, **options)

    first = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=F64)
    (grad,) = torch.autograd.grad(copied().sum(), x)
    assert torch.equal(grad, first.reshape(5, 1, 2, 2).expand_as(grad))
    (grad,) = torch.autograd.grad(copied(activation="relu").sum(), x)
    first[2:] = 0  # relu'(0) = 0
    assert torch.equal(grad, first.reshape(5, 1, 2, 2).expand_as(grad))
    with torch.no_grad():
        x[0, 0, 1, 0] = float("nan")
        y = copied(activation="relu")
    assert y[0].isnan().all()  # the second filter reads 0 x NaN
    assert not y[1:].isnan().any()


@implementations()
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "channels_last slice"])
@pytest.mark.parametrize("pool", [1, 2])
def test_layouts_are_kept(layout: str, pool: int, impl: str):
    last = layout.startswith("channels_last")
    expected = torch.channels_last if last else torch.contiguous_format
    problem = Problem.of(Case(layout=layout, max_pool=pool, activation="relu", addend=True, size=(6, 6)), torch.float32)
    for name in ("weight_out", "weight_in"):
        problem.trained[name] = problem.trained[name].detach().contiguous(memory_format=expected).requires_grad_()
    y = planted(problem, impl)
    assert y.is_contiguous(memory_format=expected)
    assert y.is_contiguous() != last
    grads = problem.gradients(y, torch.randn_like(y))
    assert grads["input"].is_contiguous(memory_format=expected)
    for name in ("weight_out", "weight_in"):
        assert grads[name].stride() == problem.trained[name].stride(), name


@implementations()
def test_repeats_bit_for_bit(impl: str):
    problem = Problem.of(Case(activation="relu", max_pool=2, size=(12, 12), batch=4), torch.float32)
    runs = []
    for _ in range(2):
        y = planted(problem, impl)
        runs.append([y, *problem.gradients(y, torch.ones_like(y)).values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@implementations()
def test_expanded_and_strided_upstream_gradients(impl: str):
    problem = Problem.of(Case(activation="relu", max_pool=2))
    y = planted(problem, impl)
    wide = torch.randn(*y.shape[:3], 2 * y.shape[3], dtype=F64)
    for upstream in (torch.ones((), dtype=F64).expand(y.shape), wide[..., ::2], wide[..., ::2].transpose(2, 3).mT):
        ours = problem.gradients(planted(problem, impl), upstream)
        dense = problem.gradients(planted(problem, impl), upstream.contiguous())
        for name in ours:
            atol = 1e-13 if dense[name].device.type == "cpu" else 1e-12
            torch.testing.assert_close(ours[name], dense[name], rtol=0, atol=atol)


def test_no_wanted_gradient_no_graph():
    problem = Problem.of(Case())
    with torch.no_grad():
        assert not problem.planted("auto").requires_grad
    for tensor in problem.trained.values():
        tensor.requires_grad_(False)
    problem.trained["input"].requires_grad_()
    assert not problem.planted("auto", input_grad="none").requires_grad


@implementations()
def test_double_backward_raises(impl: str):
    problem = Problem.of(Case())
    x = problem.trained["input"]
    (grad,) = torch.autograd.grad(planted(problem, impl).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="planted_conv2d: double backward is not supported"):
        grad.sum().backward()


def test_matches_conv2d_with_padding_same_of_an_even_kernel():
    x, w = torch.randn(1, 3, 5, 6, dtype=F64), torch.randn(4, 3, 2, 4, dtype=F64)
    torch.testing.assert_close(PF.planted_conv2d(x, w, padding="same"), F.conv2d(x, w, padding="same"))
