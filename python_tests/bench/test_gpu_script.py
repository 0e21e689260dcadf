"""benchmarks/gpu.sh on a machine without a GPU: what it would run, and the stages that need none."""

import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import torch

import plantops
from plantops.bench import command, planted_conv2d
from plantops.bench.runner import Settings

ROOT = Path(plantops.__file__).parents[1]
STAGES = [
    "build", "test", "sanitize", "host", "tune", "bench-losses", "bench-conv-cifar", "bench-conv-resnet50",
    "bench-conv-paper4", "bench-conv-paper8", "bench-linear", "bench-sweep", "bench-sweep-compiled", "search",
    "summary",
]  # fmt: skip


def gpu(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHON": python, "PLANTOPS_COMMIT": "abc123"}
    variables.pop("OUT", None)
    script = ROOT / "benchmarks" / "gpu.sh"
    return subprocess.run(["bash", script, *arguments], capture_output=True, text=True, env=variables)


def test_a_dry_run_prints_every_stage_with_a_limit_under_ten_minutes(tmp_path: Path):
    out = tmp_path / "results"
    result = gpu("--dry-run", "--out", str(out), "all")
    assert result.returncode == 0, result.stderr
    assert not out.exists()
    stages: dict[str, list[str]] = {}
    for line in result.stdout.split("\nstages at commit abc123\n")[0].splitlines():
        if line.startswith("== "):
            stages[line[3:]] = []
        elif line:
            stages[list(stages)[-1]].append(line.strip())
    assert list(stages) == STAGES
    for name, lines in stages.items():
        limits = [int(line.split()[1].rstrip(":")) for line in lines if line.startswith("timeout ")]
        assert 0 < sum(limits) < 600, name
    assert "PLANTOPS_BUILD=cuda" in stages["build"][0]
    assert "--tool memcheck" in stages["sanitize"][0]
    assert "--tool racecheck" in stages["sanitize"][1]
    assert f"--tune {out}/tuned" in stages["tune"][0]


def test_the_options_it_passes_exist(tmp_path: Path):
    stages = ("bench-conv", "bench-losses", "tune", "summary", "sanitize", "host", "quick-losses")
    result = gpu("--dry-run", "--out", str(tmp_path), *stages)
    lines = [line.split("plantops.cli bench ", 1)[1] for line in result.stdout.splitlines() if "cli bench" in line]
    assert len(lines) == 12
    texts = [command.parser().parse_args(shlex.split(line)).only for line in lines]
    cases = planted_conv2d.cases(Settings(torch.device("cuda", 0), size="full"))
    parts = [{case.name for case in cases if text in case.name} for text in texts if text]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(cases)  # each case in one stage


def test_a_stage_or_option_that_does_not_exist():
    for arguments in (["everything"], ["--colour"], ["--out"], []):
        result = gpu(*arguments)
        assert result.returncode == 2
        assert result.stderr.startswith("gpu.sh: ")


def stub(folder: Path, text: str) -> str:
    """Stands for Python in the stages."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_every_stage_is_logged_and_packed_and_red_tests_are_named(tmp_path: Path):
    out, pack = tmp_path / "out", tmp_path / "results.tgz"
    python = stub(tmp_path, 'echo "called with $*"; case "$*" in "-m pytest"*) exit 1;; esac')
    result = gpu("--out", str(out), "--pack", str(pack), "test", "summary", python=python)
    assert result.returncode == 1
    statuses = [line.split() for line in result.stdout.splitlines() if line.endswith(" s")]
    assert [status[:-2] for status in statuses] == [["test", "exit", "1"], ["summary", "ok"]]
    assert "no figure of this folder may be published" in result.stdout
    assert (out / "summary.log").read_text() == ""  # there is no CSV file
    with tarfile.open(pack) as archive:
        assert {"./test.log", "./test.status", "./summary.log"} <= set(archive.getnames())


def test_all_stages_of_a_budget_end_within_it_and_the_summary_comes_last(tmp_path: Path):
    python = stub(tmp_path, 'echo "called with $*"')
    (tmp_path / "losses_cuda.csv").write_text("op\n")
    result = gpu("--out", str(tmp_path), "--budget", "20", "test", "summary", python=python)
    assert "no time left of 20 s: test is left out" in result.stdout
    assert [line.split()[:2] for line in result.stdout.splitlines() if line.endswith(" s") and "left" not in line] == [
        ["test", "exit"], ["summary", "ok"],
    ]  # fmt: skip
    assert (tmp_path / "summary.log").read_text() == f"called with -m plantops.cli bench --summary {tmp_path}\n"
    sleeping = stub(tmp_path, 'case "$*" in "-m pytest"*) exec sleep 40;; esac')
    result = gpu("--out", str(tmp_path), "--budget", "31", "test", python=sleeping)
    assert 5 <= int(result.stdout.split("exit 124")[1].split()[0]) < 20  # cut off when 6 s were left of 31 - 25


def test_the_two_short_runs_hold_what_the_claims_need():
    for name, first in (("first", "quick-conv"), ("second", "bench-losses")):
        result = gpu("--dry-run", "--budget", "300", name)
        stages = [line[3:] for line in result.stdout.splitlines() if line.startswith("== ")]
        assert stages[0] == "build"
        assert first in stages
        assert stages[-1] == "summary"


def test_without_the_checker_it_says_so(tmp_path: Path):
    variables = {**os.environ, "PYTHON": stub(tmp_path, "exit 0"), "CUDA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    script = ROOT / "benchmarks" / "gpu.sh"
    command = ["bash", script, "--out", str(tmp_path), "sanitize"]
    result = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert "nothing was checked with memcheck" in result.stdout
    assert "nothing was checked with racecheck" in result.stdout


def test_green_tests_let_figures_be_published(tmp_path: Path):
    result = gpu("--out", str(tmp_path), "test", python=stub(tmp_path, "exit 0"))
    assert result.returncode == 0
    assert "may be published" not in result.stdout
