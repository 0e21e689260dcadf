"""Take channels out of a model, in every layer that makes, changes or reads them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

from plantops.errors import ArgumentError
from plantops.graph import Channelwise, Consumer, Plan, Site, check_plain
from plantops.graph.layers import widths as widths_of
from plantops.train.optimizer_state import (
    ABSENT,
    Path,
    Trial,
    check_understood,
    combine,
    groups_of,
    is_plain,
    levels,
    spell,
)
from plantops.train.stale import note_left

Cuts = dict[str, list[tuple[int, Tensor]]]
"""For every tensor that becomes smaller, by its name in the ``state_dict``: (dimension, entries that stay)."""


def remove_channels(
    model: nn.Module,
    plan: Plan,
    channels: Mapping[str, Sequence[int]],
    *,
    optimizer: Optimizer | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Remove channels of sites: filters of the producers, their norms, and the input slices that read them.

    The result computes what ``model`` would with these channels at 0 wherever they are read, in layers that are
    narrower for real: torch's own, with the ``state_dict`` keys, hooks and modes that they had. Trace it anew before
    the next removal.

    Args:
        model: the model of ``plan``, or a copy of it.
        plan: ``plantops.trace(model, example_inputs)``.
        channels: by site name, which of its ``width`` channels, from 0; where ``site.multiple`` > 1 whole blocks of so
            many (``site.block(number)``, neighbours where ``site.outputs`` is empty). One block at least must stay.
        optimizer: over parameters of ``model``; changed in place to hold those of the result. Tensors of its state that
            lie along a parameter are cut as the parameter is (in lists and dictionaries, too, and in optimizers that it
            wraps), numbers stay.
        inplace: change ``model`` itself instead of a deep copy.

    Returns:
        the narrower model.

    Raises:
        KeyError: a name that is no site.
        ValueError: ``channels`` that are out of range, given twice, no whole blocks, or all there are; a plan of
            another model; an optimizer that holds nothing of the model, or whose state does not lie along its
            parameters (Adafactor, LBFGS).
    """
    before = dict(model.named_parameters())
    after, _ = narrowed(model, plan, channels, optimizer, inplace)
    note_left(before, after, "plantops.prune", inplace)
    return after


def narrowed(
    model: nn.Module,
    plan: Plan,
    channels: Mapping[str, Sequence[int]],
    optimizer: Optimizer | None = None,
    inplace: bool = False,
) -> tuple[nn.Module, Cuts]:
    """``remove_channels`` that leaves no note for optimizers which still hold the old parameters; and what was cut."""
    check_plain(model)
    cuts, widths = _cuts(model, [(plan[name], _checked(plan[name], gone)) for name, gone in channels.items()])
    before = dict(model.named_parameters())
    states = {} if optimizer is None else _cut_states(optimizer, before, cuts)
    after = model if inplace else copy.deepcopy(model)
    for name, changes in widths.items():
        layer = after.get_submodule(name)
        vars(layer).update(changes)
        for key, tensor in layer._parameters.items():
            if tensor is not None and f"{name}.{key}" in cuts:
                kept = _kept(tensor.detach(), cuts[f"{name}.{key}"])
                layer._parameters[key] = nn.Parameter(kept, tensor.requires_grad)
        for key, buffer in layer._buffers.items():
            if buffer is not None and f"{name}.{key}" in cuts:
                layer._buffers[key] = _kept(buffer, cuts[f"{name}.{key}"])
    if optimizer is not None:
        _carry(optimizer, before, dict(after.named_parameters()), states)
    return after, cuts


def _checked(site: Site, channels: Sequence[int]) -> set[int]:
    """The numbers of the blocks that ``channels`` are."""
    gone = set(channels)
    if len(gone) != len(channels) or not gone or min(gone) < 0 or max(gone) >= site.width:
        raise ArgumentError(
            f"channels[{site.name!r}] must be different numbers from 0 to {site.width - 1}, got {list(channels)}"
        )
    blocks = {number for number in range(site.blocks()) if gone.intersection(site.block(number))}
    if len(gone) != len(blocks) * site.multiple:
        kind = "site.block(number)" if site.outputs else f"{site.multiple} neighbours"
        raise ArgumentError(f"channels[{site.name!r}] must be whole blocks of {kind}, got {sorted(gone)}")
    if len(gone) == site.width:
        raise ArgumentError(f"channels[{site.name!r}] must leave one of {site.width} at least, got all of them")
    return blocks


