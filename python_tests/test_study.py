"""The study of the search's factors: which runs it makes, and how they become a table without test scores."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plantops.train.run import Run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def study() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("study", ROOT / "benchmarks" / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "benchmarks"))
    return module


def call(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=280, cwd=ROOT
    )


@pytest.mark.exhaustive
def test_a_study_is_runs_and_a_table(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    made = call(
        "-m", "plantops.cli", "teacher", "--data", "digits", "--width", "12", "--epochs", "10", "--no-report",
        "--out", str(teacher),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    script = [str(ROOT / "benchmarks" / "study.py"), "--dataset", "digits", "--teacher", str(teacher)]
    script += ["--resume", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--seeds", "2", "--device", "cpu"]
    done = call(*script)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "study_digits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    named = [(row["factor"], row["level"], row["seed"]) for row in rows]
    levels = [("channels", "1"), ("channels", "4"), ("choice", "loss per parameter")]
    assert named == [("base", "", "0"), ("base", "", "1"), *((*level, "0") for level in levels)]
    assert not [name for name in rows[0] if name.startswith("test")]
    sizes = {row["level"]: int(row["parameters"]) for row in rows}
    assert sizes["1"] < sizes["4"]
    assert (tmp_path / "out" / "study_digits.svg").stat().st_size > 5_000
    again = call(*script)
    assert "/5: " in done.stdout
    assert "/5: " not in again.stdout  # nothing is trained again
    other = call(*script, "--base", "--lr 0.01")
    assert other.returncode == 1
    assert "base-0 was begun with lr=0.05, and lr=0.01 is asked for" in other.stderr


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """The run of a teacher, as far as it matters here."""
    with Run.create(tmp_path / "teacher", {"seed": 4}):
        return tmp_path / "teacher"


def test_levels_change_the_base_and_nothing_else(study: Any, taught: Path) -> None:
    args = study.arguments(["--teacher", str(taught), "--resume", "R", "--base", "--channels 16", "--seeds", "3"])
    found = study.jobs(args)
    base = found["base", ""][0].arguments
    assert len(found["base", ""]) == 3
    splits = [job.arguments[job.arguments.index("--split-seed") + 1] for job in found["base", ""]]
    assert splits == ["4"] * 3
    assert ("channels", "16") not in found  # the base
    for (factor, level), (job, *_) in found.items():
        if factor != "base":
            assert job.arguments != base, (factor, level)
            assert job.arguments.count("--channels") == 1
    flips = found["augmentation", "none"][0].arguments
    assert "--no-flip" in flips
    assert "--flip" not in flips


def test_levels_together_change_several_things_of_the_base(study: Any, taught: Path) -> None:
    changes = "--lr 0.02 --channels 8"
    given = ["--teacher", str(taught), "--resume", "R", "--together", changes, "--together=--no-flip"]
    found = study.jobs(study.arguments([*given, "--seeds-of-levels", "2"]))
    jobs = found["together", changes]
    assert [job.name for job in jobs] == ["together-lr-0.02-channels-8-0", "together-lr-0.02-channels-8-1"]
    assert jobs[1].arguments[jobs[1].arguments.index("--channels") + 1] == "8"
    assert "--no-flip" in found["together", "--no-flip"][0].arguments


def test_differences_are_to_the_base_of_the_same_seeds(study: Any) -> None:
    row = {"parameters": 100, "widths": "1-1", "rounds": 2, "epochs": 5, "val_accuracy": 0.5, "seconds": 60.0}
    losses = [("base", "", 0, 1.0), ("base", "", 1, 1.4), ("channels", "4", 0, 0.9), ("channels", "4", 2, 1.9)]
    losses.append(("channels", "8", 3, 1.1))
    rows = [{**row, "factor": f, "level": level, "seed": seed, "val_loss": loss} for f, level, seed, loss in losses]
    base, other, alone = study.summary(rows)
    assert (base["held-out loss"], base["to the base"]) == (1.2, "+0.0000")
    assert (other["held-out loss"], other["to the base"]) == (1.4, "-0.1000")
    assert (alone["held-out loss"], alone["to the base"]) == (1.1, "-")


def test_an_unknown_factor_is_named(study: Any, taught: Path) -> None:
    args = study.arguments(["--teacher", str(taught), "--resume", "R", "--factors", "luck"])
    with pytest.raises(SystemExit, match=r"--factors must be of .*; got 'luck'"):
        study.jobs(args)
