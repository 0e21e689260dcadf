"""What a search is given: kinds of models, teachers and data; mistakes are named before anything trains."""

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from plantops import Planter, PlanterConfig, PlantopsError
from plantops.planting.search import PlanterResult
from plantops.train import from_dataset

OWN = torch.Generator().manual_seed(0)
LABELS = torch.arange(48) % 4
IMAGES = torch.randn(48, 3, 8, 8, generator=OWN) + LABELS.view(-1, 1, 1, 1)
DATA = TensorDataset(IMAGES, LABELS)
BYTES = TensorDataset(((IMAGES + 4) * 25).clamp(0, 255).to(torch.uint8), LABELS)


class Net(nn.Module):
    """``wrap``: what becomes of the logits on the way out."""

    def __init__(self, width: int = 3, classes: int = 4, wrap: Any = None, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.conv1, self.conv2 = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head, self.wrap = nn.Linear(width, classes), wrap

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3))
        logits = self.head(x)
        return logits if self.wrap is None else self.wrap(logits)


@dataclass
class Output:
    """As Hugging Face's models give it."""

    logits: Tensor
    hidden: Tensor | None = None


class MappingOutput(OrderedDict):
    """A mapping that can be read by attribute, too."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits)

    @property
    def logits(self) -> Tensor:
        return self["logits"]


WRAPS = {
    "dataclass": Output, "mapping": MappingOutput, "dict": lambda logits: {"logits": logits, "loss": None},
    "namespace": lambda logits: SimpleNamespace(logits=logits),
}  # fmt: skip


def search(model: Any, teacher: Any, train: Any = DATA, val: Any = DATA, **fields: Any) -> PlanterResult:
    options = {name: fields.pop(name) for name in ("normalise", "test_data", "example_inputs", "run") if name in fields}
    config = PlanterConfig(**{"channels": 2, "epochs": 1, "max_rounds": 1, "batch_size": 16, "lr": 0.02, **fields})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Planter(model, teacher, train, val, config, **options).run()


# Outputs that have their logits


@pytest.fixture(scope="module")
def plain() -> PlanterResult:
    return search(Net(), Net(6), sweep="loop")


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_teachers_output_with_logits_is_taken(wrap: str, plain: PlanterResult) -> None:
    result = search(Net(), Net(6, wrap=WRAPS[wrap]), sweep="loop")
    assert [row.val_loss for row in result.rounds] == [row.val_loss for row in plain.rounds]


@pytest.mark.parametrize("wrap", ["dataclass", "dict"])
def test_a_models_output_with_logits_is_taken(wrap: str, plain: PlanterResult) -> None:
    result = search(Net(wrap=WRAPS[wrap]), Net(6), joint_epochs=1, finetune_epochs=1, joint_lr=1e-4, finetune_lr=1e-4)
    assert [row.val_loss for row in result.rounds[:1]] == [row.val_loss for row in plain.rounds[:1]]
    assert len(result.rounds) == 2
    output = result.model(IMAGES[:5])
    assert (output["logits"] if wrap == "dict" else output.logits).shape == (5, 4)


# Normalisation


@pytest.mark.parametrize("data", [DATA, BYTES])
@pytest.mark.parametrize("option", [None, True, False])
def test_the_result_says_how_images_become_what_the_network_sees(data: TensorDataset, option: bool | None) -> None:
    images, labels = data.tensors
    result = search(Net(), Net(6), data, data, test_data=data, normalise=option, max_rounds=0)
    changed = option if option is not None else images.dtype == torch.uint8
    seen = result.normalisation(images)
    assert torch.equal(seen, images.float()) == (not changed)
    if changed:
        mean, std = seen.double().mean((0, 2, 3)), seen.double().std((0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros(3).double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(std, torch.ones(3).double(), rtol=1e-5, atol=0)
    with torch.no_grad():
        logits = result.model.eval()(seen)
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(result.test["loss"], rel=1e-5)
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(result.rounds[0].val_loss, rel=1e-5)


def test_a_model_scores_inside_what_it_scores_outside() -> None:
    """On float images as they are: nothing is normalised anew."""
    model = Net(8)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    right = (model(IMAGES).argmax(1) == LABELS).float().mean().item()
    assert right > 0.9
    assert search(model, model, max_rounds=0).rounds[0].val_accuracy == pytest.approx(right)


def test_classes_are_those_of_the_logits() -> None:
    few = TensorDataset(IMAGES[:24], LABELS[:24] % 2)  # two of the four classes
    result = search(Net(), Net(6), few, DATA)
    assert result.rounds[0].val_loss == pytest.approx(search(Net(), Net(6)).rounds[0].val_loss)


def test_image_data_says_itself_how_it_is_normalised() -> None:
    data = from_dataset(DATA, normalise=True)
    result = search(Net(), Net(6), data, data, max_rounds=0)
    assert torch.equal(result.normalisation(IMAGES), data.normalise(IMAGES))
    with pytest.raises(
        PlantopsError, match=r"normalise is for data sets; train_data is ImageData with \(images - mean\)"
    ):
        search(Net(), Net(6), data, data, normalise=False)


# Mistakes


def with_labels(labels: Any) -> list[tuple[Tensor, Any]]:
    return list(zip(IMAGES, labels, strict=True))


BAD_PIXEL = IMAGES.clone()
BAD_PIXEL[7, 1, 2, 3] = torch.nan

MISTAKES = {
    "model None": ({"model": None}, "model must be a torch.nn.Module, got None"),
    "model class": ({"model": Net}, "model must be a torch.nn.Module, got type"),
    "model function": ({"model": lambda x: x}, "model must be a torch.nn.Module, got function"),
    "model empty": ({"model": nn.Flatten()}, "model must have parameters, got a Flatten without any"),
    "teacher None": ({"teacher": None}, "teacher must be a callable .*, got None"),
    "teacher path": ({"teacher": "runs/teacher"}, "teacher must be a callable .*, got str"),
    "teacher class": ({"teacher": Net}, r"teacher does not take images \[2, 3, 8, 8\]|teacher must return logits"),
    "teacher gives dict": ({"teacher": lambda x: {"scores": x}}, "teacher must return logits.* got dict with scores"),
    "teacher gives tuple": ({"teacher": lambda x: (x,)}, "teacher must return logits.* got tuple"),
    "teacher gives None": ({"teacher": lambda x: None}, "teacher must return logits.* got NoneType"),
    "teacher 4 d": ({"teacher": lambda x: x}, r"teacher must give logits \[2, 4\] for 2 images .* got \[2, 3, 8, 8\]"),
    "teacher 1 d": ({"teacher": lambda x: x[:, 0, 0, 0]}, r"teacher must give logits \[2, 4\] .* got \[2\]"),
    "teacher 0 d": ({"teacher": lambda x: x.mean()}, r"teacher must give logits \[2, 4\] .* got \[\]"),
    "teacher classes": ({"teacher": Net(3, 5)}, r"teacher must give logits \[2, 4\] .* of 4 classes, got \[2, 5\]"),
    "teacher integers": ({"teacher": lambda x: torch.zeros(2, 4).long()}, "logits in floating point, got torch.int64"),
    "teacher nan": ({"teacher": lambda x: torch.full((len(x), 4), torch.nan)}, "teacher must be finite, got nan"),
    "teacher channels": ({"teacher": Net(channels=1)}, r"teacher does not take images \[2, 3, 8, 8\].*RuntimeError"),
    "model gives dict": ({"model": Net(wrap=lambda y: {"scores": y})}, "model must return .* got dict with scores"),
    "model gives list": ({"model": Net(wrap=lambda y: [y])}, "model must return logits.* got list"),
    "model channels": ({"model": Net(channels=1)}, r"model does not take images \[2, 3, 8, 8\] of torch.float32"),
    "model double": ({"model": Net().double()}, "model does not take images .* of torch.float32"),
    "model maps": ({"model": nn.Conv2d(3, 4, 3)}, r"model must give logits \[2, 'classes'\] .* got \[2, 4, 6, 6\]"),
    "train None": ({"train": None}, "train_data must be a map-style dataset .* got NoneType"),
    "train loader": ({"train": DataLoader(DATA)}, "train_data must be .* got a DataLoader: pass its dataset"),
    "val loader": ({"val": DataLoader(DATA)}, "val_data must be .* got a DataLoader: pass its dataset"),
    "test loader": ({"test_data": DataLoader(DATA)}, "test_data must be .* got a DataLoader: pass its dataset"),
    "train tensors": ({"train": (IMAGES, LABELS)}, r"train_data\[0\] must be \(image, label\), got Tensor"),
    "train empty": ({"train": []}, "train_data must hold at least one sample, got 0"),
    "val empty": ({"val": TensorDataset(IMAGES[:0], LABELS[:0])}, "val_data must hold at least one sample, got 0"),
    "test empty": ({"test_data": []}, "test_data must hold at least one sample, got 0"),
    "train chw": ({"train": [(np.zeros((3, 8, 8)), 0)]}, r"train_data\[0\]: an array must be \[H, W, C\]"),
    "train image None": ({"train": [(None, 0)]}, r"train_data\[0\]: an image must be .* got NoneType"),
    "train 0 d": ({"train": [(torch.tensor(1.0), 0)]}, r"train_data\[0\]: an image must be .* got \[\]"),
    "one pixel nan": ({"train": TensorDataset(BAD_PIXEL, LABELS)}, r"train_data\[7\]: an image must be .* is nan"),
    "val pixel nan": ({"val": TensorDataset(BAD_PIXEL, LABELS)}, r"val_data\[7\]: an image must be .* is nan"),
    "labels float": ({"train": with_labels(torch.rand(48) * 10)}, r"train_data\[0\]: a label must be .*, got float 0"),
    "labels multi": ({"val": with_labels(torch.eye(48, 4))}, r"val_data\[0\]: a label must be .*, got Tensor \[4\]"),
    "labels None": ({"val": with_labels([None] * 48)}, r"val_data\[0\]: a label must be .*, got NoneType None"),
    "labels large": ({"train": with_labels(LABELS + 1)}, "train_data: labels must lie in 0 to 3, .* 4 logits; got 4"),
    "val labels": ({"val": with_labels(LABELS + 1)}, "val_data: labels must lie in 0 to 3, got 1 to 4"),
    "labels negative": ({"train": with_labels(LABELS - 1)}, "train_data: labels must lie in 0 to .*got -1"),
    "val bytes": ({"val": BYTES}, "val_data must have train_data's images of torch.float32, got torch.uint8"),
    "val size": ({"val": TensorDataset(IMAGES[:, :, :6], LABELS)}, r"val_data must have train_data's images"),
    "config dict": ({"config": {"epochs": 1}}, "config must be a PlanterConfig, got dict"),
    "run path": ({"run": "runs/mine"}, "run must be a Run, got str"),
    "normalise": ({"normalise": "yes"}, "normalise must be True, False or None, got 'yes'"),
    "inputs": ({"example_inputs": (IMAGES[:2, :1],)}, "example_inputs"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_trains(mistake: str) -> None:
    given, message = MISTAKES[mistake]
    given = {"model": Net(), "teacher": Net(6), "train": DATA, "val": DATA, **given}
    names = ("model", "teacher", "train", "val", "config")
    with pytest.raises(PlantopsError, match=message) as caught:
        Planter(*[given.pop(name, None) for name in names], **given)
    assert isinstance(caught.value, (ValueError, TypeError))
