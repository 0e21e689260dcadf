"""Finished networks as files: weights in safetensors, and a JSON description from which the network is built again.

A network is a folder with ``model.safetensors`` and ``structure.json``; a run keeps its networks in ``networks/NAME``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from plantops.errors import ArgumentTypeError
from plantops.models import PlantingNet
from plantops.planting.state import fill, layer_widths
from plantops.planting.zoo import LIBRARIES, SOURCE, make
from plantops.train.files import RunError, atomic_write_bytes, atomic_write_text, explained, parse_json, read_regular

FORMAT, VERSION = "plantops-network", 1
WEIGHTS, STRUCTURE, NETWORKS = "model.safetensors", "structure.json", "networks"
MOST = 1 << 20
"""Of an image's channels, rows and columns, and of classes."""
BEST_FIRST = ("retrained", "finetuned", "pruned", "planted", "uniform", "control", "teacher", "initial")
"""Which network of a run is meant when none is named."""


@dataclass(frozen=True)
class Network:
    """A stored network: where it lies, what its description says, and how to build it."""

    folder: Path
    structure: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.structure["name"])

    @property
    def role(self) -> str:
        return str(self.structure["role"])

    @property
    def data(self) -> dict[str, Any]:
        """What the network was trained on: name, shape, num_classes, fingerprint of the training part, mean, std."""
        return dict(self.structure["data"])

    @property
    def made_by(self) -> str | None:
        """What made a network that is no ``PlantingNet``, e.g. ``torchvision:resnet18``."""
        return self.structure["arguments"].get("model")

    def build(self, model: str | None = None, flag: str = "--model") -> nn.Module:
        """The network with its weights, in ``eval()``.

        Args:
            model: the name of the factory that made it, if that is the user's own (``package.module:factory``): code
                is run only when it is named here, not because a file names it.
            flag: what the command line calls ``model``, for the message.

        Raises:
            RunError: weights that are missing, damaged or of another network; a factory that was not named.
        """
        path = self.folder / WEIGHTS
        content = read_regular(path)
        if hashlib.sha256(content).hexdigest() != self.structure.get("sha256"):
            raise RunError(f"{path}: damaged, its SHA-256 is not the one in {STRUCTURE}. Restore it or train again.")
        made_by = self.made_by
        if made_by is not None and made_by.partition(":")[0] not in LIBRARIES and made_by != model:
            raise RunError(
                f"{self.folder}: made by {made_by}, which is run only if it is named: pass {flag} {made_by}."
            )
        try:
            tensors = safetensors.torch.load(content)
            if made_by is None:
                _check_fits(self.structure["arguments"], tensors)
                network: nn.Module = PlantingNet(**self.structure["arguments"])
                network.load_state_dict(tensors)
            else:
                arguments = self.structure["arguments"]
                network = make(made_by, arguments["num_classes"], arguments["shape"])
                fill(network, self.structure["layers"], tensors)
        except Exception as error:  # whatever building and filling a network of odd numbers ends in
            raise RunError(f"{path}: does not fit its {STRUCTURE} ({type(error).__name__}: {error}).") from error
        return network.eval()


