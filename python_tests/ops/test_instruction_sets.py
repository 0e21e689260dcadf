"""The compiled kernels with every instruction set of this processor, and the ops without a compiled module."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plantops._extension import STATUS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STEMS = ("kl_div_logits", "distillation_loss", "group_sparsity", "qsne_kl")


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.exhaustive
@pytest.mark.skipif(not STATUS.loaded, reason=f"no compiled module: {STATUS.reason}")
@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_kernels_with(level: str):
    if level not in STATUS.info["instruction_sets"].split(","):
        pytest.skip(f"this build has no {level} copy of the kernels")
    question = "from plantops._extension import STATUS; print(STATUS.info['instruction_set_in_use'])"
    in_use = run(["-c", question], PLANTOPS_CPU_ISA=level).stdout.strip()
    if in_use != level:
        pytest.skip(f"this processor has no {level}: {in_use} serves")
    files = [str(HERE / f"test_{stem}.py") for stem in STEMS]
    chosen = "native and not compiles and not errors and not of_scikit_learn and not of_opentsne"
    result = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen], PLANTOPS_CPU_ISA=level)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " skipped" not in result.stdout


def test_without_a_compiled_module():
    """auto goes on through ATen; native, asked for by name, says why not and what would change it."""
    script = """
import sys
sys.modules["plantops._C"] = None  # the import system then raises ImportError
import torch
from plantops.functional import distillation_loss, kl_div_logits, kl_div_logits_value_and_grad
s, t, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.tensor([0, 3, 1])
calls = {
    "kl_div_logits": lambda impl: kl_div_logits(s, t, impl=impl),
    "kl_div_logits_value_and_grad": lambda impl: kl_div_logits_value_and_grad(s, t, impl=impl)[0],
    "distillation_loss": lambda impl: distillation_loss(s, t, y, alpha=0.5, temperature=2.0, impl=impl),
}
for name, call in calls.items():
    assert call("auto") == call("aten"), name
    try:
        call("native")
    except NotImplementedError as error:
        assert name in str(error) and "compiled module" in str(error) and "pip install" in str(error), error
    else:
        raise AssertionError(f"{name}: native computed without the compiled module")
"""
    result = run(["-c", script])
    assert result.returncode == 0, result.stderr
