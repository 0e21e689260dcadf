"""A case's own calls are what is tuned, and the table that comes of it is the one that is followed."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from plantops.bench import command, losses, planted_conv2d
from plantops.bench.runner import Settings
from plantops.bench.timing import HostTimer, Timing
from plantops.bench.tune import fastest, recorded, tune, write_table
from plantops.functional import kl_div_logits
from plantops.ops import _registry, _tuned

CPU = torch.device("cpu")
SETTINGS = Settings(CPU, rounds=2, compiled=False, impls=("auto", "reference", "aten"))


def test_recorded_calls_repeat_the_results():
    student = torch.randn(6, 5, requires_grad=True)
    teacher = torch.randn(6, 5)
    forward, backward = recorded(lambda: kl_div_logits(student, teacher, impl="aten").backward())
    assert [forward.stem, backward.stem] == ["kl_div_logits", "kl_div_logits_backward"]
    torch.testing.assert_close(forward.bound("reference")()[0], kl_div_logits(student, teacher).detach())
    torch.testing.assert_close(backward.bound("reference")(), student.grad)


def timing(p50: float) -> Timing:
    return Timing(p50, p50, p50, 1, 1)


@pytest.mark.parametrize(
    ("milliseconds", "wanted"),
    [
        ({"aten": 1.0, "native": 2.0, "triton": 3.0}, "aten"),
        ({"aten": 2.0, "native": 3.0, "triton": 1.0}, "triton"),
        ({"aten": 1.0, "native": 1.01}, "native"),
        ({"aten": 1.0, "native": 1.03}, "aten"),
        ({"aten": 1.0}, "aten"),
    ],
)
def test_the_fastest_wins_and_ours_wins_a_tie(milliseconds: dict, wanted: str):
    assert fastest({name: timing(value) for name, value in milliseconds.items()}) == wanted


def test_the_table_has_a_row_for_every_op_of_a_case(tmp_path: Path, monkeypatch):
    shape = dataclasses.replace(SETTINGS, shapes=("2,4,2,3,2,3,6,planted",))
    cases = planted_conv2d.cases(shape) + losses.cases(dataclasses.replace(SETTINGS, shapes=("6x5",)))
    seen = []
    rows = tune(cases, SETTINGS, HostTimer(min_seconds=0.0), lambda name, block: seen.append(name))
    assert len(seen) == 2
    assert [row["op"] for row in rows] == [
        "planted_conv2d", "planted_conv2d_backward", "kl_div_logits", "kl_div_logits_backward",
        "kl_div_logits_value_and_grad",
    ]  # fmt: skip
    assert rows[1]["traits"][-1] == "planted"
    assert all(row["impl"] == "aten" and list(row["ms"]) == ["aten"] for row in rows)  # nothing else is live here

    path = write_table(tmp_path / "sm_00.json", [{**row, "impl": "native"} for row in rows], CPU)
    write_table(path, [rows[2]], CPU)
    content = json.loads(path.read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert len(content["rule"]) == len(rows)
    monkeypatch.setenv(_tuned.FOLDER, str(tmp_path))
    _tuned.forget()
    try:
        calls = recorded(lambda: kl_div_logits(torch.randn(6, 5), torch.randn(6, 5), impl="aten"))
        key = _registry.key(calls[0].stem, calls[0].arguments)
        assert key == (("float32",), (6, 5))
        assert _tuned.choose("kl_div_logits", "sm_00", *key) == "aten"
        assert _tuned.choose("kl_div_logits_backward", "sm_00", *key) == "native"
    finally:
        _tuned.forget()


def test_tuning_needs_a_gpu():
    with pytest.raises(ValueError, match="--tune needs a CUDA device"):
        command.main(["losses", "--device", "cpu", "--tune"])
