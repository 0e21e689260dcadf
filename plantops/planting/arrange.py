"""Planted layers into whose input several sites plant: new channels in several places of one dimension.

A planted layer takes its new channels in one run. Where several sites reach it, all of them stand behind its old
channels inside the layer, and it is put before and behind an index over its channels (a copy of its input and, for
layers that pass channels on, of its output). Only while planted: ``merge`` reorders the weights instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

_CLASSES: dict[type, type[nn.Module]] = {}


def arrange(
    layer: nn.Module,
    features: int,
    runs: Sequence[tuple[int, int]],
    outputs: int | None = None,
    device: torch.device | None = None,
) -> None:
    """Let ``layer``, whose new channels are behind its ``features`` old ones, take them where they are.

    Args:
        runs: for each site, in the order in which they stand in the layer, the old entry before which its new ones
            are, and how many.
        outputs: old entries of the output where the layer passes the channels on in the same order; None where it
            does not.
        device: of the inputs.
    """
    layer.__class__ = _arranged(type(layer))
    behind = None
    if outputs is not None:
        scaled = [(start * outputs // features, count * outputs // features) for start, count in runs]
        behind = torch.argsort(_order(outputs, scaled)).to(device)
    layer.register_buffer("_inputs", _order(features, runs).to(device), persistent=False)
    layer.register_buffer("_outputs", behind, persistent=False)


def _arranged(plain: type[nn.Module]) -> type[nn.Module]:
    if plain not in _CLASSES:
        _CLASSES[plain] = type(f"Arranged{plain.__name__}", (_Arranged, plain), {})
    return _CLASSES[plain]


def _order(features: int, runs: Sequence[tuple[int, int]]) -> Tensor:
    """Where each old entry, then each new one, is in the grown dimension."""
    starts = torch.tensor([start for start, _ in runs])
    counts = torch.tensor([count for _, count in runs])
    entries = torch.arange(features)
    old = entries + ((starts[:, None] <= entries) * counts[:, None]).sum(0)
    new = [start + int(counts[starts < start].sum()) + torch.arange(count) for start, count in runs]
    return torch.cat([old, *new])


class _Arranged:
    """Put before a planted layer's class."""

    _inputs: Tensor
    _outputs: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """Shapes as in the layer itself."""
        dim = input.dim() - 1 if hasattr(self, "in_features") else 1
        output = super().forward(input.index_select(dim, self._inputs))  # type: ignore[misc]
        return output if self._outputs is None else output.index_select(1, self._outputs)

    def merge(self) -> nn.Module:
        """The plain layer, its weights in the order of the channels."""
        merged: nn.Module = super().merge()  # type: ignore[misc]
        inputs, outputs = torch.argsort(self._inputs), self._outputs
        with torch.no_grad():
            if outputs is None:
                weight = merged._parameters["weight"]
                assert weight is not None
                dim = 0 if isinstance(merged, _ConvTransposeNd) else 1
                weight.copy_(weight.index_select(dim, inputs))
                return merged
            for key, tensor in (*merged._parameters.items(), *merged._buffers.items()):
                if tensor is not None and tensor.dim():
                    by_input = isinstance(merged, _ConvTransposeNd) and key == "weight"
                    tensor.copy_(tensor.index_select(0, inputs if by_input else outputs))
        return merged

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made on the fly and has no name to be found by; copy and pickle rebuild it from the plain one.
        return (_blank, (type(self).__bases__[1],), *super().__reduce_ex__(protocol)[2:])


def _blank(plain: type[nn.Module]) -> nn.Module:
    cls = _arranged(plain)
    return cls.__new__(cls)
