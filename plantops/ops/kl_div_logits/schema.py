"""Schemas and fakes of kl_div_logits, its backward, and the fused value and gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from plantops.ops import _registry, _triton, _tuned
from plantops.ops._checks import compute_dtype
from plantops.ops.kl_div_logits import aten, reference

REDUCTIONS = ("none", "sum", "mean", "batchmean")
TRITON = "plantops.ops.kl_div_logits.triton"


def _loss_like(student: Tensor, reduction: str) -> Tensor:
    shape = student.shape if reduction == "none" else ()
    return student.new_empty(shape, dtype=compute_dtype(student.dtype))


def _fake(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    rows = student.new_empty(student.shape[:-1], dtype=compute_dtype(student.dtype))
    return _loss_like(student, reduction), rows, torch.empty_like(rows)


def _fake_backward(
    grad: Tensor,
    student: Tensor,
    teacher: Tensor,
    lse_student: Tensor,
    lse_teacher: Tensor,
    temperature: float,
    reduction: str,
    impl: str,
) -> Tensor:
    return student.new_empty(student.shape)


def _fake_value_and_grad(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, impl: str
) -> tuple[Tensor, Tensor]:
    return _loss_like(student, reduction), student.new_empty(student.shape)


forward_op = _registry.define(
    "kl_div_logits",
    "(Tensor student, Tensor teacher, float temperature, str reduction, str impl) -> (Tensor, Tensor, Tensor)",
    implementations={
        "reference": reference.forward,
        "aten": aten.forward,
        "triton": _triton.late(TRITON, "forward"),
    },
    fake=_fake,
    key=_tuned.of_rows,
)
backward_op = _registry.define(
    "kl_div_logits_backward",
    "(Tensor grad, Tensor student, Tensor teacher, Tensor lse_student, Tensor lse_teacher, float temperature,"
    " str reduction, str impl) -> Tensor",
    implementations={
        "reference": reference.backward,
        "aten": aten.backward,
        "triton": _triton.late(TRITON, "backward"),
    },
    fake=_fake_backward,
    key=_tuned.of_rows_backward,
)
value_and_grad_op = _registry.define(
    "kl_div_logits_value_and_grad",
    "(Tensor student, Tensor teacher, float temperature, str reduction, str impl) -> (Tensor, Tensor)",
    implementations={
        "reference": reference.value_and_grad,
        "aten": aten.value_and_grad,
        "triton": _triton.late(TRITON, "value_and_grad"),
    },
    fake=_fake_value_and_grad,
    key=_tuned.of_rows,
)
