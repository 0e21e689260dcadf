"""Training images that channels are scored on."""

from __future__ import annotations

import torch
from torch import Tensor

from plantops.train.data import ImageData
from plantops.train.seeds import generator

BATCH = 256


def draw_samples(train: ImageData, count: int, seed: int, *keys: int) -> list[tuple[Tensor, Tensor]]:
    """``count`` normalised training images (all, where there are fewer) with labels, in batches; drawn by (seed, keys)
    alone."""
    order = torch.randperm(len(train), generator=generator(seed, "prune", *keys))[:count].to(train.device)
    return [(train.normalise(train.images[part]), train.labels[part]) for part in order.split(BATCH)]
