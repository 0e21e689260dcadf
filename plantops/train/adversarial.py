"""Adversarial distillation as an objective: a discriminator that trains in turn with the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plantops.nn import LogitDiscriminator, adversarial_student_loss, discriminator_loss
from plantops.train.seeds import generator

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4


class _Player(NamedTuple):
    """The discriminator and what trains it."""

    network: LogitDiscriminator
    optimizer: torch.optim.SGD
    generator: torch.Generator

    def load(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(dict(state["discriminator"]))
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.generator.set_state(state["generator"].cpu())


class Adversarial:
    """An ``Objective`` with a discriminator of its own; every batch one step of it, then the student's gradient.

    The discriminator is made at the first batch, for as many classes as the logits have. It trains by SGD with momentum
    0.9 and weight decay 1e-4; its learning rate falls and rises with the student's. Its weights, its momentum and the
    generator of its dropout are in ``state()``.

    Args:
        lr: its learning rate where the student's is at its largest.
        seed: of its initial weights and dropout.
    """

    def __init__(self, lr: float, seed: int) -> None:
        self._lr, self._seed, self._share = lr, seed, 1.0
        self._player: _Player | None = None
        self._loaded: Mapping[str, Any] = {}

    def pace(self, share: float) -> None:
        """The student's learning rate over its largest, from now on."""
        self._share = share

    def __call__(
        self, logits: Tensor, labels: Tensor, teacher: Tensor | None, scale: Callable[[Tensor], Tensor]
    ) -> Tensor:
        assert teacher is not None
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        student, teacher = logits.detach(), teacher.to(logits.dtype)
        discriminator, optimizer, _ = self._playing(student)
        optimizer.param_groups[0]["lr"] = self._lr * self._share
        optimizer.zero_grad(set_to_none=True)
        discriminator_loss(discriminator(teacher), discriminator(student), labels).backward()
        optimizer.step()
        student.requires_grad_()
        loss = adversarial_student_loss(student, teacher, labels, discriminator(teacher), discriminator(student))
        (gradient,) = torch.autograd.grad(loss, student)
        logits.backward(scale(gradient))
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Everything that changes, loadable with ``weights_only=True``; empty before the first batch."""
        if self._player is None:
            return {}
        network, optimizer, own = self._player
        return {
            "discriminator": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": own.get_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` was; the discriminator is made at the next batch."""
        self._player, self._loaded = None, state

    def _playing(self, like: Tensor) -> _Player:
        if self._player is None:
            own = generator(self._seed, "discriminator", device=like.device)
            network = LogitDiscriminator(like.shape[1], generator=own).to(like.dtype)
            optimizer = torch.optim.SGD(network.parameters(), lr=self._lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
            self._player = _Player(network, optimizer, own)
            if self._loaded:
                self._player.load(self._loaded)
        return self._player
