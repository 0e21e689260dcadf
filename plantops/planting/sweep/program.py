"""What one candidate computes: from values that the trunk's pass has kept to its logits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from plantops.graph import Site
from plantops.graph.forward import Forward, Run, Step, apply_layer
from plantops.nn import PlantedBatchNorm1d, PlantedBatchNorm2d, PlantedConv2d, PlantedLinear
from plantops.planting.blocks import PLANTED
from plantops.planting.sweep import layers


@dataclass(frozen=True)
class Program:
    """A candidate's own part of the forward.

    Attributes:
        kept: names of the trunk's values that it starts from.
        steps: (name of the value, what computes it from earlier values), in order; the last gives the logits.
        delta: the planted slices alone are computed; otherwise whole layers from the site on.
    """

    kept: tuple[str, ...]
    steps: tuple[tuple[str, Run], ...]
    delta: bool

    def __call__(self, kept: Mapping[str, Tensor]) -> Tensor:
        values: dict[str, Any] = dict(kept)
        for name, run in self.steps:
            values[name] = result = run(values)
        return result


def make_program(forward: Forward, sites: Sequence[Site], planted: nn.Module) -> Program:
    """The program of the candidate ``planted``, grown at ``sites`` of the model that ``forward`` follows.

    One site in a chain: the ``out`` block on the producer's input, the ``in`` block on the new channels, added to the
    consumer's kept output, and the trunk behind the consumer. Elsewhere, and for several sites: every layer that
    depends on them, whole.
    """
    program = _delta_program(forward, sites[0], planted) if len(sites) == 1 else None
    return _suffix_program(forward, sites, planted) if program is None else program


def _delta_program(forward: Forward, site: Site, planted: nn.Module) -> Program | None:
    if not site.chain:
        return None
    producer = planted.get_submodule(site.name)
    reader = planted.get_submodule(site.consumers[0].name)
    if not all(_supported(layer) for layer in (producer, reader)):
        return None
    first, consumer = forward.calls(site.name), forward.calls(site.consumers[0].name)
    behind = {step.name for step in forward.behind([first.name])}
    path = [step for step in forward.before(consumer.reads) if step.name in behind]
    rest = forward.behind([consumer.name])
    inside = {first.name, *(step.name for step in path)}
    alone = behind == {*(step.name for step in (*path, *rest)), consumer.name}
    if not alone or any(set(step.reads) - inside for step in path) or any(inside & set(step.reads) for step in rest):
        return None
    if len(first.reads) != 1 or len(consumer.reads) != 1:
        return None

    steps: list[tuple[str, Run]] = []
    fused, done = _absorb(forward, first, isinstance(producer, PlantedConv2d))
    steps.append((done, apply_layer(first, layers.out_block(producer, *fused))))  # type: ignore[arg-type]
    for step in _following(path, done, forward):
        module = None if step.module is None else planted.get_submodule(step.module)
        if isinstance(module, PLANTED):
            if type(module) not in (PlantedBatchNorm1d, PlantedBatchNorm2d):
                return None
            steps.append((step.name, apply_layer(step, layers.new_norm(module))))  # type: ignore[arg-type]
        else:
            steps.append((step.name, forward.run_of(step)))
    fused, done = _absorb(forward, consumer, isinstance(reader, PlantedConv2d))
    add, new, old = layers.in_block(reader, *fused), consumer.reads[0], consumer.name  # type: ignore[arg-type]
    steps.append((done, lambda values: add(values[new], values[old])))
    remaining = _following(rest, done, forward)
    steps += _trunk_steps(forward, remaining)
    own = {step.name for step in rest} | {old}
    outside = {name for step in rest for name in step.reads if name not in own}
    kept = tuple(dict.fromkeys((first.reads[0], old, *sorted(outside))))
    return Program(kept, tuple(steps), True)


def _suffix_program(forward: Forward, sites: Sequence[Site], planted: nn.Module) -> Program:
    starts = list(dict.fromkeys(forward.calls(name).name for site in sites for name in site.producers))
    touched = {*starts, *(step.name for step in forward.behind(starts))}
    steps: list[tuple[str, Run]] = []
    ordered = [step for step in forward.steps if step.name in touched]
    for step in ordered:
        module = None if step.module is None else planted.get_submodule(step.module)
        own = isinstance(module, PLANTED)
        steps.append((step.name, apply_layer(step, module) if own else forward.run_of(step)))  # type: ignore[arg-type]
    kept = tuple(dict.fromkeys(name for step in ordered for name in step.reads if name not in touched))
    return Program(kept, tuple(steps), False)


def _supported(layer: nn.Module) -> bool:
    return type(layer) is PlantedLinear or (type(layer) is PlantedConv2d and layer.groups == 1)


def trunk_program(forward: Forward, kept: Collection[str], fuse: bool) -> tuple[tuple[str, Run], ...]:
    """What computes the values ``kept`` from the model's input.

    A value must not depend on who needs which other ones. So layers are run step by step, but for those (``fuse``) of
    which the compiled kernels give the same bits together with the activation and the pooling behind them and alone.
    """
    found: list[tuple[str, Run]] = []
    covered: set[str] = set()
    for step in forward.before(kept):
        if step.name in covered or step.name == forward.input:
            continue
        layer = None if step.module is None else forward.model.get_submodule(step.module)
        if fuse and layers.is_native(layer) and _absorb(forward, step, True)[1] != step.name:
            for name, start, run in _fused_steps(forward, step, layer, kept):
                found.append((name, run))
                covered.update(_chain(forward, start, name))
        elif type(layer) in (nn.Conv2d, nn.Linear):
            found.append((step.name, apply_layer(step, layers.before_activation(layer))))  # type: ignore[arg-type]
        else:
            found.append((step.name, forward.run_of(step)))
    return tuple(found)


def _fused_steps(forward: Forward, step: Step, layer: nn.Conv2d, kept: Collection[str]) -> list[tuple[str, str, Run]]:
    """A convolution and what follows it, in one call up to a value that is kept and in one behind it:
    (value, first step that it covers, run)."""
    (activation, pool), done = _absorb(forward, step, True, kept)
    found = [(done, step.name, apply_layer(step, layers.whole(layer, activation, pool, "native")))]
    if done == step.name:
        (activation, pool), done = _absorb(forward, step, True, [name for name in kept if name != step.name])
        if pool > 1:  # an activation alone is left to its layer
            run = layers.behind(layer, activation, pool)
            found.append((done, step.name, lambda values: run(values[step.name])))
    return found


def _trunk_steps(forward: Forward, steps: list[Step]) -> list[tuple[str, Run]]:
    """Steps of the trunk; plain convolutions take along the activation and pooling behind them."""
    found: list[tuple[str, Run]] = []
    covered: set[str] = set()
    for step in steps:
        if step.name in covered:
            continue
        layer = None if step.module is None else forward.model.get_submodule(step.module)
        if layers.is_plain(layer):
            fused, done = _absorb(forward, step, True)
            found.append((done, apply_layer(step, layers.whole(layer, *fused))))
            covered.update(_chain(forward, step.name, done))
        else:
            found.append((step.name, forward.run_of(step)))
    return found


def _absorb(forward: Forward, step: Step, convolution: bool, kept: Collection[str] = ()) -> tuple[tuple[str, int], str]:
    """ReLU and max pooling that follow ``step`` and nothing else reads: ((activation, max_pool), last value's name).

    Values in ``kept`` are needed themselves: nothing is taken along behind them.
    """
    activation, pool, name = "none", 1, step.name
    if not convolution or name in kept:
        return (activation, pool), name
    following = _only_user(forward, name)
    if following is not None and _is_relu(forward, following):
        activation, name = "relu", following.name
        following = None if name in kept else _only_user(forward, name)
    if following is not None:
        window = _pool_window(forward, following)
        if window is not None:
            pool, name = window, following.name
    return (activation, pool), name


def _only_user(forward: Forward, name: str) -> Step | None:
    users = forward.users(name)
    return users[0] if len(users) == 1 and name != forward.output else None


def _is_relu(forward: Forward, step: Step) -> bool:
    if step.module is not None:
        return type(forward.model.get_submodule(step.module)) is nn.ReLU
    return step.function in (F.relu, "relu") or getattr(step.function, "__name__", "") == "relu"


def _pool_window(forward: Forward, step: Step) -> int | None:
    """m where ``step`` is a max pooling by m that the op can do, else None."""
    layer = None if step.module is None else forward.model.get_submodule(step.module)
    if type(layer) is not nn.MaxPool2d or layer.ceil_mode or layer.return_indices:
        return None
    pairs = [value if isinstance(value, tuple) else (value,) * 2 for value in (layer.kernel_size, layer.stride)]
    window = pairs[0][0]
    square = all(value == window for pair in pairs for value in pair)
    plain = layer.padding in (0, (0, 0)) and layer.dilation in (1, (1, 1))
    return window if square and plain and 1 <= window <= 15 else None


def _chain(forward: Forward, start: str, end: str) -> list[str]:
    """The names from ``start`` to ``end``, each the only user of the one before."""
    names = [start]
    while names[-1] != end:
        names.append(forward.users(names[-1])[0].name)
    return names


def _following(steps: list[Step], done: str, forward: Forward) -> list[Step]:
    """Those of ``steps`` that are computed after the value ``done``, which covers what led to it."""
    names = [step.name for step in forward.steps]
    return [step for step in steps if names.index(step.name) > names.index(done)]
