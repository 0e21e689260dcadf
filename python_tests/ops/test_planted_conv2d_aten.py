"""impl="aten" is written twice, in Python and in C++: the same calls, so the same bits, strides and memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from conv_cases import ALL, Case, Problem
from paths import by, without_the_module

from plantops._extension import STATUS

if not STATUS.loaded:
    pytest.skip(f"no compiled module: {STATUS.reason}", allow_module_level=True)

NAMES = ("input", "weight_out", "weight_in", "bias_out", "addend")


def assert_same(problem: Problem, **options: str) -> None:
    ours = problem.planted("aten", **options)
    theirs = by(without_the_module, lambda: problem.planted("aten", **options))
    assert torch.equal(ours, theirs)
    assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
    trained = [tensor for tensor in problem.trained.values() if tensor.requires_grad]
    upstream = torch.randn(ours.shape).to(ours.dtype)
    gradients = torch.autograd.grad(ours, trained, upstream, allow_unused=True)
    expected = by(without_the_module, lambda: torch.autograd.grad(theirs, trained, upstream, allow_unused=True))
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other)
            assert (one.dtype, one.stride()) == (other.dtype, other.stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_shape(case: Case, dtype: torch.dtype):
    for input_grad in ("full", "planted"):
        assert_same(Problem.of(case, dtype), input_grad=input_grad)


@pytest.mark.parametrize("needs", [set(n) for r in range(1, 6) for n in itertools.combinations(NAMES, r)], ids=str)
def test_every_set_of_gradients(needs: set[str]):
    problem = Problem.of(Case(fi=14, pi=2, fo=12, po=4, activation="relu", max_pool=2, size=(8, 8), addend=True))
    for name, tensor in problem.trained.items():
        tensor.requires_grad_(name in needs)
    assert_same(problem)
