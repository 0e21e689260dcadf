"""From options to what the library takes: data, device, recipes, experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from plantops._cli.mistakes import Mistake, mistakes
from plantops._cli.options import (
    DataOptions,
    MachineOptions,
    NetworkOptions,
    OptimizerOptions,
    PlantOptions,
    PruneOptions,
    TeacherOptions,
    TeacherRunOptions,
    TrainOptions,
)
from plantops.planting.config import PlanterConfig
from plantops.planting.experiment import Comparison, Experiment, Family
from plantops.planting.zoo import ZooFamily, is_name
from plantops.train.batches import Augment
from plantops.train.data import DataParts, ImageData, load
from plantops.train.ranks import local_rank
from plantops.train.recipe import Recipe, Regularizer


def load_parts(options: DataOptions, seed: int, device: torch.device) -> DataParts:
    """The data set of the options, on the device."""
    with mistakes(options):
        parts = load(
            options.data,
            options.data_root,
            val_fraction=options.val_fraction,
            train_fraction=options.train_fraction,
            seed=seed if options.split_seed is None else options.split_seed,
            image_size=options.image_size,
            download=options.download,
        )
    return parts.to(device)


def choose_device(options: MachineOptions) -> torch.device:
    """The device of the options; sets the number of CPU threads where one is asked for."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    if device == torch.device("cuda") and torch.cuda.device_count() > local_rank():
        device = torch.device("cuda", local_rank())  # each process of a machine has a GPU of its own
    if options.precision == "fp16" and device.type != "cuda":
        raise Mistake(f"--precision fp16 needs a CUDA device, this run is on {device}: use --precision bf16.")
    return device


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Mistake(f"--device must be cpu, cuda, cuda:N or auto, got {name!r}.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Mistake(f"--device {name}: {torch.cuda.device_count()} CUDA devices are visible. Use --device cpu.")
    if device.type not in ("cpu", "cuda"):
        raise Mistake(f"--device must be cpu, cuda, cuda:N or auto, got {name!r}.")
    return device


def family(options: NetworkOptions, data: ImageData) -> Family:
    """The networks that fit the images."""
    channels, height, width = data.shape
    if height != width:
        raise Mistake(f"the networks take square images, these are {height}x{width}: pass --image-size N.")
    return Family(data.num_classes, channels, height, options.fc_width, options.batch_norm)


def names_teacher(options: PlantOptions) -> bool:
    """Is ``--teacher`` the name of a network, not a folder?"""
    return options.teacher is not None and is_name(options.teacher) and not Path(options.teacher).exists()


def zoo(options: PlantOptions, data: ImageData) -> ZooFamily | None:
    """The networks of ``--model`` and ``--teacher``; None without ``--model``.

    Raises:
        Mistake: options of the paper's networks, or epochs of 0, that do not go with it.
    """
    named = names_teacher(options)
    if options.model is None:
        if named:
            raise Mistake(f"--teacher {options.teacher} goes with --model only; here it is the folder of a run.")
        return None
    if options.controls:
        raise Mistake("--controls belongs to the paper's networks: leave it out with --model.")
    if options.uniform:
        raise Mistake("--uniform belongs to the paper's networks: leave it out with --model.")
    teacher = options.teacher if named and options.teacher is not None else options.model
    return ZooFamily(options.model, teacher, data.num_classes, tuple(data.shape))


def widths(text: str, flag: str = "--widths") -> tuple[int, ...]:
    """``16,16,16,16,16``, or one number for all five layers."""
    numbers = integers(text, flag)
    if len(numbers) == 1:
        numbers *= 5
    if len(numbers) != 5:
        raise Mistake(f"{flag} must be five numbers, one for each convolution, as in 16,16,16,16,16; got {text!r}.")
    return numbers


def integers(text: str, flag: str) -> tuple[int, ...]:
    """Numbers of at least 1 between commas; nothing for an empty text."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise Mistake(f"{flag} must be numbers of at least 1 between commas, as in 16,32; got {text!r}.")
    return tuple(map(int, parts))


def channels(text: str) -> int | dict[str, int]:
    """``4``, or ``conv1=8,conv2=4``."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    wanted: dict[str, int] = {}
    for part in text.split(","):
        layer, sign, count = part.strip().partition("=")
        if not (layer and sign and count.isdecimal() and int(count) > 0):
            raise Mistake(
                f"--channels must be a number, or layers with numbers as in conv1=8,conv2=4 (at least 1); got {text!r}."
            )
        wanted[layer] = int(count)
    return wanted


def experiment(options: PlantOptions, data: ImageData) -> Experiment:
    """Everything that ``plantops plant`` does with this data."""
    networks = zoo(options, data)
    teacher = initial = None
    if networks is None or options.teacher_epochs:
        teacher = teacher_recipe(options, options)
    if networks is None or options.initial_epochs:
        initial = _recipe_of(options, "initial", options.initial_epochs)
    with mistakes(options):
        config = planter_config(options, data.device)
    return Experiment(
        family(options, data) if networks is None else networks,
        (options.teacher_width,) * 5,
        teacher,
        (options.width,) * 5,
        initial,
        config,
        Comparison(
            integers(options.uniform, "--uniform"),
            _recipe_of(options, "uniform", options.uniform_epochs or 1),
            controls=options.controls,
            as_many_epochs=options.uniform_epochs is None,
        ),
        options.seed,
    )


def _recipe_of(options: PlantOptions, name: str, epochs: int) -> Recipe:
    """The training of the initial, or of the uniform networks."""
    lr, objective = getattr(options, f"{name}_lr"), getattr(options, f"{name}_objective")
    with mistakes(options, epochs=f"{name}_epochs", lr=f"{name}_lr", objective=f"{name}_objective"):
        return recipe(options, options, epochs=epochs, lr=lr, objective=objective)


def planter_config(options: PlantOptions, device: torch.device) -> PlanterConfig:
    """The search of the options.

    A shared sweep on a CPU works on contiguous images, whatever the layout of the networks around it: its kernels for
    few channels are a third faster on them.
    """
    same = (
        "epochs",
        "select",
        "init",
        "temperature",
        "alpha",
        "discriminator_lr",
        "lr",
        "optimizer",
        "momentum",
    )
    more = (
        "weight_decay",
        "schedule",
        "batch_size",
        "crop",
        "flip",
        "precision",
        "seed",
        "max_rounds",
        "max_parameters",
        "objective",
        "prune_every",
        "moves",
        "move_share",
        "sweep",
        "sweep_memory",
        "teacher_views",
        "teacher_cache_memory",
    )
    joint = (
        "sites_per_round",
        "joint_epochs",
        "joint_lr",
        "finetune_epochs",
        "finetune_lr",
        "retrain_epochs",
        "retrain_lr",
    )
    fields = {name: getattr(options, name) for name in (*same, *more, *joint)}
    path = options.path_epochs
    return PlanterConfig(
        **fields,
        grow_linear=options.grow_linear or None,
        channels_last=options.channels_last and (options.sweep == "loop" or device.type != "cpu"),
        channels=channels(options.channels),
        sites=_words(options.sites),
        compound=_words(options.compound),
        path_epochs=None if path is None else max(0, path - options.initial_epochs),
    )


def _words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def recipe(optimizer: OptimizerOptions, machine: MachineOptions, **fields: Any) -> Recipe:
    """A training with the options that all trainings of a run share."""
    taught = fields.get("objective", "ce") != "ce"
    views = optimizer.teacher_views if taught and isinstance(optimizer, TeacherOptions) else None
    return Recipe(
        optimizer=optimizer.optimizer,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
        schedule=optimizer.schedule,
        batch_size=optimizer.batch_size,
        augment=Augment(optimizer.crop, optimizer.flip, views),
        precision=machine.precision,
        channels_last=machine.channels_last,
        **fields,
    )


def teacher_recipe(teacher: TeacherOptions, options: PlantOptions | TrainOptions) -> Recipe:
    """How a teacher is trained inside another run."""
    with mistakes(options, epochs="teacher_epochs", lr="teacher_lr"):
        return recipe(options, options, epochs=teacher.teacher_epochs, lr=teacher.teacher_lr)


def train_recipe(options: TrainOptions) -> Recipe:
    """The training of ``plantops train``."""
    with mistakes(options, strength="regularizer_strength", mix="regularizer_mix"):
        return recipe(
            options,
            options,
            epochs=options.epochs,
            lr=options.lr,
            objective=options.objective,
            temperature=options.temperature,
            alpha=options.alpha,
            label_smoothing=options.label_smoothing,
            discriminator_lr=options.discriminator_lr,
            regularizer=regularizer(options),
        )


def regularizer(options: TrainOptions) -> Regularizer | None:
    """The term of ``--regularizer``."""
    if options.regularizer is None:
        return None
    return Regularizer(
        options.regularizer, options.regularizer_groups, options.regularizer_strength, options.regularizer_mix
    )


def prune_recipe(options: PruneOptions) -> Recipe:
    """The fine-tuning of ``plantops prune``."""
    with mistakes(options, epochs="finetune_epochs"):
        return recipe(
            options,
            options,
            epochs=options.finetune_epochs,
            lr=options.lr,
            objective=options.objective,
            temperature=options.temperature,
            alpha=options.alpha,
            discriminator_lr=options.discriminator_lr,
        )


def teacher_run_recipe(options: TeacherRunOptions) -> Recipe:
    """The training of ``plantops teacher``."""
    with mistakes(options):
        return recipe(options, options, epochs=options.epochs, lr=options.lr, label_smoothing=options.label_smoothing)
