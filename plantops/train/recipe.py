"""How one network is trained: every choice that is not the network, the data or the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from plantops._arguments import check_choice, check_flag, check_minimum, check_range, check_rate, check_type
from plantops.nn import GroupSparsity
from plantops.ops.group_sparsity import GROUPS, PENALTIES
from plantops.train.batches import Augment
from plantops.train.schedule import SCHEDULES

OBJECTIVES = ("ce", "kl", "kd", "adversarial")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("float32", "bf16", "fp16")


@dataclass(frozen=True)
class Regularizer:
    """A group sparse term beside the objective: the arguments of ``plantops.nn.GroupSparsity``.

    Raises:
        ValueError: names the field, what was expected and what came.
    """

    penalty: str
    groups: str = "feature"
    strength: float = 1e-3
    mix: float = 0.5

    def __post_init__(self) -> None:
        check_choice("penalty", self.penalty, tuple(PENALTIES))
        check_choice("groups", self.groups, GROUPS)
        check_range("strength", self.strength, lambda value: value >= 0, "0 or more")
        check_range("mix", self.mix, lambda value: 0 <= value <= 1, "from 0 to 1")

    def of(self, model: nn.Module) -> GroupSparsity:
        """The term over the convolutions of ``model``. Raises ValueError where it has none."""
        return GroupSparsity(model, self.penalty, self.groups, self.strength, self.mix)


@dataclass(frozen=True)
class Recipe:
    """One training.

    Attributes:
        epochs: passes over the training part.
        objective: ``ce`` cross entropy with the labels, ``kl`` KL(teacher || student) without labels,
            ``kd`` ``alpha T^2 KL + (1 - alpha) CE``, ``adversarial`` against a discriminator of logits (labels and
            teacher, see ``plantops.nn.adversarial_student_loss``).
        lr, optimizer, momentum, weight_decay, schedule: ``sgd`` is with Nesterov momentum (none where momentum is 0);
            ``adamw`` ignores momentum. The schedule runs over the optimizer steps of the whole training.
        batch_size: samples per optimizer step; the last batch of an epoch may be smaller, and a rest of one sample
            joins the batch before it.
        temperature: T of ``kl`` and ``kd``.
        alpha: weight of the teacher in ``kd``.
        label_smoothing: of ``ce`` and ``kd``.
        discriminator_lr: learning rate of the discriminator of ``adversarial``; it follows the schedule.
        regularizer: added to the objective; None: nothing.
        augment: random crop and flip.
        precision: ``float32``, or autocast to ``bf16`` or (on CUDA, with loss scaling) ``fp16``.
        channels_last: memory format of images and convolution weights; on a CPU a network with a strided 1x1
            convolution of fewer than 16 channels keeps the plain one, since torch can crash on it otherwise.

    Raises:
        ValueError: names the field, what was expected and what came.
    """

    epochs: int = 10
    objective: str = "ce"
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    batch_size: int = 128
    temperature: float = 1.0
    alpha: float = 0.9
    label_smoothing: float = 0.0
    discriminator_lr: float = 1e-3
    regularizer: Regularizer | None = None
    augment: Augment = field(default_factory=Augment)
    precision: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_minimum("epochs", self.epochs, 1)
        check_minimum("batch_size", self.batch_size, 1)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_rate("lr", self.lr)
        check_range("momentum", self.momentum, lambda value: 0 <= value < 1, "from 0 to below 1")
        check_range("weight_decay", self.weight_decay, lambda value: value >= 0, "0 or more")
        check_rate("discriminator_lr", self.discriminator_lr)
        check_range("temperature", self.temperature, lambda value: value > 0, "above 0")
        check_range("alpha", self.alpha, lambda value: 0 <= value <= 1, "from 0 to 1")
        check_range("label_smoothing", self.label_smoothing, lambda value: 0 <= value < 1, "from 0 to below 1")
        check_flag("channels_last", self.channels_last)
        if self.regularizer is not None:
            check_type("regularizer", self.regularizer, Regularizer)
        check_type("augment", self.augment, Augment)

    @property
    def needs_teacher(self) -> bool:
        return self.objective != "ce"
