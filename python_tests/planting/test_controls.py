"""Retraining of the found widths, and the controls that a search stands beside."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from plantops.models import count_parameters
from plantops.planting.controls import uniform_width
from plantops.planting.experiment import Comparison, Experiment, ExperimentResult, Family, run_experiment
from plantops.planting.networks import describe, load_network
from plantops.train.data import DataParts
from plantops.train.progress import NullProgress
from plantops.train.recipe import Recipe
from plantops.train.run import Run, read_run
from plantops.train.session import Interrupted, Session
from python_tests.planting.test_search import CLASSES, config, images

FAMILY = Family(CLASSES, 1, 8, fc_width=8)
KL = Recipe(epochs=2, objective="kl", lr=0.05, batch_size=12)


def experiment(batch_norm: bool = False, **fields: Any) -> Experiment:
    planter = config(**{"max_rounds": 1, "retrain_epochs": 3, "compound": ("all",), **fields})
    family = dataclasses.replace(FAMILY, batch_norm=batch_norm)
    return Experiment(
        family,
        (6,) * 5,
        dataclasses.replace(KL, objective="ce"),
        (2,) * 5,
        KL,
        planter,
        Comparison((3,), KL, controls=True),
    )


def parts() -> DataParts:
    return DataParts(images(), images(18, 1), images(24, 2))


def run(path: Path, session: Session | None = None, **fields: Any) -> ExperimentResult:
    return run_experiment(experiment(**fields), parts(), session or Session(Run.create(path, {})))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_controls_have_the_size_and_the_epochs_of_the_planted_network(tmp_path: Path, batch_norm: bool) -> None:
    result = run(tmp_path / "run", batch_norm=batch_norm)
    records = {record["name"]: record for record in result.records}
    assert result.search is not None
    planted = records["retrained"] if "retrained" in records else records["planted"]
    widths = list(planted["widths"].values())
    plain = FAMILY.build(widths, 0, "size")
    assert planted["parameters"] == count_parameters(plain)  # folded, where there was a norm
    assert list(records["scratch"]["widths"].values()) == widths
    assert records["pruned"]["parameters"] <= planted["parameters"]
    above = f"uniform-{uniform_width(FAMILY, planted['parameters'])}"
    assert records[above]["parameters"] >= planted["parameters"]
    epochs = 2 + (len(result.search.rounds) - 1) * 2 + 3
    assert {records[name]["epochs"] for name in ("scratch", "pruned", above, "uniform-3")} == {epochs}
    assert "wide" not in records
    assert result.verdict is not None
    assert "the same widths from scratch" in result.verdict
    stored = load_network(tmp_path / "run", "pruned")
    assert describe(stored)["batch_norm"] is False
    assert torch.isfinite(stored(torch.zeros(2, 1, 8, 8))).all()


def test_the_better_network_is_handed_out(tmp_path: Path) -> None:
    """One step at no rate worth naming leaves random weights: the planted network is kept."""
    result = run(tmp_path / "run", retrain_epochs=1, retrain_lr=1e-9).search
    assert result is not None
    assert result.retrained is None
    assert result.model is result.planted
    (record,) = (r for r in read_run(tmp_path / "run").metrics if r["kind"] == "retrained")
    assert record["kept"] is False
    assert record["val_loss"][1] > record["val_loss"][0]


class StopIn(NullProgress):
    """Asks the session to stop after the first epoch of each of these trainings."""

    def __init__(self, names: set[str]) -> None:
        self.left = names
        self.session: Session | None = None

    def epoch(self, phase: str, name: str, *rest: Any) -> None:
        if name in self.left and self.session is not None:
            self.left.remove(name)
            self.session.request_stop()


def test_a_run_that_was_stopped_ends_with_the_same_networks(tmp_path: Path) -> None:
    """Within the retraining and within each of the controls."""
    whole = run(tmp_path / "whole")
    path = tmp_path / "stopped"
    progress = StopIn({"retrain", "scratch", "wide", "pruned"})
    opened, stops = Run.create(path, {}), 0
    while True:
        with opened:
            session = progress.session = Session(opened, progress=progress)
            try:
                result = run(path, session)
                break
            except Interrupted:
                stops += 1
        opened = Run.open(path)
    assert stops == 4
    for name, model in whole.networks.items():
        again = result.networks[name].state_dict()
        assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items()), name
