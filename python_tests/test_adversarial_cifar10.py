"""The script that compares adversarial with plain distillation: what it trains, and how its runs become a table."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

ROOT = Path(__file__).parent.parent
ROWS = ["teacher", "ce", "kd-1", "kd-2", "kd-5", "kd-10", "adversarial"]


def call(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "adversarial_cifar10.py"), "--dataset", "digits"]
    command += ["--resume", str(tmp_path / "runs"), "--out", str(tmp_path / "table.csv"), "--seeds", "1", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)


def test_every_training_is_a_run_and_a_row(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ROWS
    for row in rows:
        assert (tmp_path / "runs" / f"{row['row']}-0" / "metrics.jsonl").exists()
        assert 0 < float(row["test_accuracy"]) < 1 < float(row["test_loss"]) < 20
        assert all(row[name] for name in ("hardware", "torch", "plantops", "commit", "date"))
    objectives = [
        (row["row"], '"temperature": 5.0' in row["config"], '"objective": "kd"' in row["config"]) for row in rows
    ]
    assert [name for name, hot, _ in objectives if hot] == ["kd-5"]
    assert [name for name, _, plain in objectives if plain] == ROWS[2:6]
    assert len({row["parameters"] for row in rows[1:]}) == 1
    again = call(tmp_path)
    assert "1/7" not in again.stdout  # nothing is trained again
    assert again.stdout.splitlines()[1:] == done.stdout[done.stdout.rindex("training ") :].splitlines()


def test_means_and_ranges_over_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import adversarial_cifar10

    row = {"row": "kd-5", "parameters": 20_000}
    rows = [{**row, "test_loss": loss, "test_accuracy": share} for loss, share in ((0.9, 0.7), (0.6, 0.73), (0.6, 0.7))]
    (line,) = adversarial_cifar10.summary(rows)
    assert line == {
        "training": "kd-5",
        "seeds": 3,
        "parameters": 20_000,
        "test loss": 0.7,
        "test accuracy": 71.0,
        "smallest": 70.0,
        "largest": 73.0,
        "published (other networks)": 92.98,
    }
