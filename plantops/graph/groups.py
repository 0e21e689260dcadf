"""Sites named by hand, for layers whose channels the graph cannot follow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from plantops._arguments import check_type
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.graph import rules
from plantops.graph.capture import shapes
from plantops.graph.cost import Use, cost, features
from plantops.graph.inputs import tensors_in
from plantops.graph.layers import Layers, widths
from plantops.graph.plan import Channelwise, Consumer, Plan, Site

Reader = str | tuple[str, int] | tuple[str, int, int]
"""A layer; where in its input the site's channels begin (default 0); how many input features each becomes (default: as
many as divide the layer's features evenly from there, when it reads nothing else)."""


@dataclass(frozen=True)
class Group:
    """A site named by hand.

    Attributes:
        producers: qualified names of the convolutions or linear layers whose filters grow together.
        consumers: the layers that read these channels, each a name, ``(name, start)`` or ``(name, start,
            per_channel)``: ``("fc", 0, 49)`` behind a flattened 7 x 7 image.
        channelwise: layers on the way with tensors for every channel, in order: norms, depthwise and grouped
            convolutions, ``PReLU`` with slopes; named like consumers.
    """

    producers: Sequence[str]
    consumers: Sequence[Reader]
    channelwise: Sequence[Reader] = ()


def group_list(groups: Iterable[Group]) -> list[Group]:
    """Raises ArgumentTypeError unless ``groups`` are several groups."""
    if not isinstance(groups, Iterable) or isinstance(groups, (Tensor, str, bytes, Mapping)):
        raise ArgumentTypeError(f"groups must be several plantops.Group, got {type(groups).__name__}")
    found = list(groups)
    for group in found:
        check_type("groups", group, Group, "several plantops.Group")
    return found


def with_groups(
    plan: Plan, groups: Sequence[Group], model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Plan:
    """``plan`` with a site for every group, in the place of the sites of its producers.

    Raises:
        ValueError: a layer is missing, cannot be planted, or has too few features.
    """
    layers = Layers(fx.Graph(), dict(model.named_modules()))
    names = {name for group in groups for name in (*group.producers, *(_named(r)[0] for r in _readers(group)))}
    for name in names:
        if name not in layers.modules:
            raise ArgumentError(f"groups: the model has no layer {name!r}")
    seen = shapes(model, inputs, keywords, names)
    samples = tensors_in([*inputs, *keywords.values()])[0].shape[0]
    made = [_site(group, layers, seen, samples) for group in groups]
    taken = [name for site in made for name in site.producers]
    if len(set(taken)) < len(taken):
        raise ArgumentError(f"groups: a layer is a producer of two groups ({', '.join(taken)})")
    kept = [site for site in plan.values() if not set(site.producers) & set(taken)]
    order = {name: at for at, name in enumerate(layers.modules)}
    sites = sorted([*kept, *made], key=lambda site: order[site.name]) if made else kept
    lost = {
        name: "its channels grow only with layers that a group named by hand has taken"
        for site in plan.values()
        if site not in kept
        for name in site.producers
        if name not in taken
    }
    grown = Plan(sites)
    return Plan(sites, {k: v for k, v in {**plan.refusals, **lost}.items() if k not in grown})


def _readers(group: Group) -> tuple[Reader, ...]:
    return (*group.channelwise, *group.consumers)


def _named(reader: Reader) -> tuple[str, int, int | None]:
    if isinstance(reader, str):
        return reader, 0, None
    return reader[0], reader[1], reader[2] if len(reader) == 3 else None


def _site(group: Group, layers: Layers, seen: Mapping[str, Any], samples: int) -> Site:
    if isinstance(group.producers, str) or not group.producers or not group.consumers:
        raise ArgumentError(f"groups: producers and consumers must each be a sequence of layer names, got {group}")
    modules = layers.modules
    for name in (*group.producers, *(_named(reader)[0] for reader in group.consumers)):
        problem = layers.weight_problem(name)
        if not isinstance(modules[name], (_ConvNd, nn.Linear)) or problem is not None:
            raise ArgumentError(
                f"groups: {problem or f'{name} is a {type(modules[name]).__name__}, no layer that grows'}"
            )
        if getattr(modules[name], "groups", 1) > 1:
            raise ArgumentError(f"groups: {name} is a grouped convolution: name it in channelwise")
    width = {widths(modules[name])[1] for name in group.producers}
    if len(width) > 1:
        raise ArgumentError(
            f"groups: producers must be equally wide, got {', '.join(group.producers)} of {sorted(width)}"
        )
    (channels,) = width
    consumers = []
    for reader in group.consumers:
        name = _named(reader)[0]
        consumers.append(Consumer(name, *_place(reader, channels, widths(modules[name])[0])))
    inner, multiple = [], 1
    for reader in group.channelwise:
        name = _named(reader)[0]
        kind, total, block = _inner(name, modules[name])
        inner.append(Channelwise(name, kind, *_place(reader, channels, total)))
        multiple = math.lcm(multiple, block // math.gcd(block, inner[-1].per_channel))
    uses = [Use("producer", name, 1, *seen.get(name, ())) for name in group.producers]
    uses += [Use("consumer", reader.name, reader.per_channel, *seen.get(reader.name, ())) for reader in consumers]
    uses += [Use(layer.kind, layer.name, layer.per_channel, *seen.get(layer.name, ())) for layer in inner]
    parameters, macs = cost(uses, modules, samples)
    return Site(
        name=group.producers[0],
        producers=tuple(group.producers),
        norms=tuple(layer.name for layer in inner if layer.kind == "norm"),
        passes=(),
        consumers=tuple(consumers),
        width=channels,
        parameters_per_channel=parameters,
        macs_per_channel=macs,
        slope_at_zero=0.0,
        channelwise=tuple(inner),
        multiple=multiple,
        chain=False,
    )


def _place(reader: Reader, channels: int, total: int) -> tuple[int, int, int]:
    """Start, features a channel, and all features of a reader."""
    name, start, each = _named(reader)
    if each is None:
        whole, rest = divmod(total, channels)
        each = whole if start == 0 and rest == 0 else 1
    if start < 0 or each < 1 or start + channels * each > total:
        raise ArgumentError(
            f"groups: {name} has {total} input features, too few for {channels} channels of {each} from {start} on"
        )
    return start, each, total


def _inner(name: str, module: nn.Module) -> tuple[str, int, int]:
    """Kind, features, and features that belong together, of a layer on the way."""
    if isinstance(module, _ConvNd) and module.groups > 1:
        return "conv", module.in_channels, module.in_channels // module.groups
    if rules.is_norm(module):
        block = module.num_channels // module.num_groups if isinstance(module, nn.GroupNorm) else 1
        return "norm", features(module), block
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return "activation", module.num_parameters, 1
    raise ArgumentError(f"groups: {name} is a {type(module).__name__}, which has no tensors for every channel")
