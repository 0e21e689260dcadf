"""The commands that train: plant, train, teacher."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plantops._cli import build, running
from plantops._cli.looking import write
from plantops._cli.mistakes import Mistake, mistakes
from plantops._cli.options import PlantOptions, TeacherOptions, TeacherRunOptions, TrainOptions
from plantops.models import count_parameters
from plantops.planting.experiment import ExperimentResult, check_experiment, run_experiment, train_network
from plantops.planting.networks import find_network, find_teacher
from plantops.train.data import ImageData
from plantops.train.ranked_session import RankedSession
from plantops.train.ranks import ranks_of_environment
from plantops.train.report.story import stop_words
from plantops.train.run import Run
from plantops.train.session import Interrupted, Session
from plantops.train.teacher_logits import TeacherCache

Work = Callable[[Session], ExperimentResult]


def plant(arguments: list[str]) -> int:
    """``plantops plant``."""
    with running.opened(PlantOptions, "plant", arguments) as (options, run):
        device = build.choose_device(options)
        parts = build.load_parts(options, options.seed, device)
        experiment = build.experiment(options, parts.train)
        teacher = None
        if not build.names_teacher(options):
            teacher = load_teacher(options, parts.train, device, options.teacher_model or options.model)
        with mistakes(options):
            check_experiment(experiment, parts)
        return carry_out(
            "plant",
            options,
            device,
            run,
            lambda session: run_experiment(experiment, parts, session, teacher, teacher_cache(options, teacher)),
        )


def train(arguments: list[str]) -> int:
    """``plantops train``."""
    with running.opened(TrainOptions, "train", arguments) as (options, run):
        return _train(options, run)


def _train(options: TrainOptions, run: Run | None) -> int:
    device = build.choose_device(options)
    widths = build.widths(options.widths)
    recipe = build.train_recipe(options)
    if options.teacher is not None and not recipe.needs_teacher:
        raise Mistake(
            "--teacher is given but --objective ce does not use it: use --objective kl, or leave --teacher out."
        )
    parts = build.load_parts(options, options.seed, device)
    family = build.family(options, parts.train)
    teacher = load_teacher(options, parts.train, device, options.teacher_model)
    with mistakes(options):
        family.build(widths, options.seed, "check")
    own_teacher = ((options.teacher_width,) * 5, build.teacher_recipe(options, options))
    same = len(set(widths)) == 1
    name = f"uniform-{widths[0]}" if same else f"widths-{'-'.join(map(str, widths))}"

    def work(session: Session) -> ExperimentResult:
        return train_network(
            family,
            widths,
            recipe,
            parts,
            session,
            role="uniform",
            name=name,
            seed=options.seed,
            teacher=teacher,
            teacher_network=own_teacher,
            cache=teacher_cache(options, teacher),
        )

    return carry_out("train", options, device, run, work)


def teacher(arguments: list[str]) -> int:
    """``plantops teacher``."""
    with running.opened(TeacherRunOptions, "teacher", arguments) as (options, run):
        device = build.choose_device(options)
        recipe = build.teacher_run_recipe(options)
        parts = build.load_parts(options, options.seed, device)
        family = build.family(options, parts.train)
        widths = (options.width,) * 5
        with mistakes(options, widths="width"):
            family.build(widths, options.seed, "check")
        return carry_out(
            "teacher",
            options,
            device,
            run,
            lambda session: train_network(
                family, widths, recipe, parts, session, role="teacher", name="teacher", seed=options.seed
            ),
        )


def load_teacher(
    options: TeacherOptions,
    train: ImageData,
    device: torch.device,
    model: str | None = None,
    flag: str = "--teacher",
) -> nn.Module | None:
    """The network of ``--teacher``, checked against the data; says which network of the run that is.

    A run's teacher teaches where it has one, else the network that the run is about; ``--network`` of ``prune`` is
    always the latter.

    ``model``: the user's own factory that may be run; ``flag``: what the option is called.

    Raises:
        Mistake, RunError: not there, damaged, other classes or another image shape.
    """
    if options.teacher is None:
        return None
    find = find_teacher if flag == "--teacher" else find_network
    network = find(Path(options.teacher))
    data = network.data
    if (data["num_classes"], tuple(data["shape"])) != (train.num_classes, train.shape):
        raise Mistake(
            f"{flag} {options.teacher} was trained on {data['name']} ({data['num_classes']} classes, images "
            f"{list(data['shape'])}), this run's data has {train.num_classes} classes, images {list(train.shape)}: "
            "give a network of the same data."
        )
    built = network.build(model, {"--teacher": "--teacher-model"}.get(flag, "--model")).to(device)
    if os.environ.get("RANK", "0") == "0":
        print(f"{flag}: {network.name} of {options.teacher}, {count_parameters(built):,} parameters", flush=True)
    return built


def teacher_cache(options: TeacherOptions, teacher: nn.Module | None) -> TeacherCache:
    """Where the teacher's logits are kept: beside the run that trained it, for the next one too, where that is.

    Not for a network of the user's own factory: what its code computes can change unseen.
    """
    folder = None if options.teacher_cache is None else Path(options.teacher_cache)
    if folder is None and teacher is not None and options.teacher is not None and os.access(options.teacher, os.W_OK):
        folder = Path(options.teacher) / "logits" if find_teacher(Path(options.teacher)).made_by is None else None
    return TeacherCache(folder, options.teacher_cache_memory, options.teacher_ahead)


def carry_out(command: str, options: Any, device: torch.device, run: Run | None, work: Work) -> int:
    """Folder, session, the work itself, tables and report."""
    ranks = ranks_of_environment()
    if ranks is not None and ranks.rank > 0:
        work(RankedSession(ranks, device=device))
        return 0
    resumed = run is not None
    with run or running.create_run(options, command, options.data) as run:
        try:
            with running.session_of(run, options, device) as session:
                running.echo(command, options, run)
                if resumed:
                    session.progress.note(running.going_on(session))
                result = work(session)
        except (Interrupted, KeyboardInterrupt):
            return running.interrupted(command, run)
        show(result)
        if options.report:
            _report(run, getattr(options, "model", None))
        print(f'In Python: plantops.planting.load_network("{run.path}")')
    return 0


def show(result: ExperimentResult) -> None:
    """The tables that a run ends with, and what the search was worth."""
    if result.search is not None:
        rounds = [dataclasses.asdict(row) for row in result.search.rounds]
        running.show_table(running.round_rows(rounds), f"Rounds (ended: {stop_words(result.search.stop)})")
    running.show_table(running.network_rows(result.records), "Networks (test part read once, now)")
    hint = running.width_hint(result.records)
    if hint is not None:
        print(f"  {hint}")
    if result.verdict is not None:
        print(f"\n{result.verdict}")


def _report(run: Run, model: str | None) -> None:
    """The report is an extra: without matplotlib the run is complete all the same."""
    try:
        print(f"\nReport: {write(run.path, model=model)}")
    except Mistake as missing:
        print(f"\nNo report: {missing}", file=sys.stderr)
