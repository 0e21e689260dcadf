"""Where channels lie behind a channel shuffle, a pixel shuffle and a pixel unshuffle."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from plantops.graph.layout import Layout
from plantops.graph.partition import Partition
from plantops.graph.rules import argument, step_name

_CHANNEL_SHUFFLES: tuple[Any, ...] = (torch.channel_shuffle, F.channel_shuffle)
_PIXEL_SHUFFLES: tuple[Any, ...] = (torch.pixel_shuffle, F.pixel_shuffle)
_PIXEL_UNSHUFFLES: tuple[Any, ...] = (torch.pixel_unshuffle, F.pixel_unshuffle)


def follow(node: fx.Node, module: nn.Module | None, layout: Layout, partition: Partition) -> Layout | None:
    """The layout behind ``node``; None when it is no shuffle.

    Raises:
        Refused: the channels are not in parts, or in multiples, that stay together.
    """
    if isinstance(module, nn.ChannelShuffle) or (module is None and node.target in _CHANNEL_SHUFFLES):
        count = module.groups if isinstance(module, nn.ChannelShuffle) else argument(node, 1, "groups", None)
        if layout.dim != 1 or not isinstance(count, int):
            return None
        # Entry i of every group, then entry i + 1: a channel and those at its place in the other groups are neighbours.
        reason = f"{step_name(node)} shuffles it in {count} groups that are not made alike"
        return partition.runs(layout, count, reason)[0].repeated(count)
    if isinstance(module, nn.PixelShuffle) or (module is None and node.target in _PIXEL_SHUFFLES):
        by_call = None if module is not None else argument(node, 1, "upscale_factor", None)
        factor = module.upscale_factor if isinstance(module, nn.PixelShuffle) else by_call
        if layout.dim != 1 or not isinstance(factor, int):
            return None
        return partition.folded(layout, factor**2, f"{step_name(node)} folds it by {factor**2} with other channels")
    if isinstance(module, nn.PixelUnshuffle) or (module is None and node.target in _PIXEL_UNSHUFFLES):
        by_call = None if module is not None else argument(node, 1, "downscale_factor", None)
        factor = module.downscale_factor if isinstance(module, nn.PixelUnshuffle) else by_call
        return layout.repeated(factor**2) if layout.dim == 1 and isinstance(factor, int) else None
    return None
