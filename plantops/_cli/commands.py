"""info and bench."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata

import torch

import plantops
from plantops import _extension
from plantops._cli.mistakes import Mistake, mistakes
from plantops.ops import _registry
from plantops.train.progress import table_lines

EXTRAS = {
    "cli": ("rich",),
    "data": ("sklearn",),
    "vision": ("torchvision",),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
}
INSTALLED_AS = {"sklearn": "scikit-learn"}
SHOWN = ("reference", "aten", "native", "triton")


def info(arguments: list[str]) -> int:
    """``plantops info``: what runs here, what does not, why, and the command that would change it."""
    if arguments:
        raise Mistake("it takes no options.")
    print("\n".join([*_versions(), "", *_module(), "", *_implementations(), "", *_devices(), "", *_extras()]))
    return 0


def _versions() -> list[str]:
    names = ("torch", "numpy", "safetensors", "triton")
    found = ", ".join(f"{name} {_version(name)}" for name in names if _version(name))
    return [f"plantops {plantops.__version__}, Python {platform.python_version()}, {found}"]


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
