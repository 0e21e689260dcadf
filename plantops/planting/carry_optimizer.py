"""The state of an optimizer over a model that grew: each tensor put together as its parameter is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plantops.errors import ArgumentError
from plantops.planting.blocks import PLANTED
from plantops.planting.plant import RECORD, Record

# What a planted slice starts with where no optimizer has moved it yet; everything else starts at 0.
_FIRST = {"sum": "initial_accumulator_value", "step_size": "lr"}
# Averages that an optimizer divides by 1 - beta^step, with the position of their beta in ``betas``.
_CORRECTED = {"exp_avg": 0, "exp_avg_sq": 1, "max_exp_avg_sq": 1}


class _Holder:
    """One optimizer's view of a parameter: its state and its group's settings."""

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> None:
        self.parameter, self.group = parameter, group
        self.state: dict[str, Any] = optimizer.state.get(parameter, {})


def carry_optimizer(optimizer: Optimizer, planted: nn.Module, merged: nn.Module, other: Optimizer | None) -> None:
    """See ``carry_state``. Everything is worked out before anything changes."""
    names = _names(planted)
    own = _holders(optimizer, names)
    if not own:
        raise ArgumentError("state holds no parameter of the model that was planted, nor of planted")
    holders = {**(_holders(other, names) if other is not None else {}), **own}
    targets = dict(merged.named_parameters(remove_duplicate=False))
    pieces = _pieces(planted, targets)
    homes = _homes(own, pieces)
    missing = next((target for target in homes.values() if target not in targets), None)
    if missing is not None:
        raise ArgumentError(f"merged is not merge(planted): it has no parameter {missing}")
    states = {
        homes[name]: _grown(homes[name], pieces, holders, holder.group) for name, holder in own.items() if name in homes
    }
    for group in optimizer.param_groups:
        _move(group, names, homes, targets)
    for name in own:
        optimizer.state.pop(own[name].parameter, None)
    for target, entries in states.items():
        if entries:
            optimizer.state[targets[target]] = entries


def _homes(own: dict[str, _Holder], pieces: dict[str, tuple[nn.Module, list[str]]]) -> dict[str, str]:
    """Which parameter of the merged model takes the place of which of ``own``: of the pieces of one the first that is
    held, the old one before the blocks."""
    homes = {}
    for target, (_, sources) in pieces.items():
        held = next((source for source in sources if source in own), None)
        if held is not None:
            homes[held] = target
    made_up = {source for _, sources in pieces.values() for source in sources}
    return {**homes, **{name: name for name in own if name not in made_up}}


def _move(
    group: dict[str, Any], names: dict[int, str], homes: dict[str, str], targets: dict[str, nn.Parameter]
) -> None:
    """The parameters of a group, in their order, and their names where the group has them."""
    labels = group.get("param_names", [None] * len(group["params"]))
    moved = []
    for parameter, label in zip(group["params"], labels, strict=True):
        name = names.get(id(parameter))
        if name is None:
            moved.append((parameter, label))
        elif name in homes:
            moved.append((targets[homes[name]], homes[name]))
    group["params"] = [parameter for parameter, _ in moved]
    if "param_names" in group:
        group["param_names"] = [label for _, label in moved]


def _names(planted: nn.Module) -> dict[int, str]:
    """The names of the parameters before planting and of those of ``planted``, by identity."""
    names = {id(parameter): name for name, parameter in planted.named_parameters()}
    for module in planted.modules():
        record: Record | None = vars(module).get(RECORD)
        if record is not None:
            prefix = next(name for name, other in planted.named_modules() if other is module)
            for name, parameter in record.originals.items():
                names.setdefault(id(parameter), f"{prefix}.{name}" if prefix else name)
    return names


def _holders(optimizer: Optimizer, names: dict[int, str]) -> dict[str, _Holder]:
    return {
        names[id(parameter)]: _Holder(optimizer, group, parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    }


def _pieces(planted: nn.Module, targets: dict[str, nn.Parameter]) -> dict[str, tuple[nn.Module, list[str]]]:
    """For every grown parameter of the merged model its planted layer and the names of what it is made of: the old
    one first, then the blocks."""
    found: dict[str, tuple[nn.Module, list[str]]] = {}
    for name, layer in planted.named_modules():
        if not isinstance(layer, PLANTED):
            continue
        prefix = f"{name}." if name else ""
        for leaf, whole in _merged_leaves(layer, {}).items():
            key = leaf.rpartition(".")[2]
            target = targets.get(prefix + leaf)
            if target is None or target.shape != whole.shape:
                has = "no such parameter" if target is None else list(target.shape)
                raise ArgumentError(
                    f"merged is not merge(planted): expected {prefix}{leaf} of {list(whole.shape)}, got {has}"
                )
            blocks = [f"{key}_{side}" for side in ("out", "in") if layer._parameters.get(f"{key}_{side}") is not None]
            found[prefix + leaf] = (layer, [f"{prefix}{key}", *(prefix + block for block in blocks)])
    return found


def _merged_leaves(layer: nn.Module, tensors: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    """The weight and bias of ``layer.merge()`` with ``tensors`` in the place of its own: what puts them together is
    the layer itself."""
    twin = copy.copy(layer)
    vars(twin)["_parameters"], vars(twin)["_buffers"] = dict(layer._parameters), dict(layer._buffers)
    for key, tensor in tensors.items():
        twin._parameters[key] = tensor  # type: ignore[assignment]
    merged = twin.merge()  # type: ignore[operator]
    own = [key for key in ("weight", "bias") if layer._parameters.get(key) is not None]
    inner = "0." if isinstance(merged, nn.Sequential) else ""  # a fused activation stands behind the layer
    return {inner + key: merged.get_parameter(inner + key) for key in own}


def _grown(
    target: str,
    pieces: dict[str, tuple[nn.Module, list[str]]],
    holders: dict[str, _Holder],
    group: dict[str, Any],
) -> dict[str, Any]:
    """The state of a parameter of the merged model."""
    if target not in pieces:
        return holders[target].state
    layer, sources = pieces[target]
    held = [holders[source] for source in sources if source in holders and holders[source].state]
    entries: dict[str, Any] = {}
    for key in dict.fromkeys(key for holder in held for key in holder.state):
        first = next(holder for holder in held if holder.state.get(key) is not None or holder is held[-1])
        value = first.state.get(key)
        if not isinstance(value, Tensor) or value.dim() == 0:
            entries[key] = value
            continue
        if value.shape != first.parameter.shape:
            raise ArgumentError(
                f"state keeps {key!r} of {list(value.shape)} for {target} of {list(first.parameter.shape)}: it does "
                "not lie along the parameter and cannot be carried; make a new optimizer"
            )
        fill = group.get(_FIRST[key], 0.0) if key in _FIRST else 0.0
        tensors = {}
        for source in sources:
            own = source.rpartition(".")[2]
            tensors[own] = torch.full_like(getattr(layer, own), float(fill), dtype=value.dtype)
            holder = holders.get(source)
            if holder is not None and isinstance(holder.state.get(key), Tensor):
                tensors[own] = holder.state[key] * _correction(key, holder, held[0])
        leaf = next(leaf for leaf in _merged_leaves(layer, {}) if target.endswith(leaf))
        entries[key] = _merged_leaves(layer, tensors)[leaf].detach()
    return entries


def _correction(key: str, block: _Holder, old: _Holder) -> float:
    """The factor that keeps ``moment / (1 - beta^step)`` when the moment of ``block`` is counted by the steps of
    ``old``."""
    if block is old or key not in _CORRECTED or "step" not in block.state or "betas" not in block.group:
        return 1.0

    def corrected(holder: _Holder) -> float:
        if key == "exp_avg" and "mu_product" in holder.state:  # NAdam
            return 1 - float(holder.state["mu_product"])
        return 1 - holder.group["betas"][_CORRECTED[key]] ** float(holder.state["step"])

    return corrected(old) / corrected(block)
