"""A grown model as files.

A grown model is stored as two files: ``structure.json``, the width of every layer that has tensors, and
``model.safetensors``, the tensors. ``load`` builds the model with the user's own factory and widens its layers to the
stored shapes; nothing is unpickled.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from plantops.errors import ArgumentError
from plantops.planting.blocks import PLANTED
from plantops.train.files import RunError, atomic_write_bytes, atomic_write_text, explained

_FORMAT, _VERSION = "plantops-model", 1
_WEIGHTS, _STRUCTURE = "model.safetensors", "structure.json"
_WIDTHS = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "num_groups", "num_parameters",
)  # fmt: skip


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a merged, plain model to the folder ``path``, so that ``load`` can build it again.

    Args:
        model: any module without planted layers; tensors of any dtype, on any device.
        path: a folder, made if it is not there. Its two files are replaced whole, the description last.

    Raises:
        ValueError: the model has planted layers: merge it first.
        RunError: the folder cannot be written; says what to do.
    """
    if any(isinstance(module, PLANTED) for module in model.modules()):
        raise ArgumentError("model must be merged before it is saved: plantops.save(plantops.merge(model), path)")
    folder = Path(path)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Copies: safetensors stores no memory that two names share.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    content = safetensors.torch.save(tensors)
    structure = {
        "format": _FORMAT,
        "version": _VERSION,
        "class": type(model).__qualname__,
        "sha256": hashlib.sha256(content).hexdigest(),
        "layers": layer_widths(model),
    }
    atomic_write_bytes(folder / _WEIGHTS, content)
    atomic_write_text(folder / _STRUCTURE, json.dumps(structure, indent=1) + "\n")
    return folder


def load(path: str | os.PathLike[str], factory: Callable[[], nn.Module]) -> nn.Module:
    """Build the model that ``save`` wrote to ``path``.

    Args:
        path: the folder.
        factory: makes the model as it was before it grew, e.g. ``lambda: torchvision.models.resnet18()``.

    Returns:
        what ``factory`` made, with its layers as wide as stored and the stored tensors, on the factory's device.

    Raises:
        RunError: files that are missing, damaged or not written by ``save``.
        ValueError: ``factory`` makes another model: a layer is missing or of another kind.
    """
    folder = Path(path)
    structure, tensors = _read(folder)
    model = factory()
    try:
        fill(model, structure["layers"], tensors)
    except RuntimeError as error:
        raise ArgumentError(f"factory makes another model than the stored {structure['class']}: {error}") from error
    return model


def layer_widths(model: nn.Module) -> dict[str, dict[str, int]]:
    """The widths of every layer that has tensors, by its name: what ``fill`` needs."""
    return {name: _widths(module) for name, module in model.named_modules() if _widths(module)}


def fill(model: nn.Module, layers: dict[str, dict[str, int]], tensors: dict[str, Tensor]) -> None:
    """Widen the layers of ``model`` to ``layers`` and give it the stored ``tensors``.

    Raises:
        ValueError: a layer is missing or of another kind. RuntimeError: tensors are missing, or do not fit.
    """
    modules = dict(model.named_modules())
    for name, stored in layers.items():
        if name not in modules or _widths(modules[name]).keys() != stored.keys():
            found = type(modules[name]).__name__ if name in modules else "no such layer"
            raise ArgumentError(f"factory makes another model: {name} was stored with {stored}, it has {found}")
        _widen(modules[name], stored, {key: tensors.get(f"{name}.{key}") for key in _own(modules[name])})
    model.load_state_dict(tensors)


def _widths(module: nn.Module) -> dict[str, int]:
    if not module._parameters and not module._buffers:
        return {}
    return {key: vars(module)[key] for key in _WIDTHS if isinstance(vars(module).get(key), int)}


def _own(module: nn.Module) -> list[str]:
    return [key for key, value in (*module._parameters.items(), *module._buffers.items()) if value is not None]


def _widen(module: nn.Module, widths: dict[str, int], tensors: dict[str, Tensor | None]) -> None:
    for key, stored in tensors.items():
        own = getattr(module, key)
        if stored is None or own.shape == stored.shape:
            continue
        grown = own.new_empty(stored.shape)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(grown, requires_grad=own.requires_grad)
        else:
            module._buffers[key] = grown
    vars(module).update(widths)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with explained(folder / _STRUCTURE):
        text = (folder / _STRUCTURE).read_bytes()
    with explained(folder / _WEIGHTS):
        content = (folder / _WEIGHTS).read_bytes()
    try:
        structure = json.loads(text)
        if structure["format"] != _FORMAT or structure["version"] != _VERSION:
            raise RunError(f"{folder / _STRUCTURE}: not written by plantops.save of this version.")
        if hashlib.sha256(content).hexdigest() != structure["sha256"]:
            raise RunError(f"{folder / _WEIGHTS}: damaged, its SHA-256 is not the one in {_STRUCTURE}.")
        return {"layers": structure["layers"], "class": structure["class"]}, safetensors.torch.load(content)
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"{folder / _STRUCTURE}: damaged, or not written by plantops.save ({error}).") from error
