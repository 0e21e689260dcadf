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

from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.planting.blocks import PLANTED
from plantops.planting.widths import check_stored, own_tensors, widths_of
from plantops.train.files import (
    RunError,
    atomic_write_bytes,
    atomic_write_text,
    explained,
    parse_json,
    read_regular,
)

_FORMAT, _VERSION = "plantops-model", 1
_WEIGHTS, _STRUCTURE = "model.safetensors", "structure.json"


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a merged, plain model to the folder ``path``, so that ``load`` can build it again.

    Args:
        model: any module without planted layers; tensors of any dtype, on any device.
        path: a folder, made if it is not there. Its two files are replaced whole, the description last.

    Raises:
        ValueError: the model has planted layers: merge it first.
        RunError: the folder cannot be written; says what to do.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
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
        what ``factory`` made, with its layers as wide as stored and the stored tensors, on the factory's device and in
        its floating point type.

    Raises:
        RunError: files that are missing, damaged or not written by ``save``; names the entry.
        ValueError: ``factory`` makes another model: a layer is missing or of another kind.
        TypeError: ``factory`` is no function that makes a model.
    """
    if isinstance(factory, nn.Module):
        kind = type(factory).__name__
        raise ArgumentTypeError(
            f"factory must be a function that makes the model, got a {kind}: pass lambda: {kind}(...)"
        )
    if not callable(factory):
        raise ArgumentTypeError(f"factory must be a function that makes the model, got {factory!r}")
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(f"path must be the folder that plantops.save wrote, got {type(path).__name__}")
    folder = Path(path)
    structure, tensors = _read(folder)
    model = factory()
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"factory must make a torch.nn.Module, got {type(model).__name__}")
    fill(model, structure["layers"], tensors, str(folder / _STRUCTURE))
    return model


def layer_widths(model: nn.Module) -> dict[str, dict[str, int]]:
    """The widths of every layer that has tensors, by its name: what ``fill`` needs."""
    return {name: widths_of(module) for name, module in model.named_modules() if widths_of(module)}


def fill(model: nn.Module, layers: Any, tensors: dict[str, Tensor], where: str = _STRUCTURE) -> None:
    """Widen the layers of ``model`` to ``layers`` and give it the stored ``tensors``: all of it, or nothing.

    ``where``: the file of ``layers``, for the message.

    Raises:
        RunError: widths that are none, or that contradict the tensors. ValueError: ``model`` is another one.
    """
    check_stored(model, layers, tensors, where)
    modules = dict(model.named_modules())
    for name, stored in layers.items():
        prefix = f"{name}." if name else ""
        _widen(modules[name], stored, {key: tensors.get(prefix + key) for key in own_tensors(modules[name])})
    model.load_state_dict(tensors)


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
    structure = parse_json(read_regular(folder / _STRUCTURE), folder / _STRUCTURE)
    content = read_regular(folder / _WEIGHTS)
    known = isinstance(structure, dict) and structure.get("format") == _FORMAT
    if not known or structure.get("version") != _VERSION or "layers" not in structure:
        raise RunError(f"{folder / _STRUCTURE}: not written by plantops.save of this version.")
    if hashlib.sha256(content).hexdigest() != structure.get("sha256"):
        raise RunError(f"{folder / _WEIGHTS}: damaged, its SHA-256 is not the one in {_STRUCTURE}.")
    try:
        return structure, safetensors.torch.load(content)
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"{folder / _WEIGHTS}: damaged ({error}).") from error
