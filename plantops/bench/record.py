"""What was measured where: hardware and versions, CSV files, tables as text."""

from __future__ import annotations

import csv
import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import plantops

Row = dict[str, Any]
COMMIT = "PLANTOPS_COMMIT"
"""Names the commit where the sources were copied without their history."""


def environment(device: torch.device | str | None = None) -> Row:
    """Hardware, versions, commit and date: the same columns on every row of a results file.

    Args:
        device: what was measured; default: the CPU.
    """
    device = torch.device(device or "cpu")
    on_gpu = device.type == "cuda"
    return {
        "hardware": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "device": device.type,
        "driver": driver() if on_gpu else "",
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 0,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _installed("triton"),
        "cuda": torch.version.cuda or "",
        "plantops": plantops.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


@functools.cache
def cpu_name() -> str:
    """The processor's name, as the kernel gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def driver() -> str:
    """The version of the NVIDIA driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (_output(query).splitlines() or ["unknown"])[0]


@functools.cache
def commit() -> str:
    """The commit of the sources; `PLANTOPS_COMMIT` where git does not know it."""
    folder = str(Path(plantops.__file__).parent)
    described = _output(["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"])
    return os.environ.get(COMMIT) or described or "unknown"


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows (columns: the union of their keys, in order of appearance) and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file, every value as text."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The chosen columns as aligned text."""
    cells = [list(columns)] + [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
