import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from plantops.train import Run, RunError, read_run
from plantops.train import run as run_module
from plantops.train.environment import describe_environment, differences


def test_create_then_open(tmp_path):
    config = {"data": "digits", "widths": (8, 8), "lr": 0.1, "max_rounds": None}
    with Run.create(tmp_path / "a" / "run", config) as run:
        assert run.config == {"data": "digits", "widths": [8, 8], "lr": 0.1, "max_rounds": None}
        run.log("epoch", epoch=1, val_loss=0.1)
        run.checkpoints.save(0, {"w": torch.ones(1)}, {}, {"metrics_length": run.metrics_length()})
        environment = run.environment
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    with Run.open(tmp_path / "a" / "run") as run:
        assert run.config["widths"] == [8, 8]
        assert run.environment == environment
        assert run.environment_differences() == []
        assert run.checkpoints.latest().state == {"metrics_length": run.metrics_length()}
        run.log("epoch", epoch=2, val_loss=0.05)
    record = read_run(tmp_path / "a" / "run")
    assert record.config == {"data": "digits", "widths": [8, 8], "lr": 0.1, "max_rounds": None}
    assert [entry["epoch"] for entry in record.of("epoch")] == [1, 2]
    assert record.of("round") == []


def test_numbers_read_back_exactly(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, float(np.float32(0.1)), -0.0, 12345678901234567890]
    with Run.create(tmp_path, {}) as run:
        run.log("a", values=values, tensor=torch.tensor(0.1), array=np.float64(1 / 3), counts={"conv1": np.int64(8)})
        run.log("b", lost=[float("nan"), float("inf"), -float("inf")], text="grün \u2028 \n")
        first, second = run.metrics()
    assert [repr(value) for value in first["values"]] == [repr(value) for value in values]
    assert (first["tensor"], first["array"], first["counts"]) == (float(torch.tensor(0.1)), 1 / 3, {"conv1": 8})
    assert second == {"kind": "b", "lost": [None, None, None], "text": "grün \u2028 \n"}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["kind"] == "a"


def test_cut_back_on_resume(tmp_path):
    with Run.create(tmp_path, {}) as run:
        run.log("epoch", epoch=1)
        length = run.metrics_length()
        run.log("epoch", epoch=2)
    with Run.open(tmp_path) as run:
        run.cut_metrics(length)
        run.log("epoch", epoch=2, again=True)
        assert run.metrics() == [
            {"kind": "epoch", "epoch": 1},
            {"kind": "epoch", "epoch": 2, "again": True},
        ]
        with pytest.raises(RunError, match=r"damaged, \d+ bytes where the checkpoint was written at 999"):
            run.cut_metrics(999)
        with pytest.raises(RunError, match="not the end of a record"):
            run.cut_metrics(length - 2)
        assert len(run.metrics()) == 2
        run.cut_metrics(0)
        assert run.metrics() == []


def test_half_a_last_line_is_left_out_and_other_damage_is_named(tmp_path):
    with Run.create(tmp_path, {}) as run:
        run.log("epoch", epoch=1)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"kind": "ep')
    assert read_run(tmp_path).metrics == [{"kind": "epoch", "epoch": 1}]
    file.write_bytes(b"\x00\x00\n" + whole)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 1: damaged"):
        read_run(tmp_path)
    file.write_bytes(whole + b"3\n")
    with pytest.raises(RunError, match=r"line 2: not a record"):
        read_run(tmp_path)


