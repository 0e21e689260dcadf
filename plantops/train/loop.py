"""The training loop: whole epochs, each a function of the state before it, so training can stop after any of them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plantops.errors import ArgumentError
from plantops.nn import GroupSparsity
from plantops.ops._strided import has_narrow_steps
from plantops.train.adversarial import Adversarial
from plantops.train.batches import Batch, batch_sizes, epoch_batches, eval_batches
from plantops.train.data import ImageData
from plantops.train.fused import fused, is_fused
from plantops.train.logits import logits_of
from plantops.train.objectives import full_precision, make_objective, make_optimizer
from plantops.train.recipe import Recipe
from plantops.train.schedule import learning_rate
from plantops.train.teacher_logits import EVAL_BATCH, TeacherLogits

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Score:
    """Mean cross entropy (nats) and share of right answers (0 to 1) over a part."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class EpochResult:
    """One epoch: ``train_loss`` is the mean of the objective (and its regulariser) while the network changed, ``lr`` of
    the last step."""

    epoch: int
    epochs: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float

    @classmethod
    def of(cls, epoch: int, epochs: int, lr: float, train: Score, val: Score | None, seconds: float) -> EpochResult:
        """From the two scores; without a held-out part there is none."""
        loss, accuracy = (None, None) if val is None else (val.loss, val.accuracy)
        return cls(epoch, epochs, lr, train.loss, train.accuracy, loss, accuracy, seconds)


