"""``plantops.trace``: what the graph says can grow, and the proof by growing it once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from plantops.errors import ArgumentError
from plantops.graph import Group, Plan, Site
from plantops.graph import trace as trace_graph
from plantops.graph.groups import group_list
from plantops.graph.inputs import arguments, map_tensors, tensors_in
from plantops.planting.check import PlantingError, evaluate, tensors_of
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import planted_parameters

Call = tuple[tuple[Any, ...], dict[str, Any]]


def trace(
    model: nn.Module,
    example_inputs: Any = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    grow_linear: bool = True,
    groups: Iterable[Group] = (),
    verify: bool = True,
) -> Plan:
    """Find the sites of ``model`` that can grow, and grow them once to see that they can.

    The sites come from ``plantops.graph.trace``, which looks at the forward alone; its text lists what is followed and
    what is refused. With ``verify`` a copy of the model then grows at all sites at once, by the fewest channels that
    each takes, and runs four times in ``eval()``: as it is, planted with ``zero_in`` (the same outputs), with random
    planted blocks, and merged (the same outputs as planted). Only if that fails every site is tried alone, and those
    that fail are refused, with the reason. This costs a copy of the model and four forwards of the example inputs, so
    give one sample. Example inputs that hold one value only are replaced by noise. The copy has the model's forward
    hooks, which are called: a site that they do not fit is refused.

    ``verify`` is left out where there are no numbers to compare: tensors on the meta device, or fake ones. A closer
    look, with a training step and the trunk's bits, is ``plantops.planting.verify``.

    Args:
        model, example_inputs, example_kwargs, grow_linear: as in ``plantops.graph.trace``.
        groups: sites named by hand, for layers whose channels cannot be followed; each takes the place of the traced
            sites of its producers. They are as good as their description: keep ``verify`` on.
        verify: run the grown model.

    Raises:
        TypeError, ValueError: as ``plantops.graph.trace``; a group that does not fit the model, or that fails.
    """
    groups = group_list(groups)
    plan = trace_graph(model, example_inputs, example_kwargs=example_kwargs, grow_linear=grow_linear, groups=groups)
    call = arguments(example_inputs, example_kwargs)
    if not verify or not plan or not _has_numbers(model, call):
        return plan
    call = tuple(map_tensors(_lively, part) for part in call)
    if _problem(model, list(plan.values()), call) is None:
        return plan
    wrong = {site.name: _problem(model, [site], call) for site in plan.values()}
    for group in groups:
        reason = wrong[plan[group.producers[0]].name]
        if reason is not None:
            raise ArgumentError(f"groups: {', '.join(group.producers)} cannot grow as described: {reason}")
    failed = {
        producer: f"verification failed: {reason}"
        for name, reason in wrong.items()
        if reason is not None
        for producer in plan[name].producers
    }
    return Plan([site for site in plan.values() if wrong[site.name] is None], {**plan.refusals, **failed})


def _has_numbers(model: nn.Module, call: Call) -> bool:
    tensors = [*model.parameters(), *model.buffers(), *tensors_in(call)]
    return not any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in tensors)


def _lively(tensor: Tensor) -> Tensor:
    """Noise in the place of a floating-point tensor of one value, which shows too little."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or bool((tensor != tensor.flatten()[0]).any()):
        return tensor
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)


def _problem(model: nn.Module, sites: list[Site], call: Call) -> str | None:
    """What goes wrong when ``model`` grows at ``sites``, in words; None when nothing does."""
    work = copy.deepcopy(model)
    devices = {tensor.device for tensor in (*model.parameters(), *tensors_in(call)) if tensor.is_cuda}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        before = _outputs(work, call)
        try:
            plant(work, sites, {site.name: site.multiple for site in sites}, inplace=True)
            _compare(before, _outputs(work, call), "planting")
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for block in planted_parameters(work):
                    block.add_(torch.randn(block.shape, generator=generator).to(block), alpha=0.1)
            planted = _outputs(work, call)
            _compare(planted, _outputs(merge(work, inplace=True), call), "merging")
        except (PlantingError, RuntimeError, ValueError, TypeError, IndexError) as error:
            return f"{type(error).__name__}: {error}".split("\n")[0]
    return None


def _outputs(model: nn.Module, call: Call) -> list[Tensor]:
    torch.manual_seed(0)
    return [tensor for tensor in tensors_of(evaluate(model, *call)) if tensor.is_floating_point()]


def _compare(old: list[Tensor], new: list[Tensor], what: str) -> None:
    """Equal up to the square root of the rounding, far below what a channel in the wrong place does."""
    for a, b in zip(old, new, strict=True):
        limit = torch.finfo(a.dtype).eps ** 0.5
        scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 1.0
        if a.shape != b.shape or not torch.allclose(a, b, rtol=limit, atol=limit * scale, equal_nan=True):
            raise PlantingError(f"{what} changes the outputs by more than {limit * scale:.3g}")