def _check_fits(arguments: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The network of ``arguments`` has these tensors: found out before memory is asked for it."""
    with torch.device("meta"):
        expected = PlantingNet(**arguments).state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        wanted, got = (
            (str(group[name].dtype), list(group[name].shape)) if name in group else "nothing"
            for group in (expected, tensors)
        )
        if wanted != got:
            raise RunError(f"{name} must be {wanted}, got {got}")


def describe(model: PlantingNet) -> dict[str, Any]:
    """The arguments that build a ``PlantingNet`` of this structure, read from its layers as they are now."""
    convs = [model.get_submodule(f"conv{layer}") for layer in range(1, 6)]
    fc1, fc2 = model.fc1, model.fc2
    side = round((fc1.in_features / int(convs[-1].out_channels)) ** 0.5)  # type: ignore[arg-type]
    return {
        "widths": [conv.out_channels for conv in convs],
        "num_classes": fc2.out_features,
        "in_channels": convs[0].in_channels,
        "image_size": side << len(model.pool_after),
        "fc_width": fc1.out_features,
        "pool_after": list(model.pool_after),
        "batch_norm": model.batch_norm,
    }


def save_network(
    folder: str | os.PathLike[str], model: nn.Module, *, name: str, role: str, data: Mapping[str, Any]
) -> Path:
    """Write a network (merged, plain) to ``folder``; its description comes last, so it never lacks weights.

    Args:
        model: a ``PlantingNet``, or what a ``ZooFamily`` made, grown or not.

    Raises:
        TypeError: another kind of network; store it with ``plantops.save``.
        RunError: the folder cannot be written.
    """
    source = vars(model).get(SOURCE)
    if not isinstance(model, PlantingNet) and source is None:
        raise ArgumentTypeError(
            f"model must be a PlantingNet or made by name, got {type(model).__name__}: use plantops.save"
        )
    folder = Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Copies: safetensors stores no memory that two names share.
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in model.state_dict().items()}
    content = safetensors.torch.save(tensors)
    structure = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "role": role,
        "class": type(model).__qualname__,
        "arguments": describe(model) if isinstance(model, PlantingNet) else source,
        **({} if isinstance(model, PlantingNet) else {"layers": layer_widths(model)}),
        "data": dict(data),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    atomic_write_bytes(folder / WEIGHTS, content)
    atomic_write_text(folder / STRUCTURE, json.dumps(structure, indent=1) + "\n")
    return folder


def find_network(
    path: str | os.PathLike[str], name: str | None = None, *, first: Sequence[str] = BEST_FIRST
) -> Network:
    """A network by its own folder, or by its run's.

    Args:
        path: a run folder, or a folder with ``structure.json``.
        name: which network of the run (``teacher``, ``initial``, ``planted``, ...); default: the one that the run is
            about: fine-tuned, else planted, else a uniform one, else the teacher.
        first: without a name: the roles in the order in which they are meant.

    Raises:
        RunError: there is none; says what is there.
    """
    path = Path(path).expanduser()
    if os.path.lexists(path / STRUCTURE):
        return _read(path)
    with explained(path / NETWORKS):
        folders = sorted((path / NETWORKS).iterdir()) if (path / NETWORKS).is_dir() else []
    networks = [_read(folder) for folder in folders if os.path.lexists(folder / STRUCTURE)]
    if not path.exists():
        raise RunError(f"{path} does not exist. Give the folder of a run (what --out named).")
    if not networks:
        raise RunError(f"{path} holds no finished network. Is it a run, and did it end? (--resume {path} goes on.)")
    if name is None:
        return min(networks, key=lambda network: [*first, *BEST_FIRST].index(network.role))
    for network in networks:
        if network.name == name:
            return network
    names = ", ".join(network.name for network in networks)
    raise RunError(f"{path} has no network {name!r}; it has {names}.")


def find_teacher(path: str | os.PathLike[str]) -> Network:
    """The network of a run that teaches another one: its teacher where it has one, else as ``find_network`` chooses."""
    return find_network(path, first=("teacher",))


def load_network(path: str | os.PathLike[str], name: str | None = None, model: str | None = None) -> nn.Module:
    """``find_network(path, name).build(model)``: a plain network in ``eval()``, with its weights."""
    return find_network(path, name).build(model)


def _read(folder: Path) -> Network:
    path = folder / STRUCTURE
    structure = parse_json(read_regular(path), path)
    if not isinstance(structure, dict) or structure.get("format") != FORMAT:
        raise RunError(f"{path}: not written by plantops (its format is not {FORMAT!r}).")
    if structure.get("version") != VERSION:
        raise RunError(f"{path}: network version {structure.get('version')}, this plantops reads {VERSION}.")
    for name, kind in (("name", str), ("role", str), ("arguments", dict), ("data", dict), ("sha256", str)):
        if not isinstance(structure.get(name), kind):
            raise RunError(f"{path}: damaged, {name} is missing or no {'text' if kind is str else 'object'}.")
    if structure["role"] not in BEST_FIRST:
        raise RunError(f"{path}: damaged, the role {structure['role']!r} is unknown.")
    made_by, data = structure["arguments"].get("model"), structure["data"]
    if not isinstance(made_by, str | None):
        raise RunError(f"{path}: damaged, arguments.model is no text.")
    shape, classes = data.get("shape"), data.get("num_classes")
    sized = isinstance(shape, list) and len(shape) == 3 and all(type(s) is int and 0 < s <= MOST for s in shape)
    if not sized or type(classes) is not int or not 0 < classes <= MOST or not isinstance(data.get("name"), str):
        raise RunError(f"{path}: damaged, data must have a name, a shape of three sizes and num_classes.")
    channels = shape[0]
    for name in ("mean", "std"):
        values = data.get(name)
        if not isinstance(values, list) or len(values) != channels or not all(map(_finite, values)):
            raise RunError(f"{path}: damaged, data.{name} must be {channels} numbers, one a channel.")
    return Network(folder, structure)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 3e38
