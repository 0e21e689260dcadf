"""A stored network pruned in a run of its own: scores, removal, fine-tuning with a teacher, what it is worth."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from plantops.errors import ArgumentError
from plantops.graph import Plan, trace
from plantops.planting.experiment import Entry, ExperimentResult, Stage
from plantops.pruning.latency import latency_table
from plantops.pruning.prune import PruneStep, prune
from plantops.pruning.samples import draw_samples
from plantops.train.data import DataParts
from plantops.train.recipe import Recipe
from plantops.train.session import Session
from plantops.train.teacher_logits import TeacherCache


@dataclass(frozen=True)
class Pruning:
    """What ``prune_network`` does; budgets, ``criterion``, ``share`` and ``multiple_of`` as in ``plantops.prune``.

    Attributes:
        samples: training images that filters are scored on, drawn by the seed.
        finetune: training of the pruned network; None: none.
    """

    max_parameters: int | None = None
    max_macs: int | None = None
    max_loss_increase: float | None = None
    criterion: str = "loss"
    share: float = 0.1
    multiple_of: int = 1
    samples: int = 1024
    finetune: Recipe | None = None
    seed: int = 0


def prune_network(
    model: nn.Module, pruning: Pruning, parts: DataParts, session: Session, teacher: nn.Module | None = None
) -> tuple[ExperimentResult, list[dict[str, Any]]]:
    """Prune ``model`` and fine-tune what is left; continues where the session stopped.

    Args:
        teacher: of the fine-tuning; without one the network as it was before teaches.

    Returns:
        the networks ``initial``, ``pruned`` (and ``finetuned``) with their records, and the latency table of the first
        and the last (nothing where they are not on a CPU).

    Raises:
        ValueError: as ``plantops.prune``; a network without a site to prune.
    """
    finetune, device = pruning.finetune, parts.train.device
    session.progress.start(0 if finetune is None else finetune.epochs, session.epochs_done)
    stage = Stage(session, parts, pruning.seed)
    model = model.to(device).requires_grad_()
    batches = draw_samples(parts.train, pruning.samples, pruning.seed)
    plan = trace(model, batches[0][0][:2], grow_linear=True)
    if not plan:
        raise ArgumentError(f"model has no site that can be pruned:\n{plan}")
    pruned = _pruned(model, plan, batches, pruning, session)
    stage.entries.append(Entry("initial", "initial", model, None, None, 0.0))
    stage.entries.append(Entry("pruned", "pruned", pruned, None, 0, 0.0))
    if finetune is not None:
        run = None if session.run is None else session.run.path
        logits = TeacherCache().logits(model if teacher is None else teacher, finetune.channels_last, run)
        stage.train(copy.deepcopy(pruned), finetune, phase="finetuned", name="finetuned", teacher=logits, trained=True)
    precision, channels_last = (finetune.precision, finetune.channels_last) if finetune else ("float32", False)
    records = stage.finish(precision, channels_last)
    session.finish()
    rows = []
    if device.type == "cpu":
        rows = latency_table({"initial": model, stage.entries[-1].name: stage.entries[-1].model}, batches[0][0][:64])
    return ExperimentResult({entry.name: entry.model for entry in stage.entries}, records, None), rows


def _pruned(
    model: nn.Module, plan: Plan, batches: Sequence[tuple[Tensor, Tensor]], pruning: Pruning, session: Session
) -> nn.Module:
    """The pruned network, with a line and a record for every step."""
    numbers = itertools.count(1)

    def step_done(step: PruneStep) -> None:
        number, removed = next(numbers), {name: len(channels) for name, channels in step.removed.items()}
        fields = {"parameters": step.parameters, "macs": step.macs, "sample_loss": step.loss}
        session.record("prune", step=number, removed=removed, **fields)
        taken = ", ".join(f"{count} of {name}" for name, count in removed.items())
        session.progress.note(
            f"step {number}  {step.parameters:,} parameters  {step.macs:,} MACs  loss {step.loss:.4f}  without {taken}"
        )

    result = prune(
        model,
        plan,
        batches,
        max_parameters=pruning.max_parameters,
        max_macs=pruning.max_macs,
        max_loss_increase=pruning.max_loss_increase,
        criterion=pruning.criterion,
        share=pruning.share,
        multiple_of=pruning.multiple_of,
        step_done=step_done,
    )
    return copy.deepcopy(model) if result.model is model else result.model
