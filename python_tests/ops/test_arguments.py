"""Arguments of every op that are None, 0-dimensional, of another type or out of range: an error that names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_cases import EMPTY, Case, Problem
from paths import by, without_shortcuts, without_the_module

from plantops import functional as PF
from plantops.errors import PlantopsError
from plantops.ops import _registry

X, W = torch.randn(2, 5, 6, 6), torch.randn(4, 3, 3, 3)
LOGITS = {"student": torch.randn(3, 4), "teacher": torch.randn(3, 4)}
CALLS: dict[str, dict[str, Any]] = {
    "planted_conv2d": {
        "input": X, "weight": W, "weight_out": torch.randn(2, 5, 3, 3), "weight_in": torch.randn(4, 2, 3, 3),
        "bias": torch.randn(4), "bias_out": torch.randn(2), "addend": torch.randn(2, 6, 4, 4),
    },
    "planted_linear": {
        "input": X[:, :, 0, 0], "weight": W[:, :, 0, 0], "weight_out": torch.randn(2, 5),
        "weight_in": torch.randn(4, 2),
        "bias": torch.randn(4), "bias_out": torch.randn(2), "addend": torch.randn(2, 6),
    },
    "kl_div_logits": LOGITS,
    "kl_div_logits_value_and_grad": LOGITS,
    "distillation_loss": {**LOGITS, "target": torch.tensor([0, 1, 2]), "alpha": 0.5, "temperature": 2.0},
    "group_sparsity": {"weights": [W], "penalty": "l1"},
    "group_sparsity_value_and_grad": {"weights": [W], "penalty": "l1"},
    "qsne_kl": {"embedding": torch.randn(4, 2), "p": torch.rand(4, 4)},
    "qsne_kl_value_and_grad": {"embedding": torch.randn(4, 2), "p": torch.rand(4, 4)},
}  # fmt: skip
MAY_BE_NONE = {"weight_out", "weight_in", "bias", "bias_out", "addend", "in_start", "mask", "ignore_index"}
NUMBERS_TOO = {"temperature", "alpha", "label_smoothing", "strength", "l1", "q", "exaggeration"}
WRONG = {"None": None, "a 0-dim tensor": torch.tensor(1.0), "a 0-dim integer": torch.tensor(1), "an object": object()}


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_is_named_in_its_error(name: str) -> None:
    function = getattr(PF, name)
    function(**CALLS[name])
    for argument in inspect.signature(function).parameters:
        for what, value in WRONG.items():
            if value is None and argument in MAY_BE_NONE:
                continue

            def call() -> Any:
                return function(**{**CALLS[name], argument: value})  # noqa: B023

            for way in (lambda c: c(), lambda c: by(without_shortcuts, c)):
                with pytest.raises(PlantopsError, match=f"^{argument}") as raised:
                    way(call)
                assert isinstance(raised.value, (ValueError, TypeError)), what
                assert "expected" in str(raised.value)
                assert "got" in str(raised.value)


@pytest.mark.parametrize("name", CALLS)
def test_wrong_numbers(name: str) -> None:
    function = getattr(PF, name)
    for argument in set(inspect.signature(function).parameters) & NUMBERS_TOO:
        for value in (float("nan"), float("inf"), -1, "2", 1j):
            with pytest.raises(PlantopsError, match=f"^{argument}: expected a.* number"):
                function(**{**CALLS[name], argument: value})


GEOMETRY: list[tuple[str, Any]] = [
    ("stride", [0, 1]), ("stride", [1, -1]), ("padding", [-1, 0]), ("padding", [0, -2]), ("dilation", [0, 1]),
    ("dilation", [1, -1]), ("groups", 0), ("groups", -1), ("max_pool", 0), ("max_pool", -2), ("max_pool", 16),
    ("in_start", -1), ("in_start", 4),
]  # fmt: skip


@pytest.mark.parametrize("impl", _registry.IMPLS)
@pytest.mark.parametrize(("argument", "value"), GEOMETRY, ids=str)
def test_geometry_out_of_range_is_an_error_of_every_implementation(argument: str, value: Any, impl: str) -> None:
    """Also where the op itself is called, forward, backward and fake."""
    if impl != "auto" and not _registry.live("planted_conv2d", impl, "cpu"):
        pytest.skip(_registry.why_not("planted_conv2d", impl, "cpu"))
    tensors = (X, W, None, torch.randn(4, 2, 3, 3), None, None)
    integers: dict[str, Any] = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "in_start": 3}
    pool = {"max_pool": 1}
    given = {**integers, **pool, argument: value}
    geometry = [given[name] for name in integers]
    with pytest.raises(PlantopsError, match=f"^{argument}: expected"):
        PF.planted_conv2d(*tensors, **given, impl=impl)
    if argument == "in_start":
        return
    ops = torch.ops.plantops
    y = torch.randn(2, 4, 6, 6)
    calls: list[Callable[[], Any]] = [
        lambda: ops.planted_conv2d(*tensors, *geometry, None, "none", given["max_pool"], False, impl),
        lambda: ops.planted_conv2d_backward(
            y, X, W, None, tensors[3], None, None, [6, 6], [6, 6], *geometry, 2, "none", given["max_pool"], "full",
            [True, False, True, False, False], impl,
        ),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises((ValueError, RuntimeError)) as raised:
            call()
        if impl != "auto":
            assert str(raised.value).startswith(f"{argument}: expected"), raised.value
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=argument):
            call()


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [1.5, (1.5, 1), (1,), (1, 1, 1), "wide", (None, 1)], ids=str)
def test_what_is_no_pair_of_integers(name: str, value: Any) -> None:
    for impl in ("auto", "aten", "native"):
        with pytest.raises(PlantopsError, match=f"^{name}: expected"):
            PF.planted_conv2d(X, W[:, :2].repeat(1, 3, 1, 1)[:, :5], impl=impl, **{name: value})


@pytest.mark.parametrize("options", [{"max_pool": 2}, {"max_pool": 2, "activation": "relu"}], ids=str)
@pytest.mark.parametrize("impl", ["reference", "aten", "native", "triton"])
def test_empty_blocks_behind_a_pool(impl: str, options: dict[str, Any]) -> None:
    """Every set of gradients, where nothing is planted, kept or read."""
    if not _registry.live("planted_conv2d", impl, "cpu"):
        pytest.skip(_registry.why_not("planted_conv2d", impl, "cpu"))
    for empty in EMPTY:
        case = Case(**{**vars(empty), **options, "size": (6, 6)})
        problem = Problem.of(case)
        for wanted in [(name,) for name in problem.trained] + [tuple(problem.trained)]:
            tensors = [problem.trained[name] for name in wanted]
            for name, tensor in problem.trained.items():
                tensor.requires_grad_(name in wanted)

            def gradients() -> tuple[torch.Tensor, ...]:
                return torch.autograd.grad(problem.planted(impl).square().sum(), tensors)  # noqa: B023

            right = [torch.zeros_like(tensor) for tensor in tensors]
            if case.fo + case.po and case.batch:
                plain = torch.autograd.grad(problem.joined().square().sum(), tensors, allow_unused=True)
                right = [r if p is None else p for r, p in zip(right, plain, strict=True)]
            for path in (lambda _: None, without_shortcuts if impl == "native" else without_the_module):
                torch.testing.assert_close(list(by(path, gradients)), right, rtol=1e-10, atol=1e-12)
