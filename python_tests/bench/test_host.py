"""plantops bench host: a row for each op, direction and variant, and the empty function they are held against."""

import itertools
from pathlib import Path

import pytest
import torch

from plantops.bench import command, host
from plantops.bench.record import read_csv
from plantops.bench.timing import summary
from plantops.ops import _registry

DIRECTIONS = (host.FORWARD, host.BOTH)
PEERS = {
    "kl_div_logits": ["eager"],
    "distillation_loss": ["eager"],
    "planted_conv2d": ["split + cat", "ATen slices", "masked"],
    "planted_linear": ["split + cat", "masked"],
}


def test_the_table_of_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture):
    threads = torch.get_num_threads()
    try:
        arguments = ["host", "--device", "cpu", "--rounds", "2", "--impls", "native,aten", "--busy"]
        assert command.main([*arguments, "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = read_csv(tmp_path / "host_cpu.csv")
    expected = []
    for op, peers in PEERS.items():
        live = [impl for impl in ("native", "aten") if _registry.live(op, impl, "cpu")]
        expected += [(op, *way) for way in itertools.product(DIRECTIONS, (host.EMPTY, *live, *peers))]
    assert [(row["op"], row["direction"], row["variant"]) for row in rows] == expected
    empties = {(row["op"], row["direction"]): row for row in rows if row["variant"] == host.EMPTY}
    for row in rows:
        empty = empties[row["op"], row["direction"]]
        assert float(row["p50_us"]) > 0
        assert float(row["over_empty_us"]) == pytest.approx(float(row["p50_us"]) - float(empty["p50_us"]), abs=0.02)
    assert "over_empty_us" in capsys.readouterr().out


def test_it_is_measured_alone(tmp_path: Path):
    with pytest.raises(ValueError, match="host is measured alone, got host losses"):
        command.main(["host", "losses", "--device", "cpu", "--out", str(tmp_path)])


def test_the_empty_function_has_the_gradients_of_the_op():
    for subject in host.subjects(torch.device("cpu")):
        ways = subject.ways(["aten"])
        ours, empty = ways["aten"].forward(), ways[host.EMPTY].forward()
        assert list(ways) == [host.EMPTY, "aten", *PEERS[subject.op]]
        assert empty.shape == ours.shape
        for a, b in zip(*(torch.autograd.grad(y.sum(), subject.trained) for y in (ours, empty)), strict=True):
            assert a.shape == b.shape


def test_on_a_gpu_every_sample_begins_on_an_idle_device(monkeypatch: pytest.MonkeyPatch):
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(f"wait for {device}"))
    seconds = itertools.count(step=FAST)
    timer = host.CallTimer(torch.device("cuda", 0), lambda: next(seconds))
    sampler = timer.sampler(lambda: lambda: log.append("call"))
    assert sampler.calls * FAST <= host.FULL_QUEUE
    log.clear()
    assert sampler.sample() == pytest.approx(FAST / sampler.calls)
    assert log == ["call", "wait for cuda:0", *["call"] * sampler.calls]


FAST = 1e-4


def test_what_is_asked_of_native_stands_beside_it_on_a_gpu():
    timings = {host.EMPTY: summary([2e-6, 2e-6]), "native": summary([5e-6, 7e-6])}
    row = host._row("kl_div_logits", "cuda", host.BOTH, "native", timings)
    assert (row["p50_us"], row["over_empty_us"], row["asked_us"]) == (6.0, 4.0, 12.0)
    assert host._row("kl_div_logits", "cuda", host.FORWARD, host.EMPTY, timings)["asked_us"] == ""
