"""The planted layers of the sites that are planted together, and how each site's channels lie in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from plantops.graph import Channelwise, Consumer, Site
from plantops.graph.layers import widths
from plantops.graph.rules import is_norm_act
from plantops.nn import (
    PlantedBatchNorm2d,
    PlantedBatchNorm3d,
    PlantedBatchNormAct2d,
    PlantedConv,
    PlantedConv2d,
    PlantedGroupNorm,
    PlantedInstanceNorm,
    PlantedLinear,
    PlantedPReLU,
)
from plantops.planting.arrange import arrange

PlantedLayer = PlantedConv2d | PlantedLinear | PlantedConv
PlantedNorm = PlantedBatchNorm2d | PlantedGroupNorm | PlantedInstanceNorm
PLANTED = (
    PlantedConv2d,
    PlantedLinear,
    PlantedConv,
    PlantedBatchNorm2d,
    PlantedGroupNorm,
    PlantedInstanceNorm,
    PlantedPReLU,
)


@dataclass(frozen=True)
class Blocks:
    """The new layers of ``site`` with ``channels`` planted ones, by the name of the layer each stands for.

    A layer that makes and reads the channels is in ``producers`` and in ``consumers``. ``others``: grouped
    convolutions and activations with slopes. ``offsets``: for each of ``site.readers()``, where the new channels that
    it reads there begin among all new inputs of its layer.
    """

    site: Site
    channels: int
    producers: dict[str, PlantedLayer]
    norms: dict[str, PlantedNorm]
    others: dict[str, PlantedLayer | PlantedPReLU]
    consumers: dict[str, PlantedLayer]
    offsets: tuple[int, ...]

    def readers(self) -> list[tuple[Consumer, PlantedLayer, int]]:
        """Each consumer, its planted layer, and where its new channels begin among the layer's new inputs."""
        offsets = self.offsets[len(self.site.channelwise) :]
        return [(one, self.consumers[one.name], at) for one, at in zip(self.site.consumers, offsets, strict=True)]

    def channelwise(self) -> list[tuple[Channelwise, Any, int]]:
        """The same of the layers on the way."""
        layers = {**self.norms, **self.others}
        own = self.site.channelwise
        return [(one, layers[one.name], at) for one, at in zip(own, self.offsets[: len(own)], strict=True)]

    def all(self) -> dict[str, nn.Module]:
        return {**self.producers, **self.norms, **self.others, **self.consumers}


Growth = tuple[Site, int]
"""A site and its new channels."""


