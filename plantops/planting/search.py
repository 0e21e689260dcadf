"""The search: round after round, plant at every site, train each candidate from the teacher, keep the best.

Source: Mitsuno, Nomura, Kurita, "Channel Planting for Deep Neural Networks using Knowledge Distillation", ICPR 2020,
arXiv 2011.02390.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from plantops._arguments import check_type
from plantops.errors import ArgumentError
from plantops.graph import Plan
from plantops.planting.candidate import Candidate, Growth, Proposal, Student, Surroundings, sweep_loop
from plantops.planting.config import PlanterConfig
from plantops.planting.given import check_networks, first_logits, image_parts
from plantops.planting.gradmax import GradMax
from plantops.planting.joint import train_anew, train_jointly
from plantops.planting.keeping import Discarded, is_worse, judge_teacher, why_all_diverged
from plantops.planting.plant import why_not_started
from plantops.planting.preflight import check_training
from plantops.planting.proposals import propose
from plantops.planting.pruned import HOW, SAMPLES, Pruned, prune_student, shrink_student
from plantops.planting.sweep.round import sweep_shared
from plantops.planting.winners import grown_together, ranked
from plantops.train.data import ImageData, Normalisation
from plantops.train.datasets import MapStyle
from plantops.train.loop import evaluate
from plantops.train.progress import Progress
from plantops.train.run import Run
from plantops.train.session import Session, finite
from plantops.train.teacher_logits import Teacher, TeacherCache, TeacherLogits

MOVE_ROUNDS = 4
"""Rounds, at most, that plant again what a move took away."""
_SWEEPS = {"shared": sweep_shared, "loop": sweep_loop}


@dataclass(frozen=True)
class Round:
    """A round that grew the network; round 0 is the initial network. Losses are cross entropies (nats), those of the
    network after the round's joint training, where there is one. Several sites of one round stand between commas."""

    round: int
    grown: str | None
    channels: int
    widths: dict[str, int]
    parameters: int
    macs: int
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    round_seconds: float = 0.0


@dataclass
class PlanterResult:
    """What a search gives.

    Attributes:
        model: the network that the search hands out, plain ``torch.nn``: planted, fine-tuned or retrained.
        planted: the planted network before fine-tuning (the same object as ``model`` without it).
        rounds: the initial network and every round that grew it.
        history: the growths in order: ``grow(initial, history)`` gives the structure of ``planted``, less what was
            pruned.
        candidates: every candidate that was trained, by round, those of the last round (which grew nothing) included.
        stop: why the search ended.
        epochs: epochs on the network's own path: the winners', of joint trainings and of the fine-tuning.
        seconds: of all trainings of the search, candidates that lost included.
        finetune_epochs, finetune_seconds: the fine-tuning's part of these two.
        prunings: what ``config.prune_every`` took in between, in order.
        test: cross entropy and accuracy of ``model`` on ``test_data``, where that was given.
        discarded: joint trainings and fine-tuning whose network was not kept, since its held-out loss was larger than
            before: no training of the search makes the network worse.
        normalisation: what was done to images before they entered the network: for images ``x [N, C, H, W]`` in the
            data set's own units the logits are ``model(normalisation(x))``. ``print`` shows it.
        finetuned: ``planted`` after the joint training that follows the search; None without one.
        retrained: the found widths trained from new weights, where that gave the smaller held-out loss; then ``model``.
        retrain_seconds: of that training.
    """

    model: nn.Module
    planted: nn.Module
    rounds: list[Round]
    history: list[Growth]
    candidates: dict[int, list[Candidate]]
    stop: str
    epochs: int
    seconds: float
    finetune_epochs: int = 0
    finetune_seconds: float = 0.0
    prunings: list[Pruned] = field(default_factory=list)
    test: dict[str, Any] | None = None
    discarded: list[Discarded] = field(default_factory=list)
    normalisation: Normalisation | None = None
    finetuned: nn.Module | None = None
    retrained: nn.Module | None = None
    retrain_seconds: float = 0.0


@dataclass
class _State:
    """The search between two rounds."""

    student: Student
    rounds: list[Round]
    history: list[Growth] = field(default_factory=list)
    candidates: dict[int, list[Candidate]] = field(default_factory=dict)
    seconds: float = 0.0
    prunings: list[Pruned] = field(default_factory=list)
    discarded: list[Discarded] = field(default_factory=list)

    def copy(self) -> _State:
        """A search that goes on from here, while this one stays."""
        return dataclasses.replace(
            self,
            rounds=list(self.rounds),
            history=list(self.history),
            candidates=dict(self.candidates),
            prunings=list(self.prunings),
            discarded=list(self.discarded),
        )

    @property
    def val_loss(self) -> float | None:
        """Of the network as it is."""
        last = self.rounds[-1]
        pruned = self.prunings[-1] if self.prunings else None
        return pruned.val_loss[1] if pruned is not None and pruned.round == last.round else last.val_loss

    @property
    def loss(self) -> float:
        loss = self.val_loss
        return float("inf") if loss is None else loss


