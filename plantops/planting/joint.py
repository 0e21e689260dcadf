"""Joint training of a grown network: all of it learns from the teacher, as between two rounds and after the search."""

from __future__ import annotations

import copy

from torch import nn

from plantops.planting.candidate import Surroundings
from plantops.planting.keeping import Discarded, discard, is_worse
from plantops.train.loop import Trainer, load_tensors


def train_jointly(
    around: Surroundings, model: nn.Module, phase: str, round: int, epochs: int, lr: float, val_loss: float | None
) -> tuple[nn.Module, float, Discarded | None]:
    """A copy of ``model`` of which everything has trained for ``epochs``, and the seconds that took.

    Where its held-out loss is larger than before, ``model`` itself is given back, and what was discarded.

    ``phase``: "joint" after a round, "finetune" after the search; with ``round`` it names the order and augmentation.
    ``val_loss``: of ``model`` as it is; None: not finite.
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
    after = None if work.result["train_loss"] is None else work.result["val_loss"]
    if is_worse(val_loss, after):
        session.forget([name])
        return before, work.result["seconds"], discard(session, name, val_loss, after)
    load_tensors(model, work.tensors)
    return model, work.result["seconds"], None
