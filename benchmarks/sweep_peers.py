"""What the one-pass sweep is measured against: loops over candidates as people write them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plantops.planting.candidate import Growth, Student, Surroundings, plant_growth
from plantops.planting.trunk import planted_parameters
from plantops.train.batches import Batch
from plantops.train.loop import Feed, Learner, Tally
from plantops.train.recipe import Recipe

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


def endless(feed: Feed, epochs: int) -> Iterator[tuple[Batch, Tensor | None, float]]:
    """Steps of epoch after epoch, from the first again behind the last."""
    for epoch in itertools.count():
        yield from feed.epoch(epoch % epochs)


def loop_step(
    around: Surroundings, models: list[nn.Module], recipe: Recipe, teacher: nn.Module | None, compiled: bool
) -> Step:
    """One step of every candidate, each with its own pass over the data; ``teacher``: asked, not looked up."""
    if recipe.channels_last:
        models = [model.to(memory_format=torch.channels_last) for model in models]
    learners = [Learner(recipe, [p for p in model.parameters() if p.requires_grad]) for model in models]
    run = [torch.compile(model) if compiled else model for model in models]
    source = Recipe(**{**vars(recipe), "objective": "ce"}) if teacher is not None else recipe
    make = partial(Feed, around.train, source, around.teacher, seed=0, batch_done=None)
    feeds = [endless(make(keys=("bench",)), recipe.epochs) for _ in models]
    tally = Tally(around.train.device)

    def step() -> None:
        for model, learner, feed in zip(run, learners, feeds, strict=True):
            batch, logits, lr = next(feed)
            if teacher is not None:
                with torch.no_grad():
                    logits = teacher(batch.images)
            learner.step(partial(model, batch.images), batch.labels, logits, lr, tally)

    return step


def planted(around: Surroundings, student: Student, growths: list[Growth]) -> list[nn.Module]:
    """The candidates in the package's layers."""
    models = [plant_growth(around, student, 1, growth) for growth in growths]
    assert all(planted_parameters(model) for model in models)
    return models
