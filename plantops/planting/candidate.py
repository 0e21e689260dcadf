"""One candidate of a round: a copy of the student with planted blocks at one site or several, which alone train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from plantops.graph import Plan, trace
from plantops.models import count_macs, count_parameters
from plantops.planting.config import PlanterConfig
from plantops.planting.merge import merge
from plantops.planting.plant import plant
from plantops.planting.trunk import trunk_state
from plantops.train.data import ImageData
from plantops.train.loop import Trainer
from plantops.train.ranks import spread
from plantops.train.seeds import generator
from plantops.train.session import Finished, Session
from plantops.train.teacher_logits import TeacherLogits
from plantops.train.together import Alone, Part, Share


@dataclass(frozen=True)
class Growth:
    """``channels`` new channels at ``site``."""

    site: str
    channels: int


@dataclass(frozen=True)
class Proposal:
    """What one candidate grows: a site, or several sites together.

    Attributes:
        name: of the site; ``conv1+conv2`` for a pair; ``all`` for every site of the round.
        growths: one for each site, in execution order.
    """

    name: str
    growths: tuple[Growth, ...]

    @classmethod
    def of(cls, growth: Growth) -> Proposal:
        """One site alone."""
        return cls(growth.site, (growth,))

    @property
    def channels(self) -> dict[str, int]:
        """New channels by site."""
        return {growth.site: growth.channels for growth in self.growths}


@dataclass(frozen=True)
class Candidate:
    """What a trained candidate is worth. A loss that is None was not finite: the training diverged."""

    proposal: Proposal
    key: str
    parameters: int
    added_parameters: int
    macs: int
    val_loss: float | None
    val_accuracy: float | None
    train_loss: float | None
    seconds: float

    @property
    def name(self) -> str:
        """Of its proposal."""
        return self.proposal.name

    @property
    def loss(self) -> float:
        """The held-out cross entropy, infinite where training diverged."""
        return math.inf if self.val_loss is None or self.train_loss is None else self.val_loss


@dataclass(frozen=True)
class Surroundings:
    """What all candidates of a search share."""

    train: ImageData
    val: ImageData
    teacher: TeacherLogits
    config: PlanterConfig
    session: Session
    example_inputs: tuple[Any, ...]


@dataclass(frozen=True)
class Student:
    """A network between two rounds: plain, with where it can grow and what it costs."""

    model: nn.Module
    plan: Plan
    parameters: int
    macs: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module, around: Surroundings) -> Student:
        """Trace and measure ``model``."""
        plan = trace(model, around.example_inputs, grow_linear=around.config.grows_linear(model))
        shape = tuple(around.train.shape)
        return cls(model, plan, count_parameters(model), count_macs(model, shape), shape)

    @property
    def widths(self) -> dict[str, int]:
        return {name: site.width for name, site in self.plan.items()}

    def size_after(self, proposal: Proposal) -> tuple[int, int]:
        """Parameters, and multiply-accumulates for one sample, of the network once it has grown."""
        if len(proposal.growths) == 1:
            (growth,) = proposal.growths
            site = self.plan[growth.site]
            return (
                self.parameters + growth.channels * site.parameters_per_channel,
                self.macs + growth.channels * site.macs_per_channel,
            )
        # New filters of one site read the new channels of another: only the grown network tells how many weights.
        grown = merge(plant(self.model, [self.plan[name] for name in proposal.channels], proposal.channels))
        return count_parameters(grown), count_macs(grown, self.shape)


def plant_proposal(around: Surroundings, student: Student, round: int, proposal: Proposal) -> nn.Module:
    """A planted copy of ``student``, initialised by (seed, round, sites) alone."""
    own = generator(around.config.seed, "init", round, proposal.name)
    sites = [student.plan[name] for name in proposal.channels]
    channels = proposal.channels
    return plant(student.model, sites, channels, init=around.config.init, generator=own, input_grad="planted")


def key_of(round: int, proposal: Proposal) -> str:
    """The key of a candidate's training in the run."""
    return f"round-{round}/{proposal.name}"


def sweep_loop(around: Surroundings, student: Student, round: int, proposals: list[Proposal]) -> list[Candidate]:
    """All candidates of a round, one after the other: the readable reference of what a sweep computes."""
    config, session = around.config, around.session

    def share(proposal: Proposal, owner: int) -> Share:
        part = Part(key_of(round, proposal), proposal.name, {"round": round, "site": proposal.name})
        return Share(owner, [part], lambda: Alone(make_trainer(proposal)))

    def make_trainer(proposal: Proposal) -> Trainer:
        planted = plant_proposal(around, student, round, proposal)
        frozen = trunk_state(planted)
        return Trainer(
            planted,
            around.train,
            around.val,
            config.recipe(),
            teacher=around.teacher,
            seed=config.seed,
            keys=("round", round),
            names=[name for name in planted.state_dict() if name not in frozen],
            batch_done=session.progress.batch,
        )

    owners = spread([1.0] * len(proposals), session.workers)
    shares = [share(proposal, owner) for proposal, owner in zip(proposals, owners, strict=True)]
    finished = session.fit_spread(shares, phase="candidate")
    return [
        record_candidate(around, student, round, proposal, work)
        for proposal, (work,) in zip(proposals, finished, strict=True)
    ]


def record_candidate(
    around: Surroundings, student: Student, round: int, proposal: Proposal, work: Finished
) -> Candidate:
    """What a trained candidate is worth, written down."""
    parameters, macs = student.size_after(proposal)
    candidate = Candidate(
        proposal,
        key_of(round, proposal),
        parameters,
        parameters - student.parameters,
        macs,
        work.result["val_loss"],
        work.result["val_accuracy"],
        work.result["train_loss"],
        work.result["seconds"],
    )
    around.session.record(
        "candidate",
        round=round,
        site=proposal.name,
        channels=sum(proposal.channels.values()),
        parameters=candidate.parameters,
        added_parameters=candidate.added_parameters,
        macs=candidate.macs,
        val_loss=candidate.val_loss,
        val_accuracy=candidate.val_accuracy,
        train_loss=candidate.train_loss,
        candidate_seconds=candidate.seconds,
    )
    return candidate
