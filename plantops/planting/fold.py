"""Batch norm folded into the layer in front of it: the same function in ``eval()``, fewer parameters, less work."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from plantops.errors import ArgumentError
from plantops.graph import check_plain
from plantops.graph.capture import Untraceable, capture
from plantops.graph.inputs import arguments

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batch_norm(model: nn.Module, example_inputs: Any, *, inplace: bool = False) -> nn.Module:
    """Fold every batch norm that directly follows a convolution or a linear layer into that layer.

    With running mean ``m``, running variance ``v``, affine ``g``, ``b`` and a layer of weight ``W`` and bias ``c``, the
    layer gets ``W g / sqrt(v + eps)`` and ``(c - m) g / sqrt(v + eps) + b``, and the norm becomes ``nn.Identity``. In
    ``eval()`` the outputs stay the same to rounding; in ``train()`` nothing is normalised any more, so fold after the
    last training. A layer without a bias gets one.

    Args:
        model: a plain model (after ``plantops.merge``), grown or not.
        example_inputs: a batch for its forward, or a tuple of the forward's inputs.
        inplace: change ``model`` itself instead of a deep copy.

    Returns:
        the folded model. Norms stay that have no running statistics, whose layer is read by others too or called
        several times, and those with hooks.

    Raises:
        ValueError: a planted or wrapped model; a forward that cannot be followed, with the reason.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, arXiv 1712.05877, section 3.2.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> images = torch.randn(2, 3, 8, 8)
    >>> folded = fold_batch_norm(model, images)
    >>> folded
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    >>> torch.allclose(folded(images), model(images), atol=1e-5)
    True
    """
    check_plain(model)
    try:
        graph = capture(model, *arguments(example_inputs)).graph
    except Untraceable as error:
        raise ArgumentError(f"model: its forward cannot be followed ({error})") from error
    pairs = _pairs(model, list(graph.nodes))
    model = model if inplace else copy.deepcopy(model)
    for layer, norm in pairs:
        _fold(model.get_submodule(layer), model.get_submodule(norm))
        model.set_submodule(norm, nn.Identity())
    return model


def _pairs(model: nn.Module, nodes: Sequence[fx.Node]) -> list[tuple[str, str]]:
    """(layer, norm) by name, where nothing but the norm sees what the layer gives."""
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found = []
    for node in nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        layer, norm = model.get_submodule(str(source.target)), model.get_submodule(str(node.target))
        once = calls[node.target] == calls[source.target] == 1 == uses[id(layer)] == uses[id(norm)]
        if once and _fit(layer, norm) and not _has_hooks(layer) and not _has_hooks(norm):
            found.append((str(source.target), str(node.target)))
    return found


def _fit(layer: nn.Module, norm: nn.Module) -> bool:
    if type(norm) not in _NORMS or norm.running_mean is None:
        return False
    return type(layer) in _CONVOLUTIONS or (type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(layer: Any, norm: Any) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    with torch.no_grad():
        layer.weight, layer.bias = fuse(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
