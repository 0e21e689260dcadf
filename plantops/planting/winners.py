"""Which candidates of a round the network grows by, and the network grown by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from plantops.errors import ArgumentError
from plantops.planting.candidate import Candidate, Student, Surroundings, plant_proposal
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import trunk_state
from plantops.train.loop import load_tensors


class InOnePlace(ArgumentError):
    """Blocks of two sites that lie in one place of a layer."""


def ranked(candidates: Sequence[Candidate], loss: float, select: str) -> list[Candidate]:
    """The candidates with a smaller held-out loss than the network as it is, the best first.

    ``loss``: the smallest held-out loss; ``loss_per_parameter``: the largest decrease per added parameter. The first in
    execution order wins a tie.
    """
    better = [candidate for candidate in candidates if candidate.loss < loss]
    if select == "loss":
        return sorted(better, key=lambda candidate: candidate.loss)
    return sorted(better, key=lambda candidate: (candidate.loss - loss) / candidate.added_parameters)


def grown(around: Surroundings, student: Student, round: int, winners: Sequence[Candidate]) -> Student:
    """``student`` with the trained blocks of the winners merged into it: a plain network.

    Raises:
        InOnePlace: several winners whose blocks lie in one place of a layer.
    """
    blocks = [around.session.tensors(winner.key) for winner in winners]
    if len(winners) == 1:
        planted = plant_proposal(around, student, round, winners[0].proposal)
        load_tensors(planted, blocks[0])
    else:
        channels: dict[str, int] = {}
        for winner in winners:
            shared = channels.keys() & winner.proposal.channels.keys()
            if shared:
                raise InOnePlace(f"blocks must have {min(shared)} once, {winner.name} has it again")
            channels.update(winner.proposal.channels)
        planted = plant(student.model, [student.plan[site] for site in channels], channels)
        fill(planted, blocks)
    return Student.of(merge(planted), around)


def grown_together(
    around: Surroundings, student: Student, round: int, ranking: Sequence[Candidate], count: int
) -> tuple[Student, list[Candidate]]:
    """``student`` grown by the best ``count`` candidates that fit beside each other, by parameters and by place."""
    limit = around.config.max_parameters
    winners = [ranking[0]]
    result = grown(around, student, round, winners)
    for candidate in ranking[1:]:
        if len(winners) == count:
            break
        if not around.session.tensors(candidate.key):
            continue  # forgotten, since it did not win when this round was grown before
        try:
            larger = grown(around, student, round, [*winners, candidate])
        except InOnePlace:
            continue
        if limit is None or larger.parameters <= limit:
            winners, result = [*winners, candidate], larger
    return result, winners


def fill(planted: nn.Module, blocks: Sequence[Mapping[str, Tensor]]) -> None:
    """Load blocks that were trained apart, each at a site of its own, into a model planted at all of these sites.

    New filters did not see the other sites' new channels: their weights there are 0.

    Raises:
        InOnePlace: two sites have blocks in one place; names it.
    """
    frozen = trunk_state(planted)
    with torch.no_grad():
        for name, target in planted.state_dict().items():
            if name in frozen:
                continue
            sources = [own[name] for own in blocks if name in own]
            if len(sources) != 1:
                raise InOnePlace(f"blocks must have {name} once, got it {len(sources)} times")
            _copy(name, sources[0], target, planted.get_submodule(name.rpartition(".")[0]))


def _copy(name: str, source: Tensor, target: Tensor, layer: nn.Module) -> None:
    if source.shape == target.shape:
        target.copy_(source)
        return
    start, new = getattr(layer, "in_start", 0), getattr(layer, "planted_in", 0)
    columns = list(source.shape)
    columns[1:2] = [size + new for size in columns[1:2]]
    if not new or columns != list(target.shape):
        raise InOnePlace(f"blocks: {name} must have the shape {list(target.shape)}, got {list(source.shape)}")
    target.zero_()
    target[:, :start].copy_(source[:, :start])
    target[:, start + new :].copy_(source[:, start:])
