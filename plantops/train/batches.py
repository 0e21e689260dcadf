"""Batches from images that already lie on the device: order, crop and flip are a function of (seed, keys) alone.

All random numbers of an epoch are drawn on the CPU, from one generator per use, before its first batch, and per sample
rather than per batch. So neither the device, nor the batch size, nor what else draws random numbers can change them,
and every candidate of a round sees the same images in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from plantops.errors import ArgumentError
from plantops.train.data import ImageData
from plantops.train.seeds import generator


@dataclass(frozen=True)
class Augment:
    """Random crop and horizontal flip.

    A view is what can become of an image: one window of its frame, mirrored or not. There are ``count`` of them,
    numbered from 0: window times (2 with flips, else 1), plus 1 where it is mirrored.

    Attributes:
        crop: the image is framed by this many pixels of the mean colour (zero after normalisation) on each side, and a
            window of the image's own size is cut at a uniformly random place of the frame. 0: no crop.
        flip: mirror left to right with probability one half.
        views: an image is seen in at most so many views: its windows are drawn once, from the seed alone, and the crops
            of every epoch are drawn among these; with flips each window counts twice. Default: all windows of the
            frame, ``(2 crop + 1)^2``. Without crops it does nothing.

    Raises:
        ValueError: a crop below 0, views below 1, or an odd number of views with flips.
    """

    crop: int = 0
    flip: bool = False
    views: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.crop, int) or isinstance(self.crop, bool) or self.crop < 0:
            raise ArgumentError(f"crop must be 0 or more whole pixels, got {self.crop!r}")
        if not isinstance(self.flip, bool):
            raise ArgumentError(f"flip must be True or False, got {self.flip!r}")
        if self.views is not None:
            expected = "an even whole number of at least 2, with flips" if self.flip else "a whole number of at least 1"
            whole = isinstance(self.views, int) and not isinstance(self.views, bool)
            if not whole or self.views < 1 or self.views % (1 + self.flip):
                raise ArgumentError(f"views must be {expected}, got {self.views!r}")

    def __bool__(self) -> bool:
        return self.crop > 0 or self.flip

    @property
    def variants(self) -> int | None:
        """How many versions of an image there are: 1, 2 with flips alone, None (many) with crops."""
        return None if self.crop else 1 + self.flip

    @property
    def windows(self) -> int:
        """How many windows of an image there are."""
        every = (2 * self.crop + 1) ** 2
        return every if self.views is None else min(every, self.views // (1 + self.flip))

    @property
    def drawn(self) -> bool:
        """Whether an image is seen in some of its windows only, which the seed has drawn."""
        return self.windows < (2 * self.crop + 1) ** 2

    @property
    def count(self) -> int:
        """How many views of an image there are."""
        return self.windows * (1 + self.flip)


class Batch(NamedTuple):
    """``index`` int64 [B]: positions in the part; ``images`` float32 [B, C, H, W], normalised; ``labels`` int64 [B].

    ``view`` int64 [B]: the number of each image's view, see ``Augment``; None where the images are as they are.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    images: Tensor
    labels: Tensor
    view: Tensor | None = None

    def rows(self, samples: int) -> Tensor:
        """int64 [B]: each image's row in a table of all views of ``samples`` images, view by view."""
        return self.index if self.view is None else self.index + samples * self.view


class Draws(NamedTuple):
    """Random numbers, one entry per image; of an epoch for every sample of the part."""

    top: Tensor  # int64: the window's first row, relative to the image's
    left: Tensor
    mirror: Tensor  # bool
    view: Tensor  # int64: the number that these three make


