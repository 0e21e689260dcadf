"""Schemas and fakes of group_sparsity, its backward, and the fused value and gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plantops.ops import _registry, _triton
from plantops.ops._checks import compute_dtype
from plantops.ops.group_sparsity import aten, reference

TRITON = "plantops.ops.group_sparsity.triton"


def _value_like(weights: Sequence[Tensor]) -> Tensor:
    return weights[0].new_empty((), dtype=compute_dtype(weights[0].dtype))


def _fake(
    weights: Sequence[Tensor], penalty: str, groups: str, strength: float, l1: float, impl: str
) -> tuple[Tensor, list[Tensor]]:
    return _value_like(weights), [w.new_empty(w.shape[:2], dtype=compute_dtype(w.dtype)) for w in weights]


def _fake_backward(
    grad: Tensor, weights: Sequence[Tensor], coefficients: Sequence[Tensor], penalty: str, l1: float, impl: str
) -> list[Tensor]:
    return [torch.empty_like(w) for w in weights]


def _fake_value_and_grad(
    weights: Sequence[Tensor], penalty: str, groups: str, strength: float, l1: float, impl: str
) -> tuple[Tensor, list[Tensor]]:
    return _value_like(weights), [torch.empty_like(w) for w in weights]


forward_op = _registry.define(
    "group_sparsity",
    "(Tensor[] weights, str penalty, str groups, float strength, float l1, str impl) -> (Tensor, Tensor[])",
    implementations={
        "reference": reference.forward,
        "aten": aten.forward,
        "triton": _triton.late(TRITON, "forward"),
    },
    fake=_fake,
)
backward_op = _registry.define(
    "group_sparsity_backward",
    "(Tensor grad, Tensor[] weights, Tensor[] coefficients, str penalty, float l1, str impl) -> Tensor[]",
    implementations={
        "reference": reference.backward,
        "aten": aten.backward,
        "triton": _triton.late(TRITON, "backward"),
    },
    fake=_fake_backward,
)
value_and_grad_op = _registry.define(
    "group_sparsity_value_and_grad",
    "(Tensor[] weights, str penalty, str groups, float strength, float l1, str impl) -> (Tensor, Tensor[])",
    implementations={
        "reference": reference.value_and_grad,
        "aten": aten.value_and_grad,
        "triton": _triton.late(TRITON, "value_and_grad"),
    },
    fake=_fake_value_and_grad,
)
