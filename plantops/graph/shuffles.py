"""Where channels lie behind a channel shuffle and behind a pixel unshuffle."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from plantops.graph.layout import Groups, Layout, Refused, Segment
from plantops.graph.reshapes import argument
from plantops.graph.rules import step_name

_CHANNEL_SHUFFLES: tuple[Any, ...] = (torch.channel_shuffle, F.channel_shuffle)
_PIXEL_UNSHUFFLES: tuple[Any, ...] = (torch.pixel_unshuffle, F.pixel_unshuffle)


def follow(node: fx.Node, module: nn.Module | None, layout: Layout, groups: Groups) -> Layout | None:
    """The layout behind ``node``; None when it is no shuffle.

    Raises:
        Refused: new channels would move old ones.
    """
    if isinstance(module, nn.ChannelShuffle) or (module is None and node.target in _CHANNEL_SHUFFLES):
        count = module.groups if isinstance(module, nn.ChannelShuffle) else argument(node, 1, "groups", None)
        return _channels(node, layout, int(count), groups)
    if isinstance(module, nn.PixelUnshuffle) or (module is None and node.target in _PIXEL_UNSHUFFLES):
        by_call = None if module is not None else argument(node, 1, "downscale_factor", None)
        factor = module.downscale_factor if isinstance(module, nn.PixelUnshuffle) else by_call
        return layout.repeated(factor**2) if layout.dim == 1 and isinstance(factor, int) else None
    return None


def _channels(node: fx.Node, layout: Layout, count: int, groups: Groups) -> Layout:
    """``count`` parts are laced: entry i of every part, then entry i + 1. Where each part is one layer's channels,
    they grow together, and a channel becomes its entries of all parts, which are neighbours then."""
    parts = layout.segments
    alike = len(parts) == count and len({(part.size, part.repeat) for part in parts}) == 1
    own = [part.group for part in parts if part.group is not None]
    if layout.dim != 1 or not alike or len(own) < count:
        raise Refused(f"{step_name(node)} shuffles it in {count} groups that are not one layer's channels each")
    for group in own[1:]:
        groups.unite(own[0], group)
    return Layout(1, (Segment(own[0], parts[0].size * count, parts[0].repeat * count),), None)
