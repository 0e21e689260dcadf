"""No training makes a network worse, a teacher that knows nothing is noticed, and what is not finite has a name."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plantops import Planter, PlanterConfig, PlantopsError
from plantops._cli.mistakes import reported
from plantops.planting.experiment import Comparison, Experiment, Family, Stage, run_experiment
from plantops.planting.prune_run import Pruning, prune_network
from plantops.planting.search import PlanterResult
from plantops.train.data import DataParts, ImageData
from plantops.train.loop import Trainer, evaluate
from plantops.train.recipe import Recipe
from plantops.train.run import Run, read_run
from plantops.train.session import Session

CLASSES = 3


def images(count: int = 36, seed: int = 0) -> ImageData:
    """Classes that differ in brightness, with noise."""
    own = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 90, (count, 1, 8, 8), generator=own)
    pixels = (noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return ImageData(pixels, labels, torch.tensor([127.0]), torch.tensor([70.0]), CLASSES)


TRAIN, VAL = images(), images(18, 1)
FAMILY = Family(CLASSES, 1, 8, fc_width=8)


def network(width: int = 2, seed: int = 0) -> nn.Module:
    return FAMILY.build([width] * 5, seed, "test")


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """One that knows the classes."""
    trainer = Trainer(network(6, 1), TRAIN, None, Recipe(epochs=15, lr=0.05, batch_size=12), seed=0)
    while not trainer.finished:
        trainer.run_epoch()
    assert evaluate(trainer.model, VAL).accuracy > 0.9
    return trainer.model


def search(teacher: Any, run: Run | None = None, model: nn.Module | None = None, **fields: Any) -> PlanterResult:
    config = PlanterConfig(**{"channels": 2, "epochs": 2, "max_rounds": 2, "lr": 0.05, "batch_size": 12, **fields})
    return Planter(model or network(), teacher, TRAIN, VAL, config, run=run).run()


# A training that makes it worse


def test_joint_training_and_fine_tuning_never_hand_out_a_worse_network(teacher: nn.Module, tmp_path: Path) -> None:
    hot = {"joint_epochs": 1, "joint_lr": 20.0, "finetune_epochs": 2, "finetune_lr": 20.0}
    with Run.create(tmp_path / "run", {}) as run, pytest.warns(UserWarning, match="the network from before") as caught:
        result = search(teacher, run, **hot)
    rounds = len(result.rounds) - 1
    assert rounds >= 1
    assert [entry.name for entry in result.discarded] == [*(f"joint-{n + 1}" for n in range(rounds)), "finetune"]
    losses = [row.val_loss for row in result.rounds]
    assert losses == sorted(losses, reverse=True)
    assert result.model is result.planted
    assert result.finetune_epochs == 0
    assert evaluate(result.model, VAL).loss == pytest.approx(losses[-1], rel=1e-5)
    for entry in result.discarded:
        before, after = entry.val_loss
        assert before is not None
        assert after is None or after > before
    records = read_run(tmp_path / "run").of("discarded")
    assert [record["name"] for record in records] == [entry.name for entry in result.discarded]
    assert any(str(one.message).startswith("finetune: the held-out loss was") for one in caught)


def test_a_training_that_helps_is_kept(teacher: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = search(teacher, joint_epochs=2, joint_lr=0.05, finetune_epochs=2, finetune_lr=0.05)
    assert result.discarded == []
    assert result.finetune_epochs == 2
    assert evaluate(result.model, VAL).loss < evaluate(result.planted, VAL).loss


@pytest.mark.parametrize("trained", [True, False])
def test_a_stage_keeps_what_it_began_with(teacher: nn.Module, trained: bool) -> None:
    stage = Stage(Session(), DataParts(TRAIN, VAL, images(12, 2)), 0)
    model = network(6, 1)
    model.load_state_dict(teacher.state_dict())
    hot = Recipe(epochs=1, lr=30.0, batch_size=12, weight_decay=0.0, momentum=0.0, schedule="constant")
    with pytest.warns(UserWarning, match="net: the held-out loss was"):
        stage.train(model, hot, phase="initial", name="net", trained=trained)
    assert all(torch.equal(value, teacher.state_dict()[key]) for key, value in model.state_dict().items())
    assert [(entry.epochs, entry.loss) for entry in stage.entries] == [(0, None)]


def test_a_network_for_comparison_is_shown_as_it_ended(teacher: nn.Module) -> None:
    stage = Stage(Session(), DataParts(TRAIN, VAL, images(12, 2)), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = stage.train(
            network(), Recipe(epochs=2, lr=1e9, batch_size=12), phase="uniform", name="uniform-2", may_diverge=True
        )
    assert not all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_fine_tuning_of_a_pruned_network_is_kept_only_where_it_helps(teacher: nn.Module) -> None:
    pruning = Pruning(max_loss_increase=0.05, finetune=Recipe(epochs=1, objective="kl", lr=30.0, batch_size=12))
    with pytest.warns(UserWarning, match="finetuned: the held-out loss was"):
        result, _ = prune_network(teacher, pruning, DataParts(TRAIN, VAL, images(12, 2)), Session())
    rows = {record["name"]: record for record in result.records}
    assert rows["finetuned"]["val_loss"] == rows["pruned"]["val_loss"]
    assert rows["finetuned"]["epochs"] == 0


# The teacher


def test_a_teacher_that_knows_no_more_is_noticed(teacher: nn.Module, tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {}) as run, pytest.warns(UserWarning, match="is not clearly below the initial"):
        search(network(6, 1), run, max_rounds=0)
    (record,) = read_run(tmp_path / "run").of("teacher")
    assert record["clear"] is False
    assert record["val_loss"] == pytest.approx(evaluate(network(6, 1), VAL).loss, rel=1e-6)
    assert record["gain"] == pytest.approx(evaluate(network(), VAL).loss - evaluate(network(6, 1), VAL).loss, abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(teacher, max_rounds=0)
        search(network(6, 1), max_rounds=0, objective="ce")  # it is not asked
    with pytest.warns(UserWarning, match="is not clearly below the initial"):
        search(teacher, model=teacher, max_rounds=0)


# What is not finite


class Nowhere(nn.Module):
    """Logits that are not finite for some images."""

    def __init__(self, net: nn.Module, bad: torch.Tensor) -> None:
        super().__init__()
        self.net, self.bad = net, bad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wrong = (x == self.bad).flatten(1).all(1)
        return torch.where(wrong.unsqueeze(1), torch.nan, self.net(x))


@pytest.mark.parametrize("sweep", ["shared", "loop"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_teacher_that_is_not_finite_has_a_name(teacher: nn.Module, part: str, sweep: str) -> None:
    data = {"train": TRAIN, "val": VAL}[part]
    odd = Nowhere(teacher, data.normalise(data.images[5:6]))
    with pytest.raises(PlantopsError, match=f"teacher must be finite, got nan in its logits for 1 of {len(data)} "):
        search(odd, sweep=sweep)


def test_a_model_that_is_not_finite_has_a_name(teacher: nn.Module) -> None:
    odd = network()
    with torch.no_grad():
        odd.get_parameter("fc2.weight")[0] = torch.inf
    for objective in ("kl", "ce"):
        with pytest.raises(PlantopsError, match="model must be finite, got"):
            search(teacher, model=odd, objective=objective)


@pytest.mark.parametrize("sweep", ["shared", "loop"])
def test_a_rate_that_diverges_says_so(teacher: nn.Module, sweep: str) -> None:
    result = search(teacher, lr=1e20, sweep=sweep)
    assert result.stop == "the training of every candidate diverged at lr=1e+20: begin with a lower one"


# Parts without images


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_empty_part_has_a_name(teacher: nn.Module, part: str) -> None:
    given = {"train": TRAIN, "val": VAL, "test": images(12, 2)}
    given[part] = given[part].subset([])
    parts = DataParts(**given)
    with pytest.raises(PlantopsError, match=f"{part}_data must hold at least one image, got 0"):
        Planter(network(), teacher, parts.train, parts.val, test_data=parts.test)
    experiment = Experiment(FAMILY, (2,) * 5, Recipe(epochs=1), (2,) * 5, None, PlanterConfig(), Comparison())
    with pytest.raises(PlantopsError, match=f"{part} must hold at least one image, got 0"):
        run_experiment(experiment, parts, Session())
    with pytest.raises(PlantopsError, match="data must hold at least one image to score"):
        evaluate(network(), given[part])


def test_the_command_line_warns_in_one_line() -> None:
    before = warnings.formatwarning(UserWarning("low"), UserWarning, "file.py", 3)
    with reported("plantops"):
        assert warnings.formatwarning(UserWarning("low"), UserWarning, "file.py", 3) == "warning: low\n"
        assert "file.py:3: FutureWarning" in warnings.formatwarning(FutureWarning("old"), FutureWarning, "file.py", 3)
    assert warnings.formatwarning(UserWarning("low"), UserWarning, "file.py", 3) == before
