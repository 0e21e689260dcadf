"""Did planting or merging change what the network computes?"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plantops.errors import PlantopsError
from plantops.graph.inputs import parts

_ROUNDINGS = 32


class PlantingError(PlantopsError, AssertionError):
    """Two networks that must compute the same do not."""


def check_function_preserving(
    before: nn.Module,
    after: nn.Module,
    *inputs: Any,
    tolerance: float | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> float:
    """Compare ``before(*inputs, **keywords)`` and ``after(*inputs, **keywords)`` in ``eval()``, without gradients.

    Args:
        before: the model before planting (or the planted one, to check a merge).
        after: the planted (or merged) model.
        inputs, keywords: what ``forward`` is called with.
        tolerance: largest difference allowed; ``None`` is rounding, ``32 eps(dtype) max |before(*inputs)|``.

    Returns:
        the largest absolute difference over all outputs.

    Raises:
        PlantingError: the difference is above the tolerance, or is not a number; or the outputs differ in structure
            or shape.
    """
    old, new = (tensors_of(evaluate(model, inputs, keywords)) for model in (before, after))
    if [tensor.shape for tensor in old] != [tensor.shape for tensor in new]:
        raise PlantingError(f"outputs of {_shapes(old)} became outputs of {_shapes(new)}")
    worst = 0.0
    for a, b in zip(old, new, strict=True):
        if a.numel() == 0:
            continue
        error = float((a.double() - b.double()).abs().max())
        limit = tolerance
        if limit is None:
            eps = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
            limit = _ROUNDINGS * eps * float(a.double().abs().max())
        if not error <= limit:
            raise PlantingError(f"outputs differ by {error:.3g}, more than {limit:.3g}")
        worst = max(worst, error)
    return worst


def evaluate(model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None = None) -> Any:
    """``model(*inputs, **keywords)`` in ``eval()``, without gradients; the modes are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            return model(*inputs, **(keywords or {}))
    finally:
        for module, mode in modes:
            module.training = mode


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of a nested output, in a fixed order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for key in sorted(output) for tensor in tensors_of(output[key])]
    return [tensor for _, part in parts(output) for tensor in tensors_of(part)]


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors) or "nothing"
