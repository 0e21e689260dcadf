"""One round's candidates in one pass: who shares what, in which groups, with which of the trunk's values kept."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plantops.graph.capture import Untraceable
from plantops.graph.forward import Forward
from plantops.planting.candidate import (
    Candidate,
    Proposal,
    Student,
    Surroundings,
    key_of,
    plant_proposal,
    record_candidate,
    sweep_loop,
)
from plantops.planting.sweep.compared import program_problem
from plantops.planting.sweep.features import FeatureStore
from plantops.planting.sweep.graphs import CudaGraphs, Graphs
from plantops.planting.sweep.program import Program, make_program
from plantops.planting.sweep.replay import ReplayedTrainer, run_reason
from plantops.planting.sweep.train import Member, SweepTrainer
from plantops.planting.sweep.trunk import Trunk
from plantops.planting.trunk import planted_parameters
from plantops.train.batches import batch_sizes
from plantops.train.loop import Feed
from plantops.train.progress import NullProgress
from plantops.train.ranks import spread
from plantops.train.session import Session
from plantops.train.together import Part, Share


@dataclass(frozen=True)
class _Plan:
    """What a candidate will compute and hold.

    ``batch_bytes``: of the trunk's values for one batch, by name; ``own_bytes``: of its blocks, their gradients and
    optimizer state; ``cost``: how its time compares with others'.
    """

    proposal: Proposal
    planted: nn.Module
    program: Program
    batch_bytes: dict[str, int]
    own_bytes: int
    cost: float


def sweep_shared(around: Surroundings, student: Student, round: int, proposals: list[Proposal]) -> list[Candidate]:
    """All candidates of a round in one pass over the data for each epoch.

    Each batch goes through the trunk once, without gradient; the teacher's logits are looked up, where they are kept,
    else it goes through the teacher once. A candidate computes its own slices and what lies behind them. Where a
    network's forward cannot be followed step by step, or ``sweep_memory`` is too small for one of the candidates alone,
    all are trained one after the other; the teacher's logits are shared there, too. The run's record "sweep" says
    which, and why.
    """
    session = around.session
    found = _plans_or_reason(around, student, round, proposals)
    if isinstance(found, str):
        session.record("sweep", round=round, mode="loop", reason=found)
        _say(session, round, f"the candidates are trained one after the other: {found}")
        return sweep_loop(around, student, round, proposals)
    forward, plans = found
    modes = {plan.proposal.name: "slices" if plan.program.delta else "suffix" for plan in plans}
    owners = spread([plan.cost for plan in plans], session.workers)
    groups: list[tuple[int, list[_Plan]]] = []
    for worker in range(session.workers):
        own = [plan for plan, owner in zip(plans, owners, strict=True) if owner == worker]
        groups += [(worker, group) for group in _groups(own, around.config.sweep_memory)]
    peak = max(_held(group) for _, group in groups)
    steps = _steps_record(_run_reason(around))
    session.record("sweep", round=round, mode="shared", sites=modes, groups=len(groups), batch_bytes=peak, **steps)
    shares = [_share(around, round, forward, owner, group) for owner, group in groups]
    finished = session.fit_spread(shares, phase="candidate")
    trained = {
        part.key: work
        for share, works in zip(shares, finished, strict=True)
        for part, work in zip(share.parts, works, strict=True)
    }
    return [
        record_candidate(around, student, round, proposal, trained[key_of(round, proposal)]) for proposal in proposals
    ]


def _plans_or_reason(
    around: Surroundings, student: Student, round: int, proposals: Sequence[Proposal]
) -> tuple[Forward, list[_Plan]] | str:
    """What the candidates will compute, or why they cannot share a pass; then nothing of them is held any more."""
    try:
        forward, plans = _plans(around, student, round, proposals)
    except Untraceable as reason:
        return str(reason)
    largest, budget = max(plans, key=lambda plan: _held([plan])), around.config.sweep_memory
    if _held([largest]) > budget:
        return f"{largest.proposal.name} alone needs sweep_memory={_held([largest])}, got {budget}"
    return forward, plans


def _plans(
    around: Surroundings, student: Student, round: int, proposals: Sequence[Proposal]
) -> tuple[Forward, list[_Plan]]:
    recipe = around.config.recipe()
    model = copy.deepcopy(student.model).eval().requires_grad_(False)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    forward = Forward.of(model, around.example_inputs)
    images = _check_single(forward, around.example_inputs)
    samples = around.example_inputs[0].shape[0]
    rows = max(recipe.batch_size, *batch_sizes(len(around.train), recipe.batch_size))
    plans = []
    for proposal in proposals:
        sites = [student.plan[growth.site] for growth in proposal.growths]
        planted = plant_proposal(around, student, round, proposal)
        if recipe.channels_last:
            planted.to(memory_format=torch.channels_last)
        program = make_program(forward, sites, planted)
        sizes = {}
        for name in program.kept:
            if name == forward.input:
                continue
            shape = forward[name].shape
            if shape is None or not shape or shape[0] != samples:
                raise Untraceable(f"{proposal.name} needs a value ({name}) that is not one row for each image")
            element = next(model.parameters()).element_size()
            sizes[name] = rows * element * torch.Size(shape[1:]).numel()
        problem = program_problem(forward, program, planted, images)
        if problem is not None:
            raise Untraceable(f"at {proposal.name} {problem}")
        blocks = sum(block.nbytes for block in planted_parameters(planted))
        producers = [producer for site in sites for producer in site.producers]
        plans.append(_Plan(proposal, planted, program, sizes, 4 * blocks, _cost(forward, producers)))
    return forward, plans


def _check_single(forward: Forward, inputs: tuple[Any, ...]) -> torch.Tensor:
    """The images of the example. Raises ``Untraceable`` where the forward takes or gives more than one tensor."""
    name, _ = forward.input, forward.output
    return forward.given(inputs)[name]


def _say(session: Session, round: int, text: str) -> None:
    """Once for a search: to those who watch, else to whoever called."""
    if round > 1:
        return
    if isinstance(session.progress, NullProgress):
        warnings.warn(text, UserWarning, stacklevel=2)
    else:
        session.progress.note(text)


def _cost(forward: Forward, producers: Sequence[str]) -> float:
    """Multiply-accumulates of the layers from a site on, which most of a candidate's time goes with."""
    starts = [forward.calls(name) for name in producers]
    cost = 0.0
    for step in (*starts, *forward.behind([start.name for start in starts])):
        weight = None if step.module is None else getattr(forward.model.get_submodule(step.module), "weight", None)
        if step.shape is not None and isinstance(weight, torch.Tensor):
            cost += torch.Size(step.shape).numel() * weight[0].numel()
    return cost


