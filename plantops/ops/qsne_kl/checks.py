"""What qsne_kl requires of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from plantops._arguments import MOST
from plantops.errors import ArgumentError
from plantops.ops import _checks
from plantops.ops.qsne_kl.schema import MOST_DIMENSIONS


def check_q(q: float) -> None:
    """ValueError unless 1 <= q < 3."""
    _checks.check_number("q", q)
    if not 1.0 <= q < 3.0:
        raise ArgumentError(f"q: expected a number in [1, 3), got {q}")


def parts_of(p: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """P as the op takes it: a dense matrix, or values, row offsets and columns of a sparse one."""
    if p.layout == torch.sparse_csr:
        if torch._C._are_functorch_transforms_active():
            with torch._C._DisableFuncTorch():  # which cannot read sparse tensors; no transform knows this one
                return p.values(), p.crow_indices().long(), p.col_indices().long()
        return p.values(), p.crow_indices().long(), p.col_indices().long()
    if p.layout != torch.strided:
        raise ArgumentError(f"p: expected a dense or a sparse CSR tensor, got layout {p.layout}")
    return p, None, None


def check_arguments(embedding: Tensor, p: Tensor, q: float, exaggeration: float) -> None:
    """ValueError or TypeError naming the argument, what was expected and what came."""
    _checks.check_alike({"embedding": embedding, "p": p})
    if embedding.dim() != 2 or not 1 <= embedding.shape[1] <= MOST_DIMENSIONS:
        raise ArgumentError(
            f"embedding: expected [points, 1 to {MOST_DIMENSIONS} dimensions], got {tuple(embedding.shape)}"
        )
    points = embedding.shape[0]
    _checks.check_shape("p", p, (points, points))
    if p.requires_grad and torch.is_grad_enabled():
        raise ArgumentError("p: expected a tensor without gradient, got requires_grad=True; pass p.detach()")
    check_q(q)
    _checks.check_positive("exaggeration", exaggeration)
    if isinstance(exaggeration, int) and exaggeration > MOST:
        raise ArgumentError(f"exaggeration: expected a float or an integer that torch takes, got {exaggeration}")
