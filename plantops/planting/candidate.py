"""One candidate of a round: a copy of the student with planted blocks at one site, trained from the teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from plantops.graph import Plan, trace
from plantops.models import count_macs, count_parameters
from plantops.planting.config import PlanterConfig
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
class Candidate:
    """What a trained candidate is worth. A loss that is None was not finite: the training diverged."""

    growth: Growth
    key: str
    parameters: int
    added_parameters: int
    macs: int
    val_loss: float | None
    val_accuracy: float | None
    train_loss: float | None
    seconds: float

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

    @classmethod
    def of(cls, model: nn.Module, around: Surroundings) -> Student:
        """Trace and measure ``model``."""
        plan = trace(model, around.example_inputs, grow_linear=around.config.grows_linear(model))
        return cls(model, plan, count_parameters(model), count_macs(model, around.train.shape))

    @property
    def widths(self) -> dict[str, int]:
        return {name: site.width for name, site in self.plan.items()}

    def parameters_after(self, growth: Growth) -> int:
        """Parameters of the network once it has grown."""
        return self.parameters + growth.channels * self.plan[growth.site].parameters_per_channel

    def macs_after(self, growth: Growth) -> int:
        """Multiply-accumulates of the grown network for one sample."""
        return self.macs + growth.channels * self.plan[growth.site].macs_per_channel


def plant_growth(around: Surroundings, student: Student, round: int, growth: Growth) -> nn.Module:
    """A planted copy of ``student``, initialised by (seed, round, site) alone."""
    own = generator(around.config.seed, "init", round, growth.site)
    site = student.plan[growth.site]
    return plant(student.model, site, growth.channels, init=around.config.init, generator=own, input_grad="planted")


def key_of(round: int, growth: Growth) -> str:
    """The key of a candidate's training in the run."""
    return f"round-{round}/{growth.site}"


def sweep_loop(around: Surroundings, student: Student, round: int, growths: list[Growth]) -> list[Candidate]:
    """All candidates of a round, one after the other: the readable reference of what a sweep computes."""
    config, session = around.config, around.session

    def share(growth: Growth, owner: int) -> Share:
        part = Part(key_of(round, growth), growth.site, {"round": round, "site": growth.site})
        return Share(owner, [part], lambda: Alone(make_trainer(growth)))

    def make_trainer(growth: Growth) -> Trainer:
        planted = plant_growth(around, student, round, growth)
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

    owners = spread([1.0] * len(growths), session.workers)
    shares = [share(growth, owner) for growth, owner in zip(growths, owners, strict=True)]
    finished = session.fit_spread(shares, phase="candidate")
    return [
        record_candidate(around, student, round, growth, work)
        for growth, (work,) in zip(growths, finished, strict=True)
    ]


def record_candidate(around: Surroundings, student: Student, round: int, growth: Growth, work: Finished) -> Candidate:
    """What a trained candidate is worth, written down."""
    parameters = student.parameters_after(growth)
    candidate = Candidate(
        growth,
        key_of(round, growth),
        parameters,
        parameters - student.parameters,
        student.macs_after(growth),
        work.result["val_loss"],
        work.result["val_accuracy"],
        work.result["train_loss"],
        work.result["seconds"],
    )
    around.session.record(
        "candidate",
        round=round,
        site=growth.site,
        channels=growth.channels,
        parameters=candidate.parameters,
        added_parameters=candidate.added_parameters,
        macs=candidate.macs,
        val_loss=candidate.val_loss,
        val_accuracy=candidate.val_accuracy,
        train_loss=candidate.train_loss,
        candidate_seconds=candidate.seconds,
    )
    return candidate
