"""Odd arguments: every public function, every argument, every kind of odd value: it computes, or says what is wrong.

Wrong is an error that is not the package's: one of torch, numpy or Python out of the middle of a computation.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import plantops
from plantops import functional as PF
from plantops.models import PlantingNet, count_macs, count_parameters
from plantops.nn import GroupSparsity, PlantedConv2d, PlantedLinear
from plantops.planting import planted_parameters
from plantops.train import ImageData, from_dataset, stratified_split
from plantops.train import load as load_data
from plantops.train.recipe import Recipe, Regularizer

OWN = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=OWN)


class Any_:
    """An object of a class that nothing knows."""


ODD: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "0": 0,
    "2.5": 2.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "10**30": 10**30,
    "complex": 1j,
    "text": "nope",
    "empty text": "",
    "bytes": b"x",
    "list": [],
    "list of text": ["a"],
    "tuple": (1, 2),
    "dict": {},
    "dict of text": {"a": "b"},
    "object": Any_(),
    "class": Any_,
    "function": lambda *a, **k: None,
    "range": range(3),
    "array": np.zeros((2, 3)),
    "0-d tensor": torch.tensor(1.0),
    "1-d tensor": torch.zeros(3),
    "empty tensor": torch.zeros(0),
    "5-d tensor": torch.zeros(1, 1, 1, 1, 1),
    "integers": torch.ones(2, 3, dtype=torch.int64),
    "complex tensor": torch.zeros(2, 3, dtype=torch.complex64),
    "booleans": torch.zeros(2, 3, dtype=torch.bool),
    "module": nn.ReLU(),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


X, LABELS = randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
PLAN = plantops.trace(net(), X)
LOGITS = randn(4, 5)
DATA = [(X[i], int(LABELS[i])) for i in range(4)]


def planter(**given: Any) -> Any:
    return plantops.Planter(**{"model": net(), "teacher": net(), "train_data": DATA, "val_data": DATA, **given})


def carried(state: Any, planted: Any, merged: Any, planted_state: Any) -> Any:
    return plantops.carry_state(state, planted, merged, planted_state)


PLANTED = plantops.plant(net(), PLAN["0"], 2)
MERGED = plantops.merge(PLANTED)

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "kl_div_logits": (
        PF.kl_div_logits,
        {"student": LOGITS, "teacher": LOGITS, "temperature": 1.0, "reduction": "mean", "impl": "auto"},
    ),
    "kl_div_logits_value_and_grad": (
        PF.kl_div_logits_value_and_grad,
        {"student": LOGITS, "teacher": LOGITS, "temperature": 1.0, "reduction": "mean", "impl": "auto"},
    ),
    "distillation_loss": (
        PF.distillation_loss,
        {
            "student": LOGITS,
            "teacher": LOGITS,
            "target": LABELS,
            "alpha": 0.5,
            "temperature": 2.0,
            "label_smoothing": 0.1,
            "reduction": "mean",
            "impl": "auto",
        },
    ),
    "planted_conv2d": (
        PF.planted_conv2d,
        {
            "input": randn(2, 3, 6, 6),
            "weight": randn(4, 2, 3, 3),
            "weight_out": randn(2, 3, 3, 3),
            "weight_in": randn(4, 1, 3, 3),
            "bias": randn(4),
            "bias_out": randn(2),
            "stride": 1,
            "padding": 1,
            "dilation": 1,
            "groups": 1,
            "in_start": 2,
            "addend": None,
            "activation": "relu",
            "max_pool": 1,
            "input_grad": "full",
            "impl": "auto",
        },
    ),
    "planted_linear": (
        PF.planted_linear,
        {
            "input": randn(2, 3),
            "weight": randn(4, 2),
            "weight_out": randn(2, 3),
            "weight_in": randn(4, 1),
            "bias": randn(4),
            "bias_out": randn(2),
            "in_start": 2,
            "addend": None,
            "activation": "relu",
            "input_grad": "full",
            "impl": "auto",
        },
    ),
    "group_sparsity": (
        PF.group_sparsity,
        {
            "weights": [randn(4, 3, 3, 3)],
            "penalty": "group_lasso",
            "groups": "feature",
            "strength": 1.0,
            "l1": 0.1,
            "impl": "auto",
        },
    ),
    "group_sparsity_value_and_grad": (
        PF.group_sparsity_value_and_grad,
        {
            "weights": [randn(4, 3, 3, 3)],
            "penalty": "group_lasso",
            "groups": "feature",
            "strength": 1.0,
            "l1": 0.1,
            "impl": "auto",
        },
    ),
    "qsne_kl": (
        PF.qsne_kl,
        {"embedding": randn(5, 2), "p": torch.full((5, 5), 0.04), "q": 2.0, "exaggeration": 1.0, "impl": "auto"},
    ),
    "trace": (
        plantops.trace,
        {"model": net(), "example_inputs": X, "example_kwargs": None, "grow_linear": True, "groups": ()},
    ),
    "plant": (
        plantops.plant,
        {
            "model": net(),
            "site": PLAN["0"],
            "channels": 2,
            "init": "zero_in",
            "generator": None,
            "inplace": False,
            "input_grad": "full",
        },
    ),
    "merge": (plantops.merge, {"model": PLANTED, "inplace": False}),
    "carry_state": (
        carried,
        {
            "state": torch.optim.SGD(PLANTED.parameters(), 0.1),
            "planted": PLANTED,
            "merged": MERGED,
            "planted_state": None,
        },
    ),
    "planted_parameters": (planted_parameters, {"model": PLANTED}),
    "prune": (
        plantops.prune,
        {
            "model": net(),
            "plan": PLAN,
            "samples": [(X, LABELS)],
            "max_parameters": 60,
            "max_macs": None,
            "max_loss_increase": None,
            "criterion": "loss",
            "share": 0.5,
            "multiple_of": 1,
            "min_channels": 1,
        },
    ),
    "load": (plantops.load, {"path": "nowhere", "factory": net}),
    "PlanterConfig": (
        plantops.PlanterConfig,
        {name: field.default for name, field in plantops.PlanterConfig.__dataclass_fields__.items()},
    ),
    "Recipe": (Recipe, {name: getattr(Recipe(), name) for name in Recipe.__dataclass_fields__}),
    "Regularizer": (Regularizer, {"penalty": "l1", "groups": "feature", "strength": 0.1, "mix": 0.5}),
    "Planter": (
        planter,
        {
            "model": net(),
            "teacher": net(),
            "train_data": DATA,
            "val_data": DATA,
            "config": None,
            "example_inputs": None,
            "run": None,
            "test_data": None,
            "normalise": None,
        },
    ),
    "from_dataset": (from_dataset, {"dataset": DATA, "num_classes": 3, "name": "mine", "normalise": None}),
    "an image": (lambda image: from_dataset([(image, 0), (image, 1)]), {"image": X[0]}),
    "a label": (lambda label: from_dataset([(X[0], 0), (X[1], label)]), {"label": 1}),
    "ImageData": (
        ImageData,
        {"images": X, "labels": LABELS, "mean": torch.zeros(1), "std": torch.ones(1), "num_classes": 3},
    ),
    "load_data": (load_data, {"name": "digits", "val_fraction": 0.1, "train_fraction": 0.5, "image_size": 8}),
    "stratified_split": (stratified_split, {"labels": LABELS.repeat(5), "fraction": 0.5, "seed": 0}),
    "PlantedConv2d": (
        PlantedConv2d.from_conv,
        {"conv": nn.Conv2d(3, 4, 3), "new_out": 2, "new_in": 1, "init": "zero_in"},
    ),
    "PlantedLinear": (
        PlantedLinear.from_linear,
        {"linear": nn.Linear(3, 4), "new_out": 2, "new_in": 1, "init": "zero_in"},
    ),
    "GroupSparsity": (
        GroupSparsity,
        {"model": net(), "penalty": "group_lasso", "groups": "feature", "strength": 0.1, "mix": 0.5, "layers": None},
    ),
    "PlantingNet": (
        PlantingNet,
        {
            "widths": [2, 2, 2, 2, 2],
            "num_classes": 3,
            "in_channels": 1,
            "image_size": 8,
            "fc_width": 4,
            "batch_norm": False,
        },
    ),
    "count_parameters": (count_parameters, {"model": net()}),
    "count_macs": (count_macs, {"model": net(), "input_shape": (1, 8, 8)}),
}


def outcome(call: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """What is wrong with a call; None where it computes or says what is wrong with its arguments."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            call(**arguments)
        except (plantops.PlantopsError, NotImplementedError):
            return None
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    return None


def odd_calls(name: str) -> list[str]:
    call, right = CALLS[name]
    wrong = []
    for argument in right:
        for kind, value in ODD.items():
            found = outcome(call, {**right, argument: value})
            if found is not None:
                wrong.append(f"{name}({argument}={kind}): {found}")
    return wrong


@pytest.mark.parametrize("name", CALLS)
def test_an_odd_argument_is_named(name: str):
    wrong = odd_calls(name)
    assert not wrong, "\n".join(wrong)
