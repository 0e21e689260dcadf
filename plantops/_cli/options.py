"""The options of the commands. A flag per field, flat; ``None`` says that something else decides, as the text tells.

A class is a topic of the help, its docstring the heading; the text under a field is the field's. Nothing here imports
torch: the help has to be quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Penalty = Literal[
    "l1",
    "group_lasso",
    "hierarchical_square_rooted_group_lasso",
    "hierarchical_squared_group_lasso",
    "exclusive_sparsity",
    "hierarchical_square_rooted_exclusive_sparsity",
    "hierarchical_squared_exclusive_sparsity",
    "group_l1_2",
    "hierarchical_square_rooted_group_l1_2",
    "hierarchical_squared_group_l1_2",
]
"""The names of plantops.functional.group_sparsity."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data"""

    data: str = "digits"
    """digits (embedded), cifar10, cifar100, stl10 or folder:PATH."""
    data_root: str | None = None
    """Folder with the official files; without it PLANTOPS_DATA, data/ and ~/.cache/plantops are tried."""
    download: bool = False
    """Let torchvision fetch CIFAR or STL-10 when the files are not there."""
    val_fraction: float = 0.1
    """Share of the training part that is held out to select."""
    split_seed: int | None = None
    """Of the held-out split; default: the seed. Runs of several seeds under one teacher need its own split."""
    train_fraction: float = 1.0
    """Share of what is left that trains; 0.1 is a case of small data."""
    image_size: int | None = None
    """Resize all images to this square; needed for folder:PATH with images of several sizes."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The run: where it is written, and what is shown"""

    out: str | None = None
    """Folder of the run; default: runs/COMMAND-DATA-NUMBER."""
    seed: int = 0
    """Of split, initial weights, order and augmentation."""
    checkpoint_seconds: float = 30.0
    """A checkpoint at the first epoch end after so many seconds; 0: at every epoch end."""
    progress: Literal["auto", "rich", "plain", "none"] = "auto"
    """What to show while it goes on."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too."""
    report: bool = True
    """Write report.html at the end; plantops report RUN does it at any time."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions(RunOptions):
    """Machine"""

    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU where there is one."""
    threads: int | None = None
    """CPU threads; default: PyTorch's choice."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Autocast to bf16, or on CUDA to fp16 with loss scaling."""
    channels_last: bool = False
    """Images and convolution weights in channels_last memory format."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The paper's networks"""

    fc_width: int = 128
    """Units of fc1."""
    batch_norm: bool = False
    """Batch norm after every convolution (not in the paper)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer and augmentation, of every training"""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Of what trains; frozen weights never decay."""
    schedule: Literal["constant", "step", "tenths", "cosine", "onecycle"] = "onecycle"
    """Of the learning rate, over the steps of one training; step: times 0.2 after each third; tenths: times 0.1 after
    2/5 and 4/5."""
    batch_size: int = 128
    """Images per optimizer step."""
    crop: int = 0
    """Random crop from a frame of so many pixels."""
    flip: bool = False
    """Random horizontal flip."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """Teacher"""

    teacher: str | None = None
    """Run whose teacher teaches here (its own network where it has none), or a network's folder; or, with --model,
    torchvision:NAME, timm:NAME or MODULE:FACTORY, trained in this run. Without it a teacher is trained in this run."""
    teacher_model: str | None = None
    """The package.module:factory that made the network of the run --teacher, where it is your own."""
    teacher_width: int = 32
    """Width of the teacher that is trained here."""
    teacher_epochs: int = 40
    """Epochs of the teacher; 0 (with --model): it teaches as its factory makes it."""
    teacher_lr: float = 0.1
    """Learning rate of the teacher."""
    teacher_views: int | None = None
    """See each image in at most so many of its crops and flips (the seed draws them) where the teacher's logits are
    learnt from; default: in all."""
    teacher_cache: str | None = None
    """Folder for the teacher's logits, for all runs under this teacher; default: beside the network of --teacher, or in
    this run's folder."""
    teacher_cache_memory: int = 2 << 30
    """Bytes that its logits for all crops and flips may take; where that is too little it runs on every batch."""
    teacher_ahead: bool = False
    """Compute its logits for all crops and flips before anything trains, instead of when they are first needed."""


