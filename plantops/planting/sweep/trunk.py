"""The trunk's pass: computed once for each batch, or once for all epochs, whoever of the candidates needs it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor

from plantops.graph.forward import Forward
from plantops.planting.sweep.program import trunk_program
from plantops.train.loop import autocast
from plantops.train.teacher_logits import content_hash

Values = dict[str, Tensor]


class Trunk:
    """The values of a frozen network that candidates start from.

    Args:
        forward: of the network; its layers are in ``eval()`` and need no gradient.
        kept: names of the values to keep; the input may be one of them.
        precision: as in ``Recipe``.
    """

    def __init__(self, forward: Forward, kept: Collection[str], precision: str) -> None:
        self.forward = forward
        self.names = tuple(name for name in dict.fromkeys(kept) if name != forward.input)
        self._precision = precision
        self._steps = trunk_program(forward, self.names, precision == "float32")

    def __call__(self, images: Tensor) -> Values:
        """The kept values for a batch of normalised images, without a graph. The images are one of them."""
        values = {self.forward.input: images}
        with torch.no_grad(), autocast(self._precision, images.device):
            for name, run in self._steps:
                values[name] = run(values)
        return {name: values[name] for name in (self.forward.input, *self.names)}

    def bytes_per_sample(self, images: Tensor) -> int:
        """Bytes of the kept values for one image, apart from the image; ``images``: some."""
        values = self(images)
        return sum(values[name].nbytes for name in self.names) // len(images)

    def hash(self) -> str:
        """SHA-256 over the frozen weights and what is kept of their values."""
        text = f"{self._precision} {self.names} {content_hash(self.forward.model)}"
        return hashlib.sha256(text.encode()).hexdigest()
