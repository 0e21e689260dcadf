"""One training step of the grown network on a few images, before a search begins: what cannot train is said at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plantops.errors import ArgumentError
from plantops.graph import Plan, Site
from plantops.planting.blocks import PLANTED
from plantops.planting.candidate import Growth
from plantops.planting.plant import plant
from plantops.train.logits import logits_of


def check_training(model: nn.Module, plan: Plan, growths: Sequence[Growth], images: Tensor) -> None:
    """Grow a copy of ``model`` at all of these sites and take a backward through it.

    Raises:
        ValueError: the forward or the backward fails; a site whose new channels get no gradient. Says which, and why.
    """
    channels = {growth.site: growth.channels for growth in growths}
    planted = plant(model, [plan[name] for name in channels], channels, "kaiming").train()
    devices = [images.device.index] if images.is_cuda else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        try:
            logits = logits_of(planted(images))
            if logits.requires_grad:
                logits.square().sum().backward()
        except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
            raise ArgumentError(
                "model cannot be trained once it has grown: a step on two images ends in "
                f"{type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
    for name in channels:
        if not any(block.grad is not None for block in _blocks(planted, plan[name])):
            raise ArgumentError(
                f"site {name} cannot be trained: its new channels get no gradient. Are they under torch.no_grad in the "
                "forward, or detached? Leave the site out with config.sites"
            )


def _blocks(planted: nn.Module, site: Site) -> list[nn.Parameter]:
    """The new filters of the producers and the slices that read them."""
    found: list[nn.Parameter | None] = []
    for names, kinds in (
        (site.producers, ("weight_out", "bias_out")),
        ([reader.name for reader in site.consumers], ("weight_in",)),
    ):
        for name in names:
            layer = planted.get_submodule(name)
            layers = [part for part in layer.modules() if isinstance(part, PLANTED)]
            found += [getattr(part, kind, None) for part in layers for kind in kinds]
    return [block for block in found if block is not None]
