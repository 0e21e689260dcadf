"""A search that is stopped at every safe point and taken up again in this process; killed ones: test_resume.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plantops.models import PlantingNet
from plantops.planting import Planter, PlanterConfig
from plantops.planting.search import PlanterResult
from plantops.train.checkpoint import CheckpointError
from plantops.train.data import ImageData
from plantops.train.progress import NullProgress
from plantops.train.run import Run, read_run
from plantops.train.session import Interrupted, Session
from python_tests.planting.test_search import wasteful


class StopAfter(NullProgress):
    """Asks the session to stop at the N-th epoch end."""

    def __init__(self, epochs: int) -> None:
        self.left, self.session = epochs, None

    def epoch(self, *arguments: Any) -> None:
        self.left -= 1
        if self.left == 0:
            assert isinstance(self.session, Session)
            self.session.request_stop()


def images(count: int, seed: int) -> ImageData:
    own = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 90, (count, 1, 8, 8), generator=own) + 80 * labels.view(-1, 1, 1, 1)
    return ImageData(pixels.to(torch.uint8), labels, torch.tensor([127.0]), torch.tensor([70.0]), 3)


def network(width: int) -> PlantingNet:
    own = torch.Generator().manual_seed(width)
    return PlantingNet([width] * 5, 3, 1, 8, fc_width=8, batch_norm=True, generator=own)


def go(
    path: Path, stop_after: int = 0, optimizer: str = "sgd", model: nn.Module | None = None, **changes: Any
) -> PlanterResult | None:
    """Start the run or go on with it; None when it was stopped."""
    model = network(2) if model is None else model
    fields: dict[str, Any] = {
        "channels": {"conv1": 1, "conv3": 2, "conv5": 1},
        "epochs": 2,
        "max_rounds": 2,
        "batch_size": 12,
        "crop": 1,
        "flip": True,
        "optimizer": optimizer,
        "lr": 0.02,
        "finetune_epochs": 2,
    }
    config = PlanterConfig(**{**fields, **changes})
    progress = StopAfter(stop_after)
    with Run.open(path) if path.exists() else Run.create(path, {}) as run:
        session = Session(run, checkpoint_seconds=1e9, progress=progress)
        progress.session = session
        try:
            return Planter(model, network(5), images(36, 0), images(18, 1), config, session=session).run()
        except Interrupted:
            return None


def records(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if not k.endswith("_seconds")} for record in read_run(path).metrics]


def bits(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [
        ("sgd", {"sweep": "loop"}),
        ("sgd", {}),
        ("adamw", {}),
        ("adamw", {"crop": 0}),
        ("sgd", {"joint_epochs": 2, "sites_per_round": 2, "path_epochs": 11}),
        ("sgd", {"crop": 0, "flip": False, "sweep_memory": 70_000}),  # the training part's features lie on disk
    ],
)
def test_stopped_after_every_epoch(tmp_path: Path, optimizer: str, changes: dict[str, Any]) -> None:
    whole = go(tmp_path / "whole", optimizer=optimizer, **changes)
    assert whole is not None
    stops, result = 0, go(tmp_path / "run", 1, optimizer, **changes)
    while result is None:
        stops += 1
        result = go(tmp_path / "run", 1, optimizer, **changes)
    epochs = [record for record in records(tmp_path / "whole") if record["kind"] == "epoch"]
    # Candidates that share a pass stop together.
    together = "name" if changes.get("sweep") == "loop" else "phase"
    assert stops == len({(record["round"], record["epoch"], record[together]) for record in epochs})
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert all(torch.equal(tensor, bits(whole.model)[name]) for name, tensor in bits(result.model).items())
    assert result.history == whole.history
    assert not (tmp_path / "run" / "features").exists()


@pytest.mark.parametrize("what", ["kept", "lost", "damaged", "of few views"])
def test_the_teachers_views_of_a_run_that_goes_on(tmp_path: Path, what: str) -> None:
    """They lie in the run's folder. Where they are gone the same ones are computed again, whatever is missing now."""
    changes: dict[str, Any] = {"max_rounds": 1, "finetune_epochs": 1, "sweep": "loop"}
    if what == "of few views":
        changes["teacher_views"] = 4
    whole = go(tmp_path / "whole", **changes)
    assert whole is not None
    assert go(tmp_path / "run", 3, **changes) is None
    (views,) = (tmp_path / "run" / "logits").glob("views-*.bin")
    if what == "lost":
        views.unlink()
    elif what == "damaged":
        views.write_bytes(views.read_bytes()[:4096] + b"\x2a" * (views.stat().st_size - 4096))
    result = go(tmp_path / "run", **changes)
    assert result is not None
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert all(torch.equal(tensor, bits(whole.model)[name]) for name, tensor in bits(result.model).items())


@pytest.mark.parametrize("limited", [False, True])
def test_stopped_in_rounds_that_grow_several_sites(tmp_path: Path, limited: bool) -> None:
    changes: dict[str, Any] = {"sites_per_round": 2, "epochs": 4, "batch_size": 6, "crop": 0, "finetune_epochs": 0}
    changes |= {"objective": "ce", "channels": 2}
    whole = go(tmp_path / "whole", **changes)
    assert whole is not None
    # Together two sites lost against the best alone, then they won.
    assert [record.grown for record in whole.rounds] == [None, "conv4", "conv5, conv4"]
    if limited:  # the second best does not fit beside the best
        changes["max_parameters"] = whole.rounds[2].parameters - 1
        whole = go(tmp_path / "limited", **changes)
        assert whole is not None
        assert whole.rounds[2].grown != "conv5, conv4"
        assert whole.rounds[2].parameters <= changes["max_parameters"]
    result = go(tmp_path / "run", 3, **changes)
    while result is None:
        result = go(tmp_path / "run", 3, **changes)
    assert records(tmp_path / "run") == records(tmp_path / ("limited" if limited else "whole"))
    assert all(torch.equal(tensor, bits(whole.model)[name]) for name, tensor in bits(result.model).items())


def test_stopped_between_growing_and_pruning(tmp_path: Path) -> None:
    model = wasteful()
    changes: dict[str, Any] = {"prune_every": 1, "epochs": 4, "lr": 0.05, "objective": "ce", "channels": 2}
    whole = go(tmp_path / "whole", model=model, **changes)
    assert whole is not None
    assert [pruned.round for pruned in whole.prunings] == [1, 2]
    assert whole.prunings[0].removed
    result = go(tmp_path / "run", 3, model=model, **changes)
    assert result is None
    while result is None:
        result = go(tmp_path / "run", 3, model=model, **changes)
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert all(torch.equal(tensor, bits(whole.model)[name]) for name, tensor in bits(result.model).items())
    assert result.prunings == whole.prunings


def test_records_behind_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    """What a killed process wrote after its last checkpoint is cut off."""
    go(tmp_path / "whole")
    assert go(tmp_path / "run", 1) is None
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "epoch", "epoch": 99}) + "\n" + '{"kind": "torn')
    assert go(tmp_path / "run") is not None
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {}) as run:
        run.checkpoints.save(1, {}, {"format": "something else"}, {})
        with pytest.raises(CheckpointError, match="its format is not 'plantops-session'"):
            Session(run)


def test_results_that_are_computed_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"loss": 0.1 + 0.2}

    with Run.create(tmp_path / "run", {}) as run:
        session = Session(run)
        assert session.once("a", compute) == session.once("a", compute)
        session.finish()
        assert Session.ended(run)
    with Run.open(tmp_path / "run") as run:
        assert Session(run).once("a", compute) == {"loss": 0.1 + 0.2}
    assert len(calls) == 1
