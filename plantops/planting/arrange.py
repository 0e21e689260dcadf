"""Planted layers whose new channels are in several places of one dimension.

A planted layer takes and makes its new channels in one run. Where they reach it in several (from several sites behind a
concatenation, or from one whose channels are split into parts), or where it has to make them in several parts, all of
them stand behind its old channels inside the layer, and it is put before and behind an index over its channels: a copy
of its input, or of its output. Only while planted: ``merge`` reorders the weights instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

_CLASSES: dict[type, type[nn.Module]] = {}


Runs = Sequence[tuple[int, int]]
"""Of new channels, in order: the old entry before which they are, and how many."""


def arrange(
    layer: nn.Module,
    inputs: tuple[int, Runs] | None,
    outputs: tuple[int, Runs] | None,
    device: torch.device | None = None,
) -> None:
    """Let ``layer``, whose new channels are behind its old ones, take and make them where they are.

    Args:
        inputs, outputs: how many old ones there are, and the runs of new ones; None where they are behind.
        device: of the inputs.
    """
    layer.__class__ = _arranged(type(layer))
    before = None if inputs is None else _order(*inputs).to(device)
    behind = None if outputs is None else torch.argsort(_order(*outputs)).to(device)
    layer.register_buffer("_inputs", before, persistent=False)
    layer.register_buffer("_outputs", behind, persistent=False)


def _arranged(plain: type[nn.Module]) -> type[nn.Module]:
    if plain not in _CLASSES:
        _CLASSES[plain] = type(f"Arranged{plain.__name__}", (_Arranged, plain), {})
    return _CLASSES[plain]


def _order(features: int, runs: Runs) -> Tensor:
    """Where each old entry, then each new one, is in the grown dimension."""
    starts = torch.tensor([start for start, _ in runs])
    counts = torch.tensor([count for _, count in runs])
    entries = torch.arange(features)
    old = entries + ((starts[:, None] <= entries) * counts[:, None]).sum(0)
    new = [start + int(counts[starts < start].sum()) + torch.arange(count) for start, count in runs]
    return torch.cat([old, *new])


class _Arranged:
    """Put before a planted layer's class."""

    _inputs: Tensor | None
    _outputs: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """Shapes as in the layer itself."""
        dim = input.dim() - 1 if hasattr(self, "in_features") else 1
        input = input if self._inputs is None else input.index_select(dim, self._inputs)
        output = super().forward(input)  # type: ignore[misc]
        return output if self._outputs is None else output.index_select(dim, self._outputs)

    def merge(self) -> nn.Module:
        """The plain layer, its weights in the order of the channels."""
        merged: nn.Module = super().merge()  # type: ignore[misc]
        inputs = None if self._inputs is None else torch.argsort(self._inputs)
        with torch.no_grad():
            for key, tensor in (*merged._parameters.items(), *merged._buffers.items()):
                if tensor is None or not tensor.dim():
                    continue
                for dim, order in _orders(merged, key, inputs, self._outputs):
                    if order is not None:
                        tensor.copy_(tensor.index_select(dim, order))
        return merged

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made on the fly and has no name to be found by; copy and pickle rebuild it from the plain one.
        return (_blank, (type(self).__bases__[1],), *super().__reduce_ex__(protocol)[2:])


def _orders(
    layer: nn.Module, key: str, inputs: Tensor | None, outputs: Tensor | None
) -> list[tuple[int, Tensor | None]]:
    """In which order the entries of a tensor of ``layer`` have to be, by dimension."""
    transposed = isinstance(layer, _ConvTransposeNd)
    if key != "weight" or not isinstance(layer, (_ConvNd, nn.Linear)):
        return [(0, outputs)]
    if getattr(layer, "groups", 1) > 1:
        return [(0, inputs if transposed else outputs)]
    return [(0, inputs), (1, outputs)] if transposed else [(0, outputs), (1, inputs)]


def _blank(plain: type[nn.Module]) -> nn.Module:
    cls = _arranged(plain)
    return cls.__new__(cls)
