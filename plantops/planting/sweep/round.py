"""One round's candidates in one pass: who shares what, in which groups, with which of the trunk's values kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from plantops.graph.capture import Untraceable
from plantops.graph.forward import Forward
from plantops.planting.candidate import (
    Candidate,
    Growth,
    Student,
    Surroundings,
    key_of,
    plant_growth,
    record_candidate,
    train_candidate,
)
from plantops.planting.sweep.features import FeatureStore
from plantops.planting.sweep.program import Program, make_program
from plantops.planting.sweep.train import Member, SweepTrainer
from plantops.planting.sweep.trunk import Trunk
from plantops.planting.trunk import planted_parameters
from plantops.train.loop import Feed
from plantops.train.together import Part


@dataclass(frozen=True)
class _Plan:
    """What a candidate will compute and hold.

    ``batch_bytes``: of the trunk's values for one batch, by name; ``own_bytes``: of its blocks, their gradients and
    optimizer state.
    """

    growth: Growth
    planted: nn.Module
    program: Program
    batch_bytes: dict[str, int]
    own_bytes: int


def sweep_shared(around: Surroundings, student: Student, round: int, growths: list[Growth]) -> list[Candidate]:
    """All candidates of a round in one pass over the data for each epoch.

    Each batch goes through the trunk once, without gradient, and through the teacher once (or not at all, where its
    logits are kept). A candidate computes its own slices and what lies behind them. A network whose forward cannot be
    followed step by step is trained candidate by candidate; the teacher's logits are shared there, too. The run's
    record "sweep" says which.

    Raises:
        ValueError: ``sweep_memory`` is too small for a candidate alone.
    """
    session = around.session
    try:
        forward, plans = _plans(around, student, round, growths)
    except Untraceable as reason:
        session.record("sweep", round=round, mode="loop", reason=str(reason))
        return [train_candidate(around, student, round, growth) for growth in growths]
    groups = _groups(plans, around.config.sweep_memory)
    modes = {plan.growth.site: "slices" if plan.program.delta else "suffix" for plan in plans}
    peaks = [_held(group) for group in groups]
    session.record("sweep", round=round, mode="shared", sites=modes, groups=len(groups), batch_bytes=max(peaks))
    candidates = []
    for group in groups:
        candidates += _train_group(around, student, round, forward, group)
    return candidates


def _plans(
    around: Surroundings, student: Student, round: int, growths: Sequence[Growth]
) -> tuple[Forward, list[_Plan]]:
    recipe = around.config.recipe()
    model = copy.deepcopy(student.model).eval().requires_grad_(False)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    forward = Forward.of(model, around.example_inputs)
    samples = around.example_inputs[0].shape[0]
    plans = []
    for growth in growths:
        planted = plant_growth(around, student, round, growth)
        if recipe.channels_last:
            planted.to(memory_format=torch.channels_last)
        program = make_program(forward, student.plan[growth.site], planted)
        sizes = {}
        for name in program.kept:
            if name == forward.input:
                continue
            shape = forward[name].shape
            if shape is None or not shape or shape[0] != samples:
                raise Untraceable(f"{growth.site} needs a value ({name}) that is not one row for each image")
            element = next(model.parameters()).element_size()
            sizes[name] = recipe.batch_size * element * torch.Size(shape[1:]).numel()
        blocks = sum(block.nbytes for block in planted_parameters(planted))
        plans.append(_Plan(growth, planted, program, sizes, 4 * blocks))
    return forward, plans


def _held(plans: Sequence[_Plan]) -> int:
    """Bytes that these candidates hold together during a step, apart from what one of them computes on the way."""
    shared = {name: size for plan in plans for name, size in plan.batch_bytes.items()}
    return sum(shared.values()) + sum(plan.own_bytes for plan in plans)


def _groups(plans: list[_Plan], budget: int) -> list[list[_Plan]]:
    """Candidates in their order, as many together as fit."""
    groups: list[list[_Plan]] = []
    for plan in plans:
        if _held([plan]) > budget:
            raise ValueError(
                f"sweep_memory must be at least {_held([plan])} bytes for the candidate at {plan.growth.site}, "
                f"got {budget}"
            )
        if groups and _held([*groups[-1], plan]) <= budget:
            groups[-1].append(plan)
        else:
            groups.append([plan])
    return groups


def _train_group(
    around: Surroundings, student: Student, round: int, forward: Forward, group: list[_Plan]
) -> list[Candidate]:
    config, session = around.config, around.session
    recipe = config.recipe()
    names = [name for plan in group for name in plan.program.kept]
    trunk = Trunk(forward, names, recipe.precision)
    parts = []
    for plan in group:
        site = plan.growth.site
        parts.append(Part(key_of(round, plan.growth), site, {"round": round, "site": site}))

    with closing(FeatureStore(trunk, _folder(around), config.sweep_memory - _held(group))) as features:

        def make_trainer() -> SweepTrainer:
            members = [Member(plan.planted, plan.program, recipe) for plan in group]
            feed = Feed(
                around.train,
                recipe,
                around.teacher,
                seed=config.seed,
                keys=("round", round),
                batch_done=session.progress.batch,
            )
            lasting = recipe.augment.variants if recipe.epochs > 1 else None
            return SweepTrainer(
                members,
                feed,
                recipe,
                features.of(around.train, lasting, recipe.channels_last),
                around.val,
                features.of(around.val, 1 if recipe.epochs > 1 else None, recipe.channels_last),
            )

        finished = session.fit_together(parts, make_trainer, phase="candidate")
    return [
        record_candidate(around, student, round, plan.growth, work) for plan, work in zip(group, finished, strict=True)
    ]


def _folder(around: Surroundings) -> Path | None:
    run = around.session.run
    return None if run is None else run.path / "features"