@dataclass(frozen=True, kw_only=True)
class InitialOptions:
    """Initial network"""

    model: str | None = None
    """Any network in the place of the paper's: torchvision:NAME, timm:NAME or package.module:factory."""
    width: int = 4
    """Width of the initial network (without --model)."""
    initial_epochs: int = 40
    """Epochs of the initial network; 0 (with --model): it grows as its factory makes it."""
    initial_lr: float = 0.1
    """Learning rate of the initial network."""
    initial_objective: Literal["ce", "kl"] = "ce"
    """The initial network learns from the labels (ce) or from the teacher (kl)."""


@dataclass(frozen=True, kw_only=True)
class CandidateOptions:
    """Candidates: what is planted, and how it is trained"""

    channels: str = "4"
    """Channels that a candidate plants: a number, or layers with numbers as in conv1=8,conv2=4 (others do not grow)."""
    sites: str = ""
    """Sites that may grow, as shell patterns between commas, as in 'layer3.*,layer4.*.conv1'; default: all."""
    grow_linear: bool = False
    """fc1 of the paper's network may grow, too; hidden linear layers of a --model do so anyway (--sites chooses)."""
    init: Literal["zero_in", "kaiming", "zero_out", "copy", "copy_pairs"] = "zero_in"
    """Initialiser of planted blocks."""
    epochs: int = 20
    """Epochs of every candidate in every round."""
    lr: float = 0.1
    """Learning rate of the planted blocks."""
    objective: Literal["kl", "kd", "ce", "adversarial"] = "kl"
    """What planted blocks minimise; kl is the method, kd mixes in the labels, adversarial adds a discriminator."""
    temperature: float = 1.0
    """Temperature of the distillation losses kl and kd."""
    alpha: float = 0.9
    """Weight of the teacher in the loss kd."""
    discriminator_lr: float = 1e-3
    """Learning rate of the discriminator of adversarial."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Search: rounds, and which candidate wins"""

    preset: Literal["default", "paper"] = "default"
    """Defaults of this package, or of the published procedure with nothing added: of lengths and rates, too."""
    max_parameters: int | None = None
    """No network with more parameters."""
    max_rounds: int | None = 10
    """At most so many rounds; None: until nothing improves."""
    select: Literal["loss", "loss_per_parameter"] = "loss"
    """The winner has the smallest held-out loss, or the largest decrease of it per added parameter."""
    sites_per_round: int = 1
    """A round grows at so many of its best sites, where that is better on the held-out part than the best alone."""
    prune_every: int = 0
    """After every so many growths, prune channels for at most a tenth of the held-out loss gained; 0: never."""
    moves: int = 0
    """How often, at most, channels move after the search: pruned where they are missed least, planted where they gain
    most, the better network kept; 0: never."""
    move_share: float = 0.15
    """Share of the parameters that a move takes away first."""
    compound: str = ""
    """Sites that may grow together in a candidate: pairs of neighbours, all in proportion, or both, as in pairs,all."""
    sweep: Literal["shared", "loop"] = "shared"
    """The candidates of a round in one pass over the data, or one after the other (the same training, slower)."""
    sweep_memory: int = 4 << 30
    """Bytes for what a shared sweep keeps of the network's values; the rest lies in the run folder or is recomputed."""


