"""``SweepTrainer`` with steps that are captured once and replayed: one launch for a step of all candidates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from plantops.planting.sweep.graphs import Captured, Graphs
from plantops.planting.sweep.train import Features, Member, SweepTrainer, in_turn
from plantops.train.data import ImageData
from plantops.train.loop import EVAL_BATCH, Feed
from plantops.train.recipe import Recipe
from plantops.train.static_feed import StaticFeed, StaticPart


def run_reason(recipe: Recipe) -> str | None:
    """Why steps of ``recipe`` are run and not captured; None where they can be captured."""
    if recipe.precision == "fp16":
        return "loss scaling looks at each step's gradients before it decides"
    if recipe.objective == "adversarial":
        return "a discriminator is trained between the steps"
    return None


class ReplayedTrainer(SweepTrainer):
    """A step of all candidates is one graph, captured when a batch of its size first comes: data, augmentation, trunk
    (or its kept values), every candidate's forward and backward on a branch of its own, the optimizer. The teacher is
    asked before an epoch begins, for what is not kept.

    The numbers are those of ``SweepTrainer``, whose step it is. Sums of losses and right answers stay on the device
    until an epoch ends.

    Args:
        graphs: what captures.
        refused: told why, when a step cannot be captured; steps are then run, and candidates in turn.
        members, feed, recipe, features, val, val_features, close: as for ``SweepTrainer``.
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
        *,
        graphs: Graphs,
        refused: Callable[[str], None],
    ) -> None:
        super().__init__(members, feed, recipe, features, val, val_features, close)
        self._branches = graphs.branches
        self._captured = Captured(graphs, self._rehearsal, self._run_in_turn)
        self._refused = refused
        self._static = StaticFeed(feed)
        self._part = None if self._val is None else StaticPart(self._val, EVAL_BATCH, recipe.channels_last)

    def load(self, tensors: Sequence[Mapping[str, Tensor]], state: Mapping[str, Any], epoch: int) -> None:
        super().load(tensors, state, epoch)
        self._captured.forget()
        self._refused = _said_already  # by the process that began

    def close(self) -> None:
        for learner in self._learners:
            learner.forget_gradients()
        self._captured.forget()
        super().close()

    def steps(self, epoch: int) -> Iterator[None]:
        static, feed = self._static, self._feed
        static.begin(epoch)
        for place, size in enumerate(static.sizes):
            self._captured.run(("train", size), partial(self._static_step, size))
            if feed.batch_done is not None:
                feed.batch_done(place + 1, feed.steps)
            yield

    def _run_in_turn(self, reason: str) -> None:
        self._branches = in_turn
        self._refused(reason)

    def _static_step(self, size: int) -> None:
        self.step(*self._static.step(size))

    def _score_steps(self, val: ImageData) -> None:
        assert self._part is not None
        self._part.begin()
        for size in self._part.sizes:
            self._captured.run(("val", size), partial(self._static_score, self._part, size))

    def _static_score(self, part: StaticPart, size: int) -> None:
        self._score_step(part.step(size))

    @contextlib.contextmanager
    def _rehearsal(self) -> Iterator[None]:
        """What steps do inside is undone."""
        changing = [tensor for member in self.members for tensor in member.tensors().values()]
        changing += [total for tally in self._tallies for total in tally.sums]
        changing += self._static.counters + ([] if self._part is None else self._part.counters)
        before = [tensor.clone() for tensor in changing]
        with contextlib.ExitStack() as undone:
            for learner in self._learners:
                undone.enter_context(learner.rehearsal())
            try:
                yield
            finally:
                for tensor, kept in zip(changing, before, strict=True):
                    tensor.copy_(kept)


def _said_already(reason: str) -> None:
    """What is refused again after a resume is in the records."""
