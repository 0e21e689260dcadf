"""The script of the published tables: its runs are stopped, taken up and put together; the trainings are toys."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plantops.models import count_parameters, planting_net
from plantops.train.run import read_run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent
ROWS = ["teacher", "uniform-3-ce", "uniform-3-kl", "planted-paper", "planted-default"]


@pytest.fixture(scope="module")
def paper() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("paper", ROOT / "benchmarks" / "paper.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper"] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "benchmarks"))
    return module


def call(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "paper.py"), "--dataset", "digits", "--device", "cpu"]
    command += ["--resume", str(folder / "runs"), "--out", str(folder / "out"), "--seeds", "1", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)


def rows_of(folder: Path, name: str = "paper_digits") -> list[dict[str, str]]:
    with (folder / "out" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def stopped_and_taken_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A table that was made in two calls, and what the second one printed."""
    folder = tmp_path_factory.mktemp("paper")
    first = call(folder, "--minutes", "0.03")
    assert first.returncode == 130, first.stderr
    assert "Call again to go on." in first.stdout
    assert not (folder / "out").exists()
    done = call(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.exhaustive
def test_stopped_and_taken_up_it_ends_in_the_table(stopped_and_taken_up: tuple[Path, str]) -> None:
    folder, printed = stopped_and_taken_up
    rows = rows_of(folder)
    assert [(row["row"], row["seed"]) for row in rows] == [(name, seed) for seed in "0" for name in ROWS]
    for row in rows:
        assert 0 < float(row["test_accuracy"]) < 1 < float(row["test_loss"]) < 4
        assert int(row["parameters"]) > 1_000
    assert (folder / "out" / "paper_digits.svg").stat().st_size > 10_000
    again = call(folder)
    assert again.stdout.count("1/5") == 0  # nothing is trained again
    assert again.stdout.splitlines()[1:] == printed[printed.rindex("network ") :].splitlines()


@pytest.mark.exhaustive
def test_side_by_side_it_is_the_same_table(stopped_and_taken_up: tuple[Path, str], tmp_path: Path) -> None:
    whole = stopped_and_taken_up[0]
    stopped = call(tmp_path, "--side-by-side", "3", "--minutes", "0.06")
    assert stopped.returncode == 130, stopped.stdout + stopped.stderr
    assert "runs left. Call again to go on." in stopped.stdout
    done = call(tmp_path, "--side-by-side", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    same = ("row", "parameters", "widths", "epochs", "train_loss", "val_loss", "test_loss", "test_accuracy")
    results = [[{name: row[name] for name in same} for row in rows_of(folder)] for folder in (whole, tmp_path)]
    assert results[0] == results[1]


@pytest.mark.exhaustive
def test_a_teacher_that_is_there_and_a_part_of_the_images(
    stopped_and_taken_up: tuple[Path, str], tmp_path: Path
) -> None:
    teacher = stopped_and_taken_up[0] / "runs" / "teacher-0"
    few = ("--teacher", str(teacher), "--train-fraction", "0.2", "--presets", "default", "--seeds", "2")
    done = call(tmp_path, *few)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path, "paper_digits_0.2")
    assert [row["row"] for row in rows] == ["teacher", *2 * [*ROWS[1:3], "planted-default"]]
    assert rows[0]["test_loss"] == rows_of(stopped_and_taken_up[0])[0]["test_loss"]
    assert all('"train_fraction": 0.2' in row["config"] for row in rows[1:])
    # Other seeds, the split of the one teacher.
    parts = [read_run(tmp_path / "runs" / f"uniform-3-ce-{seed}").of("part") for seed in (0, 1)]
    assert [part["fingerprint"] for part in parts[0]] == [part["fingerprint"] for part in parts[1]]
    assert len({row["test_loss"] for row in rows}) == 7


def test_published_parameters_are_those_of_the_networks(paper: Any) -> None:
    for dataset, rows in paper.PUBLISHED.items():
        for name, (parameters, _, _) in rows.items():
            kind, *width = name.split("-")
            if kind == "uniform" or kind == "teacher":
                wide = int(width[0]) if width else paper.TEACHER_WIDTHS[dataset]
                assert count_parameters(planting_net(dataset, wide)) == parameters


def test_medians_over_seeds_beside_the_published_figures(paper: Any) -> None:
    row = {"dataset": "cifar10", "row": "uniform-8-kl", "reduced": True, "parameters": 20_362}
    row |= {"epochs": 20, "train_loss": 0.5, "train_fraction": 1.0}
    rows = [
        {**row, "test_loss": loss, "test_accuracy": share} for loss, share in ((0.9, 0.7), (0.8, 0.72), (0.7, 0.71))
    ]
    (line,) = paper.summary(rows)
    assert (line["network"], line["seeds"], line["test loss"], line["test accuracy"], line["spread"]) == (
        "uniform-8-kl (reduced)",
        3,
        0.8,
        71.0,
        2.0,
    )
    assert (line["published parameters"], line["published loss"], line["published accuracy"]) == (20_362, 0.8245, 71.69)
    (line,) = paper.summary([{**row, "train_fraction": 0.1} for row in rows])
    assert line["published loss"] == ""  # of all images