@dataclass(frozen=True, kw_only=True)
class JointOptions:
    """Joint training of the whole network"""

    joint_epochs: int = 0
    """Joint training of the whole network after every round; the next round freezes it again. 0: none, as published."""
    joint_lr: float = 0.05
    """Learning rate of the joint training after a round."""
    finetune_epochs: int = 0
    """Joint training of the whole network after the search; 0: none, as published."""
    finetune_lr: float = 0.01
    """Learning rate of the joint training after the search."""
    retrain_epochs: int = 0
    """Training of the found widths from new weights, after all else; the better network is handed out. 0: none."""
    retrain_lr: float = 0.05
    """Learning rate of that training."""
    path_epochs: int | None = None
    """The joint training after the search goes on until the network's own path has had so many epochs in all: initial
    training, rounds, joint trainings."""


@dataclass(frozen=True, kw_only=True)
class UniformOptions:
    """Uniform networks for comparison"""

    uniform: str = ""
    """Widths of uniform networks to train for comparison, as in 16,32."""
    controls: bool = False
    """Train the uniform network of the planted one's size, its widths from scratch and a wider network pruned to the
    size, too, each for as many epochs: what the search has to beat."""
    uniform_objective: Literal["ce", "kl"] = "kl"
    """What uniform networks minimise."""
    uniform_lr: float = 0.1
    """Learning rate of uniform networks."""
    uniform_epochs: int | None = None
    """Epochs of uniform networks; default: as many as the planted network's own path had."""


@dataclass(frozen=True, kw_only=True)
class PlantOptions(
    DataOptions,
    TeacherOptions,
    InitialOptions,
    CandidateOptions,
    SearchOptions,
    JointOptions,
    UniformOptions,
    OptimizerOptions,
    NetworkOptions,
    MachineOptions,
):
    """Grow a network by channel planting: teacher, initial network, search, comparison, report."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions, TeacherOptions, OptimizerOptions, NetworkOptions, MachineOptions):
    """Train one network with widths of your own, by cross entropy or from a teacher."""

    widths: str = "16"
    """Channels of the five convolutions, as in 16,16,16,16,16; one number stands for all five."""
    objective: Literal["ce", "kl", "kd", "adversarial"] = "ce"
    """From the labels (ce), from a teacher (kl), both (kd), or both against a discriminator (adversarial)."""
    discriminator_lr: float = 1e-3
    """Learning rate of the discriminator of adversarial."""
    epochs: int = 40
    """Passes over the training part."""
    lr: float = 0.1
    """Learning rate."""
    temperature: float = 1.0
    """Temperature of the distillation losses kl and kd."""
    alpha: float = 0.9
    """Weight of the teacher in the loss kd."""
    label_smoothing: float = 0.0
    """Of ce and kd."""
    regularizer: Penalty | None = None
    """Group sparse penalty on the convolutions, added to the loss."""
    regularizer_groups: Literal["feature", "neuron"] = "feature"
    """Its groups: input channels, or output channels."""
    regularizer_strength: float = 1e-3
    """Its weight beside the loss."""
    regularizer_mix: float = 0.5
    """Share of the penalty in the term; the rest is l1."""


@dataclass(frozen=True, kw_only=True)
class TeacherRunOptions(DataOptions, OptimizerOptions, NetworkOptions, MachineOptions):
    """Train a teacher."""

    width: int = 32
    """Width of all five convolutions."""
    epochs: int = 40
    """Passes over the training part."""
    lr: float = 0.1
    """Learning rate."""
    label_smoothing: float = 0.0
    """Of the cross entropy."""


@dataclass(frozen=True, kw_only=True)
class PruneOptions(DataOptions, OptimizerOptions, MachineOptions):
    """Remove the filters that a run's network can do without, and fine-tune what is left."""

    network: str = ""
    """Run (or network folder) whose network is pruned."""
    model: str | None = None
    """The network's factory, where it is your own: package.module:factory."""
    max_parameters: int | None = None
    """Prune until there are no more parameters than this."""
    max_macs: int | None = None
    """Prune until one image costs no more multiply-accumulates than this."""
    max_loss_increase: float | None = None
    """Prune as long as the loss on the samples, before fine-tuning, stays within this of what it was."""
    criterion: Literal["loss", "loss_per_parameter", "loss_per_mac", "magnitude"] = "loss"
    """What goes first: what the loss minds least (over what it saves), or the smallest filters."""
    share: float = 0.1
    """Share of the filters to remove before they are scored again."""
    multiple_of: int = 1
    """Widths become multiples of this."""
    samples: int = 1024
    """Training images that filters are scored on."""
    teacher: str | None = None
    """Run whose teacher (else network) teaches the fine-tuning; default: the network before it was pruned."""
    teacher_model: str | None = None
    """Its factory, where it is your own and not --model."""
    finetune_epochs: int = 0
    """Epochs of training what is left."""
    lr: float = 0.01
    """Its learning rate."""
    objective: Literal["ce", "kl", "kd", "adversarial"] = "kd"
    """What it minimises."""
    temperature: float = 1.0
    """Temperature of the distillation losses kl and kd."""
    alpha: float = 0.9
    """Weight of the teacher in the loss kd."""
    discriminator_lr: float = 1e-3
    """Learning rate of the discriminator of adversarial."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test loss, accuracy and cost of a run's network."""

    run: str
    """Folder of a run, or of one of its networks."""
    network: str | None = None
    """Which network of the run (teacher, initial, planted, ...); default: the one that the run is about."""
    model: str | None = None
    """The package.module:factory that made the network, where it is not the paper's, torchvision's or timm's."""
    data_root: str | None = None
    """Folder with the official files of the data set."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write a run's report.html again."""

    run: str
    """Folder of a run."""
    model: str | None = None
    """The package.module:factory that made its networks, where it is not the paper's, torchvision's or timm's."""
    data_root: str | None = None
    """Folder with the official files of the data set, if not where the run found them."""


