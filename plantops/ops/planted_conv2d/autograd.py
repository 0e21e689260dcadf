"""Autograd of planted_conv2d: what is kept between forward and backward, and which gradients are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plantops.ops import _autocast
from plantops.ops._autograd import single_backward
from plantops.ops._layout import compact
from plantops.ops.planted_conv2d import shapes
from plantops.ops.planted_conv2d.schema import backward_op, forward_op

Needs = tuple[bool, bool, bool, bool, bool]  # input, weight_out, weight_in, bias_out, addend


class PlantedConv2d(torch.autograd.Function):
    """The output alone; `needs` says which tensors get a gradient. Double backward raises."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        weight_out: Tensor | None,
        weight_in: Tensor | None,
        bias: Tensor | None,
        bias_out: Tensor | None,
        addend: Tensor | None,
        needs: Needs,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        in_start: int,
        activation: str,
        max_pool: int,
        input_grad: str,
        impl: str,
    ) -> Tensor:
        geometry = (stride, padding, dilation)
        rows, _, *kernel = weight.shape
        output, indices = forward_op(
            input, weight, weight_out, weight_in, bias, bias_out, *geometry, groups, in_start, addend,
            activation, max_pool, max_pool > 1, impl,
        )  # fmt: skip
        planted_in = shapes.planted_in(weight, weight_out, weight_in, groups)
        need_input, need_weight_out, need_weight_in, _, need_addend = needs
        all_rows = need_input or need_weight_in or need_addend
        saved_input = saved_output = saved_indices = None
        if need_weight_out:
            saved_input = input
        elif need_weight_in:
            saved_input = compact(input, in_start, planted_in)
        if activation == "relu":
            saved_output = output if all_rows else compact(output, rows, output.shape[1] - rows)
        if max_pool > 1:
            saved_indices = indices if all_rows else compact(indices, rows, output.shape[1] - rows)
        ctx.save_for_backward(saved_input, weight, weight_out, weight_in, saved_output, saved_indices)
        ctx.needs = needs
        size = tuple(input.shape[2:])
        ctx.sizes = (
            size,
            shapes.conv_size(size, kernel, *geometry),
            *geometry,
            groups,
            in_start,
            planted_in,
        )
        ctx.config = (activation, max_pool, input_grad)
        ctx.impl = impl
        return output

    @staticmethod
    @single_backward("planted_conv2d")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs, (activation, max_pool, _) = ctx.needs, ctx.config
        # Without activation and pooling the addend's gradient is the one that came in.
        passes = needs[4] and activation == "none" and max_pool == 1
        mask = (*needs[:4], needs[4] and not passes)
        device = grad.device.type
        if not any(mask):
            grads: tuple[Tensor | None, ...] = (None,) * 5
        elif _autocast.active(device):
            with _autocast.disabled(device):
                grads = backward_op(grad, *ctx.saved_tensors, *ctx.sizes, *ctx.config, mask, ctx.impl)
        else:
            grads = backward_op(grad, *ctx.saved_tensors, *ctx.sizes, *ctx.config, mask, ctx.impl)
        input, weight_out, weight_in, bias_out, addend = [
            g if wanted else None for g, wanted in zip(grads, mask, strict=True)
        ]
        return (input, None, weight_out, weight_in, None, bias_out, grad if passes else addend, *(None,) * 10)
