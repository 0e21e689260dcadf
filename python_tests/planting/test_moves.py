"""Channels that move at a constant budget: pruned where they are missed least, planted where they gain most."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plantops import Planter
from plantops.models import count_parameters
from plantops.planting.search import PlanterResult
from plantops.train.progress import NullProgress
from plantops.train.report.story import read_story
from plantops.train.run import Run, read_run
from plantops.train.session import Interrupted, Session
from python_tests.planting.test_search import config, images, network

LIMIT = count_parameters(network(4)) + 100
MOVING = {"max_parameters": LIMIT, "channels": 3, "moves": 2, "move_share": 0.4, "epochs": 3, "joint_epochs": 2}


def search(path: Path, session: Session | None = None, **fields: Any) -> PlanterResult:
    own = config(**{**MOVING, **fields})
    session = session or Session(Run.create(path, {}))
    return Planter(network(4), network(8, 1), images(), images(18, 1), own, session=session).run()


def moves(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_run(path).metrics if record["kind"] == "move"]


@pytest.mark.parametrize("sweep", ["shared", "loop"])
def test_a_move_is_kept_only_where_it_gains(tmp_path: Path, sweep: str) -> None:
    still = search(tmp_path / "still", moves=0, sweep=sweep)
    moved = search(tmp_path / "moved", sweep=sweep)
    records = moves(tmp_path / "moved")
    assert 1 <= len(records) <= 2
    assert [record["kept"] for record in records[:-1]] == [True] * (len(records) - 1)
    for record in records:
        assert record["kept"] == (record["val_loss"] < record["val_loss_before"])
    kept = sum(record["kept"] for record in records)
    # A move that only takes away is one, too: then the last that was measured is the pruning.
    shrunk = bool(kept) and moved.prunings[-1].round == moved.rounds[-1].round
    last: Any = moved.prunings[-1] if shrunk else moved.rounds[-1]
    before = still.rounds[-1]
    after = last.val_loss[1] if shrunk else last.val_loss
    assert after <= before.val_loss
    assert count_parameters(moved.model) == last.parameters <= LIMIT
    assert len(moved.prunings) == kept
    assert (last.widths != before.widths) == bool(kept)
    if not kept:
        assert all(
            torch.equal(a, b)
            for a, b in zip(still.model.state_dict().values(), moved.model.state_dict().values(), strict=True)
        )
    story = read_story(tmp_path / "moved")
    assert [record["widths"] for record in story.rounds] == [round.widths for round in moved.rounds]
    assert len(story.prunings) == kept


def test_what_a_move_takes_is_a_share_of_the_parameters(tmp_path: Path) -> None:
    search(tmp_path / "run", moves=1)
    run = read_run(tmp_path / "run")
    (move,) = moves(tmp_path / "run")
    rounds = {record["round"]: record for record in run.of("round")}
    (pruned,) = run.of("pruned")
    whole = rounds[move["first"] - 1]["parameters"]
    assert pruned["parameters"] <= (1 - 0.4) * whole
    assert sum(pruned["removed"].values()) > 0
    assert all(rounds[number]["parameters"] <= LIMIT for number in range(move["first"], move["last"] + 1))


class StopAfter(NullProgress):
    def __init__(self, epochs: int) -> None:
        self.left = epochs
        self.session: Session | None = None

    def epoch(self, *arguments: Any) -> None:
        self.left -= 1
        if self.left == 0 and self.session is not None:
            self.session.request_stop()


@pytest.mark.parametrize("epochs", [12, 13])
def test_a_search_that_was_stopped_in_a_move_ends_with_the_same_bits(tmp_path: Path, epochs: int) -> None:
    whole = search(tmp_path / "whole", moves=1)
    progress = StopAfter(epochs)
    path = tmp_path / "stopped"
    with Run.create(path, {}) as run:
        session = progress.session = Session(run, progress=progress)
        with pytest.raises(Interrupted):
            search(path, session, moves=1)
    with Run.open(path) as run:
        again = search(path, Session(run), moves=1)
    assert bits(again.model) == bits(whole.model)
    assert moves(path) == moves(tmp_path / "whole")


def bits(model: nn.Module) -> dict[str, list[Any]]:
    return {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}
