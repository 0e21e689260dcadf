"""Registers, stack and shared memory of every shipped GPU kernel, read from the machine code. Needs no GPU.

    python tools/kernel_report.py [--arch 80,90,100] [--source triton,cuda] [--csv FILE] [--jobs N]

Triton kernels are compiled ahead of time in the configurations that the ops choose; csrc/cuda/*.cu by nvcc. A stack is
where registers spill to: one above 0 makes the exit status 1.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from functools import cache, partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
NVCC_OPTIONS = ("-std=c++20", "-O3", "-cubin")
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Row:
    """One kernel for one architecture. `shared` counts bytes, static and as started."""

    compiler: str
    kernel: str
    architecture: str
    registers: int
    stack: int
    shared: int
    configuration: str


@cache
def tool(name: str) -> str:
    """A program of the CUDA toolkit: the path's, or the copy that Triton brings.

    Raises:
        SystemExit: there is neither.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which(name, path=f"{home}/bin" if home else None) or shutil.which(name)
    if found:
        return found
    spec = importlib.util.find_spec("triton")
    brought = Path(spec.origin).parent / "backends/nvidia/bin" / name if spec and spec.origin else None
    if brought is None or not brought.exists():
        raise SystemExit(f"{name} not found: install the CUDA toolkit (or set CUDA_HOME), or pip install triton")
    return str(brought)


def usage(cubin: Path) -> Iterator[tuple[str, int, int, int]]:
    """Name, registers, stack (local memory included) and static shared memory of each kernel in a cubin."""
    text = subprocess.run(
        [tool("cuobjdump"), "-res-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    for name, registers, stack, shared, local in USAGE.findall(text):
        yield name, int(registers), int(stack) + int(local), int(shared)


def accesses(cubin: Path) -> Iterator[tuple[str, list[str]]]:
    """Each kernel's name with the instructions that read and write memory of the device, as in "STG.E.128"."""
    listing = [tool("nvdisasm"), "-c", str(cubin)]
    text = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    for part in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        yield part[: part.index(":")], re.findall(r"\b(?:LDG|LDGSTS|STG)\.[A-Z0-9.]+", part)


def triton_rows(architecture: int, index: int) -> list[Row]:
    """The row of one shipped configuration."""
    import triton
    from triton_cubins import compile_for

    configuration = shipped()[index]
    cubin, dynamic = compile_for(architecture, configuration)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        ((_, registers, stack, static),) = usage(path)
    name = f"{configuration.kernel.__module__.removeprefix('plantops.ops.')}.{configuration.kernel.__name__}"
    return [Row(f"triton {triton.__version__}", name, f"sm_{architecture}", registers, stack, static + dynamic,
                configuration.words)]  # fmt: skip


@cache
def shipped() -> list:
    """Every configuration of a Triton kernel that the ops choose."""
    from shipped_launches import launches
    from triton_cubins import configurations

    return list(configurations(launches()))


def cuda_rows(architecture: int, index: int) -> list[Row]:
    """The rows of one source."""
    source = SOURCES[index]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source.stem}.cubin"
        command = [tool("nvcc"), *NVCC_OPTIONS, f"-arch=sm_{architecture}", "-o", str(path), str(source)]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise SystemExit(f"{' '.join(command)}\n{built.stderr}")
        return [
            Row(f"nvcc {nvcc_version()}", f"{source.stem}.{demangled(name)}", f"sm_{architecture}", registers, stack,
                shared, "")
            for name, registers, stack, shared in usage(path)
        ]  # fmt: skip


@cache
def nvcc_version() -> str:
    """The release of nvcc."""
    text = subprocess.run([tool("nvcc"), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+),", text)
    return found.group(1) if found else "?"


@cache
def commit() -> str:
    """The commit of the sources, or that of PLANTOPS_COMMIT where they came without history."""
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(described, capture_output=True, text=True)
    return os.environ.get("PLANTOPS_COMMIT") or found.stdout.strip() or "unknown"


@cache
def demangled(name: str) -> str:
    """The C++ name, where a program that knows it is there."""
    for program in ("cu++filt", "c++filt"):
        if path := shutil.which(program):
            return subprocess.run([path, name], capture_output=True, text=True, check=True).stdout.strip()
    return name


def report(architectures: list[int], sources: list[str], jobs: int) -> Iterator[Row]:
    """All rows, as they come."""
    work = []
    if "triton" in sources:
        work += [partial(triton_rows, a, i) for a in architectures for i in range(len(shipped()))]
    if "cuda" in sources and SOURCES:
        work += [partial(cuda_rows, a, i) for a in architectures for i in range(len(SOURCES))]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for rows in pool.map(_call, work):
            yield from rows


def _call(work: partial) -> list[Row]:
    return work()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="80,90,100", help="compute capabilities, between commas (80,90,100)")
    parser.add_argument("--source", default="triton,cuda", help="triton, cuda or both, between commas")
    parser.add_argument("--csv", type=Path, help="also write the rows to this file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once (one a core)")
    return parser.parse_args()


def main() -> int:
    """Prints the table, writes the CSV, and says which kernels use a stack."""
    if os.environ.pop("TRITON_INTERPRET", ""):
        print("TRITON_INTERPRET is ignored: the report compiles", file=sys.stderr)
    options = arguments()
    rows = []
    for row in report([int(a) for a in options.arch.split(",")], options.source.split(","), options.jobs):
        rows.append(row)
        print(f"{row.architecture:6} {row.registers:4} registers {row.stack:5} stack {row.shared:7} shared  "
              f"{row.compiler}  {row.kernel}  {row.configuration}", flush=True)  # fmt: skip
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*(field.name for field in fields(Row)), "commit"])
            writer.writerows((*astuple(row), commit()) for row in rows)
    spilling = [row for row in rows if row.stack]
    print(f"{len(rows)} kernels, {len(spilling)} with a stack")
    return 1 if spilling or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
