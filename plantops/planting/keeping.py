"""Nothing is worse for having trained: of the network before a training and the one after it the better is kept.

And a teacher is worth learning from only where it knows more than the network that it teaches.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plantops.errors import ArgumentError
from plantops.train.batches import eval_batches
from plantops.train.data import ImageData
from plantops.train.logits import check_finite, logits_of
from plantops.train.loop import autocast
from plantops.train.objectives import full_precision
from plantops.train.session import Session
from plantops.train.teacher_logits import EVAL_BATCH, TeacherLogits

CLEARLY = 2.0
"""Standard errors of the mean difference of two losses, over the same images, that make a difference clear."""


@dataclass(frozen=True)
class Discarded:
    """A training whose network was not kept: its held-out loss (nats; None: not finite) was larger than before it.

    Attributes:
        name: of the training: ``joint-2`` after round 2, ``finetune``, or the network's.
        val_loss: before and after it.
    """

    name: str
    val_loss: tuple[float | None, float | None]


def is_worse(before: float | None, after: float | None) -> bool:
    """Is the loss ``after`` larger than the one ``before``? None: not finite."""
    return after is None or (before is not None and after > before)


def discard(session: Session, name: str, before: float | None, after: float | None) -> Discarded:
    """Write down, and say, that the network before the training ``name`` is kept."""
    discarded = Discarded(name, (before, after))
    session.record("discarded", **asdict(discarded))
    became = "did not stay finite" if after is None else f"became {after:.4f}"
    was = "was not finite" if before is None else f"was {before:.4f}"
    warnings.warn(
        f"{name}: the held-out loss {was} and {became}, so the network from before this training is kept. "
        "Try a lower learning rate.",
        stacklevel=2,
    )
    return discarded


def judge_teacher(
    session: Session, teacher: TeacherLogits, student: nn.Module, val: ImageData, precision: str
) -> dict[str, Any]:
    """What teacher and student are worth on the held-out part, image by image, and a warning where the teacher is not
    clearly better: the record ``teacher``.

    Returns:
        ``val_loss``, ``val_accuracy`` of the teacher; ``gain``, by how much its loss is below the student's (mean over
        the images), ``gain_error``, the standard error of that mean, and ``clear``: gain > 2 gain_error.

    Raises:
        ArgumentError: the teacher's logits for a held-out image, or the student's, are not finite.
    """

    def judge() -> dict[str, Any]:
        was_training = student.training
        student.eval()
        taught, own, right = [], [], 0
        for batch in eval_batches(val, EVAL_BATCH):
            logits = teacher.logits(batch.images)
            right += int((logits.argmax(1) == batch.labels).sum())
            taught.append(_losses(logits, batch.labels, "teacher"))
            with torch.no_grad(), autocast(precision, batch.images.device):
                logits = logits_of(student(batch.images))
            own.append(_losses(logits, batch.labels, "model"))
        student.train(was_training)
        gains = torch.cat(own) - torch.cat(taught)
        error = gains.std().item() / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
        gain = gains.mean().item()
        return {
            "val_loss": torch.cat(taught).mean().item(),
            "val_accuracy": right / len(val),
            "gain": gain,
            "gain_error": error if math.isfinite(error) else None,
            "clear": gain > CLEARLY * error,
        }

    verdict = session.once("teacher-score", judge)
    session.record("teacher", **verdict)
    if not verdict["clear"]:
        loss, gain, error = verdict["val_loss"], verdict["gain"], verdict["gain_error"]
        spread = "" if error is None else f" (standard error {error:.4f})"
        warnings.warn(
            f"teacher: its held-out loss {loss:.4f} is not clearly below the initial network's {loss + gain:.4f}: the "
            f"difference is {gain:.4f}{spread}. It has little to teach; train it longer, or take a larger one.",
            stacklevel=2,
        )
    return verdict


def _losses(logits: Tensor, labels: Tensor, name: str) -> Tensor:
    """Float64 cross entropy of every image."""
    check_finite(logits, name, "its logits")
    return F.cross_entropy(full_precision(logits).double(), labels, reduction="none")


def why_all_diverged(teacher: TeacherLogits, needs_teacher: bool, train: ImageData, lr: float) -> str:
    """What is to be said where no candidate's training stayed finite.

    Raises:
        ArgumentError: it is the teacher, whose logits for a training image are not finite.
    """
    if needs_teacher:
        rows = torch.cat([teacher.logits(batch.images) for batch in eval_batches(train, EVAL_BATCH)])
        check_finite(rows, "teacher", "its logits")
    return f"the training of every candidate diverged at lr={lr:g}: begin with a lower one"


def check_parts(**parts: ImageData | None) -> None:
    """Raises ArgumentError where a part is empty, or of another shape or another number of classes than the first."""
    first_name, first = next(iter(parts.items()))
    assert first is not None
    for name, part in parts.items():
        if part is None:
            continue
        if len(part) == 0:
            raise ArgumentError(f"{name} must hold at least one image, got 0")
        for what, expected, got in (
            ("images", first.shape, part.shape), ("num_classes", first.num_classes, part.num_classes)
        ):  # fmt: skip
            if expected != got:
                raise ArgumentError(f"{name} must have {first_name}'s {what} {expected}, got {got}")