def build(
    model: nn.Module, growths: Sequence[Growth], init: str, generator: torch.Generator, input_grad: str = "full"
) -> list[Blocks]:
    """New planted layers for all ``growths``, which may share layers; ``model`` itself stays as it is.

    ``init``: "zero_in" or "kaiming"; ``input_grad``: that of the consumer of a single chain. (Elsewhere old channels
    may lie between two planted blocks, so their gradient is needed.)
    """
    runs = _runs(growths)
    device = next((parameter.device for parameter in model.parameters()), None)
    producers = {name: site.planted_outputs(name, count) for site, count in growths for name in site.producers}
    inner = {layer.name: layer for site, _ in growths for layer in site.channelwise}
    consumers = {reader.name: reader for site, _ in growths for reader in site.consumers}
    built: dict[str, Any] = {}
    for name in dict.fromkeys([*producers, *inner, *consumers]):
        layer, own = model.get_submodule(name), runs.get(name, [])
        reader: Channelwise | Consumer | None = inner.get(name) or consumers.get(name)
        several = len(own) > 1
        new = sum(run.count for run in own)
        start = reader.features if reader is not None and several else own[0].first if own else None
        if name in inner:
            assert start is not None
            built[name] = _planted_inner(layer, new, start, generator)
        else:
            options: dict[str, Any] = {"init": "kaiming", "generator": generator}
            if name in consumers:
                options.update(new_in=new, in_start=start, init=init)
            if name in producers:
                options["new_out"] = sum(count for _, count in producers[name])
            elif len(growths) == 1 and growths[0][0].chain:
                options["input_grad"] = input_grad
            built[name] = _planted(layer, **options)
        inputs = [(run.first, run.count) for run in own]
        if reader is not None and several and name in inner:
            features = getattr(layer, "out_channels", reader.features)
            behind = [(first * features // reader.features, count * features // reader.features)
                      for first, count in inputs]  # fmt: skip
            arrange(built[name], (reader.features, inputs), (features, behind), device)
        elif several or len(producers.get(name, ())) > 1:
            before = (reader.features, inputs) if reader is not None and several else None
            outputs = (widths(layer)[1], producers[name]) if len(producers.get(name, ())) > 1 else None
            arrange(built[name], before, outputs, device)
    return [_of_site(site, channels, built, runs) for site, channels in growths]


@dataclass(frozen=True)
class _Run:
    """New inputs of a layer: which reader of which site reads them, before which old entry they are, how many."""

    site: str
    reader: int
    first: int
    count: int


def _runs(growths: Sequence[Growth]) -> dict[str, list[_Run]]:
    """For every layer that new channels reach, its new inputs in order."""
    runs: dict[str, list[_Run]] = {}
    for site, channels in growths:
        for at, reader in enumerate(site.readers()):
            run = _Run(site.name, at, site.planted_start(reader), site.planted_count(reader, channels))
            runs.setdefault(reader.name, []).append(run)
    return {name: sorted(own, key=lambda run: run.first) for name, own in runs.items()}


def _of_site(site: Site, channels: int, built: dict[str, Any], runs: dict[str, list[_Run]]) -> Blocks:
    norms = [layer.name for layer in site.channelwise if layer.kind == "norm"]
    others = [layer.name for layer in site.channelwise if layer.kind != "norm"]
    offsets = []
    for at, reader in enumerate(site.readers()):
        own = runs[reader.name]
        mine = next(i for i, run in enumerate(own) if (run.site, run.reader) == (site.name, at))
        offsets.append(sum(run.count for run in own[:mine]))
    return Blocks(
        site,
        channels,
        {name: built[name] for name in site.producers},
        {name: built[name] for name in norms},
        {name: built[name] for name in others},
        {reader.name: built[reader.name] for reader in site.consumers},
        tuple(offsets),
    )


def _planted(layer: nn.Module, **options: Any) -> PlantedLayer:
    if isinstance(layer, nn.Conv2d):
        return PlantedConv2d.from_conv(layer, **options)
    if isinstance(layer, _ConvNd):
        options.pop("input_grad", None)
        return PlantedConv(layer, **options)
    assert isinstance(layer, nn.Linear)
    return PlantedLinear.from_linear(layer, **options)


def _planted_inner(layer: nn.Module, new_in: int, start: int, generator: torch.Generator) -> nn.Module:
    """A norm, an activation with slopes, or new groups of a grouped convolution, for ``new_in`` new inputs."""
    if isinstance(layer, nn.PReLU):
        return PlantedPReLU(layer, new_in, start=start)
    if not isinstance(layer, _ConvNd):
        return _planted_norm(layer, new_in, start)
    new_out = new_in * layer.out_channels // layer.in_channels
    if isinstance(layer, nn.Conv2d) and start == layer.in_channels:
        return PlantedConv2d.from_conv(layer, new_out, new_in, init="kaiming", generator=generator)
    return PlantedConv(layer, new_out, new_in, in_start=start, init="kaiming", generator=generator)


def _planted_norm(norm: nn.Module, new: int, start: int) -> PlantedNorm:
    if isinstance(norm, nn.GroupNorm):
        return PlantedGroupNorm(norm, new, start=start)
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        return PlantedInstanceNorm(norm, new, start=start)
    if isinstance(norm, nn.BatchNorm3d):
        return PlantedBatchNorm3d.from_bn(norm, new, start=start)  # type: ignore[arg-type]
    assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
    kind = PlantedBatchNormAct2d if is_norm_act(norm) else PlantedBatchNorm2d
    return kind.from_bn(norm, new, start=start)


def present(tensor: Tensor | None) -> Tensor:
    """A block that is there because the layer was built with it."""
    assert tensor is not None
    return tensor


def features_of(channels: Tensor, per_channel: int) -> Tensor:
    """Indices of the features that ``channels`` become when each is ``per_channel`` neighbours: ``[P] -> [P s]``."""
    return (channels[:, None] * per_channel + torch.arange(per_channel, device=channels.device)).flatten()
