"""The whole path in one run: teacher, initial network, search, uniform networks for comparison, and what each is worth.

Everything trains on the same training part; the held-out part selects; the test part is read at the end, once for
every finished network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from plantops.errors import ArgumentError
from plantops.graph import trace
from plantops.models import PlantingNet, count_macs, count_parameters, initialise
from plantops.planting.config import PlanterConfig
from plantops.planting.controls import train_controls
from plantops.planting.fold import fold_batch_norm
from plantops.planting.keeping import check_parts, discard, is_worse
from plantops.planting.networks import NETWORKS, describe, save_network
from plantops.planting.search import Planter, PlanterResult, check_starts, wanted_growths
from plantops.planting.zoo import ZooFamily
from plantops.train.data import DataParts, ImageData
from plantops.train.loop import Score, Trainer, evaluate, load_tensors
from plantops.train.recipe import Recipe
from plantops.train.report.verdict import verdict
from plantops.train.seeds import generator
from plantops.train.session import Session, finite
from plantops.train.teacher_logits import TeacherCache, TeacherLogits


@dataclass(frozen=True)
class Family:
    """Networks that differ in their widths only: the arguments of ``PlantingNet`` without ``widths``."""

    num_classes: int
    in_channels: int
    image_size: int
    fc_width: int = 128
    batch_norm: bool = False

    def build(self, widths: Sequence[int], seed: int, name: str) -> PlantingNet:
        """A new network, its initial weights a function of (seed, name) alone: see ``initialise``."""
        own = generator(seed, "init", name)
        net = PlantingNet(widths, **dataclasses.asdict(self), generator=own)
        initialise(net, own)
        return net


@dataclass(frozen=True)
class Comparison:
    """Uniform networks that train beside the planted one; ``recipe.epochs`` counts for each of them."""

    widths: tuple[int, ...] = ()
    recipe: Recipe = field(default_factory=lambda: Recipe(objective="kl"))
    controls: bool = False
    """Train the controls of the planted network, too: see ``plantops.planting.controls``."""
    as_many_epochs: bool = True
    """Train for as many epochs as the planted network's own path had, instead of ``recipe.epochs``."""


@dataclass(frozen=True)
class Experiment:
    """What ``run_experiment`` does. The teacher's ``recipe`` counts only where none is given. Where a recipe is None,
    the network is taken as its family makes it. A ``ZooFamily`` has widths of its own."""

    family: Family | ZooFamily
    teacher_widths: tuple[int, ...]
    teacher: Recipe | None
    initial_widths: tuple[int, ...]
    initial: Recipe | None
    planter: PlanterConfig
    comparison: Comparison = field(default_factory=Comparison)
    seed: int = 0


@dataclass
class Entry:
    """A finished network. ``epochs`` is None where it was not trained here."""

    name: str
    role: str
    model: nn.Module
    loss: str | None
    epochs: int | None
    seconds: float


@dataclass
class ExperimentResult:
    """The finished networks by name, their records (with test loss and accuracy), the search, and a sentence on what it
    was worth (None where there is nothing to compare with)."""

    networks: dict[str, nn.Module]
    records: list[dict[str, Any]]
    search: PlanterResult | None
    verdict: str | None = None


