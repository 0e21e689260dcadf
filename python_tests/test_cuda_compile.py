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


@pytest.mark.timeout(600)
@pytest.mark.skipif(NVCC is None, reason="nvcc not found: set CUDA_HOME or CUDACXX")
def test_rows_move_16_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An assignment of 16 aligned bytes may be compiled to four of 4: only the machine code shows it."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import kernel_report

    try:
        kernel_report.tool("nvdisasm")
    except SystemExit as missing:
        pytest.skip(str(missing))
    cubin = tmp_path / "kernels.cubin"
    command = [str(NVCC), "-std=c++20", "-O3", "-cubin", "-arch=sm_90", "-o", str(cubin)]
    subprocess.run([*command, str(ROOT / "csrc/cuda/kl_div_logits.cu")], check=True)
    rows = {name: found for name, found in kernel_report.accesses(cubin) if "any_kernel" not in name}
    held = {name: found for name, found in rows.items() if "block_kernel" in name and "Lb1" in name}
    assert len(held) == 2 * 3 * 3  # two ops that hold a row, three types, three sizes of blocks
    for name, found in held.items():
        assert any("LDGSTS" in access and "128" in access for access in found), name
    for name, found in rows.items():
        if "sum_kernel" in name:
            continue
        assert "7Forward" in name or "STG.E.128" in found, name
        assert name in held or any(access.startswith("LDG.E.128") for access in found), name


def test_there_are_kernels():
    assert SOURCES
