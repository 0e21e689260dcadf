"""nvcc compiles every csrc/cuda/*.cu for the architectures that are shipped, and no kernel uses a stack or spills."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
REPORTS = ROOT / "build" / "nvcc"  # what nvcc said about sources and options of this hash: compiling takes long


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which(os.environ.get("CUDACXX") or (f"{home}/bin/nvcc" if home else "nvcc"))


NVCC = find_nvcc()


def resource_usage(source: Path) -> str:
    """What ptxas says about every kernel of the source, for each architecture."""
    command = [str(NVCC), "-std=c++20", "-O3", "-fatbin", "-Xptxas", "-v", "--threads", str(len(ARCHITECTURES))]
    for name in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{name},code=sm_{name}"]
    release = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(" ".join([*command, release]).encode())
    for path in [source, *sorted((ROOT / "csrc").glob("ops/*.h")), *sorted((ROOT / "csrc/cuda").glob("*.*h"))]:
        digest.update(path.read_bytes())
    report = REPORTS / f"{source.stem}-{digest.hexdigest()[:16]}.txt"
    if not report.exists():
        built = subprocess.run([*command, str(source), "-o", os.devnull], capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        REPORTS.mkdir(parents=True, exist_ok=True)
        partial = report.with_suffix(f".{os.getpid()}")
        partial.write_text(built.stdout + built.stderr)
        partial.replace(report)
    return report.read_text()


@pytest.mark.timeout(1200)  # minutes where other work shares the cores
@pytest.mark.skipif(NVCC is None, reason="nvcc not found: set CUDA_HOME or CUDACXX")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_stack_and_no_spills(source: Path):
    report = resource_usage(source)
    assert "warning" not in report, report
    kernels = re.findall(r"Compiling entry function '(\S+)' for 'sm_(\d+)'", report)
    assert {architecture for _, architecture in kernels} == set(ARCHITECTURES)
    usage = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
    )
    assert len(usage) >= len(kernels)
    assert [entry for entry in usage if entry[1:] != ("0", "0", "0")] == []


def test_there_are_kernels():
    assert SOURCES
