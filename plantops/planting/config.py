"""What a search is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from plantops._arguments import check_choice, check_flag, check_minimum, check_range, check_rate, check_type
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.models import PlantingNet
from plantops.planting.gradmax import GradMax
from plantops.train.batches import Augment
from plantops.train.recipe import OBJECTIVES, Recipe
from plantops.train.teacher_views import MEMORY

SELECTIONS = ("loss", "loss_per_parameter")
SWEEPS = ("shared", "loop")
COMPOUNDS = ("pairs", "all")


@dataclass(frozen=True)
class PlanterConfig:
    """A search over rounds.

    Attributes:
        channels: how many channels a candidate plants: one number for every site, or a number per layer name; layers
            that are not named then do not grow. Rounded up to whole groups where a site needs them.
        sites: only sites of which a producer matches one of these shell patterns (``layer3.*``); none: all.
        epochs: how long each candidate trains.
        max_rounds: stop after so many rounds; None: no limit.
        max_parameters: no candidate has more parameters: it grows by fewer channels, or, where not even half of them
            fit, is not trained; None: no limit.
        compound: which sites may grow together in one candidate, besides every site alone: ``pairs`` of neighbours,
            ``all`` sites in proportion to their widths, both or none (as published). Not with ``GradMax``.
        select: ``loss``: the candidate with the smallest held-out cross entropy wins; ``loss_per_parameter``: the one
            with the largest decrease of it per added parameter. Either way it has to beat the network as it is.
        prune_every: behind every so many growths the trunk loses channels, at the sites that may grow: those that it
            misses least, as long as neither the loss over 1,024 training images nor the held-out loss grows by more
            than a tenth of what these growths gained. The search goes on from what is left. 0: never, as published.
        moves: how often, at most, channels move once the search is over: a share of the parameters (``move_share``)
            goes with the channels that the loss misses least for what they cost, rounds plant as many where they gain
            most, and the network with the smaller held-out loss is kept; the first move that gains nothing is the
            last. So a site can lose what it no longer earns. 0: never, as published.
        move_share: share of the parameters that a move takes away first, above 0 and below 1.
        sites_per_round: a round grows the network at so many of its best sites, where that has a smaller held-out loss
            than the best alone; 1: one winner, as published.
        grow_linear: hidden linear layers may grow too; None: they do, but for the paper's network (``PlantingNet``),
            whose published search plants convolutions alone.
        init: initialiser of planted blocks, as in ``plantops.plant``.
        objective: what planted blocks minimise: ``kl`` (the method), ``kd``, ``ce`` or ``adversarial``.
        temperature, alpha, discriminator_lr, lr, optimizer, momentum, weight_decay, schedule, batch_size, crop, flip,
            precision, channels_last: of the candidates' training, as in ``plantops.train.recipe.Recipe``; ``crop`` and
            ``flip`` are its augmentation.
        joint_epochs: joint training of the whole network after every round that grew it; the next round freezes it
            again. 0: none, as published.
        joint_lr: its learning rate.
        finetune_epochs: joint training of the whole network after the search; 0: none, as published.
        finetune_lr: its learning rate.
        retrain_epochs: training of the found widths from new weights (``plantops.models.initialise``), after all else;
            the network with the smaller held-out loss is the result. 0: none, as published.
        retrain_lr: its learning rate.
        path_epochs: the joint training after the search lasts longer than ``finetune_epochs`` where the search was
            shorter: until rounds and joint trainings together have so many epochs; None: no.
        sweep: how the candidates of a round are trained; ``shared``: together, in one pass over the data that
            computes trunk and teacher once for all of them; ``loop``: one after the other.
        sweep_memory: bytes that a shared sweep may hold besides the data: the trunk's values for the batch, and for
            the whole training part where they are a function of the image (no random crops); what does not fit lies
            in the run folder or is computed anew, and candidates that do not fit together are trained in groups. Where
            one does not fit alone, that round is trained as by ``loop``.
        teacher_views: an image is seen in at most so many of its crops and flips, which the seed draws, so that the
            teacher's logits for all of them can be kept; None: in all.
        teacher_cache_memory: the most bytes that the teacher's logits for all views of the training part may take;
            where it is too little, the teacher runs on every batch with random crops.
        seed: of order, augmentation and initialisation.

    Raises:
        ValueError: names the field, what was expected and what came.
    """

    channels: int | Mapping[str, int] = 4
    epochs: int = 10
    max_rounds: int | None = None
    max_parameters: int | None = None
    compound: tuple[str, ...] = ()
    select: str = "loss"
    prune_every: int = 0
    moves: int = 0
    move_share: float = 0.15
    grow_linear: bool | None = None
    init: str | GradMax = "zero_in"
    objective: str = "kl"
    temperature: float = 1.0
    alpha: float = 0.9
    discriminator_lr: float = 1e-3
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    batch_size: int = 128
    crop: int = 0
    flip: bool = False
    precision: str = "float32"
    channels_last: bool = False
    sites_per_round: int = 1
    joint_epochs: int = 0
    joint_lr: float = 0.05
    finetune_epochs: int = 0
    finetune_lr: float = 0.01
    retrain_epochs: int = 0
    retrain_lr: float = 0.05
    path_epochs: int | None = None
    sweep: str = "shared"
    sweep_memory: int = 4 << 30
    teacher_views: int | None = None
    teacher_cache_memory: int = MEMORY
    seed: int = 0
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.channels, Mapping):
            if not self.channels:
                raise ArgumentError("channels must name at least one layer, got an empty mapping")
            for layer, count in self.channels.items():
                check_minimum(f"channels[{layer!r}]", count, 1)
        else:
            check_minimum("channels", self.channels, 1)
        if self.max_rounds is not None:
            check_minimum("max_rounds", self.max_rounds, 0)
        if self.max_parameters is not None:
            check_minimum("max_parameters", self.max_parameters, 1)
        if not isinstance(self.compound, (tuple, list)):
            raise ArgumentTypeError(f"compound must be several names, as in ('pairs',), got {self.compound!r}")
        for compound in self.compound:
            check_choice("compound", compound, COMPOUNDS)
        if self.compound and isinstance(self.init, GradMax):
            raise ArgumentError(f"compound must be empty with init=GradMax, which starts one site, got {self.compound}")
        check_choice("select", self.select, SELECTIONS)
        check_choice("sweep", self.sweep, SWEEPS)
        check_minimum("prune_every", self.prune_every, 0)
        check_minimum("moves", self.moves, 0)
        check_range("move_share", self.move_share, lambda share: 0 < share < 1, "above 0 and below 1")
        check_minimum("sweep_memory", self.sweep_memory, 1)
        check_minimum("teacher_cache_memory", self.teacher_cache_memory, 0)
        check_minimum("sites_per_round", self.sites_per_round, 1)
        for name in ("joint", "finetune", "retrain"):
            check_minimum(f"{name}_epochs", getattr(self, f"{name}_epochs"), 0)
            check_rate(f"{name}_lr", getattr(self, f"{name}_lr"))
        if self.path_epochs is not None:
            check_minimum("path_epochs", self.path_epochs, 0)
        if self.grow_linear is not None:
            check_flag("grow_linear", self.grow_linear)
        check_type("seed", self.seed, int, "an integer")
        if not isinstance(self.init, GradMax):
            check_type("init", self.init, str, "a name or a GradMax object")
        if not isinstance(self.sites, (tuple, list)) or not all(isinstance(pattern, str) for pattern in self.sites):
            raise ArgumentTypeError(f"sites must be several patterns, as in ('layer3.*',), got {self.sites!r}")
        check_choice("objective", self.objective, OBJECTIVES)
        self.recipe()

    def grows_linear(self, model: nn.Module) -> bool:
        """Whether hidden linear layers of ``model`` may grow."""
        return not isinstance(model, PlantingNet) if self.grow_linear is None else self.grow_linear

    def recipe(self, **changes: Any) -> Recipe:
        """How candidates are trained; ``changes`` replace fields of it. Raises ValueError as ``Recipe`` does."""
        fields: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("epochs", "objective", "temperature", "alpha", "discriminator_lr", "lr", "optimizer")
        }
        fields.update(
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            batch_size=self.batch_size,
            augment=Augment(self.crop, self.flip, self.teacher_views if self.objective != "ce" else None),
            precision=self.precision,
            channels_last=self.channels_last,
        )
        return Recipe(**{**fields, **changes})
