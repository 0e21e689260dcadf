"""Schemas and fakes of planted_linear and its backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plantops.ops import _registry, _triton
from plantops.ops.planted_linear import aten, auto, flops, reference

TRITON = "plantops.ops.planted_linear.triton"


def _fake(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    bias: Tensor | None,
    bias_out: Tensor | None,
    in_start: int,
    addend: Tensor | None,
    activation: str,
    impl: str,
) -> Tensor:
    planted = 0 if weight_out is None else weight_out.shape[0]
    return input.new_empty((*input.shape[:-1], weight.shape[0] + planted))


def _fake_backward(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    output: Tensor | None,
    in_start: int,
    activation: str,
    input_grad: str,
    output_mask: Sequence[bool],
    impl: str,
) -> tuple[Tensor, ...]:
    features = weight.shape[1] + (0 if weight_in is None else weight_in.shape[1])
    results: list[Any] = [grad_output.new_empty(0) for _ in output_mask]
    if output_mask[0]:
        results[0] = grad_output.new_empty((*grad_output.shape[:-1], features))
    if output_mask[1]:
        results[1] = torch.empty_like(weight_out)  # type: ignore[arg-type]
    if output_mask[2]:
        results[2] = torch.empty_like(weight_in)  # type: ignore[arg-type]
    if output_mask[3]:
        results[3] = grad_output.new_empty(grad_output.shape[-1] - weight.shape[0])
    if output_mask[4]:
        results[4] = grad_output.new_empty(grad_output.shape)
    return tuple(results)


forward_op = _registry.define(
    "planted_linear",
    "(Tensor input, Tensor weight, Tensor? weight_out, Tensor? weight_in, Tensor? bias, Tensor? bias_out,"
    " SymInt in_start, Tensor? addend, str activation, str impl) -> Tensor",
    implementations={
        "reference": reference.forward,
        "aten": aten.forward,
        "triton": _triton.late(TRITON, "forward"),
    },
    fake=_fake,
    key=auto.forward_key,
    flops=flops.forward,
    native=False,
)
backward_op = _registry.define(
    "planted_linear_backward",
    "(Tensor grad_output, Tensor? input, Tensor weight, Tensor? weight_out, Tensor? weight_in, Tensor? output,"
    " SymInt in_start, str activation, str input_grad, bool[5] output_mask, str impl) -> (Tensor grad_input,"
    " Tensor grad_weight_out, Tensor grad_weight_in, Tensor grad_bias_out, Tensor grad_addend)",
    implementations={
        "reference": reference.backward,
        "aten": aten.backward,
        "triton": _triton.late(TRITON, "backward"),
    },
    fake=_fake_backward,
    key=auto.backward_key,
    flops=flops.backward,
    native=False,
)
