"""Schemas and fakes of distillation_loss and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plantops.ops import _registry, _triton, _tuned
from plantops.ops._checks import compute_dtype
from plantops.ops.distillation_loss import aten, reference

REDUCTIONS = ("none", "sum", "mean")
TRITON = "plantops.ops.distillation_loss.triton"


def _fake(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    alpha: float,
    temperature: float,
    label_smoothing: float,
    reduction: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = student.new_empty(target.shape, dtype=compute_dtype(student.dtype))
    loss = torch.empty_like(rows) if reduction == "none" else rows.new_empty(())
    return loss, rows, torch.empty_like(rows), torch.empty_like(rows)


def _fake_backward(grad: Tensor, student: Tensor, *args: Any) -> Tensor:
    return student.new_empty(student.shape)


forward_op = _registry.define(
    "distillation_loss",
    "(Tensor student, Tensor teacher, Tensor target, float alpha, float temperature, float label_smoothing,"
    " str reduction, str impl) -> (Tensor, Tensor, Tensor, Tensor)",
    implementations={
        "reference": reference.forward,
        "aten": aten.forward,
        "triton": _triton.late(TRITON, "forward"),
    },
    fake=_fake,
    key=_tuned.of_rows,
)
backward_op = _registry.define(
    "distillation_loss_backward",
    "(Tensor grad, Tensor student, Tensor teacher, Tensor target, Tensor lse_student_t, Tensor lse_teacher_t,"
    " Tensor lse_student, float alpha, float temperature, float label_smoothing, str reduction, str impl) -> Tensor",
    implementations={
        "reference": reference.backward,
        "aten": aten.backward,
        "triton": _triton.late(TRITON, "backward"),
    },
    fake=_fake_backward,
    key=_tuned.of_rows_backward,
)
