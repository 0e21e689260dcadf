"""Schemas and fakes of planted_conv2d and its backward.

Memory formats: output and indices have the input's; the gradients to input and addend that of the output's gradient;
the gradients to weights the strides of their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plantops.ops import _registry, _triton
from plantops.ops._layout import empty, memory_format
from plantops.ops.planted_conv2d import aten, auto, checks, flops, reference, shapes

TRITON = "plantops.ops.planted_conv2d.triton"


def _fake(
    input: Tensor,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    bias: Tensor | None,
    bias_out: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_start: int,
    addend: Tensor | None,
    activation: str,
    max_pool: int,
    save_indices: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    size = shapes.conv_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    shape = (
        input.shape[0],
        weight.shape[0] + shapes.planted_out(weight_out),
        size[0] // max_pool,
        size[1] // max_pool,
    )
    output = empty(input, shape, memory_format(input))
    if max_pool > 1 and save_indices:
        return output, torch.empty_like(output, dtype=torch.uint8)
    return output, input.new_empty(0, dtype=torch.uint8)


def _fake_backward(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    weight_out: Tensor | None,
    weight_in: Tensor | None,
    output: Tensor | None,
    indices: Tensor | None,
    input_size: Sequence[int],
    conv_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_start: int,
    planted_in: int,
    activation: str,
    max_pool: int,
    input_grad: str,
    output_mask: Sequence[bool],
    impl: str,
) -> tuple[Tensor, ...]:
    n, channels = grad_output.shape[0], shapes.trunk_in(weight, groups) + planted_in
    layout = memory_format(grad_output)
    results: list[Any] = [grad_output.new_empty(0) for _ in output_mask]
    if output_mask[0]:
        results[0] = empty(grad_output, (n, channels, *input_size), layout)
    if output_mask[1]:
        results[1] = torch.empty_like(weight_out)  # type: ignore[arg-type]
    if output_mask[2]:
        results[2] = torch.empty_like(weight_in)  # type: ignore[arg-type]
    if output_mask[3]:
        results[3] = grad_output.new_empty(grad_output.shape[1] - weight.shape[0])
    if output_mask[4]:
        results[4] = empty(grad_output, (n, grad_output.shape[1], *conv_size), layout)
    return tuple(results)


forward_op = _registry.define(
    "planted_conv2d",
    "(Tensor input, Tensor weight, Tensor? weight_out, Tensor? weight_in, Tensor? bias, Tensor? bias_out,"
    " int[2] stride, int[2] padding, int[2] dilation, int groups, SymInt in_start, Tensor? addend, str activation,"
    " int max_pool, bool save_indices, str impl) -> (Tensor output, Tensor indices)",
    implementations={
        "reference": reference.forward,
        "aten": aten.forward,
        "triton": _triton.late(TRITON, "forward"),
    },
    fake=_fake,
    choose=auto.choose_forward,
    check=checks.check_forward,
    key=auto.forward_key,
    flops=flops.forward,
)
backward_op = _registry.define(
    "planted_conv2d_backward",
    "(Tensor grad_output, Tensor? input, Tensor weight, Tensor? weight_out, Tensor? weight_in, Tensor? output,"
    " Tensor? indices, SymInt[2] input_size, SymInt[2] conv_size, int[2] stride, int[2] padding, int[2] dilation,"
    " int groups, SymInt in_start, SymInt planted_in, str activation, int max_pool, str input_grad,"
    " bool[5] output_mask, str impl) -> (Tensor grad_input, Tensor grad_weight_out, Tensor grad_weight_in,"
    " Tensor grad_bias_out, Tensor grad_addend)",
    implementations={
        "reference": reference.backward,
        "aten": aten.backward,
        "triton": _triton.late(TRITON, "backward"),
    },
    fake=_fake_backward,
    choose=auto.choose_backward,
    check=checks.check_backward,
    key=auto.backward_key,
    flops=flops.backward,
)