def batch_sizes(samples: int, batch_size: int) -> list[int]:
    """How many samples each batch of one epoch has. A last batch of a single one joins the batch before it: over one
    sample alone a batch norm may have no variance.

    Raises:
        ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
    whole, rest = divmod(samples, batch_size)
    sizes = [batch_size] * whole
    if rest == 1 and whole:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def epoch_order(samples: int, *, seed: int, keys: tuple[int | str, ...] = (), shuffle: bool = True) -> Tensor:
    """int64 ``[samples]``: the order of one epoch, on the CPU."""
    return torch.randperm(samples, generator=generator(seed, *keys, "order")) if shuffle else torch.arange(samples)


def epoch_batches(
    data: ImageData,
    batch_size: int,
    *,
    seed: int,
    keys: tuple[int | str, ...] = (),
    augment: Augment | None = None,
    shuffle: bool = True,
    channels_last: bool = False,
) -> Iterator[Batch]:
    """One epoch over ``data`` on its device, in batches of ``batch_sizes``.

    Args:
        seed, keys: name the epoch, for example ``keys=("candidate", round, epoch)``. Order and augmentation are a
            function of these (and of the number of samples) alone.
        augment: default: none.
        channels_last: images in torch.channels_last memory format; the values are the same.

    Raises:
        ValueError: batch_size below 1.
    """
    samples = len(data)
    sizes = batch_sizes(samples, batch_size)
    order = epoch_order(samples, seed=seed, keys=keys, shuffle=shuffle).to(data.device)
    draws = epoch_draws(samples, augment, seed=seed, keys=keys)
    if draws is not None:
        draws = Draws(*(draw.to(data.device) for draw in draws))
    return (make_batch(data, index, draws, augment, channels_last) for index in order.split(sizes))


def eval_batches(
    data: ImageData, batch_size: int, channels_last: bool = False, *, mirrored: bool = False
) -> Iterator[Batch]:
    """All samples in their own order, unchanged but for the normalisation, or each of them mirrored."""
    for batch in epoch_batches(data, batch_size, seed=0, shuffle=False, channels_last=channels_last):
        yield batch._replace(images=batch.images.flip(-1)) if mirrored else batch


def version_batches(data: ImageData, batch_size: int, variants: int, channels_last: bool = False) -> Iterator[Batch]:
    """All versions of all samples in the order of ``Batch.rows``: as they are, then (``variants`` 2) mirrored."""
    for mirrored in range(variants):
        yield from eval_batches(data, batch_size, channels_last, mirrored=bool(mirrored))


def make_batch(
    data: ImageData, index: Tensor, draws: Draws | None, augment: Augment | None = None, channels_last: bool = False
) -> Batch:
    """The images at ``index`` (int64 [B]) of ``data`` as ``draws`` has them; ``draws``: None without augmentation."""
    if draws is None:
        images, view = data.normalise(data.images.index_select(0, index)), None
    else:
        assert augment is not None
        own = Draws(*(draw[index] for draw in draws))
        images, view = _cut(data, index, own, augment), own.view
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return Batch(index, images, data.labels[index], view)


def view_batch(data: ImageData, index: Tensor, view: Tensor, augment: Augment, *, seed: int) -> Batch:
    """The images at ``index`` (int64 [B]) of ``data``, each in the view of that number (int64 [B])."""
    window, mirror = view // (1 + augment.flip), view % (1 + augment.flip)
    if augment.drawn:
        window = _windows(len(data), augment, seed).to(index.device)[window, index].long()
    top, left = _place(window, augment)
    images = _cut(data, index, Draws(top, left, mirror.bool(), view), augment)
    return Batch(index, images, data.labels[index], view)


def epoch_draws(samples: int, augment: Augment | None, *, seed: int, keys: tuple[int | str, ...] = ()) -> Draws | None:
    """What the augmentation of one epoch draws, on the CPU; None where there is none."""
    if not augment:
        return None
    top = left = window = torch.zeros(samples, dtype=torch.int64)
    mirror = torch.zeros(samples, dtype=torch.bool)
    if augment.drawn:
        window = torch.randint(0, augment.windows, (samples,), generator=generator(seed, *keys, "crop"))
        top, left = _place(_windows(samples, augment, seed)[window, torch.arange(samples)].long(), augment)
    elif augment.crop:
        crops = generator(seed, *keys, "crop")
        top, left = torch.randint(-augment.crop, augment.crop + 1, (2, samples), generator=crops)
        window = (top + augment.crop) * (2 * augment.crop + 1) + left + augment.crop
    if augment.flip:
        mirror = torch.randint(0, 2, (samples,), generator=generator(seed, *keys, "flip")).bool()
    return Draws(top, left, mirror, window * (1 + augment.flip) + mirror)


def _place(window: Tensor, augment: Augment) -> tuple[Tensor, Tensor]:
    """(top, left) of windows of the frame."""
    side = 2 * augment.crop + 1
    return window // side - augment.crop, window % side - augment.crop


@lru_cache(maxsize=1)
def _windows(samples: int, augment: Augment, seed: int) -> Tensor:
    """int32 ``[windows, samples]``: the windows that each image is seen in, a function of the seed alone."""
    every = (2 * augment.crop + 1) ** 2
    shape = (augment.windows, samples)
    return torch.randint(0, every, shape, dtype=torch.int32, generator=generator(seed, "windows"))


def _cut(data: ImageData, index: Tensor, draws: Draws, augment: Augment) -> Tensor:
    """Every image's own window (mirrored or not), normalised; zero outside the image.

    Of the stored type until the window is cut, so little memory moves; rows are copied whole. Only the window's pixels
    are normalised.
    """
    images = data.images.index_select(0, index)
    left = draws.left
    if augment.flip:
        either = torch.arange(len(index), device=index.device) + len(index) * draws.mirror
        images = torch.cat([images, images.flip(-1)]).index_select(0, either)
        left = torch.where(draws.mirror, -left, left)
    if not augment.crop:
        return data.normalise(images)
    batch, channels, height, width = images.shape
    crop, device = augment.crop, images.device
    framed = (height + 2 * crop, width + 2 * crop)
    frame = images.new_zeros((batch, channels, *framed))
    frame[:, :, crop : crop + height, crop : crop + width] = images
    planes = torch.arange(batch * channels, device=device).view(batch, channels) * (framed[0] * framed[1])
    corners = planes + ((draws.top + crop) * framed[1] + left + crop).unsqueeze(1)
    rows = corners.unsqueeze(2) + torch.arange(height, device=device) * framed[1]
    # All runs of ``width`` pixels that there are, overlapping.
    runs = frame.view(-1).as_strided((frame.numel() - width + 1, width), (1, 1))
    window = runs.index_select(0, rows.view(-1)).view(images.shape)
    return data.normalise(window).mul_(_inside(draws.top, height, left, width).unsqueeze(1))


def _inside(top: Tensor, height: int, left: Tensor, width: int) -> Tensor:
    """float32 ``[B, H, W]``: 1 where a window lies on the image, else 0."""
    rows, columns = (
        torch.arange(size, device=begin.device) + begin.unsqueeze(1) for begin, size in ((top, height), (left, width))
    )
    on_rows, on_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    return on_rows.float().unsqueeze(2) * on_columns.float().unsqueeze(1)
