"""Loads the compiled module plantops._C, or records why it is not there. Importing this never raises."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

REBUILD = (
    "in a checkout of plantops: pip install cmake ninja pybind11 'setuptools>=77' && "
    "PLANTOPS_BUILD=cpu pip install --no-build-isolation --force-reinstall --no-deps ."
)


REBUILD_CUDA = REBUILD.replace("PLANTOPS_BUILD=cpu", "PLANTOPS_BUILD=cuda")


@dataclass(frozen=True)
class ExtensionStatus:
    """Whether `plantops._C` is loaded; if not, the reason and the command that would change it."""

    loaded: bool
    reason: str = ""
    remedy: str = ""
    info: dict[str, str] = field(default_factory=dict)


def _torch_version() -> str:
    return ".".join(torch.__version__.split(".")[:2])


def _major(version: str | None) -> str:
    return (version or "").split(".")[0]


def _load() -> ExtensionStatus:
    path = Path(__file__).parent / "_C_build.json"
    if not path.exists():
        return ExtensionStatus(False, "this installation has no compiled module (built without one)", REBUILD)
    # Compared before loading: a module built against another torch may fail to load or crash.
    record = json.loads(path.read_text())
    built_for, cuda = record["torch"], record.get("cuda", "")
    if built_for != _torch_version():
        return ExtensionStatus(
            False, f"the compiled module was built for torch {built_for}, installed is {torch.__version__}", REBUILD
        )
    if cuda and _major(cuda) != _major(torch.version.cuda):
        return ExtensionStatus(
            False,
            f"the compiled module was built with CUDA {cuda}, installed is torch {torch.__version__}"
            + (f" for CUDA {torch.version.cuda}" if torch.version.cuda else " without CUDA"),
            REBUILD,
        )
    try:
        module = importlib.import_module("plantops._C")
    except ImportError as error:
        return ExtensionStatus(False, f"the compiled module does not load: {error}", REBUILD)
    return ExtensionStatus(True, info=module.build_info())


STATUS = _load()
