"""What PLANTOPS_BUILD says where CUDA kernels cannot be compiled, and what a CUDA build registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plantops.functional  # noqa: F401  (defines the ops)
from plantops._extension import STATUS
from plantops.ops import _registry

ROOT = Path(__file__).parents[1]
BUILDS = all(shutil.which(tool) for tool in ("cmake", "ninja", "c++"))
HAS_CUDA = bool(STATUS.info.get("cuda_architectures"))


@pytest.mark.skipif(not BUILDS or torch.version.cuda is None, reason="needs cmake, ninja, c++ and a CUDA torch")
def test_an_nvcc_of_another_major_version_is_refused_by_number(tmp_path: Path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 99.1, V99.1.2'\n")
    nvcc.chmod(0o755)
    environment = os.environ | {"PLANTOPS_BUILD": "cuda", "CUDACXX": str(nvcc), "CUDA_HOME": "", "CUDA_PATH": ""}
    ran = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode != 0
    major = torch.version.cuda.split(".")[0]
    assert f"PLANTOPS_BUILD=cuda needs nvcc of CUDA {major}" in ran.stderr
    assert "99.1" in ran.stderr


def test_what_is_registered_is_what_the_build_has():
    sources = "".join(source.read_text() for source in (ROOT / "csrc" / "cuda").glob("*.cpp"))
    stems = re.findall(r'm\.impl\("(\w+)"', sources)
    assert {"kl_div_logits", "distillation_loss", "planted_conv2d"} <= set(stems)
    for stem in stems:
        assert _registry.has_native(stem, "cuda") == HAS_CUDA
        assert _registry.live(stem, "native", "cuda") == HAS_CUDA
    if STATUS.loaded and not HAS_CUDA:
        assert "PLANTOPS_BUILD=cuda" in _registry.why_not("kl_div_logits", "native", "cuda")


@pytest.mark.skipif(not STATUS.loaded, reason="no compiled module")
@pytest.mark.parametrize("impl", ["aten", "reference"])
def test_every_build_has_atens_calls_for_a_gpu(impl: str):
    """What is registered for CUDA, called with tensors on the CPU."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    x, weight, out, one = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(2, 3, 3, 3), [1, 1]
    conv, linear = torch.ops.plantops.planted_conv2d.default, torch.ops.plantops.planted_linear.default
    rest = (out, None, None, None, one, one, one, 1, 3, None, "relu", 2, True, impl)
    for ours, theirs in zip(conv.redispatch(key, x, weight, *rest), conv(x, weight, *rest), strict=True):
        assert torch.equal(ours, theirs)
    rows = (x.flatten(1), torch.randn(4, 75), None, None, None, None, 75, None, "relu", impl)
    assert torch.equal(linear.redispatch(key, *rows), linear(*rows))


@pytest.mark.skipif(not HAS_CUDA, reason="the compiled module has no CUDA kernels: PLANTOPS_BUILD=cuda")
def test_cuda_kernels_hand_other_implementations_to_python():
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    op = torch.ops.plantops.kl_div_logits.default
    for impl in ("aten", "reference"):
        results = op.redispatch(key, student, teacher, 2.0, "sum", impl)
        torch.testing.assert_close(results, op(student, teacher, 2.0, "sum", impl))
    with pytest.raises(ValueError, match="teacher: expected the student's shape"):
        op.redispatch(key, student, teacher[:2], 2.0, "sum", "native")
    conv = torch.ops.plantops.planted_conv2d.default
    weight, weight_out = torch.randn(4, 5, 3, 3), torch.randn(9, 5, 3, 3)
    arguments = (torch.randn(2, 5, 8, 8), weight, weight_out, None, None, None, [1, 1], [1, 1], [1, 1], 1, 5, None)
    with pytest.raises(NotImplementedError, match="9 planted filters; wider blocks are for tensor cores"):
        conv.redispatch(key, *arguments, "relu", 1, False, "native")
