"""A group sparse regulariser over a model's convolutions, as a loss term for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from plantops.errors import ArgumentError
from plantops.functional import group_sparsity, group_sparsity_value_and_grad
from plantops.ops import _checks
from plantops.ops import group_sparsity as _sparsity
from plantops.ops._registry import check_impl

# How models name the convolution that fits a residual block's input to its output.
SHORTCUTS = ("downsample", "shortcut")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolutions(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The convolutions that are regularised, by qualified name.

    By default every `Conv1d`, `Conv2d` and `Conv3d` but those on a shortcut (a part of the name is one of `SHORTCUTS`);
    with `layers` exactly the ones named. Raises ValueError for a name that is no convolution, and when none is left.
    """
    found: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, _CONVOLUTIONS)}
    if layers is None:
        chosen = {name: module for name, module in found.items() if not set(name.split(".")) & set(SHORTCUTS)}
    else:
        unknown = [name for name in layers if name not in found]
        if unknown:
            names = ", ".join(found) or "there is none"
            raise ArgumentError(f"layers: expected names of convolutions ({names}), got {unknown[0]!r}")
        chosen = {name: found[name] for name in layers}
    if not chosen:
        raise ArgumentError(
            f"model: expected at least one convolution to regularise, got none in {type(model).__name__}"
        )
    return chosen


class GroupSparsity(nn.Module):
    """``strength (mix R + (1 - mix) sum |W|)`` over the convolution weights of a model; add it to the loss.

    R is a penalty of `plantops.functional.group_sparsity`, with the groups it names. Shortcut convolutions (a part of
    the name is "downsample" or "shortcut"), linear layers and biases are left out; `layers` selects others by name. The
    model is referred to, not owned: this module has no parameters and an empty `state_dict`, and follows weights that
    move, train or are replaced.

    >>> regulariser = plantops.nn.GroupSparsity(model, penalty="hierarchical_squared_group_lasso")
    >>> loss = F.cross_entropy(model(images), labels) + regulariser()

    Args:
        model: any module with convolutions.
        penalty: a name of `plantops.functional.group_sparsity`.
        groups: "feature" (input channels) or "neuron" (output channels).
        strength: lambda >= 0.
        mix: mu in [0, 1], the share of R beside the plain l1 term.
        layers: qualified names of the convolutions to regularise, instead of the default.
        impl: "auto", "reference", "aten", "native" or "triton".

    Raises:
        ValueError: penalty, groups, strength, mix, a name in `layers` that is no convolution, no convolution at all.

    Source: Mitsuno, Miyao, Kurita, arXiv 2004.04394; strength and mix as in their code.
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: str,
        groups: str = "feature",
        strength: float = 1e-3,
        mix: float = 0.5,
        *,
        layers: Sequence[str] | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        _sparsity.check_choices(penalty, groups)
        if not 0.0 <= strength < float("inf"):
            raise ArgumentError(f"strength: expected a finite number >= 0, got {strength}")
        _checks.check_unit("mix", mix)
        check_impl(impl)
        chosen = convolutions(model, layers)
        self.layer_names = tuple(chosen)
        # In a tuple the model's layers are not registered as this module's children.
        self._layers = tuple(chosen.values())
        self.penalty, self.groups, self.strength, self.mix, self.impl = penalty, groups, strength, mix, impl

    def weights(self) -> list[Tensor]:
        """The regularised weights as they are now."""
        return [layer.get_parameter("weight") for layer in self._layers]

    def forward(self) -> Tensor:
        """The loss term, a number."""
        return group_sparsity(self.weights(), self.penalty, self.groups, impl=self.impl, **self._factors())

    @torch.no_grad()
    def add_gradient(self, scale: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Add the term's gradient to the weights' `.grad` without autograd, in one pass; returns the term.

        Weights that need no gradient are left alone. `scale` is applied to every gradient (that of a loss scaler).
        """
        weights = self.weights()
        value, gradients = group_sparsity_value_and_grad(
            weights, self.penalty, self.groups, impl=self.impl, **self._factors()
        )
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight.requires_grad:
                gradient = gradient if scale is None else scale(gradient)
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return value

    def _factors(self) -> dict[str, float]:
        return {"strength": self.strength * self.mix, "l1": self.strength * (1.0 - self.mix)}

    @torch.no_grad()
    def sparsity(self, threshold: float = 1e-3) -> float:
        """The share of regularised weights with an absolute value below `threshold`, in [0, 1]."""
        weights = self.weights()
        small = sum(int((weight.abs() < threshold).sum()) for weight in weights)
        return small / max(1, sum(weight.numel() for weight in weights))

    def extra_repr(self) -> str:
        return (
            f"penalty={self.penalty!r}, groups={self.groups!r}, strength={self.strength}, mix={self.mix},"
            f" layers={len(self.layer_names)}"
        )
