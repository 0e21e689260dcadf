"""Training of a whole network under the teacher: a grown one, between rounds and after the search, or a new one."""

from __future__ import annotations

import copy

from torch import nn

from plantops.models import initialise
from plantops.planting.candidate import Surroundings
from plantops.planting.keeping import Discarded, discard, is_worse
from plantops.train.loop import Trainer, load_tensors
from plantops.train.seeds import generator
from plantops.train.session import Finished


def train_jointly(
    around: Surroundings, model: nn.Module, phase: str, round: int, epochs: int, lr: float, val_loss: float | None
) -> tuple[nn.Module, float, Discarded | None]:
    """A copy of ``model`` of which everything has trained for ``epochs``, and the seconds that took.

    Where its held-out loss is larger than before, ``model`` itself is given back, and what was discarded.

    ``phase``: "joint" after a round, "finetune" after the search; with ``round`` it names the order and augmentation.
    ``val_loss``: of ``model`` as it is; None: not finite.
    """
    name = f"{phase}-{round}" if round else phase
    trained, work = _train(around, copy.deepcopy(model).requires_grad_(True), name, phase, round, epochs, lr)
    after = _val_loss(work)
    if is_worse(val_loss, after):
        around.session.forget([name])
        return model, work.result["seconds"], discard(around.session, name, val_loss, after)
    load_tensors(trained, work.tensors)
    return trained, work.result["seconds"], None


def train_anew(around: Surroundings, model: nn.Module, epochs: int, lr: float) -> tuple[nn.Module, float, float | None]:
    """A network with the layers of ``model`` and new weights, trained for ``epochs``; the seconds that took; and its
    held-out loss (None: not finite).

    The weights are a function of the seed alone, see ``plantops.models.initialise``.

    Raises:
        ArgumentError: a layer of ``model`` that has no initialisation of its own.
    """
    fresh = initialise(copy.deepcopy(model).requires_grad_(True), generator(around.config.seed, "init", "retrain"))
    trained, work = _train(around, fresh, "retrain", "retrain", 0, epochs, lr)
    load_tensors(trained, work.tensors)
    return trained, work.result["seconds"], _val_loss(work)


def _train(
    around: Surroundings, model: nn.Module, name: str, phase: str, round: int, epochs: int, lr: float
) -> tuple[nn.Module, Finished]:
    session = around.session
    session.progress.stage(name, epochs)

    def make_trainer() -> Trainer:
        return Trainer(
            model,
            around.train,
            around.val,
            around.config.recipe(epochs=epochs, lr=lr),
            teacher=around.teacher,
            seed=around.config.seed,
            keys=(phase, round),
            batch_done=session.progress.batch,
        )

    return model, session.fit(name, make_trainer, phase=phase, name=name, may_diverge=True)


def _val_loss(work: Finished) -> float | None:
    """Of the trained network; None: not finite, on the training part or the held-out one."""
    return None if work.result["train_loss"] is None else work.result["val_loss"]
