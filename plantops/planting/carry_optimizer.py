"""The state of an optimizer over a model that grew: each tensor put together as its parameter is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.planting.blocks import PLANTED
from plantops.planting.plant import RECORD, Record
from plantops.train.bias_correction import Corrections
from plantops.train.optimizer_state import (
    ABSENT,
    Path,
    State,
    Trial,
    check_understood,
    combine,
    groups_of,
    is_plain,
    kind,
    levels,
    spell,
)

_STILL = 0.05
"""How far, over its norm, a parameter without gradient may move in the first step."""
Pieces = dict[str, tuple[nn.Module, list[str]]]


@dataclass
class _Held:
    """A parameter that an optimizer holds, with the settings of its group."""

    parameter: nn.Parameter
    group: dict[str, Any]
    number: int
    states: list[State] = field(default_factory=list)


def carry_optimizer(optimizer: Optimizer, planted: nn.Module, merged: nn.Module, other: Optimizer | None) -> None:
    """See ``carry_state``. Everything is worked out before anything changes."""
    names = _names(planted)
    own = _held(optimizer, names)
    if not own:
        raise ArgumentError("state holds no parameter of the model that was planted, nor of planted")
    check_understood("state", optimizer, {id(one.parameter) for one in own.values()})
    _add_states(own, levels(optimizer))
    brought: dict[str, _Held] = {}
    if other is not None:
        brought = _held(other, names)
        check_understood("planted_state", other, {id(one.parameter) for one in brought.values()})
        _check_modes(optimizer, other)
        _add_states(brought, _counterparts(optimizer, other))
    targets = dict(merged.named_parameters(remove_duplicate=False))
    pieces = _pieces(planted, targets)
    homes = _homes(own, pieces)
    missing = next((target for target in homes.values() if target not in targets), None)
    if missing is not None:
        raise ArgumentError(f"merged is not merge(planted): it has no parameter {missing}")
    grown = _Growth(optimizer, {**brought, **own}, pieces, homes, targets)
    states = {home: [grown.state(home, level) for level in range(len(grown.levels))] for home in homes.values()}
    for group in groups_of(optimizer):
        _move(group, names, homes, targets)
    for level, one in enumerate(levels(optimizer)):
        for name in own:
            one.state.pop(own[name].parameter, None)
        for target, entries in states.items():
            if entries[level]:
                one.state[targets[target]] = entries[level]


def _held(optimizer: Optimizer, names: dict[int, str]) -> dict[str, _Held]:
    return {
        names[id(parameter)]: _Held(parameter, group, number)
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
        if id(parameter) in names
    }


def _add_states(held: Mapping[str, _Held], sources: Sequence[Optimizer | None]) -> None:
    for one in held.values():
        one.states = [{} if source is None else source.state.get(one.parameter, {}) for source in sources]


def _counterparts(optimizer: Optimizer, other: Optimizer) -> list[Optimizer | None]:
    """For each level of ``optimizer`` the one of ``other`` that keeps the same things. One of them may be wrapped, the
    other not."""
    mine, theirs = levels(optimizer), levels(other)
    found: list[Optimizer | None] = []
    for one in mine:
        fits = (a for a in theirs if a not in found and (isinstance(a, type(one)) or isinstance(one, type(a))))
        found.append(next(fits, None))
    if None in found and any(one not in found for one in theirs):
        raise ArgumentTypeError(
            f"planted_state must be of the kind of state, {kind(optimizer)}, got {kind(other)}: neither knows what the "
            "other keeps. Leave planted_state out (planted slices then begin as in a new optimizer), or make a new one"
        )
    return found


def _check_modes(optimizer: Optimizer, other: Optimizer) -> None:
    """A schedule-free optimizer keeps other weights in the model while it trains than while it is evaluated."""
    modes = [{bool(g["train_mode"]) for g in groups_of(one) if "train_mode" in g} for one in (optimizer, other)]
    if all(modes) and modes[0] != modes[1]:
        words = ["training" if True in mode else "evaluation" for mode in modes]
        raise ArgumentError(
            f"state is in {words[0]} mode, planted_state in {words[1]} mode, so the slices are not of one point: call "
            "train() of both, or eval() of both, before plantops.merge"
        )


def _homes(own: dict[str, _Held], pieces: dict[str, tuple[nn.Module, list[str]]]) -> dict[str, str]:
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


class _Growth:
    """Puts the state of the parameters of the merged model together."""

    def __init__(
        self, optimizer: Optimizer, held: dict[str, _Held], pieces: Pieces, homes: dict[str, str],
        targets: dict[str, nn.Parameter],
    ) -> None:  # fmt: skip
        self.optimizer, self.levels = optimizer, levels(optimizer)
        self.held, self.pieces, self.targets = held, pieces, targets
        self._home = {target: held[name] for name, target in homes.items()}
        self._corrections: dict[int, Corrections] = {}
        tried: dict[int, list[Tensor]] = {}
        for target, home in self._home.items():
            if target in pieces:
                self._check_leaves(target)
                parts = [self._piece(target, source) for source in pieces[target][1]]
                tried.setdefault(home.number, []).extend([targets[target], *parts])
        wanted = [
            {key for one in self._home.values() for key in one.states[level]} for level in range(len(self.levels))
        ]
        self._trial = Trial(optimizer, tried, wanted)

    def _piece(self, target: str, source: str) -> Tensor:
        """The planted layer's own tensor of this name: the trunk's, or a block."""
        tensor = getattr(self.pieces[target][0], source.rpartition(".")[2])
        assert isinstance(tensor, Tensor)
        return tensor

    def state(self, target: str, level: int) -> State:
        """The state at this level of a parameter of the merged model."""
        if target not in self.pieces:
            return self._home[target].states[level]
        layer, sources = self.pieces[target]
        held = {source: self.held[source] for source in sources if source in self.held}
        with_state = {source: one for source, one in held.items() if one.states[level]}
        if not with_state:
            return {}
        first = next(iter(with_state))
        whole = self.targets[target]
        fresh = self._trial.states[level]
        shapes = {source: self._piece(target, source).shape for source in sources}
        leaf = next(leaf for leaf in _merged_leaves(layer, {}) if target.endswith(leaf))

        def put_together(path: Path, values: dict[str, Any], lead: Any) -> Any:
            trial = values[""]
            values = {source: values[source] for source in sources}
            there = {source: value for source, value in values.items() if isinstance(value, Tensor)}
            if isinstance(lead, torch.Size):
                return whole.shape if lead == shapes[first] else lead
            if not isinstance(lead, Tensor):
                return lead
            along = all(value.shape == shapes[source] for source, value in there.items())
            if along and lead.dim() and not (isinstance(trial, Tensor) and trial.shape != whole.shape):
                tensors = {}
                for source in sources:
                    trained = with_state.get(source)
                    block = trained if trained is not None and path[0] in trained.states[level] else None
                    if source not in there or (block is None and self._trial.moved > _STILL):
                        raise self._unknown(level, path, source)
                    tensors[source.rpartition(".")[2]] = there[source]
                    if source != first:
                        tensors[source.rpartition(".")[2]] = self._adjusted(
                            level, there[source], path, whole, block, with_state[first]
                        )
                if not lead.is_floating_point() and not lead.is_complex():  # masks: parameters are floating point
                    whole_mask = _merged_leaves(layer, {key: one.double() for key, one in tensors.items()})[leaf]
                    return whole_mask.detach().to(lead.dtype)
                return _merged_leaves(layer, tensors)[leaf].detach()
            if all(value.numel() < 2 for value in there.values()):
                return lead
            raise self._refused(level, path, f"a tensor of {list(lead.shape)}", target, list(shapes[first]))

        wanted = dict.fromkeys(key for one in with_state.values() for key in one.states[level])
        entries = {}
        for key in wanted:
            # What stays one value for the whole parameter, such as a count, is the old slices', who come first.
            own = {source: one.states[level][key] for source, one in with_state.items() if key in one.states[level]}
            begins = {source: fresh.get(id(self._piece(target, source)), {}).get(key, ABSENT) for source in sources}
            whole_begins = {"": fresh.get(id(whole), {}).get(key, ABSENT)}
            entries[key] = combine(
                (key,), {**own, **{s: b for s, b in begins.items() if s not in own}, **whole_begins}, put_together
            )
        return entries

    def _check_leaves(self, target: str) -> None:
        """Refuse objects and packed tensors before anything is tried: a step of theirs may compile."""
        for source in self.pieces[target][1]:
            states = self.held[source].states if source in self.held else []
            for level, state in enumerate(states):

                def check(path: Path, values: dict[str, Any], lead: Any, level: int = level) -> None:
                    if type(lead) not in (Tensor, nn.Parameter, torch.Size) and not is_plain(lead):
                        raise self._refused(level, path, f"a {type(lead).__name__}", target)

                for key, value in state.items():
                    combine((key,), {"": value}, check)

    def _adjusted(self, level: int, value: Tensor, path: Path, like: Tensor, block: _Held | None, old: _Held) -> Tensor:
        """A block's tensor, made to fit the count of the old slices; ``block``: None where no step was made."""
        if level not in self._corrections:
            self._corrections[level] = Corrections(self.levels[level], old.number)
        made = ({"step": self._trial.steps}, old.group) if block is None else (block.states[level], block.group)
        counted = (old.states[level], old.group)
        return self._corrections[level].adjusted(value, path, like, made, counted, block is not None)

    def _refused(self, level: int, path: Path, what: str, target: str, shape: list[int] | None = None) -> ArgumentError:
        of = "" if shape is None else f" of {shape}"
        return ArgumentError(
            f"state: {type(self.levels[level]).__name__} keeps {spell(path)}, {what}, for {target}{of}: it does not "
            "lie along the parameter and cannot be carried; make a new optimizer"
        )

    def _unknown(self, level: int, path: Path, source: str) -> ArgumentError:
        error = self._trial.error
        why = "" if error is None else f" (a trial step ends in {type(error).__name__}: {error})"
        if self._trial.moved > _STILL:
            why = f" (its first step moves weights that have no gradient, by {self._trial.moved:.2g} of their norm)"
        return ArgumentError(
            f"state: what {type(self.levels[level]).__name__} begins {spell(path)} with for a new parameter such as "
            f"{source} is not known{why}; give planted_state, or make a new optimizer"
        )
