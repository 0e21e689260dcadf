"""What a report shows of the networks' features: the right images, the right layer, the same points each time."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plantops.models import PlantingNet
from plantops.planting import features as shown
from plantops.planting.experiment import data_facts
from plantops.planting.features import NoFeatures, embed_features, penultimate
from plantops.planting.networks import NETWORKS, save_network
from plantops.train.data import DataParts, load
from plantops.train.report import write_report
from plantops.train.run import Run

pytest.importorskip("sklearn")

NAMES = {"teacher": 5, "initial": 2, "planted": 3}


@pytest.fixture(scope="module")
def digits() -> DataParts:
    return load("digits", val_fraction=0.2, seed=3)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "STEPS", 20)
    monkeypatch.setattr(shown, "SAMPLE", 80)


def network(width: int) -> PlantingNet:
    own = torch.Generator().manual_seed(width)
    return PlantingNet([width] * 5, 10, 1, 8, fc_width=8, generator=own)


def make_run(path: Path, digits: DataParts, names: dict[str, int] = NAMES, **changes: Any) -> Path:
    """A run as a search leaves it: config, fingerprints, networks."""
    fields = {"data": "digits", "val_fraction": 0.2, "seed": 3, "data_root": None, "image_size": None}
    with Run.create(path, {**fields, **changes}) as run:
        run.log("part", part="val", samples=len(digits.val), fingerprint=digits.val.fingerprint())
        for name, width in names.items():
            run.log("network", role=name, name=name, parameters=1, test_accuracy=0.5, test_loss=1.0)
            folder = path / NETWORKS / name
            save_network(folder, network(width), name=name, role=name, data=data_facts(digits.train))
    return path


def reason(run: Path, **arguments: Any) -> str:
    with pytest.raises(NoFeatures) as raised:
        embed_features(run, **arguments)
    return str(raised.value)


def test_each_network_on_the_same_held_out_images(tmp_path: Path, digits: DataParts) -> None:
    run = make_run(tmp_path / "run", digits)
    features = embed_features(run)
    assert [panel.name for panel in features.panels] == list(NAMES)
    assert len(features.labels) == 80
    part = digits.val
    held_out = {image.numpy().tobytes(): int(label) for image, label in zip(part.images, part.labels, strict=True)}
    chosen = torch.randperm(len(part), generator=shown.generator(3, "features"))[:80]
    assert features.labels == [held_out[part.images[place].numpy().tobytes()] for place in chosen]
    for panel, width in zip(features.panels, NAMES.values(), strict=True):
        rows = penultimate(network(width), part.normalise(part.images[chosen]))
        nearest = torch.cdist(rows, rows).fill_diagonal_(torch.inf).argmin(1).tolist()
        same = [features.labels[place] == label for place, label in zip(nearest, features.labels, strict=True)]
        assert panel.agreement == pytest.approx(sum(same) / 80)
        assert len(panel.points) == 80
        assert 0 < panel.kl < 10
    assert embed_features(run) == features


def test_the_layer_is_what_the_last_linear_layer_reads() -> None:
    model = network(3)
    images = torch.rand(300, 1, 8, 8)  # more than a batch
    logits = model.eval()(images)
    torch.testing.assert_close(model.fc2(penultimate(model.train(), images)), logits)
    assert not any(module._forward_pre_hooks for module in model.modules())

    class NoLinear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(NoFeatures, match="mine has no linear layer"):
        penultimate(NoLinear(), images, "mine")


def test_the_network_that_a_run_ended_with(tmp_path: Path, digits: DataParts) -> None:
    names = {"teacher": 3, "planted": 3, "finetuned": 2}
    features = embed_features(make_run(tmp_path / "run", digits, names))
    assert [panel.name for panel in features.panels] == ["teacher", "finetuned"]


def test_reasons_for_showing_nothing(tmp_path: Path, digits: DataParts) -> None:
    assert "this one has 0 (it has not come to its end)" in reason(make_run(tmp_path / "none", digits, {}))
    assert "this one has 1 (teacher)" in reason(make_run(tmp_path / "one", digits, {"teacher": 3}))
    assert "its fingerprint is another" in reason(make_run(tmp_path / "other", digits, seed=4))
    lost = make_run(tmp_path / "lost", digits, data="cifar10", data_root=str(tmp_path))
    assert "the run's data cannot be read" in reason(lost)
    assert "cannot be read" in reason(lost, data_root=str(tmp_path / "absent"))
    broken = make_run(tmp_path / "broken", digits)
    (broken / NETWORKS / "initial" / "model.safetensors").write_bytes(b"")
    assert "initial cannot be built" in reason(broken)


def test_the_figure_and_the_reason_are_in_the_report(tmp_path: Path, digits: DataParts) -> None:
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "run", digits)
    features = embed_features(run)
    source = write_report(run, features=features).read_text(encoding="utf-8")
    assert "What the networks see" in source
    assert "Features of held-out images in teacher, initial, planted" in source
    assert "80 held-out images" in source
    assert f"neighbours of one class {100 * features.panels[1].agreement:.0f} %" in source
    many = dataclasses.replace(features, labels=[label * 5 for label in features.labels], class_names=())
    assert "What the networks see" in write_report(run, features=many).read_text(encoding="utf-8")
    source = write_report(run, features="the data are gone").read_text(encoding="utf-8")
    assert "Not shown: the data are gone." in source
    assert "What the networks see" not in write_report(run).read_text(encoding="utf-8")
