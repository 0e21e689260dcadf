"""info and bench."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import torch

import plantops
from plantops import _extension
from plantops._cli.mistakes import Mistake, mistakes
from plantops.ops import _registry
from plantops.train.environment import describe_environment
from plantops.train.progress import table_lines

EXTRAS = {
    "cli": ("rich",),
    "data": ("sklearn",),
    "vision": ("torchvision",),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
}
INSTALLED_AS = {"sklearn": "scikit-learn"}
VARIABLES = ("PLANTOPS_", "OMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "CUDA_", "TRITON_", "TORCH_", "PYTORCH_")
"""How the names of those begin that ``info`` shows."""
SHOWN = ("reference", "aten", "native", "triton")


ABOUT_INFO = """\
usage: plantops info

What runs here, what does not, why, and the command that would change it; machine and environment, for a bug report.
"""


def info(arguments: list[str]) -> int:
    """``plantops info``: what runs here, what does not, why, and the command that would change it.

    All that a report of a bug needs, and nothing that it should not hold: the home folder is written as ``~``.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(ABOUT_INFO, end="")
        return 0
    if arguments:
        raise Mistake("it takes no options.")
    parts = [_versions(), _module(), _implementations(), _devices(), _machine(), _variables(), _extras()]
    text = "\n\n".join("\n".join(lines) for lines in parts)
    home = str(Path.home())
    print(text.replace(home, "~") if len(home) > 1 else text)
    return 0


def _versions() -> list[str]:
    names = ("torch", "numpy", "safetensors", "triton")
    found = ", ".join(f"{name} {_version(name)}" for name in names if _version(name))
    return [
        f"plantops {plantops.__version__}, Python {platform.python_version()}, {found}",
        f"  in {Path(plantops.__file__).parent}",
    ]


def _module() -> list[str]:
    status = _extension.STATUS
    if not status.loaded:
        return [f"compiled module: not loaded, {status.reason}", f"  to change it: {status.remedy}"]
    return ["compiled module: loaded", *(f"  {name}: {value}" for name, value in status.info.items())]


def _implementations() -> list[str]:
    """One table per kind of device, then the reason for everything that is not live."""
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        rows = []
        for stem in _registry.stems():
            live = {impl: _registry.live(stem, impl, device) for impl in SHOWN}
            rows.append({f"on {device}": stem, **{impl: "live" if live[impl] else "-" for impl in SHOWN}})
            for impl in SHOWN:
                if not live[impl]:
                    reason = f"{impl} on {device}: {_registry.why_not(stem, impl, device)}"
                    reasons.setdefault(reason, []).append(stem)
        lines += table_lines(rows)
    lines += ["", "not live:"] if reasons else []
    for reason, stems in reasons.items():
        count = "every op" if len(stems) == len(list(_registry.stems())) else ", ".join(stems)
        lines.append(f"  {reason} ({count})")
    return lines


def _devices() -> list[str]:
    cpu = f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    count = torch.cuda.device_count()
    gpus = [f"cuda:{index}: {torch.cuda.get_device_name(index)}" for index in range(count)]
    if not gpus:
        gpus = ["cuda: no GPU is visible" if torch.version.cuda else "cuda: this torch is built without CUDA"]
    return ["devices:", *(f"  {line}" for line in (cpu, *gpus))]


def _machine() -> list[str]:
    """What a run's ``config.json`` says of the machine, and the room that there is."""
    known = describe_environment()
    names = ("system", "libc", "machine", "cpu", "cpus")
    lines = [f"  {name}: {known[name]}" for name in names if known[name]]
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    memory = _memory()
    room = f"  memory: {memory / 1e9:.1f} GB; " if memory else "  "
    return ["machine:", *lines, f"{room}free on this disk: {free:.1f} GB"]


def _memory() -> int | None:
    """Bytes of memory of the machine, where the system says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _variables() -> list[str]:
    """The variables of the environment that change what is computed, or how."""
    found = sorted(name for name in os.environ if name.startswith(VARIABLES))
    return ["environment:", *([f"  {name}={os.environ[name]}" for name in found] or ["  nothing that plantops reads"])]


def _extras() -> list[str]:
    lines = ["extras:"]
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        versions = ", ".join(f"{INSTALLED_AS.get(m, m)} {_version(INSTALLED_AS.get(m, m))}" for m in modules)
        lines.append(f"  {extra}: " + (f"missing, pip install 'plantops[{extra}]'" if missing else versions))
    return lines


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def bench(arguments: list[str]) -> int:
    """``plantops bench [BENCHMARK ...]``."""
    from plantops.bench import command

    with mistakes():
        return command.main(arguments)