def _held(plans: Sequence[_Plan]) -> int:
    """Bytes that these candidates hold together during a step, apart from what one of them computes on the way."""
    shared = {name: size for plan in plans for name, size in plan.batch_bytes.items()}
    return sum(shared.values()) + sum(plan.own_bytes for plan in plans)


def _groups(plans: list[_Plan], budget: int) -> list[list[_Plan]]:
    """Candidates in their order, as many together as fit."""
    groups: list[list[_Plan]] = []
    for plan in plans:
        if groups and _held([*groups[-1], plan]) <= budget:
            groups[-1].append(plan)
        else:
            groups.append([plan])
    return groups


def _share(around: Surroundings, round: int, forward: Forward, owner: int, group: list[_Plan]) -> Share:
    """The candidates of ``group`` as one piece of work."""
    config, session = around.config, around.session
    recipe = config.recipe()

    def make_trainer() -> SweepTrainer:
        trunk = Trunk(forward, [name for plan in group for name in plan.program.kept], recipe.precision)
        store = FeatureStore(trunk, _folder(around), config.sweep_memory - _held(group))
        # What is asked for once is not worth keeping.
        again = recipe.epochs > 1
        batch_done = session.progress.batch
        feed = Feed(
            around.train, recipe, around.teacher, seed=config.seed, keys=("round", round), batch_done=batch_done
        )
        members = [Member(plan.planted, plan.program) for plan in group]
        features = store.of(around.train, recipe.augment.variants if again else None, recipe.channels_last)
        val_features = store.of(around.val, 1 if again else None, recipe.channels_last)
        graphs = make_graphs(around)
        if graphs is None:
            return SweepTrainer(members, feed, recipe, features, around.val, val_features, store.close, config.seed)
        return ReplayedTrainer(
            members, feed, recipe, features, around.val, val_features, store.close, graphs=graphs, refused=refused
        )

    def refused(reason: str) -> None:
        session.record("sweep", round=round, mode="shared", **_steps_record(reason))

    labels = [{"round": round, "site": plan.proposal.name} for plan in group]
    parts = [
        Part(key_of(round, plan.proposal), plan.proposal.name, label) for plan, label in zip(group, labels, strict=True)
    ]
    return Share(owner, parts, make_trainer)


def make_graphs(around: Surroundings) -> Graphs | None:
    """What captures the steps; None where they are run."""
    return CudaGraphs(around.train.device) if _run_reason(around) is None else None


def _run_reason(around: Surroundings) -> str | None:
    """Why steps are run one by one; None where they are captured."""
    if around.train.device.type != "cuda":
        return "they are not on a GPU"
    return run_reason(around.config.recipe())


def _steps_record(reason: str | None) -> dict[str, Any]:
    return {"steps": "captured"} if reason is None else {"steps": "run", "steps_reason": reason}


def _folder(around: Surroundings) -> Path | None:
    run = around.session.run
    return None if run is None else run.path / "features"
