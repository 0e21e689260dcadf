"""Schema and fake of qsne_kl. Value and gradient are one op: the gradient needs every pair that the value needs."""

from __future__ import annotations

import torch
from torch import Tensor

from plantops.ops import _registry, _triton
from plantops.ops.qsne_kl import aten, reference

MOST_DIMENSIONS = 3


def _fake(
    embedding: Tensor,
    p: Tensor,
    crow: Tensor | None,
    col: Tensor | None,
    q: float,
    exaggeration: float,
    value: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    scalar = embedding.new_empty((), dtype=torch.float64)
    return scalar if value else scalar.new_empty(0), torch.empty_like(scalar), embedding.new_empty(embedding.shape)


qsne_kl_op = _registry.define(
    "qsne_kl",
    "(Tensor embedding, Tensor p, Tensor? crow, Tensor? col, float q, float exaggeration, bool value, str impl)"
    " -> (Tensor, Tensor, Tensor)",
    implementations={
        "reference": reference.forward,
        "aten": aten.forward,
        "triton": _triton.late("plantops.ops.qsne_kl.triton", "forward"),
    },
    fake=_fake,
)