class Stage:
    """Trains networks under one session, one split and one precision, and keeps what is finished."""

    def __init__(self, session: Session, parts: DataParts, seed: int) -> None:
        self.session, self.parts, self.seed = session, parts, seed
        self.entries: list[Entry] = []
        check_parts(train=parts.train, val=parts.val, test=parts.test)
        for part, data in (("train", parts.train), ("val", parts.val), ("test", parts.test)):
            session.record("part", part=part, samples=len(data), fingerprint=data.fingerprint())

    def train(
        self,
        model: nn.Module,
        recipe: Recipe | None,
        *,
        phase: str,
        name: str,
        teacher: TeacherLogits | None = None,
        may_diverge: bool = False,
        trained: bool = False,
        keep: bool = True,
        earlier_epochs: int = 0,
    ) -> nn.Module:
        """Train ``model`` in place (without a recipe: not at all) and keep it as a finished network.

        Where the training makes its held-out loss larger, the network from before is kept, and that is said.

        Args:
            may_diverge: it is there for comparison only: a training that diverges ends, and is shown as that.
            trained: the network was trained before. Without it (random weights) the network from before is kept only
                if it has no smaller accuracy either.
            keep: whether it is a finished network.
            earlier_epochs: those that it had before.
        """
        model = model.to(self.parts.train.device)
        if recipe is None:
            self.entries.append(Entry(name, phase, model, None, 0, 0.0))
            return model
        self.session.progress.stage(name, recipe.epochs)
        start = {key: value.clone() for key, value in model.state_dict().items()}
        before = self.session.once(f"before/{name}", partial(self._held_out, model, recipe))

        def make_trainer() -> Trainer:
            return Trainer(
                model,
                self.parts.train,
                self.parts.val,
                recipe,
                teacher=teacher,
                seed=self.seed,
                keys=(phase, 0),
                batch_done=self.session.progress.batch,
            )

        work = self.session.fit(name, make_trainer, phase=phase, name=name, may_diverge=may_diverge)
        load_tensors(model, work.tensors)
        if teacher is not None:
            teacher.forget()
        loss: str | None = "kl" if recipe.needs_teacher else "ce"
        epochs, after = recipe.epochs, work.result
        no_better = trained or (after["val_accuracy"] or 0.0) <= before["val_accuracy"]
        if not may_diverge and no_better and is_worse(before["val_loss"], after["val_loss"]):
            load_tensors(model, start)
            discard(self.session, name, before["val_loss"], after["val_loss"])
            loss, epochs = None, 0
        if keep:
            self.entries.append(Entry(name, phase, model, loss, epochs + earlier_epochs, work.result["seconds"]))
        return model

    def _held_out(self, model: nn.Module, recipe: Recipe) -> dict[str, Any]:
        score = evaluate(model, self.parts.val, precision=recipe.precision, channels_last=recipe.channels_last)
        return {"val_loss": finite(score.loss), "val_accuracy": score.accuracy}

    def finish(self, precision: str, channels_last: bool) -> list[dict[str, Any]]:
        """Score every finished network on all parts (the only time the test part is read), store and record it."""

        def score(model: nn.Module, data: ImageData) -> Score:
            return evaluate(model, data, precision=precision, channels_last=channels_last)

        def measure(entry: Entry) -> dict[str, Any]:
            scores = {part: score(entry.model, getattr(self.parts, part)) for part in ("train", "val", "test")}
            losses = {f"{part}_loss": finite(value.loss) for part, value in scores.items()}
            return {**losses, **{f"{part}_accuracy": value.accuracy for part, value in scores.items()}}

        records = []
        for entry in self.entries:
            if isinstance(entry.model, PlantingNet) and entry.model.batch_norm:
                entry.model = fold_batch_norm(
                    entry.model.eval(), self.parts.train.normalise(self.parts.train.images[:2])
                )
            measured = self.session.once(f"network/{entry.name}", partial(measure, entry))
            records.append({**self._facts(entry), **measured, "train_seconds": entry.seconds})
            self.session.record("network", **records[-1])
            self._store(entry)
        return records

    def _facts(self, entry: Entry) -> dict[str, Any]:
        return {
            "role": entry.role,
            "name": entry.name,
            "widths": _widths(entry.model),
            "parameters": count_parameters(entry.model),
            "macs": count_macs(entry.model, self.parts.train.shape),
            "loss": entry.loss,
            "epochs": entry.epochs,
        }

    def _store(self, entry: Entry) -> None:
        if self.session.run is not None:
            folder = self.session.run.path / NETWORKS / entry.name
            save_network(folder, entry.model, name=entry.name, role=entry.role, data=data_facts(self.parts.train))