def test_a_folder_with_something_in_it_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"is not empty \(it holds thesis\.tex\).*--out"):
        Run.create(tmp_path, {})
    run_path = tmp_path / "run"
    Run.create(run_path, {}).close()
    with pytest.raises(RunError, match=r"holds a run already.*--resume"):
        Run.create(run_path, {})
    Run.open(run_path).close()  # neither refusal keeps the lock
    with pytest.raises(RunError, match=r"File exists|Not a directory"):
        Run.create(tmp_path / "thesis.tex", {})


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run: there is no config\.json"):
        Run.open(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    config = tmp_path / "config.json"
    for text, reason in (
        ("{", "damaged, it is not JSON"),
        ("[]", "not written by plantops"),
        ('{"format": "plantops-run", "version": 9}', "run version 9, this plantops reads 1"),
        ('{"format": "plantops-run", "version": 1, "config": 3}', "damaged, the configuration"),
    ):
        config.write_text(text)
        with pytest.raises(RunError, match=reason):
            Run.open(tmp_path)
        with pytest.raises(RunError, match=reason):
            read_run(tmp_path)


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".config.json.tmp-4711"]], ids=["nothing", "lock", "half"])
def test_a_process_that_is_killed_before_its_configuration_is_whole(left, tmp_path):
    for name in left:
        (tmp_path / name).write_text("{")
    text = r"was stopped before its run began: start it again, with --out" if left else "is not a run"
    for look in (Run.open, read_run):
        with pytest.raises(RunError, match=text):
            look(tmp_path)
    Run.create(tmp_path, {"lr": 0.1}).close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "config.json", "metrics.jsonl"]
    assert read_run(tmp_path).config == {"lr": 0.1}


def test_what_only_looks_like_a_half_written_configuration_is_kept(tmp_path):
    (tmp_path / ".config.json.tmp-1").mkdir()
    with pytest.raises(RunError, match="is not empty"):
        Run.create(tmp_path, {})
    assert (tmp_path / ".config.json.tmp-1").is_dir()


HOLDER = """
import sys
from plantops.train import Run
run = Run.open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_never_write_one_run(tmp_path):
    Run.create(tmp_path, {}).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"in use by another process \(number {holder.pid}\)"):
            Run.open(tmp_path)
        assert read_run(tmp_path).metrics == []  # looking is allowed
    finally:
        holder.kill()  # no farewell: the operating system gives the lock back
        holder.communicate()
    with Run.open(tmp_path) as run, pytest.raises(RunError, match=f"number {os.getpid()}"):
        Run.open(run.path)


def test_a_full_disk_leaves_the_metrics_whole(tmp_path, monkeypatch):
    real = os.write

    def write(descriptor, data):
        real(descriptor, data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Run.create(tmp_path, {}) as run:
        run.log("epoch", epoch=1)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(run_module.os, "write", write)
            with pytest.raises(RunError, match=r"metrics\.jsonl: No space left on device\. The disk is full"):
                run.log("epoch", epoch=2)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        run.log("epoch", epoch=2)
        assert [entry["epoch"] for entry in run.metrics()] == [1, 2]


def test_short_writes_are_finished(tmp_path, monkeypatch):
    real = os.write
    with Run.create(tmp_path, {}) as run:
        monkeypatch.setattr(run_module.os, "write", lambda descriptor, data: real(descriptor, data[:3]))
        run.log("epoch", epoch=1)
        assert run.metrics() == [{"kind": "epoch", "epoch": 1}]


def test_environment_differences_are_words():
    here = describe_environment()
    json.dumps(here)
    assert differences(here, here) == []
    there = {**here, "threads": 64, "torch": "2.11.0", "system": "Linux 1", "cpus": 99, "gpus": ["H200"]}
    assert differences(there, here) == [
        f"torch: 2.11.0 when the run began, {here['torch']} now",
        f"threads: 64 when the run began, {here['threads']} now",
        f"gpus: ['H200'] when the run began, {here['gpus'] or 'none'} now",
    ]


def test_close_may_be_called_twice(tmp_path):
    run = Run.create(tmp_path, {})
    run.close()
    run.close()
    Run.open(tmp_path).close()


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path):
    Run.create(tmp_path / "run", {}).close()
    folder = tmp_path / "run" / "networks" / "planted"
    folder.mkdir(parents=True)
    half_written, whole = folder / ".structure.json.tmp-4711", folder / "structure.json"
    half_written.write_text("{")
    whole.write_text("{}")
    Run.open(tmp_path / "run").close()
    assert not half_written.exists()
    assert whole.read_text() == "{}"