class Planter:
    """Grow a network by channel planting.

    Args:
        model: the initial network; it is copied, not changed.
        teacher: any callable from a batch of images, as ``model`` gets them, to logits (or to an output that has them
            as ``logits``). A module is put in ``eval()``; it is never differentiated.
        train_data: trains the planted blocks: ``ImageData`` or any map-style dataset of (image, label), which is read
            into memory once. Random transforms would be drawn once, with a warning: leave them to ``config.crop`` and
            ``config.flip``. It has as many classes as ``model`` gives logits.
        val_data: selects; a map-style dataset is normalised as ``train_data`` is.
        config: the search.
        example_inputs: for ``plantops.trace``; default: the first two training images.
        run: a run folder to write; its newest checkpoint is taken up.
        progress: shown to people; default: nothing.
        test_data: read once, when the search is over.
        session: instead of ``run`` and ``progress``, when the search is a part of something larger.
        normalise: of a data set: None: floating point images enter the network as they are, uint8 images are normalised
            by mean and standard deviation of each channel of ``train_data``. True: both are. False: neither is.
            ``result.normalisation`` does the same to images of one's own.

    Raises:
        ValueError, TypeError (``plantops.PlantopsError``): logits, classes, parts or channels that do not fit each
            other or are not finite; a layer name in ``config.channels`` that cannot grow.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher | TeacherLogits,
        train_data: ImageData | MapStyle,
        val_data: ImageData | MapStyle,
        config: PlanterConfig | None = None,
        *,
        example_inputs: Sequence[Any] | None = None,
        run: Run | None = None,
        progress: Progress | None = None,
        test_data: ImageData | MapStyle | None = None,
        session: Session | None = None,
        normalise: bool | None = None,
    ) -> None:
        self.config = config = PlanterConfig() if config is None else config
        check_type("config", config, PlanterConfig)
        if run is not None:
            check_type("run", run, Run)
        check_networks(model, teacher)
        train, val, self.test = image_parts(model, train_data, val_data, test_data, normalise)
        if not isinstance(teacher, TeacherLogits):
            cache = TeacherCache(memory=config.teacher_cache_memory)
            own = run if session is None else session.run
            teacher = cache.logits(teacher, config.channels_last, None if own is None else own.path)
        first_logits("teacher", teacher.logits, train, train.num_classes)
        if isinstance(example_inputs, torch.Tensor):
            example_inputs = (example_inputs,)
        if example_inputs is not None:
            check_type("example_inputs", example_inputs, Sequence, "a tuple of the arguments of model's forward")
        first_images = train.normalise(train.images[:2])
        self.around = Surroundings(
            train,
            val,
            teacher,
            config,
            Session(run, progress=progress) if session is None else session,
            tuple(example_inputs) if example_inputs is not None else (first_images,),
        )
        self.initial = Student.of(copy.deepcopy(model), self.around)
        growths = wanted_growths(config.channels, self.initial.plan, config.sites)
        check_starts(config.init, self.initial.plan, growths)
        check_training(self.initial.model, self.initial.plan, growths, first_images)

    def run(self) -> PlanterResult:
        """The whole search; continues where the session stopped."""
        state = _State(self.initial, [self._summary(self.initial, 0, [], None, 0.0)])
        if self.config.recipe().needs_teacher:
            around = self.around
            judge_teacher(around.session, around.teacher, self.initial.model, around.val, self.config.precision)
        if state.val_loss is None:
            raise ArgumentError("model must have a finite loss on val_data, got one that is NaN or infinite")
        stop = self._stop_reason(state)
        while stop is None:
            stop = self._round(state) or self._stop_reason(state)
        for number in range(1, self.config.moves + 1):
            state, gained = self._move(state, number)
            if not gained:
                break
        self.around.session.record("stop", reason=stop, round=len(state.rounds) - 1)
        config = self.config
        epochs = (len(state.rounds) - 1) * (config.epochs + config.joint_epochs)
        planted = model = state.student.model
        last, seconds = max(config.finetune_epochs, (config.path_epochs or 0) - epochs), 0.0
        if last:
            model, seconds, discarded = train_jointly(
                self.around, planted, "finetune", 0, last, config.finetune_lr, state.val_loss
            )
            if discarded is not None:
                state.discarded.append(discarded)
                last = 0
        finetuned = model if last else None
        retrained = None
        if config.retrain_epochs:
            retrained = self._retrain(model)
            model = model if retrained is None else retrained[0]
        result = PlanterResult(
            model,
            planted,
            state.rounds,
            state.history,
            state.candidates,
            stop,
            epochs + last,
            state.seconds + seconds,
            last,
            seconds,
            state.prunings,
            discarded=state.discarded,
            finetuned=finetuned,
            retrained=None if retrained is None else retrained[0],
            retrain_seconds=0.0 if retrained is None else retrained[1],
            normalisation=self.around.train.normalisation,
        )
        if self.test is not None:
            test = self.test
            result.test = self.around.session.once("test", lambda: self._score(model, test))
        return result

    def _retrain(self, model: nn.Module) -> tuple[nn.Module, float] | None:
        """The widths of ``model`` trained from new weights, and the seconds of that; None where ``model`` is better."""
        config, session = self.config, self.around.session
        before = session.once("retrain/before", lambda: self._score(model, self.around.val))["loss"]
        retrained, seconds, after = train_anew(self.around, model, config.retrain_epochs, config.retrain_lr)
        kept = not is_worse(before, after)
        session.record("retrained", val_loss=(before, after), kept=kept)
        return (retrained, seconds) if kept else None

    def _move(self, state: _State, number: int) -> tuple[_State, bool]:
        """Take parameters away where they are missed least, plant as many where they gain most: what the search goes on
        from, and whether that is better than before."""
        config, session = self.config, self.around.session
        limit = config.max_parameters or state.student.parameters
        sites = [g.site for g in wanted_growths(config.channels, state.student.plan, config.sites)]
        moved = state.copy()
        moved.student, pruned = shrink_student(
            self.around,
            state.student,
            state.rounds[-1].round,
            sites,
            int((1 - config.move_share) * state.student.parameters),
            state.val_loss,
            lambda model: self._score(model, self.around.val),
        )
        moved.prunings.append(pruned)
        session.record("pruned", **dataclasses.asdict(pruned), samples=SAMPLES, criterion="loss_per_parameter")
        for _ in range(MOVE_ROUNDS):
            if self._round(moved, limit) is not None:
                break
        gained = moved.loss < state.loss
        first, last = len(state.rounds), len(moved.rounds) - 1
        losses = {"val_loss_before": state.val_loss, "val_loss": moved.val_loss}
        session.record("move", move=number, first=first, last=last, kept=gained, **losses)
        return (moved if gained else dataclasses.replace(state, seconds=moved.seconds)), gained

    def _round(self, state: _State, limit: int | None = None) -> str | None:
        """Train every candidate and keep the winner; why the search ends when there is none."""
        round, session = len(state.rounds), self.around.session
        config = self.config
        plan, limit = state.student.plan, limit or config.max_parameters
        growths = wanted_growths(config.channels, plan, config.sites)
        affordable = propose(state.student, growths, config.compound, limit)
        if not affordable:
            return "max_params"
        # What could be started at first need not be startable after a pruning: copies are of old channels.
        affordable = [one for one in affordable if _can_start(config.init, plan, one)]
        if not affordable:
            return "no site can be started"
        session.progress.stage(
            f"round {round}", len(affordable) * self.config.epochs, round=round, rounds=self.config.max_rounds
        )
        candidates = _SWEEPS[self.config.sweep](self.around, state.student, round, affordable)
        self.around.teacher.forget()
        state.candidates[round] = candidates
        state.seconds += sum(candidate.seconds for candidate in candidates)
        ranking = ranked(candidates, state.loss, self.config.select)
        if not ranking:
            session.forget(candidate.key for candidate in candidates)
            if any(candidate.train_loss is not None for candidate in candidates):
                return "no candidate improves"
            recipe, train = config.recipe(), self.around.train
            return why_all_diverged(self.around.teacher, recipe.needs_teacher, train, recipe.lr)
        student, winners, grown_val = self._grown(state.student, round, ranking)
        val: dict[str, Any] | None = grown_val
        session.forget(candidate.key for candidate in candidates if candidate not in winners)
        state.history += [growth for winner in winners for growth in winner.proposal.growths]
        if self.config.joint_epochs:
            epochs, lr, before = self.config.joint_epochs, self.config.joint_lr, grown_val["loss"]
            model, seconds, discarded = train_jointly(self.around, student.model, "joint", round, epochs, lr, before)
            state.seconds += seconds
            if discarded is None:
                student, val = Student.of(model, self.around), None
            else:
                state.discarded.append(discarded)
        state.student = student
        state.rounds.append(self._summary(student, round, winners, val, sum(one.seconds for one in candidates)))
        if self.config.prune_every and round % self.config.prune_every == 0:
            self._prune(state, [growth.site for growth in growths])
        return None

    def _grown(
        self, student: Student, round: int, ranking: list[Candidate]
    ) -> tuple[Student, list[Candidate], dict[str, Any]]:
        """The network grown by its winners, and its held-out score: several sites only if they beat the best alone."""
        best = ranking[0]
        alone = {"loss": best.val_loss, "accuracy": best.val_accuracy}
        result, winners = grown_together(self.around, student, round, ranking, self.config.sites_per_round)
        if len(winners) == 1:
            return result, winners, alone
        model = result.model
        score = self.around.session.once(f"together/{round}", lambda: self._score(model, self.around.val))
        if score["loss"] is not None and score["loss"] < best.loss:
            return result, winners, score
        return *grown_together(self.around, student, round, [best], 1), alone

    def _prune(self, state: _State, sites: list[str]) -> None:
        """Go on from the network without the channels that it misses least."""
        before = state.prunings[-1].val_loss[1] if state.prunings else state.rounds[0].val_loss
        state.student, pruned = prune_student(
            self.around,
            state.student,
            state.rounds[-1].round,
            sites,
            (before, state.val_loss),
            lambda model: self._score(model, self.around.val),
        )
        state.prunings.append(pruned)
        self.around.session.record("pruned", **dataclasses.asdict(pruned), samples=SAMPLES, **HOW)

    def _stop_reason(self, state: _State) -> str | None:
        limit = self.config.max_rounds
        return "max_rounds" if limit is not None and len(state.rounds) > limit else None

    def _summary(
        self,
        student: Student,
        round: int,
        winners: Sequence[Candidate],
        val: dict[str, Any] | None,
        seconds: float,
    ) -> Round:
        """Measure a network that stands; ``val``: its held-out score, where that is known."""
        session, around = self.around.session, self.around
        train = session.once(f"train-score/{round}", lambda: self._score(student.model, around.train))
        if val is None:
            val = session.once(f"val-score/{round}", lambda: self._score(student.model, around.val))
        summary = Round(
            round,
            ", ".join(name for winner in winners for name in winner.proposal.channels) or None,
            sum(sum(winner.proposal.channels.values()) for winner in winners),
            student.widths,
            student.parameters,
            student.macs,
            train["loss"],
            train["accuracy"],
            val["loss"],
            val["accuracy"],
            seconds,
        )
        session.record("round", **dataclasses.asdict(summary))
        return summary

    def _score(self, model: nn.Module, data: ImageData) -> dict[str, Any]:
        score = evaluate(model, data, precision=self.config.precision, channels_last=self.config.channels_last)
        return {"loss": finite(score.loss), "accuracy": score.accuracy}


def _can_start(init: str | GradMax, plan: Plan, proposal: Proposal) -> bool:
    return all(why_not_started(init, plan[site], channels) is None for site, channels in proposal.channels.items())


def check_starts(init: str | GradMax, plan: Plan, growths: Sequence[Growth]) -> None:
    """Raises ValueError where ``init`` cannot start one of the candidates."""
    for growth in growths:
        reason = why_not_started(init, plan[growth.site], growth.channels)
        if reason is not None:
            raise ArgumentError(reason)


def wanted_growths(channels: int | Mapping[str, int], plan: Plan, sites: Sequence[str] = ()) -> list[Growth]:
    """The candidates of a round: every site, those that match a pattern of ``sites``, or those that ``channels`` names.

    A pattern is a shell's (``layer3.*``) and matches the name of any producer. Channels are rounded up to a multiple of
    ``site.multiple``.

    Raises:
        ValueError: a name that is no site, with the reason; no site at all; a pattern that matches none.
    """
    if not plan:
        raise ArgumentError(f"model must have a layer that can grow, got none:\n{plan}")
    wanted = dict.fromkeys(plan, channels) if isinstance(channels, int) else {}
    if isinstance(channels, Mapping):
        for name in channels:
            if name not in plan:
                reason = plan.refusals.get(name, f"no such layer; the layers that can grow are {', '.join(plan)}")
                raise ArgumentError(f"channels: {name} cannot grow: {reason}")
        wanted = {plan[name].name: count for name, count in channels.items()}
    matched = {name: [p for p in sites if any(fnmatchcase(one, p) for one in plan[name].producers)] for name in plan}
    for pattern in sites:
        if not any(pattern in patterns for patterns in matched.values()):
            raise ArgumentError(f"sites: {pattern} matches no site; the sites are {', '.join(plan)}")
    names = [name for name in plan if name in wanted and (not sites or matched[name])]
    if not names:
        raise ArgumentError(f"sites ({', '.join(sites)}) and channels ({', '.join(wanted)}) have no site in common")
    return [Growth(name, -(-wanted[name] // plan[name].multiple) * plan[name].multiple) for name in names]