class Tally:
    """Sums on the device in float64 and in batch order: no waiting for the device, and the same bits every time.

    ``sums``: the tensors that change, always the same ones.
    """

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._right = torch.zeros((), dtype=torch.int64, device=device)
        self._count = 0

    def add(self, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
        """``loss_sum``: the sum over this batch's samples."""
        self._loss += loss_sum.double()
        self._right += (logits.argmax(1) == labels).sum()
        self._count += len(labels)

    @property
    def sums(self) -> list[Tensor]:
        return [self._loss, self._right]

    def clear(self) -> None:
        """Begin anew."""
        self._count = 0
        for total in self.sums:
            total.zero_()

    def score(self, count: int | None = None) -> Score:
        """``count``: of the samples, where steps are replayed and so not counted; default: as added."""
        count = max(1, self._count if count is None else count)
        return Score(self._loss.item() / count, self._right.item() / count)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast of ``Recipe.precision``; nothing for float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def evaluate(model: nn.Module, data: ImageData, *, precision: str = "float32", channels_last: bool = False) -> Score:
    """Cross entropy and accuracy of ``model`` on a part, in ``eval()`` and without a graph; the mode is put back.

    Raises:
        ValueError: a part without images.
    """
    if len(data) == 0:
        raise ArgumentError(f"data must hold at least one image to score, got {data!r}")
    was_training = model.training
    model.eval()
    tally = Tally(data.device)
    forward = fused(model, precision)
    with torch.no_grad(), autocast(precision, data.device):
        for batch in eval_batches(data, EVAL_BATCH, channels_last and not is_fused(forward)):
            logits = full_precision(logits_of(forward(batch.images)))
            tally.add(F.cross_entropy(logits, batch.labels, reduction="sum"), logits, batch.labels)
    model.train(was_training)
    return tally.score()


class Learner:
    """Parameters in training: objective, optimizer and loss scaling, whoever computes the logits.

    ``regularizer``: a term that is added to the objective; ``seed``: of what the objective draws.
    """

    def __init__(
        self, recipe: Recipe, parameters: list[nn.Parameter], regularizer: GroupSparsity | None = None, seed: int = 0
    ) -> None:
        self._device, self._precision, self._lr = parameters[0].device, recipe.precision, recipe.lr
        self._objective = make_objective(recipe, seed)
        self._regularizer = regularizer
        self._optimizer = make_optimizer(recipe, parameters)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=recipe.precision == "fp16")

    def step(
        self,
        forward: Callable[[], Tensor],
        labels: Tensor,
        teacher_logits: Tensor | None,
        lr: float,
        tally: Tally,
    ) -> None:
        """One optimizer step at learning rate ``lr`` on the logits that ``forward`` gives."""
        self.begin(lr)
        self.learn(forward, labels, teacher_logits, tally)
        self.update()

    def begin(self, lr: float | Tensor) -> None:
        """A step at learning rate ``lr`` begins: no gradient yet.

        A tensor (float32 on a GPU, float64 on a CPU) is read on its device, so captured steps follow its value.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if isinstance(self._objective, Adversarial):
            self._objective.pace(float(lr) / self._lr)
        self._optimizer.zero_grad(set_to_none=True)

    def learn(self, forward: Callable[[], Tensor], labels: Tensor, teacher_logits: Tensor | None, tally: Tally) -> None:
        """Add the gradient of the objective on the logits that ``forward`` gives."""
        with autocast(self._precision, self._device):
            logits = logits_of(forward())
        loss = self._objective(logits, labels, teacher_logits, self._scaler.scale)
        if self._regularizer is not None:
            loss = loss + self._regularizer.add_gradient(self._scaler.scale)
        tally.add(loss * len(labels), logits.detach(), labels)

    def update(self) -> None:
        """The optimizer's step on the gradients that are there."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Steps inside leave no trace but in the parameters: the optimizer's state is as before, where there was none
        it is there and zero (which is how SGD and AdamW begin)."""
        before = {
            parameter: {name: value.clone() for name, value in own.items() if isinstance(value, Tensor)}
            for parameter, own in self._optimizer.state.items()
        }
        try:
            yield
        finally:
            for parameter, own in self._optimizer.state.items():
                for name, value in own.items():
                    if isinstance(value, Tensor):
                        value.copy_(before[parameter][name] if parameter in before else torch.zeros_like(value))
            self.forget_gradients()

    def forget_gradients(self) -> None:
        """Give back the memory of the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Everything but the parameters that changes, loadable with ``weights_only=True``."""
        state = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        for group in state["optimizer"]["param_groups"]:
            group["lr"] = float(group["lr"])
        return {**state, "objective": self._objective.state()} if isinstance(self._objective, Adversarial) else state

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` was."""
        if isinstance(self._objective, Adversarial):
            self._objective.load(state["objective"])
        capturable = [group.get("capturable") for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(dict(state["optimizer"]))
        for group, own in zip(self._optimizer.param_groups, capturable, strict=True):
            if own is not None:  # of this device, whatever the state was saved on
                group["capturable"] = own
        self._scaler.load_state_dict(dict(state["scaler"]))


class Feed:
    """What every epoch of a training is made of: batches, the teacher's logits for them, the step's learning rate.

    Args:
        train: the part that trains.
        teacher: for objectives that need one.
        seed, keys: name this training's order and augmentation; an epoch adds its number.
        batch_done: told how many batches of the epoch are done, and of how many.

    Raises:
        ValueError: an objective that needs a teacher without one, or an empty part.
    """

    def __init__(
        self,
        train: ImageData,
        recipe: Recipe,
        teacher: TeacherLogits | None,
        *,
        seed: int,
        keys: tuple[int | str, ...],
        batch_done: Callable[[int, int], None] | None,
    ) -> None:
        if recipe.needs_teacher and teacher is None:
            raise ArgumentError(f"teacher must be given for objective {recipe.objective!r}, got None")
        if len(train) == 0:
            raise ArgumentError("train must hold at least one sample, got 0")
        self.device = train.device
        self.train, self.recipe = train, recipe
        self.teacher = teacher if recipe.needs_teacher else None
        self.seed, self.keys, self.batch_done = seed, keys, batch_done
        self.steps = len(batch_sizes(len(train), recipe.batch_size))

    def epoch(self, epoch: int) -> Iterator[tuple[Batch, Tensor | None, float]]:
        """(batch, teacher's logits or None, learning rate) of every step of epoch number ``epoch``, from 0."""
        rates = self.rates(epoch)
        for place, (batch, logits) in enumerate(self._batches(epoch)):
            yield batch, logits, rates[place]
            if self.batch_done is not None:
                self.batch_done(place + 1, self.steps)

    def rates(self, epoch: int) -> list[float]:
        """The learning rate of every step of epoch number ``epoch``."""
        recipe, first = self.recipe, epoch * self.steps
        total = recipe.epochs * self.steps
        return [learning_rate(recipe.schedule, recipe.lr, first + place, total) for place in range(self.steps)]

    def _batches(self, epoch: int) -> Iterator[tuple[Batch, Tensor | None]]:
        recipe = self.recipe
        how: dict[str, Any] = {
            "seed": self.seed,
            "keys": (*self.keys, epoch),
            "augment": recipe.augment,
            "channels_last": recipe.channels_last,
        }
        if self.teacher is not None:
            yield from self.teacher.batches(self.train, recipe.batch_size, **how)
            return
        for batch in epoch_batches(self.train, recipe.batch_size, **how):
            yield batch, None


class Trainer:
    """A network in training. All that changes is in ``tensors()``, ``state()`` and ``epoch``.

    Args:
        model: trained in place; what requires a gradient trains.
        train, val: on the model's device; without ``val`` (or with an empty one) epochs have no held-out score.
        teacher: for objectives that need one.
        seed, keys: name this training's order and augmentation; an epoch adds its number.
        names: the entries of ``model.state_dict()`` that change; default: all.
        batch_done: told how many batches of the epoch are done, and of how many.

    Raises:
        ValueError: an objective that needs a teacher without one, or a model in which nothing requires a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        train: ImageData,
        val: ImageData | None,
        recipe: Recipe,
        *,
        teacher: TeacherLogits | None = None,
        seed: int = 0,
        keys: tuple[int | str, ...] = (),
        names: list[str] | None = None,
        batch_done: Callable[[int, int], None] | None = None,
    ) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ArgumentError("model must have a parameter that requires a gradient, got none")
        self._forward = fused(model, recipe.precision)
        if is_fused(self._forward):
            recipe = dataclasses.replace(recipe, channels_last=False)  # what the kernels read fastest
        if has_narrow_steps(model):
            recipe = dataclasses.replace(recipe, channels_last=False)
            model.to(memory_format=torch.contiguous_format)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model, self.recipe, self.epoch = model, recipe, 0
        self._val = val if val is not None and len(val) else None
        self._names = names
        regularizer = None if recipe.regularizer is None else recipe.regularizer.of(model)
        self._learner = Learner(recipe, parameters, regularizer, seed)
        self._feed = Feed(train, recipe, teacher, seed=seed, keys=keys, batch_done=batch_done)

    @property
    def finished(self) -> bool:
        return self.epoch >= self.recipe.epochs

    def run_epoch(self) -> EpochResult:
        """Train one more epoch and score the held-out part."""
        began = time.perf_counter()
        self.model.train()
        tally = Tally(self._feed.device)
        lr = 0.0
        for batch, teacher_logits, lr in self._feed.epoch(self.epoch):
            self._learner.step(partial(self._forward, batch.images), batch.labels, teacher_logits, lr, tally)
        self.epoch += 1
        return EpochResult.of(
            self.epoch, self.recipe.epochs, lr, tally.score(), self.score_val(), time.perf_counter() - began
        )

    def score_val(self) -> Score | None:
        """The held-out score as it stands."""
        return None if self._val is None else self.score(self._val)

    def score(self, data: ImageData) -> Score:
        """The score on any part, computed as the training computes."""
        return evaluate(self.model, data, precision=self.recipe.precision, channels_last=self.recipe.channels_last)

    def tensors(self) -> dict[str, Tensor]:
        """The entries of the state_dict that change."""
        state = self.model.state_dict()
        return dict(state) if self._names is None else {name: state[name] for name in self._names}

    def state(self) -> dict[str, Any]:
        """Everything else that changes, loadable with ``weights_only=True``."""
        return self._learner.state()

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None, epoch: int) -> None:
        """Put back what ``tensors``, ``state`` and ``epoch`` were."""
        load_tensors(self.model, tensors)
        if state is not None:
            self._learner.load(state)
        self.epoch = epoch


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy entries of a state_dict into ``model``, keeping its devices and memory formats.

    Raises:
        ValueError: an entry that the model has not, or with another shape or dtype; names it.
    """
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name not in state or state[name].shape != tensor.shape:
                found = list(state[name].shape) if name in state else "no such entry"
                raise ArgumentError(f"{name} must have the shape {list(tensor.shape)} of what is loaded, got {found}")
            if state[name].dtype != tensor.dtype:
                raise ArgumentError(
                    f"{name} must have the dtype {tensor.dtype} of what is loaded, got {state[name].dtype}"
                )
            state[name].copy_(tensor)
