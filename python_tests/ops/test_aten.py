"""impl="aten" is written twice, in Python and in C++: the same calls, so the same bits, strides and memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from conv_cases import ALL, Case, Problem
from paths import by, without_the_module
from test_planted_linear import SHAPES, planted, problem
from torch import Tensor

from plantops._extension import STATUS

if not STATUS.loaded:
    pytest.skip(f"no compiled module: {STATUS.reason}", allow_module_level=True)

NAMES = ("input", "weight_out", "weight_in", "bias_out", "addend")


def assert_same(call: Callable[[], Tensor], trained: dict[str, Tensor]) -> None:
    ours, theirs = call(), by(without_the_module, call)
    assert_equal(ours, theirs)
    tensors = [tensor for tensor in trained.values() if tensor.requires_grad]
    upstream = torch.randn(ours.shape).to(ours.dtype)
    gradients = torch.autograd.grad(ours, tensors, upstream, allow_unused=True)
    expected = by(without_the_module, lambda: torch.autograd.grad(theirs, tensors, upstream, allow_unused=True))
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_equal(one, other)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours, theirs)
    assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_convolutions_of_every_shape(case: Case, dtype: torch.dtype):
    convolution = Problem.of(case, dtype)
    for input_grad in ("full", "planted"):
        assert_same(lambda: convolution.planted("aten", input_grad=input_grad), convolution.trained)  # noqa: B023


@pytest.mark.parametrize("needs", [n for r in range(1, 6) for n in itertools.combinations(NAMES, r)], ids="+".join)
def test_every_set_of_gradients(needs: tuple[str, ...]):
    shape = (14, 2, 12, 4, 3)
    weight, bias, trained = problem(shape)
    for name, tensor in trained.items():
        tensor.requires_grad_(name in needs)
    assert_same(lambda: planted(shape, weight, bias, trained, "relu", "aten"), trained)
    convolution = Problem.of(Case(fi=14, pi=2, fo=12, po=4, activation="relu", max_pool=2, size=(8, 8), addend=True))
    for name, tensor in convolution.trained.items():
        tensor.requires_grad_(name in needs)
    assert_same(lambda: convolution.planted("aten"), convolution.trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (96, 8, 80, 8, 32)], ids=str)
@pytest.mark.parametrize("lead", [(), (0,), (3,), (2, 1, 3), (100,)], ids=str)
def test_linear_layers_of_every_shape(shape, lead, dtype: torch.dtype):
    for activation, addend, input_grad in itertools.product(("none", "relu"), (False, True), ("full", "planted")):
        weight, bias, trained = problem(shape, lead, dtype, addend=addend)
        assert_same(
            lambda: planted(shape, weight, bias, trained, activation, "aten", input_grad=input_grad),  # noqa: B023
            trained,
        )


def test_what_a_backward_needs_is_asked_for_by_name():
    linear, conv = (
        torch.ops.plantops.planted_linear_backward.default,
        torch.ops.plantops.planted_conv2d_backward.default,
    )
    grad, weight, rows, one = torch.zeros(1, 3), torch.zeros(2, 4), torch.zeros(1, 4), [1, 1]
    images, kernels = torch.zeros(1, 2, 3, 3), torch.zeros(2, 4, 1, 1)
    out, into = [False, True, False, False, False], [False, False, True, False, False]
    with pytest.raises(ValueError, match="weight_out: its gradient is asked for"):
        linear(grad, None, weight, None, None, None, 4, "none", "full", out, "aten")
    with pytest.raises(ValueError, match="weight_in: its gradient is asked for"):
        linear(grad, None, weight, None, None, None, 4, "none", "full", into, "aten")
    with pytest.raises(ValueError, match="input: needed for the weight gradients"):
        linear(grad, None, weight, rows, None, None, 4, "none", "full", out, "aten")
    rest = (None, None, [3, 3], [3, 3], one, [0, 0], one, 1, 4, 0, "none", 1, "full")
    with pytest.raises(ValueError, match="weight_out: its gradient is asked for"):
        conv(images, None, kernels, None, None, *rest, out, "aten")
