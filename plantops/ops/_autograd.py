"""What the autograd functions of the ops share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Refused(torch.autograd.Function):
    """A gradient as it is; what a derivative of it would be taken to is `connected`, and taking one raises."""

    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *connected: Tensor) -> Tensor:
        ctx.name = name
        return gradient.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            f"{ctx.name}: double backward is not supported; its gradient has no gradient of its own"
        )


def single_backward(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of `Function.backward`: a second derivative raises NotImplementedError naming the op.

    torch's `once_differentiable` is silent when the upstream gradient itself needs none: the second derivative is
    then missing without a word. Here every gradient made under `create_graph=True` carries the error, connected to the
    upstream gradient too: `torch.autograd.functional.jvp` differentiates twice with respect to that.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapper(ctx: Any, *grads: Tensor) -> Any:
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return backward(ctx, *grads)
            with torch.no_grad():
                outputs = backward(ctx, *grads)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            connected = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad]

            def refused(output: Tensor) -> Tensor:
                result: Tensor = _Refused.apply(name, output.detach().requires_grad_(), *connected)
                return result

            return tuple(refused(output) if isinstance(output, Tensor) else output for output in outputs)

        return wrapper

    return decorate
