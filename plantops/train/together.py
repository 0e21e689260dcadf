"""Networks that are trained in one pass: what a session needs of their trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from plantops.train.files import RunError
from plantops.train.loop import EpochResult, Trainer


@dataclass(frozen=True)
class Part:
    """One of the networks that are trained together: its key in the run, its name and what else its records say."""

    key: str
    name: str
    labels: Mapping[str, Any]


class Together(Protocol):
    """``Trainer`` for several networks: one result, and one set of tensors, for each."""

    @property
    def epoch(self) -> int: ...

    @property
    def finished(self) -> bool: ...

    def run_epoch(self) -> Sequence[EpochResult]: ...

    def tensors(self) -> Sequence[Mapping[str, Tensor]]: ...

    def state(self) -> Mapping[str, Any]: ...

    def load(self, tensors: Sequence[Mapping[str, Tensor]], state: Mapping[str, Any], epoch: int) -> None: ...

    def close(self) -> None: ...


class Alone:
    """A ``Trainer`` as the only one of several.

    ``indispensable``: its name, where nothing else can take its place: it must not diverge. Another one that diverges
    ends there, with the loss that it has.
    """

    def __init__(self, trainer: Trainer, indispensable: str | None = None) -> None:
        self._trainer, self._name, self._diverged = trainer, indispensable, False

    @property
    def epoch(self) -> int:
        return self._trainer.epoch

    @property
    def finished(self) -> bool:
        return self._diverged or self._trainer.finished

    def run_epoch(self) -> list[EpochResult]:
        """Raises RunError where the training loss is not finite and should be."""
        epoch = self._trainer.run_epoch()
        self._diverged = not math.isfinite(epoch.train_loss)
        if self._name is not None and self._diverged:
            raise RunError(
                f"{self._name}: the training diverged, its loss in epoch {epoch.epoch} of {epoch.epochs} is "
                f"{epoch.train_loss} at learning rate {epoch.lr:.3g}. Begin a run with a lower one."
            )
        return [epoch]

    def tensors(self) -> list[Mapping[str, Tensor]]:
        return [self._trainer.tensors()]

    def state(self) -> Mapping[str, Any]:
        return self._trainer.state()

    def load(self, tensors: Sequence[Mapping[str, Tensor]], state: Mapping[str, Any], epoch: int) -> None:
        self._trainer.load(tensors[0], state, epoch)

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True)
class Share:
    """Networks that one worker trains together; ``owner``: which of a session's workers."""

    owner: int
    parts: Sequence[Part]
    make_trainer: Callable[[], Together]
