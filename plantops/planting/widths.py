"""Widths of layers that a file names: believed only where the tensors beside them say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from plantops.errors import ArgumentError
from plantops.train.files import RunError

MOST = 1 << 31
"""More channels than any layer has."""
_WIDTHS = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "num_groups", "num_parameters",
)  # fmt: skip
_DIVIDE = {"groups": ("in_channels", "out_channels"), "num_groups": ("num_channels",)}

Widths = Mapping[str, int]


def widths_of(module: nn.Module) -> dict[str, int]:
    """The widths of a layer that has tensors, by their names; nothing for any other module."""
    if not module._parameters and not module._buffers:
        return {}
    return {key: vars(module)[key] for key in _WIDTHS if isinstance(vars(module).get(key), int)}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of this very module."""
    return {key: value for key, value in (*module._parameters.items(), *module._buffers.items()) if value is not None}


def check_stored(model: nn.Module, layers: Any, tensors: Mapping[str, Tensor], where: str) -> None:
    """``model`` can take ``tensors`` once its layers are as wide as ``layers`` says. Nothing is changed.

    Args:
        where: the file of ``layers``, for the message.

    Raises:
        RunError: entries that are no widths, or that contradict the tensors; names the entry.
        ArgumentError: another model: a layer is missing or of another kind, a tensor is missing or has another shape.
    """
    if not isinstance(layers, dict):
        raise RunError(f"{where}: damaged, layers must be an object of widths by layer, got {layers!r:.80}.")
    for name, stored in layers.items():
        _check_numbers(name, stored, where)
    modules = dict(model.named_modules())
    for name, stored in layers.items():
        if name not in modules or widths_of(modules[name]).keys() != stored.keys():
            found = type(modules[name]).__name__ if name in modules else "no such layer"
            raise ArgumentError(f"factory makes another model: {name} was stored with {stored}, it has {found}")
    expected = model.state_dict()
    for key in sorted(expected.keys() ^ tensors.keys()):
        kind = "is not stored" if key in expected else "was stored, and it has no such tensor"
        raise ArgumentError(f"factory makes another model: its {key} {kind}")
    for key, tensor in tensors.items():
        name, _, own = key.rpartition(".")
        if not _same_kind(expected[key].dtype, tensor.dtype):
            raise RunError(f"{where}: damaged, {key} is stored as {tensor.dtype}, the layer has {expected[key].dtype}.")
        if name in layers and own in own_tensors(modules[name]):
            _check_shape(name, own, modules[name], layers[name], tensor, where)
        elif tensor.shape != expected[key].shape:
            raise ArgumentError(
                f"factory makes another model: {key} was stored as {list(tensor.shape)}, "
                f"it has {list(expected[key].shape)}"
            )


def _check_numbers(name: str, stored: Any, where: str) -> None:
    if not isinstance(stored, dict):
        raise RunError(f"{where}: damaged, layers[{name!r}] must be an object of widths, got {stored!r:.80}.")
    for key, value in stored.items():
        if key not in _WIDTHS or type(value) is not int or not 1 <= value <= MOST:
            text = repr(value)[:80]
            raise RunError(f"{where}: damaged, layers[{name!r}][{key!r}] must be a width from 1 to 2^31, got {text}.")
    for key, divided in _DIVIDE.items():
        for other in divided:
            if key in stored and other in stored and stored[other] % stored[key]:
                raise RunError(
                    f"{where}: damaged, layers[{name!r}][{key!r}] must divide {other} {stored[other]}, "
                    f"got {stored[key]}."
                )


def _check_shape(name: str, key: str, module: nn.Module, stored: Widths, tensor: Tensor, where: str) -> None:
    """The tensor has the shape that a layer of this kind and these widths gives it."""
    expected = _shape(module, key, stored)
    own = getattr(module, key).shape
    if expected is None:  # no layer of torch's own: each size as in the model, or one of the widths
        fits = len(own) == len(tensor.shape) and all(
            size == old or size in stored.values() for size, old in zip(tensor.shape, own, strict=True)
        )
        expected = tensor.shape if fits else own
    if tensor.shape != expected:
        said = ", ".join(f"{width} {value}" for width, value in stored.items())
        raise RunError(
            f"{where}: damaged, layers[{name!r}] says {said}, for which {name}.{key} must be {list(expected)}; "
            f"it is {list(tensor.shape)}."
        )


def _shape(module: nn.Module, key: str, widths: Widths) -> tuple[int, ...] | None:
    """The shape of ``module``'s tensor ``key`` at these widths; None for a kind of layer that is not known."""
    if isinstance(module, _ConvNd):
        read, made = widths["in_channels"], widths["out_channels"]
        if isinstance(module, _ConvTransposeNd):
            shapes = {"weight": (read, made // widths["groups"], *module.kernel_size), "bias": (made,)}
        else:
            shapes = {"weight": (made, read // widths["groups"], *module.kernel_size), "bias": (made,)}
    elif isinstance(module, nn.Linear):
        shapes = {"weight": (widths["out_features"], widths["in_features"]), "bias": (widths["out_features"],)}
    elif isinstance(module, (_NormBase, nn.GroupNorm, nn.PReLU)):
        names = ("num_features", "num_channels", "num_parameters")
        width = next(widths[name] for name in names if name in widths)
        shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width,))
        shapes["num_batches_tracked"] = ()
    else:
        return None
    return shapes.get(key)


def _same_kind(wanted: torch.dtype, got: torch.dtype) -> bool:
    """Floating point becomes floating point of another width; anything else only itself."""
    return wanted == got or (wanted.is_floating_point and got.is_floating_point)