def _cuts(model: nn.Module, removals: Sequence[tuple[Site, set[int]]]) -> tuple[Cuts, dict[str, dict[str, int]]]:
    """What becomes smaller, and the new values of the layers' width attributes."""
    inputs: dict[str, set[int]] = defaultdict(set)
    outputs: dict[str, set[int]] = defaultdict(set)
    for site, gone in removals:
        for name in site.producers:
            outputs[name].update(entry for number in gone for entry in site.block(number, name))
            _check(model, site, name, "outputs", site.output(name).width)
        readers: list[Consumer | Channelwise] = [*site.consumers, *site.channelwise]
        for reader in readers:
            inputs[reader.name].update(entry for number in gone for entry in site.read_block(number, reader))
            _check(model, site, reader.name, "inputs", reader.features)
    cuts: Cuts = {}
    widths = {}
    for name in {**inputs, **outputs}:
        layer = model.get_submodule(name)
        if isinstance(layer, _ConvNd) and layer.groups > 1:
            widths[name], own = _cut_groups(layer, inputs[name])
        elif isinstance(layer, (_ConvNd, nn.Linear)):
            widths[name], own = _cut_layer(layer, inputs[name], outputs[name])
        else:
            widths[name], own = _cut_channelwise(layer, inputs[name])
        cuts.update({f"{name}.{key}": cut for key, cut in own.items()})
    return cuts, widths


def _cut_layer(layer: nn.Module, inputs: set[int], outputs: set[int]) -> tuple[dict[str, int], Cuts]:
    """A convolution or linear layer without these inputs and outputs."""
    kind = "channels" if isinstance(layer, _ConvNd) else "features"
    stay_in, stay_out = (
        _staying(_width(layer, side), gone) for side, gone in (("inputs", inputs), ("outputs", outputs))
    )
    first, second = (stay_in, stay_out) if isinstance(layer, _ConvTransposeNd) else (stay_out, stay_in)
    return (
        {f"in_{kind}": len(stay_in), f"out_{kind}": len(stay_out)},
        {"weight": [(0, first), (1, second)], "bias": [(0, stay_out)]},
    )


