"""Autograd of qsne_kl. The forward op gives the gradient with the value; it ([points, dimensions]) is what is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plantops.ops._autograd import single_backward
from plantops.ops.qsne_kl.reference import negative_entropy
from plantops.ops.qsne_kl.schema import qsne_kl_op


def objective(p: Tensor, cross: Tensor, log_z: Tensor, exaggeration: float, dtype: torch.dtype) -> Tensor:
    """exaggeration (sum p log p - sum p log u) + log Z, whose gradient the op gives; KL(P || Q) at exaggeration 1."""
    return (exaggeration * (negative_entropy(p) + cross) + log_z).to(dtype)


class QSNEKL(torch.autograd.Function):
    """The objective alone; the gradient goes to the embedding. Double backward raises."""

    @staticmethod
    def forward(
        ctx: Any,
        embedding: Tensor,
        p: Tensor,
        crow: Tensor | None,
        col: Tensor | None,
        q: float,
        exaggeration: float,
        impl: str,
    ) -> Tensor:
        cross, log_z, grad = qsne_kl_op(embedding, p, crow, col, q, exaggeration, True, impl)
        ctx.save_for_backward(grad, embedding)  # which is there anyway, and what a second derivative would be taken to
        return objective(p, cross, log_z, exaggeration, embedding.dtype)

    @staticmethod
    @single_backward("qsne_kl")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        grad, _ = ctx.saved_tensors
        return upstream * grad, None, None, None, None, None, None