COMMANDS: dict[str, type[object]] = {
    "plant": PlantOptions,
    "train": TrainOptions,
    "teacher": TeacherRunOptions,
    "prune": PruneOptions,
    "evaluate": EvaluateOptions,
    "report": ReportOptions,
}
"""What the commands take; ``bench`` and ``info`` have options of their own."""
POSITIONAL = "run"
"""The field that is given without a flag, where a command has it."""


def by_topic(kind: type[Any]) -> Iterator[tuple[type[Any], list[dataclasses.Field[Any]]]]:
    """The options of a command in the order in which they are shown: its own, then those of each of its topics."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for owner in kind.__mro__:
        own = [fields[name] for name in vars(owner).get("__annotations__", {}) if name in fields]
        if own:
            yield owner, own


OLD_NAMES = {
    "loss": "objective",
    "distill": "objective",
    "initial_loss": "initial_objective",
    "uniform_loss": "uniform_objective",
    "max_params": "max_parameters",
}
"""What options were called before they had the names that they have in Python. Flags and files may still say it."""

LEAST = {
    "seed": 0,
    "split_seed": 0,
    "threads": 1,
    "checkpoint_seconds": 0,
    "image_size": 1,
    "fc_width": 1,
    "batch_size": 1,
    "crop": 0,
    "teacher_width": 1,
    "teacher_epochs": 0,
    "width": 1,
    "initial_epochs": 0,
    "epochs": 1,
    "max_parameters": 1,
    "max_macs": 1,
    "max_loss_increase": 0,
    "max_rounds": 0,
    "sites_per_round": 1,
    "prune_every": 0,
    "sweep_memory": 1,
    "joint_epochs": 0,
    "finetune_epochs": 0,
    "path_epochs": 0,
    "uniform_epochs": 1,
    "multiple_of": 1,
    "samples": 1,
}
"""The smallest value of each number that has one."""
MOST, MOST_OF_ALL = {"threads": 4096, "image_size": 1 << 16}, 1 << 53
"""The largest value of those that have one of their own, and of all others."""

CODE = ("model", "teacher", "teacher_model")
"""Options that may name code, which is run only when the command line itself names it."""