def _widths(model: nn.Module) -> dict[str, int]:
    """Channels of every convolution, by its name."""
    if isinstance(model, PlantingNet):
        return {f"conv{layer}": width for layer, width in enumerate(describe(model)["widths"], 1)}
    return {name: module.out_channels for name, module in model.named_modules() if isinstance(module, _ConvNd)}


def data_facts(train: ImageData) -> dict[str, Any]:
    """What a stored network has to say about its data, so that it is not used on other data by mistake."""
    return {
        "name": train.name.removesuffix("/train"),
        "shape": list(train.shape),
        "num_classes": train.num_classes,
        "fingerprint": train.fingerprint(),
        "mean": train.mean.tolist(),
        "std": train.std.tolist(),
        "class_names": list(train.class_names),
    }


def run_experiment(
    experiment: Experiment,
    parts: DataParts,
    session: Session,
    teacher: nn.Module | None = None,
    cache: TeacherCache | None = None,
) -> ExperimentResult:
    """Teacher (unless given), initial network, search, uniform networks, scores; continues where the session stopped.

    ``cache``: where the teacher's logits are kept; default: with views in the run's folder.

    Returns:
        the networks ``teacher``, ``initial``, ``planted``, (``finetuned``,) ``uniform-W`` with their records.
    """
    family, seed, config = experiment.family, experiment.seed, experiment.planter
    session.progress.start(most_epochs(experiment, teacher is None), session.epochs_done)
    stage = Stage(session, parts, seed)
    cache, taught = cache or TeacherCache(), config.recipe()
    if teacher is None:
        cache.check(parts.train, taught.augment, _folder(session))
        teacher = stage.train(
            family.build(experiment.teacher_widths, seed, "teacher"),
            experiment.teacher,
            phase="teacher",
            name="teacher",
            trained=isinstance(family, ZooFamily),
        )
    else:
        stage.entries.append(Entry("teacher", "teacher", teacher.to(parts.train.device), None, None, 0.0))
    channels_last = (experiment.initial or experiment.comparison.recipe).channels_last
    logits = cache.logits(teacher, channels_last, _folder(session))
    if taught.needs_teacher:
        cache.open(logits, parts.train, taught.augment, seed, session.progress.note)
    initial = stage.train(
        family.build(experiment.initial_widths, seed, "initial"),
        experiment.initial,
        phase="initial",
        name="initial",
        teacher=logits,
        trained=isinstance(family, ZooFamily),
    )
    search = Planter(initial, logits, parts.train, parts.val, config, session=session).run()
    path_epochs = epochs_of(experiment.initial) + search.epochs
    _enter_planted(stage, search, path_epochs, config)
    comparison = experiment.comparison
    recipe = comparison.recipe
    if comparison.as_many_epochs:
        recipe = dataclasses.replace(recipe, epochs=path_epochs + config.retrain_epochs)
    for width in comparison.widths:
        name = f"uniform-{width}"
        uniform = family.build([width] * 5, seed, name)
        stage.train(uniform, recipe, phase="uniform", name=name, teacher=logits, may_diverge=True)
    if comparison.controls and isinstance(family, Family):
        train_controls(stage, family, search.model, recipe, logits)
    records = stage.finish(config.precision, channels_last)
    session.finish()
    judged = verdict(records, len(parts.test))
    return ExperimentResult({entry.name: entry.model for entry in stage.entries}, records, search, judged)


def check_experiment(experiment: Experiment, parts: DataParts) -> None:
    """Find out before anything trains what could not be done later.

    Raises:
        ValueError: widths or images that give no network, layers that cannot grow, or not with this ``init``, more
            parameters than the planted network may have.
    """
    initial = experiment.family.build(experiment.initial_widths, experiment.seed, "initial")
    for widths in (experiment.teacher_widths, *((width,) * 5 for width in experiment.comparison.widths)):
        experiment.family.build(widths, experiment.seed, "check")
    config = experiment.planter
    image = parts.train.normalise(parts.train.images[:2]).cpu()
    size = count_parameters(initial)
    if config.max_parameters is not None and size > config.max_parameters:
        raise ArgumentError(
            f"max_parameters must be at least the initial network's {size}, got {config.max_parameters}"
        )
    plan = trace(initial, (image,), grow_linear=config.grows_linear(initial))
    check_starts(config.init, plan, wanted_growths(config.channels, plan, config.sites))


