"""Remove the filters that a network can best do without, until it is as small, or as bad, as it may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from plantops._arguments import check_choice, check_minimum, check_range, check_type
from plantops.errors import ArgumentError
from plantops.graph import Plan, trace
from plantops.models import count_call_macs, count_parameters
from plantops.pruning.cut import narrowed, remove_channels
from plantops.pruning.scores import (
    Loss,
    Samples,
    batches_of,
    call,
    loss_increases,
    magnitudes,
    mean_loss,
    sample_count,
)

CRITERIA = ("loss", "loss_per_parameter", "loss_per_mac", "magnitude")


@dataclass(frozen=True)
class PruneStep:
    """One removal: the channels taken from each site (numbered as the network was then), and what is left."""

    removed: dict[str, list[int]]
    parameters: int
    macs: int
    loss: float


@dataclass(frozen=True)
class PruneResult:
    """A pruned network.

    Attributes:
        model: plain torch, narrower.
        steps: what was removed, in order.
        widths: (before, after) of every site.
        parameters, macs, loss: (before, after); the loss is the mean over the samples, nothing retrained.
    """

    model: nn.Module
    steps: list[PruneStep]
    widths: dict[str, tuple[int, int]]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    loss: tuple[float, float]


@dataclass(frozen=True)
class _Budget:
    parameters: int | None
    macs: int | None
    loss: float | None

    def kept(self, parameters: int, macs: int) -> bool:
        """Whether a network of this size is small enough; without a budget of size none ever is."""
        sized = self.parameters is not None or self.macs is not None
        return (
            sized
            and (self.parameters is None or parameters <= self.parameters)
            and (self.macs is None or macs <= self.macs)
        )


@dataclass(frozen=True)
class _Piece:
    """Channels of a site that go together, and what the network would pay for it."""

    price: float
    site: str
    channels: tuple[int, ...]


def prune(
    model: nn.Module,
    plan: Plan,
    samples: tuple[Any, Tensor] | Iterable[tuple[Any, Tensor]],
    *,
    max_parameters: int | None = None,
    max_macs: int | None = None,
    max_loss_increase: float | None = None,
    criterion: str = "loss",
    share: float = 0.1,
    multiple_of: int = 1,
    min_channels: int = 1,
    loss: Loss = F.cross_entropy,
    at_once: int = 16,
    optimizer: Optimizer | None = None,
    inplace: bool = False,
    step_done: Callable[[PruneStep], None] | None = None,
) -> PruneResult:
    """Remove channels of the sites of ``plan``, the cheapest first, step by step.

    Each step scores every channel anew, removes at most ``share`` of them and looks whether a budget is met: pruning
    ends with the first network of at most ``max_parameters`` and ``max_macs`` (each where given), or with the last one
    whose loss over the samples is at most ``max_loss_increase`` above that at the start: a step that goes too far is
    halved until it does not. Channels of one site that share residual sums, gates or grouped convolutions go together,
    in all layers that they run through.

    Args:
        model: a trained, plain model.
        plan: ``plantops.trace(model, example_inputs)``; its sites are pruned (``Plan`` takes a choice of them).
        samples: (inputs, labels), or batches of such: randomly drawn training samples. Inputs are a tensor, a tuple of
            the positional arguments of ``forward``, or a mapping of its keyword arguments.
        max_parameters, max_macs, max_loss_increase: budgets, one at least; MACs are for one sample.
        criterion: ``loss``: the increase of the loss when a channel is switched off, as published;
            ``loss_per_parameter``, ``loss_per_mac``: over what its removal saves; ``magnitude``: root mean square of
            its filters' weights.
        share: of the channels that are left, to remove before they are scored again, above 0 to 1.
        multiple_of: widths become multiples of it (where they stay above it), for kernels that pay for the rest.
        min_channels: no site becomes narrower.
        loss: mean loss of a batch from the model's output and labels. Labels that are the ``ignore_index`` of one of
            torch's losses count for nothing; these losses get the ``logits`` of an output that is no tensor.
        at_once: channels that are switched off in one pass (memory).
        optimizer: over parameters of ``model``; changed in place to go on with the result, see ``remove_channels``.
        inplace: change ``model`` itself instead of a deep copy.
        step_done: told about every removal.

    Returns:
        the network (``model`` itself if nothing was removed) and what was removed. Where no more can be removed, a
        budget may be missed: compare ``parameters``.

    Raises:
        ValueError: no budget, an argument out of range, a plan of another model; samples that are no batches or hold
            no label; a loss or a score that is NaN; a model that cannot be called once it is narrower.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    check_type("plan", plan, Plan, "a plan of plantops.trace")
    batches = batches_of(samples)
    budget = _Budget(max_parameters, max_macs, max_loss_increase)
    _check(budget, criterion, share, multiple_of, min_channels)
    example = batches[0][0]
    current = _again(model, plan, example)
    for name, site in plan.items():
        if name not in current:
            raise ArgumentError(
                f"plan must hold sites that plantops.graph.trace finds in the model: {name} is of another model, or "
                "was named by hand, and those cannot be pruned"
            )
        if current[name].width != site.width:
            raise ArgumentError(f"plan is of another model: it has {name} with {site.width} channels")
    start = mean_loss(model, batches, loss)
    before = _size(model, example)
    steps: list[PruneStep] = []
    size = before
    own = inplace
    while not budget.kept(*size):
        scores = magnitudes(model, current)
        if criterion != "magnitude":
            scores = loss_increases(model, current, batches, loss=loss, at_once=at_once)
        chosen = _choose(_pieces(current, scores, criterion, multiple_of, min_channels), current, size, budget, share)
        now = start
        while chosen:
            now = _loss_after(model, current, _by_site(chosen), batches, loss)
            if max_loss_increase is None or now - start <= max_loss_increase:
                break
            chosen = chosen[: len(chosen) // 2]
        if not chosen:
            break
        removed = _by_site(chosen)
        model = remove_channels(model, current, removed, optimizer=optimizer, inplace=own)
        current, own = _again(model, plan, example), True
        size = _size(model, example)
        steps.append(PruneStep(removed, *size, now))
        if step_done is not None:
            step_done(steps[-1])
    end = steps[-1].loss if steps else start
    gone = {name: sum(len(step.removed.get(name, ())) for step in steps) for name in plan}
    widths = {name: (site.width, site.width - gone[name]) for name, site in plan.items()}
    return PruneResult(model, steps, widths, (before[0], size[0]), (before[1], size[1]), (start, end))


def _check(budget: _Budget, criterion: str, share: float, multiple_of: int, min_channels: int) -> None:
    if budget.parameters is None and budget.macs is None and budget.loss is None:
        raise ArgumentError("max_parameters, max_macs or max_loss_increase must be given, got none of them")
    for name, value in (
        ("max_parameters", budget.parameters),
        ("max_macs", budget.macs),
        ("max_loss_increase", budget.loss),
    ):
        if value is not None:
            check_range(name, value, lambda most: most >= 0, "0 or more")
    check_choice("criterion", criterion, CRITERIA)
    check_range("share", share, lambda part: 0 < part <= 1, "above 0 to 1")
    for name, value in (("multiple_of", multiple_of), ("min_channels", min_channels)):
        check_minimum(name, value, 1)


def _size(model: nn.Module, inputs: Any) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for one sample."""
    return count_parameters(model), count_call_macs(model, lambda: call(model, inputs)) // sample_count(inputs)


def _loss_after(
    model: nn.Module, plan: Plan, removed: Mapping[str, Sequence[int]], batches: Samples, loss: Loss
) -> float:
    """The loss of ``model`` without these channels."""
    try:
        return mean_loss(narrowed(model, plan, removed)[0], batches, loss)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArgumentError(f"model cannot be called without channels of {', '.join(removed)}: {reason}") from error


def _again(model: nn.Module, plan: Plan, inputs: Any) -> Plan:
    """The sites of ``plan`` as they are now; without those that are so narrow that they are not told from what they
    meet (one channel, which any tensor of one channel is broadcast over)."""
    return Plan([site for site in trace(model, inputs, grow_linear=True).values() if site.name in plan])


def _pieces(
    plan: Plan, scores: Mapping[str, Tensor], criterion: str, multiple_of: int, min_channels: int
) -> list[_Piece]:
    """What can be removed, the cheapest first; pieces of one site in an order in which they can go."""
    pieces: list[_Piece] = []
    for name, site in plan.items():
        grain = math.lcm(site.multiple, multiple_of)
        order = torch.argsort(scores[name], stable=True).tolist()
        saved = {"loss_per_parameter": site.parameters_per_channel, "loss_per_mac": site.macs_per_channel}
        at, width, price = 0, site.width, -math.inf
        while width > 0:
            take = width % grain or grain
            if width - take < max(min_channels, 1):
                break
            blocks = order[at : at + take // site.multiple]
            channels = [channel for block in blocks for channel in site.block(block)]
            own = float(scores[name][blocks].sum()) / (saved.get(criterion, 1) * (take if criterion in saved else 1))
            if criterion == "magnitude":
                own /= len(blocks)
            price = max(price, own)  # a rounded-off remainder is small; what follows must not come before it
            pieces.append(_Piece(price, name, tuple(sorted(channels))))
            at, width = at + len(blocks), width - take
    return sorted(pieces, key=lambda piece: piece.price)


def _choose(pieces: list[_Piece], plan: Plan, size: tuple[int, int], budget: _Budget, share: float) -> list[_Piece]:
    """The pieces of one step: the cheapest, until the budget is met by estimate, or the step's share is used up."""
    limit = max(1, int(share * sum(site.width for site in plan.values())))
    parameters, macs = size
    chosen: list[_Piece] = []
    taken = 0
    for piece in pieces:
        if budget.kept(parameters, macs) or (chosen and taken + len(piece.channels) > limit):
            break
        site = plan[piece.site]
        chosen.append(piece)
        taken += len(piece.channels)
        parameters -= len(piece.channels) * site.parameters_per_channel
        macs -= len(piece.channels) * site.macs_per_channel
    return chosen


def _by_site(pieces: list[_Piece]) -> dict[str, list[int]]:
    removed: dict[str, list[int]] = {}
    for piece in pieces:
        removed[piece.site] = sorted([*removed.get(piece.site, []), *piece.channels])
    return removed
