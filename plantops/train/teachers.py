"""A teacher as it is asked: in ``eval()``, without a graph, and known by what it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plantops.train.fused import fused
from plantops.train.logits import logits_of

Teacher = Callable[[Tensor], Any]
"""From a batch to logits, or to something that has them as ``logits``."""


class Asked:
    """A teacher that is asked for logits.

    Args:
        teacher: any callable from a batch to logits (or to an output that has them as ``logits``, as Hugging Face's
            models give it); a module is put in ``eval()``. It is never differentiated.
        channels_last: memory format of the images that it gets.

    Attributes:
        hash: ``content_hash`` of the teacher.
        identity: a text that says what the teacher computes; None where that cannot be known.
    """

    def __init__(self, teacher: Teacher, channels_last: bool = False) -> None:
        module = teacher.eval() if isinstance(teacher, nn.Module) else None
        self.hash = content_hash(teacher)
        self.identity = None if module is None else f"{self.hash} {module!r}"
        self._forward = teacher if module is None else fused(module)
        self._channels_last = channels_last

    def __call__(self, images: Tensor) -> Tensor:
        """The logits for a batch of normalised images."""
        if self._channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return logits_of(self._forward(images), "teacher")


def content_hash(teacher: Teacher) -> str:
    """SHA-256 over a module's class and every parameter and buffer; another callable is known by its identity alone."""
    if not isinstance(teacher, nn.Module):
        return f"{type(teacher).__name__}-{id(teacher)}"
    digest = hashlib.sha256(type(teacher).__qualname__.encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