def _cut_groups(layer: _ConvNd, gone: set[int]) -> tuple[dict[str, int], Cuts]:
    """A grouped convolution without the groups of these inputs."""
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    groups = {feature // inputs for feature in gone}
    assert len(gone) == len(groups) * inputs  # what site.multiple is for
    stay_in = _staying(layer.in_channels, gone)
    stay_out = _staying(layer.out_channels, {group * outputs + k for group in groups for k in range(outputs)})
    return (
        {"in_channels": len(stay_in), "out_channels": len(stay_out), "groups": layer.groups - len(groups)},
        {"weight": [(0, stay_in if isinstance(layer, _ConvTransposeNd) else stay_out)], "bias": [(0, stay_out)]},
    )


def _cut_channelwise(layer: nn.Module, gone: set[int]) -> tuple[dict[str, int], Cuts]:
    """A norm, or an activation with slopes: every tensor that it has, but counters, lies along the channels."""
    attribute, features = _channelwise_width(layer), _width(layer, "inputs")
    stay = _staying(features, gone)
    tensors = {**layer._parameters, **layer._buffers}
    cuts = {key: [(0, stay)] for key, tensor in tensors.items() if tensor is not None and tensor.dim() == 1}
    changes = {attribute: len(stay)}
    if isinstance(layer, nn.GroupNorm):
        changes["num_groups"] = layer.num_groups * len(stay) // features
    return changes, cuts


def _channelwise_width(layer: nn.Module) -> str:
    return next(key for key in ("num_features", "num_channels", "num_parameters") if hasattr(layer, key))


def _width(layer: nn.Module, side: str) -> int:
    if isinstance(layer, (_ConvNd, nn.Linear)):
        return widths_of(layer)[side == "outputs"]
    return int(getattr(layer, _channelwise_width(layer)))


def _check(model: nn.Module, site: Site, name: str, side: str, expected: int) -> None:
    try:
        found = _width(model.get_submodule(name), side)
    except (AttributeError, StopIteration):
        raise ArgumentError(f"plan is of another model: {site.name} needs a layer {name} of the kind traced") from None
    if found != expected:
        raise ArgumentError(f"plan is of another model: {name} must have {expected} {side}, got {found}")


def _staying(count: int, gone: set[int]) -> Tensor:
    return torch.tensor([entry for entry in range(count) if entry not in gone])


def _kept(tensor: Tensor, cuts: list[tuple[int, Tensor]]) -> Tensor:
    """The entries that stay, in the memory format of ``tensor``."""
    last = tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    for dim, stay in cuts:
        tensor = tensor.index_select(dim, stay.to(tensor.device))
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def _cut_states(
    optimizer: Optimizer, parameters: dict[str, nn.Parameter], cuts: Cuts
) -> dict[str, list[dict[str, Any]]]:
    """The state of every parameter of the model that the optimizer holds, cut as the parameter will be: one for each
    of ``levels(optimizer)``."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    held = {
        names[id(one)]: number
        for number, group in enumerate(optimizer.param_groups)
        for one in group["params"]
        if id(one) in names
    }
    if not held:
        raise ArgumentError("optimizer holds no parameter of model")
    check_understood("optimizer", optimizer, {id(parameters[name]) for name in held})
    states = {name: [one.state.get(parameters[name], {}) for one in levels(optimizer)] for name in held}
    small = {name: _kept(parameters[name].detach(), cuts[name]) for name in held if name in cuts}
    tried: dict[int, list[Tensor]] = {}
    for name in small:
        tried.setdefault(held[name], []).append(small[name])
    wanted = [{key for own in states.values() for key in own[level]} for level in range(len(levels(optimizer)))]
    trial = Trial(optimizer, tried, wanted) if any(wanted) else None
    for name, tensor in small.items():
        for level, state in enumerate(states[name]):
            fresh = {} if trial is None else trial.states[level].get(id(tensor), {})
            kind = type(levels(optimizer)[level]).__name__
            states[name][level] = _cut_state(kind, name, parameters[name], tensor, cuts[name], state, fresh)
    return states


def _cut_state(
    kind: str,
    name: str,
    before: Tensor,
    after: Tensor,
    cuts: list[tuple[int, Tensor]],
    state: dict[str, Any],
    fresh: dict[str, Any],
) -> dict[str, Any]:
    """The state of a parameter as it is ``before`` for that which it is ``after``; ``fresh``: what a new parameter of
    this size gets."""

    def cut(path: Path, values: dict[str, Any], value: Any) -> Any:
        if isinstance(value, torch.Size) or is_plain(value):
            return after.shape if value == before.shape else value
        if type(value) in (Tensor, nn.Parameter):
            expected = values["fresh"].shape if isinstance(values["fresh"], Tensor) else after.shape
            if value.dim() and value.shape == before.shape and expected == after.shape:
                return _kept(value, cuts)
            if value.numel() < 2:
                return value
        what = f"a tensor of {list(value.shape)}" if type(value) is Tensor else f"a {type(value).__name__}"
        raise ArgumentError(
            f"optimizer: {kind} keeps {spell(path)}, {what}, for {name} of {list(before.shape)}: it does not lie along "
            "the parameter and cannot be cut; make a new optimizer"
        )

    return {key: combine((key,), {"": value, "fresh": fresh.get(key, ABSENT)}, cut) for key, value in state.items()}


def _carry(
    optimizer: Optimizer,
    before: dict[str, nn.Parameter],
    after: dict[str, nn.Parameter],
    states: dict[str, list[dict[str, Any]]],
) -> None:
    names = {id(parameter): name for name, parameter in before.items()}
    for group in groups_of(optimizer):
        group["params"] = [after.get(names.get(id(p), ""), p) for p in group["params"]]
    for level, one in enumerate(levels(optimizer)):
        for name, own in states.items():
            one.state.pop(before[name], None)
            if own[level]:
                one.state[after[name]] = own[level]
