"""A group sparse regulariser over a model's convolutions, as a loss term for any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from plantops._arguments import check_range, check_type
from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.functional import group_sparsity, group_sparsity_value_and_grad
from plantops.nn.anyconv import PlantedConv
from plantops.nn.conv import PlantedConv2d
from plantops.ops import _checks
from plantops.ops import group_sparsity as _sparsity
from plantops.ops._registry import check_impl

# How models name the convolution that fits a residual block's input to its output.
SHORTCUTS = ("downsample", "shortcut")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolutions(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The convolutions that are regularised, by qualified name, planted ones included.

    By default every `Conv1d`, `Conv2d` and `Conv3d` but those on a shortcut (a part of the name is one of `SHORTCUTS`);
    with `layers` exactly the ones named. Raises ValueError for a name that is no convolution, and when none is left.
    """
    found: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if _is_convolution(m)}
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


def _is_convolution(module: nn.Module) -> bool:
    planted = isinstance(module, PlantedConv) and not module.transposed
    return isinstance(module, (*_CONVOLUTIONS, PlantedConv2d)) or planted


_LEFT: WeakKeyDictionary[nn.Module, tuple[str]] = WeakKeyDictionary()


def note_copied(model: nn.Module, by: str) -> None:
    """`by` gave a changed copy of `model`. A term over `model` from before then says so once, when it is used."""
    _LEFT[model] = (by,)  # another object each time


class GroupSparsity(nn.Module):
    """``strength (mix R + (1 - mix) sum |W|)`` over the convolution weights of a model; add it to the loss.

    R is a penalty of `plantops.functional.group_sparsity`, with the groups it names. Shortcut convolutions (a part of
    the name is "downsample" or "shortcut"), linear layers and biases are left out; `layers` selects others by name. The
    model is referred to, not owned: this module has no parameters and an empty `state_dict`, and follows weights that
    move or train, and layers that are replaced (`plant` and `merge` in place). Of a planted layer the whole weight
    counts, as after `merge`; the gradient goes to its planted blocks. After a `plant` or `merge` that gave a copy the
    term is still the first model's, which it says by a warning: make one of the copy.

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
        check_type("model", model, nn.Module, "a torch.nn.Module")
        check_range("strength", strength, lambda value: value >= 0, "0 or more")
        if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence)):
            raise ArgumentTypeError(f"layers must be several names of convolutions, got {layers!r}")
        _checks.check_unit("mix", mix)
        check_impl(impl)
        chosen = convolutions(model, layers)
        self.layer_names = tuple(chosen)
        # In a tuple the model is not registered as this module's child.
        self._model = (model,)
        self._left = _LEFT.get(model)
        self.penalty, self.groups, self.strength, self.mix, self.impl = penalty, groups, strength, mix, impl

    def weights(self) -> list[Tensor]:
        """The regularised weights as they are now. Those of planted layers are put together anew at each call.

        Raises:
            RuntimeError: one of the layers is no convolution any more, or gone.
        """
        modules, weights = dict(self._model[0].named_modules()), []
        for name in self.layer_names:
            layer = modules.get(name)
            if layer is None or not _is_convolution(layer):
                found = "nothing" if layer is None else f"a {type(layer).__name__}"
                raise RuntimeError(f"GroupSparsity was made for a convolution {name}, the model now has {found} there")
            planted = isinstance(layer, (PlantedConv2d, PlantedConv))
            weights.append(layer.whole_weight() if planted else layer.get_parameter("weight"))
        return weights

    def _check_left(self) -> None:
        left = _LEFT.get(self._model[0])
        if left is not None and left is not self._left:
            self._left = left
            warnings.warn(
                f"GroupSparsity is a term over the model from before {left[0]}, which gave a copy: it does not act on "
                "the copy. Make one over the model that trains",
                stacklevel=3,
            )

    def forward(self) -> Tensor:
        """The loss term, a number."""
        self._check_left()
        return group_sparsity(self.weights(), self.penalty, self.groups, impl=self.impl, **self._factors())

    @torch.no_grad()
    def add_gradient(self, scale: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Add the term's gradient to the weights' `.grad` without autograd, in one pass; returns the term.

        Weights that need no gradient are left alone, planted blocks get the slices that are theirs. `scale` is applied
        to every gradient (that of a loss scaler).
        """
        self._check_left()
        with torch.enable_grad():
            weights = self.weights()
        value, gradients = group_sparsity_value_and_grad(
            weights, self.penalty, self.groups, impl=self.impl, **self._factors()
        )
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight.requires_grad:
                gradient = gradient if scale is None else scale(gradient)
                if not weight.is_leaf:
                    weight.backward(gradient)
                else:
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
