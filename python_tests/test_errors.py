"""Mistakes of a caller: one base class, each the built-in error of its kind as well."""

import pytest
import torch
from torch import nn

import plantops
from plantops._cli.mistakes import Mistake
from plantops.planting.check import PlantingError
from plantops.train import DataError
from plantops.train.checkpoint import CheckpointError
from plantops.train.files import MissingExtra, RunError

NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
X = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RunError, RuntimeError), (CheckpointError, RuntimeError), (MissingExtra, ImportError), (DataError, ValueError),
        (PlantingError, AssertionError), (Mistake, Exception),
    ],
)  # fmt: skip
def test_one_base(error: type[Exception], kind: type[Exception]):
    assert issubclass(error, plantops.PlantopsError)
    assert issubclass(error, kind)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: plantops.trace(NET, X)["nope"], KeyError, "no site 'nope'; the sites are 0"),
        (lambda: plantops.trace(X, X), TypeError, "model must be a torch.nn.Module, got Tensor"),
        (lambda: plantops.PlanterConfig(epochs=0), ValueError, "epochs must be an integer of at least 1, got 0"),
        (lambda: plantops.functional.kl_div_logits(None, X), TypeError, "student: expected a Tensor, got None"),
        (lambda: plantops.nn.PlantedConv2d.from_conv(NET[0], new_out=-1), ValueError, "got -1"),
    ],
)
def test_each_is_also_the_built_in_error(call, kind: type[Exception], message: str):
    with pytest.raises(plantops.PlantopsError, match=message) as caught:
        call()
    assert isinstance(caught.value, kind)
    assert str(caught.value)[0] not in "'\""
