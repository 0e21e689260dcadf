"""The kernel report: one configuration of every Triton kernel compiles for sm_90, and none uses a stack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("triton")

ONE_OF_EACH = """
import sys
sys.path.insert(0, "tools")
import kernel_report
shipped = kernel_report.shipped()
first = {}
for index, configuration in enumerate(shipped):
    first.setdefault((configuration.kernel.__module__, configuration.kernel.__name__), index)
for index in first.values():
    for row in kernel_report.triton_rows(90, index):
        print(row.kernel, row.registers, row.stack, row.shared, sep=";")
"""
KERNELS = {
    "_row_kernels.sum_kernel",
    "kl_div_logits.triton.value_kernel",
    "kl_div_logits.triton.backward_kernel",
    "distillation_loss.triton.forward_kernel",
    "distillation_loss.triton.backward_kernel",
    "group_sparsity.triton.groups_kernel",
    "group_sparsity.triton.gradient_kernel",
    "qsne_kl.triton.pairs_kernel",
    "qsne_kl.triton.neighbours_kernel",
    "planted_conv2d.triton_common.pack_kernel",
    "planted_conv2d.triton_forward.forward_kernel",
    "planted_conv2d.triton_weight.weight_kernel",
    "planted_conv2d.triton_weight.reduce_kernel",
    "planted_conv2d.triton_input.input_kernel",
    "planted_conv2d.triton_input.addend_kernel",
}


def run(*command: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.exhaustive
def test_one_configuration_of_each_kernel_compiles_without_a_stack():
    result = run("-c", ONE_OF_EACH)
    assert result.returncode == 0, result.stderr
    rows = [line.split(";") for line in result.stdout.splitlines()]
    assert {name for name, *_ in rows} == KERNELS
    for name, registers, stack, shared in rows:
        assert 0 < int(registers) <= 255, name
        assert int(stack) == 0, name
        assert int(shared) <= 164 * 1024, name  # the least of the architectures, sm_80


def test_usage_of_a_cubin_that_spills(monkeypatch, tmp_path: Path):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import kernel_report
    finally:
        sys.path.remove(str(ROOT / "tools"))
    said = """
Resource usage:
 Common:
  GLOBAL:0
 Function good:
  REG:32 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:632 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function bad:
  REG:255 STACK:416 SHARED:0 LOCAL:8 CONSTANT[0]:632 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    monkeypatch.setattr(kernel_report, "tool", lambda name: name)
    monkeypatch.setattr(kernel_report.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, said, ""))
    assert list(kernel_report.usage(Path("any.cubin"))) == [("good", 32, 0, 1024), ("bad", 255, 424, 0)]
    row = kernel_report.Row("triton", "bad", "sm_90", 255, 424, 0, "")
    monkeypatch.undo()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # main() takes it away; here it comes back for other tests
    monkeypatch.setattr(kernel_report, "report", lambda *a: iter([row]))
    monkeypatch.setattr(sys, "argv", ["kernel_report.py", "--csv", str(tmp_path / "report.csv")])
    monkeypatch.setenv("PLANTOPS_COMMIT", "abc123")
    assert kernel_report.main() == 1
    header, line = (tmp_path / "report.csv").read_text().splitlines()
    assert header == "compiler,kernel,architecture,registers,stack,shared,configuration,commit"
    assert line == "triton,bad,sm_90,255,424,0,,abc123"
