"""The ways that a call of an op can take, for tests that hold them against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from plantops.ops import _eager
from plantops.ops.planted_conv2d import autograd as conv
from plantops.ops.planted_linear import autograd as linear

SHORTCUTS = ("planted_conv2d", "planted_linear", "kl_div_logits", "kl_div_logits_value_and_grad", "distillation_loss")


def without_shortcuts(patch: pytest.MonkeyPatch) -> None:
    """Arguments, checks and autograd in Python; the kernels may be compiled ones."""
    for name in SHORTCUTS:
        patch.setattr(_eager, name, lambda *_: None)


def without_the_module(patch: pytest.MonkeyPatch) -> None:
    """As where there is no compiled module: the planted ops in Python all the way down to ATen."""
    without_shortcuts(patch)
    for autograd, stem in ((conv, "planted_conv2d"), (linear, "planted_linear")):
        patch.setattr(autograd, "forward_op", getattr(torch.ops.plantops_python, stem).default)
        patch.setattr(autograd, "backward_op", getattr(torch.ops.plantops_python, f"{stem}_backward").default)


def by(path: Callable[[pytest.MonkeyPatch], None], compute: Callable[[], Any]) -> Any:
    """compute() along one of them."""
    with pytest.MonkeyPatch.context() as patch:
        path(patch)
        return compute()
