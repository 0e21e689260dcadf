"""Logits in what a network returns, and what they have to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plantops.errors import ArgumentError, ArgumentTypeError


def logits_of(output: Any, name: str = "model") -> Tensor:
    """The logits in what ``name`` returned: a tensor, or the ``logits`` of a mapping or an object (Hugging Face).

    Raises:
        ArgumentTypeError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    kind = type(output).__name__
    got = f"{kind} with {', '.join(map(str, output)) or 'nothing'}" if isinstance(output, Mapping) else kind
    raise ArgumentTypeError(f"{name} must return logits: a tensor, or something with a tensor `logits`; got {got}")


def check_logits(logits: Tensor, name: str, images: int, classes: int | None = None) -> int:
    """How many classes the logits of ``images`` images have.

    Raises:
        ArgumentError: they are not finite floating point numbers ``[images, classes]``; ``classes`` None: any.
    """
    if logits.dim() != 2 or len(logits) != images or logits.shape[1] != (classes or logits.shape[1]):
        wanted, of = [images, classes or "classes"], f" of {classes} classes" if classes else ""
        raise ArgumentError(f"{name} must give logits {wanted} for {images} images{of}, got {list(logits.shape)}")
    if not logits.is_floating_point():
        raise ArgumentError(f"{name} must give logits in floating point, got {logits.dtype}")
    check_finite(logits, name, "its logits")
    return logits.shape[1]


def check_finite(values: Tensor, name: str, what: str) -> None:
    """Raises ArgumentError where some of ``values [N, ...]`` are NaN or infinite; says of how many rows."""
    wrong = ~torch.isfinite(values.flatten(1)).all(1)
    if wrong.any():
        place = int(wrong.nonzero()[0])
        bad = values[place][~torch.isfinite(values[place])][0].item()
        raise ArgumentError(
            f"{name} must be finite, got {bad} in {what} for {int(wrong.sum())} of {len(values)} images, "
            f"the first of them number {place}"
        )
