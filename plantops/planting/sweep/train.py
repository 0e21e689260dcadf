"""Candidates in training together: one pass of the trunk and of the teacher for each batch, whoever takes part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plantops.planting.sweep.features import Features
from plantops.planting.sweep.graphs import Branches
from plantops.planting.sweep.program import Program
from plantops.planting.trunk import planted_parameters, trunk_state
from plantops.train.batches import Batch, eval_batches
from plantops.train.data import ImageData
from plantops.train.logits import logits_of
from plantops.train.loop import EVAL_BATCH, EpochResult, Feed, Learner, Score, Tally, autocast, load_tensors
from plantops.train.objectives import full_precision
from plantops.train.recipe import Recipe


@dataclass
class Member:
    """One candidate: the planted network (of which only the planted layers are used), and what it computes."""

    planted: nn.Module
    program: Program
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        frozen = trunk_state(self.planted)
        self.names = [name for name in self.planted.state_dict() if name not in frozen]

    def tensors(self) -> dict[str, Tensor]:
        """The entries of the planted network's state_dict that change."""
        state = self.planted.state_dict()
        return {name: state[name] for name in self.names}


class SweepTrainer:
    """``Trainer`` for several candidates at once; each trains as it would alone.

    Args:
        members: the candidates.
        feed: batches, the teacher's logits and learning rates.
        features: the trunk's values for a training batch; ``val_features``: for a held-out batch.
        val: the held-out part, or None.
        close: gives back what ``features`` holds.
        seed: of what the objective draws.
    """

    def __init__(
        self,
        members: list[Member],
        feed: Feed,
        recipe: Recipe,
        features: Features,
        val: ImageData | None,
        val_features: Features,
        close: Callable[[], None],
        seed: int = 0,
    ) -> None:
        self.members, self.recipe, self.epoch = members, recipe, 0
        self._feed, self._features, self._close = feed, features, close
        # One optimizer steps for all. With loss scaling one network's overflow must not stop the others, and each has a
        # discriminator of its own.
        alone = recipe.precision == "fp16" or recipe.objective == "adversarial"
        groups = [[member] for member in members] if alone else [members]
        self._learners = [
            Learner(recipe, [p for m in group for p in planted_parameters(m.planted)], seed=seed) for group in groups
        ]
        self._val, self._val_features = val if val is not None and len(val) else None, val_features
        self._tallies = [Tally(feed.device) for _ in members]
        self._branches: Callable[[int], contextlib.AbstractContextManager[Branches]] = in_turn

    @property
    def finished(self) -> bool:
        return self.epoch >= self.recipe.epochs

    def run_epoch(self) -> list[EpochResult]:
        """Train one more epoch and score the held-out part; the time is shared out evenly."""
        began = time.perf_counter()
        for member in self.members:
            member.planted.train()
        self._clear()
        for _ in self.steps(self.epoch):
            pass
        train = [tally.score(len(self._feed.train)) for tally in self._tallies]
        lr = self._feed.rates(self.epoch)[-1]
        self.epoch += 1
        val = self._score_val()
        seconds = (time.perf_counter() - began) / len(self.members)
        return [
            EpochResult.of(self.epoch, self.recipe.epochs, lr, *scores, seconds)
            for scores in zip(train, val, strict=True)
        ]

    def steps(self, epoch: int) -> Iterator[None]:
        """The steps of epoch number ``epoch``, from 0, one each time."""
        for batch, teacher_logits, lr in self._feed.epoch(epoch):
            self.step(batch, teacher_logits, lr)
            yield

    def step(self, batch: Batch, teacher_logits: Tensor | None, lr: float | Tensor) -> None:
        """One optimizer step of every candidate."""
        values = self._features(batch)
        for learner in self._learners:
            learner.begin(lr)
        with self._branches(len(self.members)) as branches:
            for place, (member, tally, branch) in enumerate(zip(self.members, self._tallies, branches, strict=True)):
                learner = self._learners[place % len(self._learners)]
                with branch:
                    learner.learn(partial(member.program, values), batch.labels, teacher_logits, tally)
        for learner in self._learners:
            learner.update()

    def tensors(self) -> list[dict[str, Tensor]]:
        return [member.tensors() for member in self.members]

    def state(self) -> dict[str, Any]:
        """Everything else that changes, loadable with ``weights_only=True``."""
        return {"learners": [learner.state() for learner in self._learners]}

    def load(self, tensors: Sequence[Mapping[str, Tensor]], state: Mapping[str, Any], epoch: int) -> None:
        """Put back what ``tensors``, ``state`` and ``epoch`` were."""
        for member, own in zip(self.members, tensors, strict=True):
            load_tensors(member.planted, own)
        for learner, learned in zip(self._learners, state["learners"], strict=True):
            learner.load(learned)
        self.epoch = epoch

    def close(self) -> None:
        """Give back memory and disk."""
        self._close()

    def _score_val(self) -> list[Score | None]:
        if self._val is None:
            return [None] * len(self.members)
        for member in self.members:
            member.planted.eval()
        self._clear()
        self._score_steps(self._val)
        return [tally.score(len(self._val)) for tally in self._tallies]

    def _score_steps(self, val: ImageData) -> None:
        for batch in eval_batches(val, EVAL_BATCH, self.recipe.channels_last):
            self._score_step(batch)

    def _clear(self) -> None:
        for tally in self._tallies:
            tally.clear()

    def _score_step(self, batch: Batch) -> None:
        """Add what every candidate makes of a held-out batch."""
        with torch.no_grad(), autocast(self.recipe.precision, batch.images.device):
            values = self._val_features(batch)
            with self._branches(len(self.members)) as branches:
                for member, tally, branch in zip(self.members, self._tallies, branches, strict=True):
                    with branch:
                        logits = full_precision(logits_of(member.program(values)))
                        loss = nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
                        tally.add(loss, logits, batch.labels)


@contextlib.contextmanager
def in_turn(count: int) -> Iterator[Branches]:
    """Branches that follow each other."""
    yield [contextlib.nullcontext()] * count
