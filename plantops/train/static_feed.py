"""Batches read from buffers that stay in their places: a step over them can be captured once and replayed.

Everything that an epoch draws is on the device before its first step; a step finds its samples, its augmentation and
its learning rate through counters on the device, which it moves on itself. So the host says nothing between two steps,
and the numbers are those of ``Feed``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plantops.train.batches import Batch, Draws, batch_sizes, epoch_draws, epoch_order, make_batch
from plantops.train.data import ImageData
from plantops.train.loop import Feed


class Positions:
    """Which samples come next: a counter on the device."""

    def __init__(self, device: torch.device) -> None:
        self.begin = torch.zeros((), dtype=torch.int64, device=device)

    def take(self, size: int) -> Tensor:
        """int64 [size]: the next positions; the counter moves on."""
        taken = torch.arange(size, device=self.begin.device) + self.begin
        self.begin += size
        return taken


class StaticFeed:
    """``Feed`` for steps that are replayed: ``begin`` an epoch, then one ``step`` for each of its batches.

    Attributes:
        sizes: how many samples each batch of an epoch has.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._data, self._recipe, self._teacher = feed.train, feed.recipe, feed.teacher
        device, samples, size = feed.device, len(feed.train), feed.recipe.batch_size
        self.sizes = batch_sizes(samples, size)
        self._positions = Positions(device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._order = torch.zeros(samples, dtype=torch.int64, device=device)
        draws = epoch_draws(samples, self._recipe.augment, seed=0)
        self._draws = None if draws is None else Draws(*(torch.zeros_like(draw, device=device) for draw in draws))
        # What the fused optimizers take as a learning rate: on a CPU the float64 of a Python number.
        kind = torch.float64 if device.type == "cpu" else torch.float32
        self._rates = torch.zeros(len(self.sizes), dtype=kind, device=device)
        self._rate = torch.zeros((), dtype=kind, device=device)
        self._logits = None if self._teacher is None else self._logits_buffer()

    @property
    def counters(self) -> list[Tensor]:
        """What a step moves on."""
        return [self._positions.begin, self._place]

    def begin(self, epoch: int) -> None:
        """Fill the buffers for epoch number ``epoch``, from 0."""
        names = self._names(epoch)
        self._order.copy_(epoch_order(len(self._data), **names))
        drawn = epoch_draws(len(self._data), self._recipe.augment, **names)
        if self._draws is not None and drawn is not None:
            for buffer, draw in zip(self._draws, drawn, strict=True):
                buffer.copy_(draw)
        self._rates.copy_(torch.tensor(self._feed.rates(epoch), dtype=torch.float64))
        for counter in self.counters:
            counter.zero_()
        if self._teacher is not None and self._logits is not None and self._recipe.augment.variants is None:
            how = {**names, "augment": self._recipe.augment}
            self._logits.copy_(self._teacher.epoch(self._data, self._recipe.batch_size, **how))

    def step(self, size: int) -> tuple[Batch, Tensor | None, Tensor]:
        """(batch, teacher's logits or None, learning rate) of the next step, which has ``size`` samples."""
        positions = self._positions.take(size)
        index = self._order.index_select(0, positions)
        batch = make_batch(self._data, index, self._draws, self._recipe.augment, self._recipe.channels_last)
        self._rate.copy_(self._rates.index_select(0, self._place).squeeze(0))
        self._place += 1
        return batch, self._teacher_logits(batch), self._rate

    def _teacher_logits(self, batch: Batch) -> Tensor | None:
        if self._logits is None:
            return None
        # Of an epoch of crops every image has one row, else every view of it.
        crops = self._recipe.augment.variants is None
        return self._logits.index_select(0, batch.index if crops else batch.rows(len(self._data)))

    def _logits_buffer(self) -> Tensor:
        assert self._teacher is not None
        if self._recipe.augment.variants is not None:
            return self._teacher.table(self._data, self._recipe.augment.variants)
        example = self._teacher.logits(self._data.normalise(self._data.images[:1]))
        return example.new_zeros((len(self._data), *example.shape[1:]))

    def _names(self, epoch: int) -> dict[str, Any]:
        return {"seed": self._feed.seed, "keys": (*self._feed.keys, epoch)}


class StaticPart:
    """Batches of a whole part in its own order, unchanged but for the normalisation."""

    def __init__(self, data: ImageData, batch_size: int, channels_last: bool) -> None:
        self._data, self._channels_last = data, channels_last
        self.sizes = batch_sizes(len(data), batch_size)
        self._positions = Positions(data.device)

    @property
    def counters(self) -> list[Tensor]:
        """What a step moves on."""
        return [self._positions.begin]

    def begin(self) -> None:
        """From the first sample again."""
        self._positions.begin.zero_()

    def step(self, size: int) -> Batch:
        """The next batch, of ``size`` samples."""
        return make_batch(self._data, self._positions.take(size), None, None, self._channels_last)