def train_network(
    family: Family,
    widths: Sequence[int],
    recipe: Recipe,
    parts: DataParts,
    session: Session,
    *,
    role: str,
    name: str,
    seed: int = 0,
    teacher: nn.Module | None = None,
    teacher_network: tuple[Sequence[int], Recipe] | None = None,
    cache: TeacherCache | None = None,
) -> ExperimentResult:
    """Train one network of its own: a teacher, or a uniform (or any other) network of the tables.

    Args:
        role: ``teacher`` or ``uniform``.
        teacher: for a recipe that needs one; without it ``teacher_network`` (widths and recipe) is trained first.
        cache: where the teacher's logits are kept; default: with views in the run's folder.
    """
    epochs = recipe.epochs + (teacher_network[1].epochs if teacher_network is not None and teacher is None else 0)
    session.progress.start(epochs, session.epochs_done)
    stage = Stage(session, parts, seed)
    logits = None
    if recipe.needs_teacher:
        cache = cache or TeacherCache()
        if teacher is None:
            cache.check(parts.train, recipe.augment, _folder(session))
            if teacher_network is None:
                raise ArgumentError(f"teacher must be given for objective {recipe.objective!r}, got None")
            model = family.build(teacher_network[0], seed, "teacher")
            teacher = stage.train(model, teacher_network[1], phase="teacher", name="teacher")
        logits = cache.logits(teacher.to(parts.train.device), recipe.channels_last, _folder(session))
        cache.open(logits, parts.train, recipe.augment, seed, session.progress.note)
    stage.train(family.build(widths, seed, name), recipe, phase=role, name=name, teacher=logits)
    records = stage.finish(recipe.precision, recipe.channels_last)
    session.finish()
    return ExperimentResult({entry.name: entry.model for entry in stage.entries}, records, None)


def _folder(session: Session) -> Path | None:
    return None if session.run is None else session.run.path


def epochs_of(recipe: Recipe | None) -> int:
    """Epochs of a training that there may be none of."""
    return 0 if recipe is None else recipe.epochs


def most_epochs(experiment: Experiment, trains_teacher: bool) -> int:
    """The epochs of the experiment if every round that is allowed is needed (one round where there is no limit)."""
    config = experiment.planter
    rounds = 1 if config.max_rounds is None else config.max_rounds
    sites = len(config.channels) if isinstance(config.channels, Mapping) else 5 + bool(config.grow_linear)
    winners = rounds * (config.epochs + config.joint_epochs)
    last = max(config.finetune_epochs, (config.path_epochs or 0) - winners) + config.retrain_epochs
    path = epochs_of(experiment.initial) + winners + last
    each = path if experiment.comparison.as_many_epochs else experiment.comparison.recipe.epochs
    return (
        (epochs_of(experiment.teacher) if trains_teacher else 0)
        + epochs_of(experiment.initial)
        + rounds * (sites * config.epochs + config.joint_epochs)
        + last
        + (len(experiment.comparison.widths) + 3 * experiment.comparison.controls) * each
    )


def _enter_planted(stage: Stage, search: PlanterResult, path_epochs: int, config: PlanterConfig) -> None:
    loss = "kl" if config.objective != "ce" else "ce"
    epochs, seconds = path_epochs - search.finetune_epochs, search.seconds - search.finetune_seconds
    stage.entries.append(Entry("planted", "planted", search.planted, loss, epochs, seconds))
    if search.finetuned is not None:
        stage.entries.append(Entry("finetuned", "finetuned", search.finetuned, loss, path_epochs, search.seconds))
    if search.retrained is not None:
        spent = search.seconds + search.retrain_seconds
        stage.entries.append(
            Entry("retrained", "retrained", search.retrained, loss, path_epochs + config.retrain_epochs, spent)
        )
