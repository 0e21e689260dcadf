"""Joint training of a grown network: all of it learns from the teacher, as between two rounds and after the search."""

from __future__ import annotations

import copy

from torch import nn

from plantops.planting.candidate import Surroundings
from plantops.train.loop import Trainer, load_tensors


def train_jointly(
    around: Surroundings, model: nn.Module, phase: str, round: int, epochs: int, lr: float
) -> tuple[nn.Module, float]:
    """A copy of ``model`` of which everything has trained for ``epochs``, and the seconds that took.

    A training that diverges is in the records, and the model is given back as it was.

    ``phase``: "joint" after a round, "finetune" after the search; with ``round`` it names the order and augmentation.
    """
    session, before = around.session, model
    name = f"{phase}-{round}" if round else phase
    model = copy.deepcopy(model).requires_grad_(True)
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

    work = session.fit(name, make_trainer, phase=phase, name=name, may_diverge=True)
    if work.result["train_loss"] is None:
        return before, work.result["seconds"]
    load_tensors(model, work.tensors)
    return model, work.result["seconds"]
