"""A run that is killed again and again ends with the records and the weights of one that never was."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

ROOT = Path(__file__).parent.parent
SMALL = [
    *("--data", "digits", "--threads", "1", "--progress", "none", "--no-report", "--batch-size", "256"),
    *("--teacher-width", "4", "--teacher-epochs", "3", "--width", "2", "--initial-epochs", "3", "--initial-loss", "kl"),
    *(
        "--channels",
        "1",
        "--epochs",
        "2",
        "--max-rounds",
        "2",
        "--lr",
        "0.05",
        "--finetune-epochs",
        "2",
        "--retrain-epochs",
        "2",
    ),
    *("--prune-every", "2"),
    *("--uniform", "3", "--uniform-epochs", "2", "--checkpoint-seconds", "0"),
]


def start(arguments: list[str], kill_at: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "python_tests" / "killed.py"), str(kill_at), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def records(run: Path) -> list[dict[str, Any]]:
    """The metrics without their timings."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_seconds")} for line in lines]


def networks(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob("networks/*/*"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = start(["plant", *SMALL, "--out", str(run)])
    assert done.returncode == 0, done.stderr
    return run


def resume_to_the_end(run: Path, draw: random.Random, most: int) -> int:
    """Kill and resume until it ends; the number of kills."""
    kills = 0
    while True:
        done = start(["plant", "--resume", str(run)], kill_at=draw.randint(1, most))
        # A kill between the last checkpoint and the end of the process leaves a run that has ended.
        if done.returncode == 0 or (kills and "has ended already" in done.stderr):
            return kills
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1


@pytest.mark.exhaustive
def test_killed_again_and_again(whole: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    run = tmp_path / "run"
    first = start(["plant", *SMALL, "--out", str(run)], kill_at=draw.randint(20, 120))
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert resume_to_the_end(run, draw, most=150) >= 2
    assert records(run) == records(whole)
    assert networks(run) == networks(whole)


def test_what_a_whole_run_holds(whole: Path) -> None:
    kinds = [record["kind"] for record in records(whole)]
    assert kinds[:3] == ["part"] * 3
    assert kinds.count("stop") == 1
    names = [record["name"] for record in records(whole) if record["kind"] == "network"]
    taken_back = {record["name"] for record in records(whole) if record["kind"] == "discarded"}
    (retrained,) = (record for record in records(whole) if record["kind"] == "retrained")
    kept = ["finetuned"] * ("finetune" not in taken_back) + ["retrained"] * retrained["kept"]
    assert names == ["teacher", "initial", "planted", *kept, "uniform-3"]
    rounds = [record for record in records(whole) if record["kind"] == "round"]
    for before, after in itertools.pairwise(rounds):
        assert after["val_loss"] < before["val_loss"]
        assert after["parameters"] > before["parameters"]


def test_a_finished_run_is_not_resumed(whole: Path) -> None:
    again = start(["plant", "--resume", str(whole)])
    assert again.returncode == 2
    assert "has ended already" in again.stderr
    assert len(again.stderr.splitlines()) == 1


@pytest.mark.exhaustive
def test_interrupt_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = [*SMALL, "--checkpoint-seconds", "1000", "--teacher-epochs", "2000"]
    command = [sys.executable, "-m", "plantops.cli", "plant", *options, "--out", str(run)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        metrics = run / "metrics.jsonl"
        end = time.monotonic() + 120
        while time.monotonic() < end and not (metrics.exists() and metrics.read_text().count('"epoch"') > 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"plantops plant --resume {run}" in said
    assert "Traceback" not in said
    assert len(list((run / "checkpoints").iterdir())) == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("kill_at", [0, 8], ids=["both live", "one dies"])
def test_two_processes_are_one(whole: Path, tmp_path: Path, kill_at: int) -> None:
    """Under torchrun the candidates of a round are spread; a process that dies costs time, nothing else."""
    run = tmp_path / "run"
    script = [str(ROOT / "python_tests" / "killed.py"), str(kill_at), "plant", *SMALL, "--out", str(run)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher, "--max-restarts", str(min(kill_at, 1)), *script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert ("(exitcode: -9) local_rank: 1" in done.stderr) == (kill_at > 0)

    def of(run: Path, kind: str) -> list[str]:
        return [str(record) for record in records(run) if record["kind"] == kind]

    for kind in ("candidate", "round", "network", "stop"):
        assert of(run, kind) == of(whole, kind)
    assert sorted(of(run, "epoch")) == sorted(of(whole, "epoch"))  # each process writes its own together
    assert networks(run) == networks(whole)
