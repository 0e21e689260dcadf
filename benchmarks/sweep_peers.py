"""What the one-pass sweep is measured against: loops over candidates as people write them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plantops.planting.candidate import Growth, Proposal, Student, Surroundings, plant_proposal
from plantops.planting.sweep.graphs import Captured, Graphs
from plantops.train.batches import Batch, epoch_batches
from plantops.train.data import ImageData
from plantops.train.loop import Feed, Learner, Tally, Trainer
from plantops.train.static_feed import StaticFeed
from plantops.train.teacher_logits import TeacherLogits

Step = Callable[[], Any]


class SplitCatConv(nn.Module):
    """A grown convolution in plain torch: one convolution for each block, parts of the input, and a concatenation."""

    def __init__(self, conv: nn.Conv2d, new_out: int, new_in: int) -> None:
        super().__init__()
        self.old = copy.deepcopy(conv).requires_grad_(False)
        self.split = (conv.in_channels, new_in)
        make = partial(nn.Conv2d, kernel_size=conv.kernel_size, padding=conv.padding)
        self.planted_in = make(new_in, conv.out_channels, bias=False) if new_in else None
        self.planted_out = make(conv.in_channels + new_in, new_out) if new_out else None

    def forward(self, input: Tensor) -> Tensor:
        trunk, new = input.split(self.split, 1) if self.planted_in is not None else (input, None)
        old = self.old(trunk)
        if self.planted_in is not None:
            old = old + self.planted_in(new)
        return old if self.planted_out is None else torch.cat([old, self.planted_out(input)], 1)


class SplitCatLinear(nn.Module):
    """The same for a linear layer that reads flattened channels."""

    def __init__(self, linear: nn.Linear, new_in: int) -> None:
        super().__init__()
        self.old = copy.deepcopy(linear).requires_grad_(False)
        self.planted_in = nn.Linear(new_in, linear.out_features, bias=False)
        self.split = (linear.in_features, new_in)

    def forward(self, input: Tensor) -> Tensor:
        trunk, new = input.split(self.split, 1)
        return self.old(trunk) + self.planted_in(new)


def split_cat(student: Student, growth: Growth) -> nn.Module:
    """The candidate of ``growth`` in plain torch layers."""
    model = copy.deepcopy(student.model).requires_grad_(False)
    site = student.plan[growth.site]
    (reader,) = site.consumers
    model.set_submodule(site.name, SplitCatConv(model.get_submodule(site.name), growth.channels, 0))
    layer, new_in = model.get_submodule(reader.name), growth.channels * reader.per_channel
    split = SplitCatLinear(layer, new_in) if isinstance(layer, nn.Linear) else SplitCatConv(layer, 0, new_in)
    model.set_submodule(reader.name, split)
    return model


def endless(steps_of: Callable[[int], Iterator[None]], epochs: int) -> Step:
    """One step a call, epoch after epoch, from the first again behind the last."""
    steps = itertools.chain.from_iterable(steps_of(epoch % epochs) for epoch in itertools.count())
    return lambda: next(steps)


@dataclass(frozen=True)
class Loop:
    """Candidates one after the other, each with its own pass over the data.

    ``teacher``: asked for every batch of every candidate; None: its logits are looked up.
    """

    around: Surroundings
    models: list[nn.Module]
    teacher: nn.Module | None = None
    compiled: bool = False

    def step(self) -> Step:
        """A step of every candidate."""
        learners, runs, tally = self._learners(), self._runs(), Tally(self.around.train.device)
        feeds = [self._feed() for _ in runs]

        def steps(epoch: int) -> Iterator[None]:
            for batches in zip(*(feed.epoch(epoch) for feed in feeds), strict=True):
                for run, learner, (batch, logits, lr) in zip(runs, learners, batches, strict=True):
                    logits = self._logits(batch.images, logits)
                    learner.step(partial(run, batch.images), batch.labels, logits, lr, tally)
                yield

        return endless(steps, self.around.config.epochs)

    def captured_step(self, graphs: Graphs) -> Step:
        """The same as one graph that is replayed."""
        learners, runs, tally = self._learners(), self._runs(), Tally(self.around.train.device)
        feeds = [StaticFeed(self._feed()) for _ in runs]
        captured = Captured(graphs, partial(_put_back, [counter for feed in feeds for counter in feed.counters]), _fail)

        def step(size: int) -> None:
            for run, learner, feed in zip(runs, learners, feeds, strict=True):
                batch, logits, lr = feed.step(size)
                logits = self._logits(batch.images, logits)
                learner.step(partial(run, batch.images), batch.labels, logits, lr, tally)

        def steps(epoch: int) -> Iterator[None]:
            for feed in feeds:
                feed.begin(epoch)
            for size in feeds[0].sizes:
                captured.run(size, partial(step, size))
                yield

        return endless(steps, self.around.config.epochs)

    def train(self) -> None:
        """The whole training of every candidate, held-out scores included."""
        recipe = self.around.config.recipe()
        teacher = self.around.teacher if self.teacher is None else Asked(self.teacher)
        for model in self._runs():
            trainer = Trainer(model, self.around.train, self.around.val, recipe, teacher=teacher, keys=("bench",))
            while not trainer.finished:
                trainer.run_epoch()

    def _learners(self) -> list[Learner]:
        recipe = self.around.config.recipe()
        return [Learner(recipe, [p for p in model.parameters() if p.requires_grad]) for model in self.models]

    def _runs(self) -> list[nn.Module]:
        if self.around.config.channels_last:
            for model in self.models:
                model.to(memory_format=torch.channels_last)
        return [torch.compile(model) if self.compiled else model for model in self.models]

    def _feed(self) -> Feed:
        recipe = self.around.config.recipe()
        source = dataclasses.replace(recipe, objective="ce") if self.teacher is not None else recipe
        return Feed(self.around.train, source, self.around.teacher, seed=0, keys=("bench",), batch_done=None)

    def _logits(self, images: Tensor, known: Tensor | None) -> Tensor | None:
        if self.teacher is None:
            return known
        with torch.no_grad():
            return self.teacher(images)


class Asked(TeacherLogits):
    """A teacher of which nothing is kept, by its own modules."""

    def batches(self, data: ImageData, batch_size: int, **how: Any) -> Iterator[tuple[Batch, Tensor]]:
        for batch in epoch_batches(data, batch_size, **how):
            with torch.no_grad():
                logits = self.teacher(batch.images)
            yield batch, logits


def planted(around: Surroundings, student: Student, proposals: list[Proposal]) -> list[nn.Module]:
    """The candidates in the package's layers."""
    return [plant_proposal(around, student, 1, proposal) for proposal in proposals]


@contextlib.contextmanager
def _put_back(counters: list[Tensor]) -> Iterator[None]:
    before = [counter.clone() for counter in counters]
    yield
    for counter, kept in zip(counters, before, strict=True):
        counter.copy_(kept)


def _fail(reason: str) -> None:
    raise RuntimeError(f"a loop that is measured could not be captured: {reason}")
