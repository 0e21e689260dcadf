"""A discriminator of logits, and the losses that it and a student play with.

Source: Xu, Hsu, Huang, "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional
Adversarial Networks", arXiv 1709.00513.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plantops.errors import ArgumentError

FAKE, REAL = 0, 1
"""Positions of the two last values of a discriminator's output: the logits came from a student, or from the teacher."""


class LogitDiscriminator(nn.Module):
    """From logits alone: which class they are for, and whether a teacher or a student gave them.

    Batch norm of the logits, then ``layers`` residual blocks as wide as there are classes, each
    ``relu(a + dropout(batch_norm(linear(a))))``, then a linear head with ``num_classes + 2`` values: class logits,
    fake, real. The teacher's and the student's rows are batches of their own, each normalised by its own statistics; a
    batch of one by the running ones.

    Args:
        num_classes: C.
        layers: residual blocks (3 is the published best of 1 to 4).
        dropout: share that is dropped in ``train()``, from 0 to below 1.
        generator: source of the initial weights and of dropout; ``None``: a fresh one with seed 0. Global generators
            are not used.

    Shapes: ``[N, C]`` to ``[N, C + 2]``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, num_classes: int, layers: int = 3, dropout: float = 0.3, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if num_classes < 1 or layers < 1:
            raise ArgumentError(f"num_classes and layers must be at least 1, got {num_classes} and {layers}")
        if not 0 <= dropout < 1:
            raise ArgumentError(f"dropout must be from 0 to below 1, got {dropout}")
        self.num_classes, self.dropout = num_classes, dropout
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        device = self._generator.device
        self.norm = nn.BatchNorm1d(num_classes, device=device)
        self.linears = nn.ModuleList([self._linear(num_classes) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(num_classes, device=device) for _ in range(layers)])
        self.head = self._linear(num_classes + 2)

    def forward(self, logits: Tensor) -> Tensor:
        """Class logits and (fake, real) of rows of logits."""
        a = self._normalised(self.norm, logits)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            a = torch.relu(a + self._dropped(self._normalised(norm, linear(a))))
        out: Tensor = self.head(a)
        return out

    def _linear(self, outputs: int) -> nn.Linear:
        """torch's own initial weights, drawn from the generator."""
        inputs, device = self.num_classes, self._generator.device
        layer = nn.Linear(inputs, outputs, device="meta").to_empty(device=device)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=self._generator)
        return layer

    def _normalised(self, norm: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(norm, nn.BatchNorm1d)
        batch = self.training and len(x) > 1
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, batch, norm.momentum or 0.0, norm.eps
        )

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.dropout, generator=self._generator)
        return x * kept / (1 - self.dropout)


def adversarial_terms(on_teacher: Tensor, on_student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``(L_A, L_DS)`` of a discriminator's outputs.

    ``L_A = mean[log P(real | D(t)) + log P(fake | D(F))]``: it tells teacher and student apart;
    ``L_DS = mean[log P(label | D(t)) + log P(label | D(F))]``: it knows the classes of both.

    Args:
        on_teacher, on_student: ``[N, C + 2]`` for the teacher's and the student's logits.
        labels: ``[N]`` int64.
    """
    telling = F.log_softmax(on_teacher[:, -2:], 1)[:, REAL] + F.log_softmax(on_student[:, -2:], 1)[:, FAKE]
    classes = -F.cross_entropy(on_teacher[:, :-2], labels) - F.cross_entropy(on_student[:, :-2], labels)
    return telling.mean(), classes


def discriminator_loss(on_teacher: Tensor, on_student: Tensor, labels: Tensor) -> Tensor:
    """What the discriminator minimises: ``-(L_A + L_DS) / 2``; arguments as ``adversarial_terms``."""
    telling, classes = adversarial_terms(on_teacher, on_student, labels)
    return -(telling + classes) / 2


def adversarial_student_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, on_teacher: Tensor, on_student: Tensor
) -> Tensor:
    """What the student minimises: ``CE + mean ||F - t||_1 + (L_A - L_DS) / 2``.

    Args:
        student, teacher: logits ``[N, C]``; the L1 norm is over the classes, the mean over the rows.
        labels: ``[N]`` int64.
        on_teacher, on_student: the discriminator's outputs for them, ``[N, C + 2]``.
    """
    telling, classes = adversarial_terms(on_teacher, on_student, labels)
    distance = (student - teacher).abs().sum(1).mean()
    return F.cross_entropy(student, labels) + distance + (telling - classes) / 2
