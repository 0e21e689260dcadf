"""What group_sparsity requires of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from plantops.errors import ArgumentError, ArgumentTypeError
from plantops.ops import _checks
from plantops.ops.group_sparsity.penalties import GROUPS, PENALTIES


def check_choices(penalty: str, groups: str) -> None:
    """ValueError for a penalty or a kind of groups that does not exist."""
    _checks.check_choice("penalty", penalty, tuple(PENALTIES))
    _checks.check_choice("groups", groups, GROUPS)


def check_arguments(weights: Sequence[Tensor], penalty: str, groups: str, strength: float, l1: float) -> None:
    """ValueError or TypeError naming the argument, what was expected and what came."""
    check_choices(penalty, groups)
    for name, value in (("strength", strength), ("l1", l1)):
        _checks.check_number(name, value)
        if not 0 <= value < float("inf"):
            raise ArgumentError(f"{name}: expected a finite number >= 0, got {value}")
    if isinstance(weights, Tensor):
        raise ArgumentError(f"weights: expected a sequence, got {_checks.described(weights)}; wrap it in a list")
    if not isinstance(weights, Sequence):
        raise ArgumentTypeError(f"weights: expected a sequence of tensors, got {_checks.described(weights)}")
    if not weights:
        raise ArgumentError("weights: expected a sequence of at least one tensor, got none")
    for index, weight in enumerate(weights):
        _checks.check_float_tensor(f"weights[{index}]", weight)
        if weight.dim() < 2:
            raise ArgumentError(f"weights[{index}]: expected [out, in, *kernel], got shape {tuple(weight.shape)}")
        if weight.dtype != weights[0].dtype:
            raise ArgumentTypeError(
                f"weights[{index}]: expected the first one's dtype {weights[0].dtype}, got {weight.dtype}"
            )
        if weight.device != weights[0].device:
            raise ArgumentError(
                f"weights[{index}]: expected the first one's device {weights[0].device}, got {weight.device}"
            )
